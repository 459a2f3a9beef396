"""The validation batches: L1's data, a stream that is a function of (seed, step) and so needs no saving.

Both kinds of stream deal shuffled laps over the validation rows. Padded, a batch is so many sequences; packed, as many
as fit into so many bins, which look like those of the host's training rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from ..algorithm.bilevel import IGNORED
from ..config.block import ScaleBiOSettings, validation_rows
from .packing import Bins, MicroBatches
from .table import sequence_lengths
from .validation_data import Validation

Collate = Callable[[list[Any]], dict[str, Any]]


class ValidationStream:
    """One sequence a row.

    L1 is a token mean; with weights v_j on several validation datasets, a token of dataset j counts v_j / share_j
    (equation (1) of `algorithm.bilevel` again).

    Args:
        rows: Tagged rows, with the columns that the collator wants.
        collate: Rows of a pass -> batch; a packed row is a list of sequences.
        coefficient_V: (V,), v_j / share_j for each validation dataset.
        batch_size: Sequences per optimiser step.
        chunk_size: Rows per forward pass.
    """

    def __init__(
        self,
        rows: Dataset,
        collate: Collate,
        coefficient_V: Tensor,
        batch_size: int,
        chunk_size: int,
        seed: int,
    ):
        self.rows = rows
        self.collate = collate
        self.coefficient_V = coefficient_V
        self.batch_size = batch_size
        self.chunk_size = chunk_size
        self.seed = seed
        self._lap = lru_cache(maxsize=2)(self._shuffled)

    def indices(self, step: int) -> np.ndarray:  # (sequences of the batch,)
        """Sequences of the batch of optimiser step `step` (from 0)."""
        return np.array(list(islice(self._from(step * self.batch_size), self.batch_size)))

    def packed_rows(self, step: int) -> list[list[int]]:
        """The rows of the batch of a step, each as its sequences."""
        return [[int(index)] for index in self.indices(step)]

    def batches(self, step: int, *, rank: int = 0, ranks: int = 1) -> Iterator[dict[str, Any]]:
        """A rank's part of the batch of a step, collated, in chunks of `chunk_size` rows: equally many on all.

        Where the rows don't go round, a rank's last one is a copy without targets.
        """
        rows = self.packed_rows(step)
        features = [self._feature(row) for row in rows[rank::ranks]]
        if len(features) < -(-len(rows) // ranks):
            features.append(self._feature(rows[0], targets=False))
        for start in range(0, len(features), self.chunk_size):
            yield self.collate(features[start : start + self.chunk_size])

    def _feature(self, row: list[int], *, targets: bool = True) -> Any:
        """What the collator takes for a row."""
        return self._sequence(row[0], targets)

    def _sequence(self, index: int, targets: bool) -> dict[str, Any]:
        sequence: dict[str, Any] = self.rows[index]
        return sequence if targets else {**sequence, "labels": [IGNORED] * len(sequence["labels"])}

    def _from(self, position: int) -> Iterator[int]:
        """Sequences from a position of the stream on, lap after lap, without end."""
        lap, start = divmod(position, len(self.rows))
        while True:
            yield from self._lap(lap)[start:].tolist()
            lap, start = lap + 1, 0

    def _shuffled(self, lap: int) -> np.ndarray:
        return np.random.default_rng([self.seed, lap]).permutation(len(self.rows))


class PackedValidationStream(ValidationStream):
    """A bin a row: sequences in the order of the laps, each in the first bin of the step that has room for it.

    A step ends at the first sequence that none of its bins has room for, so that bins are about equally full and every
    lap shows each sequence once.

    Args:
        lengths: (rows,), tokens of each sequence.
        bins_of_a_step: Makes those of one, empty.
        sequences: Of a step; None: as many as its bins take.
    """

    def __init__(
        self,
        rows: Dataset,
        lengths: np.ndarray,
        bins_of_a_step: Callable[[], Bins],
        sequences: int | None,
        collate: Collate,
        coefficient_V: Tensor,
        chunk_size: int,
        seed: int,
    ):
        super().__init__(rows, collate, coefficient_V, sequences or 0, chunk_size, seed)
        self.lengths = lengths
        self.bins_of_a_step = bins_of_a_step
        self.sequences = sequences
        self._at = (0, 0)  # a step, and the position at which it begins

    def indices(self, step: int) -> np.ndarray:
        return np.array([index for row in self.packed_rows(step) for index in row])

    def packed_rows(self, step: int) -> list[list[int]]:
        if self.sequences is not None:
            return self._packed(step * self.sequences)
        if step < self._at[0]:
            self._at = (0, 0)
        while self._at[0] < step:
            number, position = self._at
            self._at = (number + 1, position + sum(map(len, self._packed(position))))
        return self._packed(self._at[1])

    def _packed(self, position: int) -> list[list[int]]:
        bins = self.bins_of_a_step()
        for index in islice(self._from(position), self.sequences):
            if not bins.place(index, int(self.lengths[index])):
                break
        return bins.rows

    def _feature(self, row: list[int], *, targets: bool = True) -> Any:
        return [self._sequence(index, targets) for index in row]


def stream_of(
    validation: Validation, settings: ScaleBiOSettings, like: MicroBatches, collate: Collate, seed: int
) -> ValidationStream:
    """Validation batches that look like the training micro-batches: padded or packed, and no pass larger than one."""
    weights = coefficients(validation.weights, validation.table.shares("token"))
    default, given = validation_rows(like.rows, like.accumulation, like.ranks), settings.validation_batch_size
    if like.capacity is None:
        size = given or default
        return ValidationStream(validation.rows, collate, weights, size, min(like.rows, size), seed)
    lengths = sequence_lengths(validation.rows)
    most = None if given else min(default, -(-int(lengths.sum()) // like.capacity))
    bins = partial(Bins, like.capacity, like.members, most)
    rows = _packable(validation.rows, masked=like.masked)
    return PackedValidationStream(rows, lengths, bins, given, collate, weights, like.rows, seed)


def _packable(rows: Dataset, *, masked: bool) -> Dataset:
    """The rows with the columns of the host's packed training rows."""
    dropped = ["length"] + ([] if masked else ["attention_mask"])
    rows = rows.remove_columns([name for name in dropped if name in rows.column_names])
    if "position_ids" not in rows.column_names:
        rows = rows.map(lambda row: {"position_ids": list(range(len(row["input_ids"])))})
    return rows


def coefficients(weights: np.ndarray, shares: np.ndarray) -> Tensor:  # (V,), float64
    """v_j / share_j, exactly 1 where they agree."""
    return torch.tensor(np.where(weights == shares, 1.0, weights / shares), dtype=torch.float64)
