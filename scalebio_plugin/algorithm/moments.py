"""Running sums of a series of noisy, correlated values, and how far off their mean may be.

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

Legend: S sources, L lags 1, 2, 3, …, K stretch lengths 1, 2, 4, … Values are float64 on the CPU. Every (S,) may have
leading dimensions: as many independent runs. The tables of benchmarks/evidence.py decided the constants.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LAGS = 32
UPDATES_A_LAG = 5  # so many updates tell of one lag more
SLOW_LAGS = 5  # the first of those that tell of slow noise: shorter ones hold what is not slow
SLOWEST = 0.97  # ρ of the slowest noise that is looked for
SLOW_SHARE = 0.1  # in the variance, that is expected of it (its deviation from 0), and believed of it at most
ERRORS_OF_SHARE = 1.25  # standard errors by which that share is taken for larger than it was found, where λ is to move
ERRORS_OF_FIRST = 2.0  # the same of AR(1)'s ρ
LEAST_ERRORS_OF_FIRST = 1.0  # and always: what it says of a few updates is all that there is
DOUBT_FADES_AFTER = 200  # updates, after which the share is doubted less
STRETCHES = 11  # stretch lengths, up to 1,024 updates
LEAST_STRETCHES = 3  # of a length, for a variance of their means
LEAST_STRETCH = 64  # updates: shorter ones say what the lags do, with more noise
LENGTHS = 2  # stretch lengths asked
LEAST_UPDATES = 10  # before which a mean has no error, and nothing is evidence
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
            self._of_slow(correlation, ERRORS_OF_SHARE if doubted else 0.0, sources),
            self._of_first(correlation[0], ERRORS_OF_FIRST if doubted else LEAST_ERRORS_OF_FIRST, sources),
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
        doubt *= math.sqrt(min(1.0, DOUBT_FADES_AFTER / self.count) / precision)
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
