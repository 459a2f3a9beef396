"""The host's `datasets:` entries as one dataset in which every row knows its source.

Each entry is loaded by the host's public `load_datasets` with a config that lists it alone, so that prompt formats,
prepared caches and locking stay the host's; an integer column is added afterwards (it never reaches a cache on disk:
caches are per entry and lie in a folder of their own, so that none made without the plugin is read), and the parts are
merged, deduplicated, sharded and split the way the host does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from axolotl.common.datasets import TrainDatasetMeta
from axolotl.loaders import load_tokenizer
from axolotl.utils.dict import DictDefault
from axolotl.utils.logging import get_logger
from axolotl.utils.trainer import calculate_total_num_steps
from datasets import Dataset

from ..config.block import ScaleBiOSettings
from ..config.names import numbered, source_names
from ..report.leaks import Leaks
from ..report.shared_rows import shared_lines
from ..report.tables import shorten
from .leaks import looks_here, settle_leaks
from .loading import load_evaluation, training_parts
from .merging import aligned, merged_parts
from .splits import sources_of_parts, splits_of
from .table import SourceTable, count, refuse_empty
from .tags import COLUMN, sources_in, tagged, untagged, with_numbers, without_numbers
from .validation_data import Validation, load_validation

LOG = get_logger("axolotl.scalebio")


@dataclass(frozen=True)
class Prepared:
    """What the `load_datasets` hook found, kept for the trainer.

    Attributes:
        rows: The training set, tagged with COLUMN.
        evaluation: The host's, untagged.
        table: What each source holds.
        drawable: (rows,), source of each row, NO_SOURCE where a row has no target: such a row is never drawn.
        validation: None with `apply`.
        test_sets: Whose losses are told apart: each of several `test_datasets`, what is held out of each source; empty
            with `apply`.
        leaks: Training rows that stand in validation or test data; None where this process did not look.
    """

    rows: Dataset
    evaluation: Dataset | None
    table: SourceTable
    drawable: np.ndarray
    validation: Validation | None = None
    test_sets: Mapping[str, Dataset] = field(default_factory=dict)
    leaks: Leaks | None = None


def prepare(cfg: DictDefault, settings: ScaleBiOSettings) -> Prepared:
    """Load every source and the validation data. `cfg` stays as it is: `meta_of` counts, and what is run alone.

    Raises:
        ValueError: A source or the validation data has no token to train on.
    """
    entries = list(cfg.datasets)
    of_entries = source_names(entries, settings.names)
    splits = splits_of(entries, of_entries, settings)
    loaded = [entry if split is None else split.loaded for entry, split in zip(entries, splits, strict=True)]
    parts = training_parts(cfg, "datasets", loaded)
    parts, sources, names = sources_of_parts(parts, splits, of_entries, settings)
    tests = list(cfg.test_datasets or [])
    evaluation = load_evaluation(cfg, loaded[0], tests) if tests else None
    merged, split_off = merged_parts(
        cfg, [with_numbers(tagged(*of)) for of in zip(aligned(parts), sources, strict=True)], names
    )
    evaluation = untagged(evaluation if split_off is None else split_off)
    merged, number = without_numbers(merged)
    learns, looks = settings.apply is None, looks_here(settings)
    has_validation = settings.validation_datasets is not None or evaluation is not None
    validation = load_validation(cfg, settings, evaluation) if learns or (looks and has_validation) else None
    each = tests if len(tests) > 1 and (learns or looks) else []
    test_sets = {
        name: load_evaluation(cfg, loaded[0], [one]) for name, one in zip(source_names(each), each, strict=True)
    }
    leaks = None
    if looks and validation is not None:
        judges = _judges(cfg, validation, evaluation, test_sets)
        merged, leaks = settle_leaks(merged, number, names, judges, load_tokenizer(cfg), settings.on_leak)
    if len(merged) != merged.data.num_rows:
        merged = merged.flatten_indices()  # the host counts tokens on the plain column, rows left out included
    table, drawable = count(merged, names)
    refuse_empty(table, "datasets")
    held_out: dict[str, Dataset] = {}
    if settings.held_out_rows is not None:
        merged, held_out = _hold_out(merged, drawable, names, settings.held_out_rows, int(cfg.seed or 0))
        table, drawable = count(merged, names)
    if not learns:
        return Prepared(merged, evaluation, table, drawable, leaks=leaks)
    _refuse_out_of_reach(table, settings)
    of_all = numbered([*test_sets, *held_out])  # a test set may have a source's name
    test_sets = dict(zip(of_all, [*test_sets.values(), *held_out.values()], strict=True))
    return Prepared(merged, evaluation, table, drawable, validation, test_sets, leaks)


def _judges(
    cfg: DictDefault, validation: Validation, evaluation: Dataset | None, tests: Mapping[str, Dataset]
) -> dict[str, Dataset]:
    """All that a mixture or a model is judged by, by kind and name.

    Args:
        tests: Each of several `test_datasets`.
    """
    if not tests and validation.held_out and evaluation is not None:
        tests = {source_names(cfg.test_datasets)[0] if cfg.test_datasets else "val_set_size": evaluation}
    sets = {f"test: {name}": rows for name, rows in tests.items() if len(rows)}
    if tests and not validation.held_out:
        return sets
    source = sources_in(validation.rows)
    return {
        f"validation: {name}": validation.rows.select(np.flatnonzero(source == index))
        for index, name in enumerate(validation.table.names)
        if (source == index).any()
    } | sets


def _hold_out(
    rows: Dataset, source: np.ndarray, names: Sequence[str], number: int, seed: int
) -> tuple[Dataset, dict[str, Dataset]]:
    """The rows of the training set that stay, and, by source, `number` of them that do not.

    Args:
        source: (rows,), `Prepared.drawable`: rows without a target stay.
    """
    rng = np.random.default_rng([seed, 0x5CA1EB20])
    held = {}
    for index, name in enumerate(names):
        mine = np.flatnonzero(source == index)
        if len(mine) <= number:
            raise ValueError(
                f"scalebio.held_out_rows: {number} would leave nothing to train on of source {shorten(name)!r}, which "
                f"has {len(mine)} rows with a target; lower it"
            )
        held[name] = np.sort(rng.choice(mine, number, replace=False))
    rest = np.setdiff1d(np.arange(len(rows)), np.concatenate(list(held.values())))
    sets = {name: rows.select(of).remove_columns(COLUMN).flatten_indices() for name, of in held.items()}
    return rows.select(rest).flatten_indices(), sets


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


def announce(prepared: Prepared, settings: ScaleBiOSettings) -> None:
    """What will be learned, on what; and that eval_loss is not held out where it is not."""
    table = prepared.table
    shares = table.shares("token")
    rows = [
        f"  {shorten(name)}: {sequences} sequences, {tokens} target tokens ({share:.1%})"
        for name, sequences, tokens, share in zip(table.names, table.sequences, table.tokens, shares, strict=True)
    ]
    LOG.info("scalebio: learning the weights of\n" + "\n".join(rows))
    held = [
        f"{shorten(name)} {most:.4f}"
        for name, most in zip(table.names, table.most(settings.max_repeats), strict=True)
        if most < 1
    ]
    if held:
        LOG.info(
            f"scalebio: by their size, at max_repeats {settings.max_repeats}, these weights stay below: "
            + ", ".join(held)
        )
    shared = shared_lines(table.shared_rows, dict(zip(table.names, table.sequences.tolist(), strict=True)))
    if shared:
        LOG.warning(
            "scalebio: rows stand in two sources, token for token, so that the weights of both are spent on them and "
            "max_repeats counts them in each apart (dataset_exact_deduplication: true keeps each once):\n"
            + "\n".join(shared)
        )
    if prepared.validation is not None and not prepared.validation.held_out:
        still = "no longer held out" if settings.keep == "model" else f"held out but for the {len(table.names)} weights"
        LOG.warning(
            f"scalebio: the mixture is tuned for the evaluation data, so eval_loss is {still}; give "
            "scalebio.validation_datasets to keep it apart"
        )
    if settings.penalty == float("inf"):
        LOG.warning("scalebio: penalty is infinite, the validation data is out of play: a control, nothing is learned")


def _refuse_unpackable(cfg: DictDefault, evaluation: Dataset) -> None:
    if len(evaluation) and calculate_total_num_steps(cfg, evaluation, update=False) == 0:
        raise ValueError(
            f"scalebio: the evaluation set ({len(evaluation)} rows) is too small for sample packing; set "
            "eval_sample_packing: false, or give it more rows"
        )


def _refuse_out_of_reach(table: SourceTable, settings: ScaleBiOSettings) -> None:
    """Bounds that the sizes of the sources do not allow, before anything is trained.

    Raises:
        ValueError: A weight would have to be above what `max_repeats` of its rows give it, or all together below 1.
    """
    most = dict(zip(table.names, table.most(settings.max_repeats).tolist(), strict=True))
    reach = {name: min(most[name], settings.bounds.get(name, (0.0, 1.0))[1]) for name in table.names}
    for group, members in settings.groups.items():
        reach[group] = min(sum(reach[name] for name in members), settings.bounds.get(group, (0.0, 1.0))[1])
    problems = [
        f"  - {name}: at least {low:g}, and can have {reach[name]:.4g}"
        for name, (low, _) in settings.bounds.items()
        if low > reach[name] + 1e-9
    ]
    grouped = {name for members in settings.groups.values() for name in members}
    highest = sum(part for name, part in reach.items() if name not in grouped)
    if highest < 1.0 - 1e-9:
        problems.append(f"  - all sources together can have {highest:.4g}")
    if problems:
        raise ValueError(
            "scalebio.bounds ask for more than the sources hold, each of whose rows is drawn at most max_repeats "
            f"({settings.max_repeats}) times in an epoch:\n" + "\n".join(problems) + "\nlower the bounds or raise "
            "scalebio.max_repeats"
        )
