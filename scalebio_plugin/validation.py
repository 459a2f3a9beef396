"""The validation batches: L1's data, a stream that is a function of (seed, step) and so needs no saving."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from .algorithm.bilevel import IGNORED


class ValidationStream:
    """Shuffled laps over the validation rows, cut into one batch per optimiser step.

    L1 is a token mean; with weights v_j on several validation datasets, a token of dataset j counts v_j / share_j
    (equation (1) of `algorithm.bilevel` again).

    Args:
        rows: Tagged rows, with the columns that the collator wants.
        collate: Features -> batch.
        coefficient_V: (V,), v_j / share_j for each validation dataset.
        batch_size: Sequences per optimiser step.
        chunk_size: Sequences per forward pass.
    """

    def __init__(
        self,
        rows: Dataset,
        collate: Callable[[list[Any]], dict[str, Any]],
        coefficient_V: Tensor,
        batch_size: int,
        chunk_size: int,
        seed: int,
    ):
        self.rows = rows
        self.collate = collate
        self.coefficient_V = coefficient_V
        self.batch_size = batch_size
        self.chunk_size = min(chunk_size, batch_size)
        self.seed = seed

    def indices(self, step: int) -> np.ndarray:  # (batch_size,)
        """Rows of the batch of optimiser step `step` (from 0)."""
        total = len(self.rows)
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        laps = {int(lap): np.random.default_rng([self.seed, int(lap)]) for lap in np.unique(positions // total)}
        orders = {lap: rng.permutation(total) for lap, rng in laps.items()}
        return np.array([orders[int(p // total)][p % total] for p in positions])

    def batches(self, step: int, *, rank: int = 0, ranks: int = 1) -> Iterator[dict[str, Any]]:
        """A rank's part of the batch of a step, collated, in chunks of `chunk_size` sequences: equally many on all.

        Where the sequences don't go round, a rank's last one is a copy without targets.
        """
        indices = self.indices(step)
        mine = indices[rank::ranks]
        rows = [self.rows[int(i)] for i in mine]
        if len(mine) < -(-len(indices) // ranks):
            rows.append(_without_targets(self.rows[int(indices[0])]))
        for start in range(0, len(rows), self.chunk_size):
            yield self.collate(rows[start : start + self.chunk_size])


def _without_targets(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "labels": [IGNORED] * len(row["labels"])}


def coefficients(weights: np.ndarray, shares: np.ndarray) -> Tensor:  # (V,), float64
    """v_j / share_j, exactly 1 where they agree."""
    return torch.tensor(np.where(weights == shares, 1.0, weights / shares), dtype=torch.float64)
