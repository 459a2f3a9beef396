"""What a history says of each source at its end, with the standard error of its gap."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .history import Floats, HistoryRecord, series
from .parsed import Count, NotNegative, Number


@dataclass(frozen=True)
class SourceSummary:
    """One source at the end of a history; `summarise` defines each estimate."""

    weight: NotNegative
    weight_average: NotNegative
    loss: Number | None
    inner_loss: Number | None
    gap: Number
    gap_se: NotNegative | None
    interval: tuple[Number, Number] | None = None
    evidence: Number | None = None

    @property
    def is_told_from_average(self) -> bool:
        """Whether the gaps are more than noise; never in a control, in which every gap is 0.

        What was written before there was `evidence` has two standard errors of the gap as its bound.
        """
        if self.evidence is not None:
            return abs(self.evidence) > 1
        return self.gap_se is not None and abs(self.gap) > 2 * self.gap_se


LEAST_PROBES = 3  # from which a standard error can be told


@dataclass(frozen=True)
class Cosine:
    """Of a source's gradient and a validation set's, over the probes that held both; see `algorithm.alignment`.

    Attributes:
        mean: None where no probe held both.
        se: Standard error of the mean; None with fewer than LEAST_PROBES.
        probes: How many they are.
    """

    mean: Number | None
    se: NotNegative | None
    probes: Count


Goals = dict[str, dict[str, Cosine]]  # by source, then by validation set


def summarise_goals(history: Sequence[HistoryRecord], names: Sequence[str]) -> Goals | None:
    """Which source helps which validation set, by all probes of a history; None where it has none.

    Probes are few and far apart, and each has batches and a sketch of its own: they are taken for independent.
    """
    probes = [goals for record in history if (goals := record.get("goals"))]
    if not probes:
        return None
    sets = list(probes[-1][names[0]])
    return {name: {goal: _cosine([probe[name][goal] for probe in probes]) for goal in sets} for name in names}


def _cosine(found: Sequence[float | None]) -> Cosine:
    seen = np.array([value for value in found if value is not None], dtype=np.float64)
    if not len(seen):
        return Cosine(None, None, 0)
    error = float(seen.std(ddof=1)) / math.sqrt(len(seen)) if len(seen) >= LEAST_PROBES else None
    return Cosine(float(seen.mean()), error, len(seen))


def summarise(history: Sequence[HistoryRecord], names: Sequence[str]) -> dict[str, SourceSummary]:
    """The state of every source at the end of a history of at least one update.

    weight            that of the last update.
    interval          its 95% interval: what the noise of the gaps may have made of it, see
                      `algorithm.certainty.weight_interval`; None where the rule has none.
    weight_average    the mean over the last quarter of the updates (rounded up).
    loss, inner_loss  means over those batches of the same quarter that held the source; None if none did.
    gap               the mean over the last third to two thirds of the updates: what the validation pull costs this
                      source beyond the average of the sources. Above 0 the source loses weight.
    gap_se            its standard error, which counts autocorrelation; None with too few updates.
    evidence          of all gaps since the first update, in units of what noise reaches at any time in 5% of runs.
    """
    if not history:
        raise ValueError("a summary needs at least one mixture update, got an empty history; summarise after the first")
    loss, inner_loss = (series(history, key, names) for key in ("loss", "inner_loss"))
    quarter = -math.ceil(len(history) / 4)
    average = series(history[quarter:], "weights", names).mean(axis=0)
    last = _with_evidence(history[-1])
    errors, intervals = last["gap_se"], last["interval"]
    return {
        name: SourceSummary(
            weight=last["weights"][name],
            weight_average=float(average[i]),
            loss=_mean_of_seen(loss[quarter:, i]),
            inner_loss=_mean_of_seen(inner_loss[quarter:, i]),
            gap=last["gap_mean"][name],
            gap_se=None if errors is None else errors[name],
            interval=None if intervals is None else (intervals[name][0], intervals[name][1]),
            evidence=last["evidence"].get(name),
        )
        for i, name in enumerate(names)
    }


def _with_evidence(record: HistoryRecord) -> HistoryRecord:
    """A line of an older version gets its batch's gap about the mixture's average, and nothing about its noise."""
    if "gap_mean" in record:
        return record
    average = sum(record["weights"][name] * gap for name, gap in record["gap"].items())
    gap = {name: value - average for name, value in record["gap"].items()}
    return {**record, "gap_mean": gap, "gap_se": None, "interval": None, "evidence": {}}


def _mean_of_seen(values: Floats) -> float | None:
    seen = values[~np.isnan(values)]
    return float(seen.mean()) if len(seen) else None


def largest_first(summaries: Mapping[str, SourceSummary]) -> list[tuple[str, SourceSummary]]:
    """By weight."""
    return sorted(summaries.items(), key=lambda item: -item[1].weight)
