"""Weights on the simplex: where they start, how they move, what bounds them.

Legend: S sources. λ are `logits` (S,), float64 on the CPU; `weights = softmax(logits)`. State is a value: a rule takes
(gradient or gap, state, logits) and returns (logits, state), so that a checkpoint is the state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .alike import Shared, shared
from .evidence import DECAY, Evidence, boundary, refuse_not_finite
from .moments import LEAST_UPDATES, TINY
from .saved import restored


def weights_of(logits_S: Tensor) -> Tensor:  # (S,)
    """softmax(λ)."""
    return torch.softmax(logits_S, dim=0)


NO_WEIGHT = 1e-12  # up to here a weight counts as 0: one of 0 comes back from `logits_of` as 1e-30


def logits_of(weights_S: Tensor) -> Tensor:  # (S,)
    """λ with mean 0, in float64, whose softmax are `weights_S` (≥ 0, sum 1); a weight of 0 becomes 1e-30."""
    logits = weights_S.to(torch.float64).clamp(min=1e-30).log()
    return logits - logits.mean()


@dataclass(frozen=True)
class AdamState:
    """Adam on the logits.

    Attributes:
        step: Updates so far.
        first_S: (S,), float64, running mean of the gradient, not yet corrected for its bias.
        second_S: (S,), float64, the same of its square.
    """

    step: int
    first_S: Tensor
    second_S: Tensor

    @classmethod
    def zeros(cls, sources: int) -> AdamState:
        """Before the first update."""
        return cls(0, torch.zeros(sources, dtype=torch.float64), torch.zeros(sources, dtype=torch.float64))


def adam(
    gradient_S: Tensor,
    state: AdamState,
    logits_S: Tensor,
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
) -> tuple[Tensor, AdamState]:
    """The paper's rule: Adam (Kingma and Ba, arXiv 1412.6980) on λ. A logit moves by about `learning_rate` a step.

    Args:
        gradient_S: (S,), of the objective by λ, from `mixture_gradient`.
        state: What the last call returned.
        logits_S: (S,), λ before the update.
        learning_rate: The paper's is 0.01.
        betas: Decay of the first and the second moment.
        epsilon: Added to the root of the second.

    Returns:
        λ after the update, and the state for the next one.

    Raises:
        ValueError: The gradient is not finite, from which λ would not come back.
    """
    refuse_not_finite(gradient_S, "gradient")
    step = state.step + 1
    first = betas[0] * state.first_S + (1 - betas[0]) * gradient_S
    second = betas[1] * state.second_S + (1 - betas[1]) * gradient_S**2
    scale = (second / (1 - betas[1] ** step)).sqrt() + epsilon
    logits = logits_S - learning_rate * first / (1 - betas[0] ** step) / scale
    return logits, AdamState(step, first, second)


@dataclass(frozen=True)
class ExponentiatedState:
    """Normalised exponentiated gradient.

    Attributes:
        step: Updates so far.
        mean_square: Running mean square of the centred gap over all sources, not yet corrected for its bias.
    """

    step: int = 0
    mean_square: float = 0.0


def exponentiated_gradient(
    gap_S: Tensor,
    weights_S: Tensor,
    state: ExponentiatedState,
    logits_S: Tensor,
    learning_rate: float,
    decay: float = 0.99,
) -> tuple[Tensor, ExponentiatedState]:
    """p_i ← p_i exp(−η ĝ_i) / Z with ĝ the centred gap over its running RMS across sources.

    Mirror descent on the simplex (Kivinen and Warmuth, 1997): ∂/∂p_i of the objective is α g_i, and without softmax's
    factor p_i a small weight comes back as fast as a large one goes. The RMS makes η a speed in nats a step, whatever
    α and the size of the losses. A gap that is 0 everywhere leaves λ as it is.

    Args:
        gap_S: (S,), from `estimate_gap`.
        weights_S: (S,), softmax of `logits_S`.
        state: What the last call returned.
        logits_S: (S,), λ before the update.
        learning_rate: η.
        decay: Of the running mean square; 0.99 remembers about a hundred updates.

    Returns:
        λ after the update, and the state for the next one.

    Raises:
        ValueError: A gap is not finite, from which λ would not come back.
    """
    refuse_not_finite(gap_S, "gap")
    centred = gap_S - (weights_S * gap_S).sum()
    step = state.step + 1
    mean_square = decay * state.mean_square + (1 - decay) * float((centred**2).mean())
    rms = (mean_square / (1 - decay**step)) ** 0.5
    logits = logits_S if rms == 0.0 else logits_S - learning_rate * centred / rms
    return logits, ExponentiatedState(step, mean_square)


HOLD = 4  # the power of a fraction of evidence that stays evident when later gaps are 0
MOST = 1.5  # of a sum that has become evident, an update: what is gathered in doubt is no reason to jump
NOTHING = 1e-9  # nats that rounding may take from λ
LEAST_OTHERS = 0.01  # how much weight the other sources keep together, so that they can come back in time


@dataclass(frozen=True)
class EvidentState:
    """What `move_on_evidence` goes on from.

    Attributes:
        moved_S: (S,), A, the part of the summed gaps that λ stands for: λ is its start less η A.
        owed_S: (S,), what became evident and is still to be moved by.
        used_S: (S,), the fraction of the sums that counted as evident.
        largest_S: (S,), the largest fraction that was evidence since the sum last changed sign.
        left_S: (S,), λ as the last update left it, before reach, prior and bounds; infinite before the first.
        lowest_S: (S,), how far below the largest a source may be, ≤ 0: as far as at the start, or as all may be;
            infinite before the first.
        shared_S: (S,), the sums as the sources shared them at the last update.
        given_S: (S,), λ as the last update gave it on, after reach, before prior and bounds; infinite before the first.
        barred_S: (S,), ≥ 0, what these took lately of the rise of a source whose sum is still for it, in gaps.
    """

    moved_S: Tensor
    owed_S: Tensor
    used_S: Tensor
    largest_S: Tensor
    left_S: Tensor
    lowest_S: Tensor
    shared_S: Tensor
    given_S: Tensor
    barred_S: Tensor

    @classmethod
    def zeros(cls, *shape: int) -> EvidentState:
        """Before the first update."""
        nothing = torch.zeros(shape, dtype=torch.float64)
        unknown = torch.full_like(nothing, math.inf)
        return cls(nothing, nothing, nothing, nothing, unknown, unknown, nothing, unknown, nothing)

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> EvidentState:
        """Back from `vars`, also of a version whose state had less.

        Raises:
            OtherFormat: It has what this version does not know.
        """
        whole = vars(cls.zeros(*saved["moved_S"].shape)) if "moved_S" in saved else {}
        return restored(cls, {**whole, **saved})


def move_on_evidence(
    evidence: Evidence, state: EvidentState, logits_S: Tensor, learning_rate: float
) -> tuple[Tensor, EvidentState]:
    """λ = λ₀ − η A: A is that fraction f of a source's summed gaps, over their running RMS, that is evident.

    So λ stays where it is on noise. Where there is a signal, each gap moves it by f of itself, and what was gathered in
    doubt is caught up, at most MOST of it in an update. Sources that are not told apart share sums, gaps and f
    (`alike.shared`), so that their odds stay as they are; where others come to share, A follows. Where f falls, A goes
    back in proportion, but keeps f⁴ of what was evident once: later gaps, which are 0 where the mixture has arrived,
    are those of another mixture (if all of it stayed, so would what slow noise did; if none, λ would leave where it
    belongs). What reach, bounds or a prior take from λ is forgotten, so that λ turns as soon as its gaps do, though no
    further than to its start before that is evident. But while others catch up in rising, a source that a bound has
    held goes along by what was taken from it lately: it would lose to them what no gap speaks against.

    Args:
        evidence: With this update's gaps.
        state: What the last call returned.
        logits_S: (S,), λ before the update.
        learning_rate: η, nats an update at a gap that stands at its RMS.

    Returns:
        λ after the update, and the state for the next one.
    """
    if evidence.updates < LEAST_UPDATES:
        return logits_S, replace(state, shared_S=evidence.sums()[0])
    total, gap, fraction, _ = _shared(evidence)
    used, largest = held(fraction, torch.where(total * state.shared_S > 0, state.largest_S, 0.0))
    kept = torch.where(state.used_S > 0, used / state.used_S.clamp(min=TINY), 0.0).clamp(max=1.0)
    moved, owed = _moved_and_owed(state, _taken(logits_S, state.left_S), total - gap, used, kept, learning_rate)
    paid = owed.clamp(-MOST, MOST)
    barred, along = _along(state, _taken(logits_S, state.given_S), total, paid, kept, learning_rate)
    after = moved + used * gap + paid - along
    after = torch.where((after * total < 0) & (moved * total >= 0), 0.0, after)
    left = logits_S - learning_rate * (after - moved)
    at_start = (logits_S - logits_S.amax(-1, keepdim=True)).clamp(max=-_reach(logits_S.shape[-1]))
    lowest = torch.where(state.lowest_S.isinf(), at_start, state.lowest_S)
    given = _within_reach(left, logits_S, lowest)
    state = EvidentState(after, owed - paid, used, largest, left, lowest, total, given, barred - along)
    return given, state


def _moved_and_owed(
    state: EvidentState, taken_S: Tensor, regrouped_S: Tensor, used_S: Tensor, kept_S: Tensor, learning_rate: float
) -> tuple[Tensor, Tensor]:
    """(S,) A before this update's gaps, and (S,) what it is short of.

    Args:
        state: Of the last update.
        taken_S: (S,), what reach, prior and bounds took from λ since, which is forgotten.
        regrouped_S: (S,), the sums before this update, as they are shared now.
        used_S, kept_S: (S,), the fraction that counts now, and how much of the last one that is, at most all of it.
    """
    before_S = state.shared_S
    moved = state.moved_S - taken_S / learning_rate
    owed = torch.where(taken_S.abs() > NOTHING, 0.0, state.owed_S)
    owed = owed + _part(moved + owed, state.used_S * before_S) * state.used_S * (regrouped_S - before_S)
    return moved, owed + (used_S - state.used_S).clamp(min=0.0) * regrouped_S - (moved + owed) * (1 - kept_S)


def _along(
    state: EvidentState, taken_S: Tensor, total_S: Tensor, paid_S: Tensor, kept_S: Tensor, learning_rate: float
) -> tuple[Tensor, Tensor]:
    """(S,) `EvidentState.barred_S` now, and (S,) how much of it a source rises by, while others catch up in rising.

    Args:
        state: Of the last update.
        taken_S: (S,), what prior and bounds took from λ since.
        total_S: (S,), the sums.
        paid_S: (S,), what each catches up in this update.
        kept_S: (S,), as above.
    """
    barred = DECAY * state.barred_S - taken_S.clamp(max=0.0) / learning_rate
    barred = torch.where(total_S < 0, barred * kept_S, 0.0)
    return barred, torch.minimum(barred, (paid_S.clamp(max=0.0) - paid_S.amin(-1, keepdim=True)).clamp(min=0.0))


def pace_on_evidence(evidence: Evidence) -> Tensor:  # (S,)
    """How far `move_on_evidence` moves each source by a gap of one nat that is evident, over η: 1 / nats.

    What draws λ elsewhere at this pace (`prior.towards_prior`) and the gaps meet where they are equal in nats.

    Args:
        evidence: Of all updates so far, with gaps that are not all 0.
    """
    own = 1 / evidence.scale_S
    return own if evidence.updates < LEAST_UPDATES else own * _shared(evidence).pace(evidence.per_nat_S)


def _shared(evidence: Evidence) -> Shared:
    sums, error = evidence.sums()
    limit = boundary(evidence.updates, sums.shape[-1])
    return shared(sums, evidence.standard.last_S, error, evidence.per_nat_S, limit)


def _part(moved_S: Tensor, evident_S: Tensor) -> Tensor:  # (S,), 0 to 1
    """How much of what is evident λ stands for: all but what was forgotten."""
    return torch.where(evident_S != 0, moved_S / torch.where(evident_S != 0, evident_S, 1.0), 1.0).clamp(0.0, 1.0)


def held(fraction_S: Tensor, largest_S: Tensor) -> tuple[Tensor, Tensor]:
    """(S,) the fraction that counts now, given the largest one before, and (S,) the largest one now."""
    return torch.maximum(fraction_S, largest_S**HOLD), torch.maximum(fraction_S, largest_S)


def _taken(now_S: Tensor, left_S: Tensor) -> Tensor:  # (S,)
    """What reach, prior and bounds made of λ; softmax does not see their common part."""
    change = torch.where(left_S.isinf(), 0.0, now_S - left_S)
    return change - change.mean(-1, keepdim=True)


def _reach(sources: int) -> float:
    """How far below the largest logit each of the others may be: they keep LEAST_OTHERS of the weight together."""
    return math.log(max(1, sources - 1) * (1 - LEAST_OTHERS) / LEAST_OTHERS)


def _within_reach(logits_S: Tensor, before_S: Tensor, lowest_S: Tensor) -> Tensor:
    """No logit falls farther below the largest than `_reach`.

    A rare source, which is farther below than that, goes along with the largest, whichever way that goes, and by its
    own gaps no farther below than at the start: else its weight would grow each time that the largest rose and fell.

    Args:
        logits_S: (S,), λ as the rule moved it.
        before_S: (S,), λ before.
        lowest_S: (S,), see `EvidentState`.
    """
    largest, was_largest = logits_S.amax(-1, keepdim=True), before_S.amax(-1, keepdim=True)
    distance, reach = before_S - was_largest, _reach(logits_S.shape[-1])
    own = torch.maximum(logits_S - before_S, (lowest_S - distance).clamp(max=0.0))
    rare = before_S + (largest - was_largest) + own
    return torch.where(distance < -reach - NOTHING, rare, torch.maximum(logits_S, largest - reach))
