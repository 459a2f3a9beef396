"""Which checkpoint a run goes on from, and what becomes of those that it passes over."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scalebio_plugin.training.checkpoint import MixturePart, write_mixture
from scalebio_plugin.training.resume_from import is_newest, newest_whole, out_of_the_way, refuse_problem
from tests.training.test_checkpoint import write


def write_half(folder: Path) -> None:
    write_mixture(str(folder), MixturePart({}, []))


@pytest.mark.parametrize(
    ("files", "half"),
    [
        (["scalebio/mixture.safetensors", "trainer_state.json"], True),  # killed before the last file of ours
        (["scalebio_mixture.pt", "trainer_state.json"], True),  # the same of an earlier version
        (["scalebio_mixture.pt", "trainer_state.json", "scalebio_complete"], False),
        ([], True),  # killed before any file
        (["trainer_state.json"], False),  # written without the plugin
    ],
)
def test_a_checkpoint_that_was_not_written_to_its_end_is_known(tmp_path: Path, files: list[str], half: bool) -> None:
    whole, newer = tmp_path / "checkpoint-9", tmp_path / "checkpoint-10"
    write(whole)
    newer.mkdir()
    for name in files:
        (newer / name).parent.mkdir(exist_ok=True)
        (newer / name).touch()
    taken, passed_over = newest_whole(str(tmp_path))
    assert taken == str(whole if half else newer)
    assert len(passed_over) == half
    assert all(path == str(newer) and "was not written to its end" in said for path, said in passed_over.items())
    if half:
        with pytest.raises(ValueError, match=r"checkpoint-10 was not written to its end.*the newest whole one$"):
            refuse_problem(str(newer))


def test_the_newest_is_what_the_host_takes(tmp_path: Path) -> None:
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-best", "checkpoint-11.bak"):
        (tmp_path / name).mkdir()
    assert is_newest(f"{tmp_path}/out/../checkpoint-10", str(tmp_path))
    assert not is_newest(str(tmp_path / "checkpoint-9"), str(tmp_path))
    assert not is_newest(str(tmp_path / "checkpoint-9"), str(tmp_path / "none"))


DAMAGED = r"checkpoint-9 is damaged \(scalebio/inner.safetensors is truncated \(3 of \d+ bytes\)\)"


class TestWhereNoneIsWhole:
    """What was never whole is begun anew; what was, and is lost, is for the user to decide."""

    def test_no_folder(self, tmp_path: Path) -> None:
        assert newest_whole(str(tmp_path / "out")) == (None, {})

    def test_killed_while_the_first_was_written(self, tmp_path: Path) -> None:
        write_half(tmp_path / "checkpoint-3")
        taken, passed_over = newest_whole(str(tmp_path))
        assert taken is None
        assert len(passed_over) == 1

    def test_damaged(self, tmp_path: Path) -> None:
        write(tmp_path / "checkpoint-9")
        (tmp_path / "checkpoint-9/scalebio/inner.safetensors").write_bytes(b"abc")
        write_half(tmp_path / "checkpoint-12")
        with pytest.raises(ValueError, match=rf"(?s)none is whole:.*-12 was not written.*{DAMAGED}\nBring.*anew"):
            newest_whole(str(tmp_path))


def test_what_a_resume_passed_over_goes_if_it_never_was_whole_and_is_kept_aside_if_it_was(tmp_path: Path) -> None:
    for step in (3, 6, 9, 12):
        write(tmp_path / f"checkpoint-{step}", step=step)
    for step in (3, 12):
        (tmp_path / f"checkpoint-{step}/scalebio/inner.safetensors").write_bytes(b"abc")
    write_half(tmp_path / "checkpoint-15")
    (tmp_path / "checkpoint-16").mkdir()  # killed before any file
    (tmp_path / "checkpoint-9000").mkdir()
    (tmp_path / "checkpoint-9000/model.safetensors").touch()  # a user's
    taken, passed_over = newest_whole(str(tmp_path))
    assert taken == str(tmp_path / "checkpoint-9")
    lines = list(out_of_the_way(passed_over))
    kept = {"checkpoint-3", "checkpoint-6", "checkpoint-9", "damaged-checkpoint-12", "checkpoint-9000"}
    assert {path.name for path in tmp_path.iterdir()} == kept
    assert re.fullmatch(r".*-16 was not written to its end.*: it is deleted", lines[0])
    assert re.fullmatch(r".*-15 was not written to its end.*: it is deleted", lines[1])
    assert re.fullmatch(r".*-12 is damaged \(.*\): it is .*/damaged-checkpoint-12 now", lines[2])
    assert len(lines) == 3


def test_one_that_was_passed_over_and_written_anew_stays(tmp_path: Path) -> None:
    write(tmp_path / "checkpoint-3", step=3)
    write_half(tmp_path / "checkpoint-6")
    _, passed_over = newest_whole(str(tmp_path))
    assert [Path(path).name for path in passed_over] == ["checkpoint-6"]
    write(tmp_path / "checkpoint-6", step=6)
    assert list(out_of_the_way([*passed_over, *(str(tmp_path / f"checkpoint-{step}") for step in (3, 9))])) == []
