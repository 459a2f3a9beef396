"""`apply`: the training set of an ordinary run on a learned mixture."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from axolotl.utils.logging import get_logger
from datasets import Dataset

from ..algorithm.bilevel import NO_SOURCE
from ..config.block import ScaleBiOSettings
from ..config.names import refuse_other_sources
from .draw import drawn_per_lap, resample
from .sources import Prepared
from .tags import COLUMN

LOG = get_logger("axolotl.scalebio")


def applied_rows(prepared: Prepared, learned: Mapping[str, float], settings: ScaleBiOSettings, seed: int) -> Dataset:
    """The rows of the training set, drawn by the weights that were `learned`.

    Raises:
        ValueError: They are of other sources.
    """
    names, source = prepared.table.names, prepared.drawable
    refuse_other_sources(sorted(learned), sorted(names), str(settings.apply))
    weights = np.array([learned[name] for name in names])
    drawn = resample(source, prepared.table.sampling(weights), drawn_per_lap(source), settings.max_repeats, seed)
    _announce(names, weights, source, drawn, settings)
    # The host counts on the plain column, so the indices are written out.
    return prepared.rows.select(drawn).remove_columns(COLUMN).flatten_indices()


def _announce(
    names: list[str], weights: np.ndarray, source: np.ndarray, drawn: np.ndarray, settings: ScaleBiOSettings
) -> None:
    """What the mixture came to: sequences drawn of each source, and where max_repeats held one back."""
    have, took = (np.bincount(of[of != NO_SOURCE], minlength=len(names)) for of in (source, source[drawn]))
    rows = [
        f"  {name}: weight {weight:.4f}, {b} of {len(drawn)} sequences, each {b / max(a, 1):.2f} times"
        + (" (held at max_repeats)" if b and b == a * settings.max_repeats else "")
        for name, weight, a, b in zip(names, weights, have, took, strict=True)
    ]
    LOG.info(f"scalebio: an ordinary run on the mixture of {settings.apply}\n" + "\n".join(rows))
