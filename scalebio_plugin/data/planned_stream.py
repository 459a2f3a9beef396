"""The planned micro-batches of a run, through the host's own data loader (workers, collator, device, ranks)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from torch.utils.data import BatchSampler, SequentialSampler

from ..algorithm.saved import refuse_missing
from .applied import say_fractions, say_learning_is_over
from .step_plan import SEGMENT, Draw, DrawState, PlannedStep, learning_fractions
from .table import SourceTable
from .tags import Batch


class PlannedBatches(BatchSampler):
    """The micro-batches of a segment: the host's loader over it is made once and iterated once a segment."""

    def __init__(self, size: int):
        super().__init__(SequentialSampler(range(size)), size, drop_last=True)
        self.batches: list[list[Any]] = []

    def __iter__(self) -> Iterator[list[Any]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class PlannedStream:
    """Segments of planned steps, one after the other; none goes on where learning begins or ends.

    Args:
        table: Of the training set.
        ends: -> optimiser steps at which a segment ends early: that of the warmup, of learning, of the run. Learning
            that ends before its time does so where a segment does.
        micro_batches: Optimiser step, from 0 -> micro-batches that the host's loop takes of each rank in it.
        loader_of: The host's loader over the training set for a batch sampler.

    Attributes:
        drawn_S: (S,), rows of each source in the steps so far.
    """

    def __init__(
        self,
        draw: Draw,
        table: SourceTable,
        ends: Callable[[], tuple[int, int, int]],
        micro_batches: Callable[[int], int],
        loader_of: Callable[[BatchSampler], Iterable[Batch]],
    ):
        self.draw = draw
        self.table = table
        self.ends = ends
        self.micro_batches = micro_batches
        self.loader_of = loader_of
        sources = len(table.names)
        self.drawn_S = np.zeros(sources, dtype=np.int64)
        self._first, self._at = 0, 0  # step that the segment begins with, and the next one that is taken
        self._weights = np.full(sources, 1.0 / sources)  # at the segment's start
        self._before = self._after = DrawState.start(sources)  # of the segment
        self._drawn_before = self.drawn_S
        self._plan: list[PlannedStep] = []
        self._sampler = PlannedBatches(draw.like.rows)
        self._loader: Iterable[Batch] | None = None
        self._iterator: Iterator[Batch] | None = None
        self._announced: set[bool] = set()

    def step(self, number: int, weights: np.ndarray) -> PlannedStep:
        """The plan of an optimiser step, from 0, the one after the last, also of a run before.

        Args:
            weights: (S,), those of now; a segment keeps those of its start.
        """
        while number >= self._end:
            self._count_until(self._end)
            self._begin(self._end, weights, self._after)
        if self._iterator is None:
            rest = self._plan[number - self._first :]
            self._sampler.batches = [batch for step in rest for batch in step.batches]
        self._count_until(number + 1)
        return self._plan[number - self._first]

    def batches(self) -> Iterator[Batch]:
        """Micro-batches of this rank, from the last `step` on; to the end of its segment, for one iterator."""
        if self._iterator is None:
            if self._loader is None:
                self._loader = self.loader_of(self._sampler)
            self._iterator = iter(self._loader)
        return self._iterator

    def state_dict(self) -> dict[str, Any]:
        """Plain values, from which the segment is planned again."""
        return {
            "first": self._first,
            "weights": self._weights.tolist(),
            "draw": self._before.plain(),
            "drawn": self._drawn_before.tolist(),
        }

    def load_state_dict(self, saved: Mapping[str, Any], done: int) -> None:
        """Of a run that had taken so many steps.

        Raises:
            OtherFormat: Another version wrote it.
        """
        refuse_missing("the position in the data", saved, ("first", "weights", "draw", "drawn"))
        self.drawn_S = np.array(saved["drawn"], dtype=np.int64)
        self._begin(saved["first"], np.array(saved["weights"]), DrawState.of_plain(saved["draw"]))
        self._count_until(done)

    def _begin(self, first: int, weights: np.ndarray, state: DrawState) -> None:
        """Plan the segment that begins with step `first`."""
        end = min([first + SEGMENT, *(end for end in self.ends() if end > first)])
        fractions = self._fractions(first, weights)
        self._first = self._at = first
        self._weights, self._before, self._drawn_before = weights, state, self.drawn_S
        counts = [self.micro_batches(step) for step in range(first, end)]
        self._plan, self._after = self.draw.plan(fractions, counts, state)
        self._iterator = None

    def _fractions(self, first: int, weights: np.ndarray) -> np.ndarray:
        _, learned, _ = self.ends()
        over = first >= learned
        fractions = self.table.sampling(weights) if over else learning_fractions(weights, self.draw.mean_units)
        if over not in self._announced:
            self._announced.add(over)
            if over:
                say_learning_is_over(self.table.names, fractions, self.draw.sizes, self.draw.max_repeats)
            else:
                say_fractions("sequences are at first", self.table.names, fractions)
        return fractions

    @property
    def _end(self) -> int:
        return self._first + len(self._plan)

    def _count_until(self, number: int) -> None:
        """Take the rows of the steps before `number` into account."""
        for step in self._plan[self._at - self._first : number - self._first]:
            self.drawn_S = self.drawn_S + self.draw.counts(step.rows())
        self._at = number
