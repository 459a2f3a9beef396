"""What is counted without memory is what a real pass takes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from scalebio_plugin.algorithm.pieces import Pieces
from scalebio_plugin.estimate import model
from scalebio_plugin.estimate.passes import Live, Pass, as_on_gpu, batch_of, give_shapes, loss_of, measure

from .tiny import LORA, VOCABULARY, config_of, lora, on_meta, real


def float32(parameter: nn.Parameter) -> torch.dtype:
    return torch.float32


def spent(module: nn.Module, one: Pass) -> int:
    """Peak of what torch's allocator gave in a pass, by its profiler; parameters and gradients were there before."""
    from torch.profiler import ProfilerActivity, profile

    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    batch = batch_of(one)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        loss_of(module, one, *batch).backward()
    now = peak = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


@pytest.mark.parametrize(  # every two of these meet
    ("adapter", "checkpointing", "half"),
    [
        pytest.param(False, False, False, marks=pytest.mark.slow),
        (False, True, True),
        (True, False, True),
        pytest.param(True, True, False, marks=pytest.mark.slow),
    ],
    ids=["full", "full, checkpointing, bf16", "lora, bf16", "lora, checkpointing"],
)
@pytest.mark.parametrize(
    "kind",
    ["llama", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("gpt2", "gpt_neox", "gemma2"))],
)
def test_a_pass_takes_what_was_counted_without_memory(
    kind: str, adapter: bool, checkpointing: bool, half: bool
) -> None:
    cfg = lora(kind) if adapter else {}
    one = Pass(4, 256, torch.bfloat16 if half else None, checkpointing)
    base = torch.bfloat16 if half else torch.float32
    counted = measure(
        on_meta(kind, cfg), one, VOCABULARY, lambda parameter: torch.float32 if parameter.requires_grad else base
    )
    module = real(kind, cfg).train()
    for parameter in module.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(base)
    if checkpointing:
        module.gradient_checkpointing_enable()
        module.enable_input_require_grads()
    assert counted.total == pytest.approx(spent(module, one), rel=0.15)


@pytest.mark.parametrize("adapter", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["full", "lora"])
def test_a_pass_in_pieces_takes_what_was_counted_and_less(adapter: bool) -> None:
    cfg, vocabulary = LORA if adapter else {}, VOCABULARY
    whole, cut = (Pass(4, 256, None, pieces=pieces) for pieces in (None, Pieces(100)))
    counted = measure(on_meta("llama", cfg), cut, vocabulary, float32)
    assert counted.logits < measure(on_meta("llama", cfg), whole, vocabulary, float32).logits / 9
    assert counted.total == pytest.approx(spent(real("llama", cfg).train(), cut), rel=0.15)


def kept_for_backward(module: nn.Module, one: Pass) -> int:
    """Bytes that are there between forward and backward, counted without memory."""
    with FakeTensorMode():
        give_shapes(module, float32)
        live, batch = Live(module.train(), one, VOCABULARY), batch_of(one)
        with live, as_on_gpu(one.autocast):
            loss = loss_of(module, one, *batch)
        assert loss.requires_grad
        return live.now


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_what_is_kept_for_backward_is_what_autograd_saves(adapter: bool) -> None:
    cfg = LORA if adapter else {}
    one = Pass(2, 128, None)
    counted, batch = kept_for_backward(on_meta("llama", cfg), one), batch_of(one)
    module = real("llama", cfg).train()
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = loss_of(module, one, *batch)
    assert loss.requires_grad
    assert counted == pytest.approx(sum(saved.values()), rel=0.15)


def test_logits_grow_with_the_vocabulary_and_activations_do_not() -> None:
    one = Pass(1, 256, None)
    small, large = (
        measure(model.build(config_of("llama", vocab_size=size, num_hidden_layers=2)), one, size, float32)
        for size in (30_000, 60_000)
    )
    assert large.logits == pytest.approx(2 * small.logits, rel=1e-6)
    assert large.logits == pytest.approx(256 * 60_000 * 12, rel=0.01)  # probabilities, and two gradients of them
    assert large.activations == pytest.approx(small.activations, rel=0.01)


def test_frozen_layers_below_lisas_keep_nothing() -> None:
    kept = []
    for layer in (0, 7):
        module = on_meta("llama", {})
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(f"layers.{layer}." in name)
        kept.append(kept_for_backward(module, Pass(2, 128, None)))
    assert kept[1] < kept[0] / 3


def test_measuring_leaves_torch_as_it_was() -> None:
    before = nn.functional.scaled_dot_product_attention, nn.functional.dropout, nn.functional.layer_norm
    measure(on_meta("llama", {}), Pass(1, 8), VOCABULARY, float32)
    assert (nn.functional.scaled_dot_product_attention, nn.functional.dropout, nn.functional.layer_norm) == before
