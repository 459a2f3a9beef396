"""Compute per optimiser step, in passes over the training batch (forward and backward); the ordinary run's is 1."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.block import ScaleBiOSettings

FORWARD = 1.0 / 3.0  # of a forward and backward pass, where all weights train: 2 of 6 operations per weight and token


@dataclass(frozen=True)
class Cost:
    """What learning a mixture costs.

    Attributes:
        block: The `scalebio:` block.
        validation: Validation rows per optimiser step over training rows per step.
        max_steps: Optimiser steps of the run, above 0, where the config says.
    """

    block: ScaleBiOSettings
    validation: float
    max_steps: int | None = None

    @property
    def symmetric(self) -> bool:
        """Whether u has a validation pass, too."""
        return self.block.estimator == "symmetric"

    @property
    def while_learning(self) -> float:
        """Passes per step: w and u on the training batch, w (and u) on the validation batch."""
        if self.block.pull == 0.0:
            return 2.0 + self.validation * FORWARD
        return 2.0 + self.validation * (2 if self.symmetric else 1)

    @property
    def whole_run(self) -> float | None:
        """Mean passes per step over the run, with `learn.until` at most; None where it hangs on a length not given."""
        learning = self._learning_share()
        return None if learning is None else 1.0 + learning * (self.while_learning - 1.0)

    def _learning_share(self) -> float | None:
        """Part of the run's optimiser steps that learn."""
        learn, warmup = self.block.learn, self.block.warmup_steps
        if learn.steps is None and warmup == 0:
            return learn.part
        if self.max_steps is None:
            return None
        after = max(0, self.max_steps - warmup)
        return min(learn.last(after), after) / self.max_steps
