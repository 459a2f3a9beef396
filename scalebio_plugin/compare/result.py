"""What the judged arms come to: losses, paired differences with their errors, a sentence each.

Two things are random: the test rows, and what a seed decides (order of the data, an adapter's start). Both are in the
interval of a difference d: half its width is √((t s / √n)² + (1.96 r)²), with n seeds, s the deviation of d between
them, t Student's quantile of n − 1 degrees of freedom, r the standard error over the test rows of the mean over seeds.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..report.comparison import MOST_SEEDS, SCHEMA, compared

JUDGED = "judged.json"
NORMAL = 1.96

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
        ValueError: They were judged on other rows, or share no seed.
    """
    seeds = sorted(set(first) & set(second))
    if not seeds:
        raise ValueError("no seed has both arms")
    tokens = first[seeds[0]].tokens
    if any(not np.array_equal(arm[seed].tokens, tokens) for arm in (first, second) for seed in seeds):
        raise ValueError("the arms were judged on other test rows; compare them anew, in a new --dir")
    of_seeds = [first[seed].loss - second[seed].loss for seed in seeds]
    mean, row_error = statistics.fmean(of_seeds), _row_error(first, second, seeds)
    if len(seeds) == 1:
        return Difference(mean, None, row_error, NORMAL * row_error, 1)
    deviation = statistics.stdev(of_seeds)
    count = len(seeds)
    return Difference(
        mean,
        deviation / math.sqrt(count),
        row_error,
        _half_width(deviation, count, row_error),
        next(
            (
                more
                for more in range(MOST_SEEDS - count + 1)
                if abs(mean) > _half_width(deviation, count + more, row_error)
            ),
            None,
        ),
    )


def _half_width(deviation: float, seeds: int, row_error: float) -> float:
    from scipy.stats import t

    return math.hypot(float(t.ppf(0.975, seeds - 1)) * deviation / math.sqrt(seeds), NORMAL * row_error)


def _row_error(first: Seeds, second: Seeds, seeds: Sequence[int]) -> float:
    of_rows = np.mean([first[seed].losses - second[seed].losses for seed in seeds], axis=0)
    return error_over_rows(of_rows, first[seeds[0]].tokens)


def error_over_rows(of_rows: np.ndarray, tokens: np.ndarray) -> float:
    """Standard error of Σ of_rows / Σ tokens over the rows: of a ratio of sums, linearised. Both (R,)."""
    rows, residual = len(tokens), of_rows - of_rows.sum() / tokens.sum() * tokens
    return float(math.sqrt(rows / max(1, rows - 1) * float((residual**2).sum())) / tokens.sum())


def document_of(arms: Mapping[str, Seeds], reference: str, learning: str | None) -> dict[str, Any]:
    """compare.json: every arm, and how the reference does against it.

    Args:
        learning: The arm whose cost counts for the reference, which applies what it learned.

    Losses that are no finite numbers are None, and arms with such are compared with none.
    """
    plain = [of.seconds for name, seeds in arms.items() if name not in (learning, reference) for of in seeds.values()]
    ordinary = statistics.median(plain) if plain else math.nan
    return {
        "schema": SCHEMA,
        "reference": reference,
        "arms": {name: _arm(name, arms, reference, learning, ordinary) for name in arms},
    }


def _arm(name: str, arms: Mapping[str, Seeds], reference: str, learning: str | None, ordinary: float) -> dict[str, Any]:
    seeds = arms[name]
    time = statistics.fmean(of.seconds for of in seeds.values()) / ordinary
    before = (
        statistics.fmean(of.seconds for of in arms[learning].values()) / ordinary
        if learning is not None and learning in arms
        else 0.0
    )
    losses = [of.loss for of in seeds.values()]
    told = not _diverged(seeds)
    arm = {
        "losses": {str(seed): of.loss if math.isfinite(of.loss) else None for seed, of in seeds.items()},
        "loss": statistics.fmean(losses) if told else None,
        "seed_error": statistics.stdev(losses) / math.sqrt(len(losses)) if told and len(losses) > 1 else None,
        "steps": max(of.steps for of in seeds.values()),
        "time": None if math.isnan(time) else time,
        "time_with_learning": None if math.isnan(time) else time + (before if name == reference else 0.0),
    }
    beside = arms.get(reference, {})
    if name == reference or not set(seeds) & set(beside) or not told or _diverged(beside):
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


def _diverged(seeds: Seeds) -> bool:
    return not all(math.isfinite(of.loss) for of in seeds.values())


def table(document: Mapping[str, Any]) -> str:
    """In the terminal; best first."""
    reference = document["reference"]
    head = ["arm", "test loss", "± seeds", f"{reference} less it", "95%", "verdict", "time"]
    rows = [head, *(list(astuple(arm)) for arm in compared(document))]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
