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
# What becomes of a run that saves its optimizer under FSDP2; each was seen in the host without the plugin too.
_LOST_WITH_FSDP2 = {
    **dict.fromkeys(("torch_8bit", "torch_4bit", "ao_adamw"), "dies at the first checkpoint"),
    **dict.fromkeys(("schedule_free", "sinkgd"), "cannot go on from a checkpoint"),
    "adagrad": "goes on from a checkpoint with another state than it saved",
}


def problems_of_optimizer(optimizer: str, *, lisa: bool) -> Iterator[str]:
    for part, reason in _NEVER.items():
        if part in optimizer:
            yield f"optimizer: {optimizer} {reason}; use adamw_torch or another one"
    for part, reason in _WITH_LISA.items():
        if part in optimizer and lisa:
            yield f"optimizer: {optimizer} {reason}; use adamw_torch, or remove scalebio.lisa"


def problems_on_engine(optimizer: str, engine: str, *, saves: bool) -> Iterator[str]:
    """On several processes: `engine` is ddp, fsdp or deepspeed; `saves`: the run saves its optimizer."""
    for part, reason in _ON_ENGINE[engine].items():
        if part in optimizer:
            yield f"optimizer: {optimizer} {reason}; use adamw_torch or another one"
    for part, fate in _LOST_WITH_FSDP2.items():
        if part in optimizer and engine == "fsdp" and saves:
            yield (
                f"optimizer: {optimizer}: under FSDP2 a run with it {fate}, with or without the plugin; use "
                "adamw_torch, or save_only_model: true"
            )
