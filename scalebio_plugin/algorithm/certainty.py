"""How sure a mixture is: intervals for its weights, and what can be said of it as a whole.

Legend: S sources. Values are float64 on the CPU; the (S,) of an interval may have leading dimensions, as in `evidence`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import torch
from torch import Tensor

from .alike import shared
from .evidence import LEVEL, Evidence, boundary, evident_fraction, precision_weights
from .mixture import NO_WEIGHT, EvidentState, held, weights_of
from .moments import LEAST_UPDATES, TINY

LITTLE = 0.02  # total variation that is no movement
STILL = 0.03  # the same over the recent updates of a mixture that has settled
NEAR = 0.05  # total variation from its start of a mixture that noise may have moved
FOLLOWED = 3.0  # nats for which recent gaps are followed, to see where they lead
WIDE = 0.5  # width of an interval with which a weight is not settled
GAIN = 0.1  # weight that a source may win beyond as much as it has, in a mixture that has settled
KNOWN = 0.25  # of the smallest scale, up to which a recent gap is small: near an optimum inside the simplex


def weight_interval(
    weights_S: Tensor, evidence: Evidence, learning_rate: float, state: EvidentState | None, *, level: float = 0.05
) -> tuple[Tensor, Tensor]:
    """(S,) ends of an interval for each weight: what the noise of the gaps may have made of it.

    λ_i is a sum of gaps, whose standard error says by how much it would differ in a run with other noise. Both ends of
    that sum's interval go through the rule (with a `state`: `move_on_evidence`; else the plain sum), and what the
    shift of each source's does to the log odds of every weight is added up in squares, upwards and downwards apart. It
    covers (more often than asked) where the gaps do not answer to the weights, and is wide where they do: near an
    optimum inside the simplex they bring λ back. An interval of no width: nothing has passed the boundary.

    Args:
        weights_S: (S,), after the last update.
        evidence: Of all updates so far.
        learning_rate: η, that of the rule.
        state: Of `move_on_evidence`; None: each gap over its running RMS moves λ.
        level: Probability that an end is passed by chance.
    """
    if evidence.updates < LEAST_UPDATES:
        return torch.zeros_like(weights_S), torch.ones_like(weights_S)
    total, error = evidence.sums()
    reach = NormalDist().inv_cdf(1 - level / 2) * evidence.standard.error() * evidence.updates
    reach = reach / math.sqrt(1 - 1 / weights_S.shape[-1])  # with what centring took away
    shifts = torch.diag_embed(torch.stack([-reach, reach]))  # of one source in each row: (2, S, S)
    if state is not None:
        shifts = _moved(evidence, state, shifts) - _moved(evidence, state, torch.zeros(1))
    changes = _log_odds_change(weights_S, -learning_rate * shifts)
    up, down = ((sign * changes).amax(0).clamp(min=0.0).square().sum(-2).sqrt() for sign in (1, -1))
    odds = torch.logit(weights_S)
    return torch.sigmoid(odds - down), torch.sigmoid(odds + up)


def _moved(evidence: Evidence, state: EvidentState, shift_SS: Tensor) -> Tensor:  # (2, S, S)
    """What the rule makes of shifted sums, each of which was shifted as much when its evidence was largest."""
    total, error = (value[..., None, :] for value in evidence.sums())
    limit, end, before = boundary(evidence.updates, total.shape[-1]), total + shift_SS, evidence.peak_S[..., None, :]
    sums, _, fraction, _ = shared(end, end, error.expand_as(end), evidence.per_nat_S[..., None, :], limit)
    peak = before + shift_SS / error.clamp(min=TINY) / limit
    same = (peak * before > 0) & (end * before > 0)
    own = torch.where(same, evident_fraction(peak, torch.ones_like(peak), 1.0), 0.0)
    largest = torch.where(shift_SS != 0, own, state.largest_S[..., None, :])
    return sums * held(fraction, largest)[0]


def _log_odds_change(weights_S: Tensor, shift_SS: Tensor) -> Tensor:  # (2, S, S)
    """Of each weight, in a column, by the shifts of all logits that stand in a row."""
    weights = weights_S[..., None, :]
    grown = weights * torch.expm1(shift_SS.clamp(max=50.0))
    others = 1 - torch.eye(weights.shape[-1], dtype=torch.float64)
    return shift_SS - torch.log1p((grown @ others / (1 - weights).clamp(min=1e-12)).clamp(min=1e-15 - 1))


def verdict(
    evidence: Evidence,
    logits_S: Tensor,
    *,
    moved: float,
    away: float,
    bounded: Callable[[Tensor], Tensor],
    interval: tuple[Tensor, Tensor] | None = None,
    prior: tuple[Tensor, float] | None = None,
) -> str:
    """What can be said of a mixture.

    `no signal`: nothing is beyond the boundary now, and the mixture is within NEAR of where it began. `converged`: it
    has moved, but by STILL at most over the recent updates, and no recent gap says otherwise: at an optimum inside the
    simplex all are 0; at a bound and in a corner they point outwards: were those that are told from 0 followed for
    FOLLOWED nats, the mixture would move by less than LITTLE. Nor is that for want of data: where a recent gap is not
    told from 0, the weight's interval is at most WIDE, and one that grows would at most double in it (or win GAIN); or
    the gap is known to be within KNOWN of the smallest scale, as near an optimum inside the simplex, where intervals do
    not narrow (of a source without weight, LITTLE at most: no lower than that). Else `still moving`.

    Args:
        evidence: Of all updates so far.
        logits_S: (S,), λ after the last of them.
        moved: Total variation between the weights when `evidence.recent` began, and now.
        away: Total variation from the first weights.
        bounded: Weights (S,) -> the closest within the bounds.
        interval: (S,) ends of `weight_interval`. None: a rule whose noise is not known; then they are not asked.
        prior: (S,) weights to which λ is drawn, and by how much: nats of gap for each nat away from them. Then the
            mixture rests where the gaps with what the prior adds are 0, and follows them no farther than to there.
    """
    if away <= NEAR and not bool((evidence.ratio().abs() > 1).any()):
        return "no signal"
    recent, sources = evidence.recent, len(logits_S)
    if moved > STILL or recent.count < 2 * LEAST_UPDATES:
        return "still moving"
    certain = NormalDist().inv_cdf(1 - LEVEL / (2 * sources)) * recent.error()
    gap = recent.mean() if prior is None else recent.mean() + _gap_of_prior(*prior, logits_S, evidence)
    if interval is not None and not bool(_settled(evidence, gap, certain, weights_of(logits_S), interval).all()):
        return "still moving"
    told = gap.sign() * (gap.abs() - certain).clamp(min=0.0)
    largest = float(told.abs().max())
    if largest == 0.0:
        return "converged"
    held_by = 0.0 if prior is None else prior[1]  # told / held_by nats away the prior adds as much against it
    followed = bounded(weights_of(logits_S - FOLLOWED * told / max(largest, FOLLOWED * held_by)))
    return "still moving" if total_variation(followed, weights_of(logits_S)) > LITTLE else "converged"


def _gap_of_prior(prior_S: Tensor, strength: float, logits_S: Tensor, evidence: Evidence) -> Tensor:  # (S,), nats
    """Centred as the gaps are; 0 for a source without weight, which bounds hold there."""
    share_S = precision_weights(evidence.spread_S, evidence.updates)
    free_S = weights_of(logits_S) > NO_WEIGHT
    gap = torch.where(free_S, strength * (logits_S - prior_S.log()), 0.0)
    centre = (share_S * gap).sum() / ((share_S * free_S).sum() / share_S.sum())
    return torch.where(free_S, gap - centre, 0.0)


def _settled(
    evidence: Evidence, gap_S: Tensor, certain_S: Tensor, weights_S: Tensor, interval: tuple[Tensor, Tensor]
) -> Tensor:  # (S,), bool
    low_S, high_S = interval
    matters_S = torch.where(weights_S <= LITTLE, -gap_S, gap_S.abs())  # what has no weight can only win some
    known = (gap_S.abs() > certain_S) | (matters_S + certain_S <= KNOWN * evidence.scale_S.min())
    arrived = (evidence.standard.sum_S >= 0) | (high_S - weights_S <= weights_S.clamp(min=GAIN))
    return known | ((high_S - low_S <= WIDE) & arrived)


def total_variation(first_S: Tensor, second_S: Tensor) -> float:
    """Half the sum of the absolute differences of two mixtures, 0 to 1."""
    return float((first_S - second_S).abs().sum() / 2)
