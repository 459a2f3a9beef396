"""Bytes of optimizer state, tensor by tensor. Standard library only.

Read from the optimizers' code: torch 2.13, bitsandbytes 0.50 (`Optimizer2State.init_state`: two states in 8 bits with
one float32 maximum per 256 elements each; tensors below 4,096 elements stay in float32), transformers' Adafactor
(rows and columns of the last two dimensions; no first moment) and the Muon that the host uses (momentum for the
matrices of the blocks, AdamW for the rest).
The scalar counters of steps, 4 bytes a tensor, are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable

BLOCK_8BIT = 256  # elements that share one float32 maximum
MIN_8BIT = 4096  # elements below which bitsandbytes keeps float32

Shape = tuple[int, ...]


def _float32(states: int) -> Callable[[Shape], float]:
    return lambda shape: 4.0 * states * math.prod(shape)


def _bnb_8bit(states: int) -> Callable[[Shape], float]:
    def of(shape: Shape) -> float:
        elements = math.prod(shape)
        if elements < MIN_8BIT:
            return 4.0 * states * elements
        return states * (elements + 4.0 * math.ceil(elements / BLOCK_8BIT))

    return of


def _adafactor(shape: Shape) -> float:
    if len(shape) < 2:
        return 4.0 * math.prod(shape)
    return 4.0 * (math.prod(shape[:-1]) + math.prod(shape[:-2]) * shape[-1])


def _muon(shape: Shape) -> float:
    return (4.0 if len(shape) == 2 else 8.0) * math.prod(shape)


_ADAMW = (
    *("adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_torch_npu_fused", "adamw_apex_fused", "adamw_hf"),
    *("paged_adamw_32bit", "adamw_anyprecision", "optimi_adamw", "adopt_adamw", "adamc", "stable_adamw", "grokadamw"),
)
BNB_8BIT = {  # states of bitsandbytes' own
    **dict.fromkeys(("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit"), 2),
    **dict.fromkeys(("lion_8bit", "paged_lion_8bit", "rmsprop_bnb_8bit"), 1),
    **dict.fromkeys(("ademamix_8bit", "paged_ademamix_8bit"), 3),
}
STATES: dict[str, Callable[[Shape], float]] = {
    **dict.fromkeys(_ADAMW, _float32(2)),
    **dict.fromkeys(("adamw_torch_8bit", "ao_adamw_8bit"), _bnb_8bit(2)),
    **dict.fromkeys(("lion_32bit", "paged_lion_32bit", "lion_pytorch"), _float32(1)),
    "schedule_free_sgd": _float32(1),
    **dict.fromkeys(("rmsprop", "rmsprop_bnb", "rmsprop_bnb_32bit", "adagrad"), _float32(1)),
    **dict.fromkeys(("ademamix", "paged_ademamix_32bit"), _float32(3)),
    **{name: _bnb_8bit(states) for name, states in BNB_8BIT.items()},
    "sgd": _float32(0),
    "adafactor": _adafactor,
    "muon": _muon,
}
# torch's default on a GPU steps all tensors at once, with one temporary as large as they are.
FOREACH = frozenset({"adamw_torch", "adagrad", "rmsprop"})


def is_known(optimizer: str) -> bool:
    return optimizer in STATES


def state_of(
    optimizer: str, shape: Shape, *, momentum: bool = False, embedding: bool = False, in_block: bool = True
) -> float:
    """Bytes of `optimizer`'s state for one tensor; of an unknown one, AdamW's (8 bytes an element).

    Args:
        momentum: SGD and RMSprop keep one more state.
        embedding: transformers has bitsandbytes keep its state in float32.
        in_block: Of a transformer block: the others are not Muon's.
    """
    if embedding and optimizer in BNB_8BIT:
        return _float32(BNB_8BIT[optimizer])(shape)
    if optimizer == "muon" and not in_block:
        return _float32(2)(shape)
    if optimizer in ("sgd", "rmsprop") and momentum:
        return STATES[optimizer](shape) + _float32(1)(shape)
    return STATES.get(optimizer, _float32(2))(shape)


def temporary_of(optimizer: str, shape: Shape, *, element: float = 4.0) -> float:
    """Bytes that stepping needs for one tensor and gives back: torch's multi-tensor AdamW holds sqrt(v) of them all."""
    return element * math.prod(shape) if optimizer in FOREACH else 0.0
