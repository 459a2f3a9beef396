"""Bounds on the weights of sources and on sums of them: the closest weights within, and what is free to move there.

Legend: S sources, G groups. float64 on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .mixture import NO_WEIGHT


@dataclass(frozen=True)
class Bounds:
    """Boxes for the weights of sources, and for the sums of disjoint groups of them.

    Attributes:
        low_S, high_S: (S,), float64, 0 ≤ low ≤ high ≤ 1.
        groups: (indices of the members, lowest sum, highest sum). Some weights must be able to meet all of it: that
            is not checked here.
    """

    low_S: Tensor
    high_S: Tensor
    groups: Sequence[tuple[list[int], float, float]] = ()

    def bounded(self, weights_S: Tensor) -> Tensor:  # (S,)
        """The closest weights within the bounds, in Kullback-Leibler divergence.

        They are clip(c · d_G · p_i) with one factor c for all and one d_G ≠ 1 for each group whose bound holds it:
        sums are monotone in each factor, so each is found by bisection on its logarithm. Accuracy about 1e-12; what
        is within them to that stays as it is.
        """
        if self.hold(weights_S):
            return weights_S
        weights_S = weights_S.clamp(min=1e-30)  # so that one of 0 can be raised
        bounded = self._clipped(weights_S, _bisect(lambda factor: self._total(weights_S, factor), 1.0))
        return bounded / bounded.sum()

    def hold(self, weights_S: Tensor, tolerance: float = 1e-12) -> bool:
        """Whether weights (S,) are within the bounds."""
        inside = (weights_S >= self.low_S - tolerance) & (weights_S <= self.high_S + tolerance)
        sums = ((float(weights_S[members].sum()), low, high) for members, low, high in self.groups)
        return bool(inside.all()) and all(low - tolerance <= total <= high + tolerance for total, low, high in sums)

    def centre(self, weights_S: Tensor, distance_S: Tensor, share_S: Tensor) -> Tensor:  # (S,)
        """The distance at which each source is not drawn: the mean over those that are free to be.

        A source whose way a bound bars stays where it is, its own distance. The members of a group whose sum a bound
        keeps have a mean of theirs, so that they are drawn among themselves.

        Args:
            weights_S: (S,), within the bounds.
            distance_S: (S,), log of the weights over those that they are drawn to, up to a common part.
            share_S: (S,), of each source in the mean, sum 1.
        """
        members_GS = torch.zeros(len(self.groups), len(weights_S), dtype=torch.bool)
        for row, (members, _, _) in zip(members_GS, self.groups, strict=True):
            row[members] = True
        low_G, high_G = torch.tensor([ends for _, *ends in self.groups], dtype=torch.float64).reshape(-1, 2).unbind(1)

        def mean(of: Tensor) -> Tensor:
            return (share_S * distance_S * of).sum(-1) / ((share_S * of).sum(-1) / share_S.sum())

        way_S, way_G = torch.zeros_like(weights_S), torch.zeros(len(self.groups))
        for _ in range(2):  # first without what no weight can leave or enter, then without what does not go its way
            stays_S = _barred(weights_S, self.low_S, self.high_S, way_S)
            kept_GS = members_GS & _barred(members_GS.to(weights_S) @ weights_S, low_G, high_G, way_G)[:, None]
            own_G, kept_S = mean(members_GS & ~stays_S), kept_GS.any(0)
            centre = mean(~stays_S & ~kept_S)
            centre_S = torch.where(kept_S, torch.where(kept_GS, own_G[:, None], 0.0).sum(0), centre)
            way_S, way_G = centre_S - distance_S, centre - own_G
        return torch.where(stays_S, distance_S, centre_S)

    def _total(self, weights_S: Tensor, factor: float) -> float:
        """Sum of the weights at a common factor, the part of every group held within its bounds."""
        clipped = (weights_S * factor).clamp(self.low_S, self.high_S)
        total = float(clipped.sum())
        for members, low, high in self.groups:
            part = float(clipped[members].sum())
            total += min(max(part, low), high) - part
        return total

    def _clipped(self, weights_S: Tensor, factor: float) -> Tensor:  # (S,)
        """The weights at a common factor; a group that its bound holds, at a factor of its own."""
        clipped = (weights_S * factor).clamp(self.low_S, self.high_S)
        for members, low, high in self.groups:
            part = float(clipped[members].sum())
            if not low <= part <= high:
                clipped[members] = self._group(weights_S[members], members, min(max(part, low), high))
        return clipped

    def _group(self, weights_G: Tensor, members: list[int], target: float) -> Tensor:
        box = Bounds(self.low_S[members], self.high_S[members])
        return box._clipped(weights_G, _bisect(lambda factor: box._total(weights_G, factor), target))


def _barred(total: Tensor, low: Tensor, high: Tensor, way: Tensor) -> Tensor:  # bool
    """Whether bounds keep sums from going their way: up (> 0), down (< 0) or, at 0, either."""
    return ((total >= high - NO_WEIGHT) | (way < 0)) & ((total <= low + NO_WEIGHT) | (way > 0))


def _bisect(total: Callable[[float], float], target: float) -> float:
    """The factor at which `total`, which never falls with it, reaches `target`."""
    low, high = -80.0, 80.0
    for _ in range(64):
        middle = (low + high) / 2
        if total(math.exp(middle)) < target:
            low = middle
        else:
            high = middle
    return math.exp(high)
