"""Activations and logits of a pass: the model's own forward and backward, run on tensors that have no memory.

torch's `FakeTensorMode` runs the real code of the model (checkpointing, autocast and autograd are torch's own) and
computes shapes only; a dispatch mode sees every storage come and go. So no formula per architecture is needed, and what
is counted is the peak: the saved tensors, a checkpointed block's recomputation, float32 logits with their gradients,
autocast's copies of weights. Not counted: parameters, their gradients (held from one micro-batch to the next), and what
kernels and libraries use inside.

Fake tensors stand on the CPU, whose operators differ from a GPU's in three ways that are made good in `_as_on_gpu`:
attention without a matrix of scores, dropout masks of one byte, layer norms that autocast takes to float32.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from ..algorithm.bilevel import Targets, targets_of, token_losses, weighted_loss


@dataclass(frozen=True)
class Pass:
    """What a pass (forward and backward) of one micro-batch is made of.

    Attributes:
        batch: Sequences. length: Tokens of each.
        autocast: Precision that autocast computes in; None: none.
        checkpointing: Blocks keep their inputs alone and are run again in the backward.
        plain_loss: The host's loss in place of the bilevel step's.
    """

    batch: int
    length: int
    autocast: torch.dtype | None = torch.bfloat16
    checkpointing: bool = False
    plain_loss: bool = False


@dataclass(frozen=True)
class PassBytes:
    """Bytes at the peak of a pass, `logits` those with a vocabulary's width. `kept`: between forward and backward.

    `rough`: a rule of thumb, since the model's code does not run without data.
    """

    activations: float
    logits: float
    kept: float = 0.0
    rough: bool = False

    @property
    def total(self) -> float:
        return self.activations + self.logits


def measure(
    model: nn.Module,
    one: Pass,
    vocabulary: int,
    dtype_of: Callable[[nn.Parameter], torch.dtype],
    *,
    as_gpu: bool = True,
) -> PassBytes:
    """Peak bytes of one pass of `model` (on the meta device; what trains by `requires_grad`). Uses the model up.

    Args:
        dtype_of: Precision in which a parameter stands in the module.
        as_gpu: With a GPU's attention, dropout and autocast; False: with the CPU's, to compare with a run there.
    """
    with FakeTensorMode() as fake:
        _without_memory(model, dtype_of, fake)
        if one.checkpointing:
            model.gradient_checkpointing_enable()  # type: ignore[operator]
            model.enable_input_require_grads()  # type: ignore[operator]
        return watch(model.train(), one, vocabulary, as_gpu=as_gpu)


def watch(model: nn.Module, one: Pass, vocabulary: int, *, as_gpu: bool = False) -> PassBytes:
    """Run one pass and watch its storages; the model may be real or fake, and must hold gradients already."""
    live = _Live(one.batch * one.length, vocabulary)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        live.ignore(parameter, parameter.grad)
    for buffer in model.buffers():
        live.ignore(buffer)
    ids = torch.zeros(one.batch, one.length, dtype=torch.long)
    source, sequence = torch.zeros_like(ids), torch.arange(one.batch)[:, None].expand(one.batch, one.length)
    targets = targets_of(ids, source, sequence, per_sequence=False)
    with live, _as_on_gpu(one.autocast) if as_gpu else contextlib.nullcontext():
        loss = _loss(model, one, ids, targets)
        kept = live.now
        loss.backward()  # type: ignore[no-untyped-call]
    return PassBytes(live.peak - live.peak_logits, live.peak_logits, kept)


def rough(one: Pass, hidden: int, layers: int, vocabulary: int) -> PassBytes:
    """By rule of thumb: 17 hidden states a block (Korthikanti et al., arXiv 2205.05198), one where checkpointed.

    Logits: float32 probabilities and two gradients of them, as cross entropy's backward holds.
    """
    element = 4 if one.autocast is None else 2
    state = one.batch * one.length * hidden * element
    kept = layers + 17 if one.checkpointing else 17 * layers
    return PassBytes(state * kept, one.batch * one.length * vocabulary * 12.0, rough=True)


def _loss(model: nn.Module, one: Pass, ids: Tensor, targets: Targets) -> Tensor:
    """As in the host: autocast around the forward alone, its outputs as float32, the loss outside."""
    with _autocast(one.autocast):
        logits = model(input_ids=ids, use_cache=False).logits
    logits = logits.float()
    if one.plain_loss:
        shifted = nn.functional.pad(ids, (0, 1), value=-100)[:, 1:]
        return nn.functional.cross_entropy(logits.flatten(0, 1), shifted.flatten())
    losses = token_losses(logits, targets.labels)
    del logits
    one_source = torch.ones(1, dtype=torch.float64)
    return weighted_loss(losses, targets, one_source, targets.units.sum())


def _autocast(dtype: torch.dtype | None) -> contextlib.AbstractContextManager[Any]:
    """bf16 stands for fp16, which has the same size."""
    return contextlib.nullcontext() if dtype is None else torch.autocast("cpu", torch.bfloat16)


def _without_memory(model: nn.Module, dtype_of: Callable[[nn.Parameter], torch.dtype], fake: FakeTensorMode) -> None:
    """Parameters and buffers become fake tensors on the CPU; tied ones stay tied."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            if parameter not in made:
                empty = torch.empty(parameter.shape, dtype=dtype_of(parameter))
                made[parameter] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
            module._parameters[name] = made[parameter]
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the storages that exist, and at their peak; `width`: the vocabulary, by which logits are told."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tokens, self.width = tokens, width
        self.sizes: dict[int, tuple[int, bool]] = {}  # by the storage's address: bytes, has the width of logits
        self.ignored: set[int] = set()
        self.now = self.logits = self.peak = self.peak_logits = 0

    def ignore(self, *tensors: Tensor | None) -> None:
        self.ignored |= {tensor.untyped_storage()._cdata for tensor in tensors if tensor is not None}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._came(tensor)
        return out

    def _came(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.sizes or key in self.ignored:
            return
        wide = tensor.dim() > 1 and tensor.shape[-1] == self.width and tensor.numel() == self.tokens * self.width
        self.sizes[key] = storage.nbytes(), wide
        self.now += storage.nbytes()
        self.logits += storage.nbytes() * wide
        if self.now > self.peak:
            self.peak, self.peak_logits = self.now, self.logits
        weakref.finalize(storage, self._went, key)

    def _went(self, key: int) -> None:
        size, wide = self.sizes.pop(key)
        self.now -= size
        self.logits -= size * wide


class _Attention(torch.autograd.Function):
    """Shapes of a fused attention: it saves queries, keys, values, its output and one float32 a row and head."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch, heads, length, size = query.shape
        out = query.new_empty(batch, length, heads, size).transpose(1, 2)  # as the kernels lay it out
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, _, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


@contextlib.contextmanager
def _as_on_gpu(autocast: torch.dtype | None) -> Iterator[None]:
    """Attention, dropout and norms as CUDA has them. Replaced in torch's module: a mode is out of force in backward."""
    place = nn.functional
    before = place.scaled_dot_product_attention, place.dropout, place.layer_norm

    def attention(*args: Any, **kwargs: Any) -> Any:
        parts = (*args, *(kwargs[name] for name in ("query", "key", "value") if name in kwargs))[:3]
        halves = (part if autocast is None else part.to(torch.bfloat16) for part in parts)
        return _Attention.apply(*halves)  # type: ignore[no-untyped-call]

    def layer_norm(*args: Any, **kwargs: Any) -> Any:
        if autocast is not None:
            args, kwargs = tree_map(lambda x: x.float() if isinstance(x, Tensor) else x, (args, kwargs))
        return before[2](*args, **kwargs)

    place.scaled_dot_product_attention = attention
    place.dropout, place.layer_norm = _dropout, layer_norm
    try:
        yield
    finally:
        place.scaled_dot_product_attention, place.dropout, place.layer_norm = before


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if not training or p == 0.0:
        return input
    dropped: Tensor = torch.native_dropout(input, p, True)[0]
    return dropped
