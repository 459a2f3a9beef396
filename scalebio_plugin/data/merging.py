"""Parts of a training set merged as the host merges, deduplicates, shards and splits them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from axolotl.utils.data.shared import create_train_validation_split, merge_datasets
from axolotl.utils.dict import DictDefault
from datasets import Dataset

from .tags import sources_in, untagged


def merged_parts(cfg: DictDefault, parts: list[Dataset], names: Sequence[str]) -> tuple[Dataset, Dataset | None]:
    """The tagged parts as the host merges, deduplicates, shards and, by `val_set_size`, splits them.

    Args:
        names: Of the sources, each of which has rows.

    Raises:
        ValueError: One of these steps takes all rows of a source.
    """
    merged = merge_datasets(parts, cfg)
    if cfg.dataset_exact_deduplication:
        merged = merged.select(_first_of_equal_rows(untagged(merged)))
        _refuse_none_left(merged, names, "dataset_exact_deduplication", "each stands in another source", "unset it")
    if cfg.dataset_shard_num and cfg.dataset_shard_idx is not None:
        merged = merged.shard(num_shards=cfg.dataset_shard_num, index=cfg.dataset_shard_idx)
        other = f"shard {cfg.dataset_shard_idx} of {cfg.dataset_shard_num} has none"
        _refuse_none_left(merged, names, "dataset_shard_num", other, "lower it")
    if not cfg.val_set_size:
        return merged, None
    size = int(cfg.val_set_size) if cfg.val_set_size > 1 else float(cfg.val_set_size)
    _refuse_no_rest(len(merged), size)
    rest, split_off = create_train_validation_split(merged, cfg, size)
    _refuse_none_left(rest, names, "val_set_size", f"all are among those that {size:g} splits off", "lower it")
    return rest, split_off


def aligned(parts: Sequence[Dataset]) -> list[Dataset]:
    """The parts with equal column types: the host's completion type gives int32 where the others give int64."""
    widest: dict[str, Any] = {}
    for part in parts:
        for name, feature in part.features.items():
            if name not in widest or "int64" in repr(feature):
                widest[name] = feature
    aligned = []
    for part in parts:
        for name, feature in part.features.items():
            if feature != widest[name]:
                part = part.cast_column(name, widest[name])
        aligned.append(part)
    return aligned


def _first_of_equal_rows(dataset: Dataset) -> list[int]:
    """Indices of the rows that no earlier row equals, whatever their source: the host's exact deduplication."""
    seen: set[bytes] = set()
    kept = []
    for index, row in enumerate(dataset):
        digest = hashlib.sha256(str(row).encode()).digest()
        if digest not in seen:
            seen.add(digest)
            kept.append(index)
    return kept


def _refuse_none_left(rows: Dataset, names: Sequence[str], key: str, why: str, remedy: str) -> None:
    left = set(sources_in(rows).tolist())
    gone = [name for index, name in enumerate(names) if index not in left]
    if gone:
        raise ValueError(f"scalebio: {key} leaves no row of {gone}: {why}; {remedy}, or remove these sources")


def _refuse_no_rest(rows: int, size: float) -> None:
    if size >= rows or size == 1.0:
        raise ValueError(f"scalebio: val_set_size {size:g} leaves nothing of {rows} rows to train on; lower it")
