"""What a checkpoint and the output folder hold of a run, written and read in one place.

checkpoint-N/
    scalebio_mixture.pt   λ and all that decides how it goes on; also with `save_only_model`
    scalebio_inner.pt     u, its optimizer state, the position after learning; needed to resume. Where every rank holds
                          its own part of u: scalebio_inner_<rank>_of_<ranks>.pt
    scalebio_history.jsonl
    scalebio_complete     written last, once every rank has written all it writes
<output_dir>/scalebio/
    history.jsonl, mixture.json, mixture.png
"""

from __future__ import annotations

import glob
import os
import re
import shutil
from typing import TYPE_CHECKING, Any

import torch

from ..report.summary import HistoryRecord, append_history, weights_line
from .mixture_run import Phase

if TYPE_CHECKING:
    from .learning import Learning
    from .trainer import ScaleBiOTrainer

VERSION = 1
MIXTURE = "scalebio_mixture.pt"
INNER = "scalebio_inner.pt"
HISTORY = "scalebio_history.jsonl"
COMPLETE = "scalebio_complete"


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


def save_mixture(learning: Learning, orders: list[tuple[Any, Any]], folder: str) -> None:
    """λ, the order of every rank's data and the history; by the main process, before the host's files."""
    _save({"version": VERSION, "run": learning.run.state_dict(), "orders": orders}, os.path.join(folder, MIXTURE))
    if os.path.exists(history_path(learning)):
        shutil.copyfile(history_path(learning), os.path.join(folder, HISTORY))


def save_inner(trainer: ScaleBiOTrainer, folder: str) -> None:
    """u with its optimizer state, and where the run stands in its data after learning."""
    learning = trainer.learning
    if not learning.engine.sharded and not trainer.is_world_process_zero():
        return
    saved = {
        "version": VERSION,
        "inner": None if learning.inner is None else learning.inner.state_dict(),
        "rest": (learning.rest.lap, learning.rest.batch),
        "record": learning.record,
        "model": learning.engine.model_part(trainer.trainable_parameters()),
    }
    os.makedirs(folder, exist_ok=True)
    _save(saved, os.path.join(folder, inner_name(learning)))


def inner_name(learning: Learning) -> str:
    """Name of the file that this rank reads and, where u is sharded, writes."""
    engine = learning.engine
    return f"scalebio_inner_{engine.rank:05d}_of_{engine.world:05d}.pt" if engine.sharded else INNER


def mark_complete(trainer: ScaleBiOTrainer, folder: str) -> None:
    """Once every rank has written its files: from now on a resume may take this checkpoint."""
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        with open(os.path.join(folder, COMPLETE), "w", encoding="utf-8") as file:
            file.write(f"step {trainer.state.global_step}, {trainer.learning.engine.world} ranks\n")


def is_half_written(checkpoint: str) -> bool:
    """Whether the run was killed while it wrote this checkpoint (one that the plugin never wrote is not)."""
    has = {name: os.path.exists(os.path.join(checkpoint, name)) for name in (COMPLETE, MIXTURE, "trainer_state.json")}
    return not has[COMPLETE] and (has[MIXTURE] or not has["trainer_state.json"])


def last_whole_checkpoint(output_dir: str) -> str | None:
    """The newest checkpoint that was written to its end."""
    numbered = [(re.search(r"checkpoint-(\d+)$", path), path) for path in glob.glob(f"{output_dir}/checkpoint-*")]
    whole = [(int(match[1]), path) for match, path in numbered if match and not is_half_written(path)]
    return max(whole)[1] if whole else None


def load_mixture(learning: Learning, checkpoint: str) -> None:
    """Go on from a checkpoint, before the host reads its data: λ and the order of the data.

    Raises:
        ValueError: The checkpoint lacks our state, has that of other sources, or was not written to its end.
    """
    _refuse_missing(learning, checkpoint)
    saved = torch.load(os.path.join(checkpoint, MIXTURE), map_location="cpu", weights_only=True)
    learning.run.load_state_dict(saved["run"])
    orders, rank = saved["orders"], learning.engine.rank
    learning.order.loader, learning.order.epoch = orders[rank if len(orders) == learning.engine.world else 0]
    learning.order.resumed = True


def _refuse_missing(learning: Learning, checkpoint: str) -> None:
    if is_half_written(checkpoint):
        raise ValueError(
            f"scalebio: {checkpoint} was not written to its end (it has no {COMPLETE}): the run was killed while it "
            "wrote it; resume from an earlier checkpoint, or with auto_resume_from_checkpoints, which takes the newest "
            "whole one"
        )
    inner = inner_name(learning)
    written_by = sorted(name for name in os.listdir(checkpoint) if re.match(r"scalebio_inner.*\.pt$", name))
    if written_by and inner not in written_by:
        raise ValueError(
            f"scalebio: {checkpoint} holds the inner parameters as {written_by}, this run would read {inner}: it was "
            "written by another engine or number of processes; resume with those, or start a new output_dir"
        )
    for name, what in ((MIXTURE, "of the mixture"), (inner, "of the inner parameters")):
        if not os.path.exists(os.path.join(checkpoint, name)):
            raise ValueError(
                f"scalebio: {checkpoint} holds no state {what} ({name}), so learning cannot go on from it: it was "
                "written without the plugin or with save_only_model; resume from another checkpoint, or start a new "
                "output_dir"
            )


def load_inner(trainer: ScaleBiOTrainer, checkpoint: str) -> None:
    """Go on from a checkpoint, once the optimizer exists: u, positions, history.

    Raises:
        ValueError: u has parameters that do not train here, or is missing where this run would go on learning.
    """
    learning = trainer.learning
    saved = torch.load(os.path.join(checkpoint, inner_name(learning)), map_location="cpu", weights_only=True)
    learning.rest.lap, learning.rest.batch = saved["rest"]
    learning.record = saved["record"]
    learning.engine.restore_model_part(trainer.trainable_parameters(), saved["model"])
    done = trainer.state.global_step
    if saved["inner"] is not None:
        learning.inner = learning.engine.inner(
            trainer.trainable_parameters(), trainer.raw_optimizer(), learning.inner_device
        )
        learning.inner.load_state_dict(saved["inner"])
    elif learning.run.phase(done) is Phase.LEARN and done > learning.run.settings.warmup_steps:
        raise ValueError(
            f"scalebio: {checkpoint} was written after learning had ended, and this run would learn on; set learn: "
            "back to what it was"
        )
    if trainer.is_world_process_zero():
        _restore_history(learning, checkpoint)


def resumed(trainer: ScaleBiOTrainer, checkpoint: str) -> str:
    """The line of the log that says where a run goes on, and with what."""
    run, done = trainer.learning.run, trainer.state.global_step
    phase = {
        Phase.WARMUP: "w trains alone",
        Phase.LEARN: "learning goes on",
        Phase.REST: "the mixture is learned, w trains on it",
    }[run.phase(done)]
    weights = weights_line(dict(zip(run.names, run.weights_S.tolist(), strict=True)))
    return (
        f"scalebio: resumed from {checkpoint} after optimiser step {done} of {trainer.state.max_steps} "
        f"({phase}); weights: {weights}"
    )


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
