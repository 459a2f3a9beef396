"""Rows that stand in more than one source are counted and told: their weights are spent on the same rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from scalebio_plugin.algorithm.bilevel import IGNORED
from scalebio_plugin.data.table import count
from scalebio_plugin.data.tags import tagged
from tests.data.test_leaks import entry, write
from tests.data.test_sources import Loaded

NAMES = ["a", "b", "c", "d"]


def dataset(rows: list[tuple[int, int]], targets: set[int]) -> Dataset:
    """Of (source, text); a text that is none of `targets` has no token to train on."""
    ids = [[text, text + 1, 7] for _, text in rows]
    labels = [of if text in targets else [IGNORED] * 3 for of, (_, text) in zip(ids, rows, strict=True)]
    return tagged(Dataset.from_dict({"input_ids": ids, "labels": labels}), np.array([source for source, _ in rows]))


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6)), min_size=1, max_size=40),
    st.sets(st.integers(0, 6), min_size=1),
)
def test_they_are_what_a_pass_over_all_pairs_finds(rows: list[tuple[int, int]], targets: set[int]) -> None:
    table, _ = count(dataset(rows, targets), NAMES)
    texts = [{text for source, text in rows if source == index} for index in range(4)]
    expected: dict[str, dict[str, int]] = {}
    for source, text in rows:
        for other, name in enumerate(NAMES):
            if other != source and text in targets and text in texts[other]:
                of = expected.setdefault(NAMES[source], {})
                of[name] = of.get(name, 0) + 1
    assert table.shared_rows == expected


def test_equal_tokens_with_other_labels_are_other_rows() -> None:
    rows = Dataset.from_dict({"input_ids": [[1, 2, 3]] * 2, "labels": [[1, 2, 3], [IGNORED, 2, 3]]})
    assert count(tagged(rows, np.array([0, 1])), NAMES)[0].shared_rows == {}


@pytest.fixture(scope="module")
def overlapping(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`two` has 30 rows, 12 of them those of `one`; `three` has 1 row in 150 of `one`."""
    folder = tmp_path_factory.mktemp("overlapping")
    rows = {name: [_row(name, n) for n in range(many)] for name, many in (("one", 40), ("two", 18), ("three", 149))}
    rows["two"] += rows["one"][5:17]
    rows["three"].append(rows["one"][0])
    for name, of in (rows | {"validation": [_row("validation", n) for n in range(8)]}).items():
        write(folder / f"{name}.jsonl", of)
    (folder / "model").symlink_to(inputs / "model")
    return folder


def _row(name: str, number: int) -> dict[str, Any]:
    return {"instruction": f"say {name}", "input": "", "output": f"{name} {number}"}


def loaded(folder: Path, **overrides: Any) -> Loaded:
    block = {"validation_datasets": [entry("validation")]}
    names = ("one", "two", "three")
    return Loaded(folder, datasets=[entry(name) for name in names], scalebio=block, **overrides)


@pytest.mark.host_contract
def test_a_run_says_which_sources_have_rows_in_common(overlapping: Path, log: list[str]) -> None:
    found = loaded(overlapping)
    assert found.prepared.table.shared_rows == {
        "one": {"two": 12, "three": 1},
        "two": {"one": 12},
        "three": {"one": 1},
    }
    (said,) = [line for line in log if "stand in two sources" in line]
    assert [line.strip() for line in said.splitlines()[1:]] == [
        "two: 12 of 30 rows also stand in one",
        "one: 12 of 40 rows also stand in two",
        "one: 1 of 40 rows also stand in three",
    ]


def test_what_the_host_deduplicates_is_in_one_source_alone(overlapping: Path, log: list[str]) -> None:
    found = loaded(overlapping, dataset_exact_deduplication=True)
    assert found.prepared.table.shared_rows == {}
    assert found.prepared.table.sequences.sum() == 40 + 18 + 149
    assert not [line for line in log if "stand in two sources" in line]
