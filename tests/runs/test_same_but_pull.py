"""u and w differ in the validation pull and in nothing else: without it they stay the same bits, dropout and all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import host

LISA = {"active_layers": 2, "interval": 7}
PACKED = {"sample_packing": True, "micro_batch_size": 1}
GPT2 = {"base_model": "gpt2"}
DROPOUT = {"overrides_of_model_config": {"attention_dropout": 0.1}}

# (host keys, scalebio keys); GPT-2 has tied embeddings, and dropout 0.1 on embeddings, attention and residuals.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "full": ({}, {}),
    "full, attention dropout, eager": ({**DROPOUT, "attn_implementation": "eager"}, {}),
    "full, attention dropout, sdpa, symmetric": (DROPOUT, {"estimator": "symmetric"}),
    "full, dropout everywhere, tied embeddings": (GPT2 | {"max_grad_norm": 0.1}, {}),
    "lora, dropout": ({**host.LORA, "lora_dropout": 0.1}, {}),
    "lora, dropout, warmup, packed": ({**host.LORA, **PACKED, "lora_dropout": 0.1}, {"warmup_steps": 5}),
    "lora, dropout, drawn by source, packed": (
        {**host.LORA, **PACKED, "lora_dropout": 0.1, "gradient_accumulation_steps": 2},
        {"sampling": "mixture"},
    ),
    "quantisation-aware": ({"qat": host.QAT, **DROPOUT}, {}),
    "lisa": (GPT2, {"lisa": LISA}),
    "lisa, embeddings, accumulated": (
        GPT2 | {"gradient_accumulation_steps": 4, "micro_batch_size": 1},
        {"lisa": {**LISA, "train_embeddings": True}, "update_interval": 3},
    ),
    "packed, accumulated, attention dropout": (
        {**PACKED, **DROPOUT, "gradient_accumulation_steps": 4},
        {"loss_unit": "sequence"},
    ),
}

QUICK = (
    *("full, attention dropout, sdpa, symmetric", "lora, dropout, drawn by source, packed", "quantisation-aware"),
    *("lisa, embeddings, accumulated", "packed, accumulated, attention dropout"),
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in CASES]
)
def test_without_pull_both_sets_stay_the_same_bits(name: str, inputs: Path, tmp_path: Path) -> None:
    run = train(name, float("inf"), 20, inputs, tmp_path)
    history = [json.loads(line) for line in (run.folder / "history.jsonl").read_text().splitlines()]
    if "dropout" in name:
        assert model_is_random(run)
    assert len(run.inner) == 20
    assert run.inner[-1]
    for model, inner in zip(run.model, run.inner, strict=True):
        assert all(torch.equal(model[parameter], value) for parameter, value in inner.items())
    assert history
    assert {gap for record in history for gap in record["pull"].values()} == {0.0}
    assert all(torch.equal(weights, run.weights[0]) for weights in run.weights)


@pytest.mark.parametrize(
    "name", ["full, attention dropout, sdpa, symmetric", pytest.param("lora, dropout", marks=pytest.mark.slow), "lisa"]
)
def test_the_pull_sets_them_apart(name: str, inputs: Path, tmp_path: Path) -> None:
    run = train(name, 10.0, 5, inputs, tmp_path)
    differing = {
        parameter for parameter, value in run.inner[-1].items() if not torch.equal(run.model[-1][parameter], value)
    }
    assert differing == set(run.inner[-1])
    assert not torch.equal(run.weights[-1], run.weights[0])


def train(name: str, penalty: float, steps: int, inputs: Path, tmp_path: Path) -> host.Run:
    keys, scalebio = CASES[name]
    if keys.get("base_model") == "gpt2":
        from transformers import GPT2Config

        keys = keys | host.add_model(inputs, "gpt2", config=GPT2Config(n_embd=32, n_layer=4, n_head=2, n_positions=512))
    return host.train(
        inputs,
        output_dir=str(tmp_path),
        parameters=True,
        max_steps=steps,
        scalebio={**scalebio, "penalty": penalty},
        **keys,
    )


def model_is_random(run: host.Run) -> bool:
    model, tokens = run.trainer.model.train(), torch.arange(3, 60)[None]
    return not torch.equal(model(input_ids=tokens).logits, model(input_ids=tokens).logits)
