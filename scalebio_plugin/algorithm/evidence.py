"""What a series of noisy, correlated gaps says of its mean: for moving λ, for standard errors, for verdicts.

Successive gaps share most of their parameters, so the mean of t of them varies more than independent values would. With
σ² their variance, Var(mean) ≈ σ² F / t; the inflation F, at least 1, is the largest of what three estimators say, all
pooled over the sources:

    share        1 + s (V − 1), V what the slowest noise that is looked for would come to in t updates, an AR(1) with
                 ρ 0.97, and s its share in the variance, which is taken to be 0 ± 0.1 before anything is seen: ridge
                 regression of ρ_k + 1 / t on 0.97^k − (V − 1) / t, what a mean that was taken off leaves of it, over
                 the lags k from 5 up to the fifth part of t, 32 at most. A gap that grows looks like it, too: no more
                 than 0.1 is believed
    AR(1)        (1 + ρ) / (1 − ρ), ρ the lag-1 autocorrelation, corrected for its bias in short series, and one of its
                 standard errors: in the first updates the other two see nothing
    batch means  64 and more times the variance of the means of stretches of so many updates, the powers of 2 next to
                 2 √t and 4 √t: what is slower still

Where λ is to move, s is taken 1.25 and ρ 2 standard errors higher; that of s is
1 / √(t (S − 1) Σ (0.97^k − (V − 1) / t)² + 1 / 0.1²), and after 200 updates, when batch means begin to tell, it is
doubted by √(200 / t) of that.

A sum of t values is *evidence* once |z| = |sum| / √(t σ² F) passes z₀(t), z₀² = (t + r)/t · ln((t + r) / (r a²)): the
normal-mixture boundary (Robbins, 1970; Howard, Ramdas et al., 2021), which pure noise passes at any time with
probability a. So one may look after every update.

A *gap* is a source's raw gap g_i less an average over the sources. Softmax does not see which; the one taken weighs
each source by its precision (the inverse of its noise), so that one noisy source does not blur all of them. What is
farther from the median source than OUTLIER root mean squares is taken for that far: one broken batch must not hide what
all others say.

Legend: S sources, L lags 1, 2, 3, …, K stretch lengths 1, 2, 4, … Values are float64 on the CPU. Every (S,) may have
leading dimensions: as many independent runs, which is how benchmarks/evidence.py counts errors; its tables decided the
constants.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .saved import restored

LAGS = 32
UPDATES_A_LAG = 5  # so many updates tell of one lag more
SLOW_LAGS = 5  # the first of those that tell of slow noise: shorter ones hold what is not slow
SLOWEST = 0.97  # ρ of the slowest noise that is looked for
SLOW_SHARE = 0.1  # in the variance, that is expected of it (its deviation from 0), and believed of it at most
SLOW_DOUBT = 1.25  # standard errors by which that share is taken for larger than it was found, where λ is to move
DOUBT = 2.0  # the same of AR(1)'s ρ
LEAST_DOUBT = 1.0  # and always: what it says of a few updates is all that there is
DOUBTED = 200  # updates, after which the share is doubted less
STRETCHES = 11  # stretch lengths, up to 1,024 updates
LEAST_STRETCHES = 3  # of a length, for a variance of their means
LEAST_STRETCH = 64  # updates: shorter ones say what the lags do, with more noise
LENGTHS = 2  # stretch lengths asked
DECAY = 0.99  # of running mean squares: about a hundred updates
LEAST_UPDATES = 10  # before which nothing is evidence
LEVEL = 0.05  # probability that noise passes for evidence anywhere in a run, over all sources
BOUNDARY_START = 20.0  # r, updates: where the boundary is tightest
UPPER = 1.96  # standard errors: a mean may be so much larger than it was found, before a run gives up
FORETELLING = 100  # updates, before which nothing is said of when a gap would be evident
FORETOLD = 20.0  # times the updates so far, up to which it is said
FINE = 1.02  # the same in steps of a fiftieth
LUCK = 1.645  # standard errors: what is still to come may be so much larger than it is expected
OUTLIER = 10.0  # root mean squares that a single gap may count for
LARGEST = 1e150  # nats of a gap, whose squares sum to a number
TINY = 1e-300


@dataclass(frozen=True)
class Moments:
    """Running sums over a series of updates: a value of fixed size, for checkpoints.

    Attributes:
        count: t, updates so far.
        sum_S, square_S: (S,), Σ x and Σ x².
        product_LS: (L, S), Σ x_t x_{t−k}.
        lately_LS: (L, S), x of the last updates, the last one first.
        open_KS: (K, S), sum over the stretch of each length that is not complete.
        stretch_KS, stretch_square_KS: (K, S), Σ of the sums of complete stretches, and of their squares.
    """

    count: int
    sum_S: Tensor
    square_S: Tensor
    product_LS: Tensor
    lately_LS: Tensor
    open_KS: Tensor
    stretch_KS: Tensor
    stretch_square_KS: Tensor

    @classmethod
    def zeros(cls, *shape: int) -> Moments:
        """Before the first update; `shape` is (S,)."""
        one = torch.zeros(shape, dtype=torch.float64)
        lags = torch.zeros(LAGS, *shape, dtype=torch.float64)
        many = torch.zeros(STRETCHES, *shape, dtype=torch.float64)
        return cls(0, one, one, lags, lags, many, many, many)

    def plus(self, value_S: Tensor) -> Moments:
        """With one more update."""
        count = self.count + 1
        complete = min((count & -count).bit_length(), STRETCHES)  # lengths of which a stretch ends here
        opened, stretch, square = self.open_KS + value_S, self.stretch_KS.clone(), self.stretch_square_KS.clone()
        stretch[:complete] += opened[:complete]
        square[:complete] += opened[:complete] ** 2
        opened[:complete] = 0.0
        sums = (self.sum_S + value_S, self.square_S + value_S**2, self.product_LS + value_S * self.lately_LS)
        lately = torch.cat([value_S[None], self.lately_LS[:-1]])
        return Moments(count, *sums, lately, opened, stretch, square)

    @property
    def last_S(self) -> Tensor:  # (S,)
        """x of the last update, 0 before the first."""
        return self.lately_LS[0]

    def mean(self) -> Tensor:  # (S,)
        """0 before the first update."""
        return self.sum_S / max(1, self.count)

    def error(self, doubted: bool = False) -> Tensor:  # (S,)
        """Standard error of the mean; infinite below LEAST_UPDATES updates. `doubted`: see `inflation`."""
        if self.count < LEAST_UPDATES:
            return torch.full_like(self.sum_S, math.inf)
        return (self._variance() * self.inflation(doubted) / self.count).sqrt()

    def inflation(self, doubted: bool = False) -> Tensor:  # (1,)
        """F, pooled over the sources; where it is doubted, by more correlation than was found. Needs LEAST_UPDATES."""
        variance = self._variance()
        count = min(LAGS, self.count // UPDATES_A_LAG)
        pairs = self.count - torch.arange(1, count + 1, dtype=torch.float64).reshape(-1, *[1] * variance.dim())
        covariance = self.product_LS[:count] / pairs - self.mean() ** 2
        correlation = covariance.sum(-1, keepdim=True) / variance.sum(-1, keepdim=True).clamp(min=TINY)
        sources = variance.shape[-1]
        found = [
            self._of_slow(correlation, SLOW_DOUBT if doubted else 0.0, sources),
            self._of_first(correlation[0], DOUBT if doubted else LEAST_DOUBT, sources),
        ]
        first = round(math.log2(2 * math.sqrt(self.count)))
        for level in range(first, min(first + LENGTHS, STRETCHES)):
            if 2**level >= LEAST_STRETCH and self.count >> level >= LEAST_STRETCHES:
                found.append(self._of_stretches(level, variance))
        return torch.stack(found).amax(0).clamp(min=1.0)

    def _of_slow(self, correlation_L1: Tensor, doubt: float, sources: int) -> Tensor:  # (1,)
        rest, pairs = slow_inflation(self.count) - 1, self.count * max(1, sources - 1)
        slow_L1 = correlation_L1[SLOW_LAGS - 1 :]
        pattern_L = SLOWEST ** (SLOW_LAGS + torch.arange(len(slow_L1), dtype=torch.float64)) - rest / self.count
        precision = pairs * float((pattern_L**2).sum()) + SLOW_SHARE**-2
        share = pairs * torch.tensordot(pattern_L, slow_L1 + 1 / self.count, dims=1) / precision
        doubt *= math.sqrt(min(1.0, DOUBTED / self.count) / precision)
        return 1 + (share + doubt).clamp(max=SLOW_SHARE) * rest

    def _of_first(self, correlation_1: Tensor, doubt: float, sources: int) -> Tensor:  # (1,)
        correlation = (correlation_1 + (1 + 3 * correlation_1) / self.count).clamp(-0.98, 0.98)
        error = ((1 - correlation**2) / (self.count * sources)).sqrt()
        correlation = (correlation + doubt * error).clamp(max=0.98)
        return (1 + correlation) / (1 - correlation)

    def _variance(self) -> Tensor:  # (S,)
        return (self.square_S / self.count - self.mean() ** 2).clamp(min=0.0) * self.count / (self.count - 1)

    def _of_stretches(self, level: int, variance_S: Tensor) -> Tensor:  # (1,)
        """V(2^level) over the variance, mean over the sources."""
        complete, total = self.count >> level, self.stretch_KS[level]
        between = (self.stretch_square_KS[level] - total**2 / complete) / (complete - 1) / 2**level
        return (between / variance_S.clamp(min=TINY)).mean(-1, keepdim=True)


def slow_inflation(count: int) -> float:
    """F of an AR(1) with ρ SLOWEST over `count` updates: 1 + 2 Σ (1 − k / count) ρ^k."""
    rest = 1 - SLOWEST
    return 1 + 2 * SLOWEST / rest * (1 - (1 - SLOWEST**count) / (count * rest))


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
        luck = UPPER * error * rest + LUCK * error * math.sqrt(self.updates * rest)
        needed = boundary(updates, mean.shape[-1]) * error * math.sqrt(self.updates * updates)
        return (mean * (self.updates + rest) + luck > needed).any(-1)

    def evident_after(self) -> Tensor:  # (S,)
        """Updates after which each gap would be evidence if its mean and the noise stay as they have been found.

        A forecast, not a bound: of pure noise, too, something has been found. Infinite beyond FORETOLD times the
        updates so far, and in the first FORETELLING.
        """
        if self.updates < FORETELLING:
            return torch.full_like(self.peak_S, math.inf)
        z = self.ratio().abs() * boundary(self.updates, self.peak_S.shape[-1])
        powers = range(int(math.log(FORETOLD, FINE)) + 1)
        counts = [round(self.updates * FINE**power) for power in powers]
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
