"""On several ranks as in one process: all that an optimizer or a quantised base keeps goes with its parameter set.

State that stayed behind would show: without a pull u and w would part. With one they do, and ranks agree on λ. One run
shows both: the first half of its steps are without a pull.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import host
from tests.engines.test_engines import FSDP2, LAYOUTS, Layout, launch
from tests.engines.worker import Outcome
from tests.runs.test_optimizers import KEYS

STEPS, CALM, A_LAUNCH = 6, 3, 8  # DeepSpeed gives back none of the address space that a run took
NO_PULL = {"penalty": float("inf")}
QLORA = {**host.LORA, "adapter": "qlora", "load_in_4bit": True}
OFFLOAD = {**FSDP2, "fsdp_config": {**FSDP2["fsdp_config"], "offload_params": True}}
ONE_LAYER, TWO_LAYERS = ({"base_model": name, "tokenizer_config": "model"} for name in ("wide", "wide_and_deep"))

Case = dict[str, Any]


def optimizers(*names: str) -> dict[str, Case]:
    return {name: {"optimizer": name, **KEYS[name]} for name in names}


# What is not here is refused there (refusals.py), needs CUDA, or a package that the host does not bring.
_ANYWHERE = ("adamw_torch_fused", "adamw_torch_8bit", "adamw_torch_4bit", "sgd", "rmsprop", "adamc", "adopt_adamw")
_BNB = ("adamw_bnb_8bit", "paged_adamw_32bit", "paged_adamw_8bit", "lion_8bit", "paged_lion_8bit", "ademamix_8bit")
_BNB = (*_BNB, "rmsprop_bnb", "rmsprop_bnb_8bit")
EACH_KIND: dict[str, dict[str, Case]] = {
    "ddp": {
        **optimizers("adamw_bnb_8bit", "muon", "adafactor"),
        "qlora": QLORA,
        "8-bit base": {**QLORA, "load_in_4bit": False, "load_in_8bit": True, "adapter": "lora"},
    },
    "fsdp2": {
        **optimizers("muon"),
        "qlora": QLORA,
        "qlora, bf16": {**QLORA, "bf16": True},
        "offloaded": OFFLOAD,
    },
}
SLOW: dict[str, dict[str, Case]] = {  # DDP steps whole tensors, as one process does
    "fsdp2": {
        **optimizers(*_ANYWHERE, "ao_adamw_fp8", "adagrad", "sinkgd", "schedule_free_adamw"),
        "8-bit base": EACH_KIND["ddp"]["8-bit base"],
        "offloaded, lora": {**OFFLOAD, **host.LORA},
        "offloaded, lisa": {**TWO_LAYERS, **OFFLOAD, "scalebio": {"lisa": {"active_layers": 1, "interval": 2}}},
    },
    "zero3": {  # ZeRO-1 and 2 step flat tensors as well
        **optimizers(*_ANYWHERE, *_BNB, "adafactor", "schedule_free_adamw", "schedule_free_sgd"),
        "qlora": QLORA,
        "qlora, paged": {**QLORA, "optimizer": "paged_adamw_8bit"},
        "8-bit base, bf16": {**EACH_KIND["ddp"]["8-bit base"], "bf16": True},
    },
}


def wide_inputs(folder: Path) -> Path:
    """With models whose matrices reach what optimizers quantise."""
    inputs = host.make_inputs(folder / "inputs")
    for keys, layers in ((ONE_LAYER, 1), (TWO_LAYERS, 2)):
        host.add_model(inputs, keys["base_model"], hidden=64, layers=layers)
    return inputs


def run(cases: dict[str, Case], layout: Layout, folder: Path, ranks: int = 2) -> dict[str, list[Outcome]]:
    """Each case, at first without a pull; the outcomes of all ranks.

    One micro-batch a step: what accumulates gradients are the engines, see test_engines.py and test_zero.py, and no
    optimizer sees how many there were.
    """
    inputs, arguments = wide_inputs(folder), {}
    for name, case in cases.items():
        keys = {"max_steps": STEPS, "micro_batch_size": 2, "calm_steps": CALM, **ONE_LAYER, **layout.keys}
        keys |= {**case, "scalebio": {**case.get("scalebio", {}), **NO_PULL}}
        arguments[name] = {"directory": str(inputs), "output_dir": str(folder / f"out{len(arguments)}"), **keys}
    todo = list(arguments)
    for start in range(0, len(todo), A_LAUNCH):
        launch({name: arguments[name] for name in todo[start : start + A_LAUNCH]}, folder, ranks)
    return {
        name: [Outcome(**torch.load(folder / f"{name}.{rank}.pt", weights_only=True)) for rank in range(ranks)]
        for name in todo
    }


def assert_two_sets(outcomes: dict[str, list[Outcome]], name: str) -> None:
    first, *others = outcomes[name]
    for rank in outcomes[name]:
        assert rank.calm == [True], "u and w parted without a pull"
        assert rank.model.keys() == rank.inner.keys()
        assert all(torch.equal(weights, rank.weights[0]) for weights in rank.weights[:CALM])
    assert len(first.weights) == STEPS
    assert all(torch.equal(a, b) for other in others for a, b in zip(first.weights, other.weights, strict=True))
    assert float((first.weights[-1] - first.weights[0]).abs().max()) > 1e-3, "λ did not move"
    assert any(not torch.equal(first.model[key], value) for key, value in first.inner.items())


@pytest.fixture(scope="module")
def each_kind(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, list[Outcome]]]:
    """All of an engine's cases, run once. (A fixture with the engine as its parameter would be made for every case.)"""

    @cache
    def outcomes_on(engine: str) -> dict[str, list[Outcome]]:
        return run(EACH_KIND[engine], LAYOUTS[engine], tmp_path_factory.mktemp(engine))

    return outcomes_on


@pytest.mark.parametrize(
    ("engine", "name"),
    [pytest.param(engine, name, marks=pytest.mark.slow) for engine, cases in EACH_KIND.items() for name in cases],
)
def test_two_sets_on_two_ranks(each_kind: Callable[[str], dict[str, list[Outcome]]], engine: str, name: str) -> None:
    outcomes = each_kind(engine)
    assert_two_sets(outcomes, name)
    held = outcomes[name][0]
    if "qlora" in name:
        assert held.measured["frozen"] == pytest.approx(held.formula["frozen"], rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("engine", SLOW)
def test_two_sets_of_every_optimizer(engine: str, tmp_path: Path) -> None:
    outcomes = run(SLOW[engine], LAYOUTS[engine], tmp_path)
    for name in SLOW[engine]:
        print(engine, name)
        assert_two_sets(outcomes, name)


@pytest.mark.slow
def test_replicas_of_shards(tmp_path: Path) -> None:
    """FSDP2 with `dp_replicate_size`: two groups of two ranks."""
    layout = Layout("CpuFsdp2", {**FSDP2, "dp_replicate_size": 2, "dp_shard_size": 2})
    outcomes = run({"replicas": {"micro_batch_size": 1}}, layout, tmp_path, ranks=4)
    assert_two_sets(outcomes, "replicas")
    for rank in outcomes["replicas"]:
        for name, counted in rank.formula.items():
            assert rank.measured[name] == pytest.approx(counted, rel=0.02, abs=64), name


SHARDED = {**FSDP2, "fsdp_config": {**FSDP2["fsdp_config"], "state_dict_type": "SHARDED_STATE_DICT"}}
RESUMED: dict[str, dict[str, Case]] = {
    "fsdp2": {
        **optimizers("muon", "sgd", "rmsprop", "adamc", "adopt_adamw"),
        "qlora": QLORA,
        "offloaded": OFFLOAD,
    },
    # What the host cannot save or restore there: the embeddings have an odd number of rows, so that ranks quantise
    # different parts of their state.
    "fsdp2, saved by rank": {
        **optimizers("adamw_torch_8bit", "adamw_torch_4bit", "ao_adamw_fp8", "schedule_free_adamw", "sinkgd"),
        **optimizers("adagrad"),
        "8-bit, in warmup": {"optimizer": "adamw_torch_8bit", "scalebio": {"warmup_steps": 4}},
        "8-bit, lisa": {
            **{**TWO_LAYERS, "optimizer": "adamw_torch_8bit"},
            "scalebio": {"lisa": {"active_layers": 1, "interval": 3}},
        },
        "4-bit, cosine, offloaded": {**OFFLOAD, "optimizer": "adamw_torch_4bit", "lr_scheduler": "cosine"},
        "4-bit, qlora, sharded": {**SHARDED, **QLORA, "optimizer": "adamw_torch_4bit"},
    },
    "zero3": {**optimizers("adamw_bnb_8bit"), "qlora": QLORA},
}


@pytest.mark.slow
@pytest.mark.parametrize("engine", RESUMED)
def test_a_resumed_run_ends_with_the_same_bits(engine: str, tmp_path: Path) -> None:
    inputs, layout = wide_inputs(tmp_path), LAYOUTS[engine.split(",")[0]]
    cases = {}
    for name, case in RESUMED[engine].items():
        keys = {
            "max_steps": 6,
            "save_strategy": "steps",
            "save_steps": 2,
            "micro_batch_size": 2,
            **ONE_LAYER,
            **layout.keys,
        }
        keys |= {**case, "directory": str(inputs)}
        one, other = (str(tmp_path / f"{name} {run}") for run in ("whole", "resumed"))
        cases[f"{name}, whole"] = {**keys, "output_dir": one}
        again = {**keys, "output_dir": other, "auto_resume_from_checkpoints": True}
        cases[f"{name}, resumed"] = {**again, "killed": (one, 4)}
    launch(cases, tmp_path)
    for name in RESUMED[engine]:
        for rank in (0, 1):
            whole, again = (
                torch.load(tmp_path / f"{name}, {run}.{rank}.pt", weights_only=True) for run in ("whole", "resumed")
            )
            assert len(again["weights"]) == 2, "it did not go on from checkpoint-4"
            assert torch.equal(whole["weights"][-1], again["weights"][-1])
            for kind in ("model", "inner"):
                assert whole[kind]
                assert all(torch.equal(value, again[kind][key]) for key, value in whole[kind].items()), (name, kind)
