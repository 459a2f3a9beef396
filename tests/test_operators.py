"""Locks of killed processes do not make later ones wait."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SESSION = "import sys, pathlib; from tests import operators; operators.place(pathlib.Path(sys.argv[1]))"


def session_after(lock: Path) -> None:
    cache = lock.parents[2]
    subprocess.run([sys.executable, "-c", SESSION, str(cache)], check=True, timeout=60)


def test_a_lock_is_left_while_another_session_lives_and_removed_when_none_does(tmp_path: Path) -> None:
    first = subprocess.Popen(
        [sys.executable, "-c", f"{SESSION}; print('there', flush=True); sys.stdin.read()", str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert first.stdout is not None
    assert first.stdout.readline() == b"there\n"
    [folder] = tmp_path.iterdir()
    lock = folder / "an_operator" / "lock"
    lock.parent.mkdir()
    lock.touch()
    try:
        session_after(lock)
        assert lock.exists()
    finally:
        first.kill()
        first.communicate()
    session_after(lock)
    assert not lock.exists()
    assert lock.parent.exists()


def test_the_tests_build_there() -> None:
    folder = Path(os.environ["TORCH_EXTENSIONS_DIR"])
    assert folder.name.startswith(sys.implementation.cache_tag)
    assert (folder / "session").exists()
