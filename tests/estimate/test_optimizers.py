"""Bytes of optimizer state are those that the real optimizers hold after a step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from scalebio_plugin.estimate.optimizers import is_known, state_of

from .tiny import bytes_of

SHAPES = [(64, 256), (4096,), (7,)]


def parameters() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.ones(shape)) for shape in SHAPES]


OF_FLOATS = (
    *("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop", "adafactor", "paged_adamw_32bit", "lion_32bit"),
    *("paged_lion_32bit", "rmsprop_bnb", "rmsprop_bnb_32bit", "ademamix", "paged_ademamix_32bit"),
)


@pytest.mark.parametrize("name", OF_FLOATS)
def test_after_a_step(name: str, tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(output_dir=str(tmp_path), optim=name, use_cpu=True)
    kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
    with FakeTensorMode():
        optimizer = kind(parameters(), **options)
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        for parameter in optimizer.param_groups[0]["params"]:
            of_tensors = [value for value in optimizer.state[parameter].values() if isinstance(value, torch.Tensor)]
            counted = bytes_of(value for value in of_tensors if value.dim() > 0)
            assert state_of(name, tuple(parameter.shape)) == counted


@pytest.mark.parametrize(("name", "kind"), [("adamw_bnb_8bit", "AdamW8bit"), ("lion_8bit", "Lion8bit")])
def test_eight_bits(name: str, kind: str) -> None:
    import bitsandbytes

    optimizer = getattr(bitsandbytes.optim, kind)(parameters(), lr=1e-3)
    for index, parameter in enumerate(optimizer.param_groups[0]["params"]):
        optimizer.init_state(optimizer.param_groups[0], parameter, 0, index)
    states = optimizer.state.values()
    counted = sum(bytes_of(of for key, of in state.items() if not key.startswith("qmap")) for state in states)
    assert sum(state_of(name, shape) for shape in SHAPES) == counted


def test_an_unknown_one_is_counted_as_adamw() -> None:
    assert not is_known("tomorrow")
    assert state_of("tomorrow", (3, 5)) == 8 * 15
    assert state_of("sgd", (3, 5), momentum=True) == 4 * 15


def test_the_state_of_embeddings_stays_in_float32_with_bitsandbytes() -> None:
    assert state_of("adamw_bnb_8bit", (100, 100), embedding=True) == 8 * 10_000
    assert state_of("adamw_torch_8bit", (100, 100), embedding=True) < 2.1 * 10_000


def test_muon_keeps_one_state_for_the_matrices_of_blocks_alone() -> None:
    assert state_of("muon", (3, 5)) == 4 * 15
    assert state_of("muon", (3, 5), in_block=False) == 8 * 15
