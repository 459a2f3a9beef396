"""What of a host config decides memory and compute, read from the YAML as it stands (the host is not imported)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..config.block import LisaArgs, ScaleBiOSettings
from ..config.names import listed
from ..config.refusals import problems_of
from .cost import Schedule
from .records import Engine, Kind

# The host's, where a config leaves the key out.
DEFAULT_OPTIMIZER = "adamw_torch_fused"
DEFAULT_LENGTH = 512


@dataclass(frozen=True)
class Setting:
    """A run, as far as an estimate goes.

    Attributes:
        cfg: The raw config. folder: Where it stands; paths in it are looked up there, too.
        block: The parsed `scalebio:` block.
        precision: `bf16`, `fp16` or `fp32`.
    """

    cfg: Mapping[str, Any]
    folder: Path
    block: ScaleBiOSettings
    engine: Engine
    precision: str

    @property
    def micro_batch(self) -> int:
        return int(self.cfg.get("micro_batch_size") or 1)

    @property
    def length(self) -> int:
        return int(self.cfg.get("sequence_len") or DEFAULT_LENGTH)

    @property
    def accumulation(self) -> int:
        return int(self.cfg.get("gradient_accumulation_steps") or 1)

    @property
    def optimizer(self) -> str:
        return str(self.cfg.get("optimizer") or DEFAULT_OPTIMIZER)

    @property
    def momentum(self) -> bool:
        return "momentum" in str(self.cfg.get("optim_args") or "")

    @property
    def inner_on_cpu(self) -> bool:
        """On a GPU: `auto` is the CPU with LISA."""
        where = self.block.inner.device
        return where == "cpu" or (where == "auto" and self.block.lisa is not None)

    @property
    def validation_share(self) -> float:
        """Validation rows per optimiser step over training rows (of all GPUs); packed, a row is a bin.

        By default at most what the block's rule says (a small validation set may fill fewer bins). A given size counts
        whole sequences: with packing it is an upper bound, since a row then holds several.
        """
        rows = self.micro_batch * self.accumulation * self.engine.world
        given = self.block.validation_batch_size
        return (given or self.block.validation_rows(self.micro_batch, self.accumulation, self.engine.world)) / rows

    @property
    def schedule(self) -> Schedule:
        return Schedule(
            validation=self.validation_share,
            symmetric=self.block.estimator == "symmetric",
            pulls=self.block.pull > 0.0,
            warmup=self.block.warmup_steps,
            fraction=self.block.learn.fraction,
            steps=self.block.learn.steps,
            max_steps=self.cfg.get("max_steps"),
        )


def read(path: Path, gpus: int) -> Setting:
    """Parse the config at `path`.

    Raises:
        FileNotFoundError: It, or a DeepSpeed JSON it names, is not there.
        ValueError: It lacks what an estimate needs, or the `scalebio:` block is wrong.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; give an Axolotl config")
    try:
        cfg = yaml.safe_load(path.read_text("utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(cfg, dict):
        raise ValueError(f"{path} is no Axolotl config: it must be a block of keys")
    return setting_of(cfg, path.parent, gpus)


def is_on(path: Path) -> bool:
    """Whether a run of this config loads the plugin."""
    return bool(listed(yaml.safe_load(path.read_text("utf-8"))))


def refusals_of(path: Path) -> list[str]:
    """Why the plugin would not run this config at all."""
    return problems_of(yaml.safe_load(path.read_text("utf-8")))


def setting_of(cfg: Mapping[str, Any], folder: Path, gpus: int) -> Setting:
    if not cfg.get("base_model"):
        raise ValueError("an estimate needs base_model; add it to the config")
    precision = precision_of(cfg)
    return Setting(
        cfg=cfg,
        folder=folder,
        block=_block(cfg),
        engine=engine_of(cfg, folder, gpus, 4.0 if precision == "fp32" else 2.0),
        precision=precision,
    )


def _block(cfg: Mapping[str, Any]) -> ScaleBiOSettings:
    """The `scalebio:` block, the host's `lisa_*` keys taken over as the plugin does."""
    block = ScaleBiOSettings.model_validate(dict(cfg.get("scalebio") or {}))
    layers = cfg.get("lisa_n_layers")
    if not layers or block.lisa is not None or block.apply:
        return block
    return block.model_copy(update={"lisa": LisaArgs(active_layers=layers, train_embeddings=True)})


def precision_of(cfg: Mapping[str, Any]) -> str:
    """As the host resolves it on a GPU that has bf16: `auto` (its default) is bf16."""
    bf16 = cfg.get("bf16", "auto")
    if bf16 == "auto":
        return "fp16" if cfg.get("fp16") else "bf16"
    if bf16:
        return "bf16"
    return "fp16" if cfg.get("fp16") or cfg.get("load_in_8bit") else "fp32"


def engine_of(cfg: Mapping[str, Any], folder: Path, gpus: int, compute: float) -> Engine:
    """The engine that the host would use on `gpus` GPUs."""
    if cfg.get("deepspeed"):
        return _deepspeed(_deepspeed_json(cfg["deepspeed"], folder), gpus, compute)
    fsdp = cfg.get("fsdp_config") or {}
    if fsdp or cfg.get("fsdp"):
        offload = bool(fsdp.get("offload_params") or fsdp.get("fsdp_offload_params"))
        replicas = int(cfg.get("dp_replicate_size") or 1)
        if gpus % replicas:
            raise ValueError(f"dp_replicate_size: {replicas} must divide the GPUs, got {gpus}; pass --gpus")
        return Engine(Kind.FSDP2, gpus, replicas=replicas, compute=compute, offload_weights=offload)
    return Engine(Kind.DDP if gpus > 1 else Kind.ONE, gpus, compute=compute)


def _deepspeed_json(given: Any, folder: Path) -> Mapping[str, Any]:
    if isinstance(given, Mapping):
        return given
    for path in (Path(str(given)), folder / str(given)):
        if path.is_file():
            parsed: Mapping[str, Any] = json.loads(path.read_text("utf-8"))
            return parsed
    raise FileNotFoundError(
        f"deepspeed: no file {given}; give the path of its JSON (`axolotl fetch deepspeed_configs`)"
    )


def _deepspeed(config: Mapping[str, Any], gpus: int, compute: float) -> Engine:
    """Sizes that are `auto` are DeepSpeed's defaults, which are larger than what transformers puts in."""
    zero = config.get("zero_optimization") or {}

    def number(key: str, default: float) -> float:
        value = zero.get(key, default)
        return float(value) if isinstance(value, (int, float)) else default

    def on_cpu(key: str) -> bool:
        return (zero.get(key) or {}).get("device", "none") not in ("none", None)

    return Engine(
        Kind.DEEPSPEED,
        gpus,
        stage=int(zero.get("stage", 0)),
        compute=compute,
        offload_optimizer=on_cpu("offload_optimizer"),
        offload_weights=on_cpu("offload_param"),
        bucket=number("reduce_bucket_size", 5e8),
        buckets=2 if zero.get("overlap_comm") else 1,
        live=number("stage3_max_live_parameters", 1e9),
    )
