"""From the host's `datasets:` to batches of tokens that know their source.

entries     entries of a list in the config, loaded one after the other
sources     the training set and the validation data, every row tagged
validation  the validation batches, a function of (seed, step)
resampled   the batches after learning, drawn by the weights
"""
