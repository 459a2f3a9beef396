"""How long the steps of a run take."""

from __future__ import annotations

import pytest

from scalebio_plugin.report.cost import Cost, PhaseCost
from scalebio_plugin.training.pace import Pace
from scalebio_plugin.training.phase import Phase


def test_a_step_counts_from_its_batches_to_its_end() -> None:
    ticks = iter([0.0, 2.0, 100.0, 104.0, 200.0, 201.0])  # what lies between steps is logs and checkpoints
    pace = Pace(lambda: next(ticks))
    assert pace.seconds_for(10) is None
    for phase in (Phase.LEARN, Phase.LEARN, Phase.AFTER):
        pace.begin(phase)
        pace.end()
    assert pace.steps == {Phase.WARMUP: 0, Phase.LEARN: 2, Phase.AFTER: 1}
    assert pace.seconds == {Phase.WARMUP: 0.0, Phase.LEARN: 6.0, Phase.AFTER: 1.0}
    assert pace.seconds_for(10) == pytest.approx(30.0)


def test_a_step_that_was_not_begun_does_not_count() -> None:
    pace = Pace(lambda: 1.0)
    pace.end()
    assert pace.seconds_for(1) is None


def test_the_cost_goes_on_from_what_an_earlier_process_spent() -> None:
    ticks = iter([0.0, 2.0])
    pace = Pace(lambda: next(ticks))
    assert pace.cost == Cost()
    pace.before = Cost({"warmup": PhaseCost(3, 3.0), "learn": PhaseCost(10, 30.0)}, 5 * 2**30)
    pace.begin(Phase.LEARN)
    pace.end()
    assert pace.cost == Cost({"warmup": PhaseCost(3, 3.0), "learn": PhaseCost(11, 32.0)}, 5 * 2**30)
    pace.peak_bytes = 6 * 2**30
    assert pace.cost.peak_bytes == 6 * 2**30
    assert pace.seconds_for(1) == pytest.approx(2.0), "of this process, whose machine may be another"
