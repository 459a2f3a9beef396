"""The step and what surrounds it.

trainer         the host's trainer with one overridden training step
learning        what it holds of a run that learns
mixture_run     the mixture as a run learns it
layer_sampling  LISA: which layers train, in both parameter sets
model_loss      what a model adds to its loss by itself
callbacks       what happens around the step
checkpoint      what a checkpoint holds
connect         from the host's config and trainer to ours
console         lines of the log between progress bars
"""
