"""How the host spreads a model over GPUs, as its config says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from ..config.deepspeed import is_not_there, no_file
from ..config.raw import count, whole_number
from ..config.refusals import inside
from .given import json_at


class Kind(Enum):
    ONE = "one process"
    DDP = "DDP"
    FSDP2 = "FSDP2"
    DEEPSPEED = "DeepSpeed ZeRO"


@dataclass(frozen=True)
class Layout:
    """How the model is spread over GPUs.

    Attributes:
        world: GPUs, one process each.
        replicas: FSDP2's `dp_replicate_size`: so many groups of GPUs hold all of the model each.
        stage: ZeRO's.
        compute: Bytes of an element where modules are computed with: 2 in bf16 and fp16, else 4.
        offload_optimizer, offload_weights: These rest in CPU memory.
        bucket: ZeRO's `reduce_bucket_size`, elements. buckets: 2 where communication overlaps.
        live: ZeRO-3's `stage3_max_live_parameters`, elements.
    """

    kind: Kind = Kind.ONE
    world: int = 1
    replicas: int = 1
    stage: int = 0
    compute: float = 2.0
    offload_optimizer: bool = False
    offload_weights: bool = False
    bucket: float = 5e8
    buckets: int = 1
    live: float = 1e9

    @property
    def weights_share(self) -> float:
        """Part of the weights that a rank holds between passes."""
        return self._share_from(3)

    @property
    def gradients_share(self) -> float:
        return self._share_from(2)

    @property
    def states_share(self) -> float:
        """Part of the optimizer states, and of DeepSpeed's float32 masters."""
        return self._share_from(1)

    def _share_from(self, stage: int) -> float:
        return self.replicas / self.world if self.kind is Kind.FSDP2 or self.stage >= stage else 1.0

    def __str__(self) -> str:
        return f"{self.kind.value}-{self.stage}" if self.kind is Kind.DEEPSPEED else self.kind.value


def layout_of(cfg: Mapping[str, Any], gpus: int, compute: float) -> Layout:
    """The layout that the host would use on `gpus` GPUs; `compute`: as `Layout`'s."""
    if cfg.get("deepspeed"):
        return _deepspeed(_deepspeed_json(cfg["deepspeed"]), gpus, compute)
    fsdp = inside(cfg, "fsdp_config")
    if cfg.get("fsdp_config") or cfg.get("fsdp"):
        offload = bool(fsdp.get("offload_params"))
        replicas = count(cfg, "dp_replicate_size", 1)
        if gpus % replicas:
            raise ValueError(f"dp_replicate_size: {replicas} must divide the GPUs, got {gpus}; pass --gpus")
        return Layout(Kind.FSDP2, gpus, replicas=replicas, compute=compute, offload_weights=offload)
    return Layout(Kind.DDP if gpus > 1 else Kind.ONE, gpus, compute=compute)


def _deepspeed_json(given: Any) -> Mapping[str, Any]:
    if isinstance(given, Mapping):
        return given
    if is_not_there(given):
        raise FileNotFoundError(no_file(given))
    return json_at(Path(str(given)))


_STAGE = "deepspeed: zero_optimization.stage"  # as it is named in an error


def _deepspeed(config: Mapping[str, Any], gpus: int, compute: float) -> Layout:
    """Sizes that are `auto` are DeepSpeed's defaults, which are larger than what transformers puts in."""
    zero = inside(config, "zero_optimization")

    def number(key: str, default: float) -> float:
        value = zero.get(key, default)
        return float(value) if isinstance(value, (int, float)) else default

    def on_cpu(key: str) -> bool:
        return inside(zero, key).get("device", "none") not in ("none", None)

    return Layout(
        Kind.DEEPSPEED,
        gpus,
        stage=whole_number({_STAGE: zero.get("stage")}, _STAGE, 0),
        compute=compute,
        offload_optimizer=on_cpu("offload_optimizer"),
        offload_weights=on_cpu("offload_param"),
        bucket=number("reduce_bucket_size", Layout.bucket),
        buckets=2 if zero.get("overlap_comm") else 1,
        live=number("stage3_max_live_parameters", Layout.live),
    )
