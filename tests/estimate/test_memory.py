"""The state that is counted is the state that is there, tensor by tensor, and on every layout by arithmetic."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from scalebio_plugin.algorithm.inner import InnerParameters
from scalebio_plugin.algorithm.lisa import LayerPlan
from scalebio_plugin.engines.transfer import BUFFERS, CHUNK
from scalebio_plugin.estimate import model
from scalebio_plugin.estimate.estimator import from_model
from scalebio_plugin.estimate.layout import Kind, Layout
from scalebio_plugin.estimate.memory import Bytes, Parameter, StateBytes, Training, state_bytes
from scalebio_plugin.training.prepare_model import freeze_outside_blocks

from .tiny import LORA, VOCABULARY, bytes_of, estimated, real, rows


def one_step(module: nn.Module, optimizer: torch.optim.Optimizer, inner: InnerParameters) -> int:
    """u's and w's step. Returns the bytes of the gradients that were there at a time."""
    ids = torch.randint(VOCABULARY, (1, 16))

    def backward() -> int:
        module(input_ids=ids, labels=ids).loss.backward()
        return bytes_of(parameter.grad for parameter in module.parameters())

    with inner.in_place():
        at_a_time = backward()
        inner.step()
    at_a_time = max(at_a_time, backward())
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return at_a_time


def drawn_layers(module: nn.Module, trainable: dict[str, nn.Parameter], settings: dict[str, Any]) -> list[set[str]]:
    """One draw without LISA; else every pair of neighbours, so that u has held every layer in the end."""
    if "lisa" not in settings:
        return [set(trainable)]
    plan = LayerPlan.of(module, trainable)
    pairs = [(first, first + 1) for first in range(0, len(plan.blocks), 2)]
    return [plan.active(pair, train_others=settings["lisa"]["train_embeddings"]) for pair in pairs]


@pytest.mark.parametrize(
    ("adapter", "block"),
    [
        ({}, {}),
        (LORA, {}),
        ({}, {"lisa": {"active_layers": 2, "train_embeddings": False}}),
        ({}, {"lisa": {"active_layers": 2, "train_embeddings": True}}),
    ],
    ids=["full", "lora", "lisa", "lisa with embeddings"],
)
def test_state_counted_tensor_by_tensor_is_the_formula(adapter: dict[str, Any], block: dict[str, Any]) -> None:
    module = real("llama", adapter)
    if block and not block["lisa"]["train_embeddings"]:
        freeze_outside_blocks(module)
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    cfg = {"optimizer": "adamw_torch", "scalebio": block, **adapter}
    found = from_model(module, cfg, inner_on_cpu=False).run.state
    optimizer = torch.optim.AdamW(trainable.values(), lr=1e-4)
    inner = InnerParameters(trainable, optimizer)
    gradients = 0
    for active in drawn_layers(module, trainable, block):
        for name, parameter in trainable.items():
            parameter.requires_grad_(name in active)
        inner.forget(set(trainable) - active)
        inner.follow(active)
        gradients = one_step(module, optimizer, inner)
    counted = {
        "frozen": bytes_of(p for name, p in module.named_parameters() if name not in trainable),
        "trained": bytes_of(trainable.values()),
        "gradients": gradients,
        "optimizer": sum(bytes_of(state.values()) for state in optimizer.state.values()),
        "inner_values": bytes_of(inner.values.values()),
        "inner_optimizer": sum(bytes_of(state.values()) for state in inner.states.values()),
    }
    for name, amount in counted.items():
        assert getattr(found, name).gpu == pytest.approx(amount, rel=0.02), name


def test_from_the_config_or_from_the_model_the_state_is_the_same(tmp_path: Path) -> None:
    module = real("llama", LORA)
    cfg = {"optimizer": "adamw_torch", "bf16": False, "fp16": False, **LORA}
    one = estimated({**cfg, **rows(tmp_path)}, tmp_path)
    assert one.run.state == from_model(module, cfg).run.state
    assert (one.total, one.trained) == (sum(p.numel() for p in module.parameters()), one.active)


def test_the_model_is_left_as_it_was() -> None:
    module = real("llama", {})
    before = copy.deepcopy(module.state_dict())
    from_model(module, {"scalebio": {"lisa": {"active_layers": 2}}})
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_four_bits_are_those_of_bitsandbytes() -> None:
    from bitsandbytes.functional import quantize_4bit

    weight = torch.randn(688, 256)
    packed, constants = quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    counted = packed.nbytes + constants.absmax.nbytes + constants.state2.absmax.nbytes
    assert model.packed(weight.shape, four_bits=True) == counted
    assert counted * 8 / weight.numel() == pytest.approx(4.127, abs=1e-3)


# ---- layouts, by arithmetic

PARAMETERS = [
    Parameter("embed", (1000, 10), 20_000.0, True),
    Parameter("block.0", (100, 10), 2_000.0, True, block=0),
    Parameter("block.1", (100, 10), 2_000.0, True, block=1),
    Parameter("base", (100, 10), 2_000.0, False, block=1),
]
TRAINED = 12_000


def of(kind: Kind, training: Training | None = None, **layout: Any) -> StateBytes:
    return state_bytes(PARAMETERS, Layout(kind, **layout), training or Training())


class TestLayouts:
    def test_one_process_holds_all_of_both_sets(self) -> None:
        state = of(Kind.ONE)
        assert (state.trained.gpu, state.gradients.gpu, state.optimizer.gpu) == (48_000, 48_000, 96_000)
        assert (state.inner_values.gpu, state.inner_optimizer.gpu) == (48_000, 96_000)
        assert state.frozen.gpu == 2_000
        assert state.buckets.gpu == state.exchange.gpu == 0

    def test_the_host_alone_trains_in_the_precision_it_loaded(self) -> None:
        state = of(Kind.ONE, Training(float32=False, second_set=False))
        assert (state.trained.gpu, state.gradients.gpu, state.optimizer.gpu) == (24_000, 24_000, 48_000)
        assert state.inner_values.gpu == state.inner_optimizer.gpu == 0

    def test_ddp_adds_a_copy_of_the_gradients_and_lisa_none(self) -> None:
        assert of(Kind.DDP, world=4).buckets.gpu == 48_000
        assert of(Kind.DDP, Training(active=frozenset({"block.0"})), world=4).buckets.gpu == 0

    def test_fsdp2_shares_everything_and_gathers_units(self) -> None:
        state = of(Kind.FSDP2, Training(accumulates=False), world=4)
        whole = of(Kind.ONE)
        for part in ("frozen", "trained", "gradients", "optimizer", "inner_values", "inner_optimizer"):
            assert getattr(state, part).gpu == getattr(whole, part).gpu / 4, part
        block, root = 2 * 2_000, 20_000  # block 1: what trains and what is frozen, in two bytes
        gradients = root + 2_000 + root  # whole, and the largest unit's reduction buffer
        assert state.gathered.gpu == 2 * block + root + gradients
        assert state.exchange.gpu == 10_000

    def test_replicas_hold_all_of_it_each(self) -> None:
        whole, state = of(Kind.ONE), of(Kind.FSDP2, world=4, replicas=2)
        assert (state.trained.gpu, state.optimizer.gpu) == (whole.trained.gpu / 2, whole.optimizer.gpu / 2)

    def test_offloaded_shards_are_exchanged_in_cpu_memory(self) -> None:
        state = of(Kind.FSDP2, Training(inner_on_cpu=True), world=4, offload_weights=True)
        assert state.exchange.gpu == state.buckets.gpu == 0

    def test_fsdp2_keeps_whole_gradients_while_passes_accumulate(self) -> None:
        whole, reduced = (of(Kind.FSDP2, Training(accumulates=accumulates), world=4) for accumulates in (True, False))
        assert whole.gathered.gpu - reduced.gathered.gpu == pytest.approx(2_000)

    @pytest.mark.parametrize(
        ("stage", "trained", "gradients", "states"),
        [(1, 2 + 4 / 4, 2, 8 / 4), (2, 2 + 4 / 4, 2 / 4, 8 / 4), (3, 2 / 4 + 4 / 4, 2 / 4, 8 / 4)],
    )
    def test_zero_shares_by_stage(self, stage: int, trained: float, gradients: float, states: float) -> None:
        state = of(Kind.DEEPSPEED, world=4, stage=stage)
        assert state.trained.gpu == state.inner_values.gpu == trained * TRAINED
        assert state.gradients.gpu == gradients * TRAINED
        assert state.optimizer.gpu == state.inner_optimizer.gpu == states * TRAINED
        assert state.frozen.gpu == (500 if stage == 3 else 2_000)

    def test_offloading_moves_bytes_and_loses_none(self) -> None:
        here = of(Kind.DEEPSPEED, world=2, stage=3)
        there = of(Kind.DEEPSPEED, world=2, stage=3, offload_optimizer=True, offload_weights=True)
        for part in ("frozen", "trained", "optimizer", "inner_values", "inner_optimizer"):
            assert getattr(there, part) == Bytes(cpu=getattr(here, part).gpu), part

    def test_lisa_holds_states_for_what_is_active_and_values_in_cpu_memory(self) -> None:
        state = of(Kind.ONE, Training(active=frozenset({"block.0"}), inner_on_cpu=True))
        assert (state.frozen.gpu, state.trained.gpu) == (2_000 + 20_000, 8_000)  # the embeddings never train
        assert (state.gradients.gpu, state.optimizer.gpu, state.inner_optimizer.gpu) == (4_000, 8_000, 8_000)
        assert state.inner_values == Bytes(0.0, 8_000)  # of the blocks; the embeddings never train
        assert (state.exchange.gpu, state.buckets.gpu) == (0, BUFFERS * CHUNK)

    def test_fp16_holds_both_gradients(self) -> None:
        assert of(Kind.ONE, Training(both_gradients=True)).gradients.gpu == 2 * 48_000

    def test_the_peak_is_the_worst_moment(self) -> None:
        state = of(Kind.ONE, Training("adamw_torch"))
        assert state.step.gpu == 48_000  # torch steps all tensors at once, with their square roots beside them
        assert state.peak(0.0) == state.peak(48_000) == state.held.gpu + 48_000
        assert state.peak(50_000) == state.held.gpu + 50_000
        assert of(Kind.ONE).step.gpu == 0
