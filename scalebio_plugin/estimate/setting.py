"""What of a host config decides memory and compute, read from the YAML as it stands, before the host validates it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.block import ScaleBiOSettings, settings_of, validation_rows
from ..config.raw import count, refuse_shapes, whole_number, with_lisa_keys
from .cost import Cost
from .given import yaml_at
from .layout import Layout, layout_of


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


def read_config(path: Path) -> dict[str, Any]:
    """The Axolotl config at `path`, as it stands.

    Raises:
        FileNotFoundError, ValueError: There is none.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; give an Axolotl config")
    cfg = yaml_at(path)
    if not isinstance(cfg, dict):
        raise ValueError(f"{path} is no Axolotl config: it must be a block of keys")
    return cfg


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
