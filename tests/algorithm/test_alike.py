"""Sources that are not told apart keep their odds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import evidence as simulated
from scalebio_plugin.algorithm import alike
from scalebio_plugin.algorithm.evidence import evident_fraction
from tests.algorithm.alike_twin import literally_shared

LIMIT = 4.0


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def drawn(seed: int, sources: int, spread: float) -> tuple[Tensor, Tensor, Tensor]:
    """Sums, their errors, and 1 / scale summed."""
    generator = torch.Generator().manual_seed(seed)
    sums = spread * torch.randn(sources, generator=generator, dtype=torch.float64)
    error, per_nat = (0.5 + torch.rand(sources, generator=generator, dtype=torch.float64) for _ in range(2))
    return sums - sums.mean(), error, 100 * per_nat


def shared(total: Tensor, error: Tensor, per_nat: Tensor, limit: float) -> tuple[Tensor, Tensor]:
    sums, _, fractions, _ = alike.shared(total, torch.zeros_like(total), error, per_nat, limit)
    return sums, fractions


@pytest.mark.parametrize("spread", [2.0, 6.0, 20.0])
@pytest.mark.parametrize("sources", [2, 3, 10, 40])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_what_the_literal_twin_does(seed: int, sources: int, spread: float) -> None:
    total, error, per_nat = drawn(seed, sources, spread)
    case = (total, drawn(seed + 10, sources, 1.0)[0], error, per_nat)
    expected = literally_shared(*(value.numpy() for value in case), LIMIT)
    for ours, theirs in zip(alike.shared(*case, LIMIT), expected, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-9, atol=1e-12)


def test_a_gap_is_shared_as_the_sum_is() -> None:
    total, error, per_nat = drawn(3, 12, 20.0)
    sums, gaps, _, _ = alike.shared(total, 0.5 * total, error, per_nat, LIMIT)
    torch.testing.assert_close(gaps, 0.5 * sums)


@pytest.mark.parametrize("sources", [2, 5, 40])
def test_within_the_boundary_every_sum_is_its_own_to_the_bit(sources: int) -> None:
    total, error, per_nat = drawn(0, sources, 1.0)
    total = total.clamp(-LIMIT * error, LIMIT * error)
    sums, fractions = shared(total, error, per_nat, LIMIT)
    assert torch.equal(sums, total)
    assert torch.equal(fractions, torch.zeros(sources, dtype=torch.float64))


def test_a_source_that_is_alone_on_its_side_keeps_its_own() -> None:
    total, error, per_nat = tensor(-30.0, 9.0, 10.0, 11.0), tensor(1.0, 3.0, 4.0, 5.0), tensor(90.0, 100.0, 80.0, 70.0)
    sums, fractions = shared(total, error, per_nat, LIMIT)
    torch.testing.assert_close(sums, total)
    torch.testing.assert_close(fractions, evident_fraction(total, error, LIMIT))
    assert float(fractions[0]) > 0.9


def test_those_on_one_side_move_alike_whatever_their_noise_and_the_undecided_goes_with_the_nearer() -> None:
    """Four good sources, of which the last is not evident by itself, and two that are worse."""
    gaps, errors = tensor(-0.3, -0.28, -0.32, -0.25, 0.5, 0.55), tensor(1.0, 3.0, 5.0, 9.0, 3.0, 4.0)
    per_nat = torch.full((6,), 100.0, dtype=torch.float64)
    sums, fractions = shared(100 * gaps, errors, per_nat, LIMIT)
    moved = sums * fractions
    assert evident_fraction(100 * gaps, errors, LIMIT)[3] == 0
    assert float(moved[:4].std() / moved[:4].mean().abs()) < 1e-9
    assert float(moved[4:].std() / moved[4:].mean().abs()) < 1e-9
    apart = evident_fraction(100 * gaps, errors, LIMIT) * 100 * gaps  # each by itself
    assert float(apart[:4].std() / apart[:4].mean().abs()) > 0.5


def test_what_is_evidently_a_sources_own_pulls_it_from_the_others() -> None:
    gaps, per_nat = tensor(-0.3, -0.3, -0.9, 0.5, 1.0), torch.full((5,), 100.0, dtype=torch.float64)
    sums, fractions = shared(100 * gaps, torch.full((5,), 2.0, dtype=torch.float64), per_nat, LIMIT)
    moved = fractions * sums / 100
    torch.testing.assert_close(moved[0], moved[1])
    assert float(moved[1] - moved[2]) == pytest.approx(0.6, rel=0.1)
    assert float(moved[4] - moved[3]) == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize("seed", range(5))
def test_a_little_less_evidence_moves_a_little_less(seed: int) -> None:
    """Along a line from nothing to clear evidence λ goes without jumps, though sources come to share on the way."""
    total, error, per_nat = drawn(seed, 8, 25.0)
    totals = torch.linspace(0, 1, 20001, dtype=torch.float64)[:, None] * total
    path = torch.mul(*shared(totals, error.expand_as(totals), per_nat, LIMIT))
    steps = path.diff(dim=0).abs().amax(-1)
    assert float(steps.max()) < 0.005 * float(path[-1].abs().max())


def test_all_that_share_have_one_pace_and_who_is_alone_its_own() -> None:
    gaps, errors = tensor(-0.3, -0.28, -0.32, 0.9), tensor(1.0, 3.0, 5.0, 3.0)
    per_nat = tensor(90.0, 50.0, 20.0, 70.0)
    found = alike.shared(gaps * per_nat, gaps, errors, per_nat, LIMIT)
    pace = found.pace(per_nat) * per_nat
    torch.testing.assert_close(pace, torch.cat([pace[:1].expand(3), per_nat[3:]]))
    assert 80 < float(pace[0]) < 90, "nearly that of the most precise"
    torch.testing.assert_close(found.means_S * pace, found.sums_S)


@pytest.mark.parametrize("spread", [1.0, 20.0])
@pytest.mark.parametrize("seed", range(5))
def test_a_pace_is_between_the_slowest_and_the_fastest(seed: int, spread: float) -> None:
    total, error, per_nat = drawn(seed, 12, spread)
    pace = alike.shared(total, total, error, per_nat, LIMIT).pace(per_nat) * per_nat
    assert float(per_nat.min()) * 0.999 <= float(pace.min()) <= float(pace.max()) <= float(per_nat.max()) * 1.001
    if spread == 1.0:
        alone = total.abs() <= LIMIT * error
        torch.testing.assert_close(pace[alone], per_nat[alone])


def test_order_sign_and_unit_do_not_matter() -> None:
    total, error, per_nat = drawn(1, 9, 12.0)
    moved = torch.mul(*shared(total, error, per_nat, LIMIT))
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.mul(*shared(total[order], error[order], per_nat[order], LIMIT)), moved[order])
    torch.testing.assert_close(torch.mul(*shared(-total, error, per_nat, LIMIT)), -moved)
    torch.testing.assert_close(torch.mul(*shared(total, error, 1e-6 * per_nat, LIMIT)), moved)


def test_leading_dimensions_are_so_many_runs() -> None:
    cases = [drawn(seed, 6, 10.0) for seed in range(4)]
    together = shared(*(torch.stack(values) for values in zip(*cases, strict=True)), LIMIT)
    for run, case in enumerate(cases):
        for ours, alone in zip(together, shared(*case, LIMIT), strict=True):
            torch.testing.assert_close(ours[run], alone)


@pytest.mark.parametrize("error", [[0.0, 0.0, 0.0], [0.0, 1.0, 1.0]], ids=str)
def test_without_noise_it_is_the_sums(error: list[float]) -> None:
    total = tensor(-300.0, 100.0, 200.0)
    sums, fractions = shared(total, tensor(*error), torch.full((3,), 100.0, dtype=torch.float64), LIMIT)
    torch.testing.assert_close(sums * fractions, total, rtol=0.02, atol=0)


def test_of_equally_good_sources_the_quiet_and_the_loud_keep_their_odds() -> None:
    """Three alike but for their noise, three worse: the odds of the three change little, where each alone they did."""
    loud = tensor(1.0, 2.0, 3.0, 1.0, 1.0, 1.0)
    true = tensor(-0.7, -0.7, -0.7, 0.7, 0.7, 0.7)
    noise, run = simulated.Noise("AR(1)", 0.3, 100, 6, seed=12), simulated.Evident(100, 6)
    for _ in range(300):
        weights = run.step(true + loud * noise.step())
    assert float(weights[:, :3].sum(-1).min()) > 0.9
    odds = weights[:, :3].log()
    assert float((odds.amax(-1) - odds.amin(-1)).median()) < 0.1
    sums, error = run.known.sums()
    alone = -run.rate * evident_fraction(sums, error, 4.0)[:, :3] * sums[:, :3]
    assert float((alone.amax(-1) - alone.amin(-1)).median()) > 3.0
