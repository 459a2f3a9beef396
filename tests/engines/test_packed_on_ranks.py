"""Packed runs of two ranks as people write them: the host's padding, two epochs, no `max_steps`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests import host
from tests.engines.test_engines import LAYOUTS, TOLERANCE, Layout, engine_inputs, farthest, launch
from tests.engines.worker import Outcome, run_case

__all__ = ["engine_inputs"]
pytestmark = pytest.mark.slow

PACKED: dict[str, Any] = {
    "sample_packing": True,  # and with it pad_to_sequence_len: the host's default
    "max_steps": None,
    "num_epochs": 2,
    "micro_batch_size": 2,
    "scalebio": {"validation_batch_size": 8},  # the default depends on the rows of a pass on all ranks
    "same_order": True,
    "adam_epsilon": 1e-6,  # above the rounding of gradients: else Adam scales that up, where one is as good as 0
}


def arguments_of(inputs: Path, out: Path, layout: Layout | None, sampling: str) -> dict[str, Any]:
    """The micro-batches that two ranks take at a time, one process takes one after the other."""
    engine = {"gradient_accumulation_steps": 2} if layout is None else layout.keys
    datasets = [{**entry, "split": "train[:33%]"} for entry in host.BASE["datasets"]]  # 12 steps
    block = {**PACKED["scalebio"], "sampling": sampling}
    return {
        "directory": str(inputs),
        "output_dir": str(out),
        "datasets": datasets,
        **PACKED,
        "scalebio": block,
        **engine,
    }


@pytest.fixture(scope="module")
def alone(engine_inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    found = {}
    for sampling in ("host", "mixture"):
        outcome = run_case(arguments_of(engine_inputs, tmp_path_factory.mktemp("alone"), None, sampling))
        assert outcome is not None
        found[sampling] = outcome
    return found


@pytest.mark.parametrize("engine", LAYOUTS)
def test_two_ranks_are_one_process(engine: str, engine_inputs: Path, alone: dict[str, Outcome], tmp_path: Path) -> None:
    samplings = ("host", "mixture") if engine in ("ddp", "fsdp2") else ("host",)
    of = {how: arguments_of(engine_inputs, tmp_path / how, LAYOUTS[engine], how) for how in samplings}
    launch(of, tmp_path)
    for sampling in samplings:
        ranks = [Outcome(**torch.load(tmp_path / f"{sampling}.{rank}.pt", weights_only=True)) for rank in (0, 1)]
        assert_same_as_alone(alone[sampling], *ranks, engine)


def assert_same_as_alone(one: Outcome, first: Outcome, second: Outcome, engine: str) -> None:
    assert len(first.weights) == len(one.weights) > 10
    assert all(torch.equal(a, b) for a, b in zip(first.weights, second.weights, strict=True)), "ranks disagree on λ"
    far = {
        "λ": float((torch.stack(one.weights) - torch.stack(first.weights)).abs().max()),
        "w": farthest(one.model, first.model),
        "u": farthest(one.inner, first.inner),
    }
    print(engine, len(first.weights), far)
    assert float((one.weights[-1] - one.weights[0]).abs().max()) > 1e-3, "λ did not move"
    assert all(value < TOLERANCE for value in far.values()), far
