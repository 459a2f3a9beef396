"""Weights on the simplex: where they start, how they move, what bounds them.

Legend: S sources. λ are `logits` (S,), float64 on the CPU; `weights = softmax(logits)`. State is a value: a rule takes
(gradient or gap, state, logits) and returns (logits, state), so that a checkpoint is the state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def weights_of(logits_S: Tensor) -> Tensor:  # (S,)
    """softmax(λ)."""
    return torch.softmax(logits_S, dim=0)


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
    """
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
    """
    centred = gap_S - (weights_S * gap_S).sum()
    step = state.step + 1
    mean_square = decay * state.mean_square + (1 - decay) * float((centred**2).mean())
    rms = (mean_square / (1 - decay**step)) ** 0.5
    logits = logits_S if rms == 0.0 else logits_S - learning_rate * centred / rms
    return logits, ExponentiatedState(step, mean_square)


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
        sums are monotone in each factor, so each is found by bisection on its logarithm. Accuracy about 1e-12.
        """
        weights_S = weights_S.clamp(min=1e-30)  # so that one of 0 can be raised
        bounded = self._clipped(weights_S, _bisect(lambda factor: self._total(weights_S, factor), 1.0))
        return bounded / bounded.sum()

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
