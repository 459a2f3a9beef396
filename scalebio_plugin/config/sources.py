"""What a block says of its sources by their names: the weights it gives, its bounds, groups and splits.

Checked on the raw config where the entries of `datasets:` are the sources, and as soon as the rows have been read where
`split_by` makes them of a column. Standard library only, like `refusals`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from .names import source_names
from .split import columns_of

MOST_CHARACTERS = 10_000  # of a name that `report.parsed` reads back
_START, _PRIOR = "scalebio.mixture_init", "scalebio.prior.weights"
_NO_START = ": a weight of 0 can never grow; use a small one, or bounds to hold it at 0"
_NO_PULL = " must be above 0, those of {zero} are not; use small ones, or bounds to hold the sources at 0"


def problems_of_names(entries: Sequence[Mapping[str, Any]], block: Mapping[str, Any]) -> Iterator[str]:
    """Before any row is read."""
    try:
        names = source_names(entries, block.get("names"))
        columns = columns_of(block.get("split_by") if entries else None, names)
    except ValueError as error:
        yield str(error)
        return
    if not any(columns):
        if "min_rows" in block:
            yield "scalebio.min_rows does nothing without scalebio.split_by; remove it, or add split_by"
        yield from problems_of_sources(names, block)
    else:
        yield from _too_long(names, "cut them")
        yield from _in_several_groups(block.get("groups") or {})


def problems_of_sources(names: Sequence[str], block: Mapping[str, Any]) -> Iterator[str]:
    """All that cannot be right of a block, each with its remedy, once the names of all sources are known."""
    of_rows = ", which are values of rows, or split by another column" if block.get("split_by") else ""
    yield from _too_long(names, f"cut them{of_rows}")
    groups = block.get("groups") or {}
    used: dict[str, list[str]] = {
        "scalebio.groups": [member for group in groups.values() for member in group],
        "scalebio.bounds": [name for name in block.get("bounds") or {} if name not in groups],
    }
    used |= {where: list(weights) for where, weights in _given_weights(block).items()}
    for where, mentioned in used.items():
        unknown = [name for name in mentioned if name not in names]
        if unknown:
            yield f"{where} names unknown sources {unknown}; the sources are {list(names)}"
    clashing = [group for group in groups if group in names]
    if clashing:
        yield f"scalebio.groups: {clashing} are names of sources; rename the groups"
    yield from _in_several_groups(groups)
    yield from _simplex(block, names, groups)


def _too_long(names: Sequence[str], remedy: str) -> Iterator[str]:
    long = [name[:40] for name in names if len(name) > MOST_CHARACTERS]
    if long:
        yield f"scalebio.names must have at most {MOST_CHARACTERS} characters each, {long}... have more; {remedy}"


def _in_several_groups(groups: Mapping[str, list[str]]) -> Iterator[str]:
    members = [member for group in groups.values() for member in group]
    shared = sorted({member for member in members if members.count(member) > 1})
    if shared:
        yield f"scalebio.groups: {shared} stand in several groups; a source belongs to one at most"


def _given_weights(block: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    """{key: weights} of the keys that give every source a weight."""
    given = {_START: block.get("mixture_init"), _PRIOR: (block.get("prior") or {}).get("weights")}
    return {key: weights for key, weights in given.items() if isinstance(weights, Mapping)}


def _of_every_source(
    key: str, weights: Mapping[str, float], names: Sequence[str], may_be_0: Sequence[str], why_not_0: str
) -> Iterator[str]:
    """Rules on weights that a config gives; `why_not_0` follows the key, where others than `may_be_0` are 0."""
    missing = [name for name in names if name not in weights]
    zero = [name for name in names if weights.get(name, 1.0) <= 0.0 and name not in may_be_0]
    if missing:
        yield f"{key} must give every source a weight, {missing} have none; add them"
    elif abs(sum(weights.values()) - 1.0) > 1e-6:
        yield f"{key} must sum to 1, got {sum(weights.values()):.6g}; rescale the weights"
    elif zero:
        yield f"{key}{why_not_0.format(zero=zero)}"


def _simplex(block: Mapping[str, Any], names: Sequence[str], groups: Mapping[str, list[str]]) -> Iterator[str]:
    """Rules on weights and `bounds` that need all of the names."""
    bounds = {name: tuple(pair) for name, pair in (block.get("bounds") or {}).items() if len(pair) == 2}
    held = [name for name, (_, high) in bounds.items() if high <= 0.0]
    given = _given_weights(block)
    if _START in given:
        yield from _of_every_source(_START, given[_START], names, held, _NO_START)
    if _PRIOR in given:
        yield from _of_every_source(_PRIOR, given[_PRIOR], names, (), _NO_PULL)
    for name, (low, high) in bounds.items():
        if low > high:
            yield f"scalebio.bounds.{name}: min {low} is above max {high}; exchange them"

    def sums(of: Iterable[str]) -> tuple[float, float]:
        pairs = [bounds.get(name, (0.0, 1.0)) for name in of]
        return sum(low for low, _ in pairs), sum(high for _, high in pairs)

    lows, highs = sums(name for name in names if not any(name in members for members in groups.values()))
    for group, members in groups.items():
        low, high = sums(members)
        least, most = bounds.get(group, (0.0, 1.0))
        if low > most or high < least:
            yield f"scalebio.bounds.{group} {(least, most)} cannot be met by its members' bounds; widen one of them"
            return
        lows, highs = lows + max(low, least), highs + min(high, most)
    if names and (lows > 1.0 + 1e-9 or highs < 1.0 - 1e-9):
        yield f"scalebio.bounds allow sums from {lows:.4g} to {highs:.4g}, never 1; widen them"
