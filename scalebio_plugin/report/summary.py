"""What a run leaves behind about its mixture: the history, `mixture.json` with uncertainties, tables.

Everything works on plain records and without torch, so a report can be redrawn on any machine. Arrays have the mixture
updates (N) along their rows and the sources (S) along their columns.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

SCHEMA = 1

StrPath = str | os.PathLike[str]
Floats = NDArray[np.float64]


class HistoryRecord(TypedDict):
    """One mixture update, one line of `history.jsonl`."""

    step: int  # optimiser step, from 1
    weights: dict[str, float]
    loss: dict[str, float | None]  # the source's mean training loss in this batch; None if it had no example there
    inner_loss: dict[str, float | None]  # the same at the inner parameters
    gap: dict[str, float]  # estimate of the source's loss at the model less that at the inner parameters; never None
    units: dict[str, int]  # target tokens of the source in this batch; its sequences with `loss_unit: sequence`
    train_loss: float
    val_loss: float
    learning_rate: float


@dataclass(frozen=True)
class SourceSummary:
    """One source at the end of a history; `summarise` defines each estimate."""

    weight: float
    weight_average: float
    loss: float | None
    inner_loss: float | None
    gap: float
    gap_se: float | None

    @property
    def is_told_from_average(self) -> bool:
        """Whether the gap is more than two standard errors from 0; never in a control, in which every gap is 0."""
        return self.gap_se is not None and abs(self.gap) > 2 * self.gap_se


@dataclass(frozen=True)
class RunFacts:
    """What `mixture.json` says of the run as a whole.

    `tokens` and `examples` count each source's whole dataset; `layer_steps`: for how many optimiser steps each
    transformer block trained, under LISA.
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


def append_history(path: StrPath, record: HistoryRecord) -> None:
    """Add one line, handed to the operating system on return: a checkpoint saved later is never ahead of it."""
    with open(path, "ab") as file:
        file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")


def read_history(path: StrPath) -> list[HistoryRecord]:
    return [_parse(path, number, line) for number, line in enumerate(Path(path).read_bytes().splitlines(), start=1)]


def truncate_history(path: StrPath, last_step: int) -> None:
    """Forget the updates after optimiser step `last_step`, as a resume from that step's checkpoint must.

    The lines kept stay byte-identical. A last line without its newline was cut by a kill, so it is younger than any
    checkpoint and is dropped. A run that had no update yet has no file, and still has none afterwards.
    """
    if not Path(path).exists():
        return
    lines = Path(path).read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    kept = [line for number, line in enumerate(lines, start=1) if _parse(path, number, line)["step"] <= last_step]
    replace_file(path, b"".join(kept))


def _parse(path: StrPath, number: int, line: bytes) -> HistoryRecord:
    try:
        record: HistoryRecord = json.loads(line)
        int(record["step"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path}, line {number}: a line must be one JSON object with an integer 'step', got {line[:80]!r}; "
            "delete the line, or resume the run, which drops a half-written last line"
        ) from error
    return record


def replace_file(path: StrPath, content: bytes) -> None:
    temporary = Path(f"{os.fspath(path)}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def summarise(history: Sequence[HistoryRecord], names: Sequence[str]) -> dict[str, SourceSummary]:
    """The state of every source at the end of a history of at least one update.

    weight            that of the last update.
    weight_average    the mean over the last quarter of the updates (rounded up).
    loss, inner_loss  means over those batches of the same quarter that held the source; None if none did.
    gap               the mean over the last half of the updates (rounded up) of g_i - sum_j p_j g_j: what the
                      validation pull costs this source beyond the mixture's average. Above 0 the source loses weight.
    gap_se            the standard error of `gap`, see `batch_means_error`; None if that half is below 4 updates.
    """
    if not history:
        raise ValueError("a summary needs at least one mixture update, got an empty history; summarise after the first")
    weights, loss, inner_loss = (series(history, key, names) for key in ("weights", "loss", "inner_loss"))
    quarter, half = -math.ceil(len(history) / 4), -math.ceil(len(history) / 2)
    gap = _centred_gap(history[half:], names)
    return {
        name: SourceSummary(
            weight=float(weights[-1, i]),
            weight_average=float(weights[quarter:, i].mean()),
            loss=_mean_of_seen(loss[quarter:, i]),
            inner_loss=_mean_of_seen(inner_loss[quarter:, i]),
            gap=float(gap[:, i].mean()),
            gap_se=batch_means_error(gap[:, i]),
        )
        for i, name in enumerate(names)
    }


def batch_means_error(values: Floats, most_batches: int = 10) -> float | None:
    """Standard error of the mean of an autocorrelated series, by non-overlapping batch means; None below 4 values.

    Successive gaps share most of their parameters, so s / sqrt(n) is too small. The means of k stretches of m values
    are nearly independent once m passes the correlation time, and m times their variance estimates the long-run
    variance (Schmeiser 1982, Operations Research 30(3), who finds 10 to 30 stretches enough). Here k is n // 2 in a
    short series, so that m >= 2, and the first n - k m values stay out of the variance. Still too small where the
    series spans few correlation times; larger where it drifts.
    """
    if len(values) < 4:
        return None
    batches = min(most_batches, len(values) // 2)
    size = len(values) // batches
    means = values[-batches * size :].reshape(batches, size).mean(axis=1)
    return math.sqrt(size * float(means.var(ddof=1)) / len(values))


def series(history: Sequence[HistoryRecord], key: str, names: Sequence[str]) -> Floats:  # (N, S), None as NaN
    rows: list[dict[str, float | None]] = [record[key] for record in history]  # type: ignore[literal-required]
    return np.array([[row[name] for name in names] for row in rows], dtype=np.float64)


def _centred_gap(history: Sequence[HistoryRecord], names: Sequence[str]) -> Floats:  # (N, S)
    gap = series(history, "gap", names)
    average: Floats = (series(history, "weights", names) * gap).sum(axis=1, keepdims=True)
    return gap - average


def _mean_of_seen(values: Floats) -> float | None:
    seen = values[~np.isnan(values)]
    return float(seen.mean()) if len(seen) else None


def mixture_document(summaries: Mapping[str, SourceSummary], facts: RunFacts) -> dict[str, Any]:
    """The content of `mixture.json`. Weights are divided by their sum, which float32 leaves a rounding away from 1."""
    total = math.fsum(summary.weight for summary in summaries.values())
    ordered = {name: replace(summary, weight=summary.weight / total) for name, summary in _largest_first(summaries)}
    run = asdict(facts)
    tokens, examples = run.pop("tokens"), run.pop("examples")
    sources = {
        name: asdict(summary) | {"tokens": tokens[name], "examples": examples[name]}
        for name, summary in ordered.items()
    }
    weights = {name: summary.weight for name, summary in ordered.items()}
    return {"schema": SCHEMA, "weights": weights, "sources": sources, **run}


def summaries_of(document: Mapping[str, Any]) -> dict[str, SourceSummary]:
    """What `mixture_document` was given, back from its document; largest weight first."""
    fields = SourceSummary.__dataclass_fields__
    return {name: SourceSummary(**{key: source[key] for key in fields}) for name, source in document["sources"].items()}


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


def _largest_first(summaries: Mapping[str, SourceSummary]) -> list[tuple[str, SourceSummary]]:
    return sorted(summaries.items(), key=lambda item: -item[1].weight)


def weights_table(summaries: Mapping[str, SourceSummary]) -> str:
    """The table at the end of a run. A star marks the sources whose gap is within two standard errors of 0."""
    decimals = _decimals(summary.gap for summary in summaries.values())
    rows, any_star = [("source", "weight", "gap", "s.e.", "loss")], False
    for name, summary in _largest_first(summaries):
        star = summary.gap_se is not None and not summary.is_told_from_average
        any_star |= star
        error = _number(summary.gap_se, decimals)
        gap = f"{summary.gap:+.{decimals}f}"
        rows.append((shorten(name) + " *" * star, _number(summary.weight), gap, error, _number(summary.loss)))
    hint = "\n* not distinguishable from the average: |gap| is within 2 s.e." if any_star else ""
    return _align(rows) + hint


def weights_line(weights: Mapping[str, float], most: int = 20) -> str:
    """The weights in one line, largest first."""
    names = sorted(weights, key=lambda name: -weights[name])
    text = ", ".join(f"{shorten(name)} {_number(weights[name])}" for name in names[:most])
    return text + (f", and {len(names) - most} more" if len(names) > most else "")


def layers_line(layer_steps: Sequence[int]) -> str:
    """Which blocks LISA trained, and for how long."""
    never = [str(layer) for layer, steps in enumerate(layer_steps) if steps == 0]
    trained = [steps for steps in layer_steps if steps]
    line = f"LISA moved {len(trained)} of {len(layer_steps)} blocks"
    if trained:
        span = f"{min(trained)} to {max(trained)}" if min(trained) < max(trained) else str(trained[0])
        line += f", each for {span} optimiser steps"
    return line + (f"; never drawn: {', '.join(never)}" if never else "")


def progress_table(record: HistoryRecord, most_rows: int = 20) -> str:
    """One update for the running console. `gap` is centred as in `summarise`, but one batch's, hence noisy."""
    names = sorted(record["weights"], key=lambda name: -record["weights"][name])
    gaps = dict(zip(names, _centred_gap([record], names)[0].tolist(), strict=True))
    decimals = _decimals(gaps.values())
    rows = [("source", "weight", "loss", "gap")]
    for name in names[:most_rows]:
        loss, weight = _number(record["loss"][name]), _number(record["weights"][name])
        rows.append((shorten(name), weight, loss, f"{gaps[name]:+.{decimals}f}"))
    rest = names[most_rows:]
    rest_weight = sum(record["weights"][name] for name in rest)
    return _align(rows) + (f"\n... and {len(rest)} more (sum of weights {rest_weight:.4f})" if rest else "")


def _align(rows: Sequence[tuple[str, ...]]) -> str:
    """The first column flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    layout = f"{{:<{widths[0]}}}" + "".join(f"  {{:>{width}}}" for width in widths[1:])
    return "\n".join(layout.format(*row) for row in rows)


def _number(value: float | None, decimals: int = 4) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"


def _decimals(values: Iterable[float]) -> int:
    """Decimals that leave the largest of the values at least three significant digits."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    return max(2, 2 - math.floor(math.log10(largest))) if largest else 2


def shorten(name: str, most: int = 40) -> str:
    if len(name) <= most:
        return name
    head = (most - 3) // 2
    return name[:head] + "..." + name[-(most - 3 - head) :]
