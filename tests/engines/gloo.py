"""What DeepSpeed takes for granted of NCCL and gloo, on the CPU, does otherwise."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def prepare_deepspeed() -> None:
    """In every rank, before its engine is made."""
    module = import_module("deepspeed.comm.torch")  # deepspeed.comm has another `torch`, which is torch
    module.build_shm_op = lambda: None  # would be compiled, for a minute
    TorchBackend = module.TorchBackend
    TorchBackend.has_all_gather_into_tensor = lambda self: False  # gloo, torch 2.13: trips over autograd views
    TorchBackend.all_gather = _waited_for(TorchBackend.all_gather)


def _waited_for(collective: Any) -> Any:
    """ZeRO-3 waits for the last of several gatherings: NCCL runs them one after the other, gloo side by side."""
    if hasattr(collective, "waited_for"):
        return collective

    def waited_for(*args: Any, **kwargs: Any) -> Any:
        work = collective(*args, **kwargs)
        if work is not None:
            work.wait()
        return work

    waited_for.waited_for = True  # type: ignore[attr-defined]
    return waited_for
