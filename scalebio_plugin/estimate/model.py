"""The model of a config on the meta device: real modules and real adapters, no memory, no download.

`axolotl`, `transformers` and `peft` are imported when they are needed. What the host would load in which precision is
said in `stored_types` (axolotl 0.19, loaders/model.py `_configure_embedding_dtypes`, utils/config `resolve_dtype`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..algorithm.lisa import find_blocks
from .records import Weight

KNOWN = Path(__file__).with_name("models.json")
HALVES = (torch.bfloat16, torch.float16)


def config_of(base_model: str, folder: Path, given: Path | None, *, trust_remote_code: bool = False) -> tuple[Any, str]:
    """The model's config and where it is from: `given`, a local folder, the shapes known here, the hub or its cache.

    Raises:
        ValueError: None of them has it.
    """
    local = [place / base_model / "config.json" for place in (folder, Path())]
    for path in [given] if given is not None else [path for path in local if path.is_file()]:
        return _from_dict(json.loads(path.read_text("utf-8")), str(path)), str(path)
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


def build(config: Any, attention: str) -> nn.Module:
    """The causal language model on the meta device, every parameter trainable."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    return model


def choose_what_trains(model: nn.Module, cfg: Mapping[str, Any]) -> nn.Module:
    """Adapters as peft puts them in, or `unfrozen_parameters` as the host reads them."""
    if cfg.get("adapter") in ("lora", "qlora"):
        return _with_adapters(model, cfg)
    if cfg.get("adapter"):
        raise ValueError(f"adapter: {cfg['adapter']} can't be estimated; lora, qlora and none can")
    if cfg.get("unfrozen_parameters"):
        from axolotl.utils.freeze import freeze_layers_except

        freeze_layers_except(model, cfg["unfrozen_parameters"])
    return model


def _with_adapters(model: nn.Module, cfg: Mapping[str, Any]) -> nn.Module:
    """The entries of the host's `_build_peft_lora_config` that decide shapes."""
    from peft import LoraConfig, get_peft_model

    targets = cfg.get("lora_target_modules") or []
    if cfg.get("lora_target_linear"):
        targets = sorted({*(targets if isinstance(targets, list) else [targets]), *linear_names(model)})
    extra = {
        "use_dora": cfg.get("peft_use_dora"),
        "rank_pattern": cfg.get("lora_rank_pattern"),
        "exclude_modules": cfg.get("lora_exclude_modules"),
        "layers_to_transform": cfg.get("peft_layers_to_transform"),
        "layers_pattern": cfg.get("peft_layers_pattern"),
        "target_parameters": cfg.get("lora_target_parameters"),
        "modules_to_save": cfg.get("lora_modules_to_save"),
        "trainable_token_indices": cfg.get("peft_trainable_token_indices"),
    }
    lora = LoraConfig(
        r=cfg.get("lora_r") or 8,
        lora_alpha=cfg.get("lora_alpha") or 16,
        lora_dropout=cfg.get("lora_dropout") or 0.0,
        target_modules=targets or None,
        fan_in_fan_out=bool(cfg.get("lora_fan_in_fan_out")),
        task_type="CAUSAL_LM",
        **{key: value for key, value in extra.items() if value},
    )
    with torch.device("meta"):
        adapted: nn.Module = get_peft_model(model, lora)
    return adapted


def linear_names(model: nn.Module) -> set[str]:
    """Last parts of the names of all linear layers but the head: the host's `lora_target_linear`."""
    linear = {name for name, module in model.named_modules() if "Linear" in type(module).__name__}
    return {name.rsplit(".", 1)[-1] for name in linear} - {embedding_names(model)[1]}


def embedding_names(model: nn.Module) -> tuple[str, str]:
    """Modules of the embeddings and the head, as the host at hand knows them by `model_type`."""
    from axolotl.loaders.utils import get_linear_embedding_layers

    embedding, head = get_linear_embedding_layers(str(getattr(getattr(model, "config", None), "model_type", "")))
    return str(embedding), str(head)


def stored_types(model: nn.Module, cfg: Mapping[str, Any], base: torch.dtype, *, fsdp: bool) -> dict[str, torch.dtype]:
    """Precision in which the host holds each parameter, quantisation left out: by name.

    All in `base`; adapters in float32 (peft); without FSDP also embeddings, head and norms, unless an adapter or an
    attention kernel that wants half precision brings them back.
    """
    attention = cfg.get("attn_implementation")
    back = bool(cfg.get("adapter")) or fsdp or attention not in (None, "eager", "sdpa") or cfg.get("flash_attention")
    raised = () if back else ("norm", *embedding_names(model))
    types: dict[str, torch.dtype] = {}
    for name, parameter in model.named_parameters():
        module = name.rpartition(".")[0]
        adapter = cfg.get("adapter") and parameter.requires_grad
        types[name] = torch.float32 if adapter or any(part in module for part in raised) else base
    return types


def weights_of(model: nn.Module, cfg: Mapping[str, Any], types: Mapping[str, torch.dtype]) -> list[Weight]:
    """Every parameter with the bytes that the host loads it in."""
    path, _ = find_blocks(model)
    quantised = _quantised(model, cfg)
    kinds = (cfg.get("load_in_4bit"), cfg.get("load_in_8bit"))
    embeddings = names_of_embeddings(model)
    return [
        Weight(
            name=name,
            shape=tuple(parameter.shape),
            stored=_packed(parameter.shape, *kinds) if name in quantised else parameter.numel() * types[name].itemsize,
            trains=parameter.requires_grad,
            block=block_of(name, path),
            quantised=name in quantised,
            embedding=name in embeddings,
        )
        for name, parameter in model.named_parameters()
    ]


def names_of_embeddings(model: nn.Module) -> set[str]:
    return {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Embedding)}


def block_of(name: str, path: str) -> int | None:
    """Index of the block in the list at `path` that a parameter stands in."""
    head, _, rest = name.partition(path + ".")
    return int(rest.split(".", 1)[0]) if head == "" and rest else None


def _quantised(model: nn.Module, cfg: Mapping[str, Any]) -> set[str]:
    """Matrices of linear layers, but not the head, which transformers leaves as it is."""
    four = cfg.get("adapter") == "qlora" and cfg.get("load_in_4bit")
    eight = cfg.get("adapter") == "lora" and cfg.get("load_in_8bit")
    if not four and not eight:
        return set()
    head = embedding_names(model)[1]
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) or _is_conv1d(module)]
    matrices = {f"{name}.weight" for name in linear if name.rsplit(".", 1)[-1] != head}
    return {name for name, parameter in model.named_parameters() if name in matrices and not parameter.requires_grad}


def _is_conv1d(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"


def _packed(shape: torch.Size, four: bool | None, eight: bool | None) -> float:
    """bitsandbytes' bytes: NF4 with blocks of 64, their maxima in 8 bits with one float32 per 256; or int8 by rows."""
    elements = shape.numel()
    if four:
        blocks = -(-elements // 64)
        return elements / 2 + blocks + 4 * -(-blocks // 256)
    return elements + 4 * shape[0]
