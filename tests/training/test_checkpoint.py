"""The files of a checkpoint: values in, the same values out, whoever wrote them and whoever reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scalebio_plugin.training import checkpoint
from scalebio_plugin.training.checkpoint import InnerPart, MixturePart, Place

ALONE, SECOND_OF_TWO = Place(0, 1, sharded=False), Place(1, 2, sharded=True)
ORDERS = [(torch.tensor([1], dtype=torch.uint8), None), (torch.tensor([2], dtype=torch.uint8), None)]
INNER = {"inner": {"values": {"w": torch.ones(2)}}, "record": {"step": 3}, "model": {}}


@pytest.mark.parametrize(
    ("place", "name"),
    [(ALONE, "scalebio_inner.pt"), (SECOND_OF_TWO, "scalebio_inner_00001_of_00002.pt")],
)
def test_what_is_written_is_read_back(tmp_path: Path, place: Place, name: str) -> None:
    checkpoint.write_mixture(str(tmp_path), MixturePart({"names": ["a"], "logits": torch.zeros(1)}, ORDERS))
    checkpoint.write_inner(str(tmp_path), InnerPart(position=(2, 5), **INNER), place)
    checkpoint.write_complete(str(tmp_path), 3, place)
    assert {path.name for path in tmp_path.iterdir()} == {"scalebio_mixture.pt", name, "scalebio_complete"}
    mixture, inner = checkpoint.read_mixture(str(tmp_path), place), checkpoint.read_inner(str(tmp_path), place)
    assert mixture.run["names"] == ["a"]
    assert mixture.order_of(place)[0].tolist() == [2 if place is SECOND_OF_TWO else 1]
    assert inner.position == (2, 5)
    assert inner.inner["values"]["w"].tolist() == [1.0, 1.0]
    assert (inner.record, inner.model) == ({"step": 3}, {})


def test_files_in_the_first_format_are_read(tmp_path: Path) -> None:
    """As version 0.1.0 has written them, key by key."""
    torch.save({"version": 1, "run": {"names": ["a"]}, "orders": ORDERS[:1]}, tmp_path / "scalebio_mixture.pt")
    torch.save({"version": 1, "rest": (1, 4), **INNER}, tmp_path / "scalebio_inner.pt")
    (tmp_path / "scalebio_complete").touch()
    assert checkpoint.read_mixture(str(tmp_path), ALONE).run == {"names": ["a"]}
    assert checkpoint.read_inner(str(tmp_path), ALONE).position == (1, 4)


def test_files_in_a_format_of_another_version_are_refused(tmp_path: Path) -> None:
    torch.save({"version": 2, "run": {}, "orders": []}, tmp_path / "scalebio_mixture.pt")
    torch.save({"version": 2, "inner": None}, tmp_path / "scalebio_inner.pt")
    (tmp_path / "scalebio_complete").touch()
    for read in (checkpoint.read_mixture, checkpoint.read_inner):
        with pytest.raises(ValueError, match=r"has the format 2, this version of the plugin reads 1"):
            read(str(tmp_path), ALONE)


@pytest.mark.parametrize(
    ("files", "half"),
    [
        (["scalebio_mixture.pt", "trainer_state.json"], True),  # killed before the last file of ours
        (["scalebio_mixture.pt", "trainer_state.json", "scalebio_complete"], False),
        ([], True),  # killed before any file
        (["trainer_state.json"], False),  # written without the plugin
    ],
)
def test_a_checkpoint_that_was_not_written_to_its_end_is_known(tmp_path: Path, files: list[str], half: bool) -> None:
    whole, newer = tmp_path / "checkpoint-9", tmp_path / "checkpoint-10"
    for folder in (whole, newer):
        folder.mkdir()
    (whole / "scalebio_complete").touch()
    for name in files:
        (newer / name).touch()
    assert checkpoint.is_half_written(str(newer)) == half
    assert checkpoint.last_whole_checkpoint(str(tmp_path)) == str(whole if half else newer)
    if half:
        with pytest.raises(ValueError, match=r"checkpoint-10 was not written to its end"):
            checkpoint.read_mixture(str(newer), ALONE)
