"""The files of a checkpoint: values in, the same values out, whoever wrote them and whoever reads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from scalebio_plugin.training import checkpoint
from scalebio_plugin.training.checkpoint import InnerPart, MixturePart, Place
from scalebio_plugin.training.manifest import write_manifest

ALONE, SECOND_OF_TWO = Place(0, 1, sharded=False), Place(1, 2, sharded=True)
ORDERS = [(torch.tensor([1], dtype=torch.uint8), None), (torch.tensor([2], dtype=torch.uint8), None)]
INNER = {"inner": {"values": {"w": torch.ones(2)}}, "record": {"step": 3}, "model": {}}


@pytest.mark.parametrize(
    ("place", "name"),
    [(ALONE, "inner.safetensors"), (SECOND_OF_TWO, "inner_00001_of_00002.safetensors")],
)
def test_what_is_written_is_read_back(tmp_path: Path, place: Place, name: str) -> None:
    write(tmp_path, place)
    assert files_in(tmp_path) == {"scalebio/mixture.safetensors", f"scalebio/{name}", "scalebio/manifest.json"}
    mixture, inner = checkpoint.read_mixture(str(tmp_path), place), checkpoint.read_inner(str(tmp_path), place)
    assert mixture.run["names"] == ["a"]
    assert mixture.order_of(place)[0].tolist() == [2 if place is SECOND_OF_TWO else 1]
    assert inner.position == (2, 5)
    assert inner.inner["values"]["w"].tolist() == [1.0, 1.0]
    assert (inner.record, inner.model) == ({"step": 3}, {})


def write(folder: Path, place: Place = ALONE, step: int = 3) -> None:
    """Our files of a whole checkpoint."""
    checkpoint.write_mixture(str(folder), MixturePart({"names": ["a"], "logits": torch.zeros(1)}, ORDERS))
    checkpoint.write_inner(str(folder), InnerPart(position=(2, 5), **INNER), place)
    write_manifest(str(folder), step, place.world)


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


class TestOfAnEarlierVersion:
    """As 0.1.0 has written them, key by key: pickled values, and a mark in place of a manifest."""

    @pytest.fixture
    def old(self, tmp_path: Path) -> Path:
        torch.save({"version": 1, "run": {"names": ["a"]}, "orders": ORDERS[:1]}, tmp_path / "scalebio_mixture.pt")
        torch.save({"version": 1, "rest": (1, 4), **INNER}, tmp_path / "scalebio_inner.pt")
        (tmp_path / "scalebio_history.jsonl").write_bytes(b"{}\n")
        (tmp_path / "scalebio_complete").touch()
        return tmp_path

    def test_files_are_read(self, old: Path) -> None:
        assert checkpoint.is_unchecked(str(old))
        assert checkpoint.problem_of(str(old)) is None
        assert checkpoint.read_mixture(str(old), ALONE).run == {"names": ["a"]}
        assert checkpoint.read_inner(str(old), ALONE).position == (1, 4)
        assert checkpoint.history_in(str(old)) == str(old / "scalebio_history.jsonl")

    def test_files_of_another_number_of_ranks_are_refused(self, old: Path) -> None:
        with pytest.raises(ValueError, match=r"as \['inner'\], this run would read inner_00001_of_00002"):
            checkpoint.read_mixture(str(old), SECOND_OF_TWO)

    def test_one_that_is_written_in_its_place_leaves_nothing_of_it(self, old: Path) -> None:
        (old / "model.safetensors").touch()
        checkpoint.forget(str(old))
        assert files_in(old) == {"model.safetensors"}
        write(old)
        assert not checkpoint.is_unchecked(str(old))
        assert checkpoint.read_inner(str(old), ALONE).position == (2, 5)
        assert checkpoint.history_in(str(old)) == str(old / "scalebio/history.jsonl")

    @pytest.mark.parametrize("left", [0, 1, 500], ids=["emptied", "of one byte", "truncated"])
    def test_a_file_that_cannot_be_read_is_an_error_in_words(self, old: Path, left: int) -> None:
        for name in ("mixture", "inner"):
            path = old / f"scalebio_{name}.pt"
            path.write_bytes(path.read_bytes()[:left])
        for read in (checkpoint.read_mixture, checkpoint.read_inner):
            with pytest.raises(
                ValueError, match=r"^scalebio: .*\.pt is damaged, it cannot be read; resume from another"
            ):
                read(str(old), ALONE)

    def test_a_format_of_another_version_is_refused(self, old: Path) -> None:
        torch.save({"version": 2, "run": {}, "orders": []}, old / "scalebio_mixture.pt")
        torch.save({"version": 2, "inner": None}, old / "scalebio_inner.pt")
        for read in (checkpoint.read_mixture, checkpoint.read_inner):
            with pytest.raises(ValueError, match=r"has the format 2, this version of the plugin reads 1"):
                read(str(old), ALONE)


def test_a_format_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "VERSION", 2)
    write(tmp_path)
    monkeypatch.undo()
    for read in (checkpoint.read_mixture, checkpoint.read_inner):
        with pytest.raises(ValueError, match=r"has the format 2, this version of the plugin reads 1"):
            read(str(tmp_path), ALONE)


def write_half(folder: Path) -> None:
    checkpoint.write_mixture(str(folder), MixturePart({}, []))


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
    taken, passed_over = checkpoint.newest_whole(str(tmp_path))
    assert taken == str(whole if half else newer)
    assert len(passed_over) == half
    assert all("checkpoint-10 was not written to its end" in line for line in passed_over)
    if half:
        with pytest.raises(ValueError, match=r"checkpoint-10 was not written to its end.*the newest whole one$"):
            checkpoint.refuse_problem(str(newer))


def test_the_newest_is_what_the_host_takes(tmp_path: Path) -> None:
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-best", "checkpoint-11.bak"):
        (tmp_path / name).mkdir()
    assert checkpoint.is_newest(f"{tmp_path}/out/../checkpoint-10", str(tmp_path))
    assert not checkpoint.is_newest(str(tmp_path / "checkpoint-9"), str(tmp_path))
    assert not checkpoint.is_newest(str(tmp_path / "checkpoint-9"), str(tmp_path / "none"))


DAMAGED = r"checkpoint-9 is damaged \(scalebio/inner.safetensors is truncated \(3 of \d+ bytes\)\)"


class TestWhereNoneIsWhole:
    """What was never whole is begun anew; what was, and is lost, is for the user to decide."""

    def test_no_folder(self, tmp_path: Path) -> None:
        assert checkpoint.newest_whole(str(tmp_path / "out")) == (None, [])

    def test_killed_while_the_first_was_written(self, tmp_path: Path) -> None:
        write_half(tmp_path / "checkpoint-3")
        taken, passed_over = checkpoint.newest_whole(str(tmp_path))
        assert taken is None
        assert len(passed_over) == 1

    def test_damaged(self, tmp_path: Path) -> None:
        write(tmp_path / "checkpoint-9")
        (tmp_path / "checkpoint-9/scalebio/inner.safetensors").write_bytes(b"abc")
        write_half(tmp_path / "checkpoint-12")
        with pytest.raises(ValueError, match=rf"(?s)none is whole:.*-12 was not written.*{DAMAGED}\nBring.*anew"):
            checkpoint.newest_whole(str(tmp_path))


def test_what_a_resume_passed_over_goes_if_it_never_was_whole_and_is_kept_aside_if_it_was(tmp_path: Path) -> None:
    for step in (3, 6, 9, 12):
        write(tmp_path / f"checkpoint-{step}", step=step)
    for step in (3, 12):
        (tmp_path / f"checkpoint-{step}/scalebio/inner.safetensors").write_bytes(b"abc")
    write_half(tmp_path / "checkpoint-15")
    (tmp_path / "checkpoint-16").mkdir()  # killed before any file
    (tmp_path / "checkpoint-9000").mkdir()
    (tmp_path / "checkpoint-9000/model.safetensors").touch()  # a user's
    passed_over = checkpoint.newer_than(str(tmp_path / "checkpoint-9"), str(tmp_path))
    lines = list(checkpoint.out_of_the_way(passed_over))
    kept = {"checkpoint-3", "checkpoint-6", "checkpoint-9", "damaged-checkpoint-12", "checkpoint-9000"}
    assert {path.name for path in tmp_path.iterdir()} == kept
    assert re.fullmatch(r".*-16 was not written to its end.*: it is deleted", lines[0])
    assert re.fullmatch(r".*-15 was not written to its end.*: it is deleted", lines[1])
    assert re.fullmatch(r".*-12 is damaged \(.*\): it is .*/damaged-checkpoint-12 now", lines[2])
    assert len(lines) == 3


def test_one_that_was_passed_over_and_written_anew_stays(tmp_path: Path) -> None:
    write(tmp_path / "checkpoint-3", step=3)
    write_half(tmp_path / "checkpoint-6")
    passed_over = checkpoint.newer_than(None, str(tmp_path))
    assert [Path(path).name for path in passed_over] == ["checkpoint-6", "checkpoint-3"]
    write(tmp_path / "checkpoint-6", step=6)
    assert list(checkpoint.out_of_the_way([*passed_over, str(tmp_path / "checkpoint-9")])) == []
