"""Sets of few rows are tokenised and saved without processes of their own; larger ones as the host asks."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from multiprocess.context import BaseContext

from scalebio_plugin.data import small_sets
from scalebio_plugin.data.small_sets import small_sets_here

ROWS = Dataset.from_dict({"text": [f"row {i}" for i in range(40)]})


class PoolAskedFor(Exception):
    """By what saves a set, which would start new interpreters: seconds each."""


@pytest.fixture(autouse=True)
def no_new_interpreters(monkeypatch: pytest.MonkeyPatch) -> None:
    def pool(context: BaseContext, *args: Any, **kwargs: Any) -> None:
        raise PoolAskedFor

    monkeypatch.setattr(BaseContext, "Pool", pool)


def processes(rows: Dataset) -> set[int]:
    return set(rows.map(lambda row: {"process": os.getpid()}, num_proc=2)["process"])


def test_few_bytes_are_mapped_filtered_and_saved_here(tmp_path: Path) -> None:
    with small_sets_here():
        assert processes(ROWS) == {os.getpid()}
        ROWS.filter(lambda row: row["text"] != "row 3", num_proc=2).save_to_disk(tmp_path / "saved", num_proc=2)
    saved = Dataset.load_from_disk(tmp_path / "saved")["text"][:]
    assert saved == [text for text in ROWS["text"] if text != "row 3"]


def test_more_of_them_by_as_many_processes_as_were_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(small_sets, "SMALL", ROWS.data.nbytes - 1)
    with small_sets_here():
        found = processes(ROWS)
        with pytest.raises(PoolAskedFor):
            ROWS.save_to_disk(tmp_path / "saved", num_proc=2)
    assert len(found) == 2
    assert os.getpid() not in found


def test_outside_all_is_as_before(tmp_path: Path) -> None:
    before = Dataset.map, Dataset.save_to_disk
    with suppress(KeyError), small_sets_here():
        raise KeyError
    assert (Dataset.map, Dataset.save_to_disk) == before
    with pytest.raises(PoolAskedFor):
        ROWS.save_to_disk(tmp_path / "saved", num_proc=2)  # of 1 tests.host spares the pool
