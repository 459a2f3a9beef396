"""The mathematics, in torch alone: importable in anybody's training loop, tested without a trainer.

    min over λ, w of max over u of   L1(w) + α ( L2(λ, w) − L2(λ, u) )

w are the model's parameters, u the inner ones; L1 is the loss on the validation data, L2(λ, θ) = Σ p_i L2_i(θ) that on
the training data of sources i with weights p = softmax(λ); α is the penalty (Pan et al., ACL 2025, arXiv 2406.19976).
docs/bilevel_loop.py is a whole loop made of these. What is public stands in `__all__`, by its file:

alignment which source helps which goal: inner products of gradients, from sketches of them
bilevel   losses per token and per source, the gap between the two parameter sets, the gradient of λ
evidence  what a series of gaps says of its mean: correlated noise told from a signal, at any time
moments   running sums of such a series, and how far off its mean may be
alike     what sources share that are not told apart, so that their odds stay; within `move_on_evidence`
mixture   weights on the simplex: update rules
prior     what draws weights to a prior, beside the gaps
bounds    bounds on weights and on sums of them
certainty intervals for the weights, and a verdict on the mixture
saved     states back from the plain values of a checkpoint
pieces    losses of tokens from what an output head reads, piece by piece, without the logits of a whole batch
inner     the inner parameters: a second value, gradient and optimizer state for every trainable tensor of one module
arrivals  what of their values is on its way to the module, and who waits for it
lisa      which transformer blocks train in which period
"""

from .alignment import CountSketch, alignment
from .bilevel import (
    IGNORED,
    NO_SOURCE,
    GapBaseline,
    Targets,
    estimate_gap,
    mixture_gradient,
    sum_by_source,
    targets_of,
    token_losses,
    weighted_loss,
)
from .bounds import Bounds
from .certainty import total_variation, verdict, weight_interval
from .evidence import Evidence
from .inner import InnerParameters
from .lisa import LayerPlan, draw_layers, find_blocks
from .mixture import (
    AdamState,
    EvidentState,
    ExponentiatedState,
    adam,
    exponentiated_gradient,
    logits_of,
    move_on_evidence,
    pace_on_evidence,
    weights_of,
)
from .moments import Moments
from .prior import towards_prior

__all__ = [
    # alignment
    "CountSketch",
    "alignment",
    # bilevel
    "IGNORED",
    "NO_SOURCE",
    "GapBaseline",
    "Targets",
    "estimate_gap",
    "mixture_gradient",
    "sum_by_source",
    "targets_of",
    "token_losses",
    "weighted_loss",
    # evidence
    "Evidence",
    # moments
    "Moments",
    # mixture
    "AdamState",
    "Bounds",
    "EvidentState",
    "ExponentiatedState",
    "adam",
    "exponentiated_gradient",
    "logits_of",
    "move_on_evidence",
    "pace_on_evidence",
    "weights_of",
    # prior
    "towards_prior",
    # certainty
    "total_variation",
    "verdict",
    "weight_interval",
    # inner
    "InnerParameters",
    # lisa
    "LayerPlan",
    "draw_layers",
    "find_blocks",
]
