"""Training rows whose text also stands in the validation or test data: found, told, dropped or refused.

A source that holds rows of the data that judge it wins every mixture, so this comes before anything is learned.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from axolotl.utils.logging import get_logger
from datasets import Dataset

from ..config.block import ScaleBiOSettings
from ..report.leaks import Leak, Leaks, LeakSet, leak_line, nothing_found
from ..report.tables import shorten
from ..report.words import printable
from .overlap import Index, Texts, Vocabulary
from .table import on_end
from .tags import sources_in

LOG = get_logger("axolotl.scalebio")
MOST = 1 << 23  # letters of a set that are looked for, ten thousand rows or so; of a larger one as many, evenly spaced
BATCH = 1000  # rows that are looked through at a time
_SAMPLE = 128  # rows of a source by which its templates are known
_SHOWN = 3  # rows of a source in a set that are shown
_CHARACTERS = 60  # of each
_AND = {
    "drop": "and are dropped from it",
    "warn": "so that their sources win whatever they are worth (scalebio.on_leak: drop trains without them)",
}


@dataclass(frozen=True)
class Found:
    """(P,) each: the training row, its set, the row of that as `Index` numbers them, and whether they are the same."""

    row: np.ndarray
    of_set: np.ndarray
    wanted: np.ndarray
    same: np.ndarray


def looks_here(settings: ScaleBiOSettings) -> bool:
    """Whether this process looks for leaks. Where all rows stay, the first rank does it for all: it tells of them."""
    first = int(os.environ.get("RANK", "0")) == 0
    return settings.looks_for_leaks and (first or settings.on_leak != "warn")


def settle_leaks(
    rows: Dataset,
    number: np.ndarray,
    names: Sequence[str],
    sets: Mapping[str, Dataset],
    tokenizer: Any,
    on_leak: str,
) -> tuple[Dataset, Leaks]:
    """The training rows that stay, and what was found.

    Args:
        rows: Tagged with the index of their source in `names`.
        number: (rows,), of each in its entry, for a reader.
        sets: What they are judged by, none of them empty.
        on_leak: `warn`, by which all stay, `drop` or `error`.

    Raises:
        ValueError: There are leaks, with `error`; or `drop` would leave nothing of a source.
    """
    search = Search(rows, sets, tokenizer)
    found, source = search.found(), sources_in(rows)
    leaks = Leaks(on_leak, search.counted(found, source, names))
    if not leaks.any:
        LOG.info(f"scalebio: {nothing_found(leaks)}")
        return rows, leaks
    said = "\n".join(search.lines(found, source, number, names, leaks))
    if on_leak == "error":
        raise ValueError(
            f"scalebio.on_leak: error, and rows of the training data stand in the data that judge them:\n{said}\ntake "
            "them out of the files, or set scalebio.on_leak: drop, which trains without them"
        )
    LOG.warning(f"scalebio: rows of the training data stand in the data that judge them, {_AND[on_leak]}:\n{said}")
    return (_without(rows, np.unique(found.row), source, names) if on_leak == "drop" else rows), leaks


def _without(rows: Dataset, leaking: np.ndarray, source: np.ndarray, names: Sequence[str]) -> Dataset:
    stay = np.setdiff1d(np.arange(len(rows)), leaking)
    lost = np.setdiff1d(source, source[stay])
    if len(lost):
        gone = ", ".join(f"{shorten(names[index])!r} ({(source == index).sum()} rows)" for index in lost)
        raise ValueError(
            f"scalebio.on_leak: drop would leave nothing to train on of {gone}: all of it stands in the validation or "
            "test data; remove the entry, or give other validation data"
        )
    return rows.select(stay)


class Search:
    """The sets, made ready to be looked for in the training rows."""

    def __init__(self, rows: Dataset, sets: Mapping[str, Dataset], tokenizer: Any):
        self.rows = rows
        self.decode: Callable[[list[int]], str] = lambda tokens: str(tokenizer.decode(tokens))
        self.vocabulary = Vocabulary(self._text_of)
        self._special = set(tokenizer.all_special_ids)
        self.lengths = {name: len(of) for name, of in sets.items()}
        texts = [self._texts(of) for of in sets.values()]
        wanted = [one.spaced(MOST, len(one.flat)) for one in texts]
        self.bounds = np.cumsum([*map(len, wanted)])  # (sets,), ends
        self.index = Index(wanted, self._samples())

    def found(self) -> Found:
        parts, done = [(*[np.zeros(0, np.int64)] * 3, np.zeros(0, bool))], 0
        for texts in self._batches(self.rows):
            matches = self.index.matches(texts)
            of_set = np.searchsorted(self.bounds, matches.wanted, side="right")
            parts.append((matches.row + done, of_set, matches.wanted, matches.same))
            done += len(texts)
        return Found(*(np.concatenate(of) for of in zip(*parts, strict=True)))

    def counted(self, found: Found, source: np.ndarray, names: Sequence[str]) -> dict[str, LeakSet]:
        compared = np.split(self.index.compared, self.bounds[:-1])
        sets = {}
        for number, (name, rows) in enumerate(self.lengths.items()):
            mine = found.of_set == number
            of = source[found.row]
            leaks = {names[one]: _leak(found, mine & (of == one)) for one in np.unique(of[mine])}
            sets[name] = LeakSet(rows, int(compared[number].sum()), leaks)
        return sets

    def lines(
        self, found: Found, source: np.ndarray, number: np.ndarray, names: Sequence[str], leaks: Leaks
    ) -> Iterator[str]:
        for index, (name, of) in enumerate(leaks.sets.items()):
            for one in of.sources:
                yield f"  {leak_line(name, of, one)}"
                mine = (found.of_set == index) & (source[found.row] == names.index(one))
                rows = np.unique(found.row[mine])
                for row in rows[np.argsort(number[rows])][:_SHOWN].tolist():
                    yield f'    row {number[row]} of {shorten(one)}: "{self._excerpt(row)}"'

    def _excerpt(self, row: int) -> str:
        """From where what is looked for begins."""
        tokens = np.asarray(self.rows[row]["input_ids"])
        texts = self.vocabulary.texts(tokens, np.arange(len(tokens) + 1))
        begins = int(np.searchsorted(texts.starts, self.index.begins(texts), side="right")) - 1
        text = " ".join(printable(self.decode(tokens[begins : begins + _CHARACTERS].tolist()), "\n").split())
        return text[:_CHARACTERS] + ("..." if len(text) > _CHARACTERS else "")

    def _text_of(self, token: int) -> str:
        return "" if token in self._special else self.decode([token])

    def _samples(self) -> Iterator[Texts]:
        source = sources_in(self.rows)
        for one in np.unique(source):
            mine = np.flatnonzero(source == one)
            picked = np.unique(np.linspace(0, len(mine) - 1, _SAMPLE).astype(np.int64))
            yield self._texts(self.rows.select(mine[picked]))

    def _texts(self, rows: Dataset) -> Texts:
        parts = list(self._batches(rows))
        ends = np.cumsum([0, *(len(part.flat) for part in parts)])
        starts = [part.starts[:-1] + end for part, end in zip(parts, ends[:-1], strict=True)]
        return Texts(np.concatenate([part.flat for part in parts]), np.concatenate([*starts, ends[-1:]]))

    def _batches(self, rows: Dataset) -> Iterator[Texts]:
        for batch in rows.select_columns(["input_ids"]).with_format("arrow").iter(batch_size=BATCH):
            yield self.vocabulary.texts(*on_end(batch.column("input_ids")))


def _leak(found: Found, chosen: np.ndarray) -> Leak:
    rows, same, wanted = found.row[chosen], found.row[chosen & found.same], found.wanted[chosen]
    return Leak(*(len(np.unique(of)) for of in (rows, same, wanted)))
