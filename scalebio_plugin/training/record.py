"""What the mixture is after an update, as a line of the history. Legend: S sources, V validation sets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from ..algorithm.evidence import Evidence
from ..algorithm.moments import LEAST_UPDATES
from ..config.block import ScaleBiOSettings
from ..report.history import HistoryRecord
from .objective import Objective, weighted_mean
from .step_losses import StepLosses

Named = dict[str, Any]  # by source


class Mixture(Protocol):
    """What a line of the history asks of a `MixtureRun`."""

    names: list[str]
    settings: ScaleBiOSettings
    objective: Objective
    evidence: Evidence
    alignment_SV: Tensor | None

    @property
    def weights_S(self) -> Tensor: ...

    def interval(self) -> tuple[Tensor, Tensor] | None: ...

    def verdict(self, interval: tuple[Tensor, Tensor] | None) -> str: ...


def record_of(
    run: Mixture,
    losses: StepLosses,
    *,
    raw_S: Tensor,
    gap_S: Tensor,
    goal_weights_V: Tensor,
    step: int,
    learning_rate: float,
) -> HistoryRecord:
    """Of the update that ends with optimiser step `step`, from 1.

    Args:
        run: After it.
        losses: Of the step.
        raw_S, gap_S: (S,), nats, of the update: as they were measured, and less their centre.
        goal_weights_V: (V,), of the validation sets in the step.
        learning_rate: Of w and u in the step.
    """
    interval, recent = run.interval(), run.evidence.recent
    said, val_losses = run.verdict(interval), losses.of_validation_sets()

    def named(values: Sequence[Any]) -> Named:
        return dict(zip(run.names, values, strict=True))

    def means(sums_S: Tensor) -> Named:
        pairs = zip(sums_S.tolist(), losses.units_S.tolist(), strict=True)
        return named([total / units if units > 0 else None for total, units in pairs])

    return {
        "step": step,
        "weights": named(run.weights_S.tolist()),
        "interval": None
        if interval is None
        else named([list(ends) for ends in zip(*map(Tensor.tolist, interval), strict=True)]),
        "loss": means(losses.model_S),
        "inner_loss": means(losses.inner_S),
        "pull": named(raw_S.tolist()),
        "gap": named(gap_S.tolist()),
        "gap_mean": named(recent.mean().tolist()),
        "gap_se": named(recent.error().tolist()) if recent.count >= LEAST_UPDATES else None,
        "evidence": named(run.evidence.peak_S.tolist()),
        "verdict": said,
        "told_at": _told_at(run, step) if said == "no signal" else None,
        "units": named([round(units) for units in losses.units_S.tolist()]),
        "train_loss": losses.train_loss,
        "val_loss": weighted_mean(val_losses, goal_weights_V),
        "val_losses": run.objective.named(val_losses),
        "val_weights": run.objective.named(goal_weights_V.tolist()),
        "goals": None if run.alignment_SV is None else named(_goals(run, run.alignment_SV)),
        "learning_rate": learning_rate,
    }


def _told_at(run: Mixture, step: int) -> dict[str, int] | None:
    """The source that is nearest to being told from noise, and the optimiser step at which it would be."""
    updates, source = run.evidence.evident_after().min(0)
    if not math.isfinite(float(updates)):
        return None
    return {run.names[int(source)]: step + (int(updates) - run.evidence.updates) * run.settings.update_interval}


def _goals(run: Mixture, alignment_SV: Tensor) -> list[dict[str, float | None]]:
    """Of each source, what a probe in this step found."""
    rows = ([value if math.isfinite(value) else None for value in row] for row in alignment_SV.tolist())
    return [run.objective.named(row) for row in rows]
