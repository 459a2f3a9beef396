"""Nested plain values and tensors in one file of the safetensors format: reading it executes nothing that it says.

The tensors are numbered. What they are part of is JSON in the file's metadata, in which an object with one key stands
for what JSON lacks:

    {"dict": [[key, value], ...]}   {"tuple": [...]}   {"size": [...]}   {"dtype": "bfloat16"}
    {"tensor": "3"}                 with the sequence of its dimensions in memory, if that is another: "order"
    {"wrapper": class, ...}         a tensor made of tensors, quantised ones say; of classes that torch allows alone
    {"object": class}               anything else: it is named, not saved
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.serialization import get_safe_globals
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..report.files import StrPath, replaced

_KEY = "scalebio"
_HELD = (type(None), bool, int, float, str, np.generic, torch.dtype, Tensor)


def write_state(path: StrPath, value: Any) -> None:
    """The old file or the new one is there, whole, whatever happens meanwhile."""
    tensors: dict[str, Tensor] = {}
    structure = json.dumps(_Writer(tensors).plain(value))
    with replaced(path) as temporary:
        save_file(tensors, temporary, {_KEY: structure})


def read_state(path: StrPath) -> Any:
    """What `write_state` was given, on the CPU.

    Raises:
        ValueError: It held an object that no file of this kind holds, or a tensor of a class that is unknown here.
    """
    with safe_open(path, "pt") as file:
        return _value_of(json.loads(file.metadata()[_KEY]), lambda name: file.get_tensor(name).clone())


def lost_in_a_file(value: Any, at: str = "") -> Iterator[str]:
    """Where in a value, and of which class, are objects that `write_state` names and does not save."""
    if isinstance(value, (dict, list, tuple)):
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            yield from lost_in_a_file(entry, f"{at}[{key!r}]")
    elif not isinstance(value, _HELD):
        yield f"{at}, a {_name_of(type(value))}"


class _Writer:
    """Collects the tensors of a value; none shares memory with another, which the format refuses."""

    def __init__(self, tensors: dict[str, Tensor]):
        self.tensors = tensors
        self.seen: set[int] = set()

    def plain(self, value: Any) -> Any:
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, np.generic):
            return self.plain(value.item())
        if isinstance(value, Tensor):
            return self._wrapper(value) if is_traceable_wrapper_subclass(value) else self._tensor(value)
        if isinstance(value, dict):
            return {"dict": [[self.plain(key), self.plain(entry)] for key, entry in value.items()]}
        if isinstance(value, (list, tuple)):
            entries = [self.plain(entry) for entry in value]
            kind = "size" if isinstance(value, torch.Size) else "tuple" if isinstance(value, tuple) else None
            return entries if kind is None else {kind: entries}
        if isinstance(value, torch.dtype):
            return {"dtype": str(value).removeprefix("torch.")}
        return {"object": _name_of(type(value))}

    def _tensor(self, value: Tensor) -> dict[str, Any]:
        order = sorted(range(value.dim()), key=value.stride, reverse=True)
        dense = value.detach().cpu().permute(order).contiguous()
        memory = dense.untyped_storage().data_ptr()
        name = str(len(self.tensors))
        self.tensors[name] = dense.clone() if memory in self.seen else dense
        self.seen.add(memory)
        return {"tensor": name} if order == sorted(order) else {"tensor": name, "order": order}

    def _wrapper(self, value: Any) -> dict[str, Any]:
        parts, context = value.__tensor_flatten__()
        return {
            "wrapper": _name_of(type(value)),
            "parts": {part: self.plain(getattr(value, part)) for part in parts},
            "context": self.plain(context),
            "size": list(value.size()),
            "stride": list(value.stride()),
        }


def _value_of(plain: Any, tensor: Callable[[str], Tensor]) -> Any:
    if isinstance(plain, list):
        return [_value_of(entry, tensor) for entry in plain]
    if not isinstance(plain, dict):
        return plain
    kind, content = next(iter(plain.items()))
    return _READ[kind](plain, content, tensor)


def _read_tensor(plain: dict[str, Any], name: str, tensor: Callable[[str], Tensor]) -> Tensor:
    order = plain.get("order")
    return tensor(name) if order is None else tensor(name).permute(sorted(range(len(order)), key=order.__getitem__))


def _read_wrapper(plain: dict[str, Any], name: str, tensor: Callable[[str], Tensor]) -> Any:
    allowed: dict[str, Any] = {_name_of(known): known for known in get_safe_globals() if isinstance(known, type)}
    if name not in allowed:
        raise ValueError(
            f"scalebio: a tensor in it is a {name}, which is unknown here; install what the run had that wrote it"
        )
    parts = {part: _value_of(value, tensor) for part, value in plain["parts"].items()}
    size, stride = torch.Size(plain["size"]), tuple(plain["stride"])
    return allowed[name].__tensor_unflatten__(parts, _value_of(plain["context"], tensor), size, stride)


def _refuse_object(plain: dict[str, Any], name: str, tensor: Callable[[str], Tensor]) -> Any:
    raise ValueError(
        f"scalebio: the state of this optimizer holds a {name}, which no checkpoint restores; use another one"
    )


_READ: dict[str, Callable[[dict[str, Any], Any, Callable[[str], Tensor]], Any]] = {
    "tensor": _read_tensor,
    "wrapper": _read_wrapper,
    "object": _refuse_object,
    "dtype": lambda plain, name, tensor: getattr(torch, name),
    "size": lambda plain, entries, tensor: torch.Size(entries),
    "tuple": lambda plain, entries, tensor: tuple(_value_of(entry, tensor) for entry in entries),
    "dict": lambda plain, pairs, tensor: {_value_of(key, tensor): _value_of(value, tensor) for key, value in pairs},
}


def _name_of(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
