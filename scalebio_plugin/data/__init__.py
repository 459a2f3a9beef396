"""From the host's `datasets:` to batches of tokens that know their source.

entries     entries of a list in the config, validated and loaded one after the other
carried     a column of the raw rows, carried through the host's tokenising
small_sets  no process pools where a set is small
loading     entries by the host, one at a time
splits      the sources that they are
tags        the mark of its source that every row and token carries
merging     entries merged as the host does
overlap     rows that hold the same text, by their letters
leaks       training rows that stand in validation or test data
table       what a set of sources holds
validation_data  the validation data, tagged and counted
sources     the training set, tagged and counted, and all that it needs beside it
packing     what a micro-batch looks like, and the bins of a packed one
validation  the validation batches, a function of (seed, step)
step_plan   rows of a step, planned by source as the weights have it; planned_stream: fetched by the host's loader
applied     a mixture applied: rows drawn by its weights, as an ordinary run has them; after_learning: in laps
"""
