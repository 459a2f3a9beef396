"""The validation batches: laps that leave no row out, as a function of seed and step."""

from __future__ import annotations

from functools import partial
from itertools import islice

import numpy as np
import pytest
import torch

from scalebio_plugin.data.packing import Bins
from scalebio_plugin.data.validation import PackedValidationStream, ValidationStream, coefficients


def stream_of(rows: int, batch_size: int, chunk_size: int = 100, seed: int = 42) -> ValidationStream:
    """Rows are their own index; a collated batch lists them."""
    return ValidationStream(
        rows=list(range(rows)),
        collate=lambda features: {"rows": list(features)},
        coefficient_V=torch.ones(1, dtype=torch.float64),
        batch_size=batch_size,
        chunk_size=chunk_size,
        seed=seed,
    )


SHAPES = [(12, 4), (12, 5), (7, 7), (5, 8), (3, 10), (1, 4), (100, 1), (1, 1)]


@pytest.mark.parametrize(("rows", "batch_size"), SHAPES)
def test_every_batch_is_full_and_every_lap_shows_every_row_once(rows, batch_size):
    stream = stream_of(rows, batch_size)
    batches = [stream.indices(step) for step in range(max(20, -(-3 * rows // batch_size)))]
    assert {len(batch) for batch in batches} == {batch_size}
    shown = np.concatenate(batches)
    for lap in range(3):
        assert sorted(shown[lap * rows : (lap + 1) * rows].tolist()) == list(range(rows))


@pytest.mark.parametrize(("rows", "batch_size"), SHAPES)
def test_a_batch_is_a_function_of_seed_and_step(rows, batch_size):
    """In any order and from a new stream: a resumed run sees the batches it would have seen."""
    one, other = stream_of(rows, batch_size), stream_of(rows, batch_size)
    forwards = [one.indices(step).tolist() for step in range(10)]
    np.random.default_rng(0).random(5)
    assert [other.indices(step).tolist() for step in reversed(range(10))] == forwards[::-1]


def test_the_batch_size_cuts_the_same_stream_elsewhere():
    small, large = stream_of(12, 3), stream_of(12, 6)
    assert np.concatenate([small.indices(0), small.indices(1)]).tolist() == large.indices(0).tolist()


def test_laps_and_seeds_are_shuffled_apart():
    stream = stream_of(50, 50)
    orders = {tuple(stream.indices(step)) for step in range(20)}
    orders |= {tuple(stream_of(50, 50, seed=seed).indices(0)) for seed in range(20)}
    assert len(orders) == 40
    assert tuple(range(50)) not in orders


def test_drawing_leaves_the_global_generators_alone():
    np.random.seed(3)
    state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    stream_of(12, 4).indices(5)
    assert (np.random.get_state()[1] == state).all()
    assert torch.equal(torch.get_rng_state(), torch_state)


@pytest.mark.parametrize(
    ("chunk_size", "sizes"), [(1, [1] * 6), (2, [2, 2, 2]), (3, [3, 3]), (4, [4, 2]), (6, [6]), (100, [6])]
)
def test_chunks_are_the_batch_in_order_the_last_may_be_smaller(chunk_size, sizes):
    stream = stream_of(20, 6, chunk_size)
    chunks = [batch["rows"] for batch in stream.batches(3)]
    assert sum(chunks, []) == stream.indices(3).tolist()
    assert list(map(len, chunks)) == sizes


# ---- the weights of several validation datasets


def test_coefficients_are_weight_over_share():
    found = coefficients(np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.25, 0.5]))
    assert found.dtype == torch.float64
    assert found.tolist() == [2.0, 1.0, 0.5]


@pytest.mark.parametrize("tokens", [[3, 7], [1, 1, 1], [10, 20, 40], [7]])
def test_coefficients_are_exactly_one_at_the_shares(tokens):
    shares = np.array(tokens) / np.sum(tokens)
    assert coefficients(shares, shares.copy()).tolist() == [1.0] * len(tokens)


# ---- packed


def packed_of(
    lengths: list[int],
    *,
    bins: int | None = None,
    sequences: int | None = None,
    members: int = 50,
    seed: int = 42,
    chunk_size: int = 2,
) -> PackedValidationStream:
    """A sequence is its own index; a collated batch lists the bins."""
    return PackedValidationStream(
        rows=[{"labels": [n], "index": n} for n in range(len(lengths))],
        lengths=np.array(lengths),
        bins_of_a_step=partial(Bins, 100, members, bins),
        sequences=sequences,
        collate=lambda features: {"bins": features},
        coefficient_V=torch.ones(1, dtype=torch.float64),
        chunk_size=chunk_size,
        seed=seed,
    )


def lengths_of(rows: int, longest: int = 60, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(1, longest, rows).tolist()


@pytest.mark.parametrize("bins", [1, 2, 5])
@pytest.mark.parametrize("rows", [1, 3, 40, 500])
class TestPacked:
    def test_every_lap_shows_every_sequence_once(self, rows: int, bins: int) -> None:
        stream, shown, step = packed_of(lengths_of(rows), bins=bins), [], 0
        while len(shown) < 3 * rows:
            shown += stream.indices(step).tolist()
            step += 1
        plain = list(islice(stream._from(0), len(shown)))  # in a step, bins are filled side by side
        assert sorted(shown) == sorted(plain)
        assert sorted(plain[: 2 * rows]) == sorted(2 * list(range(rows)))

    def test_no_bin_holds_more_than_its_capacity(self, rows: int, bins: int) -> None:
        lengths = lengths_of(rows)
        stream = packed_of(lengths, bins=bins)
        for step in range(20):
            packed = stream.packed_rows(step)
            assert len(packed) <= bins
            assert all(sum(lengths[index] for index in members) <= 100 for members in packed)

    def test_a_batch_is_a_function_of_seed_and_step(self, rows: int, bins: int) -> None:
        one, other = (packed_of(lengths_of(rows), bins=bins) for _ in range(2))
        forwards = [one.packed_rows(step) for step in range(12)]
        assert [other.packed_rows(step) for step in reversed(range(12))] == forwards[::-1]

    def test_bins_are_nearly_full(self, rows: int, bins: int) -> None:
        lengths = lengths_of(rows, longest=20)
        stream = packed_of(lengths, bins=bins)
        filled = [sum(lengths[i] for members in stream.packed_rows(step) for i in members) for step in range(20)]
        assert min(filled) > 80 * bins

    @pytest.mark.parametrize("ranks", [2, 3])
    def test_ranks_share_the_bins_in_equally_many_passes(self, rows: int, bins: int, ranks: int) -> None:
        stream = packed_of(lengths_of(rows), bins=bins)
        for step in range(4):
            parts = [list(stream.batches(step, rank=rank, ranks=ranks)) for rank in range(ranks)]
            assert len({tuple(len(batch["bins"]) for batch in part) for part in parts}) == 1
            bins = [members for part in parts for batch in part for members in batch["bins"]]
            dealt = [[item["index"] for item in members] for members in bins if members[0]["labels"] != [-100]]
            assert sorted(dealt) == sorted(stream.packed_rows(step))


def test_so_many_sequences_of_a_step_take_the_bins_they_need():
    stream = packed_of(lengths_of(30), sequences=7)
    plain = stream_of(30, 7)
    for step in range(9):
        assert sorted(stream.indices(step).tolist()) == sorted(plain.indices(step).tolist())


def test_a_bin_holds_so_many_members_at_most():
    assert packed_of([1] * 10, members=3, bins=2).packed_rows(0) == [
        members.tolist() for members in np.split(stream_of(10, 6).indices(0), 2)
    ]


def test_a_sequence_longer_than_a_bin_has_one_of_its_own():
    assert sorted(map(len, packed_of([500, 10, 10], sequences=3).packed_rows(0))) == [1, 2]
