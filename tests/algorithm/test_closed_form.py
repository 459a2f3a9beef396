"""The gradient of λ against problems whose inner minimisers, and so the true hypergradient, are known exactly.

Quadratics: sources ½‖θ−c_i‖², validation ½‖θ−t‖², so that u* = Σ p_i c_i and w* = (t + α u*)/(1 + α).
Ridge: ten regressions and a validation regression with the same distribution of features, full-data losses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from scalebio_plugin.algorithm.bilevel import GapBaseline, estimate_gap, mixture_gradient
from scalebio_plugin.algorithm.mixture import weights_of

PENALTIES = [1.0, 3.0, 10.0, 100.0, 1000.0]


def normal(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# ---- quadratics


@dataclass(frozen=True)
class Quadratics:
    """`centres` (S, D), `target` (D,) and `logits` (S,)."""

    centres: Tensor
    target: Tensor
    logits: Tensor

    @classmethod
    def random(cls, sources: int, seed: int, dimension: int = 5) -> Quadratics:
        generator = torch.Generator().manual_seed(seed)
        return cls(
            normal(sources, dimension, generator=generator),
            normal(dimension, generator=generator),
            normal(sources, generator=generator),
        )

    def minimiser(self, logits: Tensor) -> Tensor:
        return weights_of(logits) @ self.centres

    def pulled(self, logits: Tensor, pull: float) -> Tensor:
        """Minimiser of L2 + pull · L1."""
        return (self.minimiser(logits) + pull * self.target) / (1 + pull)

    def losses(self, theta: Tensor) -> Tensor:  # (S,)
        return 0.5 * ((theta - self.centres) ** 2).sum(1)

    def value(self, logits: Tensor) -> Tensor:
        """L1(θ*(λ))."""
        return 0.5 * ((self.minimiser(logits) - self.target) ** 2).sum()

    def gap(self, penalty: float, *, symmetric: bool = False) -> Tensor:  # (S,)
        """L2_i(w*) − L2_i(u*); symmetric: u descends L2 − L1/α, and the gap is halved."""
        u, w = (self.pulled(self.logits, pull) for pull in (-1 / penalty if symmetric else 0.0, 1 / penalty))
        return (self.losses(w) - self.losses(u)) / (2 if symmetric else 1)

    def gradient(self, penalty: float, *, symmetric: bool = False) -> Tensor:  # (S,)
        return mixture_gradient(self.gap(penalty, symmetric=symmetric), weights_of(self.logits), penalty)

    def hypergradient(self) -> Tensor:  # (S,)
        logits = self.logits.clone().requires_grad_()
        return torch.autograd.grad(self.value(logits), logits)[0]


def central_differences(function, point: Tensor, width: float = 1e-6) -> Tensor:
    steps = width * torch.eye(len(point), dtype=point.dtype)
    return torch.stack([(function(point + step) - function(point - step)) / (2 * width) for step in steps])


@pytest.fixture(params=[(2, 0), (3, 1), (5, 2), (10, 3), (10, 4), (40, 5)], ids=lambda p: f"S={p[0]},seed={p[1]}")
def quadratics(request: pytest.FixtureRequest) -> Quadratics:
    return Quadratics.random(*request.param)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_forward_gradient_is_the_hypergradient_times_a_known_factor(quadratics, penalty):
    expected = penalty / (1 + penalty) * quadratics.hypergradient()
    atol = 1e-10 * float(expected.abs().max())
    torch.testing.assert_close(quadratics.gradient(penalty), expected, rtol=1e-10, atol=atol)


@pytest.mark.parametrize("penalty", PENALTIES[1:])
def test_symmetric_gradient_has_a_bias_of_second_order(quadratics, penalty):
    expected = penalty**2 / (penalty**2 - 1) * quadratics.hypergradient()
    atol = 1e-10 * float(expected.abs().max())
    torch.testing.assert_close(quadratics.gradient(penalty, symmetric=True), expected, rtol=1e-10, atol=atol)


def test_hypergradient_is_the_slope_of_the_validation_loss(quadratics):
    slope = central_differences(quadratics.value, quadratics.logits)
    torch.testing.assert_close(slope, quadratics.hypergradient(), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_gradient_is_the_slope_of_the_penalised_objective(quadratics, penalty):
    """∂/∂λ of L1(w) + α (L2(λ, w) − L2(λ, u)) with w and u held."""
    gap = quadratics.gap(penalty)
    slope = central_differences(lambda logits: penalty * (weights_of(logits) * gap).sum(), quadratics.logits)
    torch.testing.assert_close(slope, quadratics.gradient(penalty), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_gradient_sums_to_zero(quadratics, penalty):
    gradient = quadratics.gradient(penalty)
    assert abs(float(gradient.sum())) < 1e-13 * max(1.0, float(gradient.abs().sum()))


def test_gradient_does_not_see_a_shift_of_all_gaps(quadratics):
    gap = quadratics.losses(quadratics.target)
    weights = weights_of(quadratics.logits)
    torch.testing.assert_close(
        mixture_gradient(gap + 7.0, weights, 10.0), mixture_gradient(gap, weights, 10.0), rtol=0, atol=1e-11
    )


def test_gradient_is_exactly_zero_where_the_sets_agree(quadratics):
    zeros = torch.zeros(len(quadratics.logits), dtype=torch.float64)
    assert torch.equal(mixture_gradient(zeros, weights_of(quadratics.logits), 1000.0), zeros)


def test_an_infinite_penalty_gives_zero_and_no_nan(quadratics):
    gradient = mixture_gradient(quadratics.losses(quadratics.target), weights_of(quadratics.logits), float("inf"))
    assert torch.equal(gradient.abs(), torch.zeros_like(gradient))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("penalty", [1.0, 10.0, 100.0])
def test_descent_brings_the_inner_minimiser_to_a_target_that_can_be_reached(seed, penalty):
    problem = Quadratics.random(6, seed, dimension=2)
    wanted = torch.softmax(torch.arange(6, dtype=torch.float64) / 3, 0)
    problem = Quadratics(problem.centres, wanted @ problem.centres, torch.zeros(6, dtype=torch.float64))
    for _ in range(3000):
        problem = replace(problem, logits=problem.logits - problem.gradient(penalty))
    torch.testing.assert_close(problem.minimiser(problem.logits), problem.target, rtol=0, atol=1e-4)


# ---- weighted ridge regression

SOURCES, FEATURES, ROWS, RIDGE, DRAWS = 10, 20, 600, 0.01, 30
FORWARD = {3: 0.253, 10: 0.094, 30: 0.034, 100: 0.0103, 300: 0.0035, 1000: 0.0010}
SYMMETRIC = {3: 0.170, 10: 0.0125, 30: 0.0014, 100: 0.00012, 300: 0.000014, 1000: 0.0000012}


class Ridge:
    """L2 = Σ p_i ½ mean (x·θ − y)² + ½ ridge ‖θ‖² over ten sources, L1 the same mean on as many validation rows.

    Features are standard normal everywhere, so that H of L1 and of L2 differ by sampling alone; the true coefficients
    of every source and of the validation data are drawn apart, and all labels are noisy.
    """

    def __init__(self, seed: int):
        generator = torch.Generator().manual_seed(seed)
        common = normal(FEATURES, generator=generator)
        self.features = normal(SOURCES + 1, ROWS, FEATURES, generator=generator)
        coefficients = common + 0.5 * normal(SOURCES + 1, FEATURES, generator=generator)
        noise = 0.5 * normal(SOURCES + 1, ROWS, generator=generator)
        self.labels = torch.einsum("srf,sf->sr", self.features, coefficients) + noise
        self.hessians = self.features.mT @ self.features / ROWS
        self.moments = torch.einsum("srf,sr->sf", self.features, self.labels) / ROWS
        self.logits = 0.5 * normal(SOURCES, generator=generator)

    def normal_equations(self, logits: Tensor, pull: float) -> tuple[Tensor, Tensor]:
        factors = torch.cat([weights_of(logits), torch.tensor([pull], dtype=torch.float64)])
        hessian = torch.einsum("s,sfg->fg", factors, self.hessians) + RIDGE * torch.eye(FEATURES, dtype=torch.float64)
        return hessian, factors @ self.moments

    def minimiser(self, logits: Tensor, pull: float) -> Tensor:
        """Of L2 + pull · L1."""
        return torch.linalg.solve(*self.normal_equations(logits, pull))

    def losses(self, theta: Tensor) -> Tensor:  # (S + 1,), the last one is L1
        return 0.5 * ((self.features @ theta - self.labels) ** 2).mean(1)

    def value(self, logits: Tensor) -> Tensor:
        return self.losses(self.minimiser(logits, 0.0))[-1]

    def hypergradient(self) -> Tensor:
        """Implicit differentiation: ∂L1/∂p_i = −∇L2_i · H⁻¹ ∇L1, through the Jacobian of softmax."""
        theta, weights = self.minimiser(self.logits, 0.0), weights_of(self.logits)
        gradients = self.hessians @ theta - self.moments
        hessian, _ = self.normal_equations(self.logits, 0.0)
        slope = -gradients[:-1] @ torch.linalg.solve(hessian, gradients[-1])
        return weights * (slope - (weights * slope).sum())

    def estimate(self, penalty: float, *, symmetric: bool) -> Tensor:
        """The project's gradient at the exact minimisers, from sums over the full data."""
        u, w = (self.minimiser(self.logits, pull) for pull in (-1 / penalty if symmetric else 0.0, 1 / penalty))
        sums = ROWS * (self.losses(w) - self.losses(u))[:-1] * (0.5 if symmetric else 1.0)
        units = torch.full((SOURCES,), float(ROWS), dtype=torch.float64)
        gap, _ = estimate_gap(sums, units, units / units.sum(), GapBaseline.zeros(SOURCES))
        return mixture_gradient(gap, weights_of(self.logits), penalty)

    def error(self, penalty: float, *, symmetric: bool) -> float:
        truth = self.hypergradient()
        return float((self.estimate(penalty, symmetric=symmetric) - truth).norm() / truth.norm())


@pytest.fixture(scope="module")
def ridges() -> list[Ridge]:
    return [Ridge(seed) for seed in range(DRAWS)]


def test_implicit_differentiation_agrees_with_finite_differences(ridges):
    for ridge in ridges[:3]:
        torch.testing.assert_close(
            central_differences(ridge.value, ridge.logits, 1e-5), ridge.hypergradient(), rtol=1e-6, atol=1e-9
        )


@pytest.mark.parametrize("penalty", FORWARD)
@pytest.mark.parametrize(("symmetric", "errors"), [(False, FORWARD), (True, SYMMETRIC)], ids=["forward", "symmetric"])
def test_error_on_ridge_regression(ridges, symmetric, errors, penalty):
    measured = sum(ridge.error(penalty, symmetric=symmetric) for ridge in ridges) / DRAWS
    assert measured == pytest.approx(errors[penalty], rel=0.2)


def test_symmetric_at_ten_is_as_good_as_forward_at_a_hundred(ridges):
    for ridge in ridges:
        assert ridge.error(10, symmetric=True) < 2 * ridge.error(100, symmetric=False)
