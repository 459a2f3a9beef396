"""What the optimiser steps of a run cost: wall time by phase, and the most memory that there was on the device."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from ..report.cost import Cost, PhaseCost
from .phase import Phase


class Pace:
    """Of one process. A step counts from its batches to its end: logs, evaluations and checkpoints are not in it.

    Args:
        clock: Seconds, from anywhere.

    Attributes:
        before: What an earlier process of this run spent, which `cost` goes on from.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self.clock = clock
        self.before = Cost()
        self.steps = dict.fromkeys(Phase, 0)
        self.seconds = dict.fromkeys(Phase, 0.0)
        self.peak_bytes: int | None = None
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
        if torch.cuda.is_available():  # a logger may reset the peak
            self.peak_bytes = max(self.peak_bytes or 0, torch.cuda.max_memory_allocated())

    def seconds_for(self, steps: int) -> float | None:
        """That so many learning steps would take; None before the first one here."""
        done = self.steps[Phase.LEARN]
        return steps * self.seconds[Phase.LEARN] / done if done else None

    @property
    def cost(self) -> Cost:
        """Of the whole run, so far."""
        peaks = [peak for peak in (self.before.peak_bytes, self.peak_bytes) if peak is not None]
        return Cost({phase.value: of for phase in Phase if (of := self._of(phase)).steps}, max(peaks, default=None))

    def _of(self, phase: Phase) -> PhaseCost:
        before = self.before.phases.get(phase.value, PhaseCost())
        return PhaseCost(before.steps + self.steps[phase], before.seconds + self.seconds[phase])
