"""What a checkpoint consists of: size and digest of every file in it, the host's and ours, as `scalebio/manifest.json`.

It is written last. A checkpoint that has none was not written to its end, one that does not agree with it is damaged.
Files of at most WHOLE bytes are read as a whole. Of a larger one BLOCKS blocks, evenly from its head to its tail, are:
what was cut off, emptied, or came from another step is found, a flipped bit between the blocks is not. So a checkpoint
of any size costs a fraction of the time that writing it took.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from xxhash import xxh3_128

from ..report.files import StrPath, replace_file

NAME = "scalebio/manifest.json"
WHOLE = 1 << 26  # bytes
BLOCKS, BLOCK = 64, 1 << 18  # of so many bytes


def write_manifest(checkpoint: StrPath, step: int, ranks: int) -> None:
    """Once every rank has written its files: from now on a resume may take this checkpoint."""
    files = {name: _facts(Path(checkpoint, name)) for name in _names(checkpoint)}
    document = {"step": step, "ranks": ranks, "files": files}
    text = json.dumps({**document, "digest": _digest_of(document)}, indent=1, ensure_ascii=False)
    Path(checkpoint, NAME).parent.mkdir(exist_ok=True)
    replace_file(Path(checkpoint, NAME), text.encode())


def faults_of(checkpoint: StrPath) -> list[str]:
    """What is not as its manifest has it, in words; empty if all is.

    Raises:
        FileNotFoundError: It has no manifest.
    """
    content = Path(checkpoint, NAME).read_bytes()
    try:
        document = json.loads(content)
        intact = document.pop("digest") == _digest_of(document)
    except (ValueError, KeyError, AttributeError, TypeError):
        intact = False
    if not intact:
        return [f"{NAME} is changed" if content else f"{NAME} is empty"]
    pairs = ((name, _fault_of(Path(checkpoint, name), facts)) for name, facts in document["files"].items())
    return [f"{name} is {fault}" for name, fault in pairs if fault is not None]


def _fault_of(path: Path, facts: dict[str, Any]) -> str | None:
    if not path.is_file():
        return "missing"
    size = path.stat().st_size
    if size < facts["bytes"]:
        return f"truncated ({size} of {facts['bytes']} bytes)" if size else "empty"
    return None if _facts(path) == facts else "changed"


def _facts(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest = xxh3_128()
        for block in _blocks(file, size):
            digest.update(block)
    return {"bytes": size, "xxh3_128": digest.hexdigest()}


def _blocks(file: BinaryIO, size: int) -> Iterator[bytes]:
    """All of the file, or of a large one what the digest is of."""
    if size <= WHOLE:
        yield from iter(lambda: file.read(1 << 20), b"")
        return
    for index in range(BLOCKS):
        file.seek(index * (size - BLOCK) // (BLOCKS - 1))
        yield file.read(BLOCK)


def _names(checkpoint: StrPath) -> list[str]:
    """All files in it but the manifest, with the folders between."""
    files = (path.relative_to(checkpoint).as_posix() for path in Path(checkpoint).rglob("*") if path.is_file())
    return sorted(name for name in files if name != NAME)


def _digest_of(document: dict[str, Any]) -> str:
    return xxh3_128(json.dumps(document, sort_keys=True).encode()).hexdigest()
