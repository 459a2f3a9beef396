"""What the judged arms come to: losses, paired differences with their errors, a sentence each.

Two things are random: the test rows, and what a seed decides (order of the data, an adapter's start). Both are in the
interval of a difference d: half its width is √((t s / √n)² + (t' r)²), with n seeds, s the deviation of d between
them, r the standard error over the R test rows of the mean over seeds, t and t' Student's quantiles of n − 1 and R − 1
degrees of freedom: it holds the truth in 92% and more (benchmarks/compare_interval.md). Part of r is each seed's own,
and falls with more of them as s / √n does.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..report.comparison import MOST_SEEDS, SCHEMA, compared, head_of
from ..report.tables import shorten

JUDGED = "judged.json"
FEWEST_ROWS = 2  # that tell anything of other rows

Seeds = Mapping[int, "Judged"]


@dataclass(frozen=True)
class Judged:
    """One run of one arm.

    Attributes:
        losses: (R,), loss of each test row summed over its target tokens, nats.
        tokens: (R,), their number.
        steps: Optimizer steps. seconds: What they took.
    """

    losses: np.ndarray
    tokens: np.ndarray
    steps: int
    seconds: float

    @property
    def loss(self) -> float:
        """Mean over target tokens, nats."""
        return float(self.losses.sum() / self.tokens.sum())


@dataclass(frozen=True)
class Difference:
    """Of one arm's loss less another's, nats per target token.

    Attributes:
        mean: Over seeds.
        seed_error: Standard error over seeds; None with one.
        row_error: Standard error over the test rows.
        half_width: Of the 95% interval; without seeds' part where there is one seed.
        more_seeds: So many more would tell the arms apart, were the mean to stay; 0 where they are, None where not even
            100 seeds would.
    """

    mean: float
    seed_error: float | None
    row_error: float
    half_width: float
    more_seeds: int | None

    @property
    def verdict(self) -> str:
        """Of the first arm: `better`, `worse`, either of them `on one seed`, or `cannot be told apart`."""
        if not abs(self.mean) > self.half_width:  # also of a loss that is NaN
            return "cannot be told apart"
        return ("better" if self.mean < 0 else "worse") + (" on one seed" if self.seed_error is None else "")


def read_judged(folder: Path) -> Judged | None:
    """None where the arm has not been judged."""
    path = folder / JUDGED
    if not path.is_file():
        return None
    read = json.loads(path.read_bytes())
    return Judged(
        np.array(read["losses"], dtype=np.float64), np.array(read["tokens"]), int(read["steps"]), float(read["seconds"])
    )


def difference(first: Seeds, second: Seeds) -> Difference:
    """Paired, over the seeds that both arms have.

    Raises:
        ValueError: They were judged on other rows or on a single one, or share no seed.
    """
    seeds = sorted(set(first) & set(second))
    if not seeds:
        raise ValueError("no seed has both arms")
    tokens = first[seeds[0]].tokens
    if any(not np.array_equal(arm[seed].tokens, tokens) for arm in (first, second) for seed in seeds):
        raise ValueError("the arms were judged on other test rows; compare them anew, in a new --dir")
    if (rows := rows_of(tokens)) < FEWEST_ROWS:
        raise ValueError(f"the arms were judged on {rows} test row; give more than one in test_datasets")
    count, of_rows = len(seeds), np.stack([first[seed].losses - second[seed].losses for seed in seeds])
    of_seeds = [first[seed].loss - second[seed].loss for seed in seeds]
    mean, row_error = statistics.fmean(of_seeds), error_over_rows(of_rows.mean(axis=0), tokens)
    if count == 1:
        return Difference(mean, None, row_error, _half_width(None, 1, row_error, rows), 1)
    deviation, own = statistics.stdev(of_seeds), _row_error_of_a_seed(of_rows, tokens)

    def half_width(seeds: int) -> float:
        common = max(0.0, row_error**2 - own**2 / count)
        return _half_width(deviation, seeds, math.sqrt(common + own**2 / seeds), rows)

    return Difference(
        mean,
        deviation / math.sqrt(count),
        row_error,
        _half_width(deviation, count, row_error, rows),
        next((more for more in range(MOST_SEEDS - count + 1) if abs(mean) > half_width(count + more)), None),
    )


def _half_width(deviation: float | None, seeds: int, row_error: float, rows: int) -> float:
    """`deviation`: Between seeds; None with one."""
    of_rows = _quantile(rows - 1) * row_error
    return of_rows if deviation is None else math.hypot(_quantile(seeds - 1) * deviation / math.sqrt(seeds), of_rows)


@cache
def _quantile(freedom: int) -> float:
    """Of Student's distribution, the one that 95% are within."""
    from scipy.stats import t

    return float(t.ppf(0.975, freedom))


def rows_of(tokens: np.ndarray) -> int:
    """Those that have a target token."""
    return int((tokens > 0).sum())


def error_over_rows(of_rows: np.ndarray, tokens: np.ndarray) -> float:
    """Standard error of Σ of_rows / Σ tokens over the rows: of a ratio of sums, linearised. Both (R,)."""
    return _error(_residuals(of_rows, tokens), tokens, 1)


def _row_error_of_a_seed(of_rows: np.ndarray, tokens: np.ndarray) -> float:
    """Of the part of each seed's differences that is no other's; `of_rows`: (n, R), n ≥ 2."""
    residuals = np.stack([_residuals(rows, tokens) for rows in of_rows])
    return _error(residuals - residuals.mean(axis=0), tokens, len(of_rows) - 1)


def _residuals(of_rows: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    return of_rows - of_rows.sum() / tokens.sum() * tokens


def _error(residuals: np.ndarray, tokens: np.ndarray, free: int) -> float:
    """`free`: Degrees of freedom among the seeds whose residuals these are."""
    rows = rows_of(tokens)
    return float(math.sqrt(rows / max(1, rows - 1) * float((residuals**2).sum()) / free) / tokens.sum())


def document_of(arms: Mapping[str, Seeds], reference: str, learning: str | None) -> dict[str, Any]:
    """compare.json: every arm, and how the reference does against it.

    Args:
        learning: The arm whose cost counts for the reference, which applies what it learned.

    Losses that are no finite numbers are None, and arms with such are compared with none; nor is any on a single row.
    """
    plain = [of.seconds for name, seeds in arms.items() if name not in (learning, reference) for of in seeds.values()]
    ordinary = statistics.median(plain) if plain else math.nan
    rows = min((rows_of(of.tokens) for seeds in arms.values() for of in seeds.values()), default=0)
    return {
        "schema": SCHEMA,
        "reference": reference,
        "rows": rows,
        "arms": {name: _arm(name, arms, reference, learning, ordinary) for name in arms},
    }


def _arm(name: str, arms: Mapping[str, Seeds], reference: str, learning: str | None, ordinary: float) -> dict[str, Any]:
    seeds = arms[name]
    time = _mean_seconds(seeds) / ordinary
    before = _mean_seconds(arms.get(learning or "", {})) / ordinary if name == reference else 0.0
    losses = [of.loss for of in seeds.values()]
    told = not _diverged(seeds)
    arm = {
        "losses": {str(seed): of.loss if math.isfinite(of.loss) else None for seed, of in seeds.items()},
        "loss": statistics.fmean(losses) if told else None,
        "seed_error": statistics.stdev(losses) / math.sqrt(len(losses)) if told and len(losses) > 1 else None,
        "steps": max(of.steps for of in seeds.values()),
        "time": None if math.isnan(time) else time,
        "time_with_learning": None if math.isnan(time) else time + before,
    }
    beside = arms.get(reference, {})
    few_rows = any(rows_of(of.tokens) < FEWEST_ROWS for of in seeds.values())
    if name == reference or not set(seeds) & set(beside) or not told or _diverged(beside) or few_rows:
        return arm
    found = difference(beside, seeds)
    return arm | {
        "difference": found.mean,
        "interval": [found.mean - found.half_width, found.mean + found.half_width],
        "difference_seed_error": found.seed_error,
        "difference_row_error": found.row_error,
        "verdict": found.verdict,
        "more_seeds": found.more_seeds,
    }


def _mean_seconds(seeds: Seeds) -> float:
    return statistics.fmean(of.seconds for of in seeds.values()) if seeds else 0.0


def _diverged(seeds: Seeds) -> bool:
    return not all(math.isfinite(of.loss) for of in seeds.values())


def table(document: Mapping[str, Any]) -> str:
    """In the terminal; best first."""
    rows = [head_of(document), *([shorten(name), *words] for name, *words in compared(document))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
