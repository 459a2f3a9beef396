"""The model of a config: its shapes, its adapters and the precisions that the host would load it in."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from transformers import CONFIG_MAPPING

from scalebio_plugin.estimate import model
from tests import host

from .tiny import LORA, SHAPES, config_of, hosts_adapters, lora, on_meta, real

EXAMPLES = sorted((Path(__file__).parents[2] / "example_configs").glob("*.yml"))
PARAMETERS = {
    "openai-community/gpt2": 124_439_808,
    "NousResearch/Meta-Llama-3-8B": 8_030_261_248,
    "EleutherAI/gpt-neox-20b": 20_554_567_680,
    "01-ai/Yi-34B": 34_388_917_248,
    "google/gemma-2-9b": 9_241_705_984,
}

HEAD_SAVED = {**LORA, "lora_modules_to_save": ["embed_tokens", "lm_head"]}


@pytest.mark.parametrize("name", PARAMETERS)
def test_known_shapes_give_the_published_number_of_parameters(name: str) -> None:
    config, origin = model.config_of(name, Path(), None)
    assert origin == "known shapes"
    assert sum(p.numel() for p in model.build(config).parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_names_a_known_model(path: Path) -> None:
    base = yaml.safe_load(path.read_text())["base_model"]
    assert base in model.known_models() or path.stem == "quickstart"


def test_a_given_config_goes_before_a_folder_and_a_folder_before_the_known(tmp_path: Path) -> None:
    name = "openai-community/gpt2"
    assert model.config_of(name, tmp_path, None)[1] == "known shapes"
    folder = tmp_path / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_layer": 3}))
    assert model.config_of(name, tmp_path, None)[0].n_layer == 3
    (tmp_path / "mine.json").write_text(json.dumps({"model_type": "gpt2", "n_layer": 5}))
    assert model.config_of(name, tmp_path, tmp_path / "mine.json")[0].n_layer == 5


def test_a_family_without_a_fused_attention_is_built_as_the_host_does() -> None:
    built = model.build(CONFIG_MAPPING["gptj"](n_embd=32, n_layer=2, n_head=2, rotary_dim=4, vocab_size=64))
    assert built.config._attn_implementation == "eager"
    assert model.build(config_of("llama")).config._attn_implementation == "sdpa"
    assert model.build(config_of("llama"), "eager").config._attn_implementation == "eager"


def test_a_package_that_the_model_needs_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Gemma 3n does without timm."""

    def needs_it(*args: Any, **kwargs: Any) -> None:
        raise ImportError("\nGemma3n requires the timm library")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_config", needs_it)
    with pytest.raises(
        ValueError,
        match=r"base_model: its code needs .* \(ImportError: Gemma3n requires the timm library\); install it",
    ):
        model.build(config_of("llama"))


@pytest.mark.host_contract
@pytest.mark.parametrize("kind", SHAPES)
def test_adapters_are_those_that_the_host_makes(kind: str) -> None:
    from axolotl.loaders.utils import get_linear_embedding_layers

    plain = model.build(config_of(kind))
    assert list(model.embedding_and_head(plain)) == get_linear_embedding_layers(kind)
    assert _trained(on_meta(kind, lora(kind))) == _trained(hosts_adapters(plain, lora(kind)))


def _trained(module: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in module.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("cfg", "name", "expected"),
    [
        ({}, "model.layers.0.mlp.up_proj.weight", torch.bfloat16),
        ({}, "model.norm.weight", torch.float32),
        ({}, "lm_head.weight", torch.float32),
        ({"attn_implementation": "flash_attention_2"}, "lm_head.weight", torch.bfloat16),
        ({"attn_implementation": "sdpa"}, "model.embed_tokens.weight", torch.float32),
        (LORA, "base_model.model.lm_head.weight", torch.bfloat16),
        (LORA, "base_model.model.model.layers.0.mlp.up_proj.lora_A.default.weight", torch.float32),
        (HEAD_SAVED, "base_model.model.lm_head.modules_to_save.default.weight", torch.bfloat16),
    ],
)
def test_the_host_holds_embeddings_and_norms_in_float32(cfg: dict[str, Any], name: str, expected: torch.dtype) -> None:
    types = model.stored_types(on_meta("llama", cfg), cfg, torch.bfloat16, fsdp=False)
    assert types[name] == expected


@pytest.mark.slow
@pytest.mark.host_contract
@pytest.mark.parametrize(
    ("kind", "adapter"),
    [("llama", {}), ("llama", LORA), ("llama", HEAD_SAVED), ("gpt_neox", {}), ("gpt_neox", LORA)],
)
def test_the_hosts_loader_gives_these_types(tmp_path: Path, kind: str, adapter: dict[str, Any]) -> None:
    from axolotl.loaders import ModelLoader
    from axolotl.utils.dict import DictDefault
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=vocabulary, bos_token="a", eos_token="b", pad_token="b")
    folder = str(tmp_path)
    real(kind, {}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    cfg = {"attn_implementation": "sdpa", "gradient_checkpointing": False, "sequence_len": 64, **adapter}
    loaded = {
        **{"base_model": folder, "base_model_config": folder, "model_config_type": kind, "device_map": {"": "cpu"}},
        **{"torch_dtype": torch.bfloat16, "bf16": True, "device": "cpu", "attn_needs_dtype_cast": False},
        **{"tensor_parallel_size": 1, "context_parallel_size": 1, "micro_batch_size": 1, "lora_dropout": 0.0},
    }
    host.forget_plugins()  # ours would lift what trains to float32
    hosts, _ = ModelLoader(DictDefault({**cfg, **loaded}), tokenizer).load()
    ours = model.stored_types(on_meta(kind, adapter), cfg, torch.bfloat16, fsdp=False)
    assert {name: parameter.dtype for name, parameter in hosts.named_parameters()} == ours


@pytest.mark.parametrize(("asked", "of_16_bits"), [(False, 1.0), (True, 0.26)])
def test_experts_are_quantised_where_it_is_asked_for(asked: bool, of_16_bits: float) -> None:
    cfg = {**LORA, "adapter": "qlora", "load_in_4bit": True, "quantize_moe_experts": asked}
    sizes = {"hidden_size": 64, "moe_intermediate_size": 128, "num_experts": 16, "num_experts_per_tok": 2}
    heads = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32}
    config = CONFIG_MAPPING["qwen3_moe"](**sizes, **heads, intermediate_size=64, vocab_size=128)
    plain = model.choose_what_trains(model.build(config), cfg)
    types = model.stored_types(plain, cfg, torch.bfloat16, fsdp=False)
    loaded = model.parameters_to_load(plain, "base_model.model.model.layers", cfg, types)
    stored = {
        one.name: one.stored / (2 * math.prod(one.shape)) for one in loaded if "experts" in one.name and not one.trains
    }
    assert stored
    assert all(part == pytest.approx(of_16_bits, abs=0.01) for part in stored.values()), stored
