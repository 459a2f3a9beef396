"""What a training micro-batch looks like, and the bins of a packed one."""

from __future__ import annotations

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


class Bins:
    """The bins of one step while they are filled, first fit.

    Args:
        capacity: Tokens of a bin.
        members: Sequences of a bin, at most.
        most: Bins, at most; None: as many as it takes.

    Attributes:
        rows: Sequences of each bin that is open.
    """

    def __init__(self, capacity: int, members: int, most: int | None = None):
        self.capacity = capacity
        self.members = members
        self.most = most
        self.rows: list[list[int]] = []
        self._room = np.zeros(0, dtype=np.int64)  # tokens; none in a bin that has all of its members

    def place(self, index: int, length: int) -> bool:
        """Into the first bin with room, or a new one; whether there was any.

        A sequence that is longer than a bin has one of its own.
        """
        fits = self._room >= max(length, 1)
        at = int(fits.argmax()) if fits.any() else len(self.rows)
        if at == len(self.rows):
            if at == self.most:
                return False
            self.rows.append([])
            self._room = np.append(self._room, self.capacity)
        self.rows[at].append(index)
        self._room[at] = 0 if len(self.rows[at]) == self.members else self._room[at] - length
        return True
