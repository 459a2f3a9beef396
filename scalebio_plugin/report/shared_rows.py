"""Rows that stand in more than one source, token for token: in the words of the log and of the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .markup import cell, many, shown
from .tables import shorten

TOLD = 0.01  # of a source's rows, from which on it is told
MOST = 10  # lines


def shared_lines(shared_rows: Mapping[str, Mapping[str, int]], examples: Mapping[str, int]) -> list[str]:
    """A line for each pair of sources that have a part worth telling in common, the largest part first.

    Args:
        shared_rows: By source and other source, rows of the former that stand in the latter, too.
        examples: Rows of each source.
    """
    lines = [
        f"  {shorten(source)}: {rows} of {examples[source]} rows also stand in {shorten(other)}"
        for source, other, rows in _worth_telling(shared_rows, examples)
    ]
    more = len(lines) - MOST
    return lines[:MOST] + ([f"  and {more} more"] if more > 0 else [])


def _worth_telling(
    shared_rows: Mapping[str, Mapping[str, int]], examples: Mapping[str, int]
) -> list[tuple[str, str, int]]:
    pairs = (
        (source, other, rows)
        for source, others in shared_rows.items()
        for other, rows in others.items()
        if rows >= TOLD * examples[source]
    )
    return sorted(pairs, key=lambda pair: -pair[2] / examples[pair[0]])


def shared_rows_section(document: Mapping[str, Any]) -> str:
    """Of the page; nothing where sources have no rows in common, or an older version wrote the document."""
    examples = {name: of["examples"] for name, of in document["sources"].items()}
    lines = list(_cells(document.get("shared_rows") or {}, examples))
    if not lines:
        return ""
    head = ["source", "also in", "rows", "of"]
    return f"<h2>Rows that stand in two sources</h2>{many(lines, head)}<p>{_MEANS}</p>"


def _cells(shared_rows: Mapping[str, Mapping[str, int]], examples: Mapping[str, int]) -> Iterator[list[str]]:
    for source, other, rows in _worth_telling(shared_rows, examples):
        names = [cell(shown(source), "text"), cell(shown(other), "text")]
        yield [*names, cell(f"{rows:,}"), cell(f"{examples[source]:,}")]


_MEANS = (
    "Token for token the same. The weights of both sources are spent on them, and <code>max_repeats</code> counts "
    "them in each apart. <code>dataset_exact_deduplication: true</code> keeps each row once, in one of them."
)
