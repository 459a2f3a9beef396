"""The validation data (L1's), tagged and counted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from axolotl.utils.data.shared import merge_datasets
from axolotl.utils.dict import DictDefault
from datasets import Dataset

from ..algorithm.bilevel import NO_SOURCE
from ..config.block import ScaleBiOSettings
from ..config.names import source_names
from .entries import without_weight
from .loading import training_parts
from .merging import aligned
from .table import SourceTable, count, refuse_empty
from .tags import tagged


@dataclass(frozen=True)
class Validation:
    """What the mixture is tuned for.

    Attributes:
        rows: Tagged with the index of their validation dataset.
        table: What each validation dataset holds.
        weights: (V,), v_j, sum 1.
        held_out: Whether the host's eval_loss is measured on other data.
    """

    rows: Dataset
    table: SourceTable
    weights: np.ndarray
    held_out: bool


def load_validation(cfg: DictDefault, settings: ScaleBiOSettings, evaluation: Dataset | None) -> Validation:
    """That of `scalebio.validation_datasets` or, without them, the host's evaluation data.

    Raises:
        ValueError: It, or one of its datasets, holds nothing to predict.
    """
    entries = settings.validation_datasets
    if entries is None:
        names, parts = ["validation"], [] if evaluation is None else [tagged(evaluation, 0)]
    else:
        plain = [DictDefault(without_weight(entry)) for entry in entries]
        names = source_names(plain)
        loaded = training_parts(cfg, "scalebio.validation_datasets", plain)
        parts = [tagged(part, i) for i, part in enumerate(loaded)]
    if not parts or not any(len(part) for part in parts):
        where = "test_datasets" if cfg.test_datasets else "val_set_size"
        raise ValueError(
            f"scalebio: the validation data ({where}) holds no example after tokenising: it is empty, or all are "
            f"longer than sequence_len {cfg.sequence_len} or without answer tokens; give another validation set"
        )
    rows = merge_datasets(aligned(parts), DictDefault({"shuffle_merged_datasets": False}))
    table, drawable = count(rows, names)
    refuse_empty(table, "validation data")
    if (drawable == NO_SOURCE).any():
        rows = rows.select(np.flatnonzero(drawable != NO_SOURCE))
    weights = table.shares("token")
    if entries is not None and any("weight" in entry for entry in entries):
        given = np.array([entry.get("weight", 1.0) for entry in entries], dtype=np.float64)
        weights = given / given.sum()
    return Validation(rows, table, weights, held_out=entries is not None)
