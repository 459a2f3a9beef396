"""What benchmarks/gpu.py measures inside the host's process: seconds, positions and memory of every optimiser step.

Written to `measured.json` in the working directory when training ends; the process stops there, before the host saves
its model. With MEASURE_IN_TURN in its environment it writes `ready` before its first step and waits for a file `go`.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from axolotl.integrations.base import BasePlugin
from transformers import TrainerCallback

IN_TURN = "MEASURE_IN_TURN" in os.environ


def _settled() -> float:
    """Now, with nothing left to be computed."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _memory() -> dict[str, int]:
    """Bytes; `used` is all that is taken of the GPU, the CUDA context included."""
    if not torch.cuda.is_available():
        return {}
    free, total = torch.cuda.mem_get_info()
    own = {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
    return own if IN_TURN else {**own, "used": total - free}  # others wait there


def _wait() -> None:
    """Not for longer than whoever started this lives."""
    parent = os.getppid()
    Path("ready").touch()
    while not Path("go").exists():
        if os.getppid() != parent:
            os._exit(1)
        time.sleep(0.02)


def _bits(value: torch.Tensor) -> int:
    """A checksum: values that differ in a bit have another one."""
    return int(value.float().contiguous().view(torch.int32).sum(dtype=torch.int64))


def _sets(trainer: Any) -> dict[str, Any]:
    """u against w: elements that are not equal, the largest difference, checksums, and the steps each has taken."""
    learning = getattr(trainer, "learning", None)
    inner = None if learning is None else learning.inner
    if inner is None:
        return {}
    inner.arriving.settle()
    apart, largest, model, other = 0, 0.0, 0, 0
    for name, resting in inner.values.items():
        value = inner.parameters[name].detach()
        resting = resting.detach().to(value.device)
        apart += int((value != resting).sum())
        largest = max(largest, float((value - resting).abs().max()))
        model, other = model + _bits(value), other + _bits(resting)
    return {
        "apart": apart,
        "largest": largest,
        "model_bits": model,
        "inner_bits": other,
        "model_steps": max((int(state["step"]) for state in inner.optimizer.state.values()), default=0),
        "inner_steps": max((int(state["step"]) for state in inner.states.values()), default=0),
    }


class Measure(TrainerCallback):
    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.trainer: Any = None
        self.positions = 0
        self.steps: list[dict[str, float]] = []
        self.loading: dict[str, int] = {}
        self.peak: dict[str, int] = {}
        self.began = self.ended = 0.0

    def _count(self, module: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        ids = named.get("input_ids", positional[0] if positional else None)
        self.positions += 0 if ids is None else ids.numel()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.model.register_forward_pre_hook(self._count, with_kwargs=True)
        if IN_TURN:
            _wait()
        self.loading = _memory()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.ended = _settled()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.positions, self.began = 0, _settled()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        before, self.ended = self.ended, _settled()
        now = _memory()  # of every step: the host forgets torch's peaks where it logs, also once training has ended
        self.peak = {key: max(value, self.peak.get(key, 0)) for key, value in now.items()}
        step = {"seconds": self.ended - self.began, "from_end_to_end": self.ended - before}
        self.steps.append({**step, "positions": self.positions})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
        found = {
            "steps": self.steps,
            "losses": [float(loss) for loss in losses],
            "memory": self.peak,
            "memory_held": _memory(),
            "memory_loading": self.loading,
            "sets": _sets(self.trainer),
            "resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        Path("measured.json").write_text(json.dumps(found))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


class MeasurePlugin(BasePlugin):
    measure: Measure

    def add_callbacks_pre_trainer(self, cfg: Any, model: Any) -> list[Any]:
        self.measure = Measure(model)
        return [self.measure]

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        self.measure.trainer = trainer
