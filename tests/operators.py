"""Where DeepSpeed's operators are built for tests and benchmarks.

PyTorch builds under a lock that is a file, and waits for as long as there is one: a process killed while it built, or
only looked whether all is built, leaves it, and every later run waits for good. So they are built in a folder of the
tests' own, and locks that nobody can be holding are removed before the first run.
"""

from __future__ import annotations

import fcntl
import sys
from importlib.metadata import version
from pathlib import Path

_held = []  # open files, for as long as this process lives


def place(cache: Path) -> Path:
    """A folder under `cache` for operators of this Python and this torch, without the locks of sessions that died.

    Locks are left alone while another session, that of another process, uses the folder.
    """
    folder = cache / f"{sys.implementation.cache_tag}-torch-{version('torch')}"
    folder.mkdir(parents=True, exist_ok=True)
    session = (folder / "session").open("a")
    try:
        fcntl.flock(session, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pass
    else:
        forget_locks(folder)
    fcntl.flock(session, fcntl.LOCK_SH)
    _held.append(session)
    return folder


def forget_locks(folder: Path) -> None:
    """Of operators that nobody is building."""
    for lock in folder.glob("*/lock"):
        lock.unlink()
