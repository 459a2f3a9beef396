"""Every optimizer of the host steps both parameter sets: all of its state goes with the set it belongs to.

State that stayed behind would show: without a pull u and w would part, and w would not be what the host alone trains.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from scalebio_plugin.algorithm.inner import InnerParameters
from tests import host
from tests.runs.test_inert import OUT_OF_PLAY, STOCK
from tests.training.test_resume import same, tensors

GALORE = {"optim_target_modules": ["attn", "mlp"], "optim_args": "rank=4,update_proj_gap=2"}
CONSTANT = {"lr_scheduler": "constant"}
# Quantised by TorchAO and by bitsandbytes, one that factors, one that counts in its groups, one that steps matrices.
QUICK: dict[str, dict[str, Any]] = {
    "adamw_torch_8bit": {},
    "adafactor": {},
    "adamw_bnb_8bit": {},
    "schedule_free_adamw": CONSTANT,
    "muon": {},
}
SLOW: dict[str, dict[str, Any]] = {
    "adamw_torch_fused": {},  # every other run's
    "sgd": {"optim_args": "momentum=0.9"},
    "adopt_adamw": {},
    "adamw_torch": {},
    "adamw_torch_4bit": {},
    "ao_adamw_fp8": {},
    "adagrad": {},
    "rmsprop": {"optim_args": "momentum=0.9"},
    "adamc": {"weight_decay": 0.1},
    "sinkgd": {},
    **dict.fromkeys(["adamw_8bit", "ademamix", "ademamix_8bit", "lion_32bit", "rmsprop_bnb"], {}),
    **dict.fromkeys(["rmsprop_bnb_8bit", "rmsprop_bnb_32bit", "paged_adamw_8bit", "paged_lion_32bit"], {}),
    **dict.fromkeys(["paged_lion_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit"], {}),
    **dict.fromkeys(["paged_adamw_32bit", "lion_8bit"], {}),
    "schedule_free_radam": CONSTANT,
    "schedule_free_sgd": CONSTANT,
    "dion": {"dion_lr": 1e-3, "dion_momentum": 0.95, "dion_rank_fraction": 1.0},
}
NOT_WITH_THE_HOST = {  # and the package that has it; those that need CUDA are not here
    "optimi_adamw": ("optimi", {}),
    "came_pytorch": ("came_pytorch", {}),
    "galore_adamw": ("galore_torch", GALORE),
    "galore_adafactor": ("galore_torch", GALORE),
    "apollo_adamw": ("apollo_torch", GALORE),
}
KEYS = {**QUICK, **SLOW, **{name: keys for name, (_, keys) in NOT_WITH_THE_HOST.items()}}
NO_RESUME = ("galore", "apollo")  # the host cannot read its own checkpoint: it holds pickled projections


def case(name: str, quick: bool) -> Any:
    package = NOT_WITH_THE_HOST.get(name, ("torch", {}))[0]
    missing = importlib.util.find_spec(package) is None
    marks = [] if quick else [pytest.mark.slow]
    return pytest.param(name, marks=[*marks, pytest.mark.skipif(missing, reason=f"needs {package}")])


EVERY = [case(name, name in QUICK) for name in KEYS]
OF_TWO_KINDS = ("adamw_torch_8bit", "schedule_free_adamw")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Nothing compiled, as that takes far longer than the steps; nothing that bitsandbytes noted in the run before."""
    host.forget_parameters()
    with torch.compiler.set_stance("force_eager"):
        yield


def half_of(name: str) -> int:
    """Steps of half a run: what stays behind shows in the second; RAdam takes none before its sixth."""
    return 4 if name.endswith("radam") else 2


def train(name: str, inputs: Path, output_dir: Path, **keys: Any) -> host.Run:
    """Wide enough that matrices reach the 4096 elements from which optimizers quantise."""
    return host.train(
        inputs,
        output_dir=str(output_dir),
        **host.add_model(inputs, "wide", hidden=64, layers=2),
        **{
            "optimizer": name,
            "parameters": True,
            "max_steps": 2 * half_of(name),
            "micro_batch_size": 2,
            **KEYS[name],
            **keys,
        },
    )


class TestBothSets:
    @pytest.mark.parametrize("name", EVERY)
    def test_stay_the_same_bits_without_a_pull_and_w_is_the_hosts(
        self, name: str, inputs: Path, tmp_path: Path
    ) -> None:
        stock = train(name, inputs, tmp_path / "stock", **STOCK)
        assert any(not torch.equal(value, stock.model[-1][key]) for key, value in stock.model[0].items())
        if name.endswith(("8bit", "4bit", "fp8")):
            assert any(is_quantised(value) for state in states(stock) for value in state.values())
        run = train(name, inputs, tmp_path / "out_of_play", scalebio=OUT_OF_PLAY)
        for model, inner, alone in zip(run.model, run.inner, stock.model, strict=True):
            assert inner.keys() == model.keys() == alone.keys()
            assert all(torch.equal(model[key], alone[key]) for key in alone)
            assert all(torch.equal(model[key], inner[key]) for key in inner)

    @pytest.mark.parametrize("name", [case(name, name in OF_TWO_KINDS) for name in KEYS])
    def test_stay_the_same_bits_after_a_warmup(self, name: str, inputs: Path, tmp_path: Path) -> None:
        half = half_of(name)
        run = train(name, inputs, tmp_path, scalebio={**OUT_OF_PLAY, "warmup_steps": half})
        assert [bool(inner) for inner in run.inner] == [False] * half + [True] * half
        for model, inner in zip(run.model, run.inner, strict=True):
            assert all(torch.equal(model[key], inner[key]) for key in inner)


@pytest.mark.parametrize(
    "name",
    [case(name, name in OF_TWO_KINDS) for name in KEYS if not name.startswith(NO_RESUME)],
)
def test_resumed_run_ends_with_the_same_bytes(name: str, inputs: Path, tmp_path: Path) -> None:
    half = half_of(name)
    saving = {"save_strategy": "steps", "save_steps": half}
    a, b = tmp_path / "whole", tmp_path / "again"
    train(name, inputs, a, **saving)
    shutil.copytree(a / f"checkpoint-{half}", b / f"checkpoint-{half}")
    again = train(name, inputs, b, auto_resume_from_checkpoints=True, **saving)
    assert len(again.weights) == half, "it did not go on from a checkpoint"
    assert (a / "scalebio/history.jsonl").read_bytes() == (b / "scalebio/history.jsonl").read_bytes()
    assert same(tensors(a), tensors(b))
    for file in ("inner", "optimizer.pt"):
        one, other = [host.saved(folder / f"checkpoint-{2 * half}", file) for folder in (a, b)]
        assert same(dequantised(one), dequantised(other)), file


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamw_bnb_8bit", "lion_8bit", "adamw_torch_8bit", "adafactor", "adamc", "sinkgd"])
def test_layers_that_lisa_draws_stay_the_same_bits(name: str, inputs: Path, tmp_path: Path) -> None:
    lisa = {"active_layers": 1, "interval": 1, "train_embeddings": True}
    run = train(name, inputs, tmp_path, max_steps=12, scalebio={**OUT_OF_PLAY, "lisa": lisa})
    assert len(run.inner[-1]) > len(run.inner[0])
    for model, inner in zip(run.model, run.inner, strict=True):
        assert all(torch.equal(model[key], inner[key]) for key in inner)


def states(run: host.Run) -> list[dict[str, Any]]:
    return list(run.trainer.optimizer.optimizer.state.values())


def is_quantised(value: Any) -> bool:
    return hasattr(value, "dequantize") and (type(value) is not torch.Tensor or value.dtype == torch.uint8)


def dequantised(value: Any) -> Any:
    """TorchAO's tensors know no `equal`."""
    if isinstance(value, dict):
        return {key: dequantised(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [dequantised(entry) for entry in value]
    return value.dequantize() if type(value).__name__.startswith("OptimState") else value


class CountsInItsGroup(torch.optim.SGD):
    """Notes its steps in the group, in place, from the first on: say optimi's."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group.setdefault("count", torch.tensor(0)).add_(1)
        return super().step(closure)


@pytest.mark.parametrize("steps_before", [0, 3])
def test_what_a_step_first_puts_into_a_group_belongs_to_its_set(steps_before: int) -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = CountsInItsGroup([parameter], lr=0.1)
    for _ in range(steps_before):
        optimizer.step()
    inner = InnerParameters({"p": parameter}, optimizer)
    inner.follow(["p"])
    for count in range(steps_before + 1, steps_before + 4):
        with inner.in_place():
            inner.step()
            assert optimizer.param_groups[0]["count"] == count
        assert optimizer.param_groups[0].get("count", 0) == count - 1
        optimizer.step()
        assert optimizer.param_groups[0]["count"] == inner.groups[0]["count"] == count
