"""LISA's layers in a run."""

from __future__ import annotations

import pytest

from scalebio_plugin.algorithm.lisa import LayerPlan
from scalebio_plugin.config.block import LisaArgs
from scalebio_plugin.hooks.manager import build_manager
from scalebio_plugin.training.layer_sampling import LayerSampling

PLAN = LayerPlan((("0.w",), ("1.w",), ("2.w",)), ("head",))


def sampling(plan: LayerPlan = PLAN, active: int = 2) -> LayerSampling:
    settings = LisaArgs(active_layers=active, interval=5)
    return LayerSampling(settings, plan, build_manager(), seed=0, model_name="Toy")


def test_more_layers_than_the_model_has_are_refused() -> None:
    with pytest.raises(ValueError, match=r"at most 3 \(the layers of Toy\), got 4; lower it"):
        sampling(active=4)


def test_where_nothing_inside_the_blocks_trains_there_is_nothing_to_draw() -> None:
    with pytest.raises(ValueError, match="no parameter inside the transformer blocks trains"):
        sampling(LayerPlan(((), (), ()), ("head",)))


def test_what_a_block_has_trained_adds_up_to_the_active_layers_of_every_step() -> None:
    drawn = sampling()
    counts = [0, 0, 0]
    for step in range(13):
        names = drawn.active_names(step)
        assert len(drawn.layers) == 2
        for layer in drawn.layers:
            counts[layer] += 1
            assert f"{layer}.w" in names
    assert drawn.steps_trained(13) == counts
    assert sum(counts) == 2 * 13
