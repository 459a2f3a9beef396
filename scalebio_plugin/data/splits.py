"""Which sources the loaded entries of `datasets:` are: one each or, split by a column, one for every value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from axolotl.utils.dict import DictDefault
from axolotl.utils.logging import get_logger
from datasets import Dataset

from ..config.block import ScaleBiOSettings
from ..config.names import numbered
from ..config.refusals import refuse
from ..config.sources import problems_of_sources
from ..config.split import OTHER, columns_of, refuse_split, refuse_too_many, sources_of
from ..report.words import printable
from .carried import Split, values_of

LOG = get_logger("axolotl.scalebio")
_SHOWN = 20  # rare values that the log names


def splits_of(entries: Sequence[DictDefault], names: Sequence[str], settings: ScaleBiOSettings) -> list[Split | None]:
    """Of each entry of `datasets:`; None for one that is a source as it is.

    Args:
        names: Of the entries.
    """
    columns = columns_of(settings.split_by, names)
    least = 2 if len(entries) == 1 or isinstance(settings.split_by, dict) else 1  # meant to be several
    places = [f"datasets[{index}] ({entry.path})" for index, entry in enumerate(entries)]
    return [
        None if column is None else Split(DictDefault(entry).to_dict(), place, column, settings.min_rows, least)
        for entry, place, column in zip(entries, places, columns, strict=True)
    ]


def sources_of_parts(
    parts: Sequence[Dataset], splits: Sequence[Split | None], names: Sequence[str], settings: ScaleBiOSettings
) -> tuple[list[Dataset], list[np.ndarray], list[str]]:
    """The parts without carried columns, the source of each of their rows, and the names of all sources.

    Args:
        names: Of the entries.

    Raises:
        ValueError: A column makes no mixture, or the block names sources that there are not.
    """
    plain, sources, found = [], [], list[str]()
    for part, split, name in zip(parts, splits, names, strict=True):
        if split is None:
            own, source = [name], np.zeros(len(part), dtype=np.int64)
        else:
            part, values = values_of(part, split)
            own, source = _sources_of_values(values, split)
            own = own if len(parts) == 1 else [f"{name}/{one}" for one in own]
        plain.append(part)
        sources.append(source + len(found))
        found += own
    if any(splits):
        found = numbered(found)
        _refuse(found, settings)
    return plain, sources, found


def _sources_of_values(values: list[str], split: Split) -> tuple[list[str], np.ndarray]:
    """Names of the sources of one entry, and for each of its rows which of them it is."""
    rows = Counter(values)
    refuse_split(split.place, split.column, rows, split.min_rows, least=split.least)
    source_of = sources_of(rows, split.min_rows)
    names = list(dict.fromkeys(source_of.values()))
    number = {name: index for index, name in enumerate(names)}
    _say_which_are_rare(rows, source_of, split)
    return names, np.array([number[source_of[value]] for value in values], dtype=np.int64)


def _say_which_are_rare(rows: Counter[str], source_of: dict[str, str], split: Split) -> None:
    rare = [value for value, _ in rows.most_common() if source_of[value] == OTHER and value != OTHER]
    if not rare:
        return
    shown = ", ".join(f"{printable(value)} ({rows[value]})" for value in rare[:_SHOWN])
    more = f", and {len(rare) - _SHOWN} more" if len(rare) > _SHOWN else ""
    LOG.info(
        f"scalebio: column {split.column!r} of {split.place}: {len(rare)} of {len(rows)} values have fewer than "
        f"min_rows ({split.min_rows}) rows and are the source {OTHER!r} together, "
        f"{sum(rows[value] for value in rare)} rows: {shown}{more}"
    )


def _refuse(names: list[str], settings: ScaleBiOSettings) -> None:
    """What could not be said of the block before the rows were read."""
    refuse_too_many(len(names), "datasets: makes", settings.min_rows)
    problems = list(problems_of_sources(names, settings.model_dump(exclude_defaults=True)))
    if len(names) < 2:
        problems.append(f"split_by makes a single source, {names}, with nothing to weigh it against")
    refuse(problems)
