"""How much weight a source can have by its size, and what is refused because none could give it more."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from scalebio_plugin.config.block import ScaleBiOSettings
from scalebio_plugin.data.sources import Prepared, _refuse_out_of_reach, announce
from scalebio_plugin.data.table import SourceTable

NAMES = ["a", "b", "c"]


def table_of(*tokens: int) -> SourceTable:
    return SourceTable(NAMES[: len(tokens)], np.array(tokens), np.array([10] * len(tokens)), "")


def refused(table: SourceTable, *lines: str, **block: Any) -> None:
    """All of these lines, and no other, are said."""
    with pytest.raises(
        ValueError, match=r"(?s)scalebio\.bounds ask for more.*lower the bounds or raise scalebio\.max"
    ) as told:
        _refuse_out_of_reach(table, ScaleBiOSettings(**block))
    said = [line.removeprefix("  - ") for line in str(told.value).splitlines() if line.startswith("  - ")]
    assert said == list(lines)


@pytest.mark.parametrize(
    ("max_repeats", "most"), [(1, [0.6, 0.3, 0.1]), (2, [1.0, 0.6, 0.2]), (4, [1.0, 1.0, 0.4]), (10, [1.0, 1.0, 1.0])]
)
def test_a_source_can_have_as_much_as_its_rows_give_when_each_is_seen_so_often(max_repeats: int, most: list) -> None:
    assert table_of(60, 30, 10).most(max_repeats).tolist() == pytest.approx(most)


@pytest.mark.parametrize(
    "block",
    [
        {},
        {"max_repeats": 1},
        {"bounds": {"c": (0.4, 1.0)}},
        {"bounds": {"c": (0.1, 1.0)}, "max_repeats": 1},
        {"bounds": {"g": (0.99, 1.0)}, "groups": {"g": ["b", "c"]}},
        {"bounds": {"g": (0.0, 0.6), "a": (0.0, 0.4)}, "groups": {"g": ["b", "c"]}},
    ],
    ids=str,
)
def test_what_the_sources_hold_can_be_asked_for(block: dict[str, Any]) -> None:
    _refuse_out_of_reach(table_of(60, 30, 10), ScaleBiOSettings(**block))


@pytest.mark.parametrize("seed", range(20))
def test_rounding_refuses_nothing(seed: int) -> None:
    """Each row once: the shares themselves, whose sum is a rounding away from 1."""
    table = table_of(*np.random.default_rng(seed).integers(1, 10**6, 3).tolist())
    floors = {name: (share, 1.0) for name, share in zip(NAMES, table.shares("token").tolist(), strict=True)}
    for bounds in ({}, floors):
        _refuse_out_of_reach(table, ScaleBiOSettings(max_repeats=1, bounds=bounds))


G = {"g": ["b", "c"]}


def test_a_source_that_would_need_more_is_named_with_what_it_can_have() -> None:
    refused(table_of(60, 30, 10), "c: at least 0.5, and can have 0.4", bounds={"c": (0.5, 1.0)})
    refused(table_of(60, 30, 10), "c: at least 0.2, and can have 0.1", bounds={"c": (0.2, 1.0)}, max_repeats=1)


def test_a_group_can_have_what_its_members_can() -> None:
    refused(table_of(80, 10, 10), "g: at least 0.9, and can have 0.8", bounds={"g": (0.9, 1.0)}, groups=G)
    capped = {"g": (0.7, 1.0), "b": (0.0, 0.2)}
    refused(table_of(80, 10, 10), "g: at least 0.7, and can have 0.6", bounds=capped, groups=G)


def test_together_the_sources_must_reach_one() -> None:
    refused(table_of(80, 10, 10), "all sources together can have 0.9", bounds={"a": (0.0, 0.1)})
    # By their sizes b and c could have 0.8, their group 0.3 alone.
    both = {"a": (0.0, 0.5), "g": (0.0, 0.3)}
    refused(table_of(80, 10, 10), "all sources together can have 0.8", bounds=both, groups=G)


def test_all_is_told_at_once() -> None:
    bounds = {"b": (0.5, 1.0), "c": (0.6, 1.0), "a": (0.0, 0.1)}
    lines = [f"{name}: at least {low}, and can have 0.4" for name, low in (("b", 0.5), ("c", 0.6))]
    refused(table_of(80, 10, 10), *lines, "all sources together can have 0.9", bounds=bounds)


@pytest.mark.parametrize(("max_repeats", "held"), [(4, "c 0.4000"), (2, "b 0.6000, c 0.2000"), (10, None)])
def test_the_log_names_the_sources_that_their_size_holds(max_repeats: int, held: str | None, caplog: Any) -> None:
    prepared = Prepared(rows=None, evaluation=None, table=table_of(60, 30, 10), drawable=np.zeros(0))
    with caplog.at_level("INFO", logger="axolotl.scalebio"):
        announce(prepared, ScaleBiOSettings(max_repeats=max_repeats))
    (said,) = [record.getMessage() for record in caplog.records if "by their size" in record.getMessage()] or [None]
    if held is None:
        assert said is None
    else:
        assert said == f"scalebio: by their size, at max_repeats {max_repeats}, these weights stay below: {held}"


def test_names_in_the_log_do_nothing_to_a_terminal(caplog: Any) -> None:
    table = replace(table_of(60, 30, 10), names=["a\x1b[2J", "b\n", "c\u202e"])
    prepared = Prepared(rows=None, evaluation=None, table=table, drawable=np.zeros(0))
    with caplog.at_level("INFO", logger="axolotl.scalebio"):
        announce(prepared, ScaleBiOSettings(max_repeats=1))
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert r"  a\x1b[2J: " in said
    assert r"b\n 0.3000, c\u202e 0.1000" in said
