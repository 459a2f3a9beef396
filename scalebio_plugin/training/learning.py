"""What the trainer holds of a run that learns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pluggy
import torch

from ..data.after_learning import ResampledStream
from ..data.planned_stream import PlannedStream
from ..data.validation import ValidationStream
from ..engines.base import Engine, InnerSet
from ..hooks.spec import RunFacts
from ..report.folder import RunFolder
from ..report.history import HistoryRecord
from ..report.identity import RunIdentity
from ..report.tables import time_left
from .checkpoint import Place
from .head_losses import FromLogits, InHead
from .layer_sampling import LayerSampling
from .mixture_run import MixtureRun
from .pace import Pace
from .probe_plan import ProbePlan
from .random_state import DataOrder
from .signals import HeldSignals
from .watch import Watch


@dataclass
class Learning:
    """The parts of a run that `connect` made, and what comes to be while it goes on.

    Attributes:
        run: λ and the phase.
        engine: How the parameter sets live on the host's engine.
        losses: How the losses of the tokens come from a pass.
        validation: L1's batches.
        rows: Of the training set, as it was counted.
        stream: The batches of the whole run, where rows are drawn by source; else those after learning.
        layers: LISA, if any.
        trainable: Names of the parameters that the optimizer was made for.
        inner_device: Where u rests between its passes; None: beside the model.
        manager: Of the run's hooks.
        facts: Of the run, as hooks are told before its first step.
        folder: What the run leaves.
        probes: When it is measured which source helps which validation set.
        identity: What the run is, for its checkpoints.
        order: What the order of the host's data came from.
        inner: u, from the first learning step to the last.
        record: Last line of the history.
        measures_inner: Whether u is in place for a measurement.
        signals: That wait for the end of a step.
        watch: What is wrong in the numbers of a step; `signs`: what is still to be told.
        pace: How long its steps take.
    """

    run: MixtureRun
    engine: Engine
    losses: FromLogits | InHead
    validation: ValidationStream
    rows: int
    stream: PlannedStream | ResampledStream
    layers: LayerSampling | None
    trainable: list[str]
    inner_device: torch.device | None
    manager: pluggy.PluginManager
    facts: RunFacts
    folder: RunFolder
    probes: ProbePlan
    identity: RunIdentity
    watch: Watch
    order: DataOrder = field(default_factory=DataOrder)
    inner: InnerSet | None = None
    record: HistoryRecord | None = None
    measures_inner: bool = False
    signals: HeldSignals = field(default_factory=HeldSignals)
    signs: list[str] = field(default_factory=list)
    pace: Pace = field(default_factory=Pace)

    @property
    def keeps_inner(self) -> bool:
        """Whether the run is to end with u, and still has both sets."""
        return self.inner is not None and self.run.settings.keep == "inner"

    @property
    def place(self) -> Place:
        return Place(self.engine.rank, self.engine.world, self.engine.sharded)

    @property
    def drawn_rows(self) -> dict[str, int] | None:
        """Rows drawn of each source so far; None in the host's order."""
        if not isinstance(self.stream, PlannedStream):
            return None
        return dict(zip(self.run.names, self.stream.drawn_S.tolist(), strict=True))

    def left(self, step: int) -> str:
        """How long learning goes on, after that many optimiser steps; empty where it has ended."""
        steps = self.run.learn_until - step
        most = " at most" if self.run.settings.learn.until is not None and not self.run.ends_early else ""
        return time_left(steps, self.pace.seconds_for(steps), most)

    def begun_inner(self) -> InnerSet:
        if self.inner is None:
            raise RuntimeError("scalebio: a learning step without inner parameters; this is a bug, please report it")
        return self.inner

    def end(self) -> bool:
        """Let the set to keep be the model from here on. True if that is u, now."""
        replaced = self.keeps_inner
        if replaced:
            self.begun_inner().take_over()
        self.inner = None
        return replaced

    @contextmanager
    def kept_in_place(self) -> Iterator[None]:
        """The module is the set to keep inside the block; blocks may be nested."""
        if not self.keeps_inner or self.measures_inner:
            yield
            return
        self.measures_inner = True
        try:
            with self.begun_inner().in_place():
                yield
        finally:
            self.measures_inner = False

    def told_to_end(self, device: torch.device) -> bool:
        """Whether a signal has come to any rank; the same answer on all, which ask at once."""
        return bool(self.engine.total(torch.tensor(float(bool(self.signals.noted)), device=device)) > 0)

    def look_at(self, step: int, loss: float, inner_loss: float) -> None:
        """Before λ moves and the model steps: what is wrong in this step, from 1, goes to `signs`, for the log.

        Args:
            loss, inner_loss: Training losses of w and of u, means over the rows that came by what each counts.

        Raises:
            FloatingPointError: Something is, and `on_divergence` is error.
        """
        wrong = self.watch.signs(step, loss, inner_loss)
        if wrong and self.run.settings.on_divergence == "error":
            raise FloatingPointError(
                f"scalebio: stopped before optimiser step {step}, by on_divergence: error: {'; '.join(wrong)}. The "
                "checkpoints written so far are untouched"
            )
        weights = dict(zip(self.run.names, self.run.weights_S.tolist(), strict=True))
        self.signs += [*wrong, *self.watch.pinned(step, weights)]

    def note(self, record: HistoryRecord) -> None:
        """An update of λ: into the history, and to the extensions, by the main process."""
        self.record = record
        if self.engine.rank == 0:
            try:
                self.folder.add(record)
            except OSError as error:
                error.add_note(
                    f"scalebio: {self.folder.history} could not be written (is the disk full?), so that the run ends; "
                    "its checkpoints are as they were"
                )
                raise
            self.manager.hook.scalebio_mixture_updated(record=record)
