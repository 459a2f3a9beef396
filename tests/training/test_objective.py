"""Which validation set counts how much."""

from __future__ import annotations

import pytest
import torch

from scalebio_plugin.training.objective import RATE, Objective, weighted_mean

HALVES = torch.tensor([0.5, 0.5])


def test_the_worst_set_gains_by_what_it_is_worse_than_the_others() -> None:
    worst = Objective(["a", "b"], HALVES, worst=True)
    worst.observe([3.0, 1.0])
    assert float(worst.weights_V[0] / worst.weights_V[1]) == pytest.approx(float(torch.tensor(2 * RATE).exp()))
    factor = worst.factor_V()
    assert factor is not None
    torch.testing.assert_close(factor, 2 * worst.weights_V)


def test_a_set_that_a_step_has_not_seen_stays_where_the_others_are_on_average() -> None:
    worst = Objective(["a", "b", "c"], torch.tensor([0.2, 0.3, 0.5]), worst=True)
    worst.observe([None, 2.0, None])
    torch.testing.assert_close(worst.weights_V, worst.first_V)
    worst.observe([None, None, None])
    torch.testing.assert_close(worst.weights_V, worst.first_V)


@pytest.mark.parametrize("worst", [True, False])
def test_it_goes_on_from_what_was_saved(worst: bool) -> None:
    first, second = Objective(["a", "b"], HALVES, worst=worst), Objective(["a", "b"], HALVES, worst=worst)
    first.observe([3.0, 1.0])
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.weights_V, second.weights_V)
    assert torch.equal(first.weights_V, HALVES.double()) is not worst


def test_other_validation_sets_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"\['a', 'b'\].*\['a', 'c'\].*start a new output_dir"):
        Objective(["a", "c"], HALVES, worst=True).load_state_dict(
            Objective(["a", "b"], HALVES, worst=True).state_dict()
        )


def test_the_loss_of_several_sets_is_that_of_those_a_batch_holds() -> None:
    weights_V = torch.tensor([0.5, 0.3, 0.2])
    assert weighted_mean([2.0, 4.0, 6.0], weights_V) == pytest.approx(3.4)
    assert weighted_mean([2.0, None, 6.0], weights_V) == pytest.approx((0.5 * 2.0 + 0.2 * 6.0) / 0.7)
    assert weighted_mean([None, None, 6.0], weights_V) == pytest.approx(6.0)
