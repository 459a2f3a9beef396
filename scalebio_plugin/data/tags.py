"""The mark of its source that every row and, collated, every token carries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..algorithm.bilevel import NO_SOURCE

if TYPE_CHECKING:
    from datasets import Dataset

COLUMN = "scalebio_source"  # of a row; collated: of every token
ROW = "scalebio_row"  # of a row, while entries are merged: its number in its own
SEQUENCE = "scalebio_sequence"  # of a token: the number of its sequence in the batch
_PADDING = -1  # its sequence

Batch = dict[str, Any]  # collated


def tagged(dataset: Dataset, source: int | np.ndarray) -> Dataset:
    """The rows with their source, one of all or (rows,) one of each."""
    return dataset.add_column(COLUMN, np.full(len(dataset), source, dtype=np.int64))


def with_numbers(dataset: Dataset) -> Dataset:
    """The rows with their number in this dataset, from 1, to be told by when others are among them."""
    return dataset.add_column(ROW, np.arange(1, len(dataset) + 1))


def without_numbers(dataset: Dataset) -> tuple[Dataset, np.ndarray]:
    """The rows as they were, and the number of each."""
    return dataset.remove_columns(ROW), _values(dataset, ROW)


def sources_in(dataset: Dataset) -> np.ndarray:  # (rows,)
    """The source of each of the tagged rows."""
    return _values(dataset, COLUMN)


def rows_of_each(source: np.ndarray, sources: int) -> np.ndarray:  # (S,)
    """Rows of each source.

    Args:
        source: (rows,), NO_SOURCE for one that does not count.
    """
    return np.bincount(source[source != NO_SOURCE], minlength=sources)


def _values(dataset: Dataset, name: str) -> np.ndarray:
    (values,) = dataset.select_columns([name]).with_format("arrow")[:].columns
    return np.asarray(values)


def untagged(dataset: Dataset | None) -> Dataset | None:
    if dataset is None:
        return None
    return dataset.remove_columns([name for name in (COLUMN, ROW) if name in dataset.column_names])


class SourceCollator:
    """The host's collator, with two more (B, T) tensors in the batch: COLUMN and SEQUENCE of every token.

    Padding has source NO_SOURCE. Sequences are numbered through the batch, so that targets never cross from one packed
    sequence into the next. Rows without COLUMN pass through untouched.
    """

    def __init__(self, collator: Any, padding_side: str):
        self.collator = collator
        self.padding_side = padding_side

    def __call__(self, features: Sequence[Any], *args: Any, **kwargs: Any) -> Batch:
        packed = isinstance(features[0], list)
        rows = features if packed else [[feature] for feature in features]
        if COLUMN not in rows[0][0]:
            return self.collator(features, *args, **kwargs)
        tags = [[(int(item[COLUMN]), len(item["input_ids"])) for item in row] for row in rows]
        plain = [[{k: v for k, v in item.items() if k != COLUMN} for item in row] for row in rows]
        batch = self.collator(plain if packed else [row[0] for row in plain], *args, **kwargs)
        batch[COLUMN], batch[SEQUENCE] = self._expanded(tags, batch["input_ids"])
        return batch

    def _expanded(self, tags: list[list[tuple[int, int]]], like: Any) -> tuple[Any, Any]:
        """(B, T) source and sequence number of every token of `like`, from (source, length) of every sequence."""
        source, sequence = like.new_full(like.shape, NO_SOURCE), like.new_full(like.shape, _PADDING)
        if len(tags) != like.shape[0]:  # `batch_flattening` lays all rows on end in one
            tags = [[member for members in tags for member in members]]
        number = 0
        for row, members in enumerate(tags):
            at = 0 if self.padding_side == "right" else like.shape[1] - sum(length for _, length in members)
            for which, length in members:
                source[row, at : at + length], sequence[row, at : at + length] = which, number
                at, number = at + length, number + 1
        return source, sequence
