"""Every damage to every file of a checkpoint is found and named, before anything reads the file."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from scalebio_plugin.training import manifest
from scalebio_plugin.training.resume_from import newest_whole, problem_of, refuse_problem
from tests import host

Damage = Callable[[bytes, bytes], bytes | None]  # of a file's content and another step's; None: the file is gone
DAMAGES: dict[str, tuple[Damage, str]] = {
    "truncated": (lambda here, there: here[: len(here) // 2], r"truncated \(\d+ of \d+ bytes\)|empty"),
    "by a byte": (lambda here, there: here[:-1], r"truncated \(\d+ of \d+ bytes\)|empty"),
    "a flipped bit": (lambda here, there: flipped(here, len(here) // 2), "changed"),
    "emptied": (lambda here, there: b"", "empty"),
    "removed": (lambda here, there: None, "missing"),
    "another step's": (lambda here, there: there, r"changed|truncated \(\d+ of \d+ bytes\)"),
    "replaced": (lambda here, there: b"another" + here, "changed"),
}
# The same of the manifest itself; another step's agrees with itself, and with none of the files.
MANIFEST = {"removed": "manifest.json: the run was killed", "emptied": "manifest.json is empty", "another step's": "is"}


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]


def write(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def out(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run of an adapter that left checkpoint-2 and checkpoint-4."""
    out = tmp_path_factory.mktemp("out")
    saving = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "micro_batch_size": 2}
    host.train(inputs, output_dir=str(out), **saving, **host.LORA, lora_dropout=0.1)
    return out


def test_a_manifest_has_every_file_of_the_hosts_and_ours(out: Path) -> None:
    newest = out / "checkpoint-4"
    document = json.loads((newest / manifest.NAME).read_text())
    assert sorted([*document["files"], manifest.NAME]) == files_of(newest)
    hosts = {"adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
    ours = {f"scalebio/{name}" for name in ("mixture.safetensors", "inner.safetensors", "history.jsonl")}
    assert hosts | ours <= set(document["files"])
    assert (document["step"], document["ranks"]) == (4, 1)
    assert newest_whole(str(out)) == (str(newest), {})


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_taken(out: Path, tmp_path: Path, damage: str) -> None:
    newest, older = (Path(shutil.copytree(out / name, tmp_path / name)) for name in ("checkpoint-4", "checkpoint-2"))
    change, words = DAMAGES[damage]
    unlike = 0
    for name in files_of(newest):
        path, before, other = newest / name, (newest / name).read_bytes(), (older / name).read_bytes()
        changed = change(before, other)
        if changed == before:  # the tokenizer's are the same in every step
            continue
        unlike += 1
        write(path, changed)
        taken, passed_over = newest_whole(str(tmp_path))
        assert taken == str(older), name
        said = rf"{name} is ({words})" if name != manifest.NAME else MANIFEST.get(damage, "manifest.json is changed")
        assert list(passed_over) == [str(newest)]
        assert re.search(said, passed_over[str(newest)]), passed_over
        with pytest.raises(ValueError, match=rf"^scalebio: .*checkpoint-4 .*{said}.*resume from another"):
            refuse_problem(str(newest))
        path.write_bytes(before)
    assert unlike >= 9
    assert problem_of(str(newest)) is None


def test_every_byte_of_a_manifest_counts(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"weights")
    manifest.write_manifest(tmp_path, 7, 2)
    path = tmp_path / manifest.NAME
    content = path.read_bytes()
    assert manifest.faults_of(tmp_path) == []
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :])
        assert manifest.faults_of(tmp_path) == [f"{manifest.NAME} is changed"]


class TestLargeFiles:
    """Of which blocks are read: both ends, and evenly between them."""

    @pytest.fixture
    def large(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr(manifest, "WHOLE", 1000)
        monkeypatch.setattr(manifest, "BLOCK", 10)
        path = tmp_path / "model.bin"
        path.write_bytes(bytes(range(250)) * 40)
        manifest.write_manifest(tmp_path, 7, 1)
        return path

    @pytest.mark.parametrize("at", [0, 9, 9990, 9999])
    def test_a_flipped_bit_at_an_end_is_found(self, large: Path, at: int) -> None:
        large.write_bytes(flipped(large.read_bytes(), at))
        assert manifest.faults_of(large.parent) == ["model.bin is changed"]

    def test_a_flipped_bit_is_found_where_each_of_64_blocks_begins(self, large: Path) -> None:
        content = large.read_bytes()
        for block in range(64):
            large.write_bytes(flipped(content, block * 9990 // 63))
            assert manifest.faults_of(large.parent) == ["model.bin is changed"]

    def test_a_stretch_of_zeros_is_found_wherever_it_is(self, large: Path) -> None:
        content = large.read_bytes()
        for start in range(0, 9800, 61):
            large.write_bytes(content[:start] + bytes(200) + content[start + 200 :])
            assert manifest.faults_of(large.parent) == ["model.bin is changed"]

    def test_another_size_is_found(self, large: Path) -> None:
        content = large.read_bytes()
        for other, fault in ((content[:-1], "truncated (9999 of 10000 bytes)"), (content + b"0", "changed")):
            large.write_bytes(other)
            assert manifest.faults_of(large.parent) == [f"model.bin is {fault}"]

    def test_a_flipped_bit_between_the_blocks_is_not(self, large: Path) -> None:
        """As is said: 640 of 10000 bytes are read."""
        content = large.read_bytes()
        found = []
        for at in range(0, len(content), 37):
            large.write_bytes(flipped(content, at))
            found.append(bool(manifest.faults_of(large.parent)))
        assert 0 < sum(found) < len(found) / 10


def test_files_in_folders_of_the_checkpoint_are_in_it(tmp_path: Path) -> None:
    """As FSDP2 and DeepSpeed write them."""
    shard = tmp_path / "pytorch_model_fsdp_0/__1_0.distcp"
    shard.parent.mkdir()
    shard.write_bytes(b"shard")
    (tmp_path / "latest").write_text("global_step4")
    manifest.write_manifest(tmp_path, 4, 2)
    shard.write_bytes(b"sharf")
    (tmp_path / "latest").unlink()
    assert manifest.faults_of(tmp_path) == ["latest is missing", "pytorch_model_fsdp_0/__1_0.distcp is changed"]
    (tmp_path / "written later").touch()
    assert len(manifest.faults_of(tmp_path)) == 2


@pytest.mark.parametrize(("lost", "end"), [(5, "e is missing)"), (6, "e is missing; and 1 more)"), (7, "and 2 more)")])
def test_five_faults_are_named_and_the_others_counted(tmp_path: Path, lost: int, end: str) -> None:
    for name in "abcdefgh":
        (tmp_path / name).write_text(name)
    manifest.write_manifest(tmp_path, 1, 1)
    for name in "abcdefgh"[:lost]:
        (tmp_path / name).unlink()
    said = problem_of(str(tmp_path))
    assert said is not None
    assert said.startswith("is damaged (a is missing; b is missing")
    assert said.endswith(end)
