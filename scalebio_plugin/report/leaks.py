"""Rows of the training data that also stand in the data that judge them: what was found, in numbers and in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from .markup import cell, many, shown
from .parsed import Count, Many, Name, Text
from .tables import shorten
from .words import counted


@dataclass(frozen=True)
class Leak:
    """Of a source in a set.

    Attributes:
        rows: Training rows whose text stands in the set.
        same: Those of them that differ from it by case, spaces and signs at most.
        found: Rows of the set whose text stands in the source.
    """

    rows: Count
    same: Count
    found: Count


@dataclass(frozen=True)
class LeakSet:
    """A validation or test set.

    Attributes:
        rows: That it has.
        compared: Those that were looked for: they have text enough to tell.
        sources: What was found, by source; of the others nothing was.
    """

    rows: Count
    compared: Count
    sources: Annotated[dict[Name, Leak], Many]


@dataclass(frozen=True)
class Leaks:
    """All that was found, and what `scalebio.on_leak` had done about it."""

    on_leak: Text
    sets: Annotated[dict[Name, LeakSet], Many]

    @property
    def any(self) -> bool:
        return any(of.sources for of in self.sets.values())


def leak_line(name: str, of: LeakSet, source: str) -> str:
    """One source in one set."""
    leak = of.sources[source]
    same = f", {leak.same} of them letter for letter" if leak.same else ""
    found = f"{leak.found} of its {of.rows} rows stand in {shorten(source)}"
    return f"{shorten(name)}: {found} ({counted(leak.rows, 'row')}{same})"


def nothing_found(leaks: Leaks) -> str:
    each = [f"{of.compared} of the {of.rows} rows of {shorten(name)}" for name, of in leaks.sets.items()]
    return f"no training row holds the text of one of {', '.join(each)} (the others are too short to tell)"


def leaks_section(document: Mapping[str, Any]) -> str:
    """Of the page; nothing where nobody looked, or an older version wrote the document."""
    leaks = document.get("leaks")
    if leaks is None:
        return ""
    lines = list(_cells(leaks["sets"]))
    if not lines:
        looked = [f"{of['compared']:,} of {of['rows']:,} rows of {shown(name)}" for name, of in leaks["sets"].items()]
        return f"<p>No training row holds the text of a row it is judged by: looked for were {', '.join(looked)}.</p>"
    said = _DROPPED if leaks["on_leak"] == "drop" else _KEPT
    head = ["set", "rows", "looked for", "source", "training rows", "of them the same", "rows of the set"]
    return f"<h2>Training rows that stand in validation or test data</h2>{many(lines, head)}<p>{said}</p>"


def _cells(sets: Mapping[str, Any]) -> Iterator[list[str]]:
    for name, of in sets.items():
        for source, leak in of["sources"].items():
            counts = [f"{leak[key]:,}" for key in ("rows", "same", "found")]
            set_of = [cell(shown(name), "text"), cell(f"{of['rows']:,}"), cell(f"{of['compared']:,}")]
            yield [*set_of, cell(shown(source), "text"), *map(cell, counts)]


_DROPPED = "These training rows were dropped (on_leak: drop): no weight here owes anything to them."
_KEPT = (
    "These training rows were trained on (on_leak: warn). A source that holds what it is judged by wins a mixture "
    "without being better data: take the rows out, or learn again with on_leak: drop."
)
