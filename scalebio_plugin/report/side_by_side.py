"""Several runs beside each other: one table for a terminal, and one page."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from .about_run import validation_loss
from .files import StrPath, replace_file
from .history import HistoryRecord, read_history
from .markup import cell, page, shown, table
from .mixture_file import read_mixture, summaries_of
from .picture import drawn_mixture, embedded
from .summary import SourceSummary
from .tables import align, by_weight, interval_in_words, shorten, verdict_in_words

_WIDTH = 24  # of a run's name in a terminal


@dataclass(frozen=True)
class Learned:
    """A run by what it left.

    Attributes:
        label: What it is called here.
        document: Its mixture.json.
        history: As far as the document goes; empty where there is none beside it, or none was asked for.
    """

    label: str
    document: Mapping[str, Any]
    history: Sequence[HistoryRecord]

    @property
    def summaries(self) -> dict[str, SourceSummary]:
        return summaries_of(self.document)


def learned_at(mixture: Path, label: str, *, with_history: bool = True) -> Learned:
    """The run that a mixture.json is of."""
    document, history = read_mixture(mixture, needs=("sources",)), mixture.with_name("history.jsonl")
    read = read_history(history, cut_off=True) if with_history and history.is_file() else []
    return Learned(label, document, [record for record in read if record["step"] <= document.get("steps", 0)])


def names_of(runs: Sequence[Learned]) -> list[str]:
    """The sources of all runs, the one of the largest weight in any of them first."""
    weights: dict[str, float] = {}
    for run in runs:
        for name, weight in run.document["weights"].items():
            weights[name] = max(weight, weights.get(name, 0.0))
    return by_weight(weights)


def weights_beside(runs: Sequence[Learned]) -> str:
    """Weights by source and run, and the verdicts. A star marks what is not told from the average of its run."""
    summaries = [run.summaries for run in runs]
    rows = [("source", *headings([run.label for run in runs]))]
    for name in names_of(runs):
        rows.append((shorten(name), *(_weight(of[name]) if name in of else "-" for of in summaries)))
    facts = ("config", "verdict", "steps", "penalty")
    told = {name: [_fact(run.document.get(name)) for run in runs] for name in facts}
    any_star = any(" *" in one for row in rows for one in row[1:])
    hint = "\n* not told from the average of its run by all updates together" if any_star else ""
    return align([*rows, *((name, *cells) for name, cells in told.items() if set(cells) != {"-"})]) + hint


def headings(labels: Sequence[str]) -> list[str]:
    """Of paths what tells them apart, in the width of a column; none is there twice."""
    parts = [label.removesuffix("/scalebio/mixture.json").split("/") for label in labels]
    common = min(len(os.path.commonprefix(parts)), *(len(of) - 1 for of in parts))
    names = ["/".join(of[common:]) for of in parts]
    short = [shorten(name, _WIDTH) for name in names]
    if len(set(short)) == len(short):
        return short
    return [shorten(f"{number}: {name}", _WIDTH) for number, name in enumerate(names, start=1)]


def _weight(summary: SourceSummary) -> str:
    noise = summary.gap_se is not None and not summary.is_told_from_average
    return f"{summary.weight:.4f}" + " *" * noise


def _fact(value: Any) -> str:
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else shorten(str(value), _WIDTH)


def write_side_by_side(path: StrPath, runs: Sequence[Learned]) -> None:
    """One page of them all, in one file."""
    title = f"{len(runs)} learned mixtures side by side"
    parts = [
        f"<h1>{title}</h1>",
        "<p>Weights of the training loss, with their 95% intervals. Grey: not told from the average of the sources "
        "of its run. Weights of runs on other data, or tuned for other rows, say nothing of each other.</p>",
        f'<div class="goals">{_weights(runs)}</div>',
        "<h2>The runs</h2>",
        f'<div class="goals facts">{_facts(runs)}</div>',
        *(f"<h2>{shown(run.label)}</h2>{_picture(run)}" for run in runs if run.history),
    ]
    replace_file(path, page(title, parts, style=".facts th { text-align: left }").encode())


def _head(first: str, runs: Sequence[Learned]) -> list[str]:
    return [first, *(shown(run.label) for run in runs)]


def _weights(runs: Sequence[Learned]) -> str:
    summaries = [run.summaries for run in runs]
    lines = [[cell(shown(name), "text"), *(_weight_cell(of.get(name)) for of in summaries)] for name in names_of(runs)]
    return table(lines, _head("source", runs))


def _weight_cell(summary: SourceSummary | None) -> str:
    if summary is None:
        return cell("–", "grey")
    interval = "" if summary.interval is None else f'<div class="grey">{interval_in_words(summary.interval)}</div>'
    return cell(f"{summary.weight:.4f}{interval}", "" if summary.is_told_from_average else "grey")


def _facts(runs: Sequence[Learned]) -> str:
    facts: dict[str, Callable[[Learned], str | None]] = {
        "verdict": lambda run: _of(run, "verdict", lambda verdict: verdict_in_words(verdict, ": ", "")),
        "validation loss": lambda run: validation_loss(run.history),
        **{name.replace("_", " "): partial(_of, key=name) for name in ("config", "base_model", "penalty", "steps")},
    }
    told = {name: [of(run) for run in runs] for name, of in facts.items()}
    lines = [
        [cell(name, "text"), *(cell(shown(one or "–"), "text") for one in said)]
        for name, said in told.items()
        if any(said)
    ]
    return table(lines, _head("", runs))


def _of(run: Learned, key: str, in_words: Callable[[Any], str] = "{:}".format) -> str | None:
    value = run.document.get(key)
    return None if value is None else in_words(value)


def _picture(run: Learned) -> str:
    picture = drawn_mixture(run.history, list(run.document["weights"]))
    return embedded(picture, f"Weights and losses of {shown(run.label)}")
