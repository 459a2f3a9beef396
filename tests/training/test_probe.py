"""When probes come, and which rows their passes take."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scalebio_plugin.algorithm.bilevel import IGNORED, Targets
from scalebio_plugin.config.block import ScaleBiOSettings
from scalebio_plugin.training.probe import part_of_group
from scalebio_plugin.training.probe_plan import ProbePlan


def plan(sets: int = 2, sources: int = 3, shared_rows: bool = False, compiled: bool = False, **block: Any) -> ProbePlan:
    settings = ScaleBiOSettings.model_validate(block)
    return ProbePlan.of(settings, 42, sources=sources, sets=sets, shared_rows=shared_rows, compiled=compiled)


class TestPlan:
    @pytest.mark.parametrize(
        ("made", "interval"),
        [
            (plan(), 25),
            (plan(sets=1), 0),
            (plan(sets=1, probe_interval=4), 4),
            (plan(probe_interval=0), 0),
            (plan(sources=100, sets=9), 25),
            (plan(shared_rows=True), 36),
            (plan(compiled=True), 36),
            (plan(sources=100, shared_rows=True), 1006),
            (plan(sources=100, shared_rows=True, probe_interval=7), 7),
        ],
    )
    def test_interval(self, made: ProbePlan, interval: int) -> None:
        assert made.interval == interval

    @pytest.mark.parametrize("sources", [2, 3, 10, 100])
    @pytest.mark.parametrize("sets", [2, 5])
    def test_by_default_probes_are_about_a_twentieth_of_the_passes(self, sources: int, sets: int) -> None:
        """A validation batch is a quarter of a training batch."""
        whole, parts = sources + sets / 4, 1.25
        assert whole / 2.25 / plan(sets, sources, shared_rows=True).interval < 0.052
        assert parts / 2.25 / plan(sets, sources).interval < 0.025

    @pytest.mark.parametrize(
        ("made", "steps", "due"),
        [
            (plan(probe_interval=3, warmup_steps=2), range(2, 20), [2, 5, 8, 11, 14, 17]),
            (plan(probe_interval=2, update_interval=4, warmup_steps=1), range(1, 40), [4, 12, 20, 28, 36]),
            (plan(probe_interval=0), range(50), []),
        ],
        ids=["from the first update on", "in the step that ends in one", "never"],
    )
    def test_steps_with_a_probe(self, made: ProbePlan, steps: range, due: list[int]) -> None:
        assert [step for step in steps if made.is_due(step)] == due

    def test_every_probe_has_a_sketch_of_its_own(self) -> None:
        made = plan()
        assert made.sketch(3) == made.sketch(3)
        assert made.sketch(3).seed != made.sketch(4).seed


class TestPart:
    TARGETS = Targets(
        labels=torch.tensor([[5, 6, IGNORED], [7, 8, 9], [IGNORED, 4, 3]]),
        units=torch.tensor([[1.0, 1.0, 0.0], [0.5, 0.5, 1.0], [0.0, 1.0, 1.0]], dtype=torch.float64),
        source=torch.tensor([[0, 0, 0], [1, 1, 2], [0, 2, 2]]),
    )

    def batch(self) -> dict[str, Any]:
        return {"input_ids": torch.arange(12).view(3, 4), "labels": torch.arange(12).view(3, 4), "note": "kept"}

    def test_the_rows_of_a_source_with_its_targets_alone(self) -> None:
        batch, targets = part_of_group(self.batch(), self.TARGETS, 2)
        assert batch["input_ids"].tolist() == [[4, 5, 6, 7], [8, 9, 10, 11]]
        assert batch["note"] == "kept"
        assert targets.labels.tolist() == [[IGNORED, IGNORED, 9], [IGNORED, 4, 3]]
        assert targets.units.tolist() == [[0.0, 0.0, 1.0], [0.0, 1.0, 1.0]]

    def test_all_rows_where_asked_for_or_where_not_all_is_made_of_rows(self) -> None:
        other = {**self.batch(), "cu_seq_lens_q": torch.tensor([0, 4, 12])[:2]}
        for batch, whole in ((self.batch(), True), (other, False)):
            part, targets = part_of_group(batch, self.TARGETS, 0, whole=whole)
            assert part["input_ids"].shape == (3, 4)
            assert targets.units.sum().item() == 2.0

    def test_of_a_source_that_is_absent_one_row_and_no_target(self) -> None:
        batch, targets = part_of_group(self.batch(), self.TARGETS, 3)
        assert batch["input_ids"].shape == (1, 4)
        assert (targets.labels == IGNORED).all()
        assert targets.units.sum().item() == 0.0
