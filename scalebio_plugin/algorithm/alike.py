"""What sources share that the data do not tell apart.

Each source's sum of gaps has noise of its own, so that of several equally good ones the quiet are evident first, and
apart by chance. Moved each by itself they end far apart for nothing: what they hold is then repeated, or never seen.
So the odds of two sources change only where *their* gaps are evidently apart.

Sources beyond the boundary on one side are *evident* there. They have a mean in common, by precision, and all of them
move by that and as far as the most evident of them; besides it, each by what is evidently its own. A source that is
not evident on any side, but nearer to that mean than to the mean of those that are not of the side, goes along.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .evidence import evident_fraction
from .moments import TINY

ENTRY = 0.2  # of the boundary, beyond it, over which a source comes to share
NEARER = 0.2  # of the way between two means, beyond its middle, over which a source comes to go along
LEAST_NOISE = 1e-150  # of a mean, nats; below it all count as equally precise


class Shared(NamedTuple):
    """By what sources move: λ is to have moved by fraction times sum.

    Attributes:
        sums_S: (S,).
        gaps_S: (S,), what of them is the last update's, who shares with whom being as it is now.
        fractions_S: (S,), how much of the sums is evident.
        means_S: (S,), nats, the mean gaps that the sums stand for.
    """

    sums_S: Tensor
    gaps_S: Tensor
    fractions_S: Tensor
    means_S: Tensor

    def pace(self, per_nat_S: Tensor) -> Tensor:  # (S,)
        """How fast each moves, over how fast its own scale would move it: what draws λ elsewhere has to be as fast."""
        same = self.sums_S * self.means_S > 0
        per_nat = torch.where(same, self.sums_S / torch.where(same, self.means_S, 1.0), per_nat_S)
        least, most = per_nat_S.amin(-1, keepdim=True), per_nat_S.amax(-1, keepdim=True)
        return torch.minimum(torch.maximum(per_nat, least), most) / per_nat_S.clamp(min=TINY)


def shared(total_S: Tensor, gap_S: Tensor, error_S: Tensor, per_nat_S: Tensor, limit: float) -> Shared:
    """The sums by which sources move, and how much of them is evident.

    Their product is continuous in all of it; a source that is alone on its side keeps its own sum and fraction.

    Args:
        total_S: (S,), sums of gaps over their scale.
        gap_S: (S,), what the last update added to them.
        error_S: (S,), their standard errors.
        per_nat_S: (S,), sums of 1 / scale, so that total / per_nat is a mean gap in nats.
        limit: z₀.
    """
    per_nat_S = per_nat_S.clamp(min=TINY)
    mean, noise = total_S / per_nat_S, (error_S / per_nat_S).clamp(min=LEAST_NOISE)
    own = evident_fraction(total_S, error_S, limit)
    ratio = torch.where(total_S != 0, total_S / (limit * error_S).clamp(min=TINY), 0.0)
    precision = (noise.amin(-1, keepdim=True) / noise).square()  # against the largest: gaps of any size
    sums, gaps, fractions, means = total_S, gap_S, own, mean
    for side in (-1, 1):
        evident, contrary = (((sign * ratio - 1) / ENTRY).clamp(0.0, 1.0) for sign in (side, -side))
        common, of_gap, speed = (_mean(of, evident * precision) for of in (mean, gap_S / per_nat_S, per_nat_S))
        most = torch.where(evident > 0, own, 0.0).amax(-1, keepdim=True)
        along = (1 - contrary) * _along(mean, _mean(mean, (1 - evident) * precision), common, side)
        joined = torch.where(most > 0, torch.maximum(evident, along), 0.0)
        apart = evident_fraction(mean - common, noise, limit)
        sums = sums + joined * (common * speed + apart * (total_S - common * per_nat_S) - total_S)
        gaps = gaps + joined * (of_gap * speed + apart * (gap_S - of_gap * per_nat_S) - gap_S)
        means = means + joined * (common + apart * (mean - common) - mean)
        fractions = torch.maximum(fractions, joined * most)
    return Shared(sums, gaps, fractions, means)


def _mean(value_S: Tensor, weight_S: Tensor) -> Tensor:  # (1,)
    return (weight_S * value_S).sum(-1, keepdim=True) / weight_S.sum(-1, keepdim=True).clamp(min=TINY)


def _along(mean_S: Tensor, rest: Tensor, common: Tensor, side: int) -> Tensor:  # (S,), 0 to 1
    """How clearly each mean is nearer to the common one than to that of the rest."""
    way = common - rest
    part = (mean_S - rest) / torch.where(way != 0, way, 1.0)
    return torch.where(side * way > 0, ((part - 0.5) / NEARER).clamp(0.0, 1.0), 0.0)
