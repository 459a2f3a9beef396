"""Small models of several families, with and without memory, and configs that name them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scalebio_plugin.estimate import model
from scalebio_plugin.estimate.estimator import Estimate, of_setting
from scalebio_plugin.estimate.setting import setting_of

VOCABULARY = 2048
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {
        **{"hidden_size": 256, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4},
        **{"intermediate_size": 688, "vocab_size": VOCABULARY, "max_position_embeddings": 256},
    },
    "gpt2": {
        **{"n_embd": 256, "n_layer": 8, "n_head": 8, "vocab_size": VOCABULARY, "n_positions": 256},
        **{"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    },
    "gpt_neox": {
        **{"hidden_size": 256, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 1024},
        **{"vocab_size": VOCABULARY, "max_position_embeddings": 256},
    },
    "gemma2": {
        **{"hidden_size": 256, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4},
        **{"head_dim": 32, "intermediate_size": 688, "vocab_size": VOCABULARY, "max_position_embeddings": 256},
    },
}
LORA = {"adapter": "lora", "lora_r": 16, "lora_alpha": 32, "lora_target_linear": True}


def config_of(kind: str, **changed: Any) -> Any:
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[kind].from_dict({"model_type": kind, **SHAPES[kind], **changed})


def on_meta(kind: str, cfg: dict[str, Any]) -> nn.Module:
    return model.choose_what_trains(model.build(config_of(kind)), cfg)


def real(kind: str, cfg: dict[str, Any]) -> nn.Module:
    """The same modules with memory, random weights in float32; adapters by the host."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(config_of(kind), attn_implementation="sdpa")
    return hosts_adapters(plain, cfg) if cfg else plain


def hosts_adapters(plain: nn.Module, cfg: dict[str, Any]) -> nn.Module:
    from axolotl.loaders.adapter import load_lora
    from axolotl.utils.dict import DictDefault

    return load_lora(plain, DictDefault({**cfg, "lora_dropout": 0.0}))[0]


def lora(kind: str) -> dict[str, Any]:
    return LORA if kind != "gpt2" else {**LORA, "lora_target_modules": ["c_attn", "c_proj", "c_fc"]}


def bytes_of(tensors: Any) -> int:
    return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, torch.Tensor))


def rows(folder: Path) -> dict[str, Any]:
    """A config, on a Llama whose shapes lie in `folder`."""
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / "config.json").write_text(json.dumps({"model_type": "llama", **SHAPES["llama"]}))
    return {"base_model": "model", "sequence_len": 64, "micro_batch_size": 2}


def bilevel(folder: Path) -> dict[str, Any]:
    """A config that the plugin runs."""
    return {
        **rows(folder),
        "plugins": ["scalebio"],
        "datasets": [{"path": "a", "type": "alpaca"}, {"path": "b", "type": "alpaca"}],
        "val_set_size": 0.1,
        "gradient_accumulation_steps": 8,
        "bf16": True,
    }


def estimated(cfg: dict[str, Any], folder: Path, gpus: int = 1) -> Estimate:
    return of_setting(setting_of(cfg, folder, gpus))
