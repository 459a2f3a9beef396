"""What a history says of each source at its end, with the standard error of its gap."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .history import Floats, HistoryRecord, centred_gap, series

MOST_STRETCHES = 10  # of which `batch_means_error` takes means


@dataclass(frozen=True)
class SourceSummary:
    """One source at the end of a history; `summarise` defines each estimate."""

    weight: float
    weight_average: float
    loss: float | None
    inner_loss: float | None
    gap: float
    gap_se: float | None

    @property
    def is_told_from_average(self) -> bool:
        """Whether the gap is more than two standard errors from 0; never in a control, in which every gap is 0."""
        return self.gap_se is not None and abs(self.gap) > 2 * self.gap_se


def summarise(history: Sequence[HistoryRecord], names: Sequence[str]) -> dict[str, SourceSummary]:
    """The state of every source at the end of a history of at least one update.

    weight            that of the last update.
    weight_average    the mean over the last quarter of the updates (rounded up).
    loss, inner_loss  means over those batches of the same quarter that held the source; None if none did.
    gap               the mean over the last half of the updates (rounded up) of g_i - sum_j p_j g_j: what the
                      validation pull costs this source beyond the mixture's average. Above 0 the source loses weight.
    gap_se            the standard error of `gap`, see `batch_means_error`; None if that half is below 4 updates.
    """
    if not history:
        raise ValueError("a summary needs at least one mixture update, got an empty history; summarise after the first")
    weights, loss, inner_loss = (series(history, key, names) for key in ("weights", "loss", "inner_loss"))
    quarter, half = -math.ceil(len(history) / 4), -math.ceil(len(history) / 2)
    gap = centred_gap(history[half:], names)
    return {
        name: SourceSummary(
            weight=float(weights[-1, i]),
            weight_average=float(weights[quarter:, i].mean()),
            loss=_mean_of_seen(loss[quarter:, i]),
            inner_loss=_mean_of_seen(inner_loss[quarter:, i]),
            gap=float(gap[:, i].mean()),
            gap_se=batch_means_error(gap[:, i]),
        )
        for i, name in enumerate(names)
    }


def batch_means_error(values: Floats) -> float | None:
    """Standard error of the mean of an autocorrelated series, by non-overlapping batch means; None below 4 values.

    Successive gaps share most of their parameters, so s / sqrt(n) is too small. The means of k stretches of m values
    are nearly independent once m passes the correlation time, and m times their variance estimates the long-run
    variance (Schmeiser 1982, Operations Research 30(3), who finds 10 to 30 stretches enough). Here k is n // 2 in a
    short series, so that m >= 2, and the first n - k m values stay out of the variance. Still too small where the
    series spans few correlation times; larger where it drifts.
    """
    if len(values) < 4:
        return None
    batches = min(MOST_STRETCHES, len(values) // 2)
    size = len(values) // batches
    means = values[-batches * size :].reshape(batches, size).mean(axis=1)
    return math.sqrt(size * float(means.var(ddof=1)) / len(values))


def _mean_of_seen(values: Floats) -> float | None:
    seen = values[~np.isnan(values)]
    return float(seen.mean()) if len(seen) else None


def largest_first(summaries: Mapping[str, SourceSummary]) -> list[tuple[str, SourceSummary]]:
    """By weight."""
    return sorted(summaries.items(), key=lambda item: -item[1].weight)
