"""Rows drawn by the weights: an ordinary run on a mixture, after learning or by `apply`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from axolotl.utils.logging import get_logger
from datasets import Dataset

from ..config.block import ScaleBiOSettings
from ..config.names import refuse_other_sources
from ..report.identity import differences_of_data
from ..report.mixture_file import parts_of
from ..report.words import printable
from .sources import Prepared
from .step_plan import shared_out
from .tags import COLUMN, rows_of_each

LOG = get_logger("axolotl.scalebio")


def resample(
    source: np.ndarray, fractions: np.ndarray, max_repeats: int, seed: int, rows: int | None = None
) -> np.ndarray:
    """Row indices of an ordinary run on the mixture: `rows` draws, in random order, each source by its fraction.

    A source gives each of its rows equally often, give or take one, and none more than `max_repeats` times; what a
    capped source cannot give is shared among the others by their fractions. Fewer than `rows` come back only where
    every source with a weight is capped.

    Args:
        source: (rows of the dataset,), source of each row, NO_SOURCE for one that is not drawn.
        fractions: (S,), from `SourceTable.sampling`.
        rows: None: those of one pass, as many as there are with a source.
    """
    rng = np.random.default_rng([seed, 0x5CA1EB10])
    available = rows_of_each(source, len(fractions))
    drawn = _allot(fractions, int(available.sum()) if rows is None else rows, available * max_repeats)
    indices = []
    for i, amount in enumerate(drawn):
        mine = np.flatnonzero(source == i)
        if amount:
            laps = [rng.permutation(mine) for _ in range(-(-int(amount) // len(mine)))]
            indices.append(np.concatenate(laps)[: int(amount)])
    return rng.permutation(np.concatenate(indices))


def _allot(fractions: np.ndarray, rows: int, most: np.ndarray) -> np.ndarray:
    """Whole numbers close to fractions · rows, none above `most`; the rest goes to the sources that are not full."""
    real = shared_out(fractions, float(rows), most)
    whole = np.floor(real).astype(np.int64)
    missing = round(float(real.sum())) - int(whole.sum())
    whole[np.argsort(whole - real, kind="stable")[:missing]] += 1
    return np.minimum(whole, most)


def say_fractions(when: str, names: Sequence[str], fractions: np.ndarray) -> None:
    parts = ", ".join(f"{printable(name)} {part:.3f}" for name, part in zip(names, fractions, strict=True))
    LOG.info(f"scalebio: {when} drawn by these fractions: {parts}")


def say_learning_is_over(names: Sequence[str], fractions: np.ndarray, sizes: np.ndarray, max_repeats: int) -> None:
    """By what the rows are drawn from now on; and the sources that a pass has too few of, with `max_repeats` of each.

    Args:
        fractions: (S,), of rows, as asked.
        sizes: (S,), rows of each source.
    """
    say_fractions("learning is over, λ is final; sequences are now", names, fractions)
    drawn = shared_out(fractions, 1.0, max_repeats * sizes / sizes.sum())
    pairs = zip(names, drawn / drawn.sum(), fractions, strict=True)
    held = [f"{printable(name)} {part:.3f}" for name, part, asked in pairs if part < asked - 1e-6]
    if held:
        LOG.info(f"scalebio: held at max_repeats ({max_repeats}) to these fractions: {', '.join(held)}")


def refuse_other_data(
    prepared: Prepared, learned: Mapping[str, Any], settings: ScaleBiOSettings, base_model: str
) -> None:
    """Compare the rows that a mixture was learned on with those that it is applied to.

    With another base model alone are they not: its tokenizer may make other tokens of the same rows.

    Args:
        learned: The content of `mixture.json`.

    Raises:
        ValueError: There are other sources, or, unless `on_mismatch` says to go on, other rows in them.
    """
    names, there = prepared.table.names, f"scalebio.apply: {settings.apply}"
    refuse_other_sources(sorted(learned["weights"]), sorted(names), str(settings.apply))
    parts, model = parts_of(learned), learned.get("base_model")
    if not parts:
        LOG.info(f"{there} does not say of which rows it was learned, so they are not compared with these")
    elif model != base_model:
        LOG.info(f"{there} was learned with base model {printable(model or '?')}, so rows are not compared with these")
    elif found := differences_of_data(parts, prepared.table.parts):
        lines = "\n".join(f"  - {one}" for one in found)
        if settings.on_mismatch == "error":
            raise ValueError(f"{there} was learned on other rows:\n{lines}\nor set scalebio.on_mismatch: warn")
        LOG.warning(f"{there} was learned on other rows:\n{lines}")


def applied_rows(prepared: Prepared, learned: Mapping[str, float], settings: ScaleBiOSettings, seed: int) -> Dataset:
    """The rows of the training set, drawn by the weights that were `learned`."""
    names, source = prepared.table.names, prepared.drawable
    weights = np.array([learned[name] for name in names])
    drawn = resample(source, prepared.table.sampling(weights), settings.max_repeats, seed)
    _announce(names, weights, source, drawn, settings)
    # The host counts on the plain column, so the indices are written out.
    return prepared.rows.select(drawn).remove_columns(COLUMN).flatten_indices()


def _announce(
    names: list[str], weights: np.ndarray, source: np.ndarray, drawn: np.ndarray, settings: ScaleBiOSettings
) -> None:
    """What the mixture came to: sequences drawn of each source, and where max_repeats held one back."""
    have, took = (rows_of_each(of, len(names)) for of in (source, source[drawn]))
    rows = [
        f"  {printable(name)}: weight {weight:.4f}, {b} of {len(drawn)} sequences, each {b / max(a, 1):.2f} times"
        + (" (held at max_repeats)" if b and b == a * settings.max_repeats else "")
        for name, weight, a, b in zip(names, weights, have, took, strict=True)
    ]
    LOG.info(f"scalebio: an ordinary run on the mixture of {settings.apply}\n" + "\n".join(rows))
