"""What a model adds to its loss by itself: the router loss of a mixture of experts, and what we cannot see."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BambaConfig, MixtralConfig

from tests import host
from tests.runs.test_inert import OUT_OF_PLAY, PACKED, STOCK

EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "output_router_logits": True, "router_aux_loss_coef": 0.5}
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
ACCUMULATED = {"gradient_accumulation_steps": 2, "micro_batch_size": 2}


def mixtral(inputs: Path) -> dict[str, str]:
    return host.add_model(inputs, "mixtral", config=MixtralConfig(**SIZES, **EXPERTS))


SAME_AS_HOST = [
    pytest.param({}, id="padded", marks=pytest.mark.host_contract),
    pytest.param(PACKED, id="packed"),
    pytest.param(host.LORA, id="lora"),
    pytest.param({"scalebio": {"estimator": "symmetric"}}, id="symmetric"),
    pytest.param(
        ACCUMULATED,
        id="accumulated",
        marks=[
            pytest.mark.host_contract,
            pytest.mark.skipif(host.HOST_AVERAGES_MEANS, reason="as in tests/runs/test_inert.py"),
        ],
    ),
]


@pytest.mark.parametrize("settings", SAME_AS_HOST)
def test_the_router_loss_is_the_hosts(inputs: Path, tmp_path: Path, settings: dict) -> None:
    settings = {**settings, **mixtral(inputs), "parameters": True}
    scalebio = OUT_OF_PLAY | settings.pop("scalebio", {})
    stock = host.train(inputs, output_dir=str(tmp_path / "stock"), **STOCK, **settings)
    run = host.train(inputs, output_dir=str(tmp_path / "out_of_play"), scalebio=scalebio, **settings)
    assert len(run.losses) == 6
    assert run.losses == stock.losses
    assert run.grad_norms == stock.grad_norms
    for ours, inner, theirs in zip(run.model, run.inner, stock.model, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        assert all(torch.equal(inner[name], theirs[name]) for name in inner)


def test_the_router_loss_of_several_micro_batches_is_scaled_as_the_host_scales_it(inputs: Path, tmp_path: Path) -> None:
    """By what it adds to the logged loss of the first step, of the host and of a run whose mixture is out of play."""
    settings = {**ACCUMULATED, "max_steps": 1}
    with_it = mixtral(inputs)
    without = host.add_model(
        inputs, "no_router_loss", config=MixtralConfig(**SIZES, **{**EXPERTS, "router_aux_loss_coef": 0.0})
    )
    added = [
        host.train(inputs, output_dir=str(tmp_path / f"{i}with"), **more, **settings, **with_it).losses[0]
        - host.train(inputs, output_dir=str(tmp_path / f"{i}without"), **more, **settings, **without).losses[0]
        for i, more in enumerate([STOCK, {"scalebio": OUT_OF_PLAY}])
    ]
    assert added[0] > 0.9
    assert added[1] == pytest.approx(added[0], abs=1e-5)


def test_the_router_loss_is_in_no_recorded_loss(inputs: Path, tmp_path: Path) -> None:
    run = host.train(inputs, output_dir=str(tmp_path), max_steps=1, scalebio=OUT_OF_PLAY, **mixtral(inputs))
    record = run.trainer.learning.record
    assert run.losses[0] > record["train_loss"] + 0.9
    assert max(loss for loss in record["loss"].values() if loss is not None) < record["train_loss"] + 0.5


def test_what_a_model_adds_unseen_is_refused(inputs: Path, tmp_path: Path) -> None:
    """Bamba adds a z-loss wherever it gets labels, and shows it nowhere."""
    sizes = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 16, "mamba_n_groups": 1}
    config = BambaConfig(**SIZES, **sizes, attn_layer_indices=[1], z_loss_coefficient=0.001)
    model = host.add_model(inputs, "bamba", config=config)
    with pytest.raises(ValueError, match="BambaForCausalLM adds .* to its loss"):
        host.train(inputs, output_dir=str(tmp_path / "added"), **model)
    quiet = {"overrides_of_model_config": {"z_loss_coefficient": 0.0}}
    run = host.train(inputs, output_dir=str(tmp_path / "quiet"), max_steps=2, **model, **quiet)
    assert len(run.losses) == 2
