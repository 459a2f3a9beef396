"""Wall time of the optimiser steps of a run, by phase."""

from __future__ import annotations

import time
from collections.abc import Callable

from .mixture_run import Phase


class Pace:
    """Of one process. A step counts from its batches to its end: logs, evaluations and checkpoints are not in it.

    Args:
        clock: Seconds, from anywhere.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self.clock = clock
        self.steps = dict.fromkeys(Phase, 0)
        self.seconds = dict.fromkeys(Phase, 0.0)
        self._begun: tuple[Phase, float] | None = None

    def begin(self, phase: Phase) -> None:
        """Before the batches of a step are fetched."""
        self._begun = phase, self.clock()

    def end(self) -> None:
        """After a step; without a begun one, nothing."""
        if self._begun is not None:
            (phase, begun), self._begun = self._begun, None
            self.steps[phase] += 1
            self.seconds[phase] += self.clock() - begun

    def seconds_for(self, steps: int) -> float | None:
        """That so many learning steps would take; None before the first one here."""
        done = self.steps[Phase.LEARN]
        return steps * self.seconds[Phase.LEARN] / done if done else None
