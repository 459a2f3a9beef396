"""How often `scalebio compare`'s 95% interval holds the truth: `python -m benchmarks.compare_interval`.

Simulated: on row r, seed s differs by tokens_r · (truth + a_s + b_r + e_sr), each part normal with a deviation of its
own, rows of 5 to 39 target tokens. A minute on one core. Results: benchmarks/compare_interval.md.
Legend: R test rows, n seeds.
"""

from __future__ import annotations

import argparse

import numpy as np

from scalebio_plugin.compare.result import Judged, difference

TRUTH = -0.1  # nats a token
KINDS = {  # deviations of a (a seed's), b (a row's) and e (a row's of one seed), nats a token
    "rows decide": (0.02, 0.3, 0.1),
    "seeds decide": (0.1, 0.05, 0.05),
    "each seed's own rows decide": (0.01, 0.05, 0.3),
}


def coverage(of_seed: float, of_row: float, own: float, rows: int, seeds: int, draws: int) -> float:
    """The part of the draws whose interval holds TRUTH; with one seed that of this seed, as its interval says."""
    rng, held = np.random.default_rng([rows, seeds]), 0
    for _ in range(draws):
        tokens = rng.integers(5, 40, rows)
        seed_n = rng.normal(0, of_seed, (seeds, 1)) if seeds > 1 else np.zeros((1, 1))
        means = TRUTH + seed_n + rng.normal(0, of_row, rows) + rng.normal(0, own, (seeds, rows))
        first = {seed: Judged(tokens * (2.0 + means[seed]), tokens, 1, 1.0) for seed in range(seeds)}
        second = {seed: Judged(tokens * 2.0, tokens, 1, 1.0) for seed in range(seeds)}
        found = difference(first, second)
        held += abs(found.mean - TRUTH) <= found.half_width
    return held / draws


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=1000)
    draws = parser.parse_args().draws
    print("| what decides | test rows | 1 seed | 2 | 3 | 5 |\n|---|---|---|---|---|---|")
    for kind, parts in KINDS.items():
        for rows in (2, 3, 5, 10, 50, 300):
            cells = [f"{coverage(*parts, rows, seeds, draws):.1%}" for seeds in (1, 2, 3, 5)]
            print(f"| {kind} | {rows} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
