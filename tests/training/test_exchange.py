"""A run that exchanges u beside its passes is the run that exchanges at once, bit for bit, whenever the copies run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from scalebio_plugin.engines import base
from tests import host
from tests.engines.simulated import simulated_transfer
from tests.training.test_resume import assert_same_end

LISA = {"lisa": {"active_layers": 1, "interval": 2}}
CASES: dict[str, dict[str, Any]] = {
    "full, accumulated, checkpointed": {"gradient_accumulation_steps": 2, "gradient_checkpointing": True},
    "lora, dropout": {**host.LORA, "lora_dropout": 0.1},
    "lisa": {"scalebio": LISA},
    "symmetric, bf16": {"scalebio": {"estimator": "symmetric", "penalty": 5.0}, "bf16": True},
}

QUICK = ("full, accumulated, checkpointed", "lisa")


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The simulated exchanges of a run."""
    made: list[Any] = []

    def transfer(here: torch.device, rest: torch.device | None) -> Any:
        made.append(simulated_transfer("late" if len(made) % 2 == 0 else "at random", chunk=4096))
        return made[-1]

    monkeypatch.setattr(base, "transfer_between", transfer)
    return made


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if case in QUICK else [pytest.mark.slow]) for case in CASES]
)
def test_it_trains_the_same_bits(case: str, inputs: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    plain = host.train(inputs, output_dir=str(tmp_path / "plain"), parameters=True, **CASES[case])
    made = request.getfixturevalue("beside")
    late = host.train(inputs, output_dir=str(tmp_path / "late"), parameters=True, **CASES[case])
    assert len(made) == 1
    assert late.trainer.learning.inner.arriving.passes_wait
    assert not torch.equal(late.weights[-1], late.weights[0])
    for one, other in zip(late.weights, plain.weights, strict=True):
        assert torch.equal(one, other)
    for ours, theirs in ((late.model, plain.model), (late.inner, plain.inner)):
        for one, other in zip(ours, theirs, strict=True):
            assert one.keys() == other.keys()
            assert all(torch.equal(one[name], other[name]) for name in other)


def test_resumed_it_ends_with_the_same_bytes(inputs: Path, tmp_path: Path, beside: list[Any]) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2}
    host.train(inputs, output_dir=str(tmp_path / "whole"), **saving)
    with pytest.raises(KeyboardInterrupt):
        host.train(inputs, output_dir=str(tmp_path / "killed"), stop_after=5, **saving)
    again = host.train(inputs, output_dir=str(tmp_path / "killed"), auto_resume_from_checkpoints=True, **saving)
    assert len(again.weights) == 2, "it did not go on from checkpoint-4"
    assert_same_end(tmp_path / "whole", tmp_path / "killed", 6)
    assert len(beside) == 3
