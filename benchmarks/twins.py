"""What two sources that are the same differ by: noise alone, so that it shows which noise real gaps have.

    python -m benchmarks.twins FIRST SECOND HISTORY...

The pull of source FIRST less that of SECOND, over the root of its running mean square, of every recorded run: the
autocorrelations over all of them, each ± one standard error of white noise, and by how much the variance of a mean of
many updates is larger than of white noise.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scalebio_plugin.algorithm.evidence import DECAY
from scalebio_plugin.algorithm.moments import LAGS
from scalebio_plugin.report.history import read_history, series

Floats = NDArray[np.float64]
RANGES = ((5, 16), (17, 32))  # of lags


def difference(history: Path, first: str, second: str) -> Floats:  # (N,)
    """In running deviations, the first of which are left out."""
    pull = series(read_history(history), "pull", [first, second])
    apart = pull[:, 0] - pull[:, 1]
    square, found = 0.0, []
    for update, value in enumerate(apart, start=1):
        square = DECAY * square + (1 - DECAY) * value**2
        found.append(value / (square / (1 - DECAY**update)) ** 0.5 if square > 0 else 0.0)
    return np.array(found[10:])


def autocorrelations(runs: Sequence[Floats]) -> Floats:  # (LAGS + 1,)
    """About a mean of 0, which twins have."""
    sums = [sum(float((run[lag:] * run[: len(run) - lag]).sum()) for run in runs) for lag in range(LAGS + 1)]
    pairs = [sum(len(run) - lag for run in runs) for lag in range(LAGS + 1)]
    found = np.array(sums) / np.array(pairs)
    return found / found[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first")
    parser.add_argument("second")
    parser.add_argument("histories", nargs="+", type=Path)
    arguments = parser.parse_args()
    runs = [difference(path, arguments.first, arguments.second) for path in arguments.histories]
    found, updates = autocorrelations(runs), sum(map(len, runs))
    error = updates**-0.5
    print(f"{len(runs)} runs, {updates} updates")
    print("lags 1 to 4:", *(f"{value:+.3f}" for value in found[1:5]), f"(± {error:.3f} each)")
    for low, high in RANGES:
        mean, several = found[low : high + 1].mean(), error / (high - low + 1) ** 0.5
        print(f"lags {low} to {high}, their mean: {mean:+.4f} ± {several:.4f}")
    print(f"variance of a mean: {1 + 2 * found[1:].sum():.2f} ± {2 * LAGS**0.5 * error:.2f} times that of white noise")


if __name__ == "__main__":
    main()
