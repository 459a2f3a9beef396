"""The mathematics, in torch alone: importable in anybody's training loop, tested without a trainer.

bilevel   losses per token and per source, the gap between the two parameter sets, the gradient of λ
mixture   weights on the simplex: initial values, update rules, bounds
inner     the inner parameters: a second value, gradient and optimizer state for every trainable tensor of one module
lisa      which transformer blocks train in which period
"""
