"""What a run leaves. Without torch, so that a report can be drawn again on any machine; nothing of ours is imported.

history       one line per update of the mixture
summary       what a history says of each source, with the standard error of its gap
mixture_file  `mixture.json`
tables        a mixture as text
picture       weights and losses over the run
page          all of it on one page: `about_run`, its head; `charts`, drawn by uPlot in `web/`; `evidence_seen`, on what
              the verdict rests; `markup`, what it is made of
shared_rows   rows that stand in more than one source
leaks         rows of the training data that stand in the data that judge them
cost          `cost.json`: what the steps took
side_by_side  several runs in one table, and on one page
comparison    what `scalebio compare` left beside a run
next_config   the config of the next, ordinary run
bug           what a bug report needs; of a config and a log, `without_secrets`
folder        the folder of a run, in which all of these lie
files         files that are never half there
parsed        documents that people send each other, parsed once
identity      what a run is, for those that go on from it
words         text from elsewhere, before it reaches a terminal
"""
