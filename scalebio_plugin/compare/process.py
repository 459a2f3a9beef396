"""The process that trains an arm: one comparison at a time in a folder, and an end that leaves a checkpoint.

Two files are locked (flock), and what has inherited one of them holds its lock: the folder's is the input of all that
is started for it, an arm's log is the output. So that a run outlives neither what started it nor a launcher unseen.
"""

from __future__ import annotations

import fcntl
import os
import platform
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

LOCK = "lock"
_ENDING = (signal.SIGTERM, signal.SIGHUP)


class Ended(KeyboardInterrupt):
    """A signal that ends a comparison as Ctrl-C does."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def ending_as_ctrl_c() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP raise Ended; one that is ignored, as under nohup, stays so."""
    before = {number: signal.getsignal(number) for number in _ENDING}
    caught = [number for number in _ENDING if before[number] is not signal.SIG_IGN]
    try:
        for number in caught:
            signal.signal(number, _raise)
        yield
    finally:
        for number in caught:
            signal.signal(number, before[number])


def _raise(number: int, frame: Any) -> None:
    raise Ended(number)


@contextmanager
def only_one_in(folder: Path) -> Iterator[IO[bytes]]:
    """Holds the folder's lock: a file that what is started for it has to inherit, as its input.

    Raises:
        ValueError: It is held.
    """
    path = folder / LOCK
    with open(path, "a+b") as lock:
        if not _locked(lock):
            holders = path.read_text(errors="replace").strip().replace("\n", ", ")
            raise ValueError(
                f"{folder} is being worked on by {holders}; wait for its end, end it, or name another --dir"
            )
        lock.truncate(0)
        note(lock, f"scalebio compare, process {os.getpid()} on {platform.node()}")
        yield lock


def note(lock: IO[bytes], line: str) -> None:
    """Add to what is said of who holds it. Who reads it as an input is at its end."""
    lock.write(f"{line}\n".encode())
    lock.flush()


def _locked(file: IO[bytes]) -> bool:
    """Whether it is locked from here on; also where the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def status_of(command: Sequence[str], log: Path, lock: IO[bytes]) -> int:
    """Exit status of a command. What ends this process is passed on to all of the command's, and their end waited for.

    They are a group of their own: each gets a signal once, by whatever way it came here.
    """
    with open(log, "ab") as file:
        _locked(file)
        process = subprocess.Popen(command, stdin=lock, stdout=file, stderr=subprocess.STDOUT, process_group=0)
    try:
        note(lock, f"the run of {log.parent}, process {process.pid}")
        return process.wait()
    except KeyboardInterrupt as stopped:
        _end(process, log, stopped)
        raise


def _end(process: subprocess.Popen[bytes], log: Path, stopped: KeyboardInterrupt) -> None:
    """A launcher may be gone before what it launched, which saves a checkpoint."""
    _pass_on(process.pid, stopped)
    try:
        process.wait()
        with open(log, "ab") as file, suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
    except KeyboardInterrupt as again:
        _pass_on(process.pid, again)
        process.wait()


def _pass_on(group: int, stopped: KeyboardInterrupt) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGTERM if isinstance(stopped, Ended) else signal.SIGINT)
