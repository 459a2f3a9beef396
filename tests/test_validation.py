"""The validation batches: laps that leave no row out, as a function of seed and step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scalebio_plugin.validation import ValidationStream, coefficients


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
def test_every_lap_shows_every_row_once(rows, batch_size):
    stream = stream_of(rows, batch_size)
    steps = -(-3 * rows // batch_size)
    shown = np.concatenate([stream.indices(step) for step in range(steps)])
    for lap in range(3):
        assert sorted(shown[lap * rows : (lap + 1) * rows].tolist()) == list(range(rows))


@pytest.mark.parametrize(("rows", "batch_size"), SHAPES)
def test_every_batch_is_full(rows, batch_size):
    assert all(len(stream_of(rows, batch_size).indices(step)) == batch_size for step in range(20))


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


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 6, 100])
def test_chunks_are_the_batch_in_order(chunk_size):
    stream = stream_of(20, 6, chunk_size)
    chunks = [batch["rows"] for batch in stream.batches(3)]
    assert [row for chunk in chunks for row in chunk] == stream.indices(3).tolist()
    assert all(len(chunk) == min(chunk_size, 6) for chunk in chunks)


def test_a_last_chunk_may_be_smaller():
    assert [len(batch["rows"]) for batch in stream_of(20, 5, 2).batches(0)] == [2, 2, 1]


# ---- the weights of several validation datasets


def test_coefficients_are_weight_over_share():
    found = coefficients(np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.25, 0.5]))
    assert found.dtype == torch.float64
    assert found.tolist() == [2.0, 1.0, 0.5]


@pytest.mark.parametrize("tokens", [[3, 7], [1, 1, 1], [10, 20, 40], [7]])
def test_coefficients_are_exactly_one_at_the_shares(tokens):
    shares = np.array(tokens) / np.sum(tokens)
    assert coefficients(shares, shares.copy()).tolist() == [1.0] * len(tokens)
