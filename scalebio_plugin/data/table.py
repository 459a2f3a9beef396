"""What a set of sources holds, counted from its tagged rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import xxhash
from datasets import Dataset

from ..algorithm.bilevel import IGNORED, NO_SOURCE
from ..algorithm.mixture import NO_WEIGHT
from ..report.identity import Part
from .tags import COLUMN


@dataclass(frozen=True)
class SourceTable:
    """What a set of sources holds.

    Attributes:
        names: S readable, unique names.
        tokens: (S,), target tokens of each source.
        sequences: (S,), examples with at least one target.
        digest: Of all labels, in order.
        digests: Of each source's tokens and labels, whatever their order.
        shared_rows: By source and other source, `sequences` of the former that stand in the latter, token for token.
    """

    names: list[str]
    tokens: np.ndarray
    sequences: np.ndarray
    digest: str
    digests: Sequence[str] = ()
    shared_rows: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def parts(self) -> dict[str, Part]:
        """Of the data, by name."""
        each = zip(self.names, self.sequences.tolist(), self.digests, strict=True)
        return {name: Part(rows, digest) for name, rows, digest in each}

    def units(self, loss_unit: str) -> np.ndarray:  # (S,)
        """Units of each source (see `algorithm.bilevel`): target tokens, or sequences."""
        return self.tokens if loss_unit == "token" else self.sequences

    def shares(self, loss_unit: str) -> np.ndarray:  # (S,), sum 1
        return self.units(loss_unit) / self.units(loss_unit).sum()

    def most(self, max_repeats: int) -> np.ndarray:  # (S,)
        """The largest weight of a source: the part of a pass's tokens that max_repeats times its rows are.

        Of such a pass as the training set is. One on a mixture has as many rows, not tokens: where the rows of a source
        are longer than those of the others they may come to less of its tokens, and to more where they are shorter.
        """
        return np.minimum(1.0, max_repeats * self.shares("token"))

    def sampling(self, weights: np.ndarray) -> np.ndarray:  # (S,), sum 1
        """Fractions q of sequences to draw so that an ordinary run's token-mean loss is Σ weights_i L2_i.

        A token mean counts a source by its tokens, so q_i ∝ weights_i / (mean target tokens of its sequences). Of a
        source that is held at weight 0, up to what λ leaves of it, none are drawn.
        """
        fractions = np.where(weights > NO_WEIGHT, weights, 0.0) * self.sequences / self.tokens
        return fractions / fractions.sum()


def count(dataset: Dataset, names: Sequence[str]) -> tuple[SourceTable, np.ndarray]:
    """Targets and sequences of each source of a tagged dataset, and `Prepared.drawable`; read once in batches."""
    tokens, sequences = np.zeros(len(names), dtype=np.int64), np.zeros(len(names), dtype=np.int64)
    digest, drawable = hashlib.blake2b(digest_size=16), [np.zeros(0, dtype=np.int64)]
    ids = "input_ids" if "input_ids" in dataset.column_names else "labels"
    sums, hashes = [0] * len(names), []
    for (labels, starts, source), (tokens_of, _, _) in zip(
        _batches(dataset, "labels"), _batches(dataset, ids), strict=True
    ):
        targets = labels != IGNORED
        targets[starts[:-1][starts[:-1] < starts[1:]]] = False  # the first token of a sequence is not predicted
        running = np.concatenate([[0], np.cumsum(targets)])
        per_row = running[starts[1:]] - running[starts[:-1]]
        np.add.at(tokens, source, per_row)
        np.add.at(sequences, source, per_row > 0)
        drawable.append(np.where(per_row > 0, source, NO_SOURCE))
        digest.update(labels.tobytes())
        digest.update(source.tobytes())
        for start, end, of in zip(starts[:-1].tolist(), starts[1:].tolist(), source.tolist(), strict=True):
            hashed = xxhash.xxh3_128_intdigest(tokens_of[start:end].tobytes() + labels[start:end].tobytes())
            sums[of] += hashed
            hashes.append(hashed % 2**64)
    digests = [f"{total % 2**128:032x}" for total in sums]
    source = np.concatenate(drawable)
    shared = _shared_rows(np.array(hashes, dtype=np.uint64), source, names)
    return SourceTable(list(names), tokens, sequences, digest.hexdigest(), digests, shared), source


def _shared_rows(hashes: np.ndarray, source: np.ndarray, names: Sequence[str]) -> dict[str, dict[str, int]]:
    """`SourceTable.shared_rows`, of a hash of each row and its source (NO_SOURCE: without a target)."""
    hashes, source = hashes[source != NO_SOURCE], source[source != NO_SOURCE]
    order = np.lexsort([source, hashes])
    hashes, source = hashes[order], source[order]
    first = np.flatnonzero(np.diff(hashes, prepend=~hashes[:1]).astype(bool) | (np.diff(source, prepend=-1) != 0))
    hashes, source, times = hashes[first], source[first], np.diff(first, append=len(hashes))
    shared = np.zeros([len(names)] * 2, dtype=np.int64)
    for distance in range(1, len(names)):  # a hash stands once for each source that has it, one after the other
        one = np.flatnonzero(hashes[distance:] == hashes[:-distance])
        other = one + distance
        np.add.at(shared, (source[one], source[other]), times[one])
        np.add.at(shared, (source[other], source[one]), times[other])
        if not len(one):
            break
    return {
        name: {other: int(rows) for other, rows in zip(names, of, strict=True) if rows}
        for name, of in zip(names, shared, strict=True)
        if of.any()
    }


def refuse_empty(table: SourceTable, where: str) -> None:
    """Raise a ValueError that names the sources without a target."""
    empty = [name for name, tokens in zip(table.names, table.tokens, strict=True) if tokens == 0]
    if empty:
        raise ValueError(
            f"scalebio: {where} {empty} tokenise to nothing that is trained on (all examples too long, or no answer "
            "tokens); check their type:, sequence_len and train_on_inputs, or remove them"
        )


def sequence_lengths(dataset: Dataset) -> np.ndarray:  # (rows,)
    """Tokens of each row of a tagged dataset."""
    return np.concatenate([np.diff(starts) for _, starts, _ in _batches(dataset, "labels")])


def _batches(dataset: Dataset, name: str) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(a column of the rows on end, starts of the rows and the end of the last, source of each row)."""
    for batch in dataset.select_columns([name, COLUMN]).with_format("arrow").iter(batch_size=1000):
        yield *on_end(batch.column(name)), np.asarray(batch.column(COLUMN))


def on_end(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """A column of lists of whole numbers: those of all rows on end, and where each row begins and the last one ends."""
    rows = column.combine_chunks()
    lengths = np.asarray(rows.value_lengths().fill_null(0))
    return np.asarray(rows.flatten()).astype(np.int64), np.concatenate([[0], np.cumsum(lengths)])
