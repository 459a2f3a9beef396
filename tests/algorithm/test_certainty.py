"""How sure a mixture is: intervals that cover, verdicts that are right, both by simulation.

Legend: R runs, S sources. Simulations go through `benchmarks.evidence`.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from benchmarks import evidence as simulated
from scalebio_plugin.algorithm.bounds import Bounds
from scalebio_plugin.algorithm.certainty import total_variation, verdict, weight_interval
from scalebio_plugin.algorithm.evidence import Evidence, boundary
from scalebio_plugin.algorithm.mixture import EvidentState, logits_of
from scalebio_plugin.algorithm.moments import LEAST_UPDATES
from tests.algorithm.alike_twin import literally_shared

RATE = 0.05


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def seen(mean: list[float], updates: int = 200, noise: float = 1.0, last: list[float] | None = None) -> Evidence:
    """Of gaps with these means, and others in the last two thirds of the updates."""
    generator, known = torch.Generator().manual_seed(0), Evidence.zeros(len(mean))
    for update in range(updates):
        of = mean if last is None or update < updates // 3 else last
        raw = tensor(*of) + noise * torch.randn(len(mean), generator=generator, dtype=torch.float64)
        known, _ = known.plus(raw)
    return known


# ---- how far


def test_total_variation_is_the_weight_that_another_source_has() -> None:
    first, second = tensor(0.5, 0.3, 0.2), tensor(0.1, 0.3, 0.6)
    assert total_variation(first, second) == pytest.approx(0.4)
    assert total_variation(first, first) == 0.0


# ---- intervals


@pytest.mark.parametrize(
    ("sources", "signal", "rho"),
    [
        pytest.param(3, "0.5", 0.5, marks=pytest.mark.slow),
        (10, "0.5", 0.5),
        pytest.param(40, "0.5", 0.0, marks=pytest.mark.slow),
    ],
    ids=["3", "10", "40"],
)
def test_on_its_way_a_weights_interval_covers_what_the_rule_makes_of_gaps_without_noise(
    sources: int, signal: str, rho: float
) -> None:
    """After 300 updates the weights are between their start and their end; before and after nearly all are covered."""
    _, (_, _, on_its_way, settled) = simulated._covered(sources, signal, rho, 300)
    assert 0.90 <= on_its_way <= 0.985
    assert settled >= 0.90


@pytest.mark.parametrize(
    ("sources", "signal", "rho"), [pytest.param(3, 0.2, 0.0, marks=pytest.mark.slow), (3, 0.2, 0.5), (10, 0.5, 0.5)]
)
def test_the_exponentiated_gradients_interval_covers(sources: int, signal: float, rho: float) -> None:
    noise, run = simulated.Noise("AR(1)", rho, 300, sources, seed=8), simulated.Exponentiated(300, sources)
    known, expected = Evidence.zeros(300, sources), run.logits
    true = tensor(-signal, *[0.0] * (sources - 1))
    for update in range(1, 301):
        raw = true + noise.step()
        known, _ = known.plus(raw)
        weights = run.step(raw)
        without = torch.softmax(expected, -1)
        centred = true - (without * true).sum(-1, keepdim=True)
        expected = expected - run.rate * centred / (run.square / (1 - 0.99**run.updates)).sqrt()
        if update in (50, 100, 300):
            low, high = weight_interval(weights, known, run.rate, None)
            without = torch.softmax(expected, -1)
            assert 0.90 <= float(((without >= low) & (without <= high)).double().mean()) <= 0.985


def test_before_anything_is_near_the_boundary_the_interval_has_no_width() -> None:
    known, start = seen([0.0, 0.0, 0.0], updates=40), tensor(0.5, 0.3, 0.2)
    low, high = weight_interval(start, known, RATE, EvidentState.zeros(3))
    torch.testing.assert_close(low, start, rtol=0, atol=1e-12)
    torch.testing.assert_close(high, start, rtol=0, atol=1e-12)
    low, high = weight_interval(start, known, RATE, None)  # every gap moves the other rule
    assert bool((high - low > 0.05).all())


def test_of_few_updates_nothing_is_known() -> None:
    low, high = weight_interval(tensor(0.5, 0.5), seen([0.0, 9.0], updates=LEAST_UPDATES - 1), RATE, None)
    assert (low.tolist(), high.tolist()) == ([0.0, 0.0], [1.0, 1.0])
    low, high = weight_interval(tensor(0.5, 0.5), seen([0.0, 9.0], updates=LEAST_UPDATES), RATE, None)
    assert bool((low > 0).all() and (high < 1).all())


@pytest.mark.parametrize("weights", [[1 / 3] * 3, [0.998, 0.001, 0.001], [1.0, 0.0, 0.0]], ids=str)
@pytest.mark.parametrize("updates", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_an_interval_holds_its_weight_and_stays_on_the_simplex(weights: list[float], updates: int) -> None:
    known = seen([-0.3, 0.0, 0.3], updates=updates)
    for state in (
        None,
        replace(EvidentState.zeros(3), moved_S=known.sums()[0], used_S=torch.ones(3, dtype=torch.float64)),
    ):
        low, high = weight_interval(tensor(*weights), known, RATE, state)
        assert bool((low >= 0).all() and (low <= tensor(*weights) + 1e-12).all())
        assert bool((tensor(*weights) <= high + 1e-12).all() and (high <= 1).all())


def test_an_interval_narrows_where_the_level_is_lower_and_widens_with_noise() -> None:
    def width(noise: float, level: float) -> float:
        low, high = weight_interval(tensor(0.4, 0.3, 0.3), seen([-1, 0, 1], noise=noise), RATE, None, level=level)
        return float((high - low).mean())

    assert width(1.0, 0.05) > width(1.0, 0.5) > 0
    assert width(1.0, 0.05) > 2 * width(0.1, 0.05)


class Literally:
    """An interval as `weight_interval` says it: an end at a time goes through the rule and softmax."""

    def __init__(self, known: Evidence, state: EvidentState | None, level: float):
        self.known, self.state = known, state
        totals, doubted = known.sums()
        self.limit = boundary(known.updates, len(totals))
        quantile = {0.05: 1.959963984540054, 0.5: 0.674489750196082}[level]
        self.reach = quantile * known.standard.error() * known.updates / math.sqrt(1 - 1 / len(totals))
        self.totals, self.doubted = totals, doubted

    def moved(self, source: int, shift: float) -> Tensor:
        """By how much of its sum each source moves, had one of them been shifted; -η of it is λ."""
        if self.state is None:
            return torch.eye(len(self.totals), dtype=torch.float64)[source] * shift
        totals, largest = self.totals.clone(), self.state.largest_S.clone()
        totals[source] += shift
        if shift != 0.0:
            peak = float(self.known.peak_S[source])
            then = peak + shift / float(self.doubted[source]) / self.limit
            held = then * peak > 0 and float(totals[source]) * peak > 0
            largest[source] = max(0.0, 1 - then**-4) if held else 0.0
        values = (totals.numpy(), totals.numpy(), self.doubted.numpy(), self.known.per_nat_S.numpy(), self.limit)
        sums, _, fractions, _ = map(torch.from_numpy, literally_shared(*values))
        return sums * torch.maximum(fractions, largest**4)

    def interval(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        up, down = torch.zeros_like(weights), torch.zeros_like(weights)
        for source, reach in enumerate(self.reach.tolist()):
            shifts = [-RATE * (self.moved(source, end) - self.moved(source, 0.0)) for end in (-reach, reach)]
            changes = [torch.softmax(weights.log() + shift, -1).logit() - weights.logit() for shift in shifts]
            up += torch.stack(changes).amax(0).clamp(min=0.0) ** 2
            down += torch.stack(changes).amin(0).clamp(max=0.0) ** 2
        return (weights.logit() - down.sqrt()).sigmoid(), (weights.logit() + up.sqrt()).sigmoid()


@pytest.mark.parametrize("level", [0.05, 0.5])
@pytest.mark.parametrize("rule", ["with a state", "without"])
@pytest.mark.parametrize("seed", range(11))
def test_an_interval_adds_up_what_the_shift_of_each_source_does_to_the_log_odds(
    seed: int, rule: str, level: float
) -> None:
    """Sums and what was evident of them before, at random: some within the boundary, some that were beyond it once."""
    generator = torch.Generator().manual_seed(seed)

    def random(scale: float) -> Tensor:
        return scale * torch.randn(4, generator=generator, dtype=torch.float64)

    known = seen([0.0] * 4, updates=60)
    known = replace(known, standard=replace(known.standard, sum_S=random(20.0)), peak_S=random(1.5))
    state = replace(EvidentState.zeros(4), largest_S=random(1.0).sigmoid()) if rule == "with a state" else None
    weights = random(1.0).softmax(-1)
    found = weight_interval(weights, known, RATE, state, level=level)
    for ours, theirs in zip(found, Literally(known, state, level).interval(weights), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


# ---- verdicts


def said(
    known: Evidence,
    weights: list[float],
    moved: float = 0.0,
    away: float = 1.0,
    bounds: Bounds | None = None,
    interval: tuple[Tensor, Tensor] | None = None,
) -> str:
    bounded = bounds.bounded if bounds else lambda p: p
    return verdict(known, logits_of(tensor(*weights)), moved=moved, away=away, bounded=bounded, interval=interval)


def test_noise_is_no_signal_and_evidence_or_movement_is_not() -> None:
    noise, signal = seen([0.0, 0.0, 0.0]), seen([-2.0, 0.0, 2.0])
    assert said(noise, [0.4, 0.3, 0.3], away=0.0) == "no signal"
    little = said(noise, [0.4, 0.3, 0.3], away=0.04)  # as far as what passes for evidence at first moves it
    assert little == "no signal"
    assert said(noise, [0.4, 0.3, 0.3], away=0.06) == "converged"  # it moved on what was evidence once
    assert said(signal, [0.4, 0.3, 0.3], away=0.0) == "still moving"
    just = seen([-0.5, 0.0, 0.5])
    assert 1.0 < float(just.ratio().abs().max()) < 1.5
    assert said(just, [0.4, 0.3, 0.3], away=0.0) != "no signal"


def test_a_mixture_that_moved_lately_is_still_moving() -> None:
    at_rest = seen([-2.0, 0.0, 2.0], last=[0.0, 0.0, 0.0])
    assert said(at_rest, [0.6, 0.3, 0.1], moved=0.029) == "converged"
    assert said(at_rest, [0.6, 0.3, 0.1], moved=0.031) == "still moving"


def test_too_few_recent_updates_do_not_settle_anything() -> None:
    counts = {updates: seen([-2.0, 0.0, 2.0], updates=updates).recent.count for updates in (19, 60)}
    assert counts[19] < 20 <= counts[60]
    corner = [0.9999, 0.00005, 0.00005]
    assert [said(seen([-2.0, 0.0, 2.0], updates=n), corner) for n in counts] == ["still moving", "converged"]


def test_twenty_recent_updates_settle_it() -> None:
    known = {updates: seen([-2.0, 0.0, 2.0], updates) for updates in (37, 38)}
    assert [each.recent.count for each in known.values()] == [19, 20]
    said_of = [said(each, [0.9999, 0.00005, 0.00005]) for each in known.values()]
    assert said_of == ["still moving", "converged"]


def test_recent_gaps_that_point_elsewhere_say_still_moving() -> None:
    assert said(seen([-2.0, 0.0, 2.0]), [0.6, 0.3, 0.1]) == "still moving"
    assert said(seen([-2.0, 0.0, 2.0], last=[0.05, 0.0, -0.05]), [0.6, 0.3, 0.1]) == "converged"  # not told from 0


@pytest.mark.parametrize(
    ("updates", "high", "expected"), [(60, 0.75, "converged"), (60, 0.85, "still moving"), (900, 0.85, "converged")]
)
def test_a_wide_interval_is_not_settled_until_its_gap_is_known_to_be_small(
    updates: int, high: float, expected: str
) -> None:
    at_rest = seen([-2.0, 0.0, 2.0], updates, last=[0.0, 0.0, 0.0])
    interval = tensor(0.3, 0.2, 0.1), tensor(high, 0.3, 0.2)
    assert said(at_rest, [0.6, 0.3, 0.1]) == "converged"
    assert said(at_rest, [0.6, 0.3, 0.1], interval=interval) == expected


@pytest.mark.parametrize(
    ("weights", "high", "expected"),
    [
        ([0.3, 0.4, 0.3], 0.55, "converged"),
        ([0.2, 0.4, 0.4], 0.45, "still moving"),  # more than doubled
        ([0.05, 0.45, 0.5], 0.14, "converged"),  # nearly three times as much, and little
    ],
    ids=str,
)
def test_a_source_that_grows_has_at_most_doubled_at_the_end_of_its_interval(
    weights: list[float], high: float, expected: str
) -> None:
    at_rest = seen([-2.0, 0.0, 2.0], last=[0.0, 0.0, 0.0])
    first = tensor(weights[0], 0.4, 0.3), tensor(high, 0.5, 0.5)
    assert said(at_rest, weights, interval=first) == expected
    falls = seen([2.0, 0.0, -2.0], last=[0.0, 0.0, 0.0])
    assert said(falls, weights, interval=first) == "converged"


def test_of_forty_sources_the_best_is_not_called_settled_at_a_tenth_of_its_way() -> None:
    """A weight of 0.07 that may be 0.26 by its noise has a narrow interval, and far to go."""
    runs, true = Said(30, 40, 0.0), torch.zeros(40, dtype=torch.float64)
    true[0] = -0.5
    runs.after(130, true)
    words = runs.after(10, true)
    assert max(runs.weights[:, 0]) > 0.05
    assert "converged" not in words


def test_drawn_to_a_prior_a_mixture_rests_where_gaps_and_pull_are_equal() -> None:
    gaps, prior = tensor(-2.0, 0.0, 2.0), (tensor(0.5, 0.3, 0.2), 2.0)
    at_rest = (prior[0].log() - gaps / prior[1]).softmax(0)
    known = seen(gaps.tolist())

    def said_of(weights: Tensor, prior: tuple[Tensor, float] | None) -> str:
        return verdict(known, weights.log(), moved=0.0, away=1.0, bounded=lambda p: p, prior=prior)

    assert said_of(at_rest, prior) == "converged"
    assert said_of(at_rest, None) == "still moving"
    assert said_of(at_rest, (prior[0], 4.0)) == "still moving"  # goes back
    assert said_of(at_rest, (prior[0], 1.0)) == "still moving"  # goes on
    assert said_of(prior[0], prior) == "still moving"
    nowhere = (prior[0], 0.0)  # of an infinite penalty
    assert said_of(at_rest, nowhere) == said_of(at_rest, None)


def test_what_bounds_hold_at_0_does_not_hide_that_a_prior_still_draws_the_others() -> None:
    gaps, prior = tensor(-2.0, 0.0, 2.0, 0.0), (tensor(0.45, 0.25, 0.2, 0.1), 2.0)
    at_rest = (prior[0].log() - gaps / prior[1]).index_fill(0, torch.tensor([3]), -60.0).softmax(0)
    bounds = Bounds(torch.zeros(4, dtype=torch.float64), tensor(1.0, 1.0, 1.0, 0.0))

    def said_of(weights: Tensor, interval: tuple[Tensor, Tensor] | None = None) -> str:
        known = seen(gaps.tolist())
        far = {"moved": 0.0, "away": 1.0, "bounded": bounds.bounded}
        return verdict(known, weights.log(), **far, interval=interval, prior=prior)

    assert said_of(at_rest) == "converged"
    anywhere = torch.zeros_like(at_rest), torch.ones_like(at_rest)
    assert said_of(at_rest, anywhere) == "still moving"  # no gap of the others is told from 0, which is their centre
    assert said_of((at_rest + tensor(0.1, 0.1, 0.1, 0.0)) / 1.3) == "still moving"


@pytest.mark.parametrize(("high", "expected"), [(0.75, "converged"), (0.7501, "still moving")])
def test_an_interval_as_wide_as_a_half_is_settled(high: float, expected: str) -> None:
    at_rest = seen([-2.0, 0.0, 2.0], 60, last=[0.0, 0.0, 0.0])
    assert said(at_rest, [0.6, 0.3, 0.1], interval=(tensor(0.25, 0.2, 0.1), tensor(high, 0.3, 0.2))) == expected


def test_a_gap_of_a_loud_source_is_not_known_by_its_own_noise() -> None:
    generator, known = torch.Generator().manual_seed(0), Evidence.zeros(3)
    for _ in range(600):
        known, _ = known.plus(tensor(1.0, 1.0, 10.0) * torch.randn(3, generator=generator, dtype=torch.float64))
    narrow, wide = tensor(0.3, 0.2, 0.3), tensor(0.3, 0.2, 1.0)
    assert said(known, [0.3, 0.2, 0.5], interval=(tensor(0.3, 0.2, 0.275), narrow)) == "converged"
    assert said(known, [0.3, 0.2, 0.5], interval=(tensor(0.3, 0.2, 0.275), wide)) == "still moving"


def test_where_a_gap_points_out_of_a_corner_its_interval_is_not_asked() -> None:
    interval, known = (tensor(0.0, 0.0, 0.0), tensor(1.0, 1.0, 1.0)), seen([-2.0, 1.0, 1.0])
    assert said(known, [0.99, 0.005, 0.005], interval=interval) == "converged"
    assert said(known, [0.6, 0.3, 0.1], interval=interval) == "still moving"


def test_in_a_corner_gaps_point_outwards() -> None:
    assert said(seen([-2.0, 1.0, 1.0]), [0.99, 0.005, 0.005]) == "converged"
    assert said(seen([2.0, -1.0, -1.0]), [0.99, 0.005, 0.005]) == "still moving"
    assert said(seen([0.0, -2.0, 2.0]), [0.99, 0.005, 0.005]) == "still moving"
    assert said(seen([-2.0, 1.0, 1.0]), [0.95, 0.025, 0.025]) == "still moving"


BOXED = Bounds(tensor(0.0, 0.0, 0.0), tensor(0.5, 1.0, 1.0))
GROUPED = Bounds(torch.zeros(3).double(), torch.ones(3).double(), [([0, 1], 0.0, 0.6)])


@pytest.mark.parametrize(
    ("bounds", "weights", "gaps", "expected"),
    [
        (BOXED, [0.5, 0.25, 0.25], [-2.0, 1.0, 1.0], "converged"),
        (BOXED, [0.5, 0.25, 0.25], [2.0, -1.0, -1.0], "still moving"),
        (BOXED, [0.5, 0.25, 0.25], [-2.0, 0.0, 2.0], "still moving"),  # the free ones are not at rest
        (BOXED, [0.4, 0.3, 0.3], [-2.0, 1.0, 1.0], "still moving"),
        (GROUPED, [0.3, 0.3, 0.4], [-1.0, -1.0, 2.0], "converged"),
        (GROUPED, [0.3, 0.3, 0.4], [1.0, 1.0, -2.0], "still moving"),
        (GROUPED, [0.3, 0.3, 0.4], [-3.0, 0.0, 3.0], "still moving"),  # within the group
    ],
    ids=str,
)
def test_at_a_bound_gaps_point_outwards(bounds: Bounds, weights: list[float], gaps: list[float], expected: str) -> None:
    assert said(seen(gaps), weights, bounds=bounds) == expected
    assert said(seen(gaps), weights) == "still moving"


@pytest.mark.parametrize(("most", "expected"), [(0.97, "converged"), (0.9, "still moving")])
def test_a_gap_of_what_has_no_weight_may_be_high(most: float, expected: str) -> None:
    """The first source is held at its bound; the gaps of the others are not told, and may be high."""
    bounds = Bounds(tensor(0.0, 0.0, 0.0), tensor(most, 1.0, 1.0))
    weights, interval = [most, (1 - most) / 2, (1 - most) / 2], (tensor(0.0, 0.0, 0.0), tensor(1.0, 1.0, 1.0))
    assert said(seen([-2.0, 1.0, 1.0]), weights, bounds=bounds, interval=interval) == expected


@pytest.mark.parametrize("rho", [0.0, pytest.param(0.5, marks=pytest.mark.slow)])
def test_where_the_best_mixture_lies_inside_hardly_a_run_is_called_converged_too_early(rho: float) -> None:
    """However often it looks, and with gaps of half a deviation for each nat: .15 from the optimum is too early."""
    ended = simulated.settled(3, "optimum inside, κ 0.5", rho, 200)
    assert sum(ended.values()) <= 0.08 * 200  # of 1,000 runs 5%
    assert len(ended) >= 5


class Said(simulated.Watched):
    def __init__(self, runs: int, sources: int, rho: float):
        super().__init__(runs, sources, rho, seed=6)

    def after(self, updates: int, true: Tensor) -> list[str]:
        for _ in range(updates):
            self.step(true)
        return self.words(range(len(self.weights)))


@pytest.mark.parametrize(
    ("sources", "rho"), [*(pytest.param(3, rho, marks=pytest.mark.slow) for rho in (0.0, 0.5)), (10, 0.5)]
)
def test_noise_is_called_something_else_in_a_twentieth_of_runs_at_most(sources: int, rho: float) -> None:
    runs = Said(200, sources, rho)
    for updates in (100, 200):
        counted = Counter(runs.after(updates, torch.zeros(sources, dtype=torch.float64)))
        assert counted["no signal"] >= 190


@pytest.mark.parametrize("rho", [pytest.param(0.0, marks=pytest.mark.slow), 0.5])
def test_a_mixture_on_its_way_is_called_converged_in_a_twentieth_of_runs_at_most(rho: float) -> None:
    runs = Said(200, 3, rho)
    true = tensor(-0.5, 0.0, 0.0)
    for _ in range(4):
        words = runs.after(100, true)
        early = [word for word, weights in zip(words, runs.weights, strict=True) if float(weights[0]) < 0.9]
        assert early.count("converged") <= 10


def test_a_run_that_ends_at_the_first_converged_has_the_good_source_in_nineteen_of_twenty() -> None:
    """However often it looks."""
    runs = Said(100, 3, 0.5)
    early, ended = 0, [False] * 100
    for _ in range(17):
        for run, word in enumerate(runs.after(24, tensor(-1.0, 0.0, 0.0))):
            if word == "converged" and not ended[run]:
                ended[run] = True
                early += float(runs.weights[run, 0]) < 0.9
    assert sum(ended) >= 60
    assert early <= 5


def test_a_clear_signal_is_never_called_none_and_ends_converged() -> None:
    runs = Said(100, 3, 0.0)
    assert "no signal" not in runs.after(300, tensor(-1.0, 0.0, 0.0))
    assert runs.after(300, tensor(-1.0, 0.0, 0.0)).count("converged") >= 95
