"""When things happen around the step: layers and inner set before it, files at the end of the run."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import TYPE_CHECKING, Any

from axolotl.utils.logging import get_logger
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .. import __version__
from ..hooks.spec import RunFacts
from ..report import summary as report
from ..report.page import write_report
from .checkpoint import history_path
from .console import own_line

if TYPE_CHECKING:
    from .learning import Learning
    from .trainer import ScaleBiOTrainer

LOG = get_logger("axolotl.scalebio")
_HOSTS = ("axolotl", "transformers", "accelerate", "torch", "peft")


class ScaleBiOCallback(TrainerCallback):
    """Tells the trainer when an optimiser step begins, and writes what a run leaves."""

    def __init__(self, trainer: ScaleBiOTrainer):
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        learning = self.trainer.learning
        if state.global_step == 0 and state.is_world_process_zero:
            report.truncate_history(history_path(learning), 0)
        learning.manager.hook.scalebio_run_started(run=_run_facts(learning, state))

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.learning.order.at_epoch(kwargs.get("train_dataloader"), int(state.epoch or 0))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.begin_step()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            write_mixture(self.trainer.learning, state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            _leave(self.trainer.learning, state.global_step)


def _run_facts(learning: Learning, state: TrainerState) -> RunFacts:
    names = tuple(learning.run.names)
    return RunFacts(
        sources=names,
        tokens=tuple(learning.facts["tokens"][name] for name in names),
        sequences=tuple(learning.facts["examples"][name] for name in names),
        settings=learning.run.settings.model_dump(),
        steps=state.max_steps,
        seed=learning.facts["seed"],
    )


def write_mixture(learning: Learning, steps: int) -> dict[str, Any] | None:
    """Write `mixture.json` from the history so far and return it; None before the first update of λ."""
    path = history_path(learning)
    history = report.read_history(path) if os.path.exists(path) else []
    if not history:
        return None
    run, facts = learning.run, learning.facts
    document = report.mixture_document(
        report.summarise(history, run.names),
        report.RunFacts(
            penalty=run.settings.penalty,
            estimator=run.settings.estimator,
            loss_unit=run.settings.loss_unit,
            mixture_update=run.settings.mixture_update,
            steps=steps,
            updates=len(history),
            seed=facts["seed"],
            versions={"scalebio": __version__} | {name: metadata.version(name) for name in _HOSTS},
            fingerprint={key: _digest(facts[key]) for key in ("config", "data", "validation")},
            tokens=facts["tokens"],
            examples=facts["examples"],
            layer_steps=None if learning.layers is None else learning.layers.steps_trained(steps),
        ),
    )
    report.write_mixture(os.path.join(learning.folder, "mixture.json"), document)
    return document


def _leave(learning: Learning, steps: int) -> None:
    document = write_mixture(learning, steps)
    if document is None:
        LOG.warning("scalebio: the run ended before the first update of the mixture, so there is none to write")
        return
    with _not_at_the_price_of_the_model("mixture.png and report.html; `scalebio report` draws them again"):
        write_report(learning.folder, document, report.read_history(history_path(learning)))
    with _not_at_the_price_of_the_model("next.yml"):
        if learning.next_config is not None:
            report.replace_file(os.path.join(learning.folder, "next.yml"), learning.next_config.encode())
    with own_line():
        LOG.info(
            "scalebio: the learned mixture\n"
            + report.weights_table(report.summaries_of(document))
            + ("" if document["layer_steps"] is None else "\n" + report.layers_line(document["layer_steps"]))
            + f"\nin {learning.folder}: {', '.join(sorted(os.listdir(learning.folder)))}"
        )
    with _not_at_the_price_of_the_model("what an extension does at the end of a run"):
        learning.manager.hook.scalebio_run_ended(document=document)


@contextmanager
def _not_at_the_price_of_the_model(what: str) -> Iterator[None]:
    """The host saves the model once every callback has returned: an error here would lose it."""
    try:
        yield
    except Exception:
        LOG.exception(f"scalebio: failed: {what}. The mixture is in mixture.json, and the model is saved next")


def _digest(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
