"""What a series of noisy, correlated gaps says of its mean: for moving λ, for standard errors, for verdicts.

A sum of t gaps of variance σ² is *evidence* once |z| = |sum| / √(t σ² F) passes z₀(t), F what their correlation makes
of its variance (`moments`), z₀² = (t + r)/t · ln((t + r) / (r a²)): the normal-mixture boundary (Robbins, 1970; Howard,
Ramdas et al., 2021), which pure noise passes at any time with probability a. So one may look after every update.

A *gap* is a source's raw gap g_i less an average over the sources. Softmax does not see which; the one taken weighs
each source by its precision (the inverse of its noise), so that one noisy source does not blur all of them. What is
farther from the median source than OUTLIER root mean squares is taken for that far: one broken batch must not hide what
all others say.

Legend: S sources. Values are float64 on the CPU. Every (S,) may have leading dimensions: as many independent runs,
which is how benchmarks/evidence.py counts errors; its tables decided the constants.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .moments import LEAST_UPDATES, TINY, Moments
from .saved import restored

DECAY = 0.99  # of running mean squares: about a hundred updates
LEVEL = 0.05  # probability that noise passes for evidence anywhere in a run, over all sources
BOUNDARY_START = 20.0  # r, updates: where the boundary is tightest
ERRORS_OF_MEAN = 1.96  # standard errors: a mean may be so much larger than it was found, before a run gives up
LEAST_TO_FORETELL = 100  # updates, before which nothing is said of when a gap would be evident
FORETOLD_TIMES = 20.0  # times the updates so far, up to which it is said
FORETOLD_STEP = 1.02  # the same in steps of a fiftieth
ERRORS_OF_REST = 1.645  # standard errors: what is still to come may be so much larger than it is expected
OUTLIER = 10.0  # root mean squares that a single gap may count for
LARGEST = 1e150  # nats of a gap, whose squares sum to a number


@dataclass(frozen=True)
class Evidence:
    """All that a run knows of its gaps.

    Attributes:
        spread_S: (S,), running mean square of g_i less its plain mean over the sources, nats².
        size_S: (S,), running mean square of the gaps, nats².
        scale_S: (S,), what the last update's gaps were divided by, nats: the larger of a source's own RMS and of all.
        standard: Of the gaps over their scale, since the first update.
        peak_S: (S,), the largest z / z₀ of each source, with its sign, since its sum last changed sign: beyond ±1 its
            gaps have been more than noise.
        recent: Of the gaps in nats, over the last third to two thirds of the updates.
        younger: Will take the place of `recent`.
        per_nat_S: (S,), sum of 1 / scale over the updates: a sum of standardised gaps over it is their mean in nats.
    """

    spread_S: Tensor
    size_S: Tensor
    scale_S: Tensor
    standard: Moments
    peak_S: Tensor
    recent: Moments
    younger: Moments
    per_nat_S: Tensor

    @classmethod
    def zeros(cls, *shape: int) -> Evidence:
        """Before the first update; `shape` is (S,)."""
        nothing, none = torch.zeros(shape, dtype=torch.float64), Moments.zeros(*shape)
        return cls(nothing, nothing, nothing, none, nothing, none, none, nothing)

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> Evidence:
        """Back from `dataclasses.asdict`.

        Raises:
            OtherFormat: Of another version.
        """
        values: dict[str, Any] = {
            key: restored(Moments, value) if isinstance(value, dict) else value for key, value in saved.items()
        }
        if "per_nat_S" not in values and {"scale_S", "standard"} <= values.keys():  # saved before there was one
            scale, updates = values["scale_S"], values["standard"].count
            values["per_nat_S"] = torch.where(scale > 0, updates / scale.clamp(min=TINY), 0.0)
        return restored(cls, values)

    @property
    def updates(self) -> int:
        return self.standard.count

    def plus(self, raw_S: Tensor) -> tuple[Evidence, Tensor]:
        """With one more update.

        Args:
            raw_S: (S,), g_i = L2_i(w) − L2_i(u), nats.

        Returns:
            The evidence, and the gaps (S,) of this update, nats.

        Raises:
            ValueError: A gap is not finite: nothing would be known of any source from then on.
        """
        refuse_not_finite(raw_S, "gap", LARGEST)
        share, seen_S = precision_weights(self.spread_S, self.updates), self._without_outliers(raw_S)
        centre = (share * seen_S).sum(-1, keepdim=True)
        spread = DECAY * self.spread_S + (1 - DECAY) * (seen_S - seen_S.mean(-1, keepdim=True)) ** 2
        gap = seen_S - centre
        size = DECAY * self.size_S + (1 - DECAY) * gap**2
        square = size / (1 - DECAY ** (self.updates + 1))
        scale = torch.maximum(square, (share * square).sum(-1, keepdim=True)).sqrt()
        per_nat = torch.where(scale > 0, 1 / scale.clamp(min=TINY), 0.0)
        standard = gap * per_nat
        recent, younger = self.recent.plus(gap), self.younger.plus(gap)
        if younger.count >= (self.updates + 1) / 3:
            recent, younger = younger, Moments.zeros(*raw_S.shape)
        sums = (self.standard.plus(standard), self.peak_S, recent, younger, self.per_nat_S + per_nat)
        after = Evidence(spread, size, scale, *sums)
        ratio = after.ratio()
        higher = (ratio * self.peak_S <= 0) | (ratio.abs() > self.peak_S.abs())
        return replace(after, peak_S=torch.where(higher, ratio, self.peak_S)), raw_S - centre

    def _without_outliers(self, raw_S: Tensor) -> Tensor:  # (S,)
        """As far from the median source as OUTLIER of the last scale, at most: one batch must not hide all others."""
        if self.updates < LEAST_UPDATES:
            return raw_S
        most, median = OUTLIER * self.scale_S, raw_S.quantile(0.5, -1, keepdim=True)
        return torch.where(most > 0, median + (raw_S - median).clamp(-most, most), raw_S)

    def sums(self) -> tuple[Tensor, Tensor]:
        """(S,) sum of the standardised gaps and (S,) its standard error."""
        return self.standard.sum_S, self.standard.error(doubted=True) * self.updates

    def ratio(self) -> Tensor:  # (S,)
        """z / z₀ of each source now; 0 before LEAST_UPDATES."""
        total, error = self.sums()
        if self.updates < LEAST_UPDATES:
            return torch.zeros_like(total)
        z = torch.where(total != 0, total / error.clamp(min=TINY), 0.0)
        return z / boundary(self.updates, total.shape[-1])

    def may_become_evidence(self, updates: int) -> Tensor:  # (), bool
        """Whether a gap may still pass the boundary after `updates` of them, more than so far.

        Each is granted a mean at the upper end of its interval, and noise that goes its way: what is given up would
        have been evident in one of twenty runs at most, were it that large.
        """
        if self.updates < LEAST_UPDATES:
            return torch.ones(self.standard.sum_S.shape[:-1], dtype=torch.bool)
        rest, mean = max(0, updates - self.updates), self.standard.mean().abs()
        error = self.standard.error()
        luck = ERRORS_OF_MEAN * error * rest + ERRORS_OF_REST * error * math.sqrt(self.updates * rest)
        needed = boundary(updates, mean.shape[-1]) * error * math.sqrt(self.updates * updates)
        return (mean * (self.updates + rest) + luck > needed).any(-1)

    def evident_after(self) -> Tensor:  # (S,)
        """Updates after which each gap would be evidence if its mean and the noise stay as they have been found.

        A forecast, not a bound: of pure noise, too, something has been found. Infinite beyond FORETOLD_TIMES times the
        updates so far, and in the first LEAST_TO_FORETELL.
        """
        if self.updates < LEAST_TO_FORETELL:
            return torch.full_like(self.peak_S, math.inf)
        z = self.ratio().abs() * boundary(self.updates, self.peak_S.shape[-1])
        powers = range(int(math.log(FORETOLD_TIMES, FORETOLD_STEP)) + 1)
        counts = [round(self.updates * FORETOLD_STEP**power) for power in powers]
        needed = [boundary(count, z.shape[-1]) * math.sqrt(self.updates / count) for count in counts]  # falling
        after = torch.tensor([*counts, math.inf], dtype=z.dtype)
        return after[(z[..., None] < torch.tensor(needed, dtype=z.dtype)).sum(-1)]


def refuse_not_finite(value_S: Tensor, what: str, most: float = math.inf) -> None:
    """Raise a ValueError that names the first source, by its index, whose value is not finite or is above `most`."""
    lost_S = ~(value_S.isfinite() & (value_S.abs() <= most))
    if bool(lost_S.any()):
        place, limit = lost_S.nonzero()[0], "" if math.isinf(most) else f" and at most {most:g}"
        raise ValueError(
            f"the {what} of source {int(place[-1])} must be finite{limit}, got {float(value_S[tuple(place)])}; skip "
            "the step, or look at its data"
        )


def precision_weights(spread_S: Tensor, updates: int) -> Tensor:  # (S,), sum 1
    """Weights of the sources, by the inverse of their noise, from mean squares about the plain mean.

    With independent noise of variances σ_i², spread_i = σ_i² (1 − 2/S) + Σ σ_j² / S²: solved for σ², of which none is
    taken for less than a hundredth of the mean spread. None is above a half: a source that is nearly the average has no
    gap. Equal for two sources, which have one gap between them, and before LEAST_UPDATES.
    """
    sources = spread_S.shape[-1]
    if sources < 3 or updates < LEAST_UPDATES:
        return torch.full_like(spread_S, 1 / sources)
    together = spread_S.sum(-1, keepdim=True) / (sources * (sources - 1))
    least = (0.01 * spread_S.mean(-1, keepdim=True)).clamp(min=TINY)
    weights = 1 / torch.maximum((spread_S - together) / (1 - 2 / sources), least)
    weights = weights / weights.sum(-1, keepdim=True)
    largest = weights.amax(-1, keepdim=True)
    scaled = weights * torch.where(largest > 0.5, 0.5 / (1 - largest).clamp(min=TINY), 1.0)
    return torch.where(weights > 0.5, 0.5, scaled)


def boundary(count: int, sources: int, level: float = LEVEL) -> float:
    """z₀ after `count` updates, each of the sources at level / S; wider where few updates told the variance.

    The widening is that of Student's quantile over the normal one, to first order (Cornish and Fisher).
    """
    each = level / sources
    normal = (count + BOUNDARY_START) / count * math.log((count + BOUNDARY_START) / (BOUNDARY_START * each**2))
    return math.sqrt(normal * (1 + (normal + 1) / (2 * (count - 1))))


def evident_fraction(sum_S: Tensor, error_S: Tensor, boundary: float) -> Tensor:  # (S,)
    """How much of each sum is evidence: 0 within the boundary, nearly 1 well beyond: (1 − (z₀ / z)⁴)₊.

    Args:
        sum_S: (S,).
        error_S: (S,), standard errors of the sums.
        boundary: z₀.
    """
    ratio = torch.where(sum_S != 0, boundary * error_S / sum_S.abs(), math.inf)
    return torch.where(ratio < 1, 1 - ratio.square().square(), 0.0)
