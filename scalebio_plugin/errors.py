"""An error for a person is the last thing on the screen: what is wrong and what to do, without the frames of the code.

Such are the ValueErrors whose text begins with `scalebio`, also inside of the host's error for a whole config. All
others, the plugin's own faults among them, keep their traceback. Standard library only: `boot` installs it.
"""

from __future__ import annotations

import sys

from .report.words import printable_lines

TYPE_CHECKING = False  # as in `boot`
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Any

STATUS = 78  # of a process that ended so: EX_CONFIG of sysexits.h


def install() -> None:
    """Have an uncaught error for a person end the process with its text and STATUS. Idempotent."""
    before = sys.excepthook
    if hasattr(before, "_scalebio"):
        return

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        text = said_by(error)
        if text is None:
            before(kind, error, traceback)
            return
        sys.stdout.flush()
        print(f"\n{text}", file=sys.stderr, flush=True)
        raise SystemExit(STATUS)

    hook._scalebio = True  # type: ignore[attr-defined]
    sys.excepthook = hook


def said_by(error: BaseException) -> str | None:
    """What an error says to a person; None if it is not one of those."""
    if not isinstance(error, ValueError):
        return None
    texts = list(texts_of(error))
    if not any(text.startswith(("scalebio", "--scalebio")) for text in texts):
        return None
    return printable_lines("\n".join([*texts, *getattr(error, "__notes__", [])]))


def texts_of(error: ValueError | OSError) -> Iterator[str]:
    """Of pydantic's error for a config each problem, with its place if it has one."""
    of_pydantic = getattr(error, "errors", None)
    if not callable(of_pydantic):
        yield str(error)
        return
    for one in of_pydantic():
        place = ".".join(map(str, one["loc"]))
        text = one["msg"].removeprefix("Value error, ")
        yield f"{place}: {text}" if place and not text.startswith("scalebio") else text


def problems_in(error: ValueError | OSError) -> Iterator[str]:
    """Of a refusal each of the problems that it lists."""
    for text in texts_of(error):
        yield from text.split("\n  - ")[1:] or [text]


def ending_quietly(launcher: Callable[..., Any]) -> Callable[..., Any]:
    """A launcher of accelerate's that adds no traceback of its own once a run of the host has said what is wrong."""

    def launch(args: Any, *others: Any, **named: Any) -> Any:
        try:
            return launcher(args, *others, **named)
        except Exception as error:
            if str(getattr(args, "training_script", "")).startswith("axolotl") and STATUS in _statuses(error):
                raise SystemExit(STATUS) from None
            raise

    return launch


def _statuses(error: Exception) -> list[int]:
    """Exit statuses that a launcher tells of: of its one process, or of those of torch's elastic agent."""
    failures = getattr(error, "failures", None) or {}
    return [getattr(error, "returncode", 0), *(failure.exitcode for failure in failures.values())]
