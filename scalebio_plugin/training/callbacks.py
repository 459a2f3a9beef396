"""When things happen around the step: layers and inner set before it, files at the end of the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from axolotl.utils.logging import get_logger
from transformers import TrainerCallback, TrainerState

from ..report.files import remove_unfinished
from ..report.history import HistoryRecord
from ..report.mixture_file import tables_of
from ..report.tables import drawn_line, layers_line
from .console import say
from .dashboards import Dashboards
from .learning import Learning
from .trainer import ScaleBiOTrainer

LOG = get_logger("axolotl.scalebio")


class KeptCallback(TrainerCallback):
    """Of a run that learns to its end and keeps u: at the end the model is u, before any other callback sees it."""

    def __init__(self, trainer: ScaleBiOTrainer, learning: Learning):
        self.trainer = trainer
        self.learning = learning

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if self.learning.keeps_inner:
            self.trainer.end_learning()


class ScaleBiOCallback(TrainerCallback):
    """Tells the trainer when an optimiser step begins, and writes what a run leaves."""

    def __init__(self, trainer: ScaleBiOTrainer, learning: Learning):
        self.trainer = trainer
        self.learning = learning
        self.ended_early = False  # and the log says so
        self.dashboards = Dashboards([])

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if state.global_step > 0:
            state.compute_steps(args, state.max_steps)  # the host has the checkpoint's: how often it saves, evaluates
        if state.global_step == 0 and state.is_world_process_zero:
            earlier = self.learning.folder.begin()
            if earlier is not None:
                LOG.info(f"scalebio: what an earlier run left in {earlier.parent} is in {earlier.name}/ now")
        if state.is_world_process_zero:
            remove_unfinished(self.learning.folder.path)
            self._go_on_from_cost(state.global_step)
            self.dashboards = Dashboards(self.trainer.callback_handler.callbacks)
            self.dashboards.begin()
        self.learning.manager.hook.scalebio_run_started(run=self.learning.facts)

    def _go_on_from_cost(self, step: int) -> None:
        """Of a run that is resumed."""
        if step > 0:
            with _not_at_the_price_of_the_model("what the run cost so far, in cost.json", "It is counted anew"):
                self.learning.pace.before = self.learning.folder.read_cost()

    def on_epoch_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.learning.order.at_epoch(kwargs.get("train_dataloader"), int(state.epoch or 0))

    def on_step_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.trainer.begin_step()

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        run, record = self.learning.run, self.learning.record
        self.learning.pace.end()
        for sign in self.learning.signs:
            say(LOG.warning, f"scalebio: in optimiser step {state.global_step}, {sign}")
        self.learning.signs = []
        if run.ends_early and not self.ended_early and record is not None:
            self.ended_early = True
            say(
                LOG.info,
                f"scalebio: {record['verdict']} after optimiser step {record['step']}: learning ends with step "
                f"{run.learn_until}, of {run.last_step} at most",
            )

    def on_save(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            read = cache(self.learning.folder.read_history)
            document = self._write_mixture(state.global_step, read)
            if document is not None:
                with _not_at_the_price_of_the_model("report.html; `scalebio report` writes it"):
                    self.learning.folder.write_page(document, read())
                self._show(document, read)

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._leave(state.global_step)

    def _write_mixture(self, steps: int, history: Callable[[], list[HistoryRecord]]) -> dict[str, Any] | None:
        layers = self.learning.layers
        trained = None if layers is None else layers.steps_trained(steps)
        with _not_at_the_price_of_the_model("cost.json"):
            self.learning.folder.write_cost(self.learning.pace.cost)
        with _not_at_the_price_of_the_model("mixture.json", "It is left as it was"):
            return self.learning.folder.write_mixture(history(), steps, trained, self.learning.drawn_rows)
        return None

    def _show(self, document: dict[str, Any], history: Callable[[], list[HistoryRecord]]) -> None:
        with _not_at_the_price_of_the_model("what the dashboards show of the mixture"):
            self.dashboards.show(document, history)

    def _leave(self, steps: int) -> None:
        if self.learning.record is None:
            LOG.warning("scalebio: the run ended before the first update of the mixture, so there is none to write")
            return
        folder = self.learning.folder
        read = cache(folder.read_history)
        document = self._write_mixture(steps, read)
        if document is None:
            return
        with _not_at_the_price_of_the_model("next.yml"):
            folder.write_next_config()
        with _not_at_the_price_of_the_model("mixture.png and report.html; `scalebio report` draws them again"):
            folder.draw(document, read())
        self._show(document, read)
        self.dashboards.keep(folder.path)
        said = ["scalebio: the learned mixture", *tables_of(document)]
        said += [] if document["layer_steps"] is None else [layers_line(document["layer_steps"])]
        said += [] if document["drawn"] is None else [drawn_line(document)]
        say(LOG.info, "\n".join([*said, folder.listing()]))
        with _not_at_the_price_of_the_model("what an extension does at the end of a run"):
            self.learning.manager.hook.scalebio_run_ended(document=document)


@contextmanager
def _not_at_the_price_of_the_model(what: str, but: str = "The mixture is in mixture.json") -> Iterator[None]:
    """The host saves the model once every callback has returned: an error here would lose it."""
    try:
        yield
    except Exception:
        LOG.exception(f"scalebio: failed: {what}. {but}; the run goes on, and the model is saved")
