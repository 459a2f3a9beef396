"""QLoRA and 8-bit LoRA: both sets share one quantised base, and only the adapter is held twice.

bitsandbytes quantises and runs on the CPU too, with kernels of its own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import host
from tests.runs.test_inert import OUT_OF_PLAY, STOCK
from tests.training.test_resume import SAVING, assert_same_end, tensors

QLORA = {**host.LORA, "adapter": "qlora", "load_in_4bit": True}
BASES: dict[str, dict[str, Any]] = {
    "4-bit": QLORA,
    "4-bit, accumulated, paged 8-bit optimizer": {
        **QLORA,
        "gradient_accumulation_steps": 2,
        "optimizer": "paged_adamw_8bit",
    },
    "4-bit, bf16, checkpointed, dropout": {**QLORA, "bf16": True, "gradient_checkpointing": True, "lora_dropout": 0.1},
    "8-bit": {**host.LORA, "load_in_8bit": True},
}
QUICK = ("4-bit, bf16, checkpointed, dropout", "8-bit")
EVERY = [pytest.param(base, marks=[] if base in QUICK else [pytest.mark.slow]) for base in BASES]
LINEAR = 14  # q, k, v, o, gate, up and down, in two layers


def train(base: str, inputs: Path, output_dir: Path, **keys: Any) -> host.Run:
    host.forget_parameters()
    return host.train(
        inputs,
        output_dir=str(output_dir),
        **{**host.add_model(inputs, "wide", hidden=64, layers=2), "parameters": True, **BASES[base], **keys},
    )


def base_of(model: nn.Module) -> dict[str, Tensor]:
    """All that does not train: weights, and the scales that they were quantised with."""
    held = {name: parameter for name, parameter in model.named_parameters() if not parameter.requires_grad}
    for name, module in model.named_modules():
        if name.endswith("proj.base_layer"):
            held[f"{name} scales"] = scales_of(module)
    return held


def scales_of(module: Any) -> Tensor:
    four_bit = getattr(module.weight, "quant_state", None)
    if four_bit is not None:
        return four_bit.absmax
    return module.weight.SCB if module.state.SCB is None else module.state.SCB  # moves with the first forward pass


def bits(value: Tensor) -> Tensor:
    """Packed in fours they are stored as bfloat16, and some of those would be NaN."""
    return value.detach().contiguous().view(torch.uint8)


@dataclass(frozen=True)
class Trained:
    """A run, and the bits of all that does not train in it before its first step."""

    base: str
    run: host.Run
    before: dict[str, Tensor]


@pytest.fixture(scope="module", params=EVERY)
def trained(request: pytest.FixtureRequest, inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    before: dict[str, Tensor] = {}

    def note(trainer: Any, batch: Any) -> None:
        if not before:
            before.update((name, bits(value).clone()) for name, value in base_of(trainer.model).items())

    run = train(request.param, inputs, tmp_path_factory.mktemp("trained"), on_batch=note)
    return Trained(request.param, run, before)


class TestQuantisedBase:
    def test_it_is_shared_and_stays_the_same_bits(self, trained: Trained) -> None:
        run, before = trained.run, trained.before
        assert not torch.equal(run.weights[-1], run.weights[0])
        assert run.weights[-1].isfinite().all()
        held = base_of(run.trainer.model)
        assert sum(name.endswith("scales") for name in held) == LINEAR
        assert before.keys() == held.keys()
        assert all(torch.equal(before[name], bits(value)) for name, value in held.items())
        weight = held["base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight"]
        assert weight.numel() * weight.element_size() == 64 * 64 // (1 if trained.base == "8-bit" else 2)

    def test_only_the_adapter_is_held_twice(self, trained: Trained) -> None:
        run = trained.run
        model, inner = run.trainer.model, run.trainer.learning.inner
        adapter = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert all("lora_" in name for name in adapter)
        assert list(inner.values) == list(adapter)
        assert all(not torch.equal(inner.values[name], adapter[name]) for name in adapter)
        places = {name: value.data_ptr() for name, value in base_of(model).items()}
        with inner.in_place():
            assert {name: value.data_ptr() for name, value in base_of(model).items()} == places
            assert all(torch.equal(adapter[name], run.inner[-1][name]) for name in adapter)

    @pytest.mark.parametrize("base", EVERY)
    def test_without_a_pull_both_sets_stay_the_same_bits(self, base: str, inputs: Path, tmp_path: Path) -> None:
        run = train(base, inputs, tmp_path, scalebio={"penalty": float("inf")})
        for model, inner in zip(run.model, run.inner, strict=True):
            assert inner
            assert all(torch.equal(model[name], value) for name, value in inner.items())
        history = [json.loads(line) for line in (run.folder / "history.jsonl").read_text().splitlines()]
        assert {gap for record in history for gap in record["pull"].values()} == {0.0}

    def test_the_saved_adapter_is_w_and_loads(self, trained: Trained, inputs: Path) -> None:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        plain, folder = AutoModelForCausalLM.from_pretrained(inputs / "wide"), Path(trained.run.cfg.output_dir)
        loaded = dict(PeftModel.from_pretrained(plain, folder).named_parameters())
        assert all(torch.equal(loaded[name], value) for name, value in trained.run.model[-1].items())
        assert all("lora_" in name for name in tensors(folder))


@pytest.mark.slow
@pytest.mark.parametrize("base", [base for base in BASES if "bf16" not in base])  # which the host alone wants a GPU for
def test_w_is_the_hosts_where_the_plugin_is_out_of_play(base: str, inputs: Path, tmp_path: Path) -> None:
    if host.HOST_AVERAGES_MEANS and "gradient_accumulation_steps" in BASES[base]:
        pytest.skip("axolotl < 0.20 averages the means of micro-batches, the plugin all of their tokens")
    stock = train(base, inputs, tmp_path / "stock", **STOCK)
    run = train(base, inputs, tmp_path / "out_of_play", scalebio=OUT_OF_PLAY)
    for ours, theirs in zip(run.model, stock.model, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("base", ["4-bit", pytest.param("8-bit", marks=pytest.mark.slow)])
def test_resumed_run_ends_with_the_same_bytes(base: str, inputs: Path, tmp_path: Path) -> None:
    train(base, inputs, tmp_path / "whole", **SAVING)
    with pytest.raises(KeyboardInterrupt):
        train(base, inputs, tmp_path / "killed", stop_after=8, **SAVING)
    again = train(base, inputs, tmp_path / "killed", auto_resume_from_checkpoints=True, **SAVING)
    assert len(again.weights) == 4, "it did not go on from checkpoint-6"
    assert_same_end(tmp_path / "whole", tmp_path / "killed", 10)


def test_4_bits_train_what_their_dequantised_weights_train(inputs: Path, tmp_path: Path) -> None:
    run = train("4-bit", inputs, tmp_path / "quantised")
    dequantised = run.trainer.model.unload().dequantize().float()
    dequantised.save_pretrained(inputs / "dequantised")
    plain = train("4-bit", inputs, tmp_path / "plain", **host.LORA, load_in_4bit=False, base_model="dequantised")
    for ours, theirs in zip(run.model + run.inner, plain.model + plain.inner, strict=True):
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-5)
    for ours, theirs in zip(run.weights, plain.weights, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
