"""Which validation set counts how much: L1 = Σ_j q_j L1_j. No trainer in here.

Legend: V validation sets. Values are float64 on the CPU, and the same on every rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..algorithm.saved import refuse_missing

RATE = 0.05  # nats by which a set's weight grows, an update, for each nat of its loss


class Objective:
    """The weights q of the validation sets: those given, or with `objective: worst` more and more of the worst.

    The worst set's loss is the largest of Σ q_j L1_j over the simplex; q climbs it by exponentiated gradient, q_j ∝ q_j
    exp(RATE · L1_j) (Sagawa et al., ICLR 2020, arXiv 1911.08731).

    Args:
        names: Of the validation sets.
        weights_V: (V,), sum 1.
    """

    def __init__(self, names: Sequence[str], weights_V: Tensor, *, worst: bool):
        self.names = list(names)
        self.first_V = self.weights_V = weights_V.to(torch.float64)
        self.worst = worst

    def factor_V(self) -> Tensor | None:
        """What the coefficients of the given weights are multiplied by; None where they stay."""
        return self.weights_V / self.first_V if self.worst else None

    def observe(self, losses_V: Sequence[float | None]) -> None:
        """Take in each set's loss in a step; None where the batch held none of it."""
        if self.worst:
            losses = torch.tensor([0.0 if loss is None else loss for loss in losses_V], dtype=torch.float64)
            seen = torch.tensor([loss is not None for loss in losses_V])
            mean = losses[seen].mean() if bool(seen.any()) else losses.sum()
            logits = self.weights_V.log() + RATE * torch.where(seen, losses - mean, 0.0)
            self.weights_V = torch.softmax(logits, 0)

    def named(self, values: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(self.names, values, strict=True))

    def state_dict(self) -> dict[str, Any]:
        return {"names": self.names, "weights": self.weights_V}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: Its validation sets are others, or another version wrote it.
        """
        refuse_missing("the state of the validation sets", saved, ("names", "weights"))
        if saved["names"] != self.names:
            raise ValueError(
                f"scalebio: the checkpoint was learned for the validation sets {saved['names']}, this run has "
                f"{self.names}; set scalebio.validation_datasets back, or start a new output_dir"
            )
        if self.worst:
            self.weights_V = saved["weights"]


def weighted_mean(losses_V: Sequence[float | None], weights_V: Tensor) -> float:
    """L1 by what a step has seen: Σ q_j L1_j over the sets in its batch, their q summing to 1, nats per token.

    However many rows of each are in it: else it would follow the draw, and not the losses.

    Args:
        losses_V: Of each set; None where the batch held none of it.
        weights_V: (V,), q.
    """
    seen = [(q, loss) for q, loss in zip(weights_V.tolist(), losses_V, strict=True) if loss is not None]
    return sum(q * loss for q, loss in seen) / sum(q for q, _ in seen)
