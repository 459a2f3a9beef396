"""Which columns split which entries, and which of their values are sources."""

from __future__ import annotations

import pytest

from scalebio_plugin.config.refusals import problems_of
from scalebio_plugin.config.sources import problems_of_sources
from scalebio_plugin.config.split import MOST, columns_of, refuse_split, sources_of
from tests.config.test_refusals import GOOD, config, refused

ONE = {"datasets": GOOD["datasets"][:1]}


def test_one_column_is_that_of_every_entry_and_a_mapping_that_of_those_it_names() -> None:
    assert columns_of(None, ["a", "b"]) == [None, None]
    assert columns_of("source", ["a", "b"]) == ["source", "source"]
    assert columns_of({"b": "meta.of"}, ["a", "b"]) == [None, "meta.of"]


def test_sources_are_the_values_in_alphabetical_order_and_the_rare_ones_together_are_the_last() -> None:
    rows = {"web": 100, "law": 99, "code": 500, "other": 1000, "zine": 1}
    assert sources_of(rows, 100) == {"code": "code", "web": "web", "law": "other", "other": "other", "zine": "other"}
    assert list(dict.fromkeys(sources_of(rows, 100).values())) == ["code", "web", "other"]
    assert set(sources_of(rows, 1).values()) == set(rows)


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ({"web": 50}, ["only the value 'web'", "another column"]),
        ({"a": 3, "b": 4}, ["2 values", "fewer than min_rows (10)", "lower scalebio.min_rows"]),
        ({f"v{n}": 10 for n in range(MOST + 1)}, ["makes 201 sources, more than 200", "raise scalebio.min_rows"]),
    ],
    ids=["one value", "all rare", "too many"],
)
def test_values_that_make_no_mixture_are_refused(rows: dict[str, int], parts: list[str]) -> None:
    with pytest.raises(ValueError, match="column 'source' of datasets") as refusal:
        refuse_split("datasets[0] (a.jsonl)", "source", rows, 10)
    assert [part for part in parts if part not in str(refusal.value)] == []


def test_as_many_sources_as_can_be_are_fine() -> None:
    refuse_split("a", "source", {f"v{n}": 10 for n in range(MOST)}, 10)
    refuse_split("a", "source", {"web": 50}, 10, least=1)


class TestConfig:
    def test_a_single_dataset_can_be_split(self) -> None:
        assert problems_of(config(ONE, scalebio={"split_by": "source"})) == []
        assert problems_of(config(ONE, scalebio={"split_by": {"a": "source"}, "min_rows": 5})) == []

    @pytest.mark.parametrize("empty", ["", {}, {"a": " "}], ids=str)
    def test_no_column(self, empty: object) -> None:
        problems = problems_of(config(scalebio={"split_by": empty}))
        assert [problem for problem in problems if problem.startswith("scalebio.split_by names no column")]

    def test_an_entry_that_there_is_not(self) -> None:
        refused(config(scalebio={"split_by": {"d": "source"}}), "scalebio.split_by names unknown", "['d']", "'org/c'")

    def test_min_rows_without_split_by(self) -> None:
        refused(config(scalebio={"min_rows": 5}), "scalebio.min_rows does nothing", "add split_by")

    def test_names_of_sources_are_known_once_the_rows_are_read(self) -> None:
        block = {"split_by": "source", "bounds": {"web": (0.2, 0.5)}, "groups": {"g": ["x"]}}
        assert problems_of(config(ONE, scalebio=block)) == []
        (unknown,) = problems_of_sources(["web", "law"], {**block, "groups": {}, "bounds": {"wbe": (0.0, 0.5)}})
        assert "['wbe']" in unknown
        assert "['web', 'law']" in unknown

    def test_groups_that_share_a_source_are_refused_before(self) -> None:
        block = {"split_by": "source", "groups": {"g": ["x"], "h": ["x"]}}
        refused(config(ONE, scalebio=block), "scalebio.groups: ['x'] stand in several")

    def test_a_name_without_end_is_refused_before(self) -> None:
        block = {"split_by": "source", "names": ["x", "y", "z" * 10_001]}
        refused(config(scalebio=block), "scalebio.names must have at most 10000 characters each", "have more; cut them")

    def test_apply_goes_with_a_split(self, tmp_path) -> None:
        (tmp_path / "mixture.json").write_text("{}")
        block = {"apply": str(tmp_path / "mixture.json"), "split_by": "source", "min_rows": 5}
        assert problems_of({**config(ONE), "scalebio": block}) == []
