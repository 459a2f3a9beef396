"""A prior of the mixture: what draws λ to it, beside the gaps and as far as bounds leave a way.

Softmax does not see what is added to all of λ, so that of a source's distance from its prior, log(p / prior), only what
it is off a centre draws: the mean over the sources that are free to move (`Bounds.centre`).

Legend: S sources. float64 on the CPU. A prior is (S,), > 0, sum 1.
"""

from __future__ import annotations

from torch import Tensor

from .bounds import Bounds
from .evidence import Evidence, precision_weights
from .mixture import pace_on_evidence, weights_of


def towards_prior(logits_S: Tensor, prior_S: Tensor, step: float | Tensor) -> Tensor:  # (S,)
    """The proximal step of a Kullback-Leibler prior: argmin over p of step · KL(p | prior) + KL(p | softmax(λ)).

    Exact also within `Bounds`: the sum is (1 + step) KL(p | result) and a constant, so that it is least at the result's
    projection.

    Args:
        logits_S: (S,), λ.
        prior_S: (S,), > 0, sum 1.
        step: Learning rate times the prior's strength over that of the gaps; (S,) where a rule moves each source at a
            pace of its own (`pace_on_evidence`): then no argmin, and the mean of λ − log prior must be 0.
    """
    return (logits_S + step * prior_S.log()) / (1 + step)


def gap_of_prior(
    weights_S: Tensor, prior_S: Tensor, strength: float, bounds: Bounds | None = None
) -> Tensor:  # (S,), nats
    """What a prior adds to the gaps, for a rule that moves λ by them: strength · log(p / prior), off its centre.

    Where a bound bars its way nothing, or one at 0 would outweigh all gaps in their root mean square.

    Args:
        weights_S: (S,), p.
        prior_S: (S,).
        strength: τ/α, τ nats of validation loss.
        bounds: Within which the weights are.
    """
    distance_S = (weights_S / prior_S).log()
    return strength * (distance_S - _centre(weights_S, distance_S, weights_S, bounds))


def drawn_beside_evidence(
    logits_S: Tensor,
    before_S: Tensor,
    evidence: Evidence,
    prior_S: Tensor,
    step: float,
    bounds: Bounds | None = None,
) -> Tensor:  # (S,)
    """λ that `move_on_evidence` has moved, drawn to a prior as fast as it moves each source; while no gap is, not.

    Args:
        logits_S: (S,), λ as the rule moved it.
        before_S: (S,), λ before.
        evidence: That it moved it by.
        prior_S: (S,).
        step: η τ/α, the rule's learning rate times `gap_of_prior`'s strength.
        bounds: Within which the weights were before.
    """
    if not float(evidence.scale_S.min()) > 0.0:
        return logits_S
    share_S = precision_weights(evidence.spread_S, evidence.updates)
    centre_S = _centre(weights_of(before_S), before_S - prior_S.log(), share_S, bounds)
    drawn_S = towards_prior(logits_S - centre_S, prior_S, step * pace_on_evidence(evidence))
    return drawn_S + (centre_S - centre_S.max())


def _centre(weights_S: Tensor, distance_S: Tensor, share_S: Tensor, bounds: Bounds | None) -> Tensor:  # (S,)
    if bounds is None:
        return (share_S * distance_S).sum().expand_as(share_S)
    return bounds.centre(weights_S, distance_S, share_S)
