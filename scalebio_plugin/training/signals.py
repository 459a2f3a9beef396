"""Ctrl-C and SIGTERM in mid-run wait for the end of the optimiser step, so that a checkpoint can come first.

The host's handler of Ctrl-C saves the model from wherever the run is, half a step taken or u in place of w; SIGTERM,
which a cluster sends some seconds before it kills, ends the process. Both still do, once the step is done and saved.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_HELD = (signal.SIGINT, signal.SIGTERM)
ONE_SIGNAL = 3.0  # seconds in which it may come from the terminal or the cluster and from the launcher, too


class HeldSignals:
    """Notes the first signal of each kind while it is entered; a later one does what the first would have done.

    What comes within ONE_SIGNAL of it is the same signal by another way. Outside of the main thread, where Python has
    no handlers, it notes none.

    Attributes:
        host_saves: Whether Ctrl-C does what the host does, which saves the model as this process has it; else it is the
            KeyboardInterrupt that it is on all other ranks.
    """

    def __init__(self) -> None:
        self.host_saves = True
        self.noted: list[int] = []
        self._noted_at: dict[int, float] = {}  # seconds
        self._before: dict[int, Any] = {}

    def __enter__(self) -> HeldSignals:
        self.noted.clear()
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _HELD}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self.noted:
            self.deliver()
        self._restore()

    @property
    def first(self) -> signal.Signals:
        """Of those that were noted; SIGTERM where another rank has one, and this one has to end with it."""
        return signal.Signals(self.noted[0]) if self.noted else signal.SIGTERM

    def deliver(self) -> None:
        """Let the first one do what it would have done."""
        first = self.first
        self.noted.clear()
        self._act(first)

    def _note(self, number: int, frame: Any) -> None:
        if number in self.noted:
            if time.monotonic() - self._noted_at[number] > ONE_SIGNAL:
                self._act(signal.Signals(number))
            return
        self.noted.append(number)
        self._noted_at[number] = time.monotonic()
        if os.environ.get("RANK", "0") == "0":  # not by the log, which may be in the middle of a line
            os.write(
                2,
                b"\nscalebio: the run ends with this optimiser step, once it is saved; the same signal again, some "
                b"seconds later, ends it at once\n",
            )

    def _act(self, number: signal.Signals) -> None:
        self._restore()
        if number == signal.SIGINT and not self.host_saves:
            raise KeyboardInterrupt
        signal.raise_signal(number)

    def _restore(self) -> None:
        for number, before in self._before.items():
            signal.signal(number, before if before is not None else signal.SIG_DFL)
        self._before = {}


@contextmanager
def held_from_children() -> Iterator[None]:
    """Processes that begin within are not ended by them: a data loader's, whose batches a run's last step needs.

    Launchers send their signals to all processes of a group. See `begin_worker`.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)  # a child has it from its first moment on
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin_worker(initialise: Callable[[int], None] | None, number: int) -> None:
    """The `worker_init_fn` of a loader whose workers began in `held_from_children`: SIGTERM by their parent ends them.

    Args:
        initialise: The loader's own. number: Of the worker.
    """
    threading.Thread(target=_end_by_parent, daemon=True).start()
    if initialise is not None:
        initialise(number)


def _end_by_parent() -> None:
    """Python ends its children so at its exit, and then waits for them."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
