"""The step and what surrounds it.

step            one optimiser step, from top to bottom
trainer         the host's trainer with that training step
callbacks       what happens around the step, and at the end of the run
learning        what the trainer holds of a run
mixture_run     λ as a run learns it
layer_sampling  LISA: which layers train, in both parameter sets
model_loss      what a model adds to its loss by itself
random_state    states of the random generators
checkpoint      what a checkpoint holds, as plain values
prepare_model   the loaded model, before the optimizer is made
early           what is refused before the model loads
connect         from the host's config and finished trainer to all of these
console         lines of the log between progress bars
"""
