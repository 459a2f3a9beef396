"""`scalebio estimate`: what a run takes, from the model's config alone, before weights are downloaded.

layout      how the model is spread over GPUs, read from the host's config
setting     what else of that config decides memory and compute; passes per step against the ordinary run
given       files that a user names, read: a config, JSON
model       the model of a config on the meta device, adapters and precisions as the host has them
optimizers  bytes of optimizer state, tensor by tensor
memory      bytes per GPU of weights, gradients, states and the inner set, from their shapes
passes      activations and logits: the model's own forward and backward on tensors without memory
estimator   all of it together, from a config file; or the state of a real model that is about to train
checked     what the plugin and the host refuse in a config, and what would be ignored
lines       the estimate as text
"""
