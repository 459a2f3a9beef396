"""What a training micro-batch looks like, and the bins of a packed one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class MicroBatches:
    """The training micro-batches, which the validation batches look like.

    Attributes:
        rows: Of a micro-batch on one rank.
        accumulation: Micro-batches of an optimiser step.
        capacity: Tokens of a row that is packed; None: a row is a sequence, padded.
        members: Sequences of a packed row, at most.
        masked: Whether packed rows have an attention mask.
    """

    rows: int
    accumulation: int
    ranks: int
    capacity: int | None = None
    members: int = 0
    masked: bool = True


@dataclass(frozen=True)
class Packing:
    """The bins of a packed run, as the host makes them for its training rows.

    Attributes:
        capacity: Tokens of a bin.
        members: Sequences of a bin, at most.
        bins: Of a step; None: as many as `sequences` take.
        sequences: Of a step; None: as many as `bins` take.
    """

    capacity: int
    members: int
    bins: int | None = None
    sequences: int | None = None


class Bins:
    """The bins of one step while they are filled, first fit.

    Attributes:
        members: Sequences of each bin that is open.
    """

    def __init__(self, packing: Packing):
        self.packing = packing
        self.members: list[list[int]] = []
        self._room = np.zeros(0, dtype=np.int64)  # tokens; none in a bin that has all of its members

    def place(self, index: int, length: int) -> bool:
        """Into the first bin with room, or a new one; whether there was any.

        A sequence that is longer than a bin has one of its own.
        """
        fits = self._room >= max(length, 1)
        at = int(fits.argmax()) if fits.any() else len(self.members)
        if at == len(self.members):
            if at == self.packing.bins:
                return False
            self.members.append([])
            self._room = np.append(self._room, self.packing.capacity)
        self.members[at].append(index)
        self._room[at] = 0 if len(self.members[at]) == self.packing.members else self._room[at] - length
        return True


def first_fit(sequences: Iterable[int], lengths: np.ndarray, packing: Packing) -> list[list[int]]:
    """Each sequence into the first bin with room; ends where `packing.bins` are open and none has."""
    bins = Bins(packing)
    for index in sequences:
        if not bins.place(index, int(lengths[index])):
            break
    return bins.members
