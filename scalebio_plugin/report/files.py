"""Files that are never half there."""

from __future__ import annotations

import os
from pathlib import Path

StrPath = str | os.PathLike[str]


def replace_file(path: StrPath, content: bytes) -> None:
    """Write it beside its place and move it there: a reader sees the old content or the new."""
    temporary = Path(f"{os.fspath(path)}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
