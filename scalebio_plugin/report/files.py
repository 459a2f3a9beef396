"""Files that are never half there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

StrPath = str | os.PathLike[str]


def replace_file(path: StrPath, content: bytes) -> None:
    """Write it beside its place and move it there: a reader sees the old content or the new, also after a power cut."""
    with replaced(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def replaced(path: StrPath) -> Iterator[Path]:
    """Where to write what is to be `path` once the block has ended without an error, and it is on the disk."""
    temporary = Path(f"{os.fspath(path)}.{os.getpid()}.tmp")  # a name that no file of a user has
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # not every file system flushes folders
        _flush(temporary.parent)


def remove_unfinished(folder: StrPath) -> None:
    """What processes that were killed had begun to write there."""
    for path in Path(folder).glob("*.tmp"):
        if re.search(r"\.\d+\.tmp$", path.name):
            path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
