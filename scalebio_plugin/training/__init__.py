"""The step and what surrounds it.

step            one optimiser step, from top to bottom
trainer         the host's trainer with that training step
resumable       of that trainer what takes a run up and saves it
callbacks       what happens around the step, and at the end of the run
learning        what the trainer holds of a run; pace: how long its steps take
mixture_run     λ as a run learns it; mixture_settings, objective: of what settings and validation sets
phase           the phases of a run; step_losses: what a step says to the mixture
record          the mixture after an update, as a line of the history
watch           signs in the numbers that learning goes wrong
probe           which source helps which validation set; probe_plan: when
layer_sampling  LISA: which layers train, in both parameter sets
head_losses     losses of tokens from logits, or inside the head; model_loss: what a model adds to its loss
random_state    states of the random generators
checkpoint      what a checkpoint holds, as plain values; state_file, manifest: how it is written, and checked
resume_from     which checkpoint a run goes on from
same_run        whether a checkpoint is of this run; restored_options: what of it is not followed
signals         Ctrl-C and SIGTERM, held until a step is over
prepare_model   the loaded model, before the optimizer is made
early           what is refused before the model loads
connect         from the host's config and finished trainer to all of these
provenance      what a run tells of itself, and the config of the next one
dashboards      the mixture in the trackers of the host's config
console         lines of the log between progress bars
"""
