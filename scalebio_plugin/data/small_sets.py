"""Small sets, without the processes that the host starts for each: of many entries those take longer than the rows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from datasets import Dataset

SMALL = 1 << 22  # bytes: some thousand rows, tokenised within a second or two, which a pool takes to start


@contextmanager
def small_sets_here() -> Iterator[None]:
    """What is mapped, filtered or saved inside, is by this process where it is SMALL, however many were asked for."""
    before: dict[str, Callable[..., Any]] = {name: getattr(Dataset, name) for name in ("map", "save_to_disk")}
    for name, method in before.items():
        setattr(Dataset, name, _here(method))
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(Dataset, name, method)


def _here(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def called(rows: Dataset, *args: Any, num_proc: int | None = None, **kwargs: Any) -> Any:
        return method(rows, *args, num_proc=num_proc if rows.data.nbytes > SMALL else None, **kwargs)

    return called
