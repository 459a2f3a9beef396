"""`mixture.json`: the weights that a run learned, how sure they are, and what they were learned on."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    TypeAdapter,
    model_validator,
)
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import from_json
from typing_extensions import TypedDict  # pydantic takes the one of `typing` from Python 3.12 on

from .files import StrPath, replace_file
from .identity import Part
from .leaks import Leaks
from .parsed import Count, Many, Name, NotNegative, Positive, Text, at_most, content_of, parsed
from .summary import Cosine, Goals, SourceSummary, largest_first
from .tables import goals_table, weights_table
from .words import printable

SCHEMA = 1
MOST_BYTES = 256 * 2**20
_STRICT = ConfigDict(strict=True, extra="ignore")


class ValidationSet(TypedDict):
    """Its part of the validation loss, and what it holds."""

    weight: NotNegative
    tokens: Positive
    examples: Positive


@dataclass(frozen=True)
class Provenance:
    """What `mixture.json` says of the run as a whole.

    `tokens` and `examples` count each source's whole dataset; `layer_steps`: for how many optimiser steps each
    transformer block trained, under LISA; `drawn`: rows drawn of each source, where rows are drawn by source; `keep`:
    which set the run saves, w (`model`) or u (`inner`); `validation`: weight, tokens and examples of each set;
    `digests`: of each source's rows (`identity.Part`); `config`: name of its file; `output_dir`: as the config has it;
    `settings`: what else was set, plain values by key; `shared_rows`: by source and other source, examples of the
    former that stand in the latter, too.
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
    validation: dict[str, ValidationSet] | None = None
    base_model: str | None = None
    digests: dict[str, str] | None = None
    config: str | None = None
    output_dir: str | None = None
    settings: dict[str, Any] | None = None
    leaks: Leaks | None = None
    shared_rows: dict[str, dict[str, int]] | None = None


def mixture_document(
    summaries: Mapping[str, SourceSummary],
    facts: Provenance,
    verdict: str | None,
    goals: Goals | None = None,
    told_at: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """The content of `mixture.json`. Weights are divided by their sum, which float32 leaves a rounding away from 1."""
    total = math.fsum(summary.weight for summary in summaries.values())
    ordered = {name: replace(summary, weight=summary.weight / total) for name, summary in largest_first(summaries)}
    run = asdict(facts)
    columns = {"tokens": run.pop("tokens"), "examples": run.pop("examples"), "digest": run.pop("digests")}
    sources = {
        name: asdict(summary) | {key: column[name] for key, column in columns.items() if column is not None}
        for name, summary in ordered.items()
    }
    weights = {name: summary.weight for name, summary in ordered.items()}
    helped = {name: {goal: asdict(of) for goal, of in goals[name].items()} for name in ordered} if goals else None
    said = {"verdict": verdict, "told_at": told_at}
    return {"schema": SCHEMA, "weights": weights, **said, "sources": sources, "goals": helped, **run}


def summaries_of(document: Mapping[str, Any]) -> dict[str, SourceSummary]:
    """What `mixture_document` was given, back from its document; largest weight first."""
    return _SUMMARIES.validate_python(document["sources"])


def fractions_of_rows(document: Mapping[str, Any]) -> dict[str, float]:
    """Of rows, by source: what `apply` samples by, p over the mean target tokens of a sequence."""
    sources = document["sources"]
    rows = {name: document["weights"][name] * of["examples"] / of["tokens"] for name, of in sources.items()}
    total = sum(rows.values())
    return {name: of / total for name, of in rows.items()}


def times_drawn(document: Mapping[str, Any], rows: int) -> dict[str, float]:
    """How often so many rows of the mixture have each row of a source drawn, if none is held back."""
    return {name: rows * of / document["sources"][name]["examples"] for name, of in fractions_of_rows(document).items()}


def rows_of_an_epoch(document: Mapping[str, Any]) -> int:
    return sum(of["examples"] for of in document["sources"].values())


def parts_of(document: Mapping[str, Any]) -> dict[str, Part]:
    """What is known of the rows of its sources; empty where what wrote it did not say, or no run did."""
    sources = document.get("sources") or {}
    parts = {name: Part(of["examples"], of["digest"]) for name, of in sources.items() if of.get("digest")}
    return parts if parts.keys() == sources.keys() else {}


def goals_of(document: Mapping[str, Any]) -> Goals | None:
    """The cosines that `mixture_document` was given; None where there was no probe, or what wrote it had none."""
    return _GOALS.validate_python(document.get("goals"))


def tables_of(document: Mapping[str, Any]) -> list[str]:
    """As text: the weights, and which source helps which validation set, where that was measured."""
    weights = weights_table(summaries_of(document), document.get("verdict"), document.get("told_at"))
    helped = goals_table(goals_of(document))
    return [weights] if helped is None else [weights, helped]


def write_mixture(path: StrPath, document: Mapping[str, Any]) -> None:
    """Replace the file in one move; a document that `read_mixture` would refuse is never written."""
    parsed(_MIXTURE, json.dumps(document).encode(), str(path), _REMEDY)
    valid = {**document, "penalty": _INFINITE} if document.get("penalty") == math.inf else document
    replace_file(path, json.dumps(valid, indent=2, ensure_ascii=False).encode() + b"\n")


def mixture_at(path: StrPath) -> Path:
    """The mixture.json that is meant by its path, by its folder's or by a run's.

    Raises:
        FileNotFoundError: There is none.
    """
    given = Path(path)
    places = [given / "scalebio" / "mixture.json", given / "mixture.json"] if given.is_dir() else [given]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(f"no file {places[0]}; give a mixture.json, or the output_dir of a run that has saved one")


def read_mixture(path: StrPath, needs: Collection[str] = ("weights",)) -> dict[str, Any]:
    """The document, once its schema is ours and its weights are finite, >= 0 and sum to 1.

    Args:
        needs: Keys without which its reader has nothing to go on.

    Raises:
        ValueError: It is none, or lacks one of them.
    """
    content = content_of(path, MOST_BYTES)
    parsed(_MIXTURE, content, str(path), _REMEDY)
    document: dict[str, Any] = from_json(content)
    if "penalty" in document:
        document["penalty"] = _number_of(document["penalty"])
    missing = [key for key in needs if document.get(key) is None]
    if missing:
        raise ValueError(f"{path}: {', '.join(missing)} must be there for this; {_REMEDY}")
    if "sources" in needs:
        _refuse_edited(path, document)
    return document


def _refuse_edited(path: StrPath, document: Mapping[str, Any]) -> None:
    """Weights may be set by hand, and are then what `apply` takes; but nothing that was learned."""
    edited = [name for name, of in document["sources"].items() if abs(of["weight"] - document["weights"][name]) > 1e-6]
    if edited:
        names = ", ".join(map(printable, edited[:5]))
        raise ValueError(
            f"{path}: sources has other weights than weights has of {names}: those were set by hand, "
            "which scalebio.apply takes; to show what was learned, set them back"
        )


_REMEDY = "give a mixture.json as a run wrote it"


_INFINITE = "inf"  # JSON has no such number; older versions wrote `Infinity`


def _number_of(penalty: Any) -> Any:
    return math.inf if penalty == _INFINITE else penalty


def _whole(weights: dict[str, float]) -> dict[str, float]:
    total = math.fsum(weights.values())
    if abs(total - 1) > 1e-6:
        raise ValueError(f"must sum to 1 within 1e-6, got {total:.8g}; divide each by that sum")
    return weights


@pydantic_dataclass(frozen=True, kw_only=True, config=_STRICT)
class _Source(SourceSummary):
    tokens: Positive
    examples: Positive
    digest: Text | None = None


class Mixture(BaseModel, frozen=True):
    """What `mixture.json` may hold. Of the weights alone is it always; `show` and `report` need more (`needs`)."""

    model_config = _STRICT

    schema_: Annotated[int, Field(ge=1), at_most(SCHEMA)] = Field(alias="schema")
    weights: Annotated[dict[Name, NotNegative], Field(min_length=1), Many, AfterValidator(_whole)]
    verdict: Text | None = None
    told_at: Annotated[dict[Name, Positive], Field(max_length=1)] | None = None
    sources: dict[Name, _Source] | None = None
    goals: dict[Name, Annotated[dict[Name, Cosine], Field(min_length=1), Many]] | None = None
    penalty: Annotated[float, Field(gt=0.0), BeforeValidator(_number_of)] | None = None
    estimator: Text | None = None
    loss_unit: Text | None = None
    mixture_update: Text | None = None
    steps: Count | None = None
    updates: Count | None = None
    seed: int | None = None
    versions: dict[Text, Text] | None = None
    fingerprint: dict[Text, Text] | None = None
    layer_steps: Annotated[list[Count], Many] | None = None
    drawn: dict[Name, Count] | None = None
    keep: Text = "model"
    validation: Annotated[dict[Name, ValidationSet], Many] | None = None
    base_model: Name | None = None
    config: Name | None = None
    output_dir: Name | None = None
    settings: Annotated[dict[Text, JsonValue], Many] | None = None
    leaks: Leaks | None = None
    shared_rows: dict[Name, Annotated[dict[Name, Positive], Many]] | None = None

    @model_validator(mode="after")
    def _of_the_same_sources(self) -> Mixture:
        for key in ("sources", "goals", "drawn"):
            of = getattr(self, key)
            if of is not None and of.keys() != self.weights.keys():
                raise ValueError(f"{key} must be of the sources that weights has; correct the names")
        if any(not {one, *others} <= self.weights.keys() for one, others in (self.shared_rows or {}).items()):
            raise ValueError("shared_rows must be of sources that weights has; correct the names")
        if len({tuple(row) for row in (self.goals or {}).values()}) > 1:
            raise ValueError("goals must have the same validation sets for every source; correct the names")
        return self


_MIXTURE = TypeAdapter(Mixture)
_SUMMARIES = TypeAdapter(dict[str, SourceSummary])
_GOALS: TypeAdapter[Goals | None] = TypeAdapter(Goals | None)
