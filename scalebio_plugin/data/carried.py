"""A column of the raw rows, carried through the host's tokenising, which drops it.

The host loads prompt strategies by the module that makes them. An entry that is split names this one, and says what it
was before: `load` then finds the host's own strategy for it and lets it tokenise one row after the other, each with its
value beside it in the column VALUE. So what the host does to rows on the way (shards, filters, chunks of one text, rows
left out, packing, its prepared cache) it does to the value, too. Rows that are tokenised already the host passes
through with all of their columns.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from axolotl.prompt_tokenizers import DatasetWrappingStrategy
from axolotl.utils.data.wrappers import get_dataset_wrapper, wrap_dataset_for_tokenized_prompt
from axolotl.utils.dict import DictDefault
from datasets import Dataset

from ..config.split import NO_VALUE, refuse_split

VALUE = "scalebio_value"
_OURS = "scalebio_split"  # key of an entry: what it was, and its column


@dataclass(frozen=True)
class Split:
    """An entry of `datasets:` that is split by a column.

    Attributes:
        entry: Plain values.
        place: As errors name it.
        least: Sources that it must make, see `refuse_split`.
    """

    entry: dict[str, Any]
    place: str
    column: str
    min_rows: int
    least: int

    @property
    def loaded(self) -> DictDefault:
        """What the host loads in its place: it carries the column."""
        # Of an entry's keys the host's prepared caches go by `type` and `field`, among others.
        of_cache = [self.entry.get("type"), self.entry.get("field"), self.column]
        key = json.dumps(of_cache, sort_keys=True, default=str)
        return DictDefault({**self.entry, "type": __name__, "field": key, _OURS: vars(self)})

    @property
    def least_of_a_part(self) -> int:
        """The same of what the host wraps at once: of some entries a part after the other."""
        return 1 if isinstance(self.entry.get("name"), list) or self.entry.get("preprocess_shards") else self.least


def values_of(part: Dataset, split: Split) -> tuple[Dataset, list[str]]:
    """The rows of an entry that was split, without what they carry, and the value of each."""
    if VALUE in part.column_names:
        (carried,) = part.select_columns([VALUE]).with_format("arrow")[:].columns
        return part.remove_columns(VALUE), [NO_VALUE if value is None else value for value in carried.to_pylist()]
    values = list(_values(part, split))
    return part.remove_columns(_top(part, split.column)), values


def load(tokenizer: Any, cfg: DictDefault, ds_cfg: DictDefault, processor: Any = None) -> _Carrying:
    """Called by the host for the `type` of `Split.loaded`."""
    return _Carrying(tokenizer, cfg, Split(**ds_cfg[_OURS].to_dict()), processor)


class _Carrying(DatasetWrappingStrategy):
    def __init__(self, tokenizer: Any, cfg: DictDefault, split: Split, processor: Any):
        self.tokenizer = tokenizer
        self.cfg = cfg
        self.split = split
        self.processor = processor

    def wrap_dataset(
        self, dataset: Dataset, process_count: int | None = None, keep_in_memory: bool | None = False, **kwargs: Any
    ) -> Dataset:
        """The raw rows of the entry, tokenised.

        Raises:
            ValueError: Before they are: the column is not there, has no plain values, or makes no mixture.
        """
        split, rows = self.split, Counter(_values(dataset, self.split))
        if rows:
            refuse_split(split.place, split.column, rows, split.min_rows, least=split.least_of_a_part)
        carried = _Carried(self._hosts(dataset), split.column)
        return wrap_dataset_for_tokenized_prompt(
            carried, dataset, process_count=process_count, keep_in_memory=keep_in_memory
        )

    def _hosts(self, dataset: Dataset) -> Any:
        """The host's strategy for the entry: it comes with what it makes of no row."""
        entry = DictDefault(self.split.entry)
        base, _, style = str(entry.type).partition(":")
        made, _ = get_dataset_wrapper(
            dataset_config=entry,
            tokenizer=self.tokenizer,
            cfg=self.cfg,
            dataset_base_type=base if isinstance(entry.type, str) else None,
            dataset=Dataset.from_dict({name: [] for name in dataset.features}, features=dataset.features),
            dataset_prompt_style=style or None,
            processor=self.processor,
        )
        if not hasattr(made, "prompt_tokenizer"):
            raise ValueError(
                f"scalebio.split_by: type {entry.type!r} of {self.split.place} does not tokenise row by row, so "
                "that a row cannot be told from the others; write an entry for each source, or use another type"
            )
        return made.prompt_tokenizer


class _Carried:
    """A strategy of the host, with the value of the raw row in what it makes of it."""

    def __init__(self, strategy: Any, column: str):
        self.strategy = strategy
        self.column = column
        self.supports_batched = strategy.supports_batched
        self.filter_rows = getattr(strategy, "filter_rows", None)

    def tokenize_prompt(self, prompt: Mapping[str, Any]) -> dict[str, Any]:
        if not self.supports_batched:
            made = dict(self.strategy.tokenize_prompt(prompt) or {})
            return {**made, VALUE: _value(prompt, self.column)} if made else made
        batch: dict[str, list[Any]] = {}
        for row in zip(*prompt.values(), strict=True):
            made = self.strategy.tokenize_prompt({name: [value] for name, value in zip(prompt, row, strict=True)})
            value = _value(dict(zip(prompt, row, strict=True)), self.column)
            several = len(next(iter(made.values()), []))
            for name, members in {**made, VALUE: [value] * several}.items():
                batch.setdefault(name, []).extend(members)
        return batch


# ---- the column


def _values(dataset: Dataset, split: Split) -> Iterator[str]:
    """Of every raw row.

    Raises:
        ValueError: There is no such column, or it holds lists or blocks.
    """
    column, place, known = split.column, split.place, _names(dataset.features)
    if column not in known:
        raise ValueError(f"scalebio.split_by: {place} has no column {column!r}; its columns are {known}")
    for row in dataset.select_columns([_top(dataset, column)]):
        value = _at(row, column)
        if isinstance(value, (list, dict)):
            raise ValueError(
                f"scalebio.split_by: column {column!r} of {place} holds {value!r}; a source is named by a text, a "
                "number or a truth value"
            )
        yield _value(row, column)


def _names(features: Mapping[str, Any], within: str = "") -> list[str]:
    """Names of columns, and of the fields inside them with dots."""
    names = []
    for name, feature in features.items():
        names.append(f"{within}{name}")
        if isinstance(feature, Mapping):
            names += _names(feature, f"{within}{name}.")
    return names


def _top(dataset: Dataset, column: str) -> str:
    return column if column in dataset.column_names else column.split(".")[0]


def _at(row: Mapping[str, Any], column: str) -> Any:
    """What a row has in a column, None where there is nothing."""
    if column in row:
        return row[column]
    value: Any = row
    for name in column.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _value(row: Mapping[str, Any], column: str) -> str:
    """The name of what a row has in a column: a text where there is nothing, too, as a batch of nothing has no type."""
    value = _at(row, column)
    return NO_VALUE if value is None or value != value else str(value).strip() or NO_VALUE
