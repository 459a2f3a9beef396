"""Sources inside a dataset: which column an entry is split by, and which of its values are sources of their own.

Standard library only, like `refusals`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

MOST = 200  # sources of a run: of more, each would have too few rows of a step for its gap to be told from noise
NO_VALUE = "none"  # the source of rows whose column holds nothing
OTHER = "other"  # the source of the values that are rare


def columns_of(split_by: str | Mapping[str, str] | None, names: Sequence[str]) -> list[str | None]:
    """The column that each entry of `datasets:` is split by; None for an entry that is one source.

    Args:
        names: Of the entries.

    Raises:
        ValueError: It names no column, or an entry that there is not.
    """
    if split_by is None:
        return [None] * len(names)
    if isinstance(split_by, str):
        split_by = dict.fromkeys(names, split_by)
    if not split_by or not all(column.strip() for column in split_by.values()):
        raise ValueError("scalebio.split_by names no column; write the name of one, or remove split_by")
    unknown = [name for name in split_by if name not in names]
    if unknown:
        raise ValueError(
            f"scalebio.split_by names unknown entries of datasets: {unknown}; they are {list(names)}; name those, "
            "or give them other names by scalebio.names"
        )
    return [split_by.get(name) for name in names]


def sources_of(rows: Mapping[str, int], min_rows: int) -> dict[str, str]:
    """{value: its source} of a column whose values have so many `rows`: itself, or OTHER where they are few.

    The sources are in alphabetical order, OTHER last.
    """
    kept = sorted(value for value, count in rows.items() if count >= min_rows and value != OTHER)
    return {value: value for value in kept} | {value: OTHER for value in sorted(rows) if value not in set(kept)}


def refuse_split(place: str, column: str, rows: Mapping[str, int], min_rows: int, *, least: int = 2) -> None:
    """What cannot be a mixture, said of the values of one column.

    Args:
        place: The entry, as errors name it.
        least: Sources that there must be.

    Raises:
        ValueError: They make too few sources, or too many.
    """
    sources = list(dict.fromkeys(sources_of(rows, min_rows).values()))
    if len(sources) < least:
        only = f"only the value {next(iter(rows))!r}" if len(rows) == 1 else f"{len(rows)} values"
        rare = f", all of them with fewer than min_rows ({min_rows}) rows" if sources == [OTHER] else ""
        raise ValueError(
            f"scalebio.split_by: column {column!r} of {place} holds {only}{rare}: one source, with nothing to weigh it "
            "against; split by another column" + (", or lower scalebio.min_rows" if len(rows) > 1 else "")
        )
    refuse_too_many(len(sources), f"column {column!r} of {place} makes", min_rows)


def refuse_too_many(sources: int, what_makes: str, min_rows: int) -> None:
    """Raise a ValueError for more sources than MOST."""
    if sources > MOST:
        raise ValueError(
            f"scalebio.split_by: {what_makes} {sources} sources, more than {MOST}; raise scalebio.min_rows (now "
            f"{min_rows}), so that more of the rare values are put together, or split by a coarser column"
        )
