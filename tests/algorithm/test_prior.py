"""What a prior adds to the gaps, and what it makes of λ beside the evidence; a step towards it: test_mixture.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from scalebio_plugin.algorithm.bounds import Bounds
from scalebio_plugin.algorithm.evidence import Evidence
from scalebio_plugin.algorithm.mixture import logits_of, weights_of
from scalebio_plugin.algorithm.prior import drawn_beside_evidence, gap_of_prior, towards_prior


def of(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


PRIOR = of(0.5, 0.2, 0.3)
HELD = Bounds(of(0.0, 0.0, 0.0), of(1.0, 1.0, 0.1))  # the third, which its prior would raise
AT_BOUND = of(0.3, 0.6, 0.1)


def evidence_of(*scale: float) -> Evidence:
    """Before it weighs sources by their noise, or knows who shares."""
    return replace(Evidence.zeros(len(scale)), scale_S=of(*scale))


def test_the_gap_is_that_of_the_divergence_from_the_prior() -> None:
    """λ's gradient of strength · KL(p | prior), which of a gap g is p (g − mean)."""
    logits = of(0.3, -0.4, 1.0).requires_grad_()
    weights = weights_of(logits)
    (weights * (weights / PRIOR).log()).sum().mul(0.7).backward()
    gap = gap_of_prior(weights.detach(), PRIOR, 0.7)
    torch.testing.assert_close(weights.detach() * gap, logits.grad)


def test_a_source_whose_way_a_bound_bars_is_not_drawn_and_the_others_are_as_without_it() -> None:
    gap = gap_of_prior(AT_BOUND, PRIOR, 0.7, HELD)
    assert float(gap[2]) == 0.0
    torch.testing.assert_close(gap[:2], gap_of_prior(AT_BOUND[:2] / 0.9, PRIOR[:2] / 0.7, 0.7))


def test_while_no_gap_is_there_the_prior_moves_nothing() -> None:
    moved = of(0.1, -0.3, 0.2)
    assert drawn_beside_evidence(moved, of(0.0, 0.0, 0.0), evidence_of(1.0, 0.0, 1.0), PRIOR, 0.1) is moved


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_at_one_pace_it_is_a_step_towards_the_prior_over_the_size_of_the_gaps(scale: float) -> None:
    before, moved = logits_of(of(0.2, 0.2, 0.6)), logits_of(of(0.25, 0.2, 0.55))
    drawn = drawn_beside_evidence(moved, before, evidence_of(scale, scale, scale), PRIOR, 0.1)
    torch.testing.assert_close(weights_of(drawn), weights_of(towards_prior(moved, PRIOR, 0.1 / scale)))


def test_at_its_prior_nothing_moves_whatever_the_paces() -> None:
    drawn = drawn_beside_evidence(PRIOR.log(), PRIOR.log(), evidence_of(0.1, 1.0, 3.0), PRIOR, 0.1)
    torch.testing.assert_close(weights_of(drawn), PRIOR)


def test_a_source_that_a_bound_holds_stays_while_the_others_are_drawn_to_their_odds_in_the_prior() -> None:
    before = AT_BOUND.log()
    drawn = drawn_beside_evidence(before, before, evidence_of(1.0, 1.0, 1.0), PRIOR, 0.5, HELD)
    assert float(drawn[2] - before[2]) == pytest.approx(float((drawn - before)[:2].mean()))
    odds = [float(each[0] - each[1]) for each in (before, drawn, PRIOR.log())]
    assert odds[1] == pytest.approx(odds[0] + (odds[2] - odds[0]) / 3)  # a step of 0.5: a third of the way
