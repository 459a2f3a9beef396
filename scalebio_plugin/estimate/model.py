"""The model of a config on the meta device: real modules and real adapters, no memory, no download.

`axolotl`, `transformers` and `peft` are imported when they are needed. In which precision the host holds a parameter is
said in `stored_types` (axolotl 0.19, loaders/model.py `_configure_embedding_dtypes`, utils/config `resolve_dtype`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Container, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..algorithm.lisa import block_of
from .given import json_at
from .memory import Parameter

KNOWN = files(__package__) / "models.json"  # of a zipped package, too


def config_of(base_model: str, folder: Path, given: Path | None, *, trust_remote_code: bool = False) -> tuple[Any, str]:
    """The model's config and where it is from: `given`, a local folder, the shapes known here, the hub or its cache.

    Raises:
        ValueError: None of them has it.
    """
    local = (place / base_model / "config.json" for place in (folder, Path()))
    path = given or next(filter(Path.is_file, local), None)
    if path is not None:
        return _from_dict(json_at(path), str(path)), str(path)
    known = known_models()
    if base_model in known:
        return _from_dict(known[base_model], base_model), "known shapes"
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(base_model, trust_remote_code=trust_remote_code), "the hub or its cache"
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no shapes of base_model {base_model}: it is no local folder, not known here and the hub does not give "
            f"its config ({type(error).__name__}); pass its config.json with --model-config FILE"
        ) from error


def known_models() -> dict[str, dict[str, Any]]:
    """Public configs by name, what decides shapes; several names may have one."""
    table: dict[str, Any] = json.loads(KNOWN.read_text("utf-8"))
    return {name: entry["config"] for entry in table["models"] for name in entry["names"]}


def _from_dict(data: Mapping[str, Any], where: str) -> Any:
    from transformers import CONFIG_MAPPING

    kind = data.get("model_type")
    if kind not in CONFIG_MAPPING:
        raise ValueError(f"{where}: model_type must be one that transformers knows, got {kind!r}")
    return CONFIG_MAPPING[kind].from_dict(dict(data))


def build(config: Any, attention: str | None = None, overrides: Mapping[str, Any] | None = None) -> nn.Module:
    """The causal language model on the meta device, every parameter trainable.

    Args:
        attention: None: a fused one (`sdpa`), where the family has it.

    Raises:
        ValueError: There is none of these shapes, or its code needs a package that is not there.
    """
    from transformers import AutoModelForCausalLM

    try:
        for key, value in (overrides or {}).items():
            setattr(config, key, value)
        with torch.device("meta"):
            model: nn.Module = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    except ImportError as error:
        raise ValueError(
            f"base_model: its code needs a package that is not installed ({_said(error)}); install it"
        ) from error
    except Exception as error:  # of any kind: each family has rules of its own
        key = "overrides_of_model_config" if overrides else "base_model"
        raise ValueError(f"{key}: no model has these shapes ({_said(error)}); correct them") from error
    return model


def choose_what_trains(model: nn.Module, cfg: Mapping[str, Any]) -> nn.Module:
    """Adapters as peft puts them in, or `unfrozen_parameters` as the host reads them."""
    if cfg.get("adapter") in ("lora", "qlora"):
        return _with_adapters(model, cfg)
    if cfg.get("adapter"):
        raise ValueError(f"adapter: {cfg['adapter']} can't be estimated; lora, qlora and none can")
    if cfg.get("unfrozen_parameters"):
        _freeze_others(model, cfg["unfrozen_parameters"])
    return model


def _freeze_others(model: nn.Module, patterns: Any) -> None:
    from axolotl.utils.freeze import freeze_layers_except

    try:
        freeze_layers_except(model, patterns)
    except (ValueError, TypeError, re.error) as error:
        raise ValueError(f"unfrozen_parameters: {_said(error)}; correct the pattern") from error


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _with_adapters(model: nn.Module, cfg: Mapping[str, Any]) -> nn.Module:
    """As the host puts them in; without the values that they would start from."""
    from axolotl.loaders.adapter import load_lora
    from axolotl.utils.dict import DictDefault
    from peft import get_peft_model

    given = {key: value for key, value in cfg.items() if value is not None}
    defaults = {"lora_r": 8, "lora_alpha": 16, "lora_dropout": 0.0}
    _, lora = load_lora(model, DictDefault({**defaults, **given}), config_only=True)
    lora.init_lora_weights = True
    with torch.device("meta"):
        adapted: nn.Module = get_peft_model(model, lora)
    return adapted


def embedding_and_head(model: nn.Module) -> tuple[str, str]:
    """Modules of the embeddings and the head, as the host at hand knows them by `model_type`."""
    from axolotl.loaders.utils import get_linear_embedding_layers

    embedding, head = get_linear_embedding_layers(str(getattr(getattr(model, "config", None), "model_type", "")))
    return str(embedding), str(head)


def stored_types(model: nn.Module, cfg: Mapping[str, Any], base: torch.dtype, *, fsdp: bool) -> dict[str, torch.dtype]:
    """Precision in which the host holds each parameter, quantisation left out: by name.

    All in `base`; adapters in float32 (peft), but not what of the model they save whole; without FSDP also embeddings,
    head and norms, unless an adapter or an attention kernel that wants half precision brings them back.
    """
    attention = cfg.get("attn_implementation")
    back = bool(cfg.get("adapter")) or fsdp or attention not in (None, "eager", "sdpa") or cfg.get("flash_attention")
    raised = () if back else ("norm", *embedding_and_head(model))
    types: dict[str, torch.dtype] = {}
    for name, parameter in model.named_parameters():
        module = name.rpartition(".")[0]
        adapter = cfg.get("adapter") and parameter.requires_grad and ".modules_to_save." not in name
        types[name] = torch.float32 if adapter or any(part in module for part in raised) else base
    return types


def parameters_to_load(
    model: nn.Module, path: str, cfg: Mapping[str, Any], types: Mapping[str, torch.dtype]
) -> list[Parameter]:
    """Every parameter of a model on the meta device as the host would load it; `path`: of the blocks."""
    quantised = _quantised(model, cfg)

    def stored(name: str, parameter: nn.Parameter) -> float:
        if name in quantised:
            return packed(parameter.shape, four_bits=bool(cfg.get("load_in_4bit")))
        return parameter.numel() * types[name].itemsize

    return _parameters(model, path, stored, quantised)


def parameters_at_hand(model: nn.Module, path: str) -> list[Parameter]:
    """Every parameter of a loaded model as it stands; `path`: of the blocks."""
    return _parameters(model, path, lambda _, parameter: _bytes_of(parameter), ())


def _parameters(
    model: nn.Module, path: str, stored: Callable[[str, nn.Parameter], float], quantised: Container[str]
) -> list[Parameter]:
    embeddings = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    return [
        Parameter(
            name,
            _full_shape(parameter),
            stored(name, parameter),
            parameter.requires_grad,
            block_of(name, path),
            quantised=name in quantised,
            embedding=name in embeddings,
        )
        for name, parameter in model.named_parameters()
    ]


def _quantised(model: nn.Module, cfg: Mapping[str, Any]) -> set[str]:
    """Matrices of linear layers, but not the head, which transformers leaves as it is; of experts where asked for."""
    four = cfg.get("adapter") == "qlora" and cfg.get("load_in_4bit")
    eight = cfg.get("adapter") == "lora" and cfg.get("load_in_8bit")
    if not four and not eight:
        return set()
    from transformers.pytorch_utils import Conv1D

    head = embedding_and_head(model)[1]
    linear = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))]
    matrices = {f"{name}.weight" for name in linear if name.rsplit(".", 1)[-1] != head}
    if cfg.get("quantize_moe_experts"):
        matrices |= {name for name, parameter in model.named_parameters() if "expert" in name and parameter.dim() == 3}
    return {name for name, parameter in model.named_parameters() if name in matrices and not parameter.requires_grad}


def packed(shape: torch.Size, *, four_bits: bool) -> float:
    """bitsandbytes' bytes: NF4 with blocks of 64, their maxima in 8 bits with one float32 per 256; or int8 by rows."""
    elements = shape.numel()
    if not four_bits:
        return elements + 4 * math.prod(shape[:-1])
    blocks = -(-elements // 64)
    return elements / 2 + blocks + 4 * -(-blocks // 256)


def _bytes_of(parameter: nn.Parameter) -> float:
    """With the constants of a bitsandbytes tensor, where they are there."""
    constants = getattr(parameter, "quant_state", None)
    extra = 0.0
    for part in (constants, getattr(constants, "state2", None)):
        absmax = getattr(part, "absmax", None)
        extra += 0.0 if absmax is None else absmax.numel() * absmax.element_size()
    return math.prod(_full_shape(parameter)) * parameter.element_size() + extra


def _full_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """DeepSpeed's ZeRO-3 leaves an empty tensor with its shape beside it; a quantised tensor is packed."""
    return tuple(getattr(parameter, "ds_shape", None) or parameter.shape)
