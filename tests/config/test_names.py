"""Names of sources are readable, unique, and the same for the same entries."""

from __future__ import annotations

import pytest

from scalebio_plugin.config.names import source_names


def names(*entries: dict | str) -> list[str]:
    return source_names([{"path": entry} if isinstance(entry, str) else entry for entry in entries])


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("tatsu-lab/alpaca", "tatsu-lab/alpaca"),
        ("alpaca", "alpaca"),
        ("data/clean.jsonl", "clean"),
        ("./data/clean.jsonl", "clean"),
        ("/mnt/data/clean.JSONL", "clean"),
        ("~/data/clean.parquet", "clean"),
        *((f"{place}/folder", "folder") for place in ("./data", "/mnt/data", "s3://bucket/some")),
        ("/mnt/data/folder/", "folder"),
        ("data/v1.5-clean.jsonl", "v1.5-clean"),
        ("org/data-v1.5", "org/data-v1.5"),
    ],
)
def test_a_path_gives_a_readable_name(path, name):
    assert names(path, "other") == [name, "other"]


@pytest.mark.parametrize(
    ("path", "first", "second", "expected"),
    [
        ("gsm8k", {"name": "main"}, {"name": "socratic"}, ["gsm8k/main", "gsm8k/socratic"]),
        ("json", {"data_files": "a.jsonl"}, {"data_files": ["b.jsonl", "c.jsonl"]}, ["json/a", "json/b+c"]),
        ("org/data", {"split": "train"}, {"split": "test"}, ["org/data/train", "org/data/test"]),
        ("org/data", {"type": "alpaca"}, {"type": "completion"}, ["org/data/alpaca", "org/data/completion"]),
        ("org/data", {"name": "x"}, {}, ["org/data/x", "org/data"]),
        ("a/x.jsonl", {}, {"path": "b/x.jsonl"}, ["x", "x#2"]),
        ("org/data", {}, {}, ["org/data", "org/data#2"]),
    ],
)
def test_entries_of_one_path_are_told_apart_by_what_differs(path, first, second, expected):
    assert names({"path": path, **first}, {"path": path, **second}) == expected


def test_only_what_is_needed_is_added():
    """A key that all entries have is left out where the paths differ already."""
    assert names({"path": "a", "name": "main", "type": "x"}, {"path": "b", "name": "main", "type": "x"}) == ["a", "b"]


def test_names_that_would_clash_with_a_numbered_one_are_numbered_on():
    assert len(set(names("a", "a", "a#2", "a"))) == 4


@pytest.mark.parametrize("entries", [["x"] * 12, ["x", "y", "x/z", "x"], [{"path": "x", "name": n} for n in "aabbc"]])
def test_names_are_unique_and_stable(entries):
    found = names(*entries)
    assert len(set(found)) == len(entries)
    assert names(*entries) == found


def test_entries_are_left_as_they_are():
    entries = [{"path": "a.jsonl"}, {"path": "a.jsonl"}]
    source_names(entries)
    assert entries == [{"path": "a.jsonl"}, {"path": "a.jsonl"}]


def test_an_entry_added_at_the_end_renames_no_other_path():
    assert names("a", "b", "c")[:2] == names("a", "b")


def test_given_names_are_taken():
    assert source_names([{"path": "a"}, {"path": "b"}], ["one", "two"]) == ["one", "two"]


NO_TEXTS = "be texts in a list, got .*; write each in quotes"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        *((["one"] * count, rf"one name per entry of datasets: \(2\), got {count}") for count in (0, 1, 3)),
        *((["one", name], rf"unique and not empty, got \['one', '{name}'\]; rename") for name in ("one", "", "  ")),
        *((given, NO_TEXTS) for given in ([2021, 2022], 5, "ab", {"a": 1, "b": 2})),
    ],
)
def test_given_names_that_cannot_be_are_refused(given, message):
    with pytest.raises(ValueError, match=r"scalebio\.names must.*" + message):
        source_names([{"path": "a"}, {"path": "b"}], given)
