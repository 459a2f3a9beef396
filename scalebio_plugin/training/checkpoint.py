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
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..algorithm.saved import OtherFormat, refuse_missing
from . import manifest
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
        position: Of the batches, `Learning.position`.
        record: Last line of the history.
        model: What of w the host's files do not hold.
        optimizer: State of w's optimizer, where the host's file does not hold it.
    """

    inner: dict[str, Any] | None
    position: tuple[int, int] | dict[str, Any]
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


def problem_of(checkpoint: str) -> str | None:
    """What keeps a run from going on from there, in words that follow its name; None if nothing does.

    A checkpoint of a run without the plugin has no such problem, and one of an earlier version is not known to.
    """
    if not os.path.isdir(checkpoint):
        return "does not exist"
    if os.path.exists(os.path.join(checkpoint, manifest.NAME)):
        faults = manifest.faults_of(checkpoint)
        more = [f"and {len(faults) - 5} more"] if len(faults) > 5 else []
        return f"is damaged ({'; '.join(faults[:5] + more)})" if faults else None
    if is_unchecked(checkpoint):
        return None
    if _is_ours(checkpoint) or not os.path.exists(os.path.join(checkpoint, "trainer_state.json")):
        return f"was not written to its end (it has no {manifest.NAME}: the run was killed while it wrote it)"
    return None


def _is_ours(checkpoint: str) -> bool:
    """Whether a run that learned began it, as which files of ours, or none of any kind, tell."""
    ours = os.path.exists(os.path.join(checkpoint, FOLDER)) or any(Path(checkpoint).glob("scalebio_*"))
    return ours or not os.listdir(checkpoint)


def is_unchecked(checkpoint: str) -> bool:
    """Whether an earlier version wrote it to its end, with a mark in place of a manifest."""
    has = [os.path.exists(os.path.join(checkpoint, name)) for name in (manifest.NAME, _OLD_MARK)]
    return has == [False, True]


def history_in(checkpoint: str) -> str:
    """Where it has the history, if it has one."""
    return os.path.join(checkpoint, _OLD_HISTORY if is_unchecked(checkpoint) else HISTORY)


def refuse_problem(checkpoint: str) -> None:
    """For one that was asked for by name.

    Raises:
        ValueError: It has a problem.
    """
    problem = problem_of(checkpoint)
    if problem is not None:
        raise ValueError(
            f"scalebio: {checkpoint} {problem}; resume from another checkpoint, or with auto_resume_from_checkpoints "
            "in place of resume_from_checkpoint, which takes the newest whole one"
        )


def newest_whole(output_dir: str) -> tuple[str | None, list[str]]:
    """The newest checkpoint without a problem, and the newer ones with theirs, for the log.

    None where there is none yet: those that there are were never written to their end.

    Raises:
        ValueError: There are damaged ones, and none is whole.
    """
    passed_over: list[str] = []
    for checkpoint in _newest_first(output_dir):
        problem = problem_of(checkpoint)
        if problem is None:
            return checkpoint, passed_over
        passed_over.append(f"{checkpoint} {problem}")
    if any(" is damaged (" in line for line in passed_over):
        raise ValueError(
            "scalebio: there are checkpoints, but none is whole:\n  "
            + "\n  ".join(passed_over)
            + "\nBring the files back; or, to start anew and lose what was learned, move the checkpoints away or set "
            "another output_dir"
        )
    return None, passed_over


def is_newest(checkpoint: str, output_dir: str) -> bool:
    """Whether it is the one that the host takes by itself."""
    return any(os.path.abspath(newest) == os.path.abspath(checkpoint) for newest in _newest_first(output_dir)[:1])


def newer_than(taken: str | None, output_dir: str) -> list[str]:
    """What a resume passes over that takes this one; all where it takes none."""
    steps = -1 if taken is None else _step_of(taken)
    return [checkpoint for checkpoint in _newest_first(output_dir) if _step_of(checkpoint) > steps]


def out_of_the_way(passed_over: Sequence[str]) -> Iterator[str]:
    """Once a newer one is whole, what a resume passed over would take a place of `save_total_limit`.

    What was never whole goes, what is damaged gets a name that the host does not count; each in a sentence for the log.
    """
    for checkpoint in passed_over:
        problem = problem_of(checkpoint) if os.path.isdir(checkpoint) else None
        if problem is None:  # written anew meanwhile
            continue
        if os.path.exists(os.path.join(checkpoint, manifest.NAME)):
            folder, name = os.path.split(checkpoint)
            aside = os.path.join(folder, f"damaged-{name}")
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(checkpoint, aside)
            yield f"{checkpoint} {problem}: it is {aside} now"
        elif _is_ours(checkpoint):
            shutil.rmtree(checkpoint)
            yield f"{checkpoint} {problem}: it is deleted"


def _newest_first(output_dir: str) -> list[str]:
    found = (str(path) for path in Path(output_dir).glob("checkpoint-*"))
    return sorted((path for path in found if re.search(r"checkpoint-\d+$", path)), key=_step_of, reverse=True)


def _step_of(checkpoint: str) -> int:
    return int(checkpoint.rsplit("-", 1)[1])


def read_mixture(checkpoint: str, place: Place) -> MixturePart:
    """Before the host reads its data, once it is known to have no problem.

    Raises:
        ValueError: The checkpoint lacks our state, or it was written by another version of the format.
    """
    _refuse_missing(checkpoint, place)
    saved = _load(checkpoint, MIXTURE, "run", "orders")
    return MixturePart(saved["run"], saved["orders"])


def read_run(checkpoint: str) -> dict[str, Any] | None:
    """`MixturePart.run` alone, for a look before there are ranks; None where there is none.

    Raises:
        ValueError: It was written by another version of the format.
    """
    if MIXTURE not in _written(checkpoint):
        return None
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


def _refuse_missing(checkpoint: str, place: Place) -> None:
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
