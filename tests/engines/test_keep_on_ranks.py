"""`keep: inner` on two ranks: u takes over bit for bit, in mid-run or at the end, and is measured and saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests import host
from tests.engines.test_engines import (
    FSDP2,
    LAYOUTS,
    LISA,
    ONE_LAYER,
    Layout,
    engine_inputs,
    launch,
    saved_tensors,
    shared_by_stages,
)
from tests.engines.worker import Outcome

__all__ = ["engine_inputs"]

INNER, MODEL = {"keep": "inner"}, {"keep": "model"}
HALF = {"learn": {"steps": 2}, **INNER}
SAVING = {"save_strategy": "steps", "save_steps": 2}
EVALUATED = {"test_datasets": [{"path": "data/test.jsonl", "type": "alpaca", "split": "train"}], "eval_steps": 2}
# Of each engine: two runs that learn to their end, and those that hand over in mid-run.
TO_ITS_END: dict[str, dict[str, Any]] = {
    "inner": {"scalebio": INNER, **EVALUATED, **SAVING},
    "model": {"scalebio": MODEL, **EVALUATED, **SAVING},
}
HANDED: dict[str, dict[str, Any]] = {
    "half": {"scalebio": HALF},
    "half, accumulated, bf16": {"scalebio": HALF, "gradient_accumulation_steps": 2, "bf16": True},
    "half, lora": {"scalebio": HALF, **host.LORA, "lora_dropout": 0.1},
    "half, exchanged late": {"scalebio": HALF, "exchanged_late": True},
    "half, lisa": {"scalebio": {**LISA, **HALF}, "base_model": "four_layers", "tokenizer_config": "model"},
}


def fsdp2_with(**keys: Any) -> Layout:
    return Layout("CpuFsdp2", {**FSDP2, "fsdp_config": {**FSDP2["fsdp_config"], **keys}})


ENGINES = {
    **LAYOUTS,
    "fsdp2, offloaded": fsdp2_with(offload_params=True),
    "fsdp2, sharded": fsdp2_with(state_dict_type="SHARDED_STATE_DICT", final_state_dict_type="FULL_STATE_DICT"),
}


def run_on_ranks(inputs: Path, folder: Path, layout: Layout, cases: dict[str, Any]) -> dict[str, list[Outcome]]:
    common = {"directory": str(inputs), "micro_batch_size": 2, "max_steps": 4, **ONE_LAYER, **layout.keys}
    launch({name: {**common, **keys, "output_dir": str(folder / name)} for name, keys in cases.items()}, folder)
    outcomes = {}
    for name in cases:
        outcomes[name] = [Outcome(**torch.load(folder / f"{name}.{rank}.pt", weights_only=True)) for rank in (0, 1)]
        outcomes[name][0].saved = saved_tensors(folder / name)
    return outcomes


def assert_handed_over(outcome: Outcome) -> None:
    assert len(outcome.handed) >= 6
    assert [what for what, held in outcome.handed.items() if not held] == []


def assert_saved(first: Outcome) -> None:
    assert first.model
    assert all(torch.equal(first.saved[name].float(), value) for name, value in first.model.items())


def assert_u_is_left(folder: Path, outcomes: dict[str, list[Outcome]]) -> None:
    """By a run that learned to its end, as it was in a run that keeps w."""
    for inner, model in zip(outcomes["inner"], outcomes["model"], strict=True):
        assert_handed_over(inner)
        assert not model.handed
        assert inner.model.keys() == model.inner.keys()
        assert all(torch.equal(inner.model[name], value) for name, value in model.inner.items())
        assert not any(torch.equal(model.model[name], value) for name, value in model.inner.items())
        assert inner.eval_losses[-1] == inner.eval_losses[-2]  # u in place of w, and as the model
        assert abs(inner.eval_losses[-1] - model.eval_losses[-1]) > 1e-4
        assert model.eval_losses[-1] == model.eval_losses[-2]
    assert_saved(outcomes["inner"][0])
    histories = [(folder / name / "scalebio/history.jsonl").read_bytes() for name in ("inner", "model")]
    assert histories[0] == histories[1]


@pytest.mark.host_contract
def test_u_takes_over_under_fsdp2(engine_inputs: Path, tmp_path: Path) -> None:
    cases = {**TO_ITS_END, "half": HANDED["half"]}
    outcomes = run_on_ranks(engine_inputs, tmp_path, LAYOUTS["fsdp2"], cases)
    assert_u_is_left(tmp_path, outcomes)
    for outcome in outcomes["half"]:
        assert_handed_over(outcome)
    assert_saved(outcomes["half"][0])


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_u_takes_over(engine: str, engine_inputs: Path, tmp_path: Path) -> None:
    """Under FSDP2 without what the test before has run."""
    layout = ENGINES[engine]
    to_its_end = {} if engine == "fsdp2" else TO_ITS_END
    handed = [name for name in shared_by_stages(engine, HANDED) if layout.lisa or "lisa" not in name]
    handed = [name for name in handed if engine != "fsdp2" or name != "half"]
    outcomes = run_on_ranks(engine_inputs, tmp_path, layout, {**to_its_end, **{name: HANDED[name] for name in handed}})
    if to_its_end:
        assert_u_is_left(tmp_path, outcomes)
    for name in handed:
        print(engine, name, outcomes[name][0].handed)
        for outcome in outcomes[name]:
            assert_handed_over(outcome)
        assert_saved(outcomes[name][0])


# ---- resume

RESUMED: dict[str, tuple[int, dict[str, Any]]] = {  # the last checkpoint that is there, and the block
    "before the hand-over": (2, {"learn": {"steps": 3}}),
    "as it is due": (2, {"learn": {"steps": 2}}),
    "after it": (4, {"learn": {"steps": 3}}),
    "to its end": (4, {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("engine", LAYOUTS)
def test_a_resumed_run_ends_with_the_same_bytes(engine: str, engine_inputs: Path, tmp_path: Path) -> None:
    common = {"directory": str(engine_inputs), "micro_batch_size": 2, "max_steps": 6, **ONE_LAYER}
    common |= {**LAYOUTS[engine].keys, **SAVING}
    cases, resumed_on = {}, {name: RESUMED[name] for name in shared_by_stages(engine, RESUMED)}
    for number, (name, (after, block)) in enumerate(resumed_on.items()):
        keys = {**common, "scalebio": {**block, **INNER}}
        whole, resumed = (str(tmp_path / f"{number}/{run}") for run in ("whole", "resumed"))
        cases[f"{name}, whole"] = {**keys, "output_dir": whole}
        again = {**keys, "output_dir": resumed, "auto_resume_from_checkpoints": True}
        cases[f"{name}, resumed"] = {**again, "killed": (whole, after)}
    launch(cases, tmp_path)
    for number, (name, (after, _)) in enumerate(resumed_on.items()):
        for rank in (0, 1):
            whole, again = (
                Outcome(**torch.load(tmp_path / f"{name}, {run}.{rank}.pt", weights_only=True))
                for run in ("whole", "resumed")
            )
            assert len(again.weights) == 6 - after
            assert whole.model
            assert all(torch.equal(again.model[key], value) for key, value in whole.model.items()), name
            assert bool(again.handed) == (name != "after it")
        ends = [saved_tensors(tmp_path / f"{number}/{run}") for run in ("whole", "resumed")]
        assert ends[0].keys() == ends[1].keys()
        assert all(torch.equal(ends[1][key], value) for key, value in ends[0].items())
