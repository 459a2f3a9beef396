"""Values in, the same values out, bit by bit and type by type; nothing of a file is executed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torchao.optim.subclass_4bit import OptimState4bit
from torchao.optim.subclass_8bit import OptimState8bit
from torchao.optim.subclass_fp8 import OptimStateFp8

from scalebio_plugin.training.state_file import lost_in_a_file, read_state, write_state

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
]


def through(value: Any, tmp_path: Path) -> Any:
    write_state(tmp_path / "state.safetensors", value)
    return read_state(tmp_path / "state.safetensors")


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3, 4)], ids=str)
def test_tensors(dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path) -> None:
    value = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    again = through(value, tmp_path)
    assert (again.dtype, again.shape, again.stride()) == (value.dtype, value.shape, value.stride())
    assert torch.equal(bits(again), bits(value))


def test_what_is_not_a_number_keeps_its_bits(tmp_path: Path) -> None:
    value = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 1e-45])
    value.view(torch.int32)[0] ^= 0x155  # a payload
    assert torch.equal(bits(through(value, tmp_path)), bits(value))


@pytest.mark.parametrize("dims", [(1, 0, 2), (2, 0, 1), (2, 1, 0)])
def test_the_sequence_of_dimensions_in_memory_stays(dims: tuple[int, ...], tmp_path: Path) -> None:
    """Sums over it have the same bits then."""
    value = torch.arange(24.0).view(2, 3, 4).permute(dims)
    again = through({"a": value}, tmp_path)["a"]
    assert again.stride() == value.stride()
    assert torch.equal(again, value)


def test_views_of_one_memory(tmp_path: Path) -> None:
    memory = torch.arange(12.0)
    again = through([memory, memory, memory[3:], memory.view(3, 4)[:, 1], memory.view(3, 4).T], tmp_path)
    assert [entry.tolist() for entry in again] == [
        *(memory.tolist(), memory.tolist(), memory[3:].tolist(), [1.0, 5.0, 9.0], memory.view(3, 4).T.tolist())
    ]


PLAIN = [
    *(None, True, False, 0, 1, -3, 2**80, 0.1, 1e-320, -0.0, math.inf, -math.inf, "", "ü\n\"'", "\x00"),
    *([], (), {}, [()], ((),), (1, [2, (3,)]), {"a": {"b": [None]}}, {1: "a", "1": "b", None: 3, (1, 2): 4, 1.5: 5}),
    *({"dict": [[1, 2]]}, {"tensor": "0"}, {"tuple": []}, [["a", 1]]),  # what looks like the notation
    *({"b": 1, "a": 2}, torch.Size([2, 3]), torch.bfloat16, [torch.float32]),
]


@pytest.mark.parametrize("value", PLAIN, ids=repr)
def test_plain_values(value: Any, tmp_path: Path) -> None:
    again = through({"it": value}, tmp_path)["it"]
    assert again == value
    assert repr(again) == repr(value)  # types, the sequence of keys, the sign of zero
    assert type(again) is type(value)


def test_nan(tmp_path: Path) -> None:
    assert math.isnan(through({"it": math.nan}, tmp_path)["it"])


@pytest.mark.parametrize("kind", [OptimState8bit, OptimState4bit, OptimStateFp8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_quantised_tensors_of_torchao(kind: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    signed = () if kind is OptimStateFp8 else (True,)
    value = kind.zeros((64, 64), *signed, 128, device="cpu", dtype=dtype)
    value.copy_(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))
    again = through({"state": {"exp_avg": value}}, tmp_path)["state"]["exp_avg"]
    assert type(again) is kind
    assert (again.dtype, again.shape) == (value.dtype, value.shape)
    names, context = value.__tensor_flatten__()
    assert repr(again.__tensor_flatten__()) == repr((names, context))
    for name in names:
        assert torch.equal(bits(getattr(again, name)), bits(getattr(value, name))), name


class Projection:
    """As GaLore keeps them in its state."""


def test_what_a_file_would_lose_is_found(tmp_path: Path) -> None:
    held = {"a": [1, None, (2.0, "x")], 3: {"t": torch.ones(2), "d": torch.float16, "n": np.float64(0.5)}}
    assert list(lost_in_a_file(held)) == []
    assert through(held["a"], tmp_path) == held["a"]
    assert through(held[3]["n"], tmp_path) == 0.5
    lost = {"rng": [1, np.zeros(2)], "by": {"p": Projection()}}
    name = f"{Projection.__module__}.Projection"
    assert list(lost_in_a_file(lost)) == ["['rng'][1], a numpy.ndarray", f"['by']['p'], a {name}"]


def test_an_object_is_named_when_it_is_read(tmp_path: Path) -> None:
    """The host's file of such an optimizer is not restored either; saving it has to go on."""
    write_state(tmp_path / "state.safetensors", {"projector": Projection()})
    with pytest.raises(ValueError, match=r"^scalebio: .*test_state_file\.Projection, which no checkpoint restores"):
        read_state(tmp_path / "state.safetensors")


def test_a_class_that_torch_does_not_allow_is_not_looked_for(tmp_path: Path) -> None:
    value = OptimStateFp8.zeros((64, 64), 128, device="cpu")
    path = tmp_path / "state.safetensors"
    write_state(path, value)
    content = path.read_bytes()
    name = b"torchao.optim.subclass_fp8.OptimStateFp8"
    assert name in content
    path.write_bytes(content.replace(name, b"os.system".ljust(len(name))))
    with pytest.raises(ValueError, match="os.system .* is unknown here"):
        read_state(path)


def test_any_program_reads_the_tensors(tmp_path: Path) -> None:
    write_state(tmp_path / "state.safetensors", {"a": torch.ones(2), "b": [torch.zeros(3)]})
    with safe_open(tmp_path / "state.safetensors", "np") as file:
        assert [len(file.get_tensor(key)) for key in ("0", "1")] == [2, 3]
        assert json.loads(file.metadata()["scalebio"])["dict"][0] == ["a", {"tensor": "0"}]


def test_a_failed_write_leaves_the_file_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.safetensors"
    write_state(path, {"a": 1})
    monkeypatch.setattr("scalebio_plugin.training.state_file.save_file", no_room)
    with pytest.raises(OSError, match="No space left"):
        write_state(path, {"a": 2})
    assert read_state(path) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.safetensors"]


def no_room(tensors: Any, path: Path, metadata: Any) -> None:
    path.write_bytes(b"half")
    raise OSError(28, "No space left on device")
