"""What a checkpoint and the output folder hold of a run, written and read in one place.

checkpoint-N/
    scalebio_mixture.pt   λ and all that decides how it goes on; also with `save_only_model`
    scalebio_inner.pt     u, its optimizer state, the position after learning; needed to resume
    scalebio_history.jsonl
<output_dir>/scalebio/
    history.jsonl, mixture.json, mixture.png
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

import torch

from .algorithm.inner import InnerParameters
from .report import HistoryRecord, append_history
from .run import Phase

if TYPE_CHECKING:
    from .learning import Learning
    from .trainer import ScaleBiOTrainer

VERSION = 1
MIXTURE = "scalebio_mixture.pt"
INNER = "scalebio_inner.pt"
HISTORY = "scalebio_history.jsonl"


def history_path(learning: Learning) -> str:
    return os.path.join(learning.folder, "history.jsonl")


def add_to_history(learning: Learning, record: HistoryRecord, *, main_process: bool) -> None:
    """Append the line of one update, and tell the extensions."""
    if main_process:
        os.makedirs(learning.folder, exist_ok=True)
        append_history(history_path(learning), record)
        learning.manager.hook.scalebio_mixture_updated(record=record)


def metrics(record: HistoryRecord) -> dict[str, float]:
    """The last update as `scalebio/<what>/<source>`, for every dashboard the host reports to."""
    values = {"scalebio/val_loss": record["val_loss"]}
    for name in record["weights"]:
        values[f"scalebio/weight/{name}"] = record["weights"][name]
        values[f"scalebio/gap/{name}"] = record["gap"][name]
        loss = record["loss"][name]
        if loss is not None:
            values[f"scalebio/loss/{name}"] = loss
    return values


def save_mixture(trainer: ScaleBiOTrainer, folder: str) -> None:
    """λ, the order of the data and the history, on the main process. Written before the host's files."""
    learning = trainer.learning
    if not trainer.is_world_process_zero():
        return
    order = (learning.order.loader, learning.order.epoch)
    _save({"version": VERSION, "run": learning.run.state_dict(), "order": order}, os.path.join(folder, MIXTURE))
    if os.path.exists(history_path(learning)):
        shutil.copyfile(history_path(learning), os.path.join(folder, HISTORY))


def save_inner(trainer: ScaleBiOTrainer, folder: str) -> None:
    """u with its optimizer state, and where the run stands in its data after learning."""
    learning = trainer.learning
    saved = {
        "version": VERSION,
        "inner": None if learning.inner is None else learning.inner.state_dict(),
        "rest": (learning.rest.lap, learning.rest.batch),
        "record": learning.record,
    }
    if trainer.is_world_process_zero():
        _save(saved, os.path.join(folder, INNER))


def load_mixture(learning: Learning, checkpoint: str) -> None:
    """Go on from a checkpoint, before the host reads its data: λ and the order of the data.

    Raises:
        ValueError: The checkpoint lacks our state, or has that of other sources.
    """
    for name, what in ((MIXTURE, "of the mixture"), (INNER, "of the inner parameters")):
        if not os.path.exists(os.path.join(checkpoint, name)):
            raise ValueError(
                f"scalebio: {checkpoint} holds no state {what} ({name}), so learning cannot go on from it: it was "
                "written without the plugin or with save_only_model; resume from another checkpoint, or start a new "
                "output_dir"
            )
    saved = torch.load(os.path.join(checkpoint, MIXTURE), map_location="cpu", weights_only=True)
    learning.run.load_state_dict(saved["run"])
    learning.order.loader, learning.order.epoch = saved["order"]
    learning.order.resumed = True


def load_inner(trainer: ScaleBiOTrainer, checkpoint: str) -> None:
    """Go on from a checkpoint, once the optimizer exists: u, positions, history.

    Raises:
        ValueError: u has parameters that do not train here, or is missing where this run would go on learning.
    """
    learning = trainer.learning
    saved = torch.load(os.path.join(checkpoint, INNER), map_location="cpu", weights_only=True)
    learning.rest.lap, learning.rest.batch = saved["rest"]
    learning.record = saved["record"]
    done = trainer.state.global_step
    if saved["inner"] is not None:
        learning.inner = InnerParameters(trainer.trainable_parameters(), trainer.raw_optimizer(), learning.inner_device)
        learning.inner.load_state_dict(saved["inner"])
    elif learning.run.phase(done) is Phase.LEARN and done > learning.run.settings.warmup_steps:
        raise ValueError(
            f"scalebio: {checkpoint} was written after learning had ended, and this run would learn on; set learn: "
            "back to what it was"
        )
    if trainer.is_world_process_zero():
        _restore_history(learning, checkpoint)


def _restore_history(learning: Learning, checkpoint: str) -> None:
    """The history as it was at the checkpoint: what a killed run wrote later is learned again."""
    os.makedirs(learning.folder, exist_ok=True)
    saved = os.path.join(checkpoint, HISTORY)
    if os.path.exists(saved):
        shutil.copyfile(saved, history_path(learning))
    elif os.path.exists(history_path(learning)):
        os.remove(history_path(learning))


def _save(value: dict[str, Any], path: str) -> None:
    torch.save(value, path + ".tmp")
    os.replace(path + ".tmp", path)
