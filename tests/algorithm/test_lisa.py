"""Which blocks train: found in real architectures, split by name, drawn alike everywhere."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections import Counter
from functools import cache
from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from scipy.stats import chisquare
from torch import nn

from scalebio_plugin.algorithm.lisa import LayerPlan, block_of, draw_layers, find_blocks

LAYERS = 3
SMALL: dict[str, Any] = {
    **{"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS},
    **{"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
GPT2: dict[str, Any] = {"vocab_size": 96, "n_embd": 32, "n_layer": LAYERS, "n_head": 2, "n_positions": 64}
FAMILIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "Llama, tied": ("LlamaConfig", {**SMALL, "tie_word_embeddings": True}, "model.layers"),
    "Llama, a large vocabulary": ("LlamaConfig", {**SMALL, "vocab_size": 20_000}, "model.layers"),
    "Mixtral": ("MixtralConfig", {**SMALL, "num_local_experts": 4}, "model.layers"),
    **{
        name: (f"{name}Config", SMALL, "model.layers")
        for name in ("Llama", "Qwen2", "Qwen3", "Mistral", "Gemma", "Gemma2", "Gemma3Text", "Phi", "Phi3")
    },
    "GPT-2": ("GPT2Config", GPT2, "transformer.h"),
    "GPT-NeoX": ("GPTNeoXConfig", SMALL, "gpt_neox.layers"),
}


@cache
def model_of(family: str) -> nn.Module:
    config_class, keys, _ = FAMILIES[family]
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(getattr(transformers, config_class)(**keys))


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def llama() -> nn.Module:
    return transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**SMALL))


def adapted(**keys: Any) -> nn.Module:
    return get_peft_model(llama(), LoraConfig(r=4, task_type="CAUSAL_LM", **keys))


def trainable(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


# ---- the blocks of a model


def test_blocks_are_the_decoder_layers(family):
    model, path = model_of(family), FAMILIES[family][2]
    found, blocks = find_blocks(model)
    assert found == path
    assert blocks is model.get_submodule(path)
    assert len(blocks) == LAYERS


def test_plan_splits_the_trainable_parameters(family):
    model, path = model_of(family), FAMILIES[family][2]
    plan = LayerPlan.of(model, trainable(model))
    assert [set(names) for names in plan.blocks] == [
        {f"{path}.{i}.{name}" for name, _ in block.named_parameters()}
        for i, block in enumerate(model.get_submodule(path))
    ]
    assert not any(name.startswith(path + ".") for name in plan.others)
    assert sorted([*plan.others, *(name for names in plan.blocks for name in names)]) == sorted(trainable(model))


def test_blocks_are_found_under_an_adapter():
    lora = adapted(target_modules="all-linear")
    path, blocks = find_blocks(lora)
    assert blocks is lora.get_base_model().model.layers
    plan = LayerPlan.of(lora, trainable(lora))
    assert plan.others == ()
    for i, names in enumerate(plan.blocks):
        assert len(names) == 2 * 7  # A and B of the seven linear layers
        assert all(name.startswith(f"{path}.{i}.") and "lora_" in name for name in names)


def test_what_an_adapter_saves_whole_stands_outside_the_blocks():
    model = adapted(target_modules=["q_proj"], modules_to_save=["lm_head"])
    plan = LayerPlan.of(model, trainable(model))
    assert [len(names) for names in plan.blocks] == [2, 2, 2]
    assert ["lm_head" in name for name in plan.others] == [True]


def test_frozen_blocks_have_no_names():
    model = llama()
    model.model.layers[1].requires_grad_(False)
    plan = LayerPlan.of(model, trainable(model))
    assert [bool(names) for names in plan.blocks] == [True, False, True]


@pytest.mark.parametrize(
    ("name", "block"),
    [("layers.3.weight", 3), ("vision.layers.3.weight", None), ("embed.weight", None), ("layers.", None)],
)
def test_a_block_is_one_of_the_list_and_of_no_other_that_ends_alike(name, block):
    assert block_of(name, "layers") == block


def test_more_than_ten_blocks_are_told_apart():
    model = nn.ModuleDict({"h": nn.ModuleList(nn.Linear(2, 2) for _ in range(12))})
    plan = LayerPlan.of(model, trainable(model))
    assert plan.blocks[1] == ("h.1.weight", "h.1.bias")
    assert plan.blocks[11] == ("h.11.weight", "h.11.bias")


@pytest.mark.parametrize("order", [("small", "blocks"), ("blocks", "small")], ids=" then ".join)
def test_blocks_are_the_list_with_most_weights_wherever_it_stands(order):
    """Other lists, a few heads or the experts within each block, are not taken for them."""
    lists = {
        "small": nn.ModuleList(nn.Linear(4, 4) for _ in range(9)),
        "blocks": nn.ModuleList(
            nn.ModuleDict({"experts": nn.ModuleList(nn.Linear(8, 8) for _ in range(4)), "norm": nn.LayerNorm(8)})
            for _ in range(3)
        ),
    }
    model = nn.ModuleDict({name: lists[name] for name in order})
    assert find_blocks(model) == ("blocks", lists["blocks"])
    plan = LayerPlan.of(model, trainable(model))
    assert [len(names) for names in plan.blocks] == [10, 10, 10]
    assert len(plan.others) == 18


@pytest.mark.parametrize(
    "model",
    [nn.Linear(3, 3), nn.ModuleDict({"one": nn.ModuleList([nn.Linear(2, 2)])}), nn.Sequential(nn.Linear(2, 2))],
    ids=["no list", "a list of one", "no module list"],
)
def test_a_model_without_blocks_is_refused_by_name(model):
    with pytest.raises(ValueError, match=rf"{type(model).__name__}; remove the lisa: block"):
        find_blocks(model)


# ---- what trains while layers are active


@pytest.mark.parametrize("layers", [(), (0,), (2,), (0, 2), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("train_others", [False, True])
def test_active_names_are_those_of_the_layers_and_on_request_the_others(layers, train_others):
    plan = LayerPlan((("a.w", "a.b"), ("b.w",), ("c.w", "c.b")), ("embedding", "norm"))
    expected = {name for layer in layers for name in plan.blocks[layer]}
    expected |= {"embedding", "norm"} if train_others else set()
    assert plan.active(layers, train_others=train_others) == expected


# ---- the draw

SHAPES = [(2, 1), (3, 3), (12, 2), (32, 4), (60, 7)]


@pytest.mark.parametrize(("layers", "active"), SHAPES)
def test_a_draw_is_that_many_different_layers_in_order(layers, active):
    for period in range(50):
        drawn = draw_layers(layers, active, 42, period)
        assert len(set(drawn)) == active
        assert list(drawn) == sorted(drawn)
        assert set(drawn) <= set(range(layers))


def test_a_draw_is_a_function_of_seed_and_period_alone():
    """Here and in a fresh process; the run's own generator is neither asked nor moved."""
    draws = "[draw_layers(32, 4, seed, period) for seed in (0, 42, 2**31) for period in range(10)]"
    expected = str(eval(draws))
    torch.manual_seed(123)
    before = torch.get_rng_state()
    assert str(eval(draws)) == expected
    assert torch.equal(torch.get_rng_state(), before)
    program = f"from scalebio_plugin.algorithm.lisa import draw_layers\nprint({draws})"
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected


def test_periods_and_seeds_differ():
    for draw in (lambda n: (42, n), lambda n: (n, 0), lambda n: (n, 200 - n)):  # seed, period
        assert len({draw_layers(32, 4, *draw(n)) for n in range(200)}) > 195


@pytest.mark.parametrize(("layers", "active"), [(6, 2), (12, 2), (12, 5), (32, 4)])
def test_every_layer_is_drawn_equally_often(layers, active):
    count = Counter(layer for period in range(3000) for layer in draw_layers(layers, active, 7, period))
    assert chisquare([count[layer] for layer in range(layers)]).pvalue > 1e-3


def test_every_pair_is_drawn_equally_often():
    count = Counter(draw_layers(6, 2, 3, period) for period in range(3000))
    assert len(count) == math.comb(6, 2)
    assert chisquare([count[pair] for pair in combinations(range(6), 2)]).pvalue > 1e-3


def test_a_period_says_nothing_about_the_next():
    draws = [set(draw_layers(12, 3, 5, period)) for period in range(3001)]
    repeats = sum(len(one & other) for one, other in pairwise(draws))
    assert repeats / 3000 == pytest.approx(3 * 3 / 12, abs=0.05)
