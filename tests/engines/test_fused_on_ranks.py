"""Two ranks with a fused loss train what one process trains without: losses from inside the head, engine by engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests import host
from tests.engines.test_engines import LAYOUTS, ONE_LAYER, STEPS, TOLERANCE, Layout, engine_inputs, farthest, launch
from tests.engines.worker import Outcome, run_case

__all__ = ["engine_inputs"]
pytestmark = pytest.mark.slow

LORA = {**host.LORA, "learning_rate": 5e-3, "scalebio": {"penalty": 2.0}}  # as in test_engines, gaps above the noise
MODES: dict[str, dict[str, Any]] = {
    "full": {"gradient_accumulation_steps": 2, "learning_rate": 1e-3},
    "head frozen": LORA,
    "lora on the head": {
        **LORA,
        "lora_target_linear": None,
        "lora_target_modules": ["q_proj", "v_proj", "lm_head"],
        "gradient_accumulation_steps": 2,
    },
    "head saved": {**LORA, "lora_modules_to_save": ["lm_head"]},
}
FAILS_WITHOUT_US = {("fsdp2", "head saved")}  # peft 0.20 has no name for what the host saves
FUSED = {"chunked_cross_entropy": True}


def arguments_of(inputs: Path, mode: str, out: Path, layout: Layout | None) -> dict[str, Any]:
    keys: dict[str, Any] = {"adam_epsilon": 1e-6, "max_steps": STEPS, **ONE_LAYER, **MODES[mode]}
    keys["scalebio"] = {"validation_batch_size": 8, **keys.get("scalebio", {})}
    keys["micro_batch_size"] = 4 if layout is None else 2
    if layout is not None:
        keys |= {**FUSED, **layout.keys}
        keys["plugins"] = ["tests.engines.ranks.SmallPieces", *keys["plugins"]]
    return {"directory": str(inputs), "output_dir": str(out), **keys}


@pytest.fixture(scope="module")
def alone(engine_inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    found = {}
    for mode in MODES:
        outcome = run_case(arguments_of(engine_inputs, mode, tmp_path_factory.mktemp("alone"), None))
        assert outcome is not None
        found[mode] = outcome
    return found


@pytest.mark.parametrize("engine", ["ddp", "fsdp2", "zero2", "zero3"])
def test_two_ranks_are_one_process_without(
    engine: str, engine_inputs: Path, alone: dict[str, Outcome], tmp_path: Path
) -> None:
    modes = [mode for mode in MODES if (engine, mode) not in FAILS_WITHOUT_US]
    launch({mode: arguments_of(engine_inputs, mode, tmp_path / mode, LAYOUTS[engine]) for mode in modes}, tmp_path)
    for mode in modes:
        one = alone[mode]
        first, second = (Outcome(**torch.load(tmp_path / f"{mode}.{rank}.pt", weights_only=True)) for rank in (0, 1))
        assert all(torch.equal(a, b) for a, b in zip(first.weights, second.weights, strict=True)), "λ on the ranks"
        far = {
            "λ": float((torch.stack(one.weights) - torch.stack(first.weights)).abs().max()),
            "w": farthest(one.model, first.model),
            "u": farthest(one.inner, first.inner),
        }
        print(engine, mode, far)
        assert len(first.weights) == STEPS
        assert float((one.weights[-1] - one.weights[0]).abs().max()) > 1e-3, "λ did not move"
        assert all(value < TOLERANCE for value in far.values()), (mode, far)
