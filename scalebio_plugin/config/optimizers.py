"""Optimizers that cannot step two parameter sets, by a part of the host's name for them. Standard library only.

All others exchange: tests/runs/test_optimizers.py, and on several ranks tests/engines/test_optimizers_on_ranks.py.
"""

from __future__ import annotations

from collections.abc import Iterator

_NEVER = {
    "lomo": "steps during the backward pass, so that u and w cannot step apart",
    "layerwise": "steps during the backward pass, so that u and w cannot step apart",
    "offload": "steps copies of the parameters that it keeps elsewhere",
    "polora": "keeps its state outside the parameters it steps",
    "grokadamw": "keeps its state in a form that no checkpoint restores",
    "q_galore": "has not been tried with two parameter sets",
    "flash_": "keeps its state in objects that a checkpoint of the inner parameters cannot hold",
}
_COUNTS_FOR_ALL = "counts its steps for all layers together, those that LISA draws anew included"
_WITH_LISA = {
    "schedule_free": _COUNTS_FOR_ALL,
    "optimi_adamw": _COUNTS_FOR_ALL,
    "stable_adamw": _COUNTS_FOR_ALL,
    "dion": _COUNTS_FOR_ALL,
    "adopt_adamw": _COUNTS_FOR_ALL,
    "muon": "needs what it notes of every parameter at the start, which goes with the state of frozen layers",
    "apollo": "needs what it notes of every parameter at the start, which goes with the state of frozen layers",
    "paged_": "never gives back the memory of frozen layers",
}
_NO_SHARDS = "steps whole tensors, not the shards of FSDP2"
_NO_FLAT = "cannot step the flat tensors of ZeRO"
_UNTRIED = "has not been tried with two parameter sets on sharded parameters"
_NOT_TRIED = {"galore": _UNTRIED, "apollo": _UNTRIED, "came_": _UNTRIED, "optimi_": _UNTRIED}
_ON_ENGINE: dict[str, dict[str, str]] = {
    "ddp": {"dion": "wants sharded parameters where there are several processes"},
    "fsdp": {
        **dict.fromkeys(("paged_", "lion_8bit", "lion_32bit", "rmsprop_bnb", "ademamix", "adafactor"), _NO_SHARDS),
        "dion": "fails as it makes its state for parameters of FSDP2",
        **_NOT_TRIED,
    },
    "deepspeed": {**dict.fromkeys(("adagrad", "ao_adamw_fp8", "sinkgd", "dion"), _NO_FLAT), **_NOT_TRIED},
}
# With FSDP2 the host alone dies as it writes the state of the first three, or writes what nothing can read; from the
# others it cannot go on, or does with another state than it saved. Ranks save theirs by themselves.
_SAVED_BY_RANK = ("torch_8bit", "torch_4bit", "ao_adamw", "schedule_free", "sinkgd", "adagrad")


def problems_of_optimizer(optimizer: str, *, lisa: bool) -> Iterator[str]:
    for part, reason in _NEVER.items():
        if part in optimizer:
            yield f"optimizer: {optimizer} {reason}; use adamw_torch or another one"
    for part, reason in _WITH_LISA.items():
        if part in optimizer and lisa:
            yield f"optimizer: {optimizer} {reason}; use adamw_torch, or remove scalebio.lisa"


def problems_on_engine(optimizer: str, engine: str) -> Iterator[str]:
    """On several processes: `engine` is ddp, fsdp or deepspeed."""
    for part, reason in _ON_ENGINE[engine].items():
        if part in optimizer:
            yield f"optimizer: {optimizer} {reason}; use adamw_torch or another one"


def saved_by_rank(optimizer: str) -> bool:
    """Whether each rank of FSDP2 saves its part of the optimizer's state, and not the host."""
    return any(part in optimizer for part in _SAVED_BY_RANK)
