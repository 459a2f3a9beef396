"""From weights to the rows of an ordinary run: fractions of sequences, whole numbers, and the drawn rows."""

from __future__ import annotations

import copy
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from scalebio_plugin.algorithm.mixture import logits_of, weights_of
from scalebio_plugin.data.after_learning import ResampledStream
from scalebio_plugin.data.applied import _allot, resample
from scalebio_plugin.data.packing import MicroBatches
from scalebio_plugin.data.planned_stream import PlannedStream
from scalebio_plugin.data.step_plan import Draw
from scalebio_plugin.data.table import SourceTable
from scalebio_plugin.data.tags import COLUMN, SEQUENCE, SourceCollator


def table_of(tokens: list[int], sequences: list[int]) -> SourceTable:
    names = [f"s{i}" for i in range(len(tokens))]
    return SourceTable(names, np.array(tokens), np.array(sequences), digest="")


# ---- fractions


@pytest.mark.parametrize(
    ("tokens", "sequences", "weights"),
    [
        ([1000, 100], [10, 10], [0.5, 0.5]),
        ([300, 4000, 50], [30, 10, 25], [0.2, 0.5, 0.3]),
        ([7, 7, 7], [1, 7, 3], [0.1, 0.1, 0.8]),
        ([500, 500], [50, 50], [0.0, 1.0]),
        ([100, 50, 10], [10, 5, 1], [0.2, 0.3, 0.5]),  # equal lengths: the fractions are the weights
        ([1000, 100, 30], [10, 20, 30], [1000 / 1130, 100 / 1130, 30 / 1130]),  # the shares: every sequence counts one
    ],
)
def test_rows_drawn_by_the_fractions_hold_tokens_by_the_weights(tokens, sequences, weights):
    """So that a token mean over them is Σ weights_i L2_i."""
    fractions = table_of(tokens, sequences).sampling(np.array(weights))
    assert fractions.sum() == pytest.approx(1.0)
    held = fractions * np.array(tokens) / np.array(sequences)
    assert (held / held.sum()).tolist() == pytest.approx(weights)


@pytest.mark.parametrize(("unit", "expected"), [("token", [0.75, 0.25]), ("sequence", [0.2, 0.8])])
def test_shares_are_parts_of_the_units(unit, expected):
    assert table_of([300, 100], [10, 40]).shares(unit).tolist() == pytest.approx(expected)


# ---- whole numbers


ALLOTMENTS = {
    "even": ([0.5, 0.5], 10, [100, 100]),
    "not divisible": ([1 / 3, 1 / 3, 1 / 3], 10, [100, 100, 100]),
    "fractions": ([0.7, 0.2, 0.1], 7, [100, 100, 100]),
    "one is full": ([0.7, 0.2, 0.1], 100, [20, 100, 100]),
    "two are full": ([0.7, 0.2, 0.1], 100, [20, 30, 100]),
    "all are full": ([0.7, 0.2, 0.1], 100, [20, 30, 10]),
    "one has nothing": ([0.0, 0.4, 0.6], 50, [100, 100, 100]),
    "the only one is full": ([0.0, 1.0], 50, [100, 20]),
    "nearly nothing takes the rest": ([0.999999, 0.000001], 10, [5, 100]),
    "fewer rows than sources": ([0.25] * 4, 2, [10] * 4),
    "no rows": ([0.5, 0.5], 0, [10, 10]),
    "a source without rows": ([0.5, 0.5], 10, [0, 10]),
}


def exact(fractions: list[float], rows: int, most: list[int]) -> list[float]:
    """Water filling: min(most, level · fraction), with the level at which the sum is `rows`."""
    low, high = 0.0, 1e12
    for _ in range(200):
        level = (low + high) / 2
        filled = sum(min(m, level * f) for m, f in zip(most, fractions, strict=True))
        low, high = (level, high) if filled < rows else (low, level)
    return [min(m, high * f) for m, f in zip(most, fractions, strict=True)]


@pytest.mark.parametrize(("fractions", "rows", "most"), ALLOTMENTS.values(), ids=ALLOTMENTS.keys())
def test_numbers_are_whole_within_one_of_exact_and_as_many_as_there_can_be(fractions, rows, most):
    found = _allot(np.array(fractions), rows, np.array(most))
    wanted = exact(fractions, rows, most)
    assert found.sum() == min(rows, sum(m for m, f in zip(most, fractions, strict=True) if f > 0))
    assert (found >= 0).all()
    assert (found <= np.array(most)).all()
    assert (np.abs(found - np.array(wanted)) < 1 + 1e-6).all()
    assert (found[np.array(fractions) == 0] == 0).all()


@pytest.mark.parametrize("seed", range(25))
def test_numbers_of_random_cases(seed):
    random = np.random.default_rng(seed)
    sources = int(random.integers(1, 12))
    fractions = random.dirichlet(np.full(sources, 0.4))
    most, rows = random.integers(0, 200, sources), int(random.integers(0, 600))
    test_numbers_are_whole_within_one_of_exact_and_as_many_as_there_can_be(fractions.tolist(), rows, most.tolist())


# ---- rows


def source_of(*counts: int, seed: int = 0) -> np.ndarray:
    """Source of each row, shuffled."""
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))


def seen(rows: np.ndarray, source: np.ndarray) -> list[np.ndarray]:
    """For each source, how often each of its rows was drawn."""
    often = np.bincount(rows, minlength=len(source))
    return [often[source == i] for i in range(int(source.max()) + 1)]


@pytest.mark.parametrize("fractions", [[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.0, 0.5, 0.5], [0.98, 0.01, 0.01]], ids=str)
@pytest.mark.parametrize("rows", [50, 160, 333])
def test_a_source_gives_its_rows_equally_often(fractions, rows):
    source = source_of(100, 50, 10)
    for often in seen(resample(source, np.array(fractions), 40.0, 1, rows), source):
        assert often.max() - often.min() <= 1


@pytest.mark.parametrize("fractions", [[0.5, 0.3, 0.2], [0.0, 0.5, 0.5], [0.7, 0.2, 0.1]], ids=str)
def test_sources_are_drawn_by_their_fractions(fractions):
    source = source_of(100, 50, 10)
    drawn = resample(source, np.array(fractions), 100.0, 1, rows=1000)
    counts = np.bincount(source[drawn], minlength=3)
    assert len(drawn) == 1000
    assert (np.abs(counts - 1000 * np.array(fractions)) <= 1).all()


@pytest.mark.parametrize("max_repeats", [1, 2, 3, 4])
def test_no_row_is_drawn_more_often_than_max_repeats_and_the_others_give_what_a_full_source_cannot(max_repeats):
    source = source_of(100, 100, 10)
    drawn = resample(source, np.array([0.2, 0.1, 0.7]), max_repeats, 1, rows=100)
    assert np.bincount(drawn).max() <= max_repeats
    counts = np.bincount(source[drawn], minlength=3)
    assert counts.sum() == 100
    assert counts[2] == 10 * max_repeats
    assert counts[0] / counts[1] == pytest.approx(2.0, rel=0.05)


def test_fewer_rows_come_back_only_if_every_source_with_a_weight_is_full():
    source = source_of(30, 20, 10)
    drawn = resample(source, np.array([0.0, 0.5, 0.5]), 2.0, 1, rows=100)
    assert np.bincount(source[drawn], minlength=3).tolist() == [0, 40, 20]


HELD = weights_of(logits_of(torch.tensor([1.0, 0.0], dtype=torch.float64))).numpy()  # as λ has it


def test_of_a_source_that_is_held_at_weight_0_nothing_is_drawn_though_the_others_are_full():
    fractions = table_of([200 * 1000, 4000 * 20], [200, 4000]).sampling(HELD)
    source = np.repeat([0, 1], [200, 4000])
    assert fractions.tolist() == [1.0, 0.0]
    assert np.bincount(source[resample(source, fractions, 4, 0, rows=4200)], minlength=2).tolist() == [800, 0]


# 200 long rows beside 4,000 short ones: `most` of the long ones is 1, and a pass of 4,200 rows has 800 of them.
LONG, LONG_ROWS = table_of([200 * 1000, 4000 * 20], [200, 4000]), np.repeat([0, 1], [200, 4000])
HELD_BACK = "scalebio: held at max_repeats (4) to these fractions: s0 0.190"


def resampled() -> ResampledStream:
    return ResampledStream(LONG, LONG_ROWS, 4, 0, lambda rows, batch: [{}, {}], 1)


def drawn() -> PlannedStream:
    draw = Draw(LONG_ROWS, LONG.tokens / LONG.sequences, 4, 0, MicroBatches(4, 2, 1))
    return PlannedStream(draw, LONG, lambda: (0, 8, 99), lambda step: 2, lambda sampler: sampler)


@pytest.mark.parametrize(("weight", "said"), [(0.99, [HELD_BACK]), (0.5, []), (1.0, [])])
@pytest.mark.parametrize("stream", [resampled, drawn])
def test_the_draws_after_learning_say_once_which_source_is_held_at_max_repeats(stream, weight, said, caplog):
    """With all others at 0 nobody gets what it cannot give."""
    stream, weights = stream(), np.array([weight, 1 - weight])
    with caplog.at_level("INFO", logger="axolotl.scalebio"):
        if isinstance(stream, ResampledStream):
            list(islice(stream.batches(weights), 5))
        else:
            for step in range(32):
                stream.step(step, weights)
    assert [record.getMessage() for record in caplog.records if "held at" in record.getMessage()] == said


@pytest.mark.parametrize(("before", "after"), [(4, 2), (2, 4), (4, 4), (6, 4)])
def test_a_lap_goes_on_at_its_row_whatever_a_micro_batch_holds(before: int, after: int) -> None:
    """Of all ranks together: after a resume two of them may have what one had in two micro-batches."""

    def stream_of(size: int) -> ResampledStream:
        def loader_over(rows: np.ndarray, skipped: int) -> list[dict[str, Any]]:
            return [{"rows": rows[at : at + size].tolist()} for at in range(skipped * size, len(rows), size)]

        return ResampledStream(LONG, LONG_ROWS, 4, 0, loader_over, size)

    weights, first = np.array([0.5, 0.5]), stream_of(before)
    taken = [row for batch in islice(first.batches(weights), 12 // before) for row in batch["rows"]]
    again, whole = stream_of(after), stream_of(1)
    again.load_state_dict(first.state_dict(), 3)
    taken += [row for batch in islice(again.batches(weights), 24 // after) for row in batch["rows"]]
    assert taken == [row for batch in islice(whole.batches(weights), 36) for row in batch["rows"]]


def test_a_position_that_an_earlier_version_saved_counts_micro_batches() -> None:
    stream = ResampledStream(LONG, LONG_ROWS, 4, 0, lambda rows, batch: [{}], 4)
    stream.load_state_dict((2, 7), 9)
    assert (stream.lap, stream.batch) == (2, 7)


def test_at_the_row_shares_with_one_repeat_it_is_the_training_set_once():
    source = source_of(70, 20, 10)
    drawn = resample(source, np.array([0.7, 0.2, 0.1]), 1.0, 1, rows=100)
    assert sorted(drawn.tolist()) == list(range(100))


def test_a_draw_is_a_function_of_its_seed():
    source, fractions = source_of(100, 50, 10), np.array([0.2, 0.3, 0.5])
    one = resample(source, fractions, 4.0, 7, rows=160)
    assert resample(source, fractions, 4.0, 7, rows=160).tolist() == one.tolist()
    assert resample(source, fractions, 4.0, 8, rows=160).tolist() != one.tolist()


def test_sources_come_mixed():
    """No stretch of the run belongs to one source."""
    source = np.sort(source_of(500, 500))
    drawn = source[resample(source, np.array([0.5, 0.5]), 4.0, 1, rows=1000)]
    assert (drawn[:500].mean(), drawn[500:].mean()) == pytest.approx((0.5, 0.5), abs=0.1)


def test_mean_loss_over_the_drawn_tokens_is_the_weighted_loss():
    """End to end: weights -> fractions -> rows -> token mean."""
    random = np.random.default_rng(0)
    source = source_of(400, 300, 200)
    lengths = np.array([40, 10, 90])[source]
    loss = np.array([1.0, 3.0, 7.0])[source]
    tokens = np.bincount(source, lengths).astype(int)
    table = table_of(tokens.tolist(), np.bincount(source).tolist())
    weights = np.array([0.5, 0.2, 0.3])
    drawn = resample(source, table.sampling(weights), 200.0, int(random.integers(100)), rows=20_000)
    mean = (loss[drawn] * lengths[drawn]).sum() / lengths[drawn].sum()
    assert mean == pytest.approx(float(weights @ [1.0, 3.0, 7.0]), rel=1e-3)


# ---- the tags in a batch


def host_collator(side: str):
    """Pads on a side, and joins the sequences of a packed row first; knows nothing of sources."""

    def collate(features: list[Any]) -> dict[str, torch.Tensor]:
        rows = features if isinstance(features[0], list) else [[feature] for feature in features]
        assert all(COLUMN not in item for row in rows for item in row)
        lines = [[token for item in row for token in item["input_ids"]] for row in rows]
        longest = max(map(len, lines)) + 1
        padding = [[0] * (longest - len(line)) for line in lines]
        joined = [line + pad if side == "right" else pad + line for line, pad in zip(lines, padding, strict=True)]
        return {"input_ids": torch.tensor(joined)}

    return collate


def item(source: int, *tokens: int) -> dict[str, Any]:
    return {"input_ids": list(tokens), COLUMN: source}


@pytest.mark.parametrize("side", ["right", "left"])
def test_every_token_of_a_padded_batch_has_its_source_and_padding_has_none(side):
    features = [item(2, 5, 5, 5), item(0, 6), item(1, 7, 7)]
    before = copy.deepcopy(features)
    batch = SourceCollator(host_collator(side), side)(features)
    assert features == before
    for column, of_token in ((COLUMN, {5: 2, 6: 0, 7: 1, 0: -1}), (SEQUENCE, {5: 0, 6: 1, 7: 2, 0: -1})):
        assert batch[column].tolist() == [[of_token[t] for t in row] for row in batch["input_ids"].tolist()]


def test_packed_sequences_are_numbered_through_the_batch():
    features = [[item(0, 1, 1), item(0, 2, 2, 2)], [item(1, 3)], [item(2, 4, 4), item(0, 5), item(1, 6, 6)]]
    batch = SourceCollator(host_collator("right"), "right")(features)
    tokens = batch["input_ids"]
    assert (batch[SEQUENCE][tokens > 0] == tokens[tokens > 0] - 1).all()
    assert (batch[SEQUENCE][tokens == 0] == -1).all()
    expected = torch.tensor([-1, 0, 0, 1, 2, 0, 1])[tokens]
    assert torch.equal(batch[COLUMN], expected)


def test_rows_without_a_tag_pass_through():
    batch = SourceCollator(host_collator("right"), "right")([{"input_ids": [1, 2]}])
    assert list(batch) == ["input_ids"]
