"""Which run a page is of, and how its learning went: lines for a reader who has the page alone."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from .cost import cost_lines, read_cost
from .files import StrPath
from .history import HistoryRecord, series
from .markup import pairs, shown

ENDS = 20  # updates, at most, that the loss at the start and at the end is a mean over
MOVERS = 3  # sources that are named with what they moved


def about(folder: StrPath, document: Mapping[str, Any], history: Sequence[HistoryRecord]) -> str:
    """A line for each thing that is known; what an older version did not write is left out.

    Args:
        folder: Of the run, whose mixture.json has the date and whose next.yml goes on from here.
        history: As far as the document goes.
    """
    return pairs(
        [
            *((name, shown(str(document[key]))) for name, key in _NAMED if document.get(key)),
            *_date(Path(folder, "mixture.json")),
            *_validation(document),
            *_validation_loss(history),
            *_settled(history),
            *((name, shown(said)) for name, said in cost_lines(read_cost(folder))),
            *_next(Path(folder), document),
        ]
    )


_NAMED = (("config", "config"), ("base model", "base_model"), ("output folder", "output_dir"))


def _date(mixture: Path) -> Iterator[tuple[str, str]]:
    if mixture.is_file():
        written = datetime.fromtimestamp(mixture.stat().st_mtime, UTC)
        yield "date", f"{written:%Y-%m-%d %H:%M} UTC (of mixture.json)"


def _validation(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    sets = document.get("validation") or {}
    if sets:
        rows, tokens = (sum(of[key] for of in sets.values()) for key in ("examples", "tokens"))
        what = shown(next(iter(sets))) if len(sets) == 1 else f"{len(sets)} sets"
        yield "validation data", f"{what}: {rows:,} sequences, {tokens:,} target tokens"


def _validation_loss(history: Sequence[HistoryRecord]) -> Iterator[tuple[str, str]]:
    if (said := validation_loss(history)) is not None:
        yield "validation loss", said


def validation_loss(history: Sequence[HistoryRecord]) -> str | None:
    """That at both ends of a history; None of a single update."""
    if len(history) < 2:
        return None
    losses, few = [record["val_loss"] for record in history], min(ENDS, -(-len(history) // 4))
    start, end = np.mean(losses[:few]), np.mean(losses[-few:])
    over = f"{few} updates" if few > 1 else "update"
    return f"{start:.3f} at the start, {end:.3f} at the end (first and last {over})"


def _settled(history: Sequence[HistoryRecord]) -> Iterator[tuple[str, str]]:
    """How far the weights moved in the last quarter of the steps that learned."""
    if len(history) < 4:
        return
    first, last = history[0]["step"], history[-1]["step"]
    begun = [record for record in history if record["step"] <= first + 0.75 * (last - first)][-1]
    names = list(begun["weights"])
    was, now = series([begun, history[-1]], "weights", names)
    moved = np.argsort(-np.abs(now - was), kind="stable")[:MOVERS]
    each = [f"{shown(names[i])} {was[i]:.3f} → {now[i]:.3f}" for i in moved if abs(now[i] - was[i]) >= 5e-4]
    total = f"{np.abs(now - was).sum() / 2:.3f} of the weight changed its source"
    after = f"after step {begun['step']} of {last}, the last quarter of the learning"
    yield "still moving?", f"{total} {after}" + (f": {', '.join(each)}" if each else "")


def _next(folder: Path, document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    output_dir, config = document.get("output_dir"), document.get("config")
    if Path(folder, "next.yml").is_file():
        path = Path(output_dir, "scalebio", "next.yml") if output_dir else folder / "next.yml"
        yield "next run", f"your config on this mixture is in next.yml:{_command('axolotl', 'train', str(path))}"
    if config:
        yield "is it better?", f"the mixture beside others, on test rows:{_command('scalebio', 'compare', config)}"


def _command(*words: str) -> str:
    return f"<pre>{shown(shlex.join(words))}</pre>"
