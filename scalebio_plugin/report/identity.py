"""What a run is: what a checkpoint or a mixture is of is what goes on from it, or the difference is named."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field, TypeAdapter

from .files import StrPath, replace_file
from .parsed import Count, Many, Name, Text, at_most, content_of, parsed

FILE = "scalebio/run.json"  # of a checkpoint
SCHEMA = 1
MOST_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Part:
    """Of the data: a source, or a validation set. The digest is of its tokens and labels, whatever their order."""

    rows: Count
    digest: Text


class Rule(NamedTuple):
    """What a difference comes to.

    Attributes:
        what: That differs, in words.
        may_go_on: Whether a run can be right that goes on with what it has itself (`on_mismatch: warn`).
    """

    what: str
    may_go_on: bool


RULES = {
    "sources": Rule("names or order of the sources: one was added, dropped, renamed or moved", False),
    "rows": Rule("number of rows of a source", False),
    "texts": Rule("rows of a source were edited", True),
    "order": Rule("order of the rows", True),
    "validation sets": Rule("names or order of the validation sets", False),
    "validation rows": Rule("rows of a validation set", True),
    "validation weights": Rule("weights of the validation sets", True),
    "base_model": Rule("name of the base model", True),
    "model": Rule("shapes of what does not train", False),
    "trainable": Rule("names and shapes of what trains: another adapter, rank or model", False),
    "tokenizer": Rule("vocabulary or special tokens", False),
    "lora_alpha": Rule("scale of the adapter", True),
    "lora_dropout": Rule("dropout of the adapter", True),
    "optimizer": Rule("the optimizer, whose state is in the checkpoint", False),
    "seed": Rule("the seed of what is still to be drawn", True),
    "rows of a step": Rule("micro_batch_size x gradient_accumulation_steps x processes", True),
    "sequence_len": Rule("length of a row", True),
    "sample_packing": Rule("whether rows are packed", False),
    "scalebio.penalty": Rule("α", True),
    "scalebio.estimator": Rule("what a gap is made of", False),
    "scalebio.loss_unit": Rule("what a loss is a mean over", False),
    "scalebio.objective": Rule("what validation sets come to", False),
    "scalebio.sampling": Rule("order of the rows while it learns", False),
    "scalebio.mixture_update": Rule("rule of λ, whose state is in the checkpoint", False),
    "scalebio.mixture_init": Rule("weights at the start", False),
    "scalebio.mixture_learning_rate": Rule("learning rate of λ", True),
    "scalebio.update_interval": Rule("steps between two updates of λ", True),
    "scalebio.validation_batch_size": Rule("rows of a validation batch", True),
    "scalebio.max_repeats": Rule("how often a row may be drawn", True),
    "scalebio.bounds": Rule("bounds of the weights", True),
    "scalebio.groups": Rule("groups of the sources", True),
    "scalebio.prior": Rule("weights that the mixture is drawn to", True),
    "scalebio.lisa": Rule("layers that train, for how long", False),
    "scalebio.warmup_steps": Rule("steps before learning begins", False),
    "scalebio.learn": Rule("step with which learning ends, if it is earlier (a later one is fine)", True),
    "scalebio.keep": Rule("the set that is saved", False),
    "scalebio.on_leak": Rule("whether rows that stand in validation or test data are dropped", True),
}
_OF_THE_DATA = ("sources", "rows", "texts", "order", "validation sets", "validation rows")
KEYS = [key for key in RULES if key not in _OF_THE_DATA]


@dataclass(frozen=True)
class RunIdentity:
    """What a run is, as plain values.

    Attributes:
        sources, validation: By name, in order.
        order: Digest of the labels of all rows, in order.
        keys: The value of each of KEYS, or of those that are known so far; what is not a setting, as a digest.
    """

    sources: Annotated[dict[Name, Part], Many]
    validation: Annotated[dict[Name, Part], Many]
    order: Text
    keys: dict[Text, Any]
    schema: Annotated[int, Field(ge=1, strict=True), at_most(SCHEMA)] = SCHEMA


_SHAPE = TypeAdapter(RunIdentity)


class Difference(NamedTuple):
    """Of two runs, by a key of RULES."""

    key: str
    text: str

    @property
    def may_go_on(self) -> bool:
        return RULES[self.key].may_go_on


def write_identity(folder: StrPath, run: RunIdentity) -> None:
    path = Path(folder, FILE)
    path.parent.mkdir(exist_ok=True)
    replace_file(path, json.dumps(asdict(run), ensure_ascii=False, indent=1).encode() + b"\n")


def read_identity(folder: StrPath) -> RunIdentity | None:
    """What was written there; None where an older version wrote the checkpoint.

    Raises:
        ValueError: It is nothing that was, or in a newer format.
    """
    path = Path(folder, FILE)
    if not path.exists():
        return None
    return parsed(_SHAPE, content_of(path, MOST_BYTES), f"scalebio: {path}", "resume from another checkpoint")


def differences(saved: RunIdentity, here: RunIdentity) -> list[Difference]:
    """All of them, in the order of RULES."""
    found = list(_of_parts(saved.sources, here.sources, "sources", "source", "rows", "texts"))
    if not found and saved.order != here.order:
        text = "the same rows come in another order; put files, seed and shuffle_merged_datasets back"
        found.append(Difference("order", text))
    found += _of_parts(
        saved.validation, here.validation, "validation sets", "validation set", "validation rows", "validation rows"
    )
    return found + list(_of_keys(saved.keys, here.keys))


def differences_of_data(saved: Mapping[str, Part], here: Mapping[str, Part]) -> list[str]:
    """Of the rows of sources that have the same names, in whatever order."""
    same = {name: here[name] for name in saved}
    return [one.text for one in _of_parts(saved, same, "sources", "source", "rows", "texts")]


def _of_parts(
    saved: Mapping[str, Part], here: Mapping[str, Part], names: str, kind: str, rows: str, texts: str
) -> Iterator[Difference]:
    if list(saved) != list(here):
        yield Difference(names, _other_names(saved, here, kind))
        return
    for name, was in saved.items():
        now = here[name]
        if was.rows != now.rows:
            how = "rows were added" if now.rows > was.rows else "rows were taken away"
            yield Difference(rows, f"{kind} {name!r} had {was.rows} rows and has {now.rows}: {how}; put them back")
        elif was.digest != now.digest:
            yield Difference(texts, f"{kind} {name!r} has {now.rows} rows as before, but edited ones; put them back")


def _other_names(saved: Mapping[str, Part], here: Mapping[str, Part], kind: str) -> str:
    gone, new = [name for name in saved if name not in here], [name for name in here if name not in saved]
    renamed = {old: name for old in gone for name in new if saved[old].digest == here[name].digest}
    parts = [f"{old!r} is called {name!r} here" for old, name in renamed.items()]
    parts += [f"{name!r} is missing" for name in gone if name not in renamed]
    parts += [f"{name!r} is new" for name in new if name not in renamed.values()]
    if not parts:
        return f"it has {list(saved)}, this run {list(here)}; put the entries back in that order"
    how = ""
    if kind == "source":
        renamed_alone = len(renamed) == len(gone) == len(new)
        how = ", or give scalebio.names" if renamed_alone else ", as datasets: and scalebio.split_by had them"
    return f"it has {list(saved)}, this run {list(here)}: {', '.join(parts)}; put them back{how}"


def _of_keys(saved: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[Difference]:
    for key in KEYS:
        was, now = saved.get(key), here.get(key)
        ends_later = key == "scalebio.learn" and isinstance(was, int) and isinstance(now, int) and now > was
        by_default = key == "scalebio.validation_batch_size" and was is None  # of which earlier versions noted no rows
        if key not in saved or key not in here or was == now or ends_later or by_default:
            continue
        shown = "another one" if key in ("model", "trainable", "tokenizer") else f"{now!r} and it had {was!r}"
        yield Difference(key, f"this run has {shown} ({RULES[key].what}); set it back")
