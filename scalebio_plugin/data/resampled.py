"""Batches after learning: an ordinary run whose sampling follows the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from axolotl.utils.logging import get_logger

from ..algorithm.bilevel import NO_SOURCE
from ..report.words import printable
from .draw import drawn_per_lap, resample, say_who_is_held_back
from .table import SourceTable

LOG = get_logger("axolotl.scalebio")

Batch = dict[str, Any]


class ResampledStream:
    """Laps over resampled rows, through the host's own data loader (packing, workers, ranks).

    A lap holds as many rows as the training set has with a target; lap n is a function of (weights, seed, n), so that
    a resumed run goes on where it was with two numbers saved.

    Args:
        table: Of the training set.
        drawable: (rows,), source of each row, see `Prepared.drawable`.
        loader_over: (row indices, micro-batches to skip) -> the host's loader over those rows, in that order.

    Attributes:
        lap, batch: Position: the lap, and the micro-batches taken from it.
    """

    def __init__(
        self,
        table: SourceTable,
        drawable: np.ndarray,
        max_repeats: int,
        seed: int,
        loader_over: Callable[[np.ndarray, int], Iterable[Batch]],
    ):
        self.table = table
        self.drawable = drawable
        self.max_repeats = max_repeats
        self.seed = seed
        self.loader_over = loader_over
        self.lap = 0
        self.batch = 0
        self._iterator: Iterator[Batch] | None = None

    def batches(self, weights: np.ndarray) -> Iterator[Batch]:
        """Endless micro-batches, from the position on. The same iterator on every call; `weights` (S,) are final."""
        if self._iterator is None:
            self._iterator = self._laps(weights)
        return self._iterator

    def _laps(self, weights: np.ndarray) -> Iterator[Batch]:
        fractions, names = self.table.sampling(weights), map(printable, self.table.names)
        LOG.info(
            "scalebio: learning is over, λ is final; sequences are now drawn by these fractions: "
            + ", ".join(f"{name} {part:.3f}" for name, part in zip(names, fractions, strict=True))
        )
        sizes = np.bincount(self.drawable[self.drawable != NO_SOURCE], minlength=len(fractions))
        say_who_is_held_back(self.table.names, fractions, sizes, self.max_repeats)
        while True:
            for batch in self.loader_over(self._rows(fractions), self.batch):
                self.batch += 1
                yield batch
            if self.batch == 0:
                raise ValueError(
                    "scalebio: the sources that have a weight are too small for one batch after learning; raise "
                    "scalebio.max_repeats or lower micro_batch_size"
                )
            self.lap, self.batch = self.lap + 1, 0

    def _rows(self, fractions: np.ndarray) -> np.ndarray:
        seed = self.seed + 1000003 * (self.lap + 1)
        return resample(self.drawable, fractions, drawn_per_lap(self.drawable), self.max_repeats, seed)
