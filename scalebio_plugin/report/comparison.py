"""`compare.json` as `scalebio compare` leaves it beside its runs: what its numbers say, in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NotRequired

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import from_json
from typing_extensions import TypedDict  # pydantic takes the one of `typing` from Python 3.12 on

from .files import StrPath
from .parsed import Count, Many, Name, NotNegative, Text, at_most, content_of, parsed
from .words import counted, printable

SCHEMA = 1
MOST_BYTES = 64 * 2**20
MOST_SEEDS = 100  # that are looked at for how many would do
_OF_A_VERDICT = ("difference", "interval", "difference_seed_error", "more_seeds")

Measured = Annotated[float, Field(strict=True)]  # older versions wrote NaN where an arm diverged


class _Arm(TypedDict):
    losses: Annotated[dict[Text, Measured | None], Many]  # by seed; None where it diverged
    loss: Measured | None
    seed_error: Measured | None
    time: NotNegative | None
    time_with_learning: NotNegative | None
    difference: NotRequired[Measured]
    interval: NotRequired[Annotated[list[Measured], Field(min_length=2, max_length=2)]]
    difference_seed_error: NotRequired[Measured | None]
    verdict: NotRequired[Text]
    more_seeds: NotRequired[Count | None]


def _whole(arms: dict[str, Any]) -> dict[str, Any]:
    for arm in arms.values():
        missing = [key for key in _OF_A_VERDICT if key not in arm]
        if "verdict" in arm and missing:
            raise ValueError(f"an arm with a verdict must have {', '.join(missing)}")
        if (arm["time"] is None) != (arm["time_with_learning"] is None):
            raise ValueError("an arm must have both times or none")
    return arms


@pydantic_dataclass(frozen=True, config=ConfigDict(extra="ignore"))
class _Comparison:
    schema: Annotated[int, Field(ge=1, strict=True), at_most(SCHEMA)]
    reference: Name
    arms: Annotated[dict[Name, _Arm], Many, AfterValidator(_whole)]
    rows: Count = 2  # test rows; older versions did not say


_SHAPE = TypeAdapter(_Comparison)


def comparison_beside(folder: StrPath) -> dict[str, Any] | None:
    """Of the comparison that made the run of this `scalebio` folder, `DIR/run-SEED/scalebio`; None where none did.

    Raises:
        ValueError: There is a compare.json that is none.
    """
    run = Path(folder).resolve().parent
    path = run.parent / "compare.json"
    if not run.name.startswith("run-") or not path.is_file():
        return None
    content = content_of(path, MOST_BYTES)
    parsed(_SHAPE, content, str(path), "run `scalebio compare` again, which writes it anew, or move it away")
    document: dict[str, Any] = from_json(content)
    return document


class ComparedArm(NamedTuple):
    """An arm in words, a line of a table; `less` and `interval`: of the reference's loss less this arm's, nats."""

    name: str
    loss: str
    seed_error: str
    less: str
    interval: str
    verdict: str
    time: str


def compared(document: Mapping[str, Any]) -> list[ComparedArm]:
    """Best first, then those that diverged."""
    return [_in_words(name, document["arms"][name]) for name in best_first(document)]


def head_of(document: Mapping[str, Any]) -> list[str]:
    """Of that table."""
    return ["arm", "test loss", "± seeds", f"{document['reference']} less it", "95%", "verdict", "time"]


def best_first(document: Mapping[str, Any]) -> list[str]:
    """Names of the arms; those that diverged come last."""
    arms = document["arms"]
    return sorted(arms, key=lambda name: arms[name]["loss"] if is_finite(arms[name]["loss"]) else math.inf)


def is_finite(measured: float | None) -> bool:
    return measured is not None and math.isfinite(measured)


def _in_words(name: str, arm: Mapping[str, Any]) -> ComparedArm:
    if not is_finite(arm["loss"]):
        return ComparedArm(name, "diverged", "", "", "", "", _times(arm))
    told = is_finite(arm.get("difference"))
    return ComparedArm(
        name=name,
        loss=f"{arm['loss']:.4f}",
        seed_error="" if arm["seed_error"] is None else f"{arm['seed_error']:.4f}",
        less=f"{arm['difference']:+.4f}" if told else "",
        interval=" to ".join(f"{end:+.4f}" for end in arm["interval"]) if told else "",
        verdict=arm["verdict"] if told else "",
        time=_times(arm),
    )


def _times(arm: Mapping[str, Any]) -> str:
    if arm["time"] is None:
        return ""
    own = f"{arm['time']:.2f}"
    whole = arm["time_with_learning"]
    return own if whole == arm["time"] else f"{own}, {whole:.2f} with learning"


def sentences(document: Mapping[str, Any]) -> list[str]:
    """One for each arm that the reference was compared with, or that diverged."""
    reference, lines = document["reference"], []
    for name, arm in document["arms"].items():
        if spoilt := [seed for seed, loss in arm["losses"].items() if not is_finite(loss)]:
            plural = "s" if len(spoilt) > 1 else ""
            lines.append(f"{name} diverged: its test loss is no finite number on seed{plural} {', '.join(spoilt)}")
        if "verdict" not in arm or not is_finite(arm["difference"]):
            continue
        low, high = arm["interval"]
        numbers = f"{arm['difference']:+.4f} nats a token, {low:+.4f} to {high:+.4f}"
        side, *seeds = arm["verdict"].split(" on ")  # "better on one seed"
        if side == "cannot be told apart":
            lines.append(f"{reference} and {name} {side}: {numbers}; {_what_would(arm)}")
        elif seeds:
            lines.append(f"{reference} is {side} than {name} on {seeds[0]}: {numbers}; {_what_would(arm)}")
        else:
            lines.append(f"{reference} is {side} than {name}: {numbers}")
    if document.get("rows", 2) < 2:
        lines.append("one test row says nothing of others, so no arm is told from another; give test_datasets more")
    return [printable(line) for line in lines]


def _what_would(arm: Mapping[str, Any]) -> str:
    more = arm["more_seeds"]
    if arm["difference_seed_error"] is None:
        return "one seed says nothing of another, and is not in the interval; more seeds are needed"
    if more is None:
        return f"not even {MOST_SEEDS} seeds would, more test rows might"
    return f"{counted(more, 'more seed')} would, if the difference stayed"
