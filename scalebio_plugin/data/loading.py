"""Entries loaded by the host's public `load_datasets`, one at a time, with caches of their own."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence

from axolotl.common.const import DEFAULT_DATASET_PREPARED_PATH
from axolotl.common.datasets import load_datasets
from axolotl.utils.dict import DictDefault
from axolotl.utils.logging import get_logger
from datasets import Dataset

from .entries import files_of, load_all, noted, refuse_empty_parts
from .small_sets import small_sets_here

LOG = get_logger("axolotl.scalebio")
# What the host writes into a config when it counts a training set (axolotl.utils.trainer.calculate_total_num_steps).
# Once `sample_packing_eff_est` is there, its next count takes a rough estimate instead of packing the rows it is given.
COUNTED_BY_HOST = ("total_num_tokens", "total_supervised_tokens", "sample_packing_eff_est")


def training_parts(cfg: DictDefault, key: str, entries: Sequence[DictDefault]) -> list[Dataset]:
    """Training rows of each entry of the list `key`; what goes wrong names the entry."""
    parts = load_all(key, entries, lambda entry: _load_entry(cfg, entry))
    refuse_empty_parts(key, entries, parts, cfg.sequence_len, _prepared_path(cfg))
    return parts


def _prepared_path(cfg: DictDefault) -> str:
    return os.path.join(cfg.dataset_prepared_path or DEFAULT_DATASET_PREPARED_PATH, "scalebio")


def _load_entry(cfg: DictDefault, entry: DictDefault) -> Dataset:
    """Training rows of one entry, in its own order."""
    sub = _config_of(cfg, entry)
    sub.shuffle_merged_datasets = False
    sub.dataset_exact_deduplication = False  # once, over all sources
    sub.dataset_shard_num = sub.dataset_shard_idx = None
    with small_sets_here():
        return load_datasets(cfg=sub).train_dataset


def load_evaluation(cfg: DictDefault, loaded: DictDefault, entries: Sequence[DictDefault]) -> Dataset:
    """`test_datasets`, handled as the host handles them; it wants training rows too: an entry already `loaded`."""
    sub = _config_of(cfg, loaded)
    sub.test_datasets = [_of_its_own(entry) for entry in entries]
    place = "test_datasets" if len(entries) == len(cfg.test_datasets) else f"test_datasets ({entries[0].path})"
    with noted(place, [file for entry in entries for file in files_of(entry)]), small_sets_here():
        return load_datasets(cfg=sub).eval_dataset


def _of_its_own(entry: DictDefault) -> DictDefault:
    """The entry, with a prepared cache that no entry for training has, whose rows may be those of another split.

    The host tells caches apart by what these keys hold, and takes an empty value for none.
    """
    return DictDefault({**entry, "split": entry.split or "", "shards": entry.shards or 0})


def _config_of(cfg: DictDefault, entry: DictDefault) -> DictDefault:
    """A copy of the config for one call of the host's loading, which leaves nothing in `cfg` itself."""
    sub = DictDefault(copy.deepcopy(cfg.to_dict()))
    sub.datasets, sub.test_datasets = [DictDefault(entry)], None
    sub.dataset_prepared_path = _prepared_path(cfg)
    sub.val_set_size, sub.max_steps = 0, None
    for key in COUNTED_BY_HOST:
        sub[key] = 1  # counted already: spares the host packing each entry, training and evaluation rows, for its steps
    return sub
