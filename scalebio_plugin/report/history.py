"""`history.jsonl`: one line per update of the mixture.

Arrays have the mixture updates (N) along their rows and the sources (S) along their columns.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, NotRequired

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict  # pydantic takes the one of `typing` from Python 3.12 on

from .files import StrPath
from .parsed import Count, Many, Name, NotNegative, Number, Positive, Text, content_of, parsed

Floats = NDArray[np.float64]
Ends = Annotated[list[Number], Field(min_length=2, max_length=2)]
MOST_BYTES = 4 * 2**30


class HistoryRecord(TypedDict):
    """One mixture update, one line of `history.jsonl`.

    Three differences of losses have three names. inner_loss and loss are means over what this batch holds; `pull`
    estimates L2_i(w) − L2_i(u) from it, for every source; `gap` is the pull less an average over the sources (see
    `algorithm.evidence`): above 0 a source loses weight. What is not required older versions did not write.
    """

    step: Positive  # optimiser step, from 1
    weights: Annotated[dict[Name, NotNegative], Field(min_length=1), Many]
    # 95%, see `algorithm.certainty.weight_interval`; None: the rule has none
    interval: NotRequired[Annotated[dict[Name, Ends], Many] | None]
    loss: Annotated[dict[Name, Number | None], Many]  # mean over the batch's; None if it had no example of the source
    inner_loss: Annotated[dict[Name, Number | None], Many]  # the same at the inner parameters
    pull: NotRequired[Annotated[dict[Name, Number], Many]]  # nats, never None
    gap: Annotated[dict[Name, Number], Many]  # nats
    gap_mean: NotRequired[Annotated[dict[Name, Number], Many]]  # over the last third to two thirds of the updates
    # standard error of gap_mean, autocorrelation counted; None: too few updates
    gap_se: NotRequired[Annotated[dict[Name, NotNegative], Many] | None]
    # largest z / z0 of all gaps: beyond ±1 they are not noise; below 0 the source gains
    evidence: NotRequired[Annotated[dict[Name, Number], Many]]
    verdict: NotRequired[Text]  # no signal, still moving, converged
    # with no signal: {the source nearest to being told: the step at which it would be if all stays as it is}; None: far
    told_at: NotRequired[Annotated[dict[Name, Positive], Field(max_length=1)] | None]
    units: dict[Name, Count]  # target tokens of the source in this batch; its sequences with `loss_unit: sequence`
    train_loss: Number
    val_loss: Number
    # of each validation set; None if the batch held none of it
    val_losses: NotRequired[Annotated[dict[Name, Number | None], Many]]
    val_weights: NotRequired[Annotated[dict[Name, NotNegative], Many]]  # of each; they move with `objective: worst`
    # {source: {set: cosine of their gradients at w}}, see `algorithm.alignment`; None without a probe in this step; a
    # cosine is None where the batches held none of the source or of the set
    goals: NotRequired[Annotated[dict[Name, Annotated[dict[Name, Number | None], Many]], Many] | None]
    learning_rate: Number


_LINE = TypeAdapter(HistoryRecord)
_BY_SOURCE = ("weights", "interval", "loss", "inner_loss", "pull", "gap", "gap_mean", "gap_se", "evidence", "goals")


def append_history(path: StrPath, record: HistoryRecord) -> None:
    """Add one line, handed to the operating system on return: a checkpoint saved later is never ahead of it."""
    with open(path, "ab") as file:
        file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")


def read_history(path: StrPath, *, cut_off: bool = False) -> list[HistoryRecord]:
    """All lines of the file, which are of the same sources.

    Args:
        cut_off: Leave out a last line that was written in part, as a run that is killed leaves it.

    Raises:
        ValueError: One is not; it is named, with the key.
    """
    history: list[HistoryRecord] = []
    content = content_of(path, MOST_BYTES)
    lines = content.splitlines()
    if cut_off and len(lines) > 1 and not content.endswith(b"\n") and not _is_record(lines[-1]):
        lines.pop()
    for number, line in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        remedy = "delete the line, or resume the run, which takes the history of its checkpoint"
        record = parsed(_LINE, line, where, remedy)
        for key in _of_others(record, history[0] if history else record):
            raise ValueError(f"{where}: {key} must be of the same sources and sets as the first line; {remedy}")
        history.append(record)
    return history


def readable_lines(content: bytes) -> bytes:
    """Those of a history that can be read: of one that was cut off, all but the last."""
    lines = content.splitlines()
    return b"".join(line + b"\n" for line in lines if _is_record(line))


def _is_record(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line)["step"], int)
    except (ValueError, TypeError, KeyError):
        return False


def _of_others(record: HistoryRecord, first: HistoryRecord) -> Iterator[str]:
    """Keys whose names of sources, or of validation sets, are not those of the first line."""
    of_sources: dict[str, Any] = {key: record.get(key) for key in _BY_SOURCE}
    yield from (key for key, of in of_sources.items() if of is not None and of.keys() != first["weights"].keys())
    sets, of_first = record.get("val_losses", {}), first.get("val_losses", {})
    if sets.keys() != of_first.keys():
        yield "val_losses"
    if record.get("val_weights", {}).keys() != sets.keys():
        yield "val_weights"
    if any(row.keys() != sets.keys() for row in (record.get("goals") or {}).values()):
        yield "goals"


def series(history: Sequence[HistoryRecord], key: str, names: Sequence[str]) -> Floats:  # (N, S), None as NaN
    rows: list[dict[str, float | None]] = [record[key] for record in history]  # type: ignore[literal-required]
    return np.array([[row[name] for name in names] for row in rows], dtype=np.float64)


def spread(count: int, most: int) -> list[int]:
    """At most so many of `count` positions, evenly spread, the first and the last among them."""
    return [round(i) for i in np.linspace(0, count - 1, min(count, most))]


def thinned(history: Sequence[HistoryRecord], most: int) -> list[HistoryRecord]:
    return [history[i] for i in spread(len(history), most)]


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
