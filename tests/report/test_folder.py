"""The folder of a run: what a checkpoint keeps of it, and what a resume takes up."""

from __future__ import annotations

from pathlib import Path

import pytest

from scalebio_plugin.report.files import remove_unfinished
from scalebio_plugin.report.folder import FILES, RunFolder
from scalebio_plugin.report.history import append_history, read_history
from tests.report.histories import facts, record

NAMES = ("a", "b")
HISTORY = [record(step, {"a": 0.25, "b": 0.75}) for step in (1, 2, 3)]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "scalebio", NAMES, facts({"a": 100, "b": 100}), None)


@pytest.fixture
def copy(folder: RunFolder, tmp_path: Path) -> Path:
    """Of the first three updates, as a checkpoint has it; the run went on from there."""
    for one in HISTORY:
        folder.add(one)
    copy = tmp_path / "checkpoint-3/scalebio/history.jsonl"
    folder.save_history(copy)
    folder.add(record(4, {"a": 0.5, "b": 0.5}))
    return copy


def test_a_new_run_puts_what_an_earlier_one_left_aside(folder: RunFolder) -> None:
    """Stopped before its first save it would stand beside the mixture of the other one, and `show` would tell that."""
    for steps in (3, 7):
        for name in FILES:
            (folder.path / name).parent.mkdir(exist_ok=True)
            (folder.path / name).write_text(f"{steps}")
        (folder.path / "mine.txt").write_text("a user's")
        assert folder.begin() == folder.path / "earlier"
        assert {path.name: path.read_text() for path in (folder.path / "earlier").iterdir()} == dict.fromkeys(
            FILES, f"{steps}"
        )
        assert sorted(path.name for path in folder.path.iterdir()) == ["earlier", "mine.txt"]


def test_a_run_that_left_no_mixture_leaves_nothing_to_keep(folder: RunFolder) -> None:
    assert folder.begin() is None
    folder.add(HISTORY[0])
    (folder.path / "cost.json").write_text("of a warmup")
    assert folder.begin() is None
    assert list(folder.path.iterdir()) == []


def test_what_a_killed_process_left_half_written_goes(tmp_path: Path) -> None:
    remove_unfinished(tmp_path / "scalebio")  # which is not there yet
    for name in ("report.html.123.tmp", "mixture.json.7.tmp", "report.html", "mine.tmp"):
        (tmp_path / name).touch()
    remove_unfinished(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "mine.tmp"}


def test_what_is_left_beside_a_mixture_that_was_moved_away_is_kept(folder: RunFolder) -> None:
    folder.add(HISTORY[0])
    (folder.path / "report.html").write_text("of a run")
    assert folder.begin() == folder.path / "earlier"
    assert sorted(path.name for path in (folder.path / "earlier").iterdir()) == ["history.jsonl", "report.html"]


def test_a_resume_takes_the_history_of_its_checkpoint(folder: RunFolder, copy: Path) -> None:
    with folder.history.open("ab") as file:
        file.write(b'{"step": 5, "weig')  # the process was killed there
    assert not folder.restore_history(copy)
    assert folder.history.read_bytes() == copy.read_bytes()
    assert read_history(folder.history) == HISTORY


@pytest.mark.parametrize("lost", [1, 2, 30])
def test_of_a_checkpoint_whose_last_line_is_cut_off_the_others_are_taken(
    folder: RunFolder, copy: Path, lost: int
) -> None:
    content = copy.read_bytes()
    copy.write_bytes(content[:-lost])
    assert folder.restore_history(copy)
    append_history(folder.history, HISTORY[2])
    assert read_history(folder.history) == (HISTORY if lost == 1 else HISTORY[:2]) + HISTORY[2:]
    assert folder.write_mixture(folder.read_history(), 3, None) is not None


def test_a_checkpoint_before_the_first_update_has_none(folder: RunFolder, copy: Path, tmp_path: Path) -> None:
    assert not folder.restore_history(tmp_path / "none.jsonl")
    assert not folder.history.exists()
    folder.save_history(tmp_path / "none.jsonl")
    assert not (tmp_path / "none.jsonl").exists()
