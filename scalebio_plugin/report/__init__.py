"""What a run leaves. Without torch, so that a report can be drawn again on any machine.

summary      the history of the mixture, what it says, `mixture.json`
picture      weights and losses over the run
page         all of it on one page
next_config  the config of the next, ordinary run
"""
