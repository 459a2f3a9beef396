"""The files of a checkpoint: values in, the same values out, whoever wrote them and whoever reads."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from axolotl.utils.dict import DictDefault

from scalebio_plugin.training import checkpoint
from scalebio_plugin.training.checkpoint import InnerPart, MixturePart, Place
from scalebio_plugin.training.early import checkpoint_to_go_on_from
from scalebio_plugin.training.manifest import write_manifest
from scalebio_plugin.training.resume_from import problem_of

ALONE, SECOND_OF_TWO = Place(0, 1, sharded=False), Place(1, 2, sharded=True)
SHARDS = [Place(rank, 2, sharded=True) for rank in (0, 1)]
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
        assert problem_of(str(old)) is None
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


@pytest.mark.parametrize(
    ("engine", "written", "ranks", "said"),
    [
        ({}, [ALONE], 1, None),
        ({}, [ALONE], 2, None),
        ({"fsdp_config": {"reshard_after_forward": True}}, SHARDS, 2, None),
        ({"fsdp_config": {"reshard_after_forward": True}}, SHARDS, 1, r"as \['inner_00000_of_00002', .*, this run wou"),
        ({"deepspeed": "zero3.json"}, SHARDS, 4, "would read inner_00000_of_00004"),
        ({}, SHARDS, 1, "would read inner: it was written by another engine or number of processes"),
        ({}, [], 1, "holds no state of the inner parameters"),
    ],
)
def test_of_how_many_processes_it_is_is_known_before_the_model_loads(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    engine: dict[str, Any],
    written: list[Place],
    ranks: int,
    said: str | None,
) -> None:
    folder = tmp_path / "checkpoint-3"
    monkeypatch.setattr("scalebio_plugin.training.early.states_of", lambda run: None)
    checkpoint.write_mixture(str(folder), MixturePart({}, ORDERS))
    for place in written:
        checkpoint.write_inner(str(folder), InnerPart(position=(2, 5), **INNER), place)
    write_manifest(str(folder), 3, max(1, len(written)))
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    cfg = DictDefault({"output_dir": str(tmp_path), "auto_resume_from_checkpoints": True, **engine})
    with nullcontext() if said is None else pytest.raises(ValueError, match=said):
        checkpoint_to_go_on_from(cfg)
