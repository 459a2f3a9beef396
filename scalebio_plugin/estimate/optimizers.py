"""Bytes of optimizer state, tensor by tensor.

Read from the optimizers' code: torch 2.13, bitsandbytes 0.50 (`Optimizer2State.init_state`: states in 8 bits with one
float32 maximum per 256 elements each; tensors below 4,096 elements stay in float32), transformers' Adafactor (rows and
columns of the last two dimensions; no first moment) and the Muon that the host uses (momentum for the matrices of the
blocks, AdamW for the rest). The scalar counters of steps, 4 bytes a tensor, are left out.
"""

from __future__ import annotations

import math

BLOCK_8BIT = 256  # elements that share one float32 maximum
MIN_8BIT = 4096  # elements below which bitsandbytes keeps float32
_OWN_PRECISION = ("8bit", "32bit", "adafactor")  # parts of the names of those that do not go by the parameter's

_ADAMW = (
    *("adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_torch_npu_fused", "adamw_apex_fused", "adamw_hf"),
    *("paged_adamw_32bit", "adamw_anyprecision", "optimi_adamw", "adopt_adamw", "adamc", "stable_adamw", "grokadamw"),
)
_ONE_STATE = (
    *("lion_32bit", "paged_lion_32bit", "lion_pytorch", "schedule_free_sgd"),
    *("rmsprop", "rmsprop_bnb", "rmsprop_bnb_32bit", "adagrad"),
)
_BNB_8BIT = {
    **dict.fromkeys(("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit"), 2),
    **dict.fromkeys(("lion_8bit", "paged_lion_8bit", "rmsprop_bnb_8bit"), 1),
    **dict.fromkeys(("ademamix_8bit", "paged_ademamix_8bit"), 3),
}
_8BIT = {**_BNB_8BIT, "adamw_torch_8bit": 2, "ao_adamw_8bit": 2}
STATES = {  # of each element
    **dict.fromkeys(_ADAMW, 2),
    **dict.fromkeys(("adafactor", "muon"), 2),  # of some tensors, see `state_of`
    **dict.fromkeys(_ONE_STATE, 1),
    **dict.fromkeys(("ademamix", "paged_ademamix_32bit"), 3),
    **_8BIT,
    "sgd": 0,
}
# torch's default on a GPU steps all tensors at once, with one temporary as large as they are.
_FOREACH = frozenset({"adamw_torch", "adagrad", "rmsprop"})

Shape = tuple[int, ...]


def is_known(optimizer: str) -> bool:
    return optimizer in STATES


def state_of(
    optimizer: str,
    shape: Shape,
    *,
    element: float = 4.0,
    momentum: bool = False,
    embedding: bool = False,
    in_block: bool = True,
) -> float:
    """Bytes of `optimizer`'s state for one tensor; of an unknown one, AdamW's (8 bytes an element).

    Args:
        element: Bytes of the parameter's; torch's optimizers keep states in its precision.
        momentum: SGD and RMSprop keep one more state.
        embedding: transformers has bitsandbytes keep its state in float32.
        in_block: Of a transformer block: the others are not Muon's.
    """
    elements, states = math.prod(shape), STATES.get(optimizer, 2)
    if optimizer in _8BIT and elements >= MIN_8BIT and not (embedding and optimizer in _BNB_8BIT):
        return states * (elements + 4.0 * math.ceil(elements / BLOCK_8BIT))
    if optimizer == "adafactor":
        return 4.0 * (math.prod(shape[:-1]) + math.prod(shape[:-2]) * shape[-1] if len(shape) > 1 else elements)
    if optimizer == "muon" and in_block and len(shape) == 2:
        states = 1
    if optimizer in ("sgd", "rmsprop") and momentum:
        states += 1
    return states * elements * (4.0 if any(part in optimizer for part in _OWN_PRECISION) else element)


def temporary_of(optimizer: str, shape: Shape, *, element: float = 4.0) -> float:
    """Bytes that stepping needs for one tensor and gives back: torch's multi-tensor AdamW holds sqrt(v) of them all."""
    return element * math.prod(shape) if optimizer in _FOREACH else 0.0
