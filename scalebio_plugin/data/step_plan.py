"""Rows drawn by source while the mixture is learned: the plan of their micro-batches.

A plan is a function of (seed, fractions, state of the draw) alone. Fractions q of rows follow the weights with a floor,
q_i ∝ ((1 − ε) p_i + ε / S) / m_i, m_i the mean units of a row of source i; the part of the units that is drawn of a
source is then share_i = q_i m_i / Σ q_j m_j, and p_i / share_i is near 1 (`algorithm.bilevel`).

Legend: S sources.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from ..algorithm.saved import restored
from .packing import Bins, MicroBatches
from .tags import rows_of_each

SEGMENT = 8  # optimiser steps of a plan, at most
FLOOR = 0.1  # ε, the part of the mixture that all sources share
LOOKAHEAD = 16  # sequences that wait for room, at most, before the bins of a step count as full
_OF_A_BLOCK, _OF_A_LAP = 0xB10C, 0x0A14B  # what a random generator is for


def learning_fractions(weights: np.ndarray, mean_units: np.ndarray) -> np.ndarray:  # (S,), sum 1
    """Fractions of rows while the mixture is learned, before `max_repeats`.

    Args:
        weights: (S,), p.
        mean_units: (S,), m.
    """
    fractions = ((1.0 - FLOOR) * weights + FLOOR / len(weights)) / mean_units
    return fractions / fractions.sum()


def shared_out(fractions: np.ndarray, total: float, most: np.ndarray) -> np.ndarray:
    """`total` by fractions, no part above `most`; the rest goes to the sources that are not full, by theirs."""
    real = np.zeros(len(fractions))
    open_ = fractions > 0
    left = total
    while left > 1e-9 and open_.any():
        real[open_] += left * fractions[open_] / fractions[open_].sum()
        left = float(np.clip(real - most, 0, None).sum())
        real = np.minimum(real, most)
        open_ &= real < most
    return real


def systematic(fractions: np.ndarray, rows: int, u: float) -> np.ndarray:
    """How many of the points (k + u) / rows, k < rows, lie in each source's stretch of [0, 1): (S,) whole numbers.

    Each is fractions · rows rounded down or up, and over u ~ U(0, 1) its mean is exactly that.
    """
    ends = np.round(np.cumsum(fractions) * rows, 9)
    ends[-1] = rows
    return np.diff(np.ceil(ends - u).astype(np.int64), prepend=0)


@dataclass(frozen=True)
class DrawState:
    """Where a draw stands.

    Attributes:
        position_S: (S,), rows that each source has dealt, its laps on end.
        limit_S: (S,), position up to which it may deal in this pass.
        left: Rows left in this pass over the training set.
        waiting: Rows that were drawn and not yet used, in order; of packed runs.
        waiting_q: (waiting, S), the fractions by which they were drawn.
    """

    position_S: np.ndarray
    limit_S: np.ndarray
    left: int
    waiting: np.ndarray
    waiting_q: np.ndarray

    @classmethod
    def start(cls, sources: int) -> DrawState:
        none = np.zeros(sources, dtype=np.int64)
        return cls(none, none, 0, none[:0], np.zeros((0, sources)))

    def plain(self) -> dict[str, Any]:
        """For a checkpoint."""
        arrays = {name: getattr(self, name).tolist() for name in ("position_S", "limit_S", "waiting", "waiting_q")}
        return {**arrays, "left": self.left}

    @classmethod
    def of_plain(cls, saved: Mapping[str, Any]) -> DrawState:
        """Back from `plain`.

        Raises:
            OtherFormat: Of another version.
        """
        state = restored(cls, saved)
        whole = {name: np.array(saved[name], dtype=np.int64) for name in ("position_S", "limit_S", "waiting")}
        waiting_q = np.array(state.waiting_q, dtype=np.float64).reshape(-1, len(state.position_S))
        return cls(**whole, left=int(state.left), waiting_q=waiting_q)


@dataclass(frozen=True)
class PlannedStep:
    """The micro-batches of one optimiser step.

    Attributes:
        batches: Of all ranks, rank r takes the r-th and every ranks-th after it; each as its rows, a packed one as its
            bins of rows.
        share_S: (S,), part of each source in the units that are expected, sum 1; 0 where a source is not drawn.
        units: E[n], units that are expected.
    """

    batches: list[list[Any]]
    share_S: np.ndarray
    units: float

    def rows(self) -> np.ndarray:
        flat = [row for batch in self.batches for row in batch]
        return np.array([index for row in flat for index in row] if isinstance(flat[0], list) else flat)


class Draw:
    """Rows of every source, dealt in shuffled laps, and no row more than `max_repeats` times in a pass.

    A pass is as many rows as the training set has with a target, at least those of a step. What a source may still
    give is spread over what is left of the pass; what it cannot give, the others do by their fractions.

    Args:
        source: (rows,), source of each row, see `Prepared.drawable`.
        mean_units: (S,), of the rows of each source.
        like: The micro-batches.
        lengths: (rows,), tokens of each row; of packed runs.
    """

    def __init__(
        self,
        source: np.ndarray,
        mean_units: np.ndarray,
        max_repeats: int,
        seed: int,
        like: MicroBatches,
        lengths: np.ndarray | None = None,
    ):
        self.source = source
        self.mean_units = mean_units
        self.max_repeats = max_repeats
        self.seed = seed
        self.like = like
        self.lengths = lengths
        self.rows_S = [np.flatnonzero(source == i) for i in range(len(mean_units))]
        self.sizes = np.array([len(rows) for rows in self.rows_S])
        self.mean_lengths = np.array([0 if lengths is None else lengths[rows].mean() for rows in self.rows_S])
        self._lap = lru_cache(maxsize=2 * len(mean_units))(self._shuffled)

    def counts(self, rows: np.ndarray) -> np.ndarray:  # (S,)
        """How many of the rows are of each source."""
        return rows_of_each(self.source[rows], len(self.sizes))

    def plan(
        self, fractions: np.ndarray, micro_batches: Sequence[int], state: DrawState
    ) -> tuple[list[PlannedStep], DrawState]:
        """The steps of a segment, and the state after it.

        Args:
            fractions: (S,), of rows, sum 1.
            micro_batches: Of each step, on one rank.
        """
        if self.lengths is None:
            return self._padded(fractions, micro_batches, state)
        return self._packed(fractions, micro_batches, state, self.lengths)

    # ---- blocks of rows

    def block(self, fractions: np.ndarray, rows: int, state: DrawState) -> tuple[np.ndarray, np.ndarray, DrawState]:
        """So many rows in random order, the fractions by which they were drawn, and the state after them."""
        state = self._in_a_pass(fractions, rows, state)
        left_S = state.limit_S - state.position_S
        q = shared_out(fractions, 1.0, left_S / min(state.left, left_S[fractions > 0].sum()))
        q = q / q.sum()
        rng = self._rng(_OF_A_BLOCK, int(state.position_S.sum()))
        counts = systematic(q, rows, rng.random())
        drawn = np.concatenate([self._dealt(i, int(state.position_S[i]), int(n)) for i, n in enumerate(counts)])
        after = replace(state, position_S=state.position_S + counts, left=state.left - rows)
        return rng.permutation(drawn), q, after

    def _in_a_pass(self, fractions: np.ndarray, rows: int, state: DrawState) -> DrawState:
        """The state, or a new pass where this one has not so many rows left.

        A lap that a source is in counts as one of its laps in the new pass. Where that would leave it too few, or it
        was as good as done with its laps of this pass, the source begins another.
        """
        open_ = fractions > 0
        if min(state.left, (state.limit_S - state.position_S)[open_].sum()) >= rows:
            return state
        repeats = max(self.max_repeats, -(-rows // int(self.sizes[open_].sum())))
        lap, within = np.divmod(state.position_S, self.sizes)
        few = repeats == 1 or (repeats * self.sizes - within)[open_].sum() < rows
        another = (within > 0) & (few | (state.limit_S - state.position_S < rows))
        position_S = np.where(another, (lap + 1) * self.sizes, state.position_S)
        limit_S = (position_S // self.sizes + repeats) * self.sizes
        return replace(state, position_S=position_S, limit_S=limit_S, left=max(int(self.sizes.sum()), rows))

    def _dealt(self, source: int, position: int, count: int) -> np.ndarray:
        """Rows of a source from a position on."""
        parts = [self.rows_S[source][:0]]
        while count > 0:
            lap, at = divmod(position, int(self.sizes[source]))
            parts.append(self._lap(source, lap)[at : at + count])
            position, count = position + len(parts[-1]), count - len(parts[-1])
        return np.concatenate(parts)

    def _shuffled(self, source: int, lap: int) -> np.ndarray:
        return self._rng(_OF_A_LAP, source, lap).permutation(self.rows_S[source])

    def _rng(self, *of: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *of])

    # ---- steps

    def _padded(
        self, fractions: np.ndarray, micro_batches: Sequence[int], state: DrawState
    ) -> tuple[list[PlannedStep], DrawState]:
        steps = []
        for count in micro_batches:
            batches = count * self.like.ranks
            rows, q, state = self.block(fractions, batches * self.like.rows, state)
            split = [batch.tolist() for batch in np.split(rows, batches)]
            steps.append(self._planned(split, len(rows) * q * self.mean_units, 1.0))
        return steps, state

    def _packed(
        self, fractions: np.ndarray, micro_batches: Sequence[int], state: DrawState, lengths: np.ndarray
    ) -> tuple[list[PlannedStep], DrawState]:
        """Steps that expect equal parts of the rows that the segment uses, by their micro-batches."""
        filled, expected_S = [], np.zeros(len(fractions))
        for count in micro_batches:
            bins, used_q, state = self._filled(fractions, count * self.like.ranks * self.like.rows, state, lengths)
            split = [bins[at : at + self.like.rows] for at in range(0, len(bins), self.like.rows)]
            filled.append((split, count / sum(micro_batches)))
            expected_S += used_q * self.mean_units
        return [self._planned(split, expected_S, part) for split, part in filled], state

    def _planned(self, batches: list[list[Any]], expected_S: np.ndarray, part: float) -> PlannedStep:
        units = float(expected_S.sum())
        return PlannedStep(batches, expected_S / units, units * part)

    def _filled(
        self, fractions: np.ndarray, bins: int, state: DrawState, lengths: np.ndarray
    ) -> tuple[list[list[int]], np.ndarray, DrawState]:
        """Full bins, Σ of the fractions of their rows (S,), and the state after them.

        Rows in the order of the draw, each into the first bin with room; those that find none wait, and are the first
        in the next step.
        """
        capacity = self.like.capacity or 0
        open_ = Bins(capacity, self.like.members, bins)
        size = max(1, round(bins * capacity / float(fractions @ self.mean_lengths)))
        waiting: list[int] = []
        at, used_q = 0, np.zeros(len(fractions))
        while len(waiting) < LOOKAHEAD:
            if at == len(state.waiting):
                rows, q, state = self.block(fractions, size, state)
                state = replace(
                    state,
                    waiting=np.concatenate([state.waiting, rows]),
                    waiting_q=np.concatenate([state.waiting_q, np.tile(q, (len(rows), 1))]),
                )
            row = int(state.waiting[at])
            if open_.place(row, int(lengths[row])):
                used_q += state.waiting_q[at]
            else:
                waiting.append(at)
            at += 1
        kept = np.concatenate([np.array(waiting, dtype=np.int64), np.arange(at, len(state.waiting))])
        return open_.rows, used_q, replace(state, waiting=state.waiting[kept], waiting_q=state.waiting_q[kept])
