"""What gaps say: the running sums against whole series, the promises by simulation, the rule against a slow twin.

Legend: R runs, S sources, T updates. Simulations go through `benchmarks.evidence`, all runs at once.
"""

from __future__ import annotations

import math
from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import evidence as simulated
from scalebio_plugin.algorithm import mixture
from scalebio_plugin.algorithm.bounds import Bounds
from scalebio_plugin.algorithm.evidence import OUTLIER, Evidence, boundary, evident_fraction, precision_weights
from scalebio_plugin.algorithm.mixture import EvidentState, logits_of, move_on_evidence, weights_of
from scalebio_plugin.algorithm.moments import LAGS, LEAST_UPDATES, STRETCHES, Moments, slow_inflation
from tests.algorithm.alike_twin import literally_shared

CORRELATED = pytest.mark.parametrize("rho", [0.0, 0.5])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def correlated(updates: int, *shape: int, rho: float, seed: int = 0) -> Tensor:  # (T, *shape)
    """AR(1) of deviation 1."""
    noise = simulated.Noise("AR(1)", rho, *shape, seed=seed)
    return torch.stack([noise.step() for _ in range(updates)])


def moments_of(series: Tensor) -> Moments:
    moments = Moments.zeros(*series.shape[1:])
    for value in series:
        moments = moments.plus(value)
    return moments


def walk(raw: Tensor, rate: float = 0.05, start: Tensor | None = None) -> Tensor:  # (T, …, S) -> (T, …, S)
    """λ after each update."""
    known, state = Evidence.zeros(*raw.shape[1:]), EvidentState.zeros(*raw.shape[1:])
    logits, path = torch.zeros(raw.shape[1:], dtype=torch.float64) if start is None else start, []
    for gaps in raw:
        known, _ = known.plus(gaps)
        logits, state = move_on_evidence(known, state, logits, rate)
        path.append(logits)
    return torch.stack(path)


def values_of(value: Any) -> list[Any]:
    """The numbers and tensors of a dataclass, those within it too."""
    if not hasattr(value, "__dataclass_fields__"):
        return [value]
    return [leaf for field in fields(value) for leaf in values_of(getattr(value, field.name))]


# ---- running sums


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 100, 1023, 1024, 1025, 2500])
def test_moments_are_the_sums_over_the_whole_series(count: int) -> None:
    series = normal(count, 2, 3)
    moments = moments_of(series)
    assert moments.count == count
    close = {"rtol": 1e-11, "atol": 1e-10}
    torch.testing.assert_close(moments.sum_S, series.sum(0), **close)
    torch.testing.assert_close(moments.mean(), series.mean(0), **close)
    torch.testing.assert_close(moments.square_S, (series**2).sum(0), **close)
    for lag in range(1, LAGS + 1):
        products = (series[lag:] * series[:-lag]).sum(0)
        torch.testing.assert_close(moments.product_LS[lag - 1], products, **close)
    assert torch.equal(moments.last_S, series[-1])
    for level in range(STRETCHES):
        complete = count // 2**level
        sums = series[: complete * 2**level].reshape(complete, 2**level, 2, 3).sum(1)
        torch.testing.assert_close(moments.stretch_KS[level], sums.sum(0), **close)
        torch.testing.assert_close(moments.stretch_square_KS[level], (sums**2).sum(0), **close)
        torch.testing.assert_close(moments.open_KS[level], series[complete * 2**level :].sum(0), **close)


def test_moments_that_were_given_out_stay_as_they_are() -> None:
    before = moments_of(normal(100, 3))
    copies = [value.clone() if isinstance(value, Tensor) else value for value in values_of(before)]
    before.plus(normal(3))
    assert all(
        torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(values_of(before), copies, strict=True)
    )


@pytest.mark.parametrize("count", range(LEAST_UPDATES))
def test_nothing_is_said_of_few_updates(count: int) -> None:
    moments, known = moments_of(100 + normal(count, 3)), Evidence.zeros(3)
    assert torch.equal(moments.error(), torch.full((3,), math.inf, dtype=torch.float64))
    for gaps in 100 * torch.arange(3.0) + normal(count, 3):
        known, _ = known.plus(gaps)
    assert torch.equal(known.ratio(), torch.zeros(3, dtype=torch.float64))
    assert torch.equal(
        walk(100 * torch.arange(3.0) + normal(max(1, count), 3))[-1], torch.zeros(3, dtype=torch.float64)
    )


# ---- how much more a mean varies


@pytest.mark.parametrize(
    ("rho", "least", "most"), [(-0.3, 1.0, 1.25), (0.0, 1.0, 1.25), (0.5, 2.8, 3.8), (0.9, 17, 26)]
)
def test_the_inflation_of_a_long_series_is_nearly_that_of_its_correlation(
    rho: float, least: float, most: float
) -> None:
    """(1 + ρ) / (1 − ρ), never below 1: 1, 3 and 19; being the largest of several estimates it is a little above."""
    found = float(moments_of(correlated(4000, 50, 4, rho=rho)).inflation().median())
    assert least <= found <= most


@pytest.mark.parametrize(("count", "least"), [(200, 4.0), (1000, 6.0)])
def test_slow_noise_under_white_noise_is_seen(count: int, least: float) -> None:
    """AR(.97) of half a deviation: its lag-1 autocorrelation of .19 alone would say 1.5, and it is 13.9."""
    noise = simulated.Noise("slow", 0.0, 100, 3, seed=3)
    moments = moments_of(torch.stack([noise.step() for _ in range(count)]))
    assert least <= float(moments.inflation().median()) <= 20


@pytest.mark.parametrize("sources", [3, 40])
def test_what_the_lags_say_is_doubted_less_the_more_they_saw(sources: int) -> None:
    doubts = []
    for count in (200, 1000):
        moments = moments_of(normal(count, 50, sources))
        doubts.append(float((moments.inflation(doubted=True) - moments.inflation()).mean()))
    assert doubts[0] > 2 * doubts[1] > 0


@pytest.mark.parametrize("count", [40, 60, 120])
def test_of_a_gap_that_grows_no_more_is_believed_than_of_noise_known_to_be_slow(count: int) -> None:
    """Under as much white noise: its lags alone would say that nothing can be told of its mean."""
    growing = torch.linspace(0.5, 2.5, count, dtype=torch.float64)[:, None, None] * torch.tensor([-1.0, 0.5, 0.5])
    moments = moments_of(growing + 0.7 * normal(count, 20, 3))
    assert float(moments.inflation(doubted=True).median()) == pytest.approx(
        1 + 0.1 * (slow_inflation(count) - 1), rel=0.3
    )


@pytest.mark.parametrize("count", [2, 10, 300])
def test_the_inflation_of_slow_noise_is_its_sum(count: int) -> None:
    expected = 1 + 2 * sum((1 - lag / count) * 0.97**lag for lag in range(1, count))
    assert slow_inflation(count) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("sources", [2, 3, 10])
@pytest.mark.parametrize("count", [40, 150, 600])
def test_what_the_lags_see_beyond_the_first_is_counted_and_doubted_as_is_said(count: int, sources: int) -> None:
    """Each value shares a part with the third and the sixth before it."""
    independent = normal(count + 6, sources)
    series = independent[6:] + independent[3:-3] + independent[:-6]
    found = float(moments_of(series).inflation(doubted=True))
    assert found == pytest.approx(literal_inflation(series.numpy()), rel=1e-9)


@pytest.mark.parametrize("count", [192, 300, 1000])
def test_what_the_lags_do_not_see_shows_in_the_means_of_stretches(count: int) -> None:
    """Updates 1 to 64 are high, the next 64 low, and so on; three stretches of that length are enough."""
    slow = torch.where(torch.arange(count) // 64 % 2 == 0, 1.0, -1.0)[:, None]
    series = slow + normal(count, 3)
    expected = of_stretches(series.numpy(), series.numpy().var(0, ddof=1), 64)
    assert float(moments_of(series).inflation()) == pytest.approx(expected, rel=1e-9)
    assert float(moments_of(series[:191]).inflation()) < expected / 2


@CORRELATED
@pytest.mark.parametrize("count", [100, 300])
def test_the_mean_is_within_two_standard_errors_as_often_as_they_say(count: int, rho: float) -> None:
    moments = moments_of(correlated(count, 600, 3, rho=rho, seed=1))
    covered = float((moments.mean().abs() <= 1.96 * moments.error()).double().mean())
    assert 0.90 <= covered <= 0.985


def test_an_error_that_took_the_gaps_for_independent_would_not_cover() -> None:
    """What the correlation is counted for."""
    series = correlated(300, 600, 3, rho=0.5, seed=1)
    naive = series.std(0) / math.sqrt(300)
    assert float((series.mean(0).abs() <= 1.96 * naive).double().mean()) < 0.8


# ---- the boundary


@pytest.mark.parametrize(("count", "sources", "level"), [(10, 3, 0.05), (300, 10, 0.05), (5000, 1, 0.01)])
def test_the_boundary_is_its_formula(count: int, sources: int, level: float) -> None:
    each, r = level / sources, 20.0
    squared = (count + r) / count * math.log((count + r) / (r * each**2))
    widened = squared * (1 + (squared + 1) / (2 * (count - 1)))
    assert boundary(count, sources, level) == pytest.approx(math.sqrt(widened), rel=1e-12)


def test_white_noise_of_known_variance_passes_it_at_any_time_as_seldom_as_promised() -> None:
    sums = normal(2000, 500, seed=3).cumsum(1)
    count = torch.arange(1, 501).double()
    limits = torch.tensor([boundary(int(t), 1) if t > 1 else math.inf for t in count], dtype=torch.float64)
    passed = float((sums.abs() / count.sqrt() > limits).any(1).double().mean())
    assert 0.005 < passed <= 0.05  # and not for nothing


@pytest.mark.parametrize("rho", [pytest.param(0.0, marks=pytest.mark.slow), 0.5])
@pytest.mark.parametrize("sources", [pytest.param(3, marks=pytest.mark.slow), 10])
def test_noise_of_unknown_variance_and_correlation_passes_it_in_a_twentieth_of_runs_at_most(
    sources: int, rho: float
) -> None:
    noise, run = simulated.Noise("AR(1)", rho, 500, sources, seed=4), simulated.Evident(500, sources)
    for _ in range(500):
        run.step(noise.step())
    assert float(run.ever.double().mean()) <= 0.05


def test_the_evident_fraction_begins_at_the_boundary_and_nears_one() -> None:
    total = torch.tensor([0.0, 1.0, -2.9, 3.0, -6.0, 300.0], dtype=torch.float64)
    expected = torch.tensor([0, 0, 0, 0, 1 - 0.5**4, 1 - 0.01**4], dtype=torch.float64)
    torch.testing.assert_close(evident_fraction(total, torch.ones(6, dtype=torch.float64), 3.0), expected)
    assert float(evident_fraction(torch.tensor([1.0]), torch.tensor([0.0]), 3.0)) == 1.0


# ---- the average that a gap is taken about


def spread_of(variance: Tensor) -> Tensor:
    """Mean squares about the plain mean, of independent noise."""
    sources = len(variance)
    return variance * (1 - 2 / sources) + variance.sum() / sources**2


@pytest.mark.parametrize("sources", [2, 3, 10])
def test_before_ten_updates_and_for_two_sources_all_weigh_alike(sources: int) -> None:
    loud = torch.linspace(0.1, 9.0, sources, dtype=torch.float64)
    equal = torch.full((sources,), 1 / sources, dtype=torch.float64)
    assert torch.equal(precision_weights(loud, LEAST_UPDATES - 1), equal)
    if sources == 2:
        assert torch.equal(precision_weights(loud, 1000), equal)
    else:
        assert not torch.equal(precision_weights(loud, LEAST_UPDATES), equal)


def test_sources_weigh_by_the_inverse_of_their_noise_cut_at_a_half() -> None:
    variance = torch.tensor([1.0, 2.0, 4.0, 0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(precision_weights(spread_of(variance), 100), variance**-1 / (variance**-1).sum())
    quiet = torch.tensor([0.25, 1.0, 1.0], dtype=torch.float64)  # inverse: 2/3, 1/6, 1/6
    expected = torch.tensor([1 / 2, 1 / 4, 1 / 4], dtype=torch.float64)
    torch.testing.assert_close(precision_weights(spread_of(quiet), 100), expected)


@pytest.mark.parametrize("loudness", [1.0, 10.0])
def test_a_loud_source_weighs_little_and_equal_ones_about_the_same(loudness: float) -> None:
    known = Evidence.zeros(300, 5)
    for noise in normal(300, 300, 5):
        known, _ = known.plus(noise * torch.tensor([1.0, 1, 1, 1, loudness]))
    weights = precision_weights(known.spread_S, 300).mean(0)
    torch.testing.assert_close(weights[:4], weights[:4].mean().expand(4), rtol=0, atol=0.02)
    assert float(weights[4]) == pytest.approx(0.2, abs=0.02) if loudness == 1.0 else float(weights[4]) < 0.01


def test_after_ten_updates_a_broken_batch_counts_for_ten_root_mean_squares() -> None:
    known, broken = Evidence.zeros(3), torch.tensor([100.0, 0.0, -0.5], dtype=torch.float64)
    for raw in normal(LEAST_UPDATES - 1, 3):
        known, _ = known.plus(raw)
    assert float(known.plus(broken)[0].size_S[0]) > 10
    known, _ = known.plus(normal(1, 3, seed=1)[0])
    held = broken.clone()
    held[0] = OUTLIER * known.scale_S[0]
    for one, other in zip(values_of(known.plus(broken)[0]), values_of(known.plus(held)[0]), strict=True):
        torch.testing.assert_close(one, other)


def test_gaps_are_about_that_average_and_sum_to_nothing() -> None:
    known = Evidence.zeros(4)
    for raw in 3.0 + normal(50, 4):
        share = precision_weights(known.spread_S, known.updates)
        known, gaps = known.plus(raw)
        assert abs(float((share * gaps).sum())) < 1e-12
        torch.testing.assert_close(gaps - gaps[0], raw - raw[0], rtol=0, atol=1e-12)


def test_recent_gaps_are_those_of_the_last_third_to_two_thirds() -> None:
    known, counts = Evidence.zeros(2), []
    series = normal(400, 2)
    for update, raw in enumerate(series, start=1):
        known, _ = known.plus(raw)
        counts.append(known.recent.count / update)
        gaps = (raw - raw.mean() for raw in series[update - known.recent.count : update])
        if update % 37 == 0:
            torch.testing.assert_close(known.recent.sum_S, torch.stack(list(gaps)).sum(0), rtol=0, atol=1e-9)
    assert min(counts[20:]) > 0.3
    assert max(counts[20:]) < 0.7


def test_they_begin_anew_whenever_the_updates_have_grown_by_half() -> None:
    known, anew = Evidence.zeros(2), []
    for raw in normal(100, 2):
        known, _ = known.plus(raw)
        if known.younger.count == 0:
            anew.append(known.updates)
    assert anew == [1, 2, 3, 5, 8, 12, 18, 27, 41, 62, 93]


def test_the_largest_ratio_is_kept_until_the_sum_changes_its_sign() -> None:
    known, largest, signs = Evidence.zeros(3), [0.0] * 3, set()
    strength = torch.where(torch.arange(120) < 40, 0.5, -1.0)
    for raw in normal(120, 3) + strength[:, None] * torch.tensor([-1.0, 0.0, 1.0]):
        known, _ = known.plus(raw)
        for source, ratio in enumerate(known.ratio().tolist()):
            turned = ratio * largest[source] <= 0
            largest[source] = ratio if turned else math.copysign(max(abs(ratio), abs(largest[source])), ratio)
        assert known.peak_S.tolist() == largest
        signs.add(largest[0] > 0)
    assert signs == {False, True}


# ---- many runs at once, checkpoints


def test_leading_dimensions_are_so_many_runs() -> None:
    raw = correlated(200, 4, 3, rho=0.5) + torch.tensor([-1.0, 0.0, 0.5])
    together = walk(raw)
    for run in range(4):
        torch.testing.assert_close(together[:, run], walk(raw[:, run]), rtol=0, atol=1e-12)
    assert float(together[-1].abs().max()) > 1


@pytest.mark.parametrize("stop", [0, 5, 77])
def test_a_saved_state_goes_on_with_the_same_bits(stop: int, tmp_path: Any) -> None:
    raw = correlated(150, 1, 3, rho=0.5)[:, 0] + torch.tensor([-3.0, 0.0, 3.0])

    def go(
        known: Evidence, state: EvidentState, logits: Tensor, series: Tensor
    ) -> tuple[Evidence, EvidentState, Tensor]:
        for gaps in series:
            known, _ = known.plus(gaps)
            logits, state = move_on_evidence(known, state, logits, 0.05)
        return known, state, logits

    first = Evidence.zeros(3), EvidentState.zeros(3), torch.zeros(3, dtype=torch.float64)
    known, state, logits = go(*first, raw[:stop])
    torch.save({"known": asdict(known), "state": vars(state), "logits": logits}, tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed = go(Evidence.of(saved["known"]), EvidentState(**saved["state"]), saved["logits"], raw[stop:])
    for again, whole in zip(resumed, go(*first, raw), strict=True):
        pairs = zip(values_of(again), values_of(whole), strict=True)
        assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in pairs)
    assert float(resumed[2].abs().max()) > 0


# ---- the rule, against a slow twin


def literal_inflation(x: np.ndarray) -> float:  # (t, S)
    """F where it is doubted, from the whole series."""
    t, sources = x.shape
    variance = x.var(0, ddof=1)
    lags = min(32, max(1, t // 5))
    rho = np.empty(lags)
    for k in range(1, lags + 1):
        rho[k - 1] = sum((x[k:, i] * x[:-k, i]).sum() / (t - k) - x[:, i].mean() ** 2 for i in range(sources))
    rho /= variance.sum()
    slow = 2 * sum((1 - k / t) * 0.97**k for k in range(1, t))
    pattern = np.array([0.97**k - slow / t for k in range(5, lags + 1)])
    known = t * (sources - 1) * (pattern**2).sum() + 1 / 0.1**2
    share = t * (sources - 1) * (pattern * (rho[4:] + 1 / t)).sum() / known
    share += 1.25 * math.sqrt(min(1, 200 / t)) / math.sqrt(known)
    said = 1 + min(0.1, max(0.0, share)) * slow
    first = np.clip(rho[0] + (1 + 3 * rho[0]) / t, -0.98, 0.98)
    first = min(0.98, first + 2.0 * math.sqrt((1 - first**2) / (t * sources)))
    found = [1.0, said, (1 + first) / (1 - first)]
    power = round(math.log2(2 * math.sqrt(t)))
    for m in (2**power, 2 ** (power + 1)):
        if 64 <= m <= 1024 and t // m >= 3:
            found.append(of_stretches(x, variance, m))
    return max(found)


def of_stretches(x: np.ndarray, variance: np.ndarray, m: int) -> float:
    sums = x[: len(x) // m * m].reshape(-1, m, x.shape[1]).sum(1)
    return float((sums.var(0, ddof=1) / m / variance).mean())


class SlowTwin:
    """The rule as its documents say it, each update from the whole series of raw gaps; nothing of the package."""

    def __init__(self, raw: np.ndarray, rate: float, start: np.ndarray):
        self.raw, self.rate, self.start = raw, rate, start
        self.sources = raw.shape[1]
        self.gaps = np.array([self.gap(k) for k in range(1, len(raw) + 1)])
        self.scales = np.array([self.scale(k) for k in range(1, len(raw) + 1)])
        self.standard = self.gaps / self.scales

    @staticmethod
    def ages(k: int) -> np.ndarray:
        return 0.99 ** np.arange(k - 1, -1, -1.0)

    def shares(self, k: int) -> np.ndarray:
        """Of the sources in the average, known after k updates."""
        equal = np.full(self.sources, 1 / self.sources)
        if self.sources < 3 or k < 10:
            return equal
        about_mean = self.raw[:k] - self.raw[:k].mean(1, keepdims=True)
        spread = 0.01 * self.ages(k) @ about_mean**2
        mixing = (1 - 2 / self.sources) * np.eye(self.sources) + 1 / self.sources**2
        variance = np.maximum(np.linalg.solve(mixing, spread), 0.01 * spread.mean())
        precise = (1 / variance) / (1 / variance).sum()
        for i in range(self.sources):
            if precise[i] > 0.5:
                return np.array([0.5 if j == i else 0.5 * precise[j] / (1 - precise[i]) for j in range(self.sources)])
        return precise

    def gap(self, k: int) -> np.ndarray:
        return self.raw[k - 1] - self.shares(k - 1) @ self.raw[k - 1]

    def scale(self, k: int) -> np.ndarray:
        square = self.ages(k) @ self.gaps[:k] ** 2 / self.ages(k).sum()
        return np.sqrt(np.maximum(square, self.shares(k - 1) @ square))

    def boundary(self, t: int) -> float:
        each = 0.05 / self.sources
        square = (t + 20) / t * math.log((t + 20) / (20 * each**2))
        return math.sqrt(square * (1 + (square + 1) / (2 * (t - 1))))

    def path(self) -> np.ndarray:  # (T, S), λ after each update
        sources, rate = range(self.sources), self.rate
        logits, moved, owed, used, largest = self.start.copy(), *np.zeros((4, self.sources))
        left, path, before = None, [], self.standard[:9].sum(0)
        reach = math.log((self.sources - 1) * 0.99 / 0.01)
        for t in range(1, len(self.raw) + 1):
            if t < 10:
                path.append(logits)
                continue
            error = np.sqrt(self.standard[:t].var(0, ddof=1) * literal_inflation(self.standard[:t]) * t)
            per_nat = (1 / self.scales[:t]).sum(0)
            sums = self.standard[:t].sum(0)
            total, gaps, fractions, _ = literally_shared(sums, self.standard[t - 1], error, per_nat, self.boundary(t))
            taken = np.zeros(self.sources) if left is None else (logits - left) - (logits - left).mean()
            left = np.empty(self.sources)
            for i in sources:
                held = largest[i] if total[i] * before[i] > 0 else 0.0
                largest[i] = max(fractions[i], held)
                now, start = max(fractions[i], held**4), moved[i] - taken[i] / rate
                if abs(taken[i]) > 1e-9:
                    owed[i] = 0.0
                regrouped, stood = total[i] - gaps[i], used[i] * before[i]
                part = min(1.0, max(0.0, (start + owed[i]) / stood)) if stood != 0 else 1.0
                owed[i] += part * used[i] * (regrouped - before[i])
                if now >= used[i]:
                    kept = 1.0 if used[i] > 0 else 0.0
                    owed[i] = owed[i] + (now - used[i]) * regrouped - (start + owed[i]) * (1 - kept)
                else:
                    owed[i] -= (start + owed[i]) * (1 - now / used[i])
                paid = min(max(owed[i], -1.5), 1.5)
                new = start + now * gaps[i] + paid
                if new * total[i] < 0 <= start * total[i]:
                    new = 0.0
                left[i] = logits[i] - rate * (new - start)
                moved[i], owed[i], used[i] = new, owed[i] - paid, now
            distance, start_distance = logits - logits.max(), self.start - self.start.max()
            now = np.empty(self.sources)
            for i in sources:
                if distance[i] < -reach - 1e-9:
                    own = distance[i] + left[i] - logits[i]
                    now[i] = left.max() + max(own, min(distance[i], start_distance[i]))
                else:
                    now[i] = max(left[i], left.max() - reach)
            logits, before = now, total
            path.append(logits)
        return np.array(path)


def example(kind: str) -> np.ndarray:  # (T, S) raw gaps
    noise = correlated(300, 1, 4, rho=0.6, seed=7)[:, 0].numpy()
    if kind == "a loud source":
        return noise * [1, 1, 1, 12] + [-0.9, 0.0, 0.4, 0.0]
    if kind == "sources that are alike":
        return noise * [1, 2, 1, 3] + [-1.2, -1.2, 1.0, 1.0]
    if kind == "two sources":
        return noise[:, :2] + [-1.0, 0.0]
    if kind == "a source that turns":
        return noise + np.where(np.arange(300)[:, None] < 150, 1, -1.5) * [-1.5, 0, 0, 0.5]
    return 1e-3 * (noise + [-1.5, -1.0, 1.0, 0.5]) + 7.0


@pytest.mark.parametrize(
    "kind",
    [
        "a loud source",
        "sources that are alike",
        pytest.param("two sources", marks=pytest.mark.slow),
        "a source that turns",
        pytest.param("small gaps, all shifted", marks=pytest.mark.slow),
    ],
)
def test_the_rule_is_what_the_slow_twin_does(kind: str) -> None:
    raw = example(kind)
    start = np.log(np.arange(1.0, raw.shape[1] + 1) ** 2)
    expected = SlowTwin(raw, 0.05, start).path()
    found = walk(torch.from_numpy(raw), 0.05, torch.from_numpy(start)).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
    assert np.abs(expected - start).max() > 1  # it moved


def known_of(total: list[float], last: list[float]) -> Evidence:
    """After 30 updates: these sums and last gaps."""
    known = Evidence.zeros(3)
    for raw in normal(30, 3):
        known, _ = known.plus(raw)
    lately = torch.cat([torch.tensor([last]).double(), known.standard.lately_LS[1:]])
    return replace(known, standard=replace(known.standard, sum_S=torch.tensor(total).double(), lately_LS=lately))


def sums_before(known: Evidence) -> Tensor:
    return known.standard.sum_S - known.standard.last_S


def test_a_gap_moves_by_what_is_still_held_however_small_the_sums() -> None:
    """f⁴ of what was evident once, until the sum changes its sign."""
    gap = torch.tensor([0.1, -0.1, 0.5], dtype=torch.float64)
    known = known_of([0.3, -0.2, 3.0], gap.tolist())
    moved, half = torch.tensor([0.1, -0.1, 0.1], dtype=torch.float64), torch.full((3,), 0.5, dtype=torch.float64)
    state = replace(EvidentState.zeros(3), moved_S=moved, used_S=half**4, largest_S=half, shared_S=sums_before(known))
    logits, after = move_on_evidence(known, state, torch.zeros(3, dtype=torch.float64), 0.05)
    torch.testing.assert_close(after.moved_S, moved + 0.5**4 * gap)
    torch.testing.assert_close(logits, -0.05 * 0.5**4 * gap)
    assert torch.equal(after.largest_S, half)


def test_who_shares_with_whom_may_change_back_and_forth_and_nothing_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """λ stands for a tenth of the sums, as where bounds hold it: it follows them in that proportion."""
    first, second = torch.tensor([-200.0, 100.0, 100.0]).double(), torch.tensor([-260.0, 130.0, 130.0]).double()
    known, one = known_of([1.0, 1.0, -1.0], [0.0] * 3), torch.ones(3, dtype=torch.float64)
    state = replace(EvidentState.zeros(3), moved_S=first / 10, used_S=one, largest_S=one, shared_S=first)
    logits = -0.05 * first / 10
    for update in range(400):
        sums = first if update // 20 % 2 else second
        monkeypatch.setattr(mixture, "shared", lambda *_, sums=sums: (sums, torch.zeros(3).double(), one, sums))
        logits, state = move_on_evidence(known, state, logits, 0.05)
        if update % 20 == 19:
            torch.testing.assert_close(state.moved_S, sums / 10)
            torch.testing.assert_close(logits, -0.05 * sums / 10)


def test_a_source_far_below_the_largest_rises_by_its_own_gaps() -> None:
    logits, half = torch.tensor([0.0, -1.0, -10.0], dtype=torch.float64), torch.full((3,), 0.5, dtype=torch.float64)
    known = known_of([1.0, 1.0, -1.0], [0.0, 0.0, -0.5])
    state = replace(EvidentState.zeros(3), used_S=half**4, largest_S=half, shared_S=sums_before(known))
    moved = move_on_evidence(known, state, logits, 0.05)[0] - logits
    torch.testing.assert_close(moved, torch.tensor([0.0, 0.0, 0.05 * 0.5**4 * 0.5], dtype=torch.float64))


def test_a_source_that_something_else_pushed_below_its_start_stays_there() -> None:
    logits = torch.tensor([0.0, -1.0, -20.0], dtype=torch.float64)
    lowest = torch.tensor([-6.0, -6.0, -10.0], dtype=torch.float64)
    known, state = known_of([1.0, 1.0, -1.0], [0.0] * 3), replace(EvidentState.zeros(3), lowest_S=lowest)
    assert torch.equal(move_on_evidence(known, state, logits, 0.05)[0], logits)


# ---- what the rule promises


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("sources", [pytest.param(3, marks=pytest.mark.slow), 10])
def test_on_noise_the_mixture_stays(sources: int, rho: float) -> None:
    noise, run = simulated.Noise("AR(1)", rho, 200, sources, seed=1), simulated.Evident(200, sources)
    for _ in range(300):
        weights = run.step(noise.step())
    assert float(simulated.total_variation(weights, torch.softmax(run.first, -1)).quantile(0.9)) <= 0.02


@pytest.mark.parametrize("sources", [pytest.param(3, marks=pytest.mark.slow), 10])
def test_on_slow_noise_under_white_noise_it_nearly_does(sources: int) -> None:
    noise, run = simulated.Noise("slow", 0.0, 200, sources, seed=1), simulated.Evident(200, sources)
    for _ in range(300):
        weights = run.step(noise.step())
    assert float(simulated.total_variation(weights, torch.softmax(run.first, -1)).quantile(0.9)) <= 0.15


def test_on_the_same_noise_the_exponentiated_gradient_does_not() -> None:
    noise, run = simulated.Noise("AR(1)", 0.0, 200, 3, seed=1), simulated.Exponentiated(200, 3)
    for _ in range(300):
        weights = run.step(noise.step())
    assert float(simulated.total_variation(weights, torch.softmax(run.first, -1)).quantile(0.9)) > 0.2


@pytest.mark.parametrize(("signal", "rho"), [pytest.param(0.5, 0.0, marks=pytest.mark.slow), (1.0, 0.5)])
def test_a_signal_is_found_nearly_as_soon_as_by_the_exponentiated_gradient(signal: float, rho: float) -> None:
    ours, theirs = (
        float(simulated.updates_until(rule, 200, 3, signal, rho).median())
        for rule in (simulated.Evident, simulated.Exponentiated)
    )
    assert ours <= 1.5 * theirs


@pytest.mark.parametrize(
    ("sources", "rho", "updates"), [pytest.param(3, 0.0, 140, marks=pytest.mark.slow), (10, 0.0, 120), (3, 0.5, 150)]
)
def test_of_the_signals_that_are_found_in_time_a_twentieth_at_most_is_given_up_before(
    sources: int, rho: float, updates: int
) -> None:
    noise, run = simulated.Noise("AR(1)", rho, 200, sources, seed=3), simulated.Evident(200, sources)
    true = torch.tensor([-0.5] + [0.0] * (sources - 1), dtype=torch.float64)
    gave_up, moved = torch.zeros(200, dtype=torch.bool), torch.zeros(200, dtype=torch.bool)
    for _ in range(updates):
        weights = run.step(true + noise.step())
        moved |= simulated.total_variation(weights, torch.softmax(run.first, -1)) > 0.02
        gave_up |= ~moved & ~run.known.may_become_evidence(updates)
    assert int(moved.sum()) >= 20
    assert int((moved & gave_up).sum()) <= 0.05 * int(moved.sum())


@pytest.mark.parametrize(
    ("sources", "rho", "most"), [(3, 0.0, 0.6), pytest.param(3, 0.9, 0.75, marks=pytest.mark.slow), (10, 0.5, 0.75)]
)
def test_on_noise_a_run_gives_up_after_half_to_three_quarters_of_its_time(
    sources: int, rho: float, most: float
) -> None:
    noise, run = simulated.Noise("AR(1)", rho, 200, sources, seed=3), simulated.Evident(200, sources)
    hopes = torch.zeros(200, dtype=torch.float64)
    for _ in range(200):
        run.step(noise.step())
        hopes += run.known.may_become_evidence(200) & (hopes == run.known.updates - 1)
    assert 0.3 * 200 < float(hopes.mean()) <= most * 200


def test_when_a_gap_would_be_evident_is_when_its_z_would_pass_the_boundary() -> None:
    """Count by count, with the mean and the noise of now."""
    known = Evidence.zeros(3)
    for raw in normal(150, 3, seed=2) + torch.tensor([-0.3, 0.1, 0.2]):
        known, _ = known.plus(raw)
        if known.updates < 100:
            assert bool(known.evident_after().isinf().all())
    z = known.standard.mean().abs() / known.standard.error(doubted=True)
    for said, of in zip(known.evident_after().tolist(), z.tolist(), strict=True):
        counts = range(150, 3000)
        first = next((n for n in counts if of * math.sqrt(n / 150) >= boundary(n, 3)), math.inf)
        assert said == first or first <= said <= 1.02 * first + 1
    assert sum(map(math.isfinite, known.evident_after().tolist())) >= 2
    assert float(known.evident_after().max()) > 1.5 * float(known.evident_after().min())


def test_of_gaps_of_zero_it_is_never_said_and_of_what_is_evident_now() -> None:
    nothing, clear = Evidence.zeros(3), Evidence.zeros(3)
    for raw in normal(100, 3):
        nothing, _ = nothing.plus(torch.zeros(3, dtype=torch.float64))
        clear, _ = clear.plus(raw + torch.tensor([-9.0, 0.0, 9.0]))
    assert bool(nothing.evident_after().isinf().all())
    assert float(clear.evident_after().min()) == 100


def test_there_is_no_hope_for_gaps_of_zero_nor_at_the_end_below_the_boundary() -> None:
    nothing, known = Evidence.zeros(3), Evidence.zeros(3)
    for gap in normal(50, 3, seed=3):
        nothing, known = nothing.plus(torch.zeros(3, dtype=torch.float64))[0], known.plus(gap)[0]
        assert bool(nothing.may_become_evidence(1000)) is (nothing.updates < 10)
    assert float(known.ratio().abs().max()) < 0.9
    assert [bool(known.may_become_evidence(updates)) for updates in (50, 60, 1000)] == [False, False, True]


def test_at_the_end_there_is_hope_where_a_sum_is_beyond_the_boundary_and_nowhere_else() -> None:
    known, hopes = Evidence.zeros(3), []
    for raw in normal(60, 3) + torch.tensor([-1.0, 0.0, 0.0]):
        known, _ = known.plus(raw)
        if known.updates >= LEAST_UPDATES:
            error = known.standard.error() * known.updates
            hopes.append(bool(known.may_become_evidence(known.updates)))
            beyond = known.standard.sum_S.abs() > boundary(known.updates, 3) * error
            assert hopes[-1] is bool(beyond.any())
    assert {False, True} == set(hopes)


@pytest.mark.parametrize(
    ("signal", "most"), [pytest.param(0.5, 1 / 3 + 0.02, marks=pytest.mark.slow), (1.0, 1 / 3 + 0.005)]
)
def test_a_best_source_that_turns_worst_loses_what_it_gained_in_the_time_that_it_rose(
    signal: float, most: float
) -> None:
    """It rests at its start until it is evident that it is worse than the others."""
    noise, run = simulated.Noise("AR(1)", 0.0, 100, 3, seed=3), simulated.Evident(100, 3)
    true = torch.tensor([-signal, 0.0, 0.0], dtype=torch.float64)
    for _ in range(300):
        before = run.step(true + noise.step())[:, 0].median()
    for _ in range(300):
        after = run.step(-true + noise.step())[:, 0].median()
    assert before > 0.6
    assert after < most


def test_an_optimum_inside_the_simplex_is_held() -> None:
    best = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    noise, run = simulated.Noise("AR(1)", 0.0, 200, 3, seed=4), simulated.Evident(200, 3)
    weights = torch.softmax(run.logits, -1)
    for _ in range(1000):
        weights = run.step(0.5 * (weights.log() - best.log()) + noise.step())
    assert float(simulated.total_variation(weights, best).mean()) <= 0.15  # of 0.27 at the start


@pytest.mark.parametrize("start", [[0.25] * 4, [0.9989, 0.001, 0.00009, 0.00001]], ids=str)
def test_gaps_of_zero_leave_the_logits_to_the_bit(start: list[float]) -> None:
    logits = logits_of(torch.tensor(start, dtype=torch.float64))
    assert all(torch.equal(after, logits) for after in walk(torch.zeros(60, 4, dtype=torch.float64), start=logits))


def test_sources_that_agree_move_nothing_however_large_their_gaps() -> None:
    assert torch.equal(walk(normal(200, 1).expand(200, 4))[-1], torch.zeros(4, dtype=torch.float64))


@pytest.mark.parametrize("scale", [1e-9, 1e6])
def test_the_unit_of_the_gaps_does_not_matter(scale: float) -> None:
    raw = normal(150, 3) + torch.tensor([-1.0, 0.0, 1.0])
    torch.testing.assert_close(walk(scale * raw), walk(raw), rtol=1e-9, atol=1e-9)


def test_the_others_keep_a_hundredth_together_and_a_source_below_it_is_not_raised() -> None:
    raw = 0.1 * normal(500, 3) + torch.tensor([-1.0, 0.2, 0.8])  # no noise makes a gap of the rare source negative
    weights = torch.softmax(walk(raw), -1)
    assert float(weights[:, 0].max()) == pytest.approx(0.99, abs=1e-9)
    start = torch.tensor([0.5, 0.4999, 0.0001], dtype=torch.float64)
    tiny = torch.softmax(walk(raw, start=logits_of(start)), -1)
    assert float((tiny[:, 2] / tiny[:, 0]).max()) == pytest.approx(0.0002, rel=1e-9)
    assert float((tiny[:, 2] / tiny[:, 0]).min()) == pytest.approx(0.0002, rel=1e-9)


def test_a_source_below_it_is_not_raised_by_the_rise_and_fall_of_another() -> None:
    """Two sources with the same gaps: the rare one stays as rare beside the largest as it was."""
    start = torch.tensor([0.5, 0.4999, 0.0001], dtype=torch.float64)
    turned = torch.where(torch.arange(600) < 300, 1.0, -1.0)[:, None] * torch.tensor([-1.0, 0.5, 0.5])
    weights = torch.softmax(walk(0.1 * normal(600, 3) + turned, start=logits_of(start)), -1)
    assert float(weights[299, 0]) > 0.99
    assert float(weights[599, 1]) > 0.9
    assert float((weights[:, 2] / weights.amax(-1)).max()) < 0.001


def test_a_run_begins_in_doubt() -> None:
    known = Evidence.zeros(100, 3)
    for gaps in normal(20, 100, 3):
        known, _ = known.plus(gaps)
    _, error = known.sums()
    torch.testing.assert_close(error, known.standard.error(doubted=True) * 20)
    ratio = error / (known.standard.error() * 20)
    assert float(ratio.min()) >= 1
    assert float(ratio.mean()) > 1.1


@pytest.mark.parametrize("bounded", [True, False])
def test_what_a_bound_cut_off_is_not_taken_back_below_the_start(bounded: bool) -> None:
    """One source is best for 170 updates, then all are alike: nothing ever speaks against it."""
    cap = Bounds(torch.zeros(10, dtype=torch.float64), torch.full((10,), 0.4, dtype=torch.float64))
    noise, known, state = normal(400, 10, seed=0), Evidence.zeros(10), EvidentState.zeros(10)
    logits = torch.zeros(10, dtype=torch.float64)
    weights = []
    for update in range(400):
        gap = noise[update] - torch.eye(10, dtype=torch.float64)[0] * (update < 170)
        known, _ = known.plus(gap)
        logits, state = move_on_evidence(known, state, logits, 0.05)
        if bounded:
            logits = logits_of(cap.bounded(weights_of(logits)))
        weights.append(float(weights_of(logits)[0]))
    assert max(weights) > (0.39 if bounded else 0.8)
    assert weights[-1] > 0.2  # twice its start


def test_no_source_is_more_than_half_of_the_average() -> None:
    spread = torch.tensor([0.0145, 0.0101, 0.0221], dtype=torch.float64) ** 2
    weights = precision_weights(spread, 50)
    assert float(weights.max()) == 0.5
    assert float(weights.sum()) == pytest.approx(1.0)
    assert weights[0] > weights[2] > 0


@pytest.mark.parametrize("sources", [2, 3, 10])
@pytest.mark.parametrize("size", [0.1, 10.0, -10.0])  # 100 and 10,000 deviations of the noise
def test_one_broken_batch_costs_a_part_of_what_is_known(sources: int, size: float) -> None:
    """Among two sources it counts for both; the signal is there after 300 updates without it."""
    raw = 1e-3 * normal(600 if sources == 2 else 300, sources, seed=1) - 5e-4 * torch.eye(sources)[0]
    broken = raw.clone()
    broken[60, -1] += size
    without, with_it = walk(torch.stack([raw, broken], 1)).softmax(-1)[-1, :, 0]
    assert float(without) > 0.9
    assert float(with_it) > 0.9 - 0.05
    known = Evidence.zeros(sources)
    for gaps in broken[:61]:
        known, gap = known.plus(gaps)
    assert abs(float(gap[-1])) > 0.9 * abs(size) / 2, "the gap itself is told as it is"


def held_back(raw: Tensor, most: float) -> Tensor:  # (T, runs, S) -> (T, runs, S)
    """Weights after each update, of which the first source's is bounded."""
    high = torch.ones(raw.shape[-1], dtype=torch.float64)
    high[0] = most
    bounds, known, state = Bounds(0 * high, high), Evidence.zeros(*raw.shape[1:]), EvidentState.zeros(*raw.shape[1:])
    logits, path = torch.zeros_like(raw[0]), []
    for gaps in raw:
        known, _ = known.plus(gaps)
        logits, state = move_on_evidence(known, state, logits, 0.05)
        logits = torch.stack(
            [of if bounds.hold(weights_of(of)) else logits_of(bounds.bounded(weights_of(of))) for of in logits]
        )
        path.append(torch.stack([weights_of(of) for of in logits]))
    return torch.stack(path)


def test_a_source_at_its_bound_keeps_its_weight_while_another_catches_up() -> None:
    """The best of four at most 0.3, a second good one evident later: 0.3 and 0.7 are best."""
    true = torch.tensor([-1.0, -0.4, 0.4, 0.4], dtype=torch.float64)
    raw = true + torch.cat([correlated(700, 1, 4, rho=0.5, seed=seed) for seed in range(6)], 1)
    lowest, second = [], []
    for path in held_back(raw, 0.3).unbind(1):
        at_bound = int((path[:, 0] > 0.299).nonzero()[0])
        lowest.append(float(path[at_bound:, 0].min()))
        second.append(float(path[-1, 1]))
    assert sum(lowest) / 6 > 0.2, lowest  # 0.12 where it went along with none of it
    assert min(second) > 0.65


def test_a_source_at_its_bound_falls_as_soon_as_its_gaps_turn() -> None:
    """To its start, and below it as soon as another one catches up; what the bound took is soon forgotten."""
    before, after = torch.tensor([-1.0, 0.0, 0.0, 0.5]), torch.tensor([0.0, -1.0, 0.0, 0.5])
    noise = torch.cat([correlated(600, 1, 4, rho=0.0, seed=seed) for seed in range(3)], 1)
    turned = torch.arange(600)[:, None, None] >= 200
    overtaken, opposite = (
        held_back(noise + torch.where(turned, then, before), 0.4)[..., 0].unbind(1) for then in (after, -before)
    )
    for of_overtaken, of_opposite in zip(overtaken, opposite, strict=True):
        assert float(of_overtaken[199]) > 0.38
        assert float(of_overtaken[599]) < 0.15
        assert float(of_opposite[300]) < 0.3


@pytest.mark.parametrize("size", [1e-150, 1e-140, 1e-100, 1e100, 1e149], ids=str)
def test_gaps_of_any_size_move_the_mixture_alike(size: float) -> None:
    steps = normal(100, 3) + torch.tensor([-2.0, 0.0, 2.0], dtype=torch.float64)
    ends = []
    for factor in (1.0, size):
        known, state, logits = Evidence.zeros(3), EvidentState.zeros(3), torch.zeros(3, dtype=torch.float64)
        for gap in steps:
            known, _ = known.plus(gap * factor)
            logits, state = move_on_evidence(known, state, logits, 0.05)
        ends.append(logits)
    assert float(ends[0].abs().max()) > 0.5
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=1e-9 if size > 1e-145 else 0.2)


def test_a_gap_whose_squares_are_no_numbers_is_refused() -> None:
    known, _ = Evidence.zeros(2, 3).plus(normal(2, 3))
    with pytest.raises(ValueError, match=r"^the gap of source 2 must be finite and at most 1e\+150, got -1e\+151"):
        known.plus(torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, -1e151]], dtype=torch.float64))
