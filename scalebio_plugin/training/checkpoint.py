"""What a checkpoint holds of a run, as plain values, written and read in one place.

checkpoint-N/
    scalebio_mixture.pt   λ and all that decides how it goes on; also with `save_only_model`
    scalebio_inner.pt     u, its optimizer state, the position in the data; needed to resume. Where every rank holds
                          its own part of u: scalebio_inner_<rank>_of_<ranks>.pt
    scalebio_history.jsonl
    scalebio_complete     written last, once every rank has written all it writes
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

VERSION = 1
MIXTURE = "scalebio_mixture.pt"
INNER = "scalebio_inner.pt"
HISTORY = "scalebio_history.jsonl"
COMPLETE = "scalebio_complete"


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
    def inner_file(self) -> str:
        """What this rank reads and, where u is sharded, writes."""
        return f"scalebio_inner_{self.rank:05d}_of_{self.world:05d}.pt" if self.sharded else INNER

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
    """

    inner: dict[str, Any] | None
    position: tuple[int, int] | dict[str, Any]
    record: Any
    model: dict[str, Tensor]


def write_mixture(folder: str, part: MixturePart) -> None:
    _save({"version": VERSION, "run": part.run, "orders": part.orders}, os.path.join(folder, MIXTURE))


def write_inner(folder: str, part: InnerPart, place: Place) -> None:
    os.makedirs(folder, exist_ok=True)
    saved = {"version": VERSION, "inner": part.inner, "rest": part.position, "record": part.record, "model": part.model}
    _save(saved, os.path.join(folder, place.inner_file))


def write_complete(folder: str, step: int, place: Place) -> None:
    """Once every rank has written its files: from now on a resume may take this checkpoint."""
    Path(folder, COMPLETE).write_text(f"step {step}, {place.world} ranks\n", encoding="utf-8")


def is_half_written(checkpoint: str) -> bool:
    """Whether the run was killed while it wrote this checkpoint (one that the plugin never wrote is not)."""
    has = {name: os.path.exists(os.path.join(checkpoint, name)) for name in (COMPLETE, MIXTURE, "trainer_state.json")}
    return not has[COMPLETE] and (has[MIXTURE] or not has["trainer_state.json"])


def last_whole_checkpoint(output_dir: str) -> str | None:
    """The newest checkpoint that was written to its end."""
    numbered = [(re.search(r"checkpoint-(\d+)$", str(path)), path) for path in Path(output_dir).glob("checkpoint-*")]
    whole = [(int(match[1]), path) for match, path in numbered if match and not is_half_written(str(path))]
    return str(max(whole)[1]) if whole else None


def read_mixture(checkpoint: str, place: Place) -> MixturePart:
    """Before the host reads its data.

    Raises:
        ValueError: The checkpoint lacks our state, was not written to its end, or by another version of the format.
    """
    _refuse_missing(checkpoint, place)
    saved = _load(os.path.join(checkpoint, MIXTURE))
    return MixturePart(saved["run"], saved["orders"])


def read_inner(checkpoint: str, place: Place) -> InnerPart:
    """After `read_mixture`, which checks that it is there.

    Raises:
        ValueError: It was written by another version of the format.
    """
    saved = _load(os.path.join(checkpoint, place.inner_file))
    return InnerPart(saved["inner"], saved["rest"], saved["record"], saved["model"])


def _refuse_missing(checkpoint: str, place: Place) -> None:
    if is_half_written(checkpoint):
        raise ValueError(
            f"scalebio: {checkpoint} was not written to its end (it has no {COMPLETE}): the run was killed while it "
            "wrote it; resume from an earlier checkpoint, or with auto_resume_from_checkpoints, which takes the newest "
            "whole one"
        )
    inner = place.inner_file
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


def _save(value: dict[str, Any], path: str) -> None:
    torch.save(value, path + ".tmp")
    os.replace(path + ".tmp", path)


def _load(path: str) -> dict[str, Any]:
    saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if saved["version"] != VERSION:
        raise ValueError(
            f"scalebio: {path} has the format {saved['version']}, this version of the plugin reads {VERSION}; resume "
            "with the version that wrote it, or start a new output_dir"
        )
    return saved
