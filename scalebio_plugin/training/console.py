"""Lines of the log between progress bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm


def say(how: Callable[[str], None], message: str) -> None:
    """Log a message on lines of its own.

    Args:
        how: A method of a logger.
    """
    with own_line():
        how(message)


@contextmanager
def own_line() -> Iterator[None]:
    """What is printed inside begins a line, where a bar of the host's, which ends without one, may stand.

    On a terminal the bar steps aside and comes back below. In a file, where a bar cannot be wiped out, its line ends.
    A run that died in this process may have left a bar on a file that was closed since: it is passed over.
    """
    bars = [bar for bar in list(tqdm._instances) if not bar.disable]
    on_terminals = [_on_terminal(bar.fp) for bar in bars]
    if any(on_terminals):
        with tqdm.external_write_mode():
            yield
        return
    for bar, where in zip(bars, on_terminals, strict=True):
        if where is not None:
            bar.fp.write("\n")
            bar.fp.flush()
    yield


def _on_terminal(file: Any) -> bool | None:
    """None: it is closed, which what stands around a file, as the host puts it around standard output, may not know."""
    try:
        return bool(file.isatty())
    except ValueError:
        return None
