"""Batches after learning: an ordinary run whose sampling follows the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from .applied import resample, say_learning_is_over
from .table import SourceTable
from .tags import Batch, rows_of_each


class ResampledStream:
    """Laps over resampled rows, through the host's own data loader (packing, workers, ranks).

    A lap holds as many rows as the training set has with a target; lap n is a function of (weights, seed, n), so that
    a resumed run goes on where it was with two numbers saved.

    Args:
        table: Of the training set.
        drawable: (rows,), source of each row, see `Prepared.drawable`.
        loader_over: (row indices, micro-batches to skip) -> the host's loader over those rows, in that order.
        size: Rows of a micro-batch, of all ranks together.

    Attributes:
        lap, batch: Position: the lap, and the micro-batches of a rank taken from it.
    """

    def __init__(
        self,
        table: SourceTable,
        drawable: np.ndarray,
        max_repeats: int,
        seed: int,
        loader_over: Callable[[np.ndarray, int], Iterable[Batch]],
        size: int,
    ):
        self.table = table
        self.drawable = drawable
        self.max_repeats = max_repeats
        self.seed = seed
        self.loader_over = loader_over
        self.size = size
        self.lap = 0
        self.batch = 0
        self._iterator: Iterator[Batch] | None = None

    def batches(self, weights: np.ndarray) -> Iterator[Batch]:
        """Endless micro-batches, from the position on. The same iterator on every call; `weights` (S,) are final."""
        if self._iterator is None:
            self._iterator = self._laps(weights)
        return self._iterator

    def state_dict(self) -> tuple[int, int, int]:
        """Plain values: the position, and the size of what it counts."""
        return self.lap, self.batch, self.size

    def load_state_dict(self, saved: tuple[int, ...], done: int) -> None:
        """Of a run that had taken so many steps; without a size, which an earlier version did not save, of this one."""
        self.lap, batch, size = (*saved, self.size)[:3]
        self.batch = batch * size // self.size

    def _laps(self, weights: np.ndarray) -> Iterator[Batch]:
        fractions, names = self.table.sampling(weights), self.table.names
        say_learning_is_over(names, fractions, rows_of_each(self.drawable, len(names)), self.max_repeats)
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
        return resample(self.drawable, fractions, self.max_repeats, self.seed + 1000003 * (self.lap + 1))
