"""The plan of the rows that are drawn by source: exact expectations, laps, caps, bins, and what it is a function of."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from scalebio_plugin.data.packing import MicroBatches
from scalebio_plugin.data.step_plan import FLOOR, LOOKAHEAD, Draw, DrawState, learning_fractions, systematic

FRACTIONS = [[0.5, 0.3, 0.2], [0.05, 0.05, 0.9], [1 / 3, 1 / 3, 1 / 3], [0.25, 0.75, 0.0], [0.125, 0.5, 0.375]]


def draw_of(
    sizes: list[int], *, max_repeats: int = 1000, seed: int = 42, lengths: np.ndarray | None = None, **like: Any
) -> Draw:
    """Sources of those sizes, side by side, behind a row without a target."""
    source = np.concatenate([[-1], np.repeat(np.arange(len(sizes)), sizes)])
    shape = MicroBatches(**{"rows": 2, "accumulation": 2, "ranks": 1, "members": 100, **like})
    return Draw(source, np.arange(1.0, 1.0 + len(sizes)), max_repeats, seed, shape, lengths)


def planned(draw: Draw, fractions: Any, steps: int, state: DrawState | None = None, micro_batches: int = 2) -> Any:
    state = DrawState.start(len(draw.sizes)) if state is None else state
    return draw.plan(np.asarray(fractions), [micro_batches] * steps, state)


def rows_of(steps: list[Any]) -> np.ndarray:
    return np.concatenate([step.rows() for step in steps])


# ---- fractions


@pytest.mark.parametrize("weights", [[0.7, 0.2, 0.1], [1.0, 0.0, 0.0]], ids=str)
@pytest.mark.parametrize("mean_units", [[1.0, 1.0, 1.0], [700.0, 50.0, 3.0]], ids=str)
def test_the_units_drawn_are_the_weights_with_a_floor(weights: list[float], mean_units: list[float]) -> None:
    q = learning_fractions(np.array(weights), np.array(mean_units))
    share = q * mean_units / (q @ mean_units)
    assert q.sum() == pytest.approx(1.0)
    assert share == pytest.approx([(1 - FLOOR) * p + FLOOR / 3 for p in weights])
    assert max(np.array(weights) / share) <= 1 / (1 - FLOOR)


@pytest.mark.parametrize("fractions", FRACTIONS, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 8, 13, 64])
def test_a_systematic_sample_has_exact_expectations_and_neighbouring_counts(fractions: list[float], rows: int) -> None:
    """Over u by enumeration: counts are constant between the values of u at which a stretch ends."""
    q = np.array(fractions)
    edges = np.unique(np.round([0.0, *(np.cumsum(q) * rows % 1), 1.0], 9))
    expected = np.zeros(len(q))
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        counts = systematic(q, rows, (low + high) / 2)
        assert counts.sum() == rows
        assert (counts >= np.floor(q * rows + 1e-9)).all()
        assert (counts <= np.ceil(q * rows - 1e-9)).all()
        expected += (high - low) * counts
    assert expected == pytest.approx(q * rows, abs=1e-7)


def test_counts_of_a_step_are_right_on_average_over_seeds() -> None:
    q = np.array([0.62, 0.27, 0.11])
    counts = np.array([draw.counts(rows_of(planned(draw, q, 1)[0])) for draw in seeds_of([20, 20, 20], 4000)])
    assert set(counts.sum(1)) == {4}
    error = counts.std(0) / len(counts) ** 0.5
    assert (abs(counts.mean(0) - 4 * q) < 4 * error).all()


def seeds_of(sizes: list[int], seeds: int) -> list[Draw]:
    return [draw_of(sizes, seed=seed) for seed in range(seeds)]


# ---- rows


def test_a_source_deals_each_of_its_rows_once_a_lap() -> None:
    draw = draw_of([7, 20, 50])
    rows = rows_of(planned(draw, [0.5, 0.3, 0.2], 200)[0])
    assert len(rows) == 800
    assert 0 not in rows, "a row without a target was drawn"
    for size, first in zip([7, 20, 50], [1, 8, 28], strict=True):
        of_source = rows[(rows >= first) & (rows < first + size)]
        times = np.bincount(of_source - first, minlength=size)
        assert times.max() - times.min() <= 1


def test_laps_are_shuffled_apart() -> None:
    draw = draw_of([6, 6])
    laps = {tuple(draw._lap(source, lap)) for source in (0, 1) for lap in range(40)}
    assert len(laps) > 70


def test_every_row_is_equally_likely_and_in_every_place_of_a_step() -> None:
    found = np.array([rows_of(planned(draw, [0.5, 0.5], 1)[0]) for draw in seeds_of([4, 4], 4000)])
    for place in found.T:
        times = np.bincount(place, minlength=9)[1:]
        assert (abs(times - 500) < 4.5 * (4000 * 1 / 8 * 7 / 8) ** 0.5).all()


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("rows", [1, 4])
def test_a_step_has_the_micro_batches_of_every_rank(rows: int, ranks: int) -> None:
    steps, _ = draw_of([30, 30], rows=rows, ranks=ranks).plan(np.array([0.5, 0.5]), [2, 2, 1], DrawState.start(2))
    assert [list(map(len, step.batches)) for step in steps] == [[rows] * n * ranks for n in (2, 2, 1)]


def test_the_rows_of_a_step_are_the_same_however_they_are_cut() -> None:
    one = planned(draw_of([30, 30], rows=4), [0.4, 0.6], 5)[0]
    two = planned(draw_of([30, 30], rows=2, ranks=2), [0.4, 0.6], 5)[0]
    assert [step.rows().tolist() for step in one] == [step.rows().tolist() for step in two]
    assert [step.units for step in one] == [step.units for step in two]


def test_share_and_units_are_those_of_the_fractions() -> None:
    q, m = np.array([0.5, 0.3, 0.2]), np.array([1.0, 2.0, 3.0])
    for step in planned(draw_of([50, 50, 50]), q, 3)[0]:
        assert step.units == pytest.approx(4 * q @ m)
        assert step.share_S == pytest.approx(q * m / (q @ m))


# ---- max_repeats


@pytest.mark.parametrize("max_repeats", [1, 2, 4])
@pytest.mark.parametrize("sizes", [[3, 40, 57], [40, 40, 40], [1, 1, 98]], ids=str)
def test_no_row_is_drawn_more_often_than_it_may_in_a_pass(sizes: list[int], max_repeats: int) -> None:
    draw, state, times, passes = draw_of(sizes, max_repeats=max_repeats), None, np.zeros(1 + sum(sizes)), 0
    for _ in range(120):
        before = state
        steps, state = planned(draw, [0.5, 0.3, 0.2], 1, state)
        if before is None or before.left < 4:  # less than a step's rows were left
            times, passes = np.zeros(1 + sum(sizes)), passes + 1
        times += np.bincount(rows_of(steps), minlength=len(times))
        assert times.max() <= max_repeats
    assert passes >= 4


def test_what_a_capped_source_cannot_give_the_others_do_and_all_through_the_pass() -> None:
    """10 of 100 rows that may come twice: a fifth of what is drawn, whatever is asked."""
    draw = draw_of([10, 45, 45], max_repeats=2)
    steps, _ = planned(draw, [0.8, 0.1, 0.1], 25)
    counts = np.array([draw.counts(step.rows()) for step in steps])
    assert counts[:, 0].sum() == pytest.approx(20, abs=1)
    assert counts[:13, 0].sum() == pytest.approx(10, abs=4)
    assert counts[:, 1].sum() == pytest.approx(40, abs=3)
    q = steps[0].share_S / [1.0, 2.0, 3.0]
    assert q / q.sum() == pytest.approx([0.2, 0.4, 0.4])


def test_a_source_with_no_draws_left_is_left_out() -> None:
    draw = draw_of([10, 45, 45], max_repeats=2)
    _, state = planned(draw, [1 / 3] * 3, 1)
    used_up = replace(state, position_S=np.array([state.limit_S[0], *state.position_S[1:]]))
    (step,), _ = planned(draw, [0.8, 0.1, 0.1], 1, used_up)
    assert step.share_S == pytest.approx([0, 0.4, 0.6])
    assert draw.counts(step.rows())[0] == 0


def test_a_step_may_be_larger_than_the_training_set() -> None:
    draw = draw_of([2, 3], max_repeats=1)
    steps, _ = planned(draw, [0.9, 0.1], 6, micro_batches=8)
    for step in steps:
        assert len(step.rows()) == 16
        assert np.bincount(step.rows())[1:].max() <= 4  # as often as a pass of five rows fits in, rounded up


def test_a_source_without_a_weight_is_never_drawn() -> None:
    draw = draw_of([5, 45, 45], max_repeats=2)
    rows = rows_of(planned(draw, [1.0, 0.0, 0.0], 20)[0])
    assert len(rows) == 80
    assert set(rows.tolist()) == {1, 2, 3, 4, 5}


# ---- packed


def lengths_of(sizes: list[int], longest: int = 60, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, longest, 1 + sum(sizes))


def packed_of(sizes: list[int], *, capacity: int = 100, **keys: Any) -> Draw:
    return draw_of(sizes, **{"lengths": lengths_of(sizes), "capacity": capacity, **keys})


@pytest.mark.parametrize(("rows", "ranks"), [(1, 1), (2, 1), (1, 2), (4, 2)])
class TestPacked:
    def test_bins_hold_no_more_than_their_capacity_and_are_nearly_full(self, rows: int, ranks: int) -> None:
        draw = packed_of([300, 300], rows=rows, ranks=ranks)
        steps, _ = planned(draw, [0.5, 0.5], 20)
        for step in steps:
            assert list(map(len, step.batches)) == [rows] * 2 * ranks
            filled = [draw.lengths[members].sum() for batch in step.batches for members in batch]
            assert max(filled) <= 100
            assert min(filled) > 80

    def test_each_row_that_was_drawn_is_used_once_or_waits(self, rows: int, ranks: int) -> None:
        draw = packed_of([300, 300], rows=rows, ranks=ranks)
        used, state = [], DrawState.start(2)
        for _ in range(5):
            steps, state = planned(draw, [0.3, 0.7], 4, state)
            used.append(rows_of(steps))
        dealt = [draw._dealt(i, 0, int(state.position_S[i])) for i in (0, 1)]
        everything = np.concatenate([*used, state.waiting])
        assert sorted(everything.tolist()) == sorted(np.concatenate(dealt).tolist())
        assert len(state.waiting) == len(state.waiting_q)

    def test_what_waits_is_first_in_line(self, rows: int, ranks: int) -> None:
        draw = packed_of([300, 300], rows=rows, ranks=ranks)
        _, state = planned(draw, [0.5, 0.5], 3)
        (step,), after = planned(draw, [0.5, 0.5], 1, state)
        assert step.batches[0][0][0] == state.waiting[0]
        assert len(state.waiting) >= LOOKAHEAD
        assert state.waiting[0] not in after.waiting

    def test_the_segment_expects_the_rows_that_it_uses(self, rows: int, ranks: int) -> None:
        draw = packed_of([300, 300], rows=rows, ranks=ranks)
        steps, _ = draw.plan(np.array([0.25, 0.75]), [2, 2, 1], DrawState.start(2))
        expected = len(rows_of(steps)) * (0.25 * 1.0 + 0.75 * 2.0)
        assert [step.units for step in steps] == pytest.approx([expected * part for part in (0.4, 0.4, 0.2)])
        assert all(step.share_S == pytest.approx([0.25 / 1.75, 1.5 / 1.75]) for step in steps)


def test_rows_that_waited_count_by_the_fractions_they_were_drawn_by() -> None:
    draw = packed_of([300, 300])
    _, state = planned(draw, [0.1, 0.9], 8)
    steps, after = planned(draw, [0.9, 0.1], 1, state)
    number = np.flatnonzero(np.isin(state.waiting, rows_of(steps)))
    drawn_now = len(rows_of(steps)) - len(number)
    used_q = len(number) * np.array([0.1, 0.9]) + drawn_now * np.array([0.9, 0.1])
    assert steps[0].share_S == pytest.approx(used_q * [1.0, 2.0] / (used_q @ [1.0, 2.0]))
    assert len(after.waiting) >= LOOKAHEAD


def test_a_row_longer_than_a_bin_has_one_of_its_own() -> None:
    draw = draw_of([30, 30], lengths=np.full(61, 30) + 100 * (np.arange(61) == 5), capacity=100, rows=1)
    steps, _ = planned(draw, [0.5, 0.5], 30)
    alone = [members for step in steps for (members,) in step.batches if 5 in members]
    assert alone
    assert all(members == [5] for members in alone)


# ---- a function of what it is given


CASES = {
    "padded": lambda seed=42: draw_of([10, 25, 60], max_repeats=2, seed=seed),
    "packed": lambda seed=42: packed_of([10, 25, 60], max_repeats=2, seed=seed),
}
KINDS = pytest.mark.parametrize("kind", CASES)


@KINDS
@pytest.mark.parametrize("stop", range(5))
def test_a_plan_goes_on_from_its_saved_state(kind: str, stop: int) -> None:
    def segments(draw: Draw, state: DrawState, first: int) -> list[list[Any]]:
        found = []
        for number in range(first, 5):
            steps, state = planned(draw, FRACTIONS[number % 3], 8, state)
            found.append([step.batches for step in steps])
        return found

    whole = segments(CASES[kind](), DrawState.start(3), 0)
    state = DrawState.start(3)
    for number in range(stop):
        _, state = planned(CASES[kind](), FRACTIONS[number % 3], 8, state)
    saved = json.loads(json.dumps(state.plain()))
    assert segments(CASES[kind](), DrawState.of_plain(saved), stop) == whole[stop:]


@KINDS
def test_seeds_draw_apart_and_the_global_generators_stay(kind: str) -> None:
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    plans = {str([step.batches for step in planned(CASES[kind](seed), FRACTIONS[0], 2)[0]]) for seed in range(10)}
    assert len(plans) == 10
    assert (np.random.get_state()[1] == before).all()


@KINDS
def test_a_plan_leaves_the_state_it_was_given(kind: str) -> None:
    draw = CASES[kind]()
    _, state = planned(draw, FRACTIONS[0], 8)
    saved = state.plain()
    one, two = (planned(draw, FRACTIONS[1], 8, state)[0] for _ in range(2))
    assert [step.batches for step in one] == [step.batches for step in two]
    assert state.plain() == saved
