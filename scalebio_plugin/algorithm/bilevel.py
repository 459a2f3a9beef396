"""Losses per source, and the gap between the two parameter sets (Pan et al., ACL 2025, arXiv 2406.19976).

    min over λ, w of max over u of   L1(w) + α ( L2(λ, w) − L2(λ, u) ),   L2(λ, θ) = Σ_i p_i L2_i(θ),  p = softmax(λ)

Legend: B sequences (rows of a batch), T tokens, S sources. A *target* is a token that is predicted: position t + 1 of
a row whose label is not IGNORED. A target's *unit* is what it contributes to its source's count: 1 where losses are
means over tokens, 1 / (targets of its sequence) where they are means over sequences.

One estimate of L2 serves every engine and batch. With share_i the source's part of the units that batches hold on
average, n_i its units in the global accumulated batch and N what stands for their sum,

    L2(λ, θ) ≈ Σ_targets (p_i / share_i) · unit · loss / N                                                    (1)

Its expectation is Σ p_i L2_i whatever the batch holds: a source that is absent now counts more when it is present.

In the host's order (`sampling: host`) share_i is the source's part of the whole training set and N = n = Σ n_i, and
E[n_i / n] = share_i. That is exact where batches hold equally many units; where n varies with the lengths of the
sequences drawn it is a ratio estimator, with a bias that falls like 1 / (sequences per step), as the host's own token
mean is. At p = share it is the host's mean over targets.

Where rows are drawn by source (`sampling: mixture`, `data.step_plan`), one of source i with probability q_i, share_i is
q_i m_i / Σ q_j m_j, m_i the mean units of the source's sequences, and N = E[n] = rows · Σ q_j m_j. It is known before
the draw and E[n_i] = share_i N, so (1) is linear in what was drawn and has no bias, however few sequences a step holds.
Packed, the rows of a step are known only once they are drawn, and N is their mean over a few steps. A source that
cannot be drawn now has share 0, and no term.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = -100
FAINT = 1e-100  # units, below which what is remembered of a gap is discounted no further
NO_SOURCE = -1


@dataclass(frozen=True)
class Targets:
    """The targets of one micro-batch, shifted to the positions that predict them.

    Attributes:
        labels: (B, T-1), token to predict, IGNORED where there is none.
        units: (B, T-1), float64; 0 where there is no target.
        source: (B, T-1), index of the source; 0 where there is no target (its unit is 0).
    """

    labels: Tensor
    units: Tensor
    source: Tensor

    def counts(self, sources: int) -> Tensor:  # (S,)
        """Units of every source in this micro-batch."""
        return sum_by_source(self.units, self.source, sources)


def targets_of(labels: Tensor, source: Tensor, sequence: Tensor, *, per_sequence: bool) -> Targets:
    """Targets of a batch, padded or packed.

    A packed sequence's first token is no target: what precedes it in the row is another sequence. So packing changes
    neither the targets nor their units.

    Args:
        labels: (B, T), IGNORED where nothing is predicted.
        source: (B, T), index of the token's source, NO_SOURCE on padding.
        sequence: (B, T), number of the token's sequence, from 0, different for all sequences of the batch; on padding
            any number.
        per_sequence: A target's unit is 1 / (targets of its sequence) instead of 1.
    """
    within = sequence[:, 1:] == sequence[:, :-1]
    valid = (labels[:, 1:] != IGNORED) & (source[:, 1:] != NO_SOURCE) & within
    shifted = labels[:, 1:].masked_fill(~valid, IGNORED)
    units = valid.to(torch.float64)
    if per_sequence:
        index = sequence[:, 1:].masked_fill(~valid, 0)
        length = torch.zeros(int(index.max()) + 1, dtype=torch.float64, device=labels.device)
        length.scatter_add_(0, index.flatten(), units.flatten())
        units = units / length[index].clamp(min=1.0)
    return Targets(shifted, units, source[:, 1:].masked_fill(~valid, 0))


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of every target, at least in float32 whatever the logits are: (B, T, V), (B, T-1) -> (B, T-1).

    The last position of a row predicts nothing: it gets no label, which spares a copy of the logits without it.
    """
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    every = functional.pad(labels, (0, 1), value=IGNORED)
    losses = functional.cross_entropy(precise.flatten(0, 1), every.flatten(), ignore_index=IGNORED, reduction="none")
    return losses.view_as(every)[:, :-1]


def sum_by_source(values: Tensor, source: Tensor, sources: int) -> Tensor:
    """Sum of `values` over each source, in float64: (B, T-1), (B, T-1) -> (S,). No gradient.

    Args:
        values: (B, T-1), such as unit · loss of every target.
        source: (B, T-1), index of the source, from `Targets`.
        sources: S.
    """
    total = torch.zeros(sources, dtype=torch.float64, device=values.device)
    return total.scatter_add_(0, source.flatten(), values.detach().to(torch.float64).flatten())


def weighted_loss(losses: Tensor, targets: Targets, coefficient_S: Tensor, total: Tensor) -> Tensor:
    """Equation (1) for one micro-batch of a step.

    The sum is taken by the kernel that the host's cross entropy sums with, over the same positions: at p = share not
    only the gradients but the value, too, has the host's bits.

    Args:
        losses: (B, T-1), from `token_losses`.
        targets: Of the same micro-batch.
        coefficient_S: (S,), float64, p_i / share_i.
        total: (), N, for the global accumulated batch (all micro-batches, all ranks), > 0.

    Returns:
        (), in the dtype of `losses`, with their gradient; the sum over micro-batches and ranks is the estimate.
    """
    weight = coefficient_S.to(losses.device)[targets.source] * targets.units
    every = functional.pad(losses * weight.to(losses.dtype), (0, 1))
    counted = functional.pad(targets.labels, (0, 1), value=IGNORED).clamp(max=0)  # one class, 0, for every target
    summed = functional.nll_loss(-every.flatten()[:, None], counted.flatten(), ignore_index=IGNORED, reduction="sum")
    return (summed / total).to(losses.dtype)


@dataclass(frozen=True)
class GapBaseline:
    """What the gap of each source was lately: discounted sums over past steps, a value for checkpoints.

    Attributes:
        gap_S: (S,), float64, discounted sum of unit · (loss at w − loss at u), in nats.
        units_S: (S,), float64, discounted sum of units.
    """

    gap_S: Tensor
    units_S: Tensor

    @classmethod
    def zeros(cls, sources: int) -> GapBaseline:
        """Before the first step."""
        return cls(torch.zeros(sources, dtype=torch.float64), torch.zeros(sources, dtype=torch.float64))

    def mean(self) -> Tensor:  # (S,)
        """Mean gap of each source; 0 for one that was never seen."""
        return torch.where(self.units_S > 0, self.gap_S / self.units_S.clamp(min=1e-300), 0.0)


def estimate_gap(
    difference_S: Tensor,
    units_S: Tensor,
    share_S: Tensor,
    baseline: GapBaseline,
    *,
    total: Tensor | None = None,
    discount: float = 0.9,
) -> tuple[Tensor, GapBaseline]:
    """g_i = L2_i(w) − L2_i(u), for every source, also for one that this batch does not hold.

    The difference estimator of survey sampling: with m_i the gap expected from earlier steps, and N as in (1),

        g_i = m_i + ( difference_i − m_i n_i ) / ( share_i N ).

    m_i is fixed before the batch is drawn and E[n_i / N] = share_i, so the expectation is that of the gap whatever
    m_i is; an absent source keeps m_i instead of counting as gap 0, and the noise that comes from the number of its
    targets vanishes as m_i approaches the gap.

    Args:
        difference_S: (S,), float64, Σ unit · (loss at w − loss at u) over the global accumulated batch, in nats.
        units_S: (S,), n_i of the same batch.
        share_S: (S,), part of each source in the units that are drawn, sum 1; a source with 0 keeps m_i.
        baseline: m, from the earlier steps.
        total: (), N, where it is not the units of the batch.
        discount: Weight of a step in the baseline relative to the step after it.

    Returns:
        The gap (S,) in float64, in nats, and the baseline for the next step. Of a batch without targets: what was
        expected, and the same baseline.
    """
    expected = baseline.mean()
    if not bool(units_S.sum() > 0):
        return expected, baseline
    drawn_S = share_S * (units_S.sum() if total is None else total)
    correction = (difference_S - expected * units_S) / drawn_S
    gap = expected + torch.where(share_S > 0, correction, 0.0)
    kept_S = discount ** (baseline.units_S > FAINT).to(
        torch.float64
    )  # absent for so long, it would be lost to underflow
    return gap, GapBaseline(kept_S * baseline.gap_S + difference_S, kept_S * baseline.units_S + units_S)


def mixture_gradient(gap_S: Tensor, weights_S: Tensor, penalty: float) -> Tensor:  # (S,)
    """∂/∂λ of the penalised objective: α p ⊙ (g − p·g). Sums to 0; exactly 0 where w and u agree.

    At (u*, w*) of quadratic losses it is α / (1 + α) times the true hypergradient: the bias of the forward difference.
    An infinite penalty (validation data out of play) gives 0.

    Args:
        gap_S: (S,), g_i = L2_i(w) − L2_i(u), in nats.
        weights_S: (S,), p.
        penalty: α > 0.
    """
    centred = gap_S - (weights_S * gap_S).sum()
    return (penalty if penalty != float("inf") else 0.0) * weights_S * centred
