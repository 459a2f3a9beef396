"""The host's `datasets:` entries as one dataset in which every row knows its source.

Each entry is loaded by the host's public `load_datasets` with a config that lists it alone, so that prompt formats,
prepared caches and locking stay the host's; an integer column is added afterwards (it never reaches a cache on disk:
caches are per entry and lie in a folder of their own, so that none made without the plugin is read), and the parts are
merged, deduplicated, sharded and split the way the host does.
"""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from axolotl.common.const import DEFAULT_DATASET_PREPARED_PATH
from axolotl.common.datasets import TrainDatasetMeta, load_datasets
from axolotl.utils.data.shared import create_train_validation_split, merge_datasets
from axolotl.utils.dict import DictDefault
from axolotl.utils.trainer import calculate_total_num_steps
from datasets import Dataset

from ..algorithm.bilevel import IGNORED, NO_SOURCE
from ..config.block import ScaleBiOSettings
from ..config.names import source_names
from .entries import load_all, noted, refuse_empty_parts

COLUMN = "scalebio_source"
# What the host writes into a config when it counts a training set (axolotl.utils.trainer.calculate_total_num_steps).
# Once `sample_packing_eff_est` is there, its next count takes a rough estimate instead of packing the rows it is given.
COUNTED_BY_HOST = ("total_num_tokens", "total_supervised_tokens", "sample_packing_eff_est")


@dataclass(frozen=True)
class SourceTable:
    """What a set of sources holds.

    Attributes:
        names: S readable, unique names.
        tokens: (S,), target tokens of each source.
        sequences: (S,), examples with at least one target.
        digest: Of all labels, in order.
    """

    names: list[str]
    tokens: np.ndarray
    sequences: np.ndarray
    digest: str

    def units(self, loss_unit: str) -> np.ndarray:  # (S,)
        """Units of each source (see `algorithm.bilevel`): target tokens, or sequences."""
        return self.tokens if loss_unit == "token" else self.sequences

    def shares(self, loss_unit: str) -> np.ndarray:  # (S,), sum 1
        return self.units(loss_unit) / self.units(loss_unit).sum()

    def sampling(self, weights: np.ndarray) -> np.ndarray:  # (S,), sum 1
        """Fractions q of sequences to draw so that an ordinary run's token-mean loss is Σ weights_i L2_i.

        A token mean counts a source by its tokens, so q_i ∝ weights_i / (mean target tokens of its sequences).
        """
        fractions = weights * self.sequences / self.tokens
        return fractions / fractions.sum()


@dataclass(frozen=True)
class Validation:
    """L1's data.

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


@dataclass(frozen=True)
class Prepared:
    """What the `load_datasets` hook found, kept for the trainer.

    Attributes:
        rows: The training set, tagged with COLUMN.
        evaluation: The host's, untagged.
        table: What each source holds.
        drawable: (rows,), source of each row, NO_SOURCE where a row has no target: such a row is never drawn.
        validation: None with `apply`.
    """

    rows: Dataset
    evaluation: Dataset | None
    table: SourceTable
    drawable: np.ndarray
    validation: Validation | None = None


def prepare(cfg: DictDefault, settings: ScaleBiOSettings) -> Prepared:
    """Load every source and the validation data. `cfg` stays as it is: `meta_of` counts, and what is run alone.

    Raises:
        ValueError: A source or the validation data has no token to train on.
    """
    entries = list(cfg.datasets)
    names = source_names(entries, settings.names)
    parts = _load_all(cfg, "datasets", entries)
    evaluation = _load_evaluation(cfg, entries[0]) if cfg.test_datasets else None
    merged = merge_datasets([_tagged(part, i) for i, part in enumerate(_aligned(parts))], cfg)
    if cfg.dataset_exact_deduplication:
        merged = merged.select(_first_of_equal_rows(merged.remove_columns(COLUMN)))
    if cfg.dataset_shard_num and cfg.dataset_shard_idx is not None:
        merged = merged.shard(num_shards=cfg.dataset_shard_num, index=cfg.dataset_shard_idx)
    if cfg.val_set_size:
        size = int(cfg.val_set_size) if cfg.val_set_size > 1 else float(cfg.val_set_size)
        merged, evaluation = create_train_validation_split(merged, cfg, size)
    if len(merged) != merged.data.num_rows:
        merged = merged.flatten_indices()  # the host counts tokens on the plain column, rows left out included
    table, drawable = count(merged, names)
    _refuse_empty(table, "datasets", names)
    evaluation = _untagged(evaluation)
    validation = None if settings.apply is not None else _load_validation(cfg, settings, evaluation)
    return Prepared(merged, evaluation, table, drawable, validation)


def meta_of(cfg: DictDefault, rows: Dataset, evaluation: Dataset | None, preprocess: bool) -> TrainDatasetMeta:
    """What the host wants to know of a training set, counted by the host: once, and on the rows that are run.

    Raises:
        ValueError: The evaluation set is too small to be packed (the host's own rule).
    """
    if preprocess:
        return TrainDatasetMeta(train_dataset=rows, eval_dataset=evaluation, total_num_steps=-1)
    if evaluation is not None and cfg.sample_packing and cfg.eval_sample_packing is not False:
        _refuse_unpackable(cfg, evaluation)
    steps = calculate_total_num_steps(cfg, rows)
    steps = min(steps, cfg.max_steps) if cfg.max_steps else steps
    return TrainDatasetMeta(train_dataset=rows, eval_dataset=evaluation, total_num_steps=steps)


def _refuse_unpackable(cfg: DictDefault, evaluation: Dataset) -> None:
    if len(evaluation) and calculate_total_num_steps(cfg, evaluation, update=False) == 0:
        raise ValueError(
            f"scalebio: the evaluation set ({len(evaluation)} rows) is too small for sample packing; set "
            "eval_sample_packing: false, or give it more rows"
        )


def _load_validation(cfg: DictDefault, settings: ScaleBiOSettings, evaluation: Dataset | None) -> Validation:
    entries = settings.validation_datasets
    if entries is None:
        names, parts = ["validation"], [] if evaluation is None else [_tagged(evaluation, 0)]
    else:
        plain = [DictDefault({key: value for key, value in entry.items() if key != "weight"}) for entry in entries]
        names = source_names(plain)
        loaded = _load_all(cfg, "scalebio.validation_datasets", plain)
        parts = [_tagged(part, i) for i, part in enumerate(loaded)]
    if not parts or not any(len(part) for part in parts):
        raise ValueError("scalebio: the validation data holds no example; give another validation set")
    rows = merge_datasets(_aligned(parts), DictDefault({"shuffle_merged_datasets": False}))
    table, drawable = count(rows, names)
    _refuse_empty(table, "validation data", names)
    if (drawable == NO_SOURCE).any():
        rows = rows.select(np.flatnonzero(drawable != NO_SOURCE))
    weights = table.shares("token")
    if entries is not None and any("weight" in entry for entry in entries):
        given = np.array([entry.get("weight", 1.0) for entry in entries], dtype=np.float64)
        weights = given / given.sum()
    return Validation(rows, table, weights, held_out=entries is not None)


def _load_all(cfg: DictDefault, key: str, entries: Sequence[DictDefault]) -> list[Dataset]:
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
    return load_datasets(cfg=sub).train_dataset


def _load_evaluation(cfg: DictDefault, loaded: DictDefault) -> Dataset | None:
    """The host's `test_datasets`, handled as it handles them; it wants training rows too: an entry already `loaded`."""
    sub = _config_of(cfg, loaded)
    sub.test_datasets = cfg.test_datasets
    with noted("test_datasets"):
        return load_datasets(cfg=sub).eval_dataset


def _config_of(cfg: DictDefault, entry: DictDefault) -> DictDefault:
    """A copy of the config for one call of the host's loading, which leaves nothing in `cfg` itself."""
    sub = DictDefault(copy.deepcopy(cfg.to_dict()))
    sub.datasets, sub.test_datasets = [DictDefault(entry)], None
    sub.dataset_prepared_path = _prepared_path(cfg)
    sub.val_set_size, sub.max_steps = 0, None
    for key in COUNTED_BY_HOST:
        sub[key] = 1  # counted already: spares the host packing each entry, training and evaluation rows, for its steps
    return sub


def _aligned(parts: list[Dataset]) -> list[Dataset]:
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


def _tagged(dataset: Dataset, source: int) -> Dataset:
    return dataset.add_column(COLUMN, np.full(len(dataset), source, dtype=np.int64))


def _untagged(dataset: Dataset | None) -> Dataset | None:
    return dataset.remove_columns(COLUMN) if dataset is not None and COLUMN in dataset.column_names else dataset


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


def count(dataset: Dataset, names: Sequence[str]) -> tuple[SourceTable, np.ndarray]:
    """Targets and sequences of each source of a tagged dataset, and `Prepared.drawable`; read once in batches."""
    tokens, sequences = np.zeros(len(names), dtype=np.int64), np.zeros(len(names), dtype=np.int64)
    digest, drawable = hashlib.blake2b(digest_size=16), [np.zeros(0, dtype=np.int64)]
    for labels, starts, source in _label_batches(dataset):
        targets = labels != IGNORED
        targets[starts[:-1][starts[:-1] < starts[1:]]] = False  # the first token of a sequence is not predicted
        running = np.concatenate([[0], np.cumsum(targets)])
        per_row = running[starts[1:]] - running[starts[:-1]]
        np.add.at(tokens, source, per_row)
        np.add.at(sequences, source, per_row > 0)
        drawable.append(np.where(per_row > 0, source, NO_SOURCE))
        digest.update(labels.tobytes())
        digest.update(source.tobytes())
    return SourceTable(list(names), tokens, sequences, digest.hexdigest()), np.concatenate(drawable)


def sequence_lengths(dataset: Dataset) -> np.ndarray:  # (rows,)
    """Tokens of each row of a tagged dataset."""
    return np.concatenate([np.diff(starts) for _, starts, _ in _label_batches(dataset)])


def _label_batches(dataset: Dataset) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(labels of the rows on end, starts of the rows and the end of the last, source of each row)."""
    for batch in dataset.select_columns(["labels", COLUMN]).with_format("arrow").iter(batch_size=1000):
        column = batch.column("labels").combine_chunks()
        lengths = np.asarray(column.value_lengths().fill_null(0))
        labels = np.asarray(column.flatten()).astype(np.int64)
        yield labels, np.concatenate([[0], np.cumsum(lengths)]), np.asarray(batch.column(COLUMN))


def _refuse_empty(table: SourceTable, where: str, names: Sequence[str]) -> None:
    empty = [name for name, tokens in zip(names, table.tokens, strict=True) if tokens == 0]
    if empty:
        raise ValueError(
            f"scalebio: {where} {empty} tokenise to nothing that is trained on (all examples too long, or no answer "
            "tokens); check their type:, sequence_len and train_on_inputs, or remove them"
        )


def drawn_per_lap(source: np.ndarray) -> int:
    """Rows of one pass over a training set that is drawn: as many as it has with a target."""
    return int((source != NO_SOURCE).sum())


def resample(source: np.ndarray, fractions: np.ndarray, rows: int, max_repeats: int, seed: int) -> np.ndarray:
    """Row indices of an ordinary run on the mixture: `rows` draws, in random order, each source by its fraction.

    A source gives each of its rows equally often, give or take one, and none more than `max_repeats` times; what a
    capped source cannot give is shared among the others by their fractions. Fewer than `rows` come back only where
    every source with a weight is capped.

    Args:
        source: (rows of the dataset,), source of each row, NO_SOURCE for one that is not drawn.
        fractions: (S,), from `SourceTable.sampling`.
    """
    rng = np.random.default_rng([seed, 0x5CA1EB10])
    available = np.bincount(source[source != NO_SOURCE], minlength=len(fractions))
    drawn = _allot(fractions, rows, available * max_repeats)
    indices = []
    for i, amount in enumerate(drawn):
        mine = np.flatnonzero(source == i)
        if amount:
            laps = [rng.permutation(mine) for _ in range(-(-int(amount) // len(mine)))]
            indices.append(np.concatenate(laps)[: int(amount)])
    return rng.permutation(np.concatenate(indices))


def _allot(fractions: np.ndarray, rows: int, most: np.ndarray) -> np.ndarray:
    """Whole numbers close to fractions · rows, none above `most`; the rest goes to the sources that are not full."""
    real = np.zeros(len(fractions))
    open_ = fractions > 0
    left = float(rows)
    while left > 1e-9 and open_.any():
        real[open_] += left * fractions[open_] / fractions[open_].sum()
        left = float(np.clip(real - most, 0, None).sum())
        real = np.minimum(real, most)
        open_ &= real < most
    whole = np.floor(real).astype(np.int64)
    missing = round(float(real.sum())) - int(whole.sum())
    whole[np.argsort(whole - real, kind="stable")[:missing]] += 1
    return np.minimum(whole, most)


class SourceCollator:
    """The host's collator, with two more (B, T) tensors in the batch: SOURCE and SEQUENCE of every token.

    Padding has source NO_SOURCE. Sequences are numbered through the batch, so that targets never cross from one packed
    sequence into the next. Rows without COLUMN pass through untouched.
    """

    SOURCE = COLUMN
    SEQUENCE = "scalebio_sequence"

    def __init__(self, collator: Any, padding_side: str):
        self.collator = collator
        self.padding_side = padding_side

    def __call__(self, features: Sequence[Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        packed = isinstance(features[0], list)
        rows = features if packed else [[feature] for feature in features]
        if COLUMN not in rows[0][0]:
            return self.collator(features, *args, **kwargs)
        tags = [[(int(item[COLUMN]), len(item["input_ids"])) for item in row] for row in rows]
        plain = [[{k: v for k, v in item.items() if k != COLUMN} for item in row] for row in rows]
        batch = self.collator(plain if packed else [row[0] for row in plain], *args, **kwargs)
        batch[self.SOURCE], batch[self.SEQUENCE] = self._expanded(tags, batch["input_ids"])
        return batch

    def _expanded(self, tags: list[list[tuple[int, int]]], like: Any) -> tuple[Any, Any]:
        """(B, T) source and sequence number of every token of `like`, from (source, length) of every sequence."""
        source, sequence = like.new_full(like.shape, NO_SOURCE), like.new_full(like.shape, -1)
        if len(tags) != like.shape[0]:  # `batch_flattening` lays all rows on end in one
            tags = [[member for members in tags for member in members]]
        number = 0
        for row, members in enumerate(tags):
            at = 0 if self.padding_side == "right" else like.shape[1] - sum(length for _, length in members)
            for which, length in members:
                source[row, at : at + length], sequence[row, at : at + length] = which, number
                at, number = at + length, number + 1
        return source, sequence
