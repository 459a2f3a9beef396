"""Entries of a list in the config, validated and loaded one after the other: what goes wrong says where it stands."""

from __future__ import annotations

import linecache
import os
import shutil
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from glob import escape, glob
from pathlib import Path
from typing import Any, TypeVar

from axolotl.utils.schemas.config import AxolotlInputConfig
from axolotl.utils.schemas.datasets import SFTDataset, SyntheticDataset
from datasets import Dataset
from pydantic import ValidationError

T = TypeVar("T")


@contextmanager
def noted(place: str, files: Sequence[str]) -> Iterator[None]:
    """An error that comes up inside gets a note of what was being loaded.

    Args:
        files: That it is loaded from; names of anything else are fine.

    Raises:
        ValueError: In place of the error: a file holds no row, or the host itself refuses what is loaded.
    """
    try:
        yield
    except Exception as error:
        empty = [file for file in files if _holds_nothing(file)]
        if empty:
            raise ValueError(
                f"scalebio: {place}: no row in {', '.join(empty)}; fill the file, or remove the entry"
            ) from error
        if _said_by_the_host(error):
            raise ValueError(f"scalebio: {place}: {error}") from error
        error.add_note(f"scalebio: this came up while loading {place}")
        raise


def _said_by_the_host(error: Exception) -> bool:
    """Whether a `raise ValueError` in the host's code was it: for a person, unlike one that came over the host."""
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    raised = linecache.getline(frame.f_code.co_filename, line).lstrip().startswith("raise ")
    return type(error) is ValueError and raised and str(frame.f_globals.get("__name__")).startswith("axolotl.")


def files_of(entry: Mapping[str, Any]) -> list[str]:
    """What an entry may be loaded from, as far as it says so."""
    named = entry.get("data_files") or []
    return [str(entry.get("path")), *([named] if isinstance(named, str) else map(str, named))]


def _holds_nothing(file: str) -> bool:
    path = Path(file)
    return path.is_file() and path.stat().st_size < 1024 and path.read_bytes().strip() in (b"", b"[]")


def load_all(key: str, entries: Sequence[Mapping[str, Any]], load: Callable[[Mapping[str, Any]], T]) -> list[T]:
    """`load` of every entry of the list `key`; an error has a note of the entry."""
    loaded = []
    for index, entry in enumerate(entries):
        with noted(_place(key, index, entry), files_of(entry)):
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


def validate_validation_datasets(cfg: dict[str, Any]) -> None:
    """`scalebio.validation_datasets` become what they would be in `datasets:`: migrated, defaulted or refused.

    Their `weight` is ours; the host's, from 0.20 on, is the part of an entry to take.

    Raises:
        ValueError: The host refuses entries; all of them in one message, by their place.
    """
    block = cfg.get("scalebio")
    entries = block.get("validation_datasets") if isinstance(block, Mapping) else None
    if not isinstance(block, Mapping) or not isinstance(entries, list):
        return  # what else is wrong with the block is said where it is parsed
    validated, problems = [], []
    for index, entry in enumerate(entries):
        if not isinstance(entry, Mapping):
            validated.append(entry)
            continue
        try:
            weight = {key: value for key, value in entry.items() if key == "weight"}
            validated.append({**_as_in_datasets(entry), **weight})
        except ValueError as error:
            problems += [f"  - scalebio.validation_datasets[{index}]{what}" for what in _said_by_host(error)]
    if problems:
        raise ValueError("scalebio: the host refuses entries of validation_datasets:\n" + "\n".join(problems))
    cfg["scalebio"] = {**block, "validation_datasets": validated}


def without_weight(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A validation dataset as an entry of the host's, to which a `weight` is another thing."""
    return {key: value for key, value in entry.items() if key != "weight"}


def _as_in_datasets(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The entry as the host's own model of a config leaves it; `validate_config` would ask the plugins again."""
    plain = without_weight(entry)
    parsed = (SyntheticDataset if plain.get("type") == "_synthetic" else SFTDataset)(**plain)
    around = {"base_model": "any", "micro_batch_size": 1, "gradient_accumulation_steps": 1, "learning_rate": 1e-5}
    config = AxolotlInputConfig(**around, num_epochs=1, seed=0, datasets=[parsed])
    return dict(config.model_dump(exclude_none=True)["datasets"][0])


def _said_by_host(error: ValueError) -> Iterator[str]:
    if not isinstance(error, ValidationError):
        yield f": {error}"
        return
    for one in error.errors():
        key = ".".join(str(part) for part in one["loc"] if part != "datasets")
        yield f"{f'.{key}' if key else ''}: {one['msg'].removeprefix('Value error, ')}"
