"""What of a host config decides memory and compute, read from the YAML as it stands, before the host validates it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.block import ScaleBiOSettings, settings_of, validation_rows
from ..config.raw import count, refuse_shapes, whole_number, with_lisa_keys
from .layout import Layout, layout_of

FORWARD = 1.0 / 3.0  # of a forward and backward pass, where all weights train: 2 of 6 operations per weight and token


@dataclass(frozen=True)
class Cost:
    """Compute per optimiser step, in passes over the training batch (forward and backward); the ordinary run's is 1.

    Attributes:
        block: The `scalebio:` block.
        validation: Validation rows per optimiser step over training rows per step.
        max_steps: Optimiser steps of the run, above 0, where the config says.
    """

    block: ScaleBiOSettings
    validation: float
    max_steps: int | None = None

    @property
    def symmetric(self) -> bool:
        """Whether u has a validation pass, too."""
        return self.block.estimator == "symmetric"

    @property
    def while_learning(self) -> float:
        """Passes per step: w and u on the training batch, w (and u) on the validation batch."""
        if self.block.pull == 0.0:
            return 2.0 + self.validation * FORWARD
        return 2.0 + self.validation * (2 if self.symmetric else 1)

    @property
    def whole_run(self) -> float | None:
        """Mean passes per step over the run, with `learn.until` at most; None where it hangs on a length not given."""
        learning = self._learning_share()
        return None if learning is None else 1.0 + learning * (self.while_learning - 1.0)

    def _learning_share(self) -> float | None:
        """Part of the run's optimiser steps that learn."""
        learn, warmup = self.block.learn, self.block.warmup_steps
        if learn.steps is None and warmup == 0:
            return learn.part
        if self.max_steps is None:
            return None
        after = max(0, self.max_steps - warmup)
        return min(learn.last(after), after) / self.max_steps


@dataclass(frozen=True)
class Setting:
    """A run, as far as an estimate goes. What a config leaves out has the host's default.

    Attributes:
        cfg: The raw config. folder: Where it stands; a model is looked up there, too.
        block: The parsed `scalebio:` block.
        precision: `bf16`, `fp16` or `fp32`.
    """

    cfg: Mapping[str, Any]
    folder: Path
    block: ScaleBiOSettings
    layout: Layout
    precision: str

    @property
    def micro_batch(self) -> int:
        return count(self.cfg, "micro_batch_size", 1)

    @property
    def length(self) -> int:
        return count(self.cfg, "sequence_len", 512)

    @property
    def accumulation(self) -> int:
        return count(self.cfg, "gradient_accumulation_steps", 1)

    @property
    def optimizer(self) -> str:
        return str(self.cfg.get("optimizer") or "adamw_torch_fused")

    @property
    def momentum(self) -> bool:
        return "momentum" in str(self.cfg.get("optim_args") or "")

    @property
    def checkpointing(self) -> bool:
        return bool(self.cfg.get("gradient_checkpointing"))

    @property
    def cost(self) -> Cost:
        """Validation rows are of all GPUs; packed, a row is a bin.

        By default at most what the block's rule says (a small validation set may fill fewer bins). A given size counts
        whole sequences: with packing it is an upper bound, since a row then holds several.
        """
        step = self.micro_batch, self.accumulation, self.layout.world
        rows = self.block.validation_batch_size or validation_rows(*step)
        steps = whole_number(self.cfg, "max_steps", 0)  # none, 0 or less: as many as there are epochs
        return Cost(self.block, rows / (step[0] * step[1] * step[2]), steps if steps > 0 else None)


def setting_of(cfg: Mapping[str, Any], folder: Path, gpus: int) -> Setting:
    """What of a config in `folder` matters on `gpus` GPUs.

    Raises:
        FileNotFoundError: A DeepSpeed JSON that it names is not there.
        ValueError: It lacks what an estimate needs, or the `scalebio:` block is wrong.
    """
    refuse_shapes(cfg)
    if not cfg.get("base_model"):
        raise ValueError("an estimate needs base_model; add it to the config")
    precision = precision_of(cfg)
    block = settings_of({"scalebio": with_lisa_keys(cfg)})
    return Setting(cfg, folder, block, layout_of(cfg, gpus, 4.0 if precision == "fp32" else 2.0), precision)


def precision_of(cfg: Mapping[str, Any]) -> str:
    """As the host resolves it on a GPU that has bf16: `auto` (its default) is bf16."""
    bf16 = cfg.get("bf16", "auto")
    if bf16 == "auto":
        return "fp16" if cfg.get("fp16") else "bf16"
    if bf16 or cfg.get("bfloat16"):
        return "bf16"
    half_base = cfg.get("load_in_8bit") or (cfg.get("float16") and cfg.get("adapter"))
    return "fp16" if cfg.get("fp16") or half_base else "fp32"
