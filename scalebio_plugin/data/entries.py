"""Entries of a list in the config, loaded one after the other: what goes wrong says where its entry stands."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from glob import escape, glob
from typing import Any, TypeVar

from datasets import Dataset

T = TypeVar("T")


@contextmanager
def noted(place: str) -> Iterator[None]:
    """An error that comes up inside gets a note of what was being loaded."""
    try:
        yield
    except Exception as error:
        error.add_note(f"scalebio: this came up while loading {place}")
        raise


def load_all(key: str, entries: Sequence[Mapping[str, Any]], load: Callable[[Mapping[str, Any]], T]) -> list[T]:
    """`load` of every entry of the list `key`; an error has a note of the entry."""
    loaded = []
    for index, entry in enumerate(entries):
        with noted(_place(key, index, entry)):
            loaded.append(load(entry))
    return loaded


def refuse_empty_parts(
    key: str, entries: Sequence[Mapping[str, Any]], parts: Sequence[Dataset], sequence_len: int, prepared: str
) -> None:
    """An entry that leaves no row after tokenising, before `datasets` is asked to add a column to it.

    Args:
        prepared: Folder of the prepared caches. Empty ones are deleted: the host may fail to read them again, and would
            do so after a change of excess_length_strategy, by which it does not tell caches apart.

    Raises:
        ValueError: There are some; they are named.
    """
    empty = [_place(key, i, entry) for i, (entry, part) in enumerate(zip(entries, parts, strict=True)) if not len(part)]
    if not empty:
        return
    _forget_empty_caches(prepared)
    raise ValueError(
        f"scalebio: {', '.join(empty)}: no example is left after tokenising (all longer than sequence_len "
        f"{sequence_len}, or without answer tokens); raise sequence_len, set excess_length_strategy: truncate, check "
        "type: and train_on_inputs, or remove the entry"
    )


def _place(key: str, index: int, entry: Mapping[str, Any]) -> str:
    return f"{key}[{index}] ({entry.get('path')})"


def _forget_empty_caches(prepared: str) -> None:
    for state in glob(os.path.join(escape(prepared), "*", "state.json")):
        folder = os.path.dirname(state)
        try:
            rows = len(Dataset.load_from_disk(folder))
        except IndexError:  # one without any file
            rows = 0
        if rows == 0:
            shutil.rmtree(folder, ignore_errors=True)
