"""`scalebio estimate`: what a run takes, from the model's config alone, before weights are downloaded.

optimizers  bytes of optimizer state per tensor                                    standard library only
records     weights, engine, training; bytes by category                           standard library only
memory      bytes of weights, gradients, states and the inner set per GPU          standard library only
cost        passes per step against the ordinary run                               standard library only
passes      activations and logits: the model's own forward and backward on tensors without memory      torch
model       the model of a config on the meta device, adapters put in by peft      transformers, peft, when called
setting     what of the host's config decides memory and compute
estimator   all of it together, from a config file
at_hand     the state of a real model that is about to train
lines       the estimate as text
"""
