"""What an optimiser step says to the mixture.

Legend: S sources, V validation sets. On the CPU, and the same on every rank.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class StepLosses:
    """Losses of one optimiser step, summed over its global accumulated batch.

    Attributes:
        model_S, inner_S: (S,), Σ unit · loss at w and at u.
        units_S: (S,), n_i.
        share_S: (S,), part of each source in the units that are drawn.
        total: (), N of equation (1) in `algorithm.bilevel`.
        train_loss: L2(λ, w) of the step.
        val_V, val_units_V: (V,), Σ loss of each validation set at w, and its targets.
    """

    model_S: Tensor
    inner_S: Tensor
    units_S: Tensor
    share_S: Tensor
    total: Tensor
    train_loss: float
    val_V: Tensor
    val_units_V: Tensor

    def of_validation_sets(self) -> list[float | None]:
        """The mean loss of each; None where the batch held none of it."""
        pairs = zip(self.val_V.tolist(), self.val_units_V.tolist(), strict=True)
        return [total / units if units > 0 else None for total, units in pairs]
