"""`cost.json`: what the steps of a run took. It is no part of `mixture.json`, which is the same after a resume."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass as pydantic_dataclass

from .files import StrPath, replace_file
from .parsed import Count, NotNegative, content_of, parsed
from .tables import time_in_words
from .words import counted

MOST_BYTES = 2**20
PhaseName = Literal["warmup", "learn", "after"]
_OF = {"warmup": "warmup", "learn": "learning", "after": "ordinary"}


@dataclass(frozen=True)
class PhaseCost:
    """Optimiser steps of a phase, those taken again after a resume too, and their seconds of wall time."""

    steps: Count = 0
    seconds: NotNegative = 0.0


@pydantic_dataclass(frozen=True, config=ConfigDict(strict=True, extra="ignore"))
class Cost:
    """Of the main process, evaluations and checkpoints left out.

    Attributes:
        peak_bytes: The most that tensors took on its device, in a step; None without one.
    """

    phases: dict[PhaseName, PhaseCost] = field(default_factory=dict)
    peak_bytes: Count | None = None


_SHAPE = TypeAdapter(Cost)


def write_cost(folder: StrPath, cost: Cost) -> None:
    replace_file(Path(folder) / "cost.json", json.dumps(asdict(cost), indent=2).encode() + b"\n")


def read_cost(folder: StrPath) -> Cost:
    """Of the run that this `scalebio` folder is of; nothing where an older version left none.

    Raises:
        ValueError: There is a file that is none.
    """
    path = Path(folder) / "cost.json"
    if not path.is_file():
        return Cost()
    return parsed(_SHAPE, content_of(path, MOST_BYTES), str(path), "delete it, which costs that line of the page alone")


def cost_lines(cost: Cost) -> Iterator[tuple[str, str]]:
    """What there is to say of it: a name and words."""
    total = sum(of.seconds for of in cost.phases.values())
    if total > 0:
        each = [_in_words(name, of, total) for name, of in cost.phases.items() if of.steps]
        yield "time of the steps", f"{time_in_words(total)}: {', '.join(each)}"
    learn, after = cost.phases.get("learn", PhaseCost()), cost.phases.get("after", PhaseCost())
    if learn.steps and after.steps and after.seconds > 0:
        times = learn.seconds / learn.steps / (after.seconds / after.steps)
        yield "a learning step", f"took {times:.1f} times as long as an ordinary one of this run"
    if cost.peak_bytes is not None:
        yield "peak memory", f"{cost.peak_bytes / 2**30:.1f} GiB of tensors on the device of the main process"


def _in_words(name: PhaseName, of: PhaseCost, total: float) -> str:
    return f"{counted(of.steps, f'{_OF[name]} step')} {of.seconds / total:.0%} ({of.seconds / of.steps:.3g} s each)"
