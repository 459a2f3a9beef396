"""Features of the host beside the plugin: with the validation data out of play each run is the host's to the last bit.

u is there, trains beside w on the same batches, and without a pull it stays the same bits as w. See docs/features.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaMLP

from tests import host
from tests.runs.test_inert import OUT_OF_PLAY, STOCK

LORA = {**host.LORA, "lora_dropout": 0.1}
EVALUATED = {"val_set_size": 0.2, "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
CASES: dict[str, dict[str, Any]] = {
    "neftune": {"neftune_noise_alpha": 5},
    "embedding_lr": {"embedding_lr": 1e-4},
    "loraplus": {**LORA, "loraplus_lr_ratio": 8, "lora_modules_to_save": ["embed_tokens", "lm_head"]},
    "dora": {**LORA, "peft_use_dora": True},
    "unfrozen_parameters": {"unfrozen_parameters": ["lm_head", "layers.1.mlp"]},
    "unfrozen rows": {"unfrozen_parameters": ["model.embed_tokens.weight[:100]", "layers.1"]},
    "rslora": {**LORA, "peft_use_rslora": True},
    "pissa": {**LORA, "peft_init_lora_weights": "pissa"},
    "some layers": {**LORA, "peft_layers_to_transform": [1]},
    "trainable tokens": {**LORA, "peft_trainable_token_indices": [1, 2, 3]},
    "checkpointed": {**LORA, "gradient_checkpointing": True},
    "checkpointed, reentrant": {
        **{"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
        "overrides_of_model_config": {"attention_dropout": 0.1},
    },
    "added tokens": {"tokens": ["<think>", "</think>"]},
    "special tokens": {"special_tokens": {"pad_token": "<pad>"}, "resize_token_embeddings_to_32x": True},
    "train_on_inputs": {"train_on_inputs": True},
    "cut rows": {"sequence_len": 40, "train_on_inputs": True, "excess_length_strategy": "truncate"},
    "lr groups": {"lr_groups": [{"name": "head", "modules": ["lm_head"], "lr": 1e-4}]},
    "one_cycle": {"lr_scheduler": "one_cycle"},
    "rex": {"lr_scheduler": "rex", "warmup_steps": 2},
    "cosine to a part": {"lr_scheduler": "cosine", "cosine_min_lr_ratio": 0.1, "cosine_constant_lr_ratio": 0.5},
    "jagged restarts": {"jagged_restart_steps": 3, "jagged_restart_warmup_steps": 1, "jagged_restart_anneal_steps": 1},
    "clipped": {"max_grad_norm": 0.05, "weight_decay": 0.1},
    "tiled_mlp": {"tiled_mlp": True, "tiled_mlp_num_shards": 2},
    "reinit_weights": {"reinit_weights": True},
    "ordered packing": {"sample_packing": True, "micro_batch_size": 2, "sample_packing_sequentially": True},
    "group_by_length": {"group_by_length": True, "sample_packing": True, "micro_batch_size": 2},
    "curriculum": {"curriculum_sampling": True},
    "exact deduplication": {"dataset_exact_deduplication": True},
    "early stopping": {**EVALUATED, "early_stopping_patience": 3, "load_best_model_at_end": True},
    "loss watchdog": {"loss_watchdog_threshold": 100.0, "loss_watchdog_patience": 3},
    "save_first_step": {"save_first_step": True, "save_strategy": "steps", "save_steps": 3, "save_only_model": True},
    "gc_steps": {"gc_steps": 2, "include_tkps": False},
    "lora_on_cpu": {**LORA, "lora_on_cpu": True},
    "layer_offloading": {**LORA, "layer_offloading": True},
}
QUICK = ("neftune", "dora", "unfrozen_parameters")


def train(inputs: Path, out: Path, **keys: Any) -> host.Run:
    """With the class that `tiled_mlp` patches as it was, also for the next run: it would be tiled twice."""
    with patch.object(LlamaMLP, "forward", LlamaMLP.forward):
        return host.train(inputs, output_dir=str(out), **keys)


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if case in QUICK else [pytest.mark.slow]) for case in CASES]
)
def test_out_of_play_it_is_the_hosts_run(inputs: Path, tmp_path: Path, case: str) -> None:
    keys = {"parameters": True, **CASES[case]}
    stock = train(inputs, tmp_path / "stock", **{**STOCK, **keys})
    ours = train(inputs, tmp_path / "ours", scalebio=OUT_OF_PLAY, **keys)
    assert len(ours.losses) == 6
    assert ours.losses == stock.losses
    assert ours.grad_norms == stock.grad_norms
    for mine, theirs, inner in zip(ours.model, stock.model, ours.inner, strict=True):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
        assert inner.keys() == mine.keys()
        assert all(torch.equal(mine[name], inner[name]) for name in mine)
    assert any(not torch.equal(ours.model[0][name], ours.model[-1][name]) for name in ours.model[0])
