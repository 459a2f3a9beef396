"""`history.jsonl`: one line per update of the mixture.

Arrays have the mixture updates (N) along their rows and the sources (S) along their columns.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from .files import StrPath

Floats = NDArray[np.float64]


class HistoryRecord(TypedDict):
    """One mixture update, one line of `history.jsonl`.

    Three differences of losses have three names. inner_loss and loss are means over what this batch holds; `pull`
    estimates L2_i(w) − L2_i(u) from it, for every source; `gap` is the pull less an average over the sources (see
    `algorithm.evidence`): above 0 a source loses weight.
    """

    step: int  # optimiser step, from 1
    weights: dict[str, float]
    interval: dict[str, list[float]] | None  # 95%, see `algorithm.certainty.weight_interval`; None: the rule has none
    loss: dict[str, float | None]  # the source's mean training loss in this batch; None if it had no example there
    inner_loss: dict[str, float | None]  # the same at the inner parameters
    pull: dict[str, float]  # nats, never None
    gap: dict[str, float]  # nats
    gap_mean: dict[str, float]  # over the last third to two thirds of the updates
    gap_se: dict[str, float] | None  # standard error of gap_mean, autocorrelation counted; None: too few updates
    evidence: dict[str, float]  # largest z / z0 of all gaps: beyond ±1 they are not noise; below 0 the source gains
    verdict: str  # no signal, still moving, converged
    units: dict[str, int]  # target tokens of the source in this batch; its sequences with `loss_unit: sequence`
    train_loss: float
    val_loss: float
    val_losses: dict[str, float | None]  # of each validation set; None if the batch held none of it
    val_weights: dict[str, float]  # of each in val_loss; they move with `objective: worst`
    # {source: {set: cosine of their gradients at w}}, see `algorithm.alignment`; None without a probe in this step; a
    # cosine is None where the batches held none of the source or of the set
    goals: dict[str, dict[str, float | None]] | None
    learning_rate: float


def append_history(path: StrPath, record: HistoryRecord) -> None:
    """Add one line, handed to the operating system on return: a checkpoint saved later is never ahead of it."""
    with open(path, "ab") as file:
        file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")


def read_history(path: StrPath) -> list[HistoryRecord]:
    return [_parse(path, number, line) for number, line in enumerate(Path(path).read_bytes().splitlines(), start=1)]


def readable_lines(content: bytes) -> bytes:
    """Those of a history that can be read: of one that was cut off, all but the last."""
    lines = content.splitlines()
    return b"".join(line + b"\n" for line in lines if _is_record(line))


def _is_record(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line)["step"], int)
    except (ValueError, TypeError, KeyError):
        return False


def _parse(path: StrPath, number: int, line: bytes) -> HistoryRecord:
    try:
        record: HistoryRecord = json.loads(line)
        int(record["step"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path}, line {number}: a line must be one JSON object with an integer 'step', got {line[:80]!r}; "
            "delete the line, or resume the run, which takes the history of its checkpoint"
        ) from error
    return record


def series(history: Sequence[HistoryRecord], key: str, names: Sequence[str]) -> Floats:  # (N, S), None as NaN
    rows: list[dict[str, float | None]] = [record[key] for record in history]  # type: ignore[literal-required]
    return np.array([[row[name] for name in names] for row in rows], dtype=np.float64)


def metrics(record: HistoryRecord) -> dict[str, float]:
    """An update as `scalebio/<what>/<source>`, for every dashboard the host reports to."""
    values = {"scalebio/val_loss": record["val_loss"]}
    for name in record["weights"]:
        values[f"scalebio/weight/{name}"] = record["weights"][name]
        values[f"scalebio/gap/{name}"] = record["gap"][name]
        values[f"scalebio/evidence/{name}"] = record["evidence"][name]
        loss = record["loss"][name]
        if loss is not None:
            values[f"scalebio/loss/{name}"] = loss
    if len(record["val_losses"]) > 1:
        for name, loss in record["val_losses"].items():
            values[f"scalebio/val_weight/{name}"] = record["val_weights"][name]
            if loss is not None:
                values[f"scalebio/val_loss/{name}"] = loss
    return values
