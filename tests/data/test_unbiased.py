"""Over many steps the training gradient and the gaps are those of the whole data, however rows are drawn."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from benchmarks.sampling import Drawn, Toy, by_the_mixture, estimates, in_the_hosts_order
from scalebio_plugin.algorithm.bilevel import GapBaseline
from scalebio_plugin.data.packing import MicroBatches
from scalebio_plugin.data.step_plan import Draw, DrawState, learning_fractions

STEPS = 4_000
TOY = Toy.of([40, 200, 100], [28, 2, 10])  # lengths 14 : 1
WEIGHTS = np.array([0.2, 0.7, 0.1])
BASELINES = {
    "none": GapBaseline.zeros(3),
    "far off": GapBaseline(torch.tensor([9.0, -3.0, 2.0]).double(), torch.ones(3).double()),
}


def apart(steps: Iterable[Drawn], baseline: GapBaseline = BASELINES["none"]) -> np.ndarray:  # (1 + S,)
    """Distance of the mean gradient and the mean gaps from those of the whole data, in standard errors."""
    gradients, gaps = zip(*(estimates(TOY, drawn, WEIGHTS, baseline) for drawn in steps), strict=True)
    found = np.column_stack([gradients, gaps])
    truth = np.array([TOY.gradient(WEIGHTS), *TOY.gap()])
    far = (found.mean(0) - truth) / (found.std(0) / len(found) ** 0.5)
    print(np.round(far, 1))
    return far


@cache
def drawn(rows: int, steps: int = STEPS) -> list[Drawn]:
    return list(by_the_mixture(TOY, WEIGHTS, rows, steps))


SLOW = pytest.mark.slow  # the same with fewer steps, which see less, by default


@pytest.mark.parametrize(
    ("rows", "steps", "name"),
    [
        pytest.param(2, 10_000, "none", marks=SLOW),
        (3, STEPS, "far off"),
        *(pytest.param(*case, marks=SLOW) for case in ((3, 10_000, "far off"), (4, 10_000, "none"))),
    ],
)
def test_few_rows_drawn_by_the_mixture_have_no_bias(rows: int, steps: int, name: str) -> None:
    found = drawn(rows, steps)
    absent = [set(range(3)) - set(TOY.source[step.rows].tolist()) for step in found]
    assert sum(map(bool, absent)) > steps / 4, "a source is missing in many steps"
    assert (abs(apart(found, BASELINES[name])) < 4).all()


@pytest.mark.parametrize("steps", [STEPS // 2, pytest.param(5_000, marks=SLOW)])
@pytest.mark.parametrize("bins", [1, pytest.param(4, marks=SLOW)])
def test_packed_they_have_next_to_none(bins: int, steps: int) -> None:
    """Rows of a step are known only once they are drawn, and long ones wait for room."""
    like = MicroBatches(bins, 1, 1, capacity=100, members=100)
    draw = Draw(TOY.source, TOY.mean_units, 10**6, 0, like, TOY.lengths)
    found, state = [], DrawState.start(3)
    for _ in range(steps // 8):
        planned, state = draw.plan(learning_fractions(WEIGHTS, TOY.mean_units), [1] * 8, state)
        found += [Drawn(step.rows(), step.share_S, step.units) for step in planned]
    assert (abs(apart(found)) < 4).all()


def test_many_rows_in_the_hosts_order_have_next_to_none() -> None:
    assert (abs(apart(in_the_hosts_order(TOY, 128, 2_000))) < 4).all()


def test_divided_by_what_came_few_rows_are_biased() -> None:
    """The reason to divide by what was expected, and that these tests can fail."""
    steps = [replace(step, total=None) for step in drawn(3)]
    assert abs(apart(steps)).max() > 20


def test_with_the_shares_of_the_training_set_they_are_biased() -> None:
    share = TOY.units_S / TOY.units_S.sum()
    steps = [replace(step, share_S=share) for step in drawn(3)]
    assert abs(apart(steps)).max() > 20
