"""When a run measures which source helps which validation set. No trainer in here."""

from __future__ import annotations

from dataclasses import dataclass

from ..algorithm.alignment import CountSketch
from ..config.block import ScaleBiOSettings

INTERVAL = 25  # updates between two probes by default: 2% of the passes where each row holds one source


@dataclass(frozen=True)
class ProbePlan:
    """Probes come with the first update of λ, and every so many updates after it, in the step that ends in the update.

    Attributes:
        interval: Updates between two probes; 0: there are none.
        first: Optimiser step, from 0, with which learning begins.
        update_interval: Optimiser steps between two updates.
        seed: Of the sketches.
        whole_batches: Passes take all rows of a micro-batch, not those alone that hold a source.
    """

    interval: int
    first: int
    update_interval: int
    seed: int
    whole_batches: bool

    @classmethod
    def of(
        cls, settings: ScaleBiOSettings, seed: int, *, sources: int, sets: int, shared_rows: bool, compiled: bool
    ) -> ProbePlan:
        """As the config has it, or by default.

        Args:
            shared_rows: Rows hold several sources (packing), so that a pass for each takes the whole batch.
            compiled: Batches of other shapes would be compiled anew.
        """
        interval = settings.probe_interval
        if interval is None:
            interval = default_interval(sources, sets, whole=shared_rows or compiled) if sets > 1 else 0
        return cls(interval, settings.warmup_steps, settings.update_interval, seed, compiled)

    def is_due(self, step: int) -> bool:
        """In the optimiser step `step`, from 0, of those that learn."""
        update, within = divmod(step - self.first, self.update_interval)
        return self.interval > 0 and within == self.update_interval - 1 and update % self.interval == 0

    def sketch(self, step: int) -> CountSketch:
        """Another one for each probe: their errors are independent, so that the mean over probes has less."""
        return CountSketch(self.seed * 1_000_003 + step)


def default_interval(sources: int, sets: int, *, whole: bool) -> int:
    """So many updates that probes are about 5% of the passes of learning, at most.

    A step that learns passes twice over a training batch and once over a validation batch, by default a quarter of one.
    A probe passes once over both, or `whole` once over the first for each source and over the second for each set.
    """
    return max(INTERVAL, 10 * sources + 3 * sets) if whole else INTERVAL
