"""`mixture.json`: the weights that a run learned, how sure they are, and what they were learned on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .files import StrPath, replace_file
from .summary import Cosine, Goals, SourceSummary, largest_first

SCHEMA = 1


@dataclass(frozen=True)
class Provenance:
    """What `mixture.json` says of the run as a whole.

    `tokens` and `examples` count each source's whole dataset; `layer_steps`: for how many optimiser steps each
    transformer block trained, under LISA; `drawn`: rows drawn of each source, where rows are drawn by source; `keep`:
    which set the run saves, w (`model`) or u (`inner`); `validation`: weight, tokens and examples of each set.
    """

    penalty: float
    estimator: str
    loss_unit: str
    mixture_update: str
    steps: int
    updates: int
    seed: int
    versions: dict[str, str]
    fingerprint: dict[str, str]
    tokens: dict[str, int]
    examples: dict[str, int]
    layer_steps: list[int] | None = None
    drawn: dict[str, int] | None = None
    keep: str = "model"
    validation: dict[str, dict[str, float]] | None = None


def mixture_document(
    summaries: Mapping[str, SourceSummary], facts: Provenance, verdict: str | None, goals: Goals | None = None
) -> dict[str, Any]:
    """The content of `mixture.json`. Weights are divided by their sum, which float32 leaves a rounding away from 1."""
    total = math.fsum(summary.weight for summary in summaries.values())
    ordered = {name: replace(summary, weight=summary.weight / total) for name, summary in largest_first(summaries)}
    run = asdict(facts)
    tokens, examples = run.pop("tokens"), run.pop("examples")
    sources = {
        name: asdict(summary) | {"tokens": tokens[name], "examples": examples[name]}
        for name, summary in ordered.items()
    }
    weights = {name: summary.weight for name, summary in ordered.items()}
    helped = None if goals is None else {name: _as_values(goals[name]) for name in ordered}
    return {"schema": SCHEMA, "weights": weights, "verdict": verdict, "sources": sources, "goals": helped, **run}


def summaries_of(document: Mapping[str, Any]) -> dict[str, SourceSummary]:
    """What `mixture_document` was given, back from its document; largest weight first."""
    fields = SourceSummary.__dataclass_fields__.keys()
    known = {name: {key: source[key] for key in fields & source.keys()} for name, source in document["sources"].items()}
    summaries = {name: SourceSummary(**source) for name, source in known.items()}
    return {name: replace(one, interval=_pair(one.interval)) for name, one in summaries.items()}


def _as_values(row: Mapping[str, Cosine]) -> dict[str, Any]:
    return {goal: asdict(cosine) for goal, cosine in row.items()}


def goals_of(document: Mapping[str, Any]) -> Goals | None:
    """The cosines that `mixture_document` was given; None where there was no probe, or what wrote it had none."""
    goals = document.get("goals")
    return goals and {name: {goal: Cosine(**of) for goal, of in row.items()} for name, row in goals.items()}


def _pair(read: Sequence[float] | None) -> tuple[float, float] | None:
    return None if read is None else (read[0], read[1])  # JSON gives a list


def write_mixture(path: StrPath, document: Mapping[str, Any]) -> None:
    """Replace the file in one move; a document that `read_mixture` would refuse is never written."""
    _check_mixture(path, document)
    replace_file(path, json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n")


def read_mixture(path: StrPath) -> dict[str, Any]:
    """The document, once its schema is ours and its weights are finite, >= 0 and sum to 1; else a ValueError."""
    try:
        document: dict[str, Any] = json.loads(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} must be JSON, got: {error}; give the mixture.json that a run wrote") from error
    _check_mixture(path, document)
    return document


def _check_mixture(path: StrPath, document: Any) -> None:
    schema = document.get("schema") if isinstance(document, Mapping) else None
    if schema != SCHEMA:
        raise ValueError(f"{path}: schema must be {SCHEMA}, got {schema!r}; give a mixture.json of this version")
    weights = document.get("weights")
    if not isinstance(weights, Mapping) or not weights:
        raise ValueError(f"{path}: weights must map source names to numbers, got {weights!r}; give one to each source")
    for name, weight in weights.items():
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not is_number or not math.isfinite(weight) or weight < 0:
            raise ValueError(f"{path}: weights[{name!r}] must be a finite number >= 0, got {weight!r}; correct it")
    total = math.fsum(weights.values())
    if abs(total - 1) > 1e-6:
        raise ValueError(f"{path}: weights must sum to 1 within 1e-6, got {total:.8g}; divide each by that sum")
