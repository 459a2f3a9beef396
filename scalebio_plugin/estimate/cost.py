"""Compute per optimiser step, in passes over the training batch (forward and backward), against the ordinary run."""

from __future__ import annotations

from dataclasses import dataclass

FORWARD = 1.0 / 3.0  # of a forward and backward pass, where all weights train: 2 of 6 operations per weight and token


@dataclass(frozen=True)
class Schedule:
    """What of the `scalebio:` block decides compute.

    Attributes:
        validation: Validation sequences per optimiser step over training sequences per step.
        symmetric: u has a validation pass, too.
        pulls: The penalty is finite.
        warmup: Optimiser steps. fraction, steps: of learning; at most one given.
        max_steps: Optimiser steps of the run, where the config says.
    """

    validation: float
    symmetric: bool = False
    pulls: bool = True
    warmup: int = 0
    fraction: float | None = None
    steps: int | None = None
    max_steps: int | None = None


def while_learning(schedule: Schedule) -> float:
    """Passes per step: w and u on the training batch, w (and u) on the validation batch."""
    validation = schedule.validation if schedule.pulls else schedule.validation * FORWARD
    mirrored = schedule.validation if schedule.symmetric and schedule.pulls else 0.0
    return 2.0 + validation + mirrored


def whole_run(schedule: Schedule) -> float | None:
    """Mean passes per step over the run; None where it hangs on a length that the config does not say.

    `learn` counts the run's steps, warmup before it; a warmup of a run of unknown length can't be counted.
    """
    learning = _learning_share(schedule)
    return None if learning is None else 1.0 + learning * (while_learning(schedule) - 1.0)


def _learning_share(schedule: Schedule) -> float | None:
    """Part of the run's optimiser steps that learn."""
    if schedule.steps is None and schedule.warmup == 0:
        return 1.0 if schedule.fraction is None else schedule.fraction
    if schedule.max_steps is None:
        return None
    rest = schedule.max_steps - schedule.warmup
    fraction = 1.0 if schedule.fraction is None else schedule.fraction
    steps = schedule.steps if schedule.steps is not None else max(1, round(fraction * rest))
    return max(0, min(steps, rest)) / schedule.max_steps
