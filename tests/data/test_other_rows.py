"""What tells the rows of a source from others, and what `apply` says of those that are not what was learned on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from scalebio_plugin.config.block import ScaleBiOSettings
from scalebio_plugin.data.applied import refuse_other_data
from scalebio_plugin.data.sources import Prepared
from scalebio_plugin.data.table import SourceTable, count
from scalebio_plugin.data.tags import tagged
from scalebio_plugin.report.identity import Part
from scalebio_plugin.report.mixture_file import mixture_document, parts_of
from scalebio_plugin.report.summary import SourceSummary
from tests.report.histories import facts

ROWS = [[[1, 2, 3], [-100, 2, 3]], [[4, 5], [-100, 5]], [[6, 7, 8], [-100, 7, 8]], [[4, 5], [-100, 5]]]
SOURCES = [0, 0, 1, 1]


def table_of(rows: list[Any] = ROWS, sources: list[int] = SOURCES) -> SourceTable:
    columns = {"input_ids": [ids for ids, _ in rows], "labels": [labels for _, labels in rows]}
    return count(tagged(Dataset.from_dict(columns), np.array(sources)), ["a", "b"])[0]


def other(at: int, ids: list[int], labels: list[int]) -> list[Any]:
    return [[ids, labels] if i == at else row for i, row in enumerate(ROWS)]


def changed(table: SourceTable) -> list[str]:
    return [name for name, part in table_of().parts.items() if table.parts[name] != part]


def test_the_parts_count_rows_and_know_them_in_any_order() -> None:
    table, order = table_of(), [3, 1, 0, 2]
    assert [part.rows for part in table.parts.values()] == [2, 2]
    moved = table_of([ROWS[i] for i in order], [SOURCES[i] for i in order])
    assert changed(moved) == []
    assert moved.digest != table.digest


@pytest.mark.parametrize(
    ("rows", "sources", "names"),
    [
        (other(0, [9, 2, 3], [-100, 2, 3]), SOURCES, ["a"]),  # its prompt alone
        (other(2, [6, 7, 8], [-100, -100, 8]), SOURCES, ["b"]),  # what is trained on
        (other(1, [4], [-100]), SOURCES, ["a"]),
        (ROWS, [1, 0, 0, 1], ["a", "b"]),
        ([*ROWS, ROWS[3]], [*SOURCES, 1], ["b"]),
        (other(3, [6, 7, 8], [-100, 7, 8]), SOURCES, ["b"]),  # twice the same does not cancel out
    ],
)
def test_an_edit_is_seen_in_its_source_alone(rows: list[Any], sources: list[int], names: list[str]) -> None:
    assert changed(table_of(rows, sources)) == names


def document(model: str | None = "small", **digests: str) -> dict[str, Any]:
    summaries = {name: SourceSummary(0.5, 0.5, 1.0, 1.0, 0.0, None) for name in ("a", "b")}
    counts = {"a": 2, "b": 2}
    known = facts(counts, counts, base_model=model, digests=digests or None)
    return mixture_document(summaries, known, None)


def applied(learned: dict[str, Any], model: str = "small", **block: Any) -> None:
    prepared = Prepared(rows=None, evaluation=None, table=table_of(), drawable=np.zeros(4))  # type: ignore[arg-type]
    refuse_other_data(prepared, learned, ScaleBiOSettings(apply="mixture.json", **block), model)


OWN = dict(zip("ab", table_of().digests, strict=True))


def test_a_mixture_says_of_which_rows_it_is() -> None:
    assert parts_of(document(**OWN)) == table_of().parts == {name: Part(2, OWN[name]) for name in "ab"}
    assert parts_of(document()) == {}
    assert parts_of({"weights": {"a": 1.0}}) == {}


def test_apply_refuses_other_rows_by_their_source(caplog: pytest.LogCaptureFixture) -> None:
    applied(document(**OWN))
    with pytest.raises(ValueError, match=r"scalebio\.apply: mixture\.json was learned on other rows:") as refused:
        applied(document(**OWN | {"b": "00"}))
    assert str(refused.value).splitlines()[1:] == [
        "  - source 'b' has 2 rows as before, but edited ones; put them back",
        "or set scalebio.on_mismatch: warn",
    ]
    caplog.clear()
    with caplog.at_level("WARNING", logger="axolotl.scalebio"):
        applied(document(**OWN | {"b": "00"}), on_mismatch="warn")
    assert "source 'b' has 2 rows as before, but edited ones" in caplog.text


def test_rows_are_not_compared_with_those_of_another_tokenizer_or_an_older_mixture(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level("INFO", logger="axolotl.scalebio"):
        applied(document(a="00", b="11"), model="large")
        applied(document())
    assert "was learned with base model small, so rows are not compared" in caplog.text
    assert "does not say of which rows it was learned" in caplog.text


def test_other_sources_are_refused_whatever_is_set() -> None:
    learned = document(**OWN)
    learned["weights"] = {"a": 0.5, "c": 0.5}
    with pytest.raises(ValueError, match=r"sources of mixture\.json are not those of this run"):
        applied(learned, on_mismatch="warn")
