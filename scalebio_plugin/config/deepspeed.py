"""What a DeepSpeed JSON must not ask for while ScaleBiO learns. Standard library only, like `refusals`.

DeepSpeed has several optimizers and side paths; u is exchanged in that of ZeRO stage 1, 2 and 3 (`engines.zero`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

_NVME = ("none", None, "cpu")
# path: (value where it is absent, values that are fine, reason and remedy)
_KEYS: dict[str, tuple[Any, tuple[Any, ...], str]] = {
    "zero_optimization.stage": (0, (1, 2, 3), "is not ZeRO; remove deepspeed: for DDP, or use stage 1, 2 or 3"),
    "fp16.enabled": (False, (False, "auto"), "its loss scaler can skip the model's step after u's was taken; use bf16"),
    "amp.enabled": (False, (False,), "apex does not work with ZeRO; use bf16"),
    "torch_autocast.dtype": (
        None,
        (None, "bfloat16", "bf16", "torch.bfloat16"),
        "brings a loss scaler that can skip one set's step; use bfloat16",
    ),
    "bf16.check_grad_overflow": (False, (False,), "would skip the step of one set only; remove it"),
    "bf16.immediate_grad_update": (False, (False,), "belongs to an optimizer that u is not exchanged in; remove it"),
    "graph_harvesting": (False, (False,), "belongs to an optimizer that u is not exchanged in; remove it"),
    "zero_optimization.offload_optimizer.device": ("none", _NVME, "u is not exchanged with state on NVMe; use cpu"),
    "zero_optimization.offload_param.device": ("none", _NVME, "u is not exchanged with parameters on NVMe; use cpu"),
    "zero_optimization.offload_optimizer.ratio": (
        1.0,
        (1.0,),
        "below 1 a second optimizer holds state that is not exchanged; set 1",
    ),
    "zero_optimization.offload_optimizer.super_offload": (False, (False,), "steps inside backward; remove it"),
    "zero_optimization.zenflow": (None, (None,), "updates parameters outside the optimizer's step; remove it"),
    "zero_optimization.mics_shard_size": (-1, (-1, 0), "MiCS is another optimizer; remove it"),
    "zero_optimization.zero_hpz_partition_size": (1, (0, 1), "keeps second copies of the parameters; remove it"),
    "zero_optimization.zero_quantized_weights": (False, (False,), "rounds the two sets apart; remove it"),
    "zero_optimization.zero_quantized_nontrainable_weights": (False, (False,), "was never tried; remove it"),
    "zero_optimization.zero_quantized_gradients": (False, (False,), "rounds the two sets apart; remove it"),
    "zero_optimization.zeropp_loco_param": (None, (None,), "carries the error of one set into the other; remove it"),
    "zero_optimization.elastic_checkpoint": (False, (False,), "u is saved by rank; remove it"),
    "checkpoint.load_universal": (False, (False,), "u is saved by rank and cannot change their number; remove it"),
    "compile.deepcompile": (False, (False,), "reduces gradients outside ZeRO's optimizer; remove it"),
    "eigenvalue.enabled": (False, (False,), "was never tried; remove it"),
    "compression_training": (None, (None,), "quantises the model after its step, not u; remove it"),
    "hybrid_engine.enabled": (False, (False,), "is for reinforcement learning; remove it"),
    "sequence_parallel_size": (1, (1,), "splits sequences over ranks; remove it"),
    "tensor_parallel.autotp_size": (0, (0, 1), "splits layers over ranks; remove it"),
    "pipeline.stages": (None, (None, "auto", 1), "splits layers over ranks; remove it"),
}


def problems_of_deepspeed(config: Mapping[str, Any], block: Mapping[str, Any]) -> Iterator[str]:
    """Reasons why the JSON that `deepspeed:` names cannot be run, each with its remedy."""
    if not config.get("deepspeed"):
        return
    if is_not_there(config["deepspeed"]):
        yield no_file(config["deepspeed"])
        return
    settings = _read(config["deepspeed"])
    if settings is None:
        yield f"deepspeed: cannot read {config['deepspeed']} as JSON; give the path of a DeepSpeed config"
        return
    for path, (absent, fine, reason) in _KEYS.items():
        value = _value(settings, path, absent)
        if value not in fine:
            yield f"deepspeed: {path}: {value!r} {reason}"
    if config.get("fp16") and _value(settings, "fp16.enabled", False) == "auto":
        yield "fp16: with DeepSpeed its loss scaler can skip the model's step after u's was taken; use bf16: true"
    yield from _combinations(config, settings)
    if block.get("lisa") is not None:
        yield (
            "scalebio.lisa: ZeRO keeps gradients and state of all layers in flat tensors, so that freezing layers "
            "would save nothing; use fsdp_version: 2 or DDP"
        )


def is_not_there(given: Any) -> bool:
    """Whether it names a file, and a run that started here would find none: where the config lies nobody looks."""
    return not isinstance(given, Mapping) and not os.path.isfile(str(given))


def no_file(given: Any) -> str:
    return (
        f"deepspeed: no file {given} in the folder where the run starts; start it from where the file is, or give the "
        "whole path (`axolotl fetch deepspeed_configs` brings the host's)"
    )


def _combinations(config: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[str]:
    stage = _value(settings, "zero_optimization.stage", 0)
    offload = _value(settings, "zero_optimization.offload_optimizer.device", "none") == "cpu"
    offload = offload or bool(_value(settings, "zero_optimization.cpu_offload", False))
    if stage == 2 and offload and loses_offloaded_gradients():
        yield (
            "deepspeed: stage 2 with offload_optimizer loses gradients of a step of several backward passes before "
            f"DeepSpeed 0.19 (its pull requests 7967 and 7981), and {metadata.version('deepspeed')} is installed; use "
            "stage 1 or 3, or a newer DeepSpeed where the host allows it"
        )
    bf16 = _value(settings, "bf16.enabled", _value(settings, "bfloat16.enabled", False))
    half = bool(config.get("bf16") or config.get("bfloat16")) if bf16 == "auto" else bool(bf16)
    if stage == 1 and half and _value(settings, "data_types.grad_accum_dtype", None) == "fp32":
        yield "deepspeed: stage 1 with grad_accum_dtype fp32 is another optimizer; use stage 2 or 3, or remove the key"
    if stage == 3 and config.get("load_in_8bit") and not half:
        yield (
            "load_in_8bit: stage 3 cannot gather an 8-bit base, which computes in half precision, beside float32 "
            "parameters; use bf16: true"
        )


def loses_offloaded_gradients() -> bool:
    """Whether the DeepSpeed that is installed, if one is, does so in stage 2."""
    try:
        version = metadata.version("deepspeed")
    except metadata.PackageNotFoundError:
        return False
    return tuple(map(int, version.split(".")[:2])) < (0, 19)


def _read(path: Any) -> dict[str, Any] | None:
    if isinstance(path, Mapping):
        return dict(path)
    try:
        settings = json.loads(Path(str(path)).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return settings if isinstance(settings, dict) else None


def _value(settings: Mapping[str, Any], path: str, absent: Any) -> Any:
    found: Any = settings
    for key in path.split("."):
        if not isinstance(found, Mapping) or key not in found:
            return absent
        found = found[key]
    return found
