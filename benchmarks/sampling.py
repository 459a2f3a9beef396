"""What drawing rows by source does to the noise of a step, and how full its bins are: `python -m benchmarks.sampling`.

Prints the tables of benchmarks/sampling.md. A toy set of rows whose tokens have the loss ½ (θ − c)², c their row's,
goes through the package's own equation (1) and gap; the bins are compared with those of the host's
`MultipackBatchSampler`.

Legend: S sources.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scalebio_plugin.algorithm.bilevel import (
    IGNORED,
    GapBaseline,
    Targets,
    estimate_gap,
    sum_by_source,
    weighted_loss,
)
from scalebio_plugin.data.packing import MicroBatches
from scalebio_plugin.data.step_plan import Draw, DrawState, learning_fractions


@dataclass(frozen=True)
class Toy:
    """Rows with a number each, and two values of the one parameter.

    Attributes:
        source, lengths, centre: (rows,), of each row: its source, its target tokens, the c of their losses.
    """

    source: np.ndarray
    lengths: np.ndarray
    centre: np.ndarray
    model: float = 1.0
    inner: float = 0.6

    @classmethod
    def of(cls, sizes: list[int], mean_lengths: list[int], seed: int = 0) -> Toy:
        """Lengths vary by half of their mean, and long rows have other losses than short ones of their source."""
        rng = np.random.default_rng(seed)
        source = np.repeat(np.arange(len(sizes)), sizes)
        mean = np.array(mean_lengths)[source]
        lengths = np.maximum(1, rng.integers(mean // 2, mean + mean // 2 + 1))
        return cls(source, lengths, source - 1.0 + lengths / mean + rng.normal(0, 0.5, len(source)))

    @property
    def units_S(self) -> np.ndarray:
        return np.bincount(self.source, self.lengths)

    @property
    def mean_units(self) -> np.ndarray:
        return self.units_S / np.bincount(self.source)

    def mean(self, of_rows: np.ndarray) -> np.ndarray:  # (S,)
        """Token mean of each source."""
        return np.bincount(self.source, self.lengths * of_rows) / self.units_S

    def gradient(self, weights: np.ndarray) -> float:
        """Of Σ p_i L2_i at the model."""
        return float(weights @ self.mean(self.model - self.centre))

    def gap(self) -> np.ndarray:  # (S,)
        return self.mean((self.model - self.centre) ** 2 / 2 - (self.inner - self.centre) ** 2 / 2)

    def targets(self, rows: np.ndarray) -> tuple[Targets, Tensor]:
        """Of a padded batch of the rows, and the c of every place: (B, T)."""
        lengths = torch.from_numpy(self.lengths[rows])
        there = torch.arange(int(lengths.max())) < lengths[:, None]
        source = torch.from_numpy(self.source[rows])[:, None].expand(there.shape)
        labels = torch.where(there, 0, IGNORED)
        centre = torch.from_numpy(self.centre[rows])[:, None].expand(there.shape)
        return Targets(labels, there.double(), torch.where(there, source, 0)), centre


@dataclass(frozen=True)
class Drawn:
    """The rows of a step; `total` None: what came."""

    rows: np.ndarray
    share_S: np.ndarray
    total: float | None


def in_the_hosts_order(toy: Toy, rows: int, steps: int, seed: int = 0) -> Iterator[Drawn]:
    rng, share, left = np.random.default_rng(seed), toy.units_S / toy.units_S.sum(), np.zeros(0, dtype=int)
    for _ in range(steps):
        if len(left) < rows:
            left = rng.permutation(len(toy.source))
        yield Drawn(left[:rows], share, None)
        left = left[rows:]


def by_the_mixture(
    toy: Toy, weights: np.ndarray, rows: int, steps: int, max_repeats: int = 10**6, seed: int = 0
) -> Iterator[Drawn]:
    draw = Draw(toy.source, toy.mean_units, max_repeats, seed, MicroBatches(rows, 1, 1))
    planned, _ = draw.plan(learning_fractions(weights, toy.mean_units), [1] * steps, DrawState.start(len(weights)))
    yield from (Drawn(step.rows(), step.share_S, step.units) for step in planned)


def estimates(toy: Toy, drawn: Drawn, weights: np.ndarray, baseline: GapBaseline) -> tuple[float, np.ndarray]:
    """The gradient of the training loss at the model, and the gap of every source, of one step."""
    share_S, p = torch.from_numpy(drawn.share_S), torch.from_numpy(weights)
    targets, centre = toy.targets(drawn.rows)
    units_S = targets.counts(len(weights))
    total = units_S.sum() if drawn.total is None else torch.tensor(drawn.total, dtype=torch.float64)
    gradient = weighted_loss(toy.model - centre, targets, p / share_S, total)  # linear, as equation (1) is
    difference = ((toy.model - centre) ** 2 - (toy.inner - centre) ** 2) / 2 * targets.units
    sums_S = sum_by_source(difference, targets.source, len(weights))
    gap, _ = estimate_gap(sums_S, units_S, share_S, baseline, total=total)
    return float(gradient), gap.numpy()


def noise(toy: Toy, weights: np.ndarray, rows: int, steps: int) -> list[tuple[float, float]]:
    """Standard deviations of the gradient and of the gap (root mean square over sources).

    In the host's order, by the mixture, and by the mixture at the default of `max_repeats`.
    """
    baseline = GapBaseline(torch.from_numpy(toy.gap()) * 100, torch.full((len(weights),), 100.0, dtype=torch.float64))
    found = []
    for order in (
        in_the_hosts_order(toy, rows, steps),
        by_the_mixture(toy, weights, rows, steps),
        by_the_mixture(toy, weights, rows, steps, max_repeats=4),
    ):
        gradients, gaps = zip(*(estimates(toy, drawn, weights, baseline) for drawn in order), strict=True)
        found.append((float(np.std(gradients)), float(np.sqrt(np.var(gaps, axis=0).mean()))))
    return found


SETTINGS = {
    "three alike, uniform": ([3000, 3000, 3000], [30, 30, 30], [1 / 3, 1 / 3, 1 / 3]),
    "lengths 14 : 1, uniform": ([3000, 3000, 3000], [140, 10, 50], [1 / 3, 1 / 3, 1 / 3]),
    "60, 3,000, 3,000 rows, uniform": ([60, 3000, 3000], [30, 30, 30], [1 / 3, 1 / 3, 1 / 3]),
    "60, 3,000, 3,000 rows, learned": ([60, 3000, 3000], [30, 30, 30], [0.8, 0.15, 0.05]),
    "three alike, learned": ([3000, 3000, 3000], [30, 30, 30], [0.9, 0.08, 0.02]),
}


def lognormal(rows: int, capacity: int, seed: int = 0) -> np.ndarray:
    return np.clip(np.random.default_rng(seed).lognormal(np.log(300) - 0.32, 0.8, rows), 8, capacity).astype(int)


def fill(lengths: np.ndarray, capacity: int, bins: int, steps: int) -> float:
    """Part of the places of the planned bins that tokens take."""
    draw = Draw(np.zeros(len(lengths), dtype=int), np.ones(1), 1000, 0, _bins(bins, capacity), lengths)
    planned, _ = draw.plan(np.ones(1), [1] * steps, DrawState.start(1))
    return float(lengths[np.concatenate([step.rows() for step in planned])].sum() / (capacity * bins * steps))


def fill_of_host(lengths: np.ndarray, capacity: int) -> float:
    from axolotl.utils.samplers import MultipackBatchSampler

    rows = range(len(lengths))
    sampler = MultipackBatchSampler(rows, 1, capacity, lengths, bin_size=capacity, num_processes=1)
    return sampler.efficiency()


def _bins(bins: int, capacity: int) -> MicroBatches:
    return MicroBatches(bins, 1, 1, capacity=capacity, members=capacity)


def main() -> None:
    print(
        "| sources | rows a step | gradient: host | mixture | at most 4 times | gap: host | mixture | at most 4 times |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, (sizes, lengths, weights) in SETTINGS.items():
        for rows in (4, 16):
            found = noise(Toy.of(sizes, lengths), np.array(weights), rows, 4000)
            columns = [f"{value:.2f}" for pair in zip(*found, strict=True) for value in pair]
            print(f"| {name} | {rows} | {' | '.join(columns)} |")
    print("\n| capacity | host | 1 bin a step | 2 | 4 | 8 |\n|---|---|---|---|---|---|")
    for capacity in (2048, 4096):
        lengths_of_rows = lognormal(20_000, capacity)
        ours = [f"{fill(lengths_of_rows, capacity, bins, 800 // bins):.3f}" for bins in (1, 2, 4, 8)]
        print(f"| {capacity} | {fill_of_host(lengths_of_rows, capacity):.3f} | {' | '.join(ours)} |")


if __name__ == "__main__":
    main()
