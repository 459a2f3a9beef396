"""A config with a fused loss learns what it learns without: our passes take the losses from the output head."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from axolotl.monkeypatch.loss import chunked
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import Gemma2Config, HyperCLOVAXConfig
from transformers.loss import loss_utils

from scalebio_plugin.algorithm import pieces
from scalebio_plugin.report.history import read_history, series
from scalebio_plugin.training.head_losses import InHead
from tests import host
from tests.runs.test_inert import OUT_OF_PLAY, PACKED, STOCK

CHUNKED = {"chunked_cross_entropy": True}
STEPS = {"max_steps": 10, "num_epochs": 4, "parameters": True}
ACCUMULATED = {"gradient_accumulation_steps": 2, "micro_batch_size": 2}
GEMMA = Gemma2Config(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=16,
    final_logit_softcapping=0.5,  # of logits as small as random weights make them
)
ON_THE_HEAD = {**host.LORA, "lora_target_linear": None, "lora_target_modules": ["q_proj", "v_proj", "lm_head"]}


@pytest.fixture(autouse=True)
def host_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's patch is of the process, and compiles for ten seconds. A batch is cut into several pieces."""
    monkeypatch.setattr(pieces, "ENTRIES", 2**13)
    monkeypatch.setattr(loss_utils, "ForCausalLMLoss", loss_utils.ForCausalLMLoss)
    monkeypatch.setitem(loss_utils.LOSS_MAPPING, "ForCausalLM", loss_utils.LOSS_MAPPING["ForCausalLM"])
    monkeypatch.setattr(chunked.torch, "compile", lambda function, **how: function)


def assert_same(run: host.Run, plain: host.Run, within: float = 1e-5) -> None:
    """λ after every step; w and u at the end."""
    assert len(run.weights) == 10
    assert float((run.weights[-1] - run.weights[0]).abs().max()) > 1e-3
    torch.testing.assert_close(run.weights, plain.weights, rtol=0, atol=within)
    for ours, theirs in ((run.model, plain.model), (run.inner, plain.inner)):
        assert ours[-1].keys() == theirs[-1].keys() != set()
        for name in theirs[-1]:
            torch.testing.assert_close(ours[-1][name], theirs[-1][name], rtol=0, atol=within)
    assert run.losses == pytest.approx(plain.losses, rel=within)  # of 5 to 8 nats


RUNS: dict[str, dict[str, Any]] = {
    "accumulated": ACCUMULATED,
    "packed": {**PACKED, "scalebio": {"sampling": "mixture"}},
    "soft cap": {"gemma": True},
    "lora": {**PACKED, **host.LORA},
    "lora on the head": ON_THE_HEAD,
    "head saved": {**host.LORA, "lora_modules_to_save": ["lm_head", "embed_tokens"]},
}
QUICK = ("packed", "lora on the head")


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind in QUICK else [pytest.mark.slow]) for kind in RUNS]
)
def test_it_learns_the_same(inputs: Path, tmp_path: Path, kind: str) -> None:
    settings = {**STEPS, **RUNS[kind]}
    if settings.pop("gemma", False):
        settings |= host.add_model(inputs, "gemma2-capped", config=GEMMA)
    plain = host.train(inputs, output_dir=str(tmp_path / "plain"), **settings)
    run = host.train(inputs, output_dir=str(tmp_path / "fused"), **settings, **CHUNKED)
    assert_same(run, plain)


def test_a_probe_finds_the_same(inputs: Path, tmp_path: Path) -> None:
    goals = []
    for name, keys in (("plain", {}), ("fused", CHUNKED)):
        settings: dict[str, Any] = {**STEPS, **keys, "scalebio": {"probe_interval": 5}}
        run = host.train(inputs, output_dir=str(tmp_path / name), **settings)
        goals.append([record["goals"] for record in read_history(run.folder / "history.jsonl") if record["goals"]])
    plain, fused = goals
    assert len(plain) == len(fused) == 2
    for ours, theirs in zip(fused, plain, strict=True):
        assert ours.keys() == theirs.keys() == {"clean", "wrong", "offtopic"}
        for source, cosines in theirs.items():  # None of a source that the batch does not hold
            assert ours[source] == pytest.approx(cosines, abs=1e-4)
    seen = [
        cosine for probe in plain for cosines in probe.values() for cosine in cosines.values() if cosine is not None
    ]
    assert len(seen) >= 4
    assert max(map(abs, seen)) > 0.1


def test_what_is_the_hosts_keeps_its_own_loss(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations, and the steps after learning; ours look at it once."""
    calls, forward = [], chunked.CEWithChunkedOutputLoss.forward

    def noted(self: Any, logits: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append((host.Probe.run.trainer.state.global_step, logits[0].requires_grad))
        return forward(self, logits, *args, **kwargs)

    monkeypatch.setattr(chunked.CEWithChunkedOutputLoss, "forward", noted)
    settings = {"max_steps": 4, "test_datasets": [{"path": "data/validation.jsonl", "type": "alpaca"}], "eval_steps": 2}
    block = {"learn": {"steps": 2}}
    host.train(inputs, output_dir=str(tmp_path), scalebio=block, micro_batch_size=32, **settings, **CHUNKED)
    assert [call for call in calls if call[1]] == [(2, True), (3, True)], "steps 3 and 4"
    assert {step for step, trains in calls if not trains} == {0, 2, 4}, "the look, the evaluations"


def test_the_hosts_own_logits_are_gone_before_ours_are_made(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[StorageWeakRef] = []
    gone: list[bool] = []
    forward, look = chunked.CEWithChunkedOutputLoss.forward, InHead.look

    def noted(self: Any, logits: list[torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
        made.append(StorageWeakRef(logits[0].untyped_storage()))
        return forward(self, logits, *args, **kwargs)

    def looked(self: InHead, *args: Any) -> Any:
        gone.append(made[-1].expired())
        return look(self, *args)

    monkeypatch.setattr(chunked.CEWithChunkedOutputLoss, "forward", noted)
    monkeypatch.setattr(InHead, "look", looked)
    host.train(inputs, output_dir=str(tmp_path), max_steps=1, **CHUNKED)
    assert gone == [True]


def test_out_of_play_it_is_the_host_with_the_same_key_to_rounding(inputs: Path, tmp_path: Path) -> None:
    settings = {"max_steps": 6, **CHUNKED}
    stock = host.train(inputs, output_dir=str(tmp_path / "stock"), **STOCK, **settings)
    run = host.train(inputs, output_dir=str(tmp_path / "run"), scalebio=OUT_OF_PLAY, **settings)
    assert run.losses == pytest.approx(stock.losses, rel=1e-6)
    assert run.grad_norms == pytest.approx(stock.grad_norms, rel=1e-5)


@pytest.mark.parametrize(
    "noise",
    [{"neftune_noise_alpha": 5}, {"overrides_of_model_config": {"attention_dropout": 0.3}}],
    ids=["neftune", "dropout"],
)
def test_noise_in_a_pass_is_no_reason_to_refuse_a_model(inputs: Path, tmp_path: Path, noise: dict[str, Any]) -> None:
    """The pass that is compared with the host's own has the same noise."""
    run = host.train(inputs, output_dir=str(tmp_path), max_steps=1, **noise, **CHUNKED)
    assert len(run.losses) == 1


def test_a_model_that_is_not_understood_is_refused_before_the_first_step(inputs: Path, tmp_path: Path) -> None:
    sizes = {key: getattr(GEMMA, key) for key in ("hidden_size", "intermediate_size", "num_hidden_layers")}
    config = HyperCLOVAXConfig(**sizes, num_attention_heads=2, num_key_value_heads=2, logits_scaling=0.125)
    model = host.add_model(inputs, "hyperclovax", config=config)
    with pytest.raises(ValueError, match="HyperCLOVAXForCausalLM makes of its logits what the plugin does not know"):
        host.train(inputs, output_dir=str(tmp_path), **model, **CHUNKED)


@pytest.mark.slow
def test_in_bf16_the_gap_is_that_of_the_logits(inputs: Path, tmp_path: Path) -> None:
    """Both in bf16, before λ could lead them apart."""
    gaps = []
    for name, keys in {"plain": {}, "fused": CHUNKED}.items():
        settings = {"max_steps": 30, "num_epochs": 4, "bf16": True, "scalebio": {"mixture_learning_rate": 0.0}}
        run = host.train(inputs, output_dir=str(tmp_path / name), **settings, **keys)
        gaps.append(series(read_history(run.folder / "history.jsonl"), "gap", ["clean", "wrong", "offtopic"]))
    signal, apart = (np.sqrt((values**2).mean()) for values in (gaps[0], gaps[1] - gaps[0]))
    print(f"root mean square: gap {signal:.2e}, difference {apart:.2e}")
    assert apart < 1e-2 * signal


LIGER = {"liger_fused_linear_cross_entropy": True}
INTERPRETED = """
import json, sys
from pathlib import Path
from tests import host

config = json.loads(sys.argv[1])
config["plugins"] = [*host.BASE["plugins"], *config["plugins"]]
run = host.train(Path(sys.argv[2]), **config)
forward = type(run.trainer.model).forward.__module__
print("FOUND", json.dumps([forward, run.losses, [weights.tolist() for weights in run.weights]]))
"""


@pytest.mark.slow
def test_the_kernel_of_liger_gives_the_loss_that_the_host_sees(inputs: Path, tmp_path: Path) -> None:
    """In Triton's interpreter, which runs the kernel on a CPU: the look before the first step, steps 5 and 6."""
    settings = {"max_steps": 6, "output_dir": str(tmp_path / "liger"), "scalebio": {"learn": {"steps": 4}}}
    plain = host.train(inputs, **{**settings, "output_dir": str(tmp_path / "plain")})
    plugin = {"plugins": ["axolotl.integrations.liger.LigerPlugin"]}
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED, json.dumps({**settings, **LIGER, **plugin}), inputs],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("FOUND "))
    forward, losses, weights = json.loads(line.removeprefix("FOUND "))
    assert forward.startswith("liger_kernel.")
    assert losses == pytest.approx(plain.losses, abs=2e-5)
    torch.testing.assert_close(torch.tensor(weights), torch.stack(plain.weights).float(), rtol=0, atol=1e-5)
