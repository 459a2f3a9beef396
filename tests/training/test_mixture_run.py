"""The mixture during a run: its phases, when it moves, what it starts from, and that it goes on from a checkpoint."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from scalebio_plugin.algorithm import mixture
from scalebio_plugin.algorithm.bilevel import mixture_gradient
from scalebio_plugin.algorithm.certainty import total_variation
from scalebio_plugin.algorithm.evidence import Evidence
from scalebio_plugin.config.block import ScaleBiOSettings
from scalebio_plugin.config.names import refuse_other_sources
from scalebio_plugin.hooks.manager import build_manager
from scalebio_plugin.hooks.spec import hookimpl
from scalebio_plugin.training.mixture_run import MixtureRun
from scalebio_plugin.training.mixture_settings import bounds_of, initial_weights
from scalebio_plugin.training.objective import Objective
from scalebio_plugin.training.phase import Phase
from scalebio_plugin.training.step_losses import StepLosses

NAMES = ["a", "b", "c"]
SHARE = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
UNITS = torch.tensor([60.0, 30.0, 10.0], dtype=torch.float64)  # a batch in exactly the shares: the gap is the gap
RULES = pytest.mark.parametrize("rule", ["adam", "evidence", "exponentiated_gradient"])


def run_of(
    max_steps: int = 100,
    extensions: tuple[object, ...] = (),
    most: Sequence[float] = (1.0, 1.0, 1.0),
    goals: Sequence[str] = ("goal",),
    **block: Any,
) -> MixtureRun:
    manager = build_manager()
    for extension in extensions:
        manager.register(extension)
    settings = ScaleBiOSettings(**{"sampling": "host", "mixture_init": "uniform", **block})
    of = Objective(goals, torch.full((len(goals),), 1 / len(goals)), worst=settings.objective == "worst")
    return MixtureRun(settings, NAMES, SHARE, manager, max_steps, of, torch.tensor(most, dtype=torch.float64))


def losses_of(gap: Tensor | list[float], units: Tensor = UNITS) -> StepLosses:
    """A step whose sources differ by `gap` between w and u."""
    inner = torch.tensor([2.0, 3.0, 4.0], dtype=torch.float64)
    model = inner + torch.as_tensor(gap, dtype=torch.float64)
    return StepLosses(
        model * units, inner * units, units, SHARE, units.sum(), 2.5, torch.tensor([3.0]), torch.tensor([2.0])
    )


def gaps(steps: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(steps, 3, generator=generator, dtype=torch.float64))


def observe(run: MixtureRun, gap: Tensor | list[float], step: int, units: Tensor = UNITS) -> dict[str, Any] | None:
    return run.observe(losses_of(gap, units), step, learning_rate=1e-4)


def assert_within(weights: dict[str, float], bounds: dict[str, Any], groups: dict[str, list[str]]) -> None:
    totals = weights | {group: sum(weights[member] for member in members) for group, members in groups.items()}
    assert sum(weights.values()) == pytest.approx(1.0, abs=1e-12)
    for name, (low, high) in bounds.items():
        assert low - 1e-9 <= totals[name] <= high + 1e-9


class Recorder:
    """Answers for every rule, remembers what it saw and moves all logits by one."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    @hookimpl
    def scalebio_update_mixture(self, rule, observation, state):
        self.seen.append(observation)
        return observation.logits_S + 1, {"calls": len(self.seen)}


# ---- phases


@pytest.mark.parametrize(
    ("block", "max_steps", "phases"),
    [
        ({}, 6, "LLLLLL"),
        ({"warmup_steps": 2}, 6, "WWLLLL"),
        ({"learn": {"fraction": 0.5}}, 6, "LLLRRR"),
        ({"learn": {"steps": 2}}, 6, "LLRRRR"),
        ({"learn": {"steps": 20}}, 6, "LLLLLL"),
        ({"warmup_steps": 1, "learn": {"steps": 2}}, 6, "WLLRRR"),
        ({"warmup_steps": 2, "learn": {"fraction": 0.5}}, 6, "WWLLRR"),
        ({"learn": {"fraction": 0.01}}, 6, "LRRRRR"),
        ({"warmup_steps": 5}, 6, "WWWWWL"),
    ],
    ids=str,
)
def test_phases_follow_each_other(block, max_steps, phases):
    run = run_of(max_steps, **block)
    letters = {Phase.WARMUP: "W", Phase.LEARN: "L", Phase.AFTER: "R"}
    assert "".join(letters[run.phase(step)] for step in range(max_steps)) == phases


# ---- the start


@pytest.mark.parametrize(
    ("init", "expected"),
    [
        ("uniform", [1 / 3, 1 / 3, 1 / 3]),
        ("proportional", [0.6, 0.3, 0.1]),
        ({"a": 0.2, "c": 0.5, "b": 0.3}, [0.2, 0.3, 0.5]),
    ],
    ids=str,
)
def test_the_weights_start_as_asked(init, expected):
    run = run_of(mixture_init=init)
    assert run.weights_S.tolist() == pytest.approx(expected, rel=1e-12)
    assert run.coefficient_S(SHARE).tolist() == pytest.approx(
        [p / s for p, s in zip(expected, SHARE.tolist(), strict=True)]
    )
    assert initial_weights(run.settings, NAMES, SHARE).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("learning_rate", [0.0, 0.03])
def test_the_shares_have_coefficients_of_exactly_one(learning_rate):
    run = run_of(mixture_init="proportional", mixture_learning_rate=learning_rate)
    assert torch.equal(run.coefficient_S(SHARE), torch.ones(3, dtype=torch.float64))


def test_without_a_learning_rate_the_coefficients_stay_exactly_one_and_the_gap_is_still_recorded():
    run = run_of(mixture_init="proportional", mixture_learning_rate=0.0)
    for step, gap in enumerate(gaps(20), start=1):
        record = observe(run, gap, step)
        assert record["step"] == step
        assert list(record["gap"]) == NAMES
        assert torch.equal(run.coefficient_S(SHARE), torch.ones(3, dtype=torch.float64))
    assert run.rule_state is None


def test_once_moved_the_coefficients_are_those_of_the_weights():
    run = run_of(mixture_init="proportional", mixture_update="exponentiated_gradient")
    observe(run, [0.1, -0.2, 0.3], 1)
    torch.testing.assert_close(run.coefficient_S(SHARE), run.weights_S / SHARE, rtol=1e-12, atol=0)
    assert not torch.equal(run.coefficient_S(SHARE), torch.ones(3, dtype=torch.float64))


def test_drawn_by_the_mixture_the_coefficients_are_weight_over_share_from_the_start():
    share = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
    run = run_of(mixture_init="proportional", sampling="mixture")
    assert run.coefficient_S(share).tolist() == pytest.approx([1.2, 0.6, 0.0])


def test_before_there_is_evidence_the_coefficients_stay_exactly_one():
    run = run_of(mixture_init="proportional", most=[0.9, 0.9, 0.4])
    for step, gap in enumerate(gaps(40), start=1):
        observe(run, gap, step)
        assert torch.equal(run.coefficient_S(SHARE), torch.ones(3, dtype=torch.float64))
    assert run.evidence.updates == 40


START = ["uniform", "proportional", {"a": 0.8, "b": 0.1, "c": 0.1}, {"a": 0.5, "b": 0.5, "c": 0.0}]


@pytest.mark.parametrize("init", START, ids=str)
@pytest.mark.parametrize("learning_rate", [0.0, 0.03])
@pytest.mark.parametrize(
    ("bounds", "groups"),
    [({"a": (0.0, 0.3), "b": (0.0, 0.3)}, {}), ({"g": (0.0, 0.4)}, {"g": ["a", "b"]}), ({"c": (0.5, 0.6)}, {})],
    ids=["caps", "a group's cap", "a floor"],
)
def test_the_run_starts_within_the_bounds_and_trains_on_those_weights(init, learning_rate, bounds, groups):
    run = run_of(mixture_init=init, bounds=bounds, groups=groups, mixture_learning_rate=learning_rate)
    for weights in (run.weights_S, run.coefficient_S(SHARE) * SHARE):
        assert_within(dict(zip(NAMES, weights.tolist(), strict=True)), bounds, groups)


# ---- moving


@RULES
def test_a_run_moves_the_logits_by_the_rule(rule):
    run = run_of(mixture_update=rule, mixture_learning_rate=0.1, penalty=30.0)
    logits, state = torch.zeros(3, dtype=torch.float64), None
    known = Evidence.zeros(3)
    for step, noise in enumerate(gaps(40), start=1):
        gap = noise + torch.tensor([-5.0, 0.0, 5.0], dtype=torch.float64)
        observe(run, gap, step)
        weights = mixture.weights_of(logits)
        known, _ = known.plus(gap)
        if rule == "evidence":
            logits, state = mixture.move_on_evidence(known, state or mixture.EvidentState.zeros(3), logits, 0.1)
        elif rule == "adam":
            gradient = mixture_gradient(gap, weights, 30.0)
            logits, state = mixture.adam(gradient, state or mixture.AdamState.zeros(3), logits, 0.1)
        else:
            state = state or mixture.ExponentiatedState()
            logits, state = mixture.exponentiated_gradient(gap, weights, state, logits, 0.1)
        torch.testing.assert_close(run.logits_S, logits, rtol=1e-9, atol=1e-9)
    assert run.evidence.updates == 40
    assert float(run.weights_S[0]) > 0.5


@RULES
@pytest.mark.parametrize(
    "block", [{}, {"bounds": {"a": (0.1, 0.2)}}, {"most": [0.9, 0.8, 0.5]}, {"prior": {}}], ids=str
)
def test_sets_that_agree_move_nothing(rule, block):
    """With the validation data out of play the gap is exactly 0, and so λ stays to the bit."""
    start = {"a": 0.2, "b": 0.299, "c": 0.501}
    run = run_of(mixture_update=rule, penalty=float("inf"), mixture_init=start, **block)
    before = run.logits_S.clone()
    for step in range(1, 31):
        record = observe(run, [0.0, 0.0, 0.0], step)
        assert record["gap"] == record["pull"] == {"a": 0.0, "b": 0.0, "c": 0.0}
    assert torch.equal(run.logits_S, before)
    assert record["verdict"] == "no signal"
    assert record["evidence"] == {"a": 0.0, "b": 0.0, "c": 0.0}
    assert record["told_at"] is None


def test_a_state_that_no_checkpoint_restores_is_an_error_at_the_first_update():
    class Counts:
        @hookimpl
        def scalebio_update_mixture(self, observation):
            return observation.logits_S, {"seen": {observation.step}}

    with pytest.raises(ValueError, match=r"state of rule 'evidence' holds \['seen'\], a builtins.set, which no check"):
        observe(run_of(extensions=(Counts(),)), [0.5, -0.1, 0.2], 1)


@pytest.mark.parametrize("moves", [{}, {"mixture_learning_rate": 0.0}], ids=["moves", "stays"])
@pytest.mark.parametrize("interval", [1, 2])
def test_without_signal_a_record_says_which_source_would_be_told_first_and_at_which_step(interval, moves):
    run, record = run_of(update_interval=interval, **moves), None
    for step, gap in enumerate(gaps(110 * interval, seed=4), start=1):
        record = observe(run, 0.05 * gap + torch.tensor([-0.006, 0.0, 0.006]), step) or record
        assert record is None or record["verdict"] == "no signal"
        assert record is None or record["told_at"] is None or run.evidence.updates >= 100
    after = dict(zip(NAMES, run.evidence.evident_after().tolist(), strict=True))
    nearest = min(after, key=after.__getitem__)
    assert record["told_at"] == {nearest: interval * after[nearest]}
    for later in range(step + 1, step + 200 * interval):
        record = observe(run, [-0.5, 0.0, 0.5], later) or record
    assert record["verdict"] != "no signal"
    assert record["told_at"] is None


def test_an_update_interval_averages_the_gaps_and_only_then_moves():
    recorder = Recorder()
    run = run_of(extensions=(recorder,), update_interval=4)
    steps = gaps(12)
    for step, gap in enumerate(steps, start=1):
        before = run.logits_S
        record = observe(run, gap, step)
        assert (record is None) == torch.equal(run.logits_S, before) == (step % 4 != 0)
        assert len(recorder.seen) == step // 4
        if record:
            mean = torch.stack(steps[step - 4 : step]).mean(0)
            assert list(record["pull"].values()) == pytest.approx(mean.tolist(), abs=1e-12)
            assert list(record["gap"].values()) == pytest.approx((mean - mean.mean()).tolist(), abs=1e-12)
            torch.testing.assert_close(recorder.seen[-1].gap_S, mean, rtol=0, atol=1e-12)
            assert recorder.seen[-1].step == step
    assert run.evidence.updates == 3


def test_the_symmetric_gap_is_halved():
    forward, symmetric = run_of(), run_of(estimator="symmetric")
    gap = torch.tensor([0.4, -0.2, 0.1], dtype=torch.float64)
    one, other = observe(forward, gap, 1), observe(symmetric, gap, 1)
    for key in ("pull", "gap"):
        assert [2 * value for value in other[key].values()] == pytest.approx(list(one[key].values()), rel=1e-9)


def test_a_rule_sees_the_gradient_of_the_gap_it_sees():
    recorder = Recorder()
    run = run_of(extensions=(recorder,), penalty=20.0, mixture_init={"a": 0.2, "b": 0.3, "c": 0.5})
    observe(run, [0.5, -0.1, 0.2], 1)
    seen = recorder.seen[0]
    assert torch.equal(seen.gradient_S, mixture_gradient(seen.gap_S, seen.weights_S, 20.0))
    torch.testing.assert_close(seen.weights_S, mixture.weights_of(seen.logits_S), rtol=0, atol=0)
    assert seen.learning_rate == 0.05
    assert torch.equal(seen.evidence.standard.last_S.sign(), torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64))


@pytest.mark.parametrize(
    ("block", "rate"),
    [
        ({}, 0.05),
        ({"mixture_update": "evidence"}, 0.05),
        ({"mixture_update": "exponentiated_gradient"}, 0.03),
        ({"mixture_update": "adam"}, 0.01),
        ({"mixture_update": "an extension's"}, 0.03),
        ({"mixture_update": "adam", "mixture_learning_rate": 0.5}, 0.5),
    ],
    ids=str,
)
def test_a_rule_has_its_own_learning_rate_until_one_is_given(block, rate):
    recorder = Recorder()
    observe(run_of(extensions=(recorder,), **block), [0.5, -0.1, 0.2], 1)
    assert recorder.seen[0].learning_rate == rate


def test_an_absent_source_does_not_count_as_gap_zero():
    """All sources have the same gap of 0.5, the last is missing every other time: it neither gains nor loses."""
    run = run_of(mixture_update="adam", mixture_learning_rate=0.1)
    without = torch.tensor([66.0, 34.0, 0.0], dtype=torch.float64)
    observe(run, [0.5] * 3, 1)
    before = run.weights_S
    for step in range(2, 20):
        record = observe(run, [0.5] * 3, step, without if step % 2 else UNITS)
        assert record["pull"]["c"] == pytest.approx(0.5, abs=1e-9)
        assert record["gap"]["c"] == pytest.approx(0.0, abs=1e-9)
    torch.testing.assert_close(run.weights_S, before, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("bounds", "groups"),
    [
        ({"a": (0.1, 0.4)}, {}),
        ({"g": (0.3, 0.5)}, {"g": ["a", "b"]}),
        ({"a": (0.0, 0.2), "g": (0.3, 0.5)}, {"g": ["a", "b"]}),
    ],
    ids=["a box", "a group", "both"],
)
@RULES
def test_bounds_hold_after_every_update(rule, bounds, groups):
    run = run_of(mixture_update=rule, mixture_learning_rate=0.5, bounds=bounds, groups=groups)
    start = run.weights_S
    for step in range(1, 31):
        record = observe(run, [-0.3, 0.1, 0.2] if step < 15 else [0.6, -0.1, -0.2], step)
        assert_within(record["weights"], bounds, groups)
    assert total_variation(run.weights_S, start) > 0.05


@pytest.mark.parametrize(
    ("rule", "strength"),
    [
        pytest.param("evidence", 0.5, marks=pytest.mark.slow),
        ("evidence", 2.0),
        ("adam", 0.5),
        pytest.param("exponentiated_gradient", 2.0, marks=pytest.mark.slow),
    ],
)
def test_with_a_prior_a_run_rests_where_no_weight_gains_more_than_it_costs(rule, strength):
    """α g_i + strength · log(p_i / prior_i) is the same for all sources, whatever the size of their gaps."""
    prior, gap = {"a": 0.5, "b": 0.2, "c": 0.3}, [-0.06, 0.01, 0.02]
    block = {"prior": {"weights": prior, "strength": strength}, "mixture_init": {"a": 0.2, "b": 0.2, "c": 0.6}}
    run = run_of(mixture_update=rule, mixture_learning_rate=0.05 if rule == "evidence" else 0.01, penalty=10.0, **block)
    for step in range(1, 701):
        observe(run, gap, step)
    expected = torch.tensor(list(prior.values())) * torch.exp(-10.0 * torch.tensor(gap) / strength)
    torch.testing.assert_close(run.weights_S, (expected / expected.sum()).double(), rtol=0, atol=4e-3)
    assert run.verdict(run.interval()) == "converged"


def test_a_prior_keeps_the_odds_of_sources_that_are_not_told_apart():
    """Equally good, one with five times the noise, so that a scale of its own would draw it back more slowly."""
    prior, gap, noise = {"a": 0.2, "b": 0.4, "c": 0.4}, [-0.03, -0.03, 0.06], torch.tensor([0.02, 0.1, 0.05])
    run = run_of(mixture_update="evidence", prior={"weights": prior, "strength": 1.0}, mixture_init=prior)
    weights = []
    for step, drawn in enumerate(gaps(1200), start=1):
        observe(run, torch.tensor(gap) + noise * drawn, step)
        weights.append(run.weights_S)
    mean = torch.stack(weights[600:]).mean(0)
    assert float(mean[0] / mean[1]) == pytest.approx(0.5, rel=0.02)
    expected = torch.tensor(list(prior.values())) * torch.exp(-10.0 * torch.tensor(gap))
    torch.testing.assert_close(mean, (expected / expected.sum()).double(), rtol=0, atol=0.01)


@pytest.mark.parametrize(
    "block",
    [
        {"bounds": {"c": (0.0, 0.0)}},
        {"bounds": {"c": (0.0, 1e-3)}},
        {"bounds": {"c": (0.6, 0.6)}},
        {"bounds": {"g": (0.02, 0.02)}, "groups": {"g": ["a", "b"]}},
    ],
    ids=str,
)
def test_on_noise_a_prior_keeps_the_odds_of_those_that_bounds_leave_free(block):
    """However far from its prior a bound holds the third, and though the two do not move at one pace."""
    prior = {"a": 0.4, "b": 0.4, "c": 0.2}
    run = run_of(mixture_update="evidence", prior={"weights": prior, "strength": 1.0}, **block)
    for step, drawn in enumerate(gaps(60), start=1):
        observe(run, torch.tensor([0.02, 0.3, 0.1]) * drawn, step)
    assert float(run.weights_S[0] / run.weights_S[1]) == pytest.approx(1.0, abs=1e-6)


@RULES
def test_beside_a_source_held_at_0_a_prior_gives_the_worst_source_the_least(rule):
    prior, noise = {"a": 0.45, "b": 0.45, "c": 0.1}, torch.tensor([0.02, 0.1, 0.1])
    run = run_of(mixture_update=rule, prior={"weights": prior, "strength": 1.0}, bounds={"c": (0.0, 0.0)})
    for step, drawn in enumerate(gaps(200), start=1):
        observe(run, torch.tensor([-0.03, 0.03, 0.0]) + noise * drawn, step)
    assert 0.6 < float(run.weights_S[0]) < 0.9
    assert float(run.weights_S.sum()) == pytest.approx(1.0)


@RULES
def test_a_control_with_a_prior_is_told_like_one_without(rule):
    """At an infinite penalty there is no pull; gaps are what rounding leaves of 0."""
    block = {"mixture_update": rule, "penalty": math.inf, "mixture_learning_rate": 0.05}
    controls = run_of(**block, prior={"weights": {"a": 0.5, "b": 0.2, "c": 0.3}}), run_of(**block)
    for step, gap in enumerate(gaps(200), start=1):
        biased = 1e-9 * (torch.tensor([-1.0, 0.0, 1.0]) + 0.1 * gap)
        held, free = (observe(run, biased, step) for run in controls)
        assert held == free


@RULES
def test_a_prior_is_the_start_where_it_has_no_weights(rule):
    run = run_of(mixture_update=rule, prior={"strength": 50.0}, mixture_init={"a": 0.2, "b": 0.3, "c": 0.5})
    for step, gap in enumerate(gaps(200), start=1):
        observe(run, 0.01 * gap + torch.tensor([-0.05, 0.0, 0.05]), step)
    assert total_variation(run.weights_S, run.first_S) < 0.02


def test_weights_stay_at_the_cap_of_their_size_and_their_groups_are_kept():
    block = {"bounds": {"g": (0.0, 0.8), "a": (0.0, 0.9)}, "groups": {"g": ["a", "b"]}}
    run = run_of(most=[0.45, 1.0, 1.0], mixture_learning_rate=0.5, **block)
    for step in range(1, 61):
        record = observe(run, [-1.0, -0.2, 1.2], step)
        assert_within(record["weights"], {"a": (0.0, 0.45), "g": (0.0, 0.8)}, block["groups"])
    assert record["weights"]["a"] == pytest.approx(0.45, abs=1e-9)
    assert record["weights"]["b"] == pytest.approx(0.35, abs=1e-9)
    assert record["verdict"] == "converged"


@pytest.mark.parametrize(
    ("bounds", "most", "high"),
    [
        ({}, [1.0, 1.0, 1.0], None),
        ({}, [1.0, 1.0, 0.4], [1.0, 1.0, 0.4]),
        ({"a": (0.1, 0.5), "c": (0.0, 0.2)}, [0.8, 0.7, 0.4], [0.5, 0.7, 0.2]),
        ({"a": (0.1, 0.5)}, [0.3, 1.0, 1.0], [0.3, 1.0, 1.0]),
    ],
    ids=str,
)
def test_no_weight_is_above_its_bound_or_its_size(bounds, most, high):
    found = bounds_of(ScaleBiOSettings(bounds=bounds), NAMES, torch.tensor(most, dtype=torch.float64))
    assert (found.high_S.tolist() if found else None) == high


def test_bounds_of_the_settings_are_in_the_order_of_the_sources():
    settings = ScaleBiOSettings(bounds={"c": (0.2, 0.3), "g": (0.1, 0.6)}, groups={"g": ["b", "a"], "free": ["c"]})
    free = torch.ones(3, dtype=torch.float64)
    bounds = bounds_of(settings, NAMES, free)
    assert bounds.low_S.tolist() == [0.0, 0.0, 0.2]
    assert bounds.high_S.tolist() == [1.0, 1.0, 0.3]
    assert [(sorted(members), low, high) for members, low, high in bounds.groups] == [([0, 1], 0.1, 0.6)]
    assert bounds_of(ScaleBiOSettings(), NAMES, free) is None


# ---- the line for the history


def test_a_record_is_plain_and_says_what_happened():
    run = run_of()
    record = observe(run, [0.5, 0.25, 0.0], 7, torch.tensor([60.0, 40.0, 0.0], dtype=torch.float64))
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["step"] == 7
    assert record["loss"] == {"a": pytest.approx(2.5), "b": pytest.approx(3.25), "c": None}
    assert record["inner_loss"] == {"a": pytest.approx(2.0), "b": pytest.approx(3.0), "c": None}
    assert record["units"] == {"a": 60, "b": 40, "c": 0}
    assert (record["train_loss"], record["val_loss"], record["learning_rate"]) == (2.5, 1.5, 1e-4)
    assert list(record["weights"].values()) == run.weights_S.tolist()  # those after the update


# ---- checkpoints


@RULES
@pytest.mark.parametrize("interval", [1, 3])
@pytest.mark.parametrize("init", ["uniform", "proportional"])
@pytest.mark.parametrize("bounds", [{}, {"a": (0.2, 0.5)}], ids=["free", "bounded"])
@pytest.mark.parametrize("stop", [0, 5, 25])
def test_a_restored_run_goes_on_with_the_same_bits(rule, interval, init, bounds, stop, tmp_path):
    block = {"mixture_update": rule, "update_interval": interval, "mixture_init": init, "bounds": bounds}
    units = [UNITS, torch.tensor([70.0, 30.0, 0.0], dtype=torch.float64)]
    steps = [gap + torch.tensor([-20.0, 0.0, 20.0], dtype=torch.float64) for gap in gaps(30)]
    whole = run_of(**block)
    for step, gap in enumerate(steps[:stop], start=1):
        observe(whole, gap, step, units[step % 2])
    torch.save(whole.state_dict(), tmp_path / "state.pt")
    resumed = run_of(**block)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for step, gap in enumerate(steps[stop:], start=stop + 1):
        assert observe(resumed, gap, step, units[step % 2]) == observe(whole, gap, step, units[step % 2])
        assert torch.equal(resumed.logits_S, whole.logits_S)
        assert torch.equal(resumed.coefficient_S(SHARE), whole.coefficient_S(SHARE))
        assert resumed.verdict(resumed.interval()) == whole.verdict(whole.interval())
    assert resumed.evidence.updates == whole.evidence.updates
    assert not torch.equal(whole.weights_S, whole.first_S)


def test_a_checkpoint_of_an_older_version_goes_on():
    """It knew nothing of evidence; its rule was the exponentiated gradient."""
    block = {"mixture_update": "exponentiated_gradient", "mixture_init": "proportional"}
    whole, resumed = run_of(**block), run_of(**block)
    steps = gaps(30)
    for step, gap in enumerate(steps[:10], start=1):
        observe(whole, gap, step)
    new = ("evidence", "first", "recent_from", "younger_from")
    resumed.load_state_dict({key: value for key, value in whole.state_dict().items() if key not in new})
    for step, gap in enumerate(steps[10:], start=11):
        assert observe(resumed, gap, step)["weights"] == observe(whole, gap, step)["weights"]
    assert resumed.evidence.updates == 20


def test_a_checkpoint_of_a_version_in_which_each_source_moved_by_itself_goes_on() -> None:
    whole, resumed = run_of(), run_of()
    steps = [gap + torch.tensor([-5.0, 0.0, 5.0], dtype=torch.float64) for gap in gaps(120)]
    for step, gap in enumerate(steps[:60], start=1):
        observe(whole, gap, step)
    saved = copy.deepcopy(whole.state_dict())
    del saved["evidence"]["per_nat_S"], saved["rule_state"]["shared_S"]
    resumed.load_state_dict(saved)
    assert resumed.interval() is not None
    before = whole.logits_S.clone()
    for step, gap in enumerate(steps[60:], start=61):
        for run in (whole, resumed):
            observe(run, gap, step)
        if step == 61:
            torch.testing.assert_close(resumed.logits_S, before, rtol=0, atol=0.2)  # no jump
    torch.testing.assert_close(resumed.weights_S, whole.weights_S, rtol=0, atol=0.02)
    assert float(whole.weights_S[0]) > 0.9


def test_intervals_are_those_of_the_rule_and_none_where_its_noise_is_not_known():
    steps = [gap + torch.tensor([-5.0, 0.0, 5.0], dtype=torch.float64) for gap in gaps(30)]
    found = {}
    for rule in ("evidence", "exponentiated_gradient", "adam"):
        run = run_of(mixture_update=rule)
        for step, gap in enumerate(steps, start=1):
            record = observe(run, gap, step)
            if record["interval"] is not None:
                for name, (low, high) in record["interval"].items():
                    assert 0 <= low <= record["weights"][name] <= high <= 1
        found[rule] = record["interval"]
    assert found["adam"] is None
    assert found["evidence"] != found["exponentiated_gradient"]
    taken_over = run_of(extensions=(Recorder(),))
    assert [observe(taken_over, gap, step)["interval"] for step, gap in enumerate(steps[:2], start=1)] == [None, None]


@RULES
def test_what_was_saved_does_not_change_later(rule):
    run = run_of(mixture_update=rule)
    observe(run, [0.1, 0.2, 0.3], 1)
    saved = run.state_dict()
    before = copy.deepcopy(saved)
    for step, gap in enumerate(gaps(5), start=2):
        observe(run, gap, step)
    assert torch.equal(saved["logits"], before["logits"])
    assert str(saved) == str(before)


@pytest.mark.parametrize(
    ("key", "saved", "here"),
    [
        ("mixture_update", "adam", "evidence"),
        ("sampling", "mixture", "host"),
        ("keep", "inner", "model"),
        ("keep", "model", "inner"),
    ],
)
def test_a_checkpoint_of_another_rule_sampling_or_set_to_keep_is_refused(key, saved, here):
    written, said = run_of(**{key: saved}).state_dict(), f"learned with {key} '{saved}', this run has '{here}'; set it"
    with pytest.raises(ValueError, match=f"{said} back, or start a new output_dir"):
        run_of(**{key: here}).load_state_dict(written)
    run_of(**{key: saved}).load_state_dict(written)


@pytest.mark.parametrize(("key", "before", "here"), [("sampling", "host", "mixture"), ("keep", "model", "inner")])
def test_a_checkpoint_from_before_an_option_is_of_what_there_was(key, before, here):
    written = run_of(**{key: before}).state_dict()
    del written[key]
    run_of(**{key: before}).load_state_dict(written)
    with pytest.raises(ValueError, match=f"{key} '{before}', this run has '{here}'"):
        run_of(**{key: here}).load_state_dict(written)


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (["a", "b", "d"], r"\['d'\] that are missing here, and lacks \['c'\].*, or give scalebio.names where"),
        (
            ["a", "b"],
            r"none that are missing here, and lacks \['c'\]; use the datasets: and scalebio.split_by it .* with$",
        ),
        (["a", "b", "c", "d"], r"\['d'\] that are missing here, and lacks none"),
        (["b", "a", "c"], r"\['b', 'a', 'c'\], this run as \['a', 'b', 'c'\]; put the entries of datasets: back"),
    ],
)
def test_other_sources_are_refused_by_name_and_change_nothing(saved, message):
    run, other = run_of(), run_of()
    observe(other, [0.1, 0.2, 0.3], 1)
    before = copy.deepcopy(run.state_dict())
    with pytest.raises(ValueError, match="the checkpoint.*" + message):
        run.load_state_dict({**other.state_dict(), "names": saved})
    assert str(run.state_dict()) == str(before)


def test_the_same_sources_are_no_error():
    assert refuse_other_sources(("a", "b"), ["a", "b"], "mixture.json") is None


# ---- when learning ends early


def ended(run: MixtureRun, gap: list[float], noise: float, steps: int) -> int:
    """The step until which the run learns, of `steps` at most, at gaps of a mean and a noise."""
    generator = torch.Generator().manual_seed(0)
    for step in range(1, steps + 1):
        if run.phase(step - 1) is not Phase.LEARN:
            break
        drawn = torch.tensor(gap) + noise * torch.randn(3, generator=generator, dtype=torch.float64)
        observe(run, drawn, step)
    return run.learn_until


def test_without_signal_learning_ends_after_half_of_the_time():
    run = run_of(200, learn={"until": "converged", "at_most": 0.5})
    assert ended(run, [0.0, 0.0, 0.0], 1.0, 200) == 56  # 50, and the rest of its eight steps
    assert run.ends_early
    assert run.verdict(run.interval()) == "no signal"


def test_with_a_signal_learning_ends_once_converged():
    run = run_of(2000, learn={"until": "converged", "at_most": 1.0})
    step = ended(run, [-1.0, 0.5, 0.5], 1.0, 2000)
    assert step % 8 == 0
    assert 100 < step < 1000
    assert run.verdict(run.interval()) == "converged"
    assert float(run.weights_S[0]) > 0.9


def test_what_has_not_converged_learns_to_the_last_step():
    run = run_of(300, learn={"until": "converged", "at_most": 0.5}, warmup_steps=4)
    assert run.last_step == 4 + 148
    assert ended(run, [-1.0, 0.5, 0.5], 1.0, 300) == 152
    assert not run.ends_early


def test_a_restored_run_ends_learning_where_it_had_ended():
    block = {"learn": {"until": "converged", "at_most": 0.5}}
    whole, resumed = run_of(200, **block), run_of(200, **block)
    ended(whole, [0.0, 0.0, 0.0], 1.0, 200)
    resumed.load_state_dict(whole.state_dict())
    assert resumed.learn_until == whole.learn_until < whole.last_step


@pytest.mark.parametrize(
    ("learn", "until"),
    [
        ({"fraction": 0.5}, 100),
        ({"fraction": 0.8}, 160),
        ({"steps": 40}, 40),
        ({"until": "converged", "at_most": 0.8}, 56),
        ({"until": "converged", "at_most": 0.2}, 40),
    ],
)
def test_a_restored_run_that_is_to_learn_otherwise_does(learn: dict[str, Any], until: int) -> None:
    """Where learning had ended of itself counts for a run that may end so, and no longer than it may learn."""
    whole, resumed = run_of(200, learn={"until": "converged", "at_most": 0.5}), run_of(200, learn=learn)
    ended(whole, [0.0, 0.0, 0.0], 1.0, 200)
    resumed.load_state_dict(whole.state_dict())
    assert (whole.learn_until, resumed.learn_until) == (56, until)


# ---- several validation sets


def goals_after(losses: list[list[float | None]], **block: Any) -> list[Any]:
    run = run_of(goals=["x", "y"], **block)
    records = []
    for step, of in enumerate(losses, start=1):
        units = torch.tensor([0.0 if loss is None else 10.0 for loss in of], dtype=torch.float64)
        sums = torch.tensor([0.0 if loss is None else 10.0 * loss for loss in of], dtype=torch.float64)
        records.append(run.observe(replace(losses_of([0.0] * 3), val_V=sums, val_units_V=units), step, 1e-4))
    return records


def test_each_validation_set_has_its_loss_in_the_history():
    first, second = goals_after([[2.0, 3.0], [1.0, None]])
    assert first["val_losses"] == {"x": 2.0, "y": 3.0}
    assert second["val_losses"] == {"x": 1.0, "y": None}
    assert first["val_weights"] == second["val_weights"] == {"x": 0.5, "y": 0.5}


def test_the_worst_set_gains_weight_by_its_loss_and_one_not_seen_keeps_its_odds():
    records = goals_after([[2.0, 3.0], [2.0, 3.0], [5.0, None], [1.0, 1.0]], objective="worst")
    odds = [math.log(record["val_weights"]["y"] / record["val_weights"]["x"]) for record in records]
    assert odds == pytest.approx([0.0, 0.05, 0.1, 0.1], abs=1e-12)


def test_a_checkpoint_of_other_validation_sets_is_refused():
    saved = run_of(goals=["x", "y"]).state_dict()
    with pytest.raises(ValueError, match=r"validation sets \['x', 'y'\], this run has \['goal'\]; set scalebio"):
        run_of().load_state_dict(saved)
