"""What a checkpoint holds of a run, as plain values, written and read in one place.

checkpoint-N/scalebio/
    mixture.safetensors   λ and all that decides how it goes on; also with `save_only_model`
    inner.safetensors     u, its optimizer state, the position in the data; needed to resume. Where every rank holds
                          its own part of u: inner_<rank>_of_<ranks>.safetensors
    history.jsonl
    run.json              what the run was (`report.identity`): another one is refused
    manifest.json         written last, once every rank has written all it writes: see `manifest`

In a folder, as there are programs that take all *.safetensors beside a model for parts of it. Earlier versions wrote
scalebio_mixture.pt, scalebio_inner.pt, scalebio_history.jsonl and, last, the mark scalebio_complete: still read.
"""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..algorithm.saved import OtherFormat, refuse_missing
from .manifest import NAME
from .state_file import read_state, write_state

VERSION = 1  # of the values, whichever file they are in
FOLDER = "scalebio"
MIXTURE = "mixture"
HISTORY = "scalebio/history.jsonl"
_OLD_HISTORY = "scalebio_history.jsonl"
_OLD_MARK = "scalebio_complete"


@dataclass(frozen=True)
class Place:
    """Who writes and reads.

    Attributes:
        rank, world: Number of this process, and of all.
        sharded: Every rank holds its own part of u; else all hold all of it, and the first one writes.
    """

    rank: int
    world: int
    sharded: bool

    @property
    def inner(self) -> str:
        """What this rank reads and, where u is sharded, writes."""
        return f"inner_{self.rank:05d}_of_{self.world:05d}" if self.sharded else "inner"

    @property
    def writes_inner(self) -> bool:
        return self.sharded or self.rank == 0


@dataclass(frozen=True)
class MixturePart:
    """Of every rank.

    Attributes:
        run: `MixtureRun.state_dict()`.
        orders: By rank, the generator's states that its order of the data came from (`random_state.DataOrder`).
    """

    run: dict[str, Any]
    orders: list[tuple[Tensor | None, Tensor | None]]

    def order_of(self, place: Place) -> tuple[Tensor | None, Tensor | None]:
        """A run that goes on with another number of ranks takes the first one's."""
        return self.orders[place.rank if len(self.orders) == place.world else 0]


@dataclass(frozen=True)
class InnerPart:
    """Of one rank, or of all where u is not sharded.

    Attributes:
        inner: State of u; None where learning has not begun or is over.
        position: Of the batches: what `Learning.stream` gave.
        record: Last line of the history.
        model: What of w the host's files do not hold.
        optimizer: State of w's optimizer, where the host's file does not hold it.
    """

    inner: dict[str, Any] | None
    position: Any
    record: Any
    model: dict[str, Tensor]
    optimizer: dict[str, Any] | None = None


def forget(checkpoint: str) -> None:
    """Before one is written there: what is left of an earlier attempt is none of it."""
    shutil.rmtree(os.path.join(checkpoint, FOLDER), ignore_errors=True)
    for old in Path(checkpoint).glob("scalebio_*"):
        old.unlink()


def write_mixture(checkpoint: str, part: MixturePart) -> None:
    _save({"version": VERSION, "run": part.run, "orders": part.orders}, checkpoint, MIXTURE)


def write_inner(checkpoint: str, part: InnerPart, place: Place) -> None:
    saved = {"version": VERSION, "inner": part.inner, "rest": part.position, "record": part.record, "model": part.model}
    saved["optimizer"] = part.optimizer
    _save(saved, checkpoint, place.inner)


def is_unchecked(checkpoint: str) -> bool:
    """Whether an earlier version wrote it to its end, with a mark in place of a manifest."""
    has = [os.path.exists(os.path.join(checkpoint, name)) for name in (NAME, _OLD_MARK)]
    return has == [False, True]


def history_in(checkpoint: str) -> str:
    """Where it has the history, if it has one."""
    return os.path.join(checkpoint, _OLD_HISTORY if is_unchecked(checkpoint) else HISTORY)


def read_mixture(checkpoint: str, place: Place) -> MixturePart:
    """Before the host reads its data, once it is known to have no problem.

    Raises:
        ValueError: The checkpoint lacks our state, or it was written by another version of the format.
    """
    refuse_missing_state(checkpoint, place)
    saved = _load(checkpoint, MIXTURE, "run", "orders")
    return MixturePart(saved["run"], saved["orders"])


def read_run(checkpoint: str) -> dict[str, Any]:
    """`MixturePart.run` alone, for a look before there are ranks.

    Raises:
        ValueError: It was written by another version of the format.
    """
    run: dict[str, Any] = _load(checkpoint, MIXTURE, "run")["run"]
    return run


def read_inner(checkpoint: str, place: Place) -> InnerPart:
    """After `read_mixture`, which checks that it is there.

    Raises:
        ValueError: It was written by another version of the format.
    """
    saved = _load(checkpoint, place.inner, "inner", "rest", "record", "model")
    return InnerPart(saved["inner"], saved["rest"], saved["record"], saved["model"], saved.get("optimizer"))


@contextmanager
def of_this_format(checkpoint: str) -> Iterator[None]:
    """Around what takes its values up.

    Raises:
        ValueError: They are of another format, which is then of this checkpoint.
    """
    try:
        yield
    except OtherFormat as error:
        raise ValueError(f"scalebio: {checkpoint} has another format: {error}") from error


def refuse_missing_state(checkpoint: str, place: Place) -> None:
    """
    Raises:
        ValueError: The checkpoint lacks what that process needs to go on.
    """
    written = _written(checkpoint)
    inner = [name for name in written if name.startswith("inner")]
    if inner and place.inner not in inner:
        raise ValueError(
            f"scalebio: {checkpoint} holds the inner parameters as {inner}, this run would read {place.inner}: it was "
            "written by another engine or number of processes; resume with those, or start a new output_dir"
        )
    for name, what in ((MIXTURE, "of the mixture"), (place.inner, "of the inner parameters")):
        if name not in written:
            raise ValueError(
                f"scalebio: {checkpoint} holds no state {what}, so learning cannot go on from it: it was written "
                "without the plugin or with save_only_model; resume from another checkpoint, or start a new output_dir"
            )


def _written(checkpoint: str) -> list[str]:
    """Names of its files of ours that hold state."""
    old = is_unchecked(checkpoint)
    files = Path(checkpoint).glob("scalebio_*.pt") if old else Path(checkpoint, FOLDER).glob("*.safetensors")
    return sorted(path.stem.removeprefix("scalebio_") for path in files)


def _save(value: dict[str, Any], checkpoint: str, name: str) -> None:
    os.makedirs(os.path.join(checkpoint, FOLDER), exist_ok=True)
    write_state(os.path.join(checkpoint, FOLDER, f"{name}.safetensors"), value)


def _load(checkpoint: str, name: str, *keys: str) -> dict[str, Any]:
    if is_unchecked(checkpoint):
        path = os.path.join(checkpoint, f"scalebio_{name}.pt")
        saved = _load_unchecked(path)
    else:
        path = os.path.join(checkpoint, FOLDER, f"{name}.safetensors")
        saved = read_state(path)
    version = saved.get("version")
    if version != VERSION:
        raise ValueError(
            f"scalebio: {path} has the format {version}, this version of the plugin reads {VERSION}; resume "
            "with the version that wrote it, or start a new output_dir"
        )
    with of_this_format(checkpoint):
        refuse_missing(name, saved, keys)
    return saved


def _load_unchecked(path: str) -> dict[str, Any]:
    try:
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (EOFError, OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise ValueError(f"scalebio: {path} is damaged, it cannot be read; resume from another checkpoint") from error
    return saved
