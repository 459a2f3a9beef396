"""Activations and logits of a pass: the model's own forward and backward, run on tensors that have no memory.

torch's `FakeTensorMode` runs the real code of the model (checkpointing, autocast and autograd are torch's own) and
computes shapes only; a dispatch mode sees every storage come and go. So no formula per architecture is needed, and what
is counted is the peak: the saved tensors, a checkpointed block's recomputation, float32 logits with their gradients,
autocast's copies of weights. Not counted: parameters, their gradients (held from one micro-batch to the next), and what
kernels and libraries use inside.

Fake tensors stand on the CPU, whose operators differ from a GPU's in three ways that are made good in `as_on_gpu`:
attention without a matrix of scores, dropout masks of one byte, layer norms that autocast takes to float32.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from ..algorithm.bilevel import Targets, targets_of, token_losses, weighted_loss
from ..algorithm.pieces import Pieces, losses_of_targets


@dataclass(frozen=True)
class Pass:
    """What a pass (forward and backward) of one micro-batch is made of.

    Attributes:
        batch: Sequences. length: Tokens of each.
        autocast: Precision that autocast computes in; None: none.
        checkpointing: Blocks keep their inputs alone and are run again in the backward.
        plain_loss: The host's loss in place of the bilevel step's.
        pieces: How many positions' logits exist at a time, in place of all (`algorithm.pieces`).
    """

    batch: int
    length: int
    autocast: torch.dtype | None = torch.bfloat16
    checkpointing: bool = False
    plain_loss: bool = False
    pieces: Pieces | None = None

    @property
    def wide(self) -> set[int]:
        """Positions of a tensor of logits."""
        if self.pieces is None:
            return {self.batch * self.length}
        targets = self.batch * (self.length - 1)
        number = self.pieces.number(targets)
        return {targets // number, -(-targets // number)}


@dataclass(frozen=True)
class PassBytes:
    """Bytes at the peak of a pass; `logits`: those with a vocabulary's width."""

    activations: float
    logits: float

    @property
    def total(self) -> float:
        return self.activations + self.logits


def measure(model: nn.Module, one: Pass, vocabulary: int, dtype_of: Callable[[nn.Parameter], torch.dtype]) -> PassBytes:
    """Peak bytes of one pass of `model` (on the meta device; what trains by `requires_grad`). Uses the model up.

    Args:
        dtype_of: Precision in which a parameter stands in the module.
    """
    with FakeTensorMode():
        give_shapes(model, dtype_of)
        if one.checkpointing:
            model.gradient_checkpointing_enable()  # type: ignore[operator]
            model.enable_input_require_grads()  # type: ignore[operator]
        ids, targets = batch_of(one)
        live = Live(model.train(), one, vocabulary)
        with live, as_on_gpu(one.autocast):
            loss_of(model, one, ids, targets).backward()  # type: ignore[no-untyped-call]
    return PassBytes(live.peak - live.peak_logits, live.peak_logits)


def rule_of_thumb(one: Pass, hidden: int, layers: int, vocabulary: int) -> PassBytes:
    """Where the model's code needs real data: 17 hidden states a block (Korthikanti et al., arXiv 2205.05198).

    One, where checkpointed. Logits: float32 probabilities and two gradients of them, as cross entropy's backward holds.
    """
    element = 4 if one.autocast is None else 2
    state = one.batch * one.length * hidden * element
    kept = layers + 17 if one.checkpointing else 17 * layers
    return PassBytes(state * kept, max(one.wide) * vocabulary * 12.0)


def batch_of(one: Pass) -> tuple[Tensor, Targets]:
    """Tokens, (batch, length), of one source."""
    ids = torch.zeros(one.batch, one.length, dtype=torch.long)
    sequence = torch.arange(one.batch)[:, None].expand_as(ids)
    return ids, targets_of(ids, torch.zeros_like(ids), sequence, per_sequence=False)


def loss_of(model: nn.Module, one: Pass, ids: Tensor, targets: Targets) -> Tensor:
    """As in the host: autocast (bf16 stands for fp16) around the forward alone, its outputs as float32."""
    if one.pieces is not None:
        return weighted(losses_in_head(model, one, ids, targets), targets)
    with torch.autocast("cpu", torch.bfloat16, enabled=one.autocast is not None):
        logits = model(input_ids=ids, use_cache=False).logits
    logits = logits.float()
    if one.plain_loss:
        shifted = nn.functional.pad(ids, (0, 1), value=-100)[:, 1:]
        return nn.functional.cross_entropy(logits.flatten(0, 1), shifted.flatten())
    losses = token_losses(logits, targets.labels)
    del logits
    return weighted(losses, targets)


def weighted(losses: Tensor, targets: Targets) -> Tensor:
    """As the loss of one source."""
    one_source = torch.ones(1, dtype=torch.float64)
    return weighted_loss(losses, targets, one_source, targets.units.sum())


def losses_in_head(model: nn.Module, one: Pass, ids: Tensor, targets: Targets) -> Tensor:
    """(B, T-1), from inside the model's output head, as `training.head_losses` has them."""
    head = cast(Any, model).get_output_embeddings()
    raw, found = head.forward, []

    def forward(hidden: Tensor) -> Tensor:
        read, labels = hidden[:, :-1].flatten(0, 1), targets.labels.flatten()
        found.append(losses_of_targets(raw, read, labels, cast(Pieces, one.pieces)))
        return found[0].detach()[:, None]

    head.forward = forward
    with torch.autocast("cpu", torch.bfloat16, enabled=one.autocast is not None):
        model(input_ids=ids, use_cache=False)
    del head.forward
    return found[0].view_as(targets.labels)


def give_shapes(model: nn.Module, dtype_of: Callable[[nn.Parameter], torch.dtype]) -> None:
    """Under a FakeTensorMode: parameters and buffers become fake tensors on the CPU; tied ones stay tied."""
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


class Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the storages that come in a pass and exist `now`, and at their peak; of them those of `logits`.

    The model's own tensors are not counted, nor its gradients, which are there already. Logits are told by their size.
    """

    def __init__(self, model: nn.Module, one: Pass, vocabulary: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.width, self.elements = vocabulary, {positions * vocabulary for positions in one.wide}
        self.sizes: dict[int, tuple[int, bool]] = {}  # by the storage's address: bytes, has the size of logits
        self.now = self.logits = self.peak = self.peak_logits = 0
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        own = [*model.parameters(), *gradients, *model.buffers()]
        self.ignored = {tensor.untyped_storage()._cdata for tensor in own}

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
        wide = tensor.dim() > 1 and tensor.shape[-1] == self.width and tensor.numel() in self.elements
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
def as_on_gpu(autocast: torch.dtype | None) -> Iterator[None]:
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
