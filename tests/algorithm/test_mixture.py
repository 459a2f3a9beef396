"""Weights on the simplex: the update rules against slow twins, the bounds against a general solver."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.optimize import LinearConstraint, linprog, minimize
from torch import Tensor

from scalebio_plugin.algorithm.bilevel import mixture_gradient
from scalebio_plugin.algorithm.bounds import Bounds
from scalebio_plugin.algorithm.evidence import Evidence
from scalebio_plugin.algorithm.mixture import (
    AdamState,
    ExponentiatedState,
    adam,
    exponentiated_gradient,
    logits_of,
    weights_of,
)
from scalebio_plugin.algorithm.prior import towards_prior


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_a_rule_refuses_what_is_not_finite_by_its_source(wrong: float) -> None:
    values, logits = torch.tensor([0.1, wrong, 0.2], dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    with pytest.raises(ValueError, match="^the gradient of source 1 must be finite, got "):
        adam(values, AdamState.zeros(3), logits, 0.01)
    with pytest.raises(ValueError, match="^the gap of source 1 must be finite, got "):
        exponentiated_gradient(values, weights_of(logits), ExponentiatedState(), logits, 0.01)
    with pytest.raises(ValueError, match="^the gap of source 1 must be finite and at most "):
        Evidence.zeros(3).plus(values)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- softmax and back


@pytest.mark.parametrize("sources", [2, 3, 10, 100])
@pytest.mark.parametrize("spread", [0.0, 1.0, 8.0])
def test_weights_come_back_from_their_logits(sources, spread):
    weights = weights_of(spread * normal(sources))
    assert float(weights.sum()) == pytest.approx(1.0, abs=1e-14)
    torch.testing.assert_close(weights_of(logits_of(weights)), weights, rtol=1e-12, atol=0)
    assert abs(float(logits_of(weights).mean())) < 1e-12


def test_a_weight_of_zero_has_finite_logits_and_stays_out_of_sight():
    weights = torch.tensor([0.0, 0.25, 0.75], dtype=torch.float64)
    logits = logits_of(weights)
    assert logits.isfinite().all()
    torch.testing.assert_close(weights_of(logits), weights, rtol=1e-12, atol=1e-20)


def test_equal_weights_have_logits_zero():
    assert torch.equal(weights_of(logits_of(torch.full((4,), 0.25))), torch.full((4,), 0.25, dtype=torch.float64))


# ---- Adam on the logits


@pytest.mark.parametrize("sources", [2, 10])
@pytest.mark.parametrize("learning_rate", [0.0, 0.01, 0.3])
@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e4], ids=lambda s: f"gradients of {s:g}")
@pytest.mark.parametrize("constants", [(), ((0.5, 0.9), 1e-8), ((0.0, 0.99), 1e-3), ((0.9, 0.95), 1.0)], ids=str)
def test_adam_is_torchs_step_by_step(sources, learning_rate, scale, constants):
    twin = torch.nn.Parameter(normal(sources, seed=1))
    optimizer = torch.optim.Adam([twin], learning_rate, *constants)
    logits, state = twin.detach().clone(), AdamState.zeros(sources)
    for step in range(50):
        twin.grad = scale * normal(sources, seed=100 + step)
        optimizer.step()
        logits, state = adam(twin.grad, state, logits, learning_rate, *constants)
        torch.testing.assert_close(logits, twin.detach(), rtol=1e-12, atol=1e-12)
    assert state.step == 50


def test_adam_moves_a_logit_by_the_learning_rate_at_first():
    logits, _ = adam(torch.tensor([3.0, -1e-3, 0.0]).double(), AdamState.zeros(3), torch.zeros(3).double(), 0.01)
    torch.testing.assert_close(logits, torch.tensor([-0.01, 0.01, 0.0]).double(), rtol=2e-5, atol=0)


def test_adam_leaves_what_it_was_given_as_it_is():
    gradient, logits, state = normal(3), normal(3, seed=1), AdamState.zeros(3)
    copies = gradient.clone(), logits.clone()
    adam(gradient, state, logits, 0.1)
    assert torch.equal(gradient, copies[0])
    assert torch.equal(logits, copies[1])
    assert state.step == 0
    assert torch.equal(state.first_S, torch.zeros(3, dtype=torch.float64))


def test_adam_with_zero_gradients_stays():
    logits, state = normal(4), AdamState.zeros(4)
    for _ in range(5):
        moved, state = adam(torch.zeros(4, dtype=torch.float64), state, logits, 0.1)
        assert torch.equal(moved, logits)


# ---- exponentiated gradient


def literal_exponentiated(gaps: list[Tensor], weights: list[float], rate: float, decay: float = 0.99) -> list[float]:
    """p_i ← p_i exp(−η ĝ_i) / Z in plain numbers; the mean square is an exponential average without bias."""
    squares: list[float] = []
    for gap in gaps:
        mean = sum(p * g for p, g in zip(weights, gap.tolist(), strict=True))
        centred = [g - mean for g in gap.tolist()]
        squares.append(sum(c * c for c in centred) / len(centred))
        ages = [decay**age for age in range(len(squares))]
        rms = (sum(a * s for a, s in zip(ages, reversed(squares), strict=True)) / sum(ages)) ** 0.5
        factors = [p * np.exp(-rate * c / rms) for p, c in zip(weights, centred, strict=True)]
        weights = [factor / sum(factors) for factor in factors]
    return weights


def run_exponentiated(gaps: list[Tensor], logits: Tensor, rate: float = 0.1) -> Tensor:
    state = ExponentiatedState()
    for gap in gaps:
        logits, state = exponentiated_gradient(gap, weights_of(logits), state, logits, rate)
    return logits


@pytest.mark.parametrize("sources", [2, 3, 10])
@pytest.mark.parametrize("rate", [0.0, 0.03, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 30])
def test_exponentiated_gradient_is_its_formula(sources, rate, steps):
    gaps = [normal(sources, seed=step) for step in range(steps)]
    start = normal(sources, seed=77)
    expected = literal_exponentiated(gaps, weights_of(start).tolist(), rate)
    assert weights_of(run_exponentiated(gaps, start, rate)).tolist() == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 7.0, 1e9])
def test_the_size_of_the_gaps_does_not_matter(scale):
    gaps, start = [normal(6, seed=step) for step in range(20)], torch.zeros(6, dtype=torch.float64)
    scaled = run_exponentiated([scale * gap for gap in gaps], start)
    torch.testing.assert_close(scaled, run_exponentiated(gaps, start), rtol=1e-11, atol=1e-12)


def test_a_shift_of_all_gaps_does_not_matter():
    gaps, start = [normal(6, seed=step) for step in range(20)], torch.zeros(6, dtype=torch.float64)
    shifted = run_exponentiated([gap + 3.0 for gap in gaps], start)
    torch.testing.assert_close(shifted, run_exponentiated(gaps, start), rtol=0, atol=1e-12)


def test_the_learning_rate_is_a_speed_in_nats():
    """The first step of an even mixture moves the logits by η in the root mean square."""
    logits = run_exponentiated([normal(10)], torch.zeros(10, dtype=torch.float64), 0.03)
    assert float((logits**2).mean().sqrt()) == pytest.approx(0.03, rel=1e-12)


@pytest.mark.parametrize("before", [0, 3])
def test_a_gap_of_zero_leaves_the_logits_as_they_are(before):
    logits, state = normal(5), ExponentiatedState()
    for step in range(before):
        logits, state = exponentiated_gradient(normal(5, seed=step), weights_of(logits), state, logits, 0.1)
    zeros = torch.zeros(5, dtype=torch.float64)
    after, _ = exponentiated_gradient(zeros, weights_of(logits), state, logits, 0.1)
    assert torch.equal(after, logits)


def test_equal_gaps_move_nothing_visibly():
    logits = run_exponentiated([torch.full((3,), 0.5).double()], torch.zeros(3, dtype=torch.float64))
    assert torch.equal(weights_of(logits), torch.full((3,), 1 / 3, dtype=torch.float64))


@pytest.mark.parametrize("rule", ["adam", "exponentiated_gradient"])
def test_a_source_with_the_lowest_gap_wins(rule):
    gap, logits = torch.tensor([0.2, -0.1, 0.3], dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    adam_state, exponentiated_state = AdamState.zeros(3), ExponentiatedState()
    for _ in range(300):
        weights = weights_of(logits)
        if rule == "adam":
            logits, adam_state = adam(mixture_gradient(gap, weights, 10.0), adam_state, logits, 0.05)
        else:
            logits, exponentiated_state = exponentiated_gradient(gap, weights, exponentiated_state, logits, 0.05)
    assert weights_of(logits).argmax() == 1
    assert float(weights_of(logits)[1]) > 0.9


# ---- bounds


@dataclass(frozen=True)
class Case:
    """A random feasible problem: `weights` (S,) to be brought within `bounds`."""

    weights: Tensor
    bounds: Bounds

    @classmethod
    def random(cls, sources: int, groups: int, seed: int) -> Case:
        """Boxes and group sums around a hidden feasible point, tight enough that several of them bind."""
        random = np.random.default_rng([sources, groups, seed])
        inside = random.dirichlet(np.full(sources, 2.0))
        low = inside * random.uniform(0.0, 1.0, sources)
        high = np.minimum(1.0, inside + (1 - inside) * random.uniform(0.0, 0.4, sources))
        members = [list(map(int, part)) for part in np.array_split(random.permutation(sources), groups + 1)[:groups]]
        sums = [
            (part, float(inside[part].sum() * random.uniform(0.5, 1.0)), float(inside[part].sum() * 1.1))
            for part in members
        ]
        weights = torch.from_numpy(random.dirichlet(np.full(sources, 0.6)).clip(1e-4))
        return cls(weights / weights.sum(), Bounds(torch.from_numpy(low), torch.from_numpy(high), sums))

    def violation(self, weights: Tensor) -> float:
        """The largest amount by which a bound is broken."""
        amounts = [float((self.bounds.low_S - weights).max()), float((weights - self.bounds.high_S).max())]
        for members, low, high in self.bounds.groups:
            total = float(weights[members].sum())
            amounts += [low - total, total - high]
        return float(np.max(amounts))

    def divergence(self, weights: Tensor) -> float:
        return float((weights * (weights.clamp(min=1e-300) / self.weights).log()).sum())

    def solved(self) -> Tensor:
        """The Kullback-Leibler projection by sequential quadratic programming."""
        target, low, high = (x.numpy() for x in (self.weights, self.bounds.low_S, self.bounds.high_S))
        sums = np.zeros((len(self.bounds.groups), len(target)))
        for row, (members, _, _) in zip(sums, self.bounds.groups, strict=True):
            row[members] = 1.0
        least, most = (np.array([group[side] for group in self.bounds.groups]) for side in (1, 2))
        constraints = [LinearConstraint(np.ones((1, len(target))), 1.0, 1.0)]
        constraints += [LinearConstraint(sums, least, most)] if len(sums) else []
        start = linprog(
            np.zeros(len(target)),
            A_ub=np.vstack([sums, -sums]),
            b_ub=np.concatenate([most, -least]),
            A_eq=np.ones((1, len(target))),
            b_eq=[1.0],
            bounds=np.stack([low, high], 1),
        ).x
        found = minimize(
            lambda q: float(np.sum(q * np.log(np.maximum(q, 1e-12) / target))),
            np.maximum(start, 1e-6),
            jac=lambda q: np.log(np.maximum(q, 1e-12) / target) + 1,
            bounds=np.stack([low, high], 1),
            constraints=constraints,
            method="SLSQP",
            options={"ftol": 1e-15, "maxiter": 1000},
        )
        return torch.from_numpy(found.x)


CASES = [(sources, groups, seed) for sources in (2, 3, 6, 10) for groups in (0, 1, 2) for seed in range(4)]
CASES = [case for case in CASES if case[1] + 1 <= case[0] // 2 + 1]


@pytest.fixture(params=CASES, ids=lambda c: "S={},groups={},seed={}".format(*c))
def case(request: pytest.FixtureRequest) -> Case:
    return Case.random(*request.param)


def test_bounded_weights_are_within_boxes_and_groups_and_sum_to_one(case):
    before = case.weights.clone()
    weights = case.bounds.bounded(case.weights)
    assert torch.equal(case.weights, before)
    assert float(weights.sum()) == pytest.approx(1.0, abs=1e-13)
    assert case.violation(weights) < 1e-11


def test_bounded_weights_are_the_closest_in_divergence(case):
    ours, solved = case.bounds.bounded(case.weights), case.solved()
    assert case.violation(solved) < 1e-8  # the solver did its work
    torch.testing.assert_close(ours, solved, rtol=0, atol=1e-5)
    assert case.divergence(ours) <= case.divergence(solved) + 1e-9


def test_bounding_twice_is_bounding_once(case):
    once = case.bounds.bounded(case.weights)
    torch.testing.assert_close(case.bounds.bounded(once), once, rtol=0, atol=1e-11)


def test_weights_within_the_bounds_stay(case):
    inside = case.solved()
    wide = Bounds(
        (inside - 0.01).clamp(min=0.0),
        (inside + 0.01).clamp(max=1.0),
        [(members, low - 0.01, high + 0.01) for members, low, high in case.bounds.groups],
    )
    torch.testing.assert_close(wide.bounded(inside), inside, rtol=0, atol=1e-8)


# ---- a prior


def drawn(case: Case, prior: Tensor, step: float, bounds: Bounds) -> Tensor:
    """argmin of step · KL(p | prior) + KL(p | weights) within the bounds, by the solver: it has only its first target.

    The sum of divergences is (1 + step) times that from the normalised geometric mean, which the solver does not know:
    it is given the sum itself.
    """
    low, high = bounds.low_S.numpy(), bounds.high_S.numpy()
    first, second = case.weights.numpy(), prior.numpy()
    sums = np.zeros((len(bounds.groups), len(first)))
    for row, (members, _, _) in zip(sums, bounds.groups, strict=True):
        row[members] = 1.0
    least, most = (np.array([group[side] for group in bounds.groups]) for side in (1, 2))
    constraints = [LinearConstraint(np.ones((1, len(first))), 1.0, 1.0)]
    constraints += [LinearConstraint(sums, least, most)] if len(sums) else []

    def objective(p: np.ndarray) -> float:
        p = np.maximum(p, 1e-12)
        return float(step * np.sum(p * np.log(p / second)) + np.sum(p * np.log(p / first)))

    def slope(p: np.ndarray) -> np.ndarray:
        p = np.maximum(p, 1e-12)
        return step * (np.log(p / second) + 1) + np.log(p / first) + 1

    found = minimize(
        objective,
        np.maximum(bounds.bounded(torch.full_like(prior, 1 / len(prior))).numpy(), 1e-6),
        jac=slope,
        bounds=np.stack([low, high], 1),
        constraints=constraints,
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    return torch.from_numpy(found.x)


def some_prior(sources: int, seed: int) -> Tensor:
    weights = np.random.default_rng([sources, seed, 7]).dirichlet(np.ones(sources)).clip(1e-3)
    return torch.from_numpy(weights / weights.sum())


@pytest.mark.parametrize("step", [0.01, 0.3, 5.0])
@pytest.mark.parametrize("bounded", [True, False])
def test_a_step_towards_a_prior_is_the_solvers(case, step, bounded):
    sources = len(case.weights)
    everywhere = Bounds(torch.zeros(sources, dtype=torch.float64), torch.ones(sources, dtype=torch.float64))
    bounds, prior = case.bounds if bounded else everywhere, some_prior(sources, 0)
    ours = bounds.bounded(weights_of(towards_prior(logits_of(case.weights), prior, step)))
    torch.testing.assert_close(ours, drawn(case, prior, step, bounds), rtol=0, atol=1e-5)


def test_steps_towards_a_prior_end_there_and_a_step_of_zero_stays():
    prior, start = some_prior(5, 1), normal(5)
    assert torch.equal(towards_prior(start, prior, 0.0), start)
    logits = start
    for _ in range(200):
        logits = towards_prior(logits, prior, 0.2)
    torch.testing.assert_close(weights_of(logits), prior, rtol=1e-9, atol=0)


# ---- bounds by hand


def box(low: list[float], high: list[float]) -> Bounds:
    return Bounds(torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64))


BOXES = {  # floors, caps, weights, bounded weights
    "a cap hands the rest out in proportion": ([0, 0, 0], [0.4, 1, 1], [0.7, 0.2, 0.1], [0.4, 0.4, 0.2]),
    "a floor takes from the others in proportion": ([0.3, 0, 0], [1, 1, 1], [0.1, 0.6, 0.3], [0.3, 1.4 / 3, 0.7 / 3]),
    "a box of one point is met": ([0.2, 0.5, 0.3], [0.2, 0.5, 0.3], [0.8, 0.1, 0.1], [0.2, 0.5, 0.3]),
    **{
        f"{tiny} comes back to its floor": ([0.1, 0], [1, 1], [tiny, 1.0], [0.1, 0.9])  # a weight that nearly vanished
        for tiny in (1e-12, 1e-30)
    },
    **{
        f"{tiny} takes what a cap leaves": ([0, 0], [0.5, 1], [1.0 - tiny, tiny], [0.5, 0.5])  # it must go somewhere
        for tiny in (1e-12, 1e-30, 0.0)
    },
}


@pytest.mark.parametrize(("floors", "caps", "weights", "expected"), BOXES.values(), ids=BOXES.keys())
def test_boxes_bound_as_computed_by_hand(floors, caps, weights, expected):
    bounded = box(floors, caps).bounded(torch.tensor(weights, dtype=torch.float64))
    torch.testing.assert_close(bounded, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


def test_a_group_keeps_the_proportions_within_it():
    bounds = Bounds(torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64), [([0, 1], 0.0, 0.3)])
    weights = bounds.bounded(torch.tensor([0.4, 0.2, 0.3, 0.1], dtype=torch.float64))
    expected = torch.tensor([0.2, 0.1, 0.7 * 0.75, 0.7 * 0.25], dtype=torch.float64)
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-12)


def test_what_is_within_the_bounds_keeps_its_bits():
    bounds = Bounds(*(torch.full((3,), bound, dtype=torch.float64) for bound in (0.1, 0.6)), [([0, 1], 0.5, 0.8)])
    inside = torch.tensor([0.1, 0.6 + 1e-15, 0.3], dtype=torch.float64)
    assert bounds.hold(inside)
    assert torch.equal(bounds.bounded(inside), inside)
    outside = ([0.05, 0.55, 0.4], [0.1, 0.65, 0.25], [0.2, 0.29, 0.51], [0.35, 0.6, 0.05])
    assert not any(bounds.hold(torch.tensor(weights, dtype=torch.float64)) for weights in outside)


def test_a_source_held_at_zero_stays_there_through_the_logits():
    bounds = box([0, 0, 0], [0.0, 1, 1])
    weights = bounds.bounded(torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64))
    torch.testing.assert_close(weights_of(logits_of(weights))[0], torch.zeros(()).double(), rtol=0, atol=1e-25)


PRIOR = torch.tensor([0.3, 0.3, 0.3, 0.1], dtype=torch.float64)


@pytest.mark.parametrize(
    ("weights", "bounds", "groups", "expected"),
    [
        ([0.3, 0.2, 0.4, 0.1], {}, [], "all"),
        ([0.3, 0.3, 0.4, 0.0], {3: (0.0, 0.0)}, [], "012"),
        ([0.3, 0.2, 0.45, 0.05], {3: (0.0, 0.05)}, [], "012"),  # would rise
        ([0.3, 0.2, 0.1, 0.4], {3: (0.4, 1.0)}, [], "012"),  # would fall
        ([0.3, 0.2, 0.1, 0.4], {3: (0.0, 0.4)}, [], "all"),  # falls
        ([0.04, 0.06, 0.6, 0.3], {}, [([0, 1], 0.0, 0.1)], "01 23"),
        ([0.0, 0.0, 0.6, 0.4], {}, [([0, 1], 0.0, 0.0)], "01 23"),
        ([0.02, 0.08, 0.6, 0.3], {0: (0.0, 0.02)}, [([0, 1], 0.0, 0.1)], "1 23"),
        ([0.5, 0.1, 0.3, 0.1], {}, [([0, 1], 0.0, 0.6), ([2, 3], 0.4, 1.0)], "01 23"),
        ([0.4, 0.3, 0.2, 0.1], {}, [([0, 1], 0.7, 0.7), ([2, 3], 0.3, 0.3)], "01 23"),
        ([0.4, 0.3, 0.2, 0.1], {0: (0.4, 0.4), 1: (0.3, 0.3), 2: (0.2, 0.2), 3: (0.1, 0.1)}, [], ""),
    ],
    ids=str,
)
def test_a_prior_draws_those_that_bounds_leave_free_to_their_own_mean(weights, bounds, groups, expected):
    low, high = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    for source, (least, most) in bounds.items():
        low[source], high[source] = least, most
    logits = logits_of(torch.tensor(weights, dtype=torch.float64))
    distance, share = logits - PRIOR.log(), torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    centre = distance.clone()  # of one that stays
    for part in expected.replace("all", "0123").split():
        members = list(map(int, part))
        centre[members] = (share * distance)[members].sum() / share[members].sum()
    torch.testing.assert_close(Bounds(low, high, groups).centre(weights_of(logits), distance, share), centre)
