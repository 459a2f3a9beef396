"""Whole runs whose rows are drawn by source: as many of each as the mixture has, through the host's loader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scalebio_plugin.data import applied
from scalebio_plugin.data.step_plan import FLOOR
from scalebio_plugin.training import callbacks
from tests import host
from tests.runs.test_twin import SOURCES
from tests.runs.twin import Recording, pieces, source_of, sources_by_text

DRAWN = {"sampling": "mixture", "max_repeats": 1000}
PACKED = {"sample_packing": True, "micro_batch_size": 2}
RESTING = {"clean": 0.6, "wrong": 0.3, "offtopic": 0.1}
STEPS = 24
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "padded": ({}, {}),
    "accumulated, workers": (
        {"gradient_accumulation_steps": 4, "micro_batch_size": 2, "dataloader_num_workers": 2},
        {"loss_unit": "sequence"},
    ),
    "packed": (PACKED, {}),
    "lora, packed, accumulated": ({**host.LORA, **PACKED, "gradient_accumulation_steps": 2}, {}),
    "learn": ({}, {"learn": {"steps": 2}, "warmup_steps": 3}),
    "learn, packed, workers": ({**PACKED, "dataloader_num_workers": 2}, {"learn": {"steps": 2}}),
    "group_by_length": ({"group_by_length": True}, {}),
    "one source at a time": ({"curriculum_sampling": True, "shuffle_merged_datasets": False}, {}),
}

QUICK = ("accumulated, workers", "lora, packed, accumulated", "learn, packed, workers", "one source at a time")


def train(inputs: Path, out: Path, steps: int = STEPS, *, scalebio: dict[str, Any], **keys: Any) -> host.Run:
    return host.train(
        inputs,
        output_dir=str(out),
        plugins=["scalebio", "tests.host.ProbePlugin", "tests.runs.twin.RecorderPlugin"],
        max_steps=steps,
        scalebio={**DRAWN, **scalebio},
        **keys,
    )


def sequences(run: host.Run, inputs: Path) -> np.ndarray:  # (steps, S)
    """Of every step, how many its batches hold of each source, by their text."""
    files = sources_by_text([inputs / f"data/{name}.jsonl" for name in SOURCES])
    found = np.zeros((len(Recording.last.steps), 3), dtype=int)
    for number, step in enumerate(Recording.last.steps):
        for batch in step.batches:
            for row, first, end in pieces(batch):
                if (batch["labels"][row, first:end] != -100).any():
                    tokens = batch["input_ids"][row, first:end].tolist()
                    found[number, source_of(tokens, run.trainer.processing_class, files)] += 1
    return found


@pytest.mark.host_contract
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in CASES]
)
def test_what_is_drawn_is_what_is_weighed(
    name: str, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[str] = []
    for module in (applied, callbacks):
        monkeypatch.setattr(module.LOG, "info", messages.append)
    keys, block = CASES[name]
    resting = {"mixture_learning_rate": 0.0, "mixture_init": RESTING}
    run = train(inputs, tmp_path, scalebio={**block, **resting}, **keys)
    assert run.trainer.state.global_step == STEPS
    drawn, found = json.loads((run.folder / "mixture.json").read_text())["drawn"], sequences(run, inputs)
    assert drawn == dict(zip(SOURCES, found.sum(0).tolist(), strict=True))
    learning, weights = run.trainer.learning, np.array(list(RESTING.values()))
    first = learning.run.learn_until if "learn" in block else 0
    q = (weights if first else (1 - FLOOR) * weights + FLOOR / 3) / learning.stream.draw.mean_units
    rows = found[first:].sum(0)
    assert (abs(rows - rows.sum() * q / q.sum()) < 4 * (STEPS / 4) ** 0.5).all()  # a step's count is off by one at most
    assert sum("drawn by these fractions" in message for message in messages) == (2 if "learn" in block else 1)
    (ending,) = [message for message in messages if "rows drawn: " in message]
    assert f"clean {drawn['clean']} (each {drawn['clean'] / 96:.2f} times)" in ending
    assert len(run.trainer.accelerator._dataloaders) <= 2, "loaders pile up"


def test_workers_change_nothing(inputs: Path, tmp_path: Path) -> None:
    """Nor does what they draw from torch's generators: there is dropout."""
    keys = {**host.LORA, **PACKED, "lora_dropout": 0.1}
    one, two = (
        train(inputs, tmp_path / str(workers), 12, scalebio={}, dataloader_num_workers=workers, **keys)
        for workers in (0, 2)
    )
    assert one.losses == two.losses
    assert torch.equal(one.weights[-1], two.weights[-1])


def test_the_coefficients_stay_near_one(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment's steps differ by how far the mixture moves in them."""
    from scalebio_plugin.training.mixture_run import MixtureRun

    seen: list[torch.Tensor] = []
    coefficient_S = MixtureRun.coefficient_S
    monkeypatch.setattr(
        MixtureRun, "coefficient_S", lambda run, share: seen.append(coefficient_S(run, share)) or seen[-1]
    )
    run = train(inputs, tmp_path, scalebio={"mixture_learning_rate": 0.03})
    moved = max(float((run.weights[k + 7] / run.weights[k]).max()) for k in range(len(run.weights) - 8))
    assert len(seen) == STEPS
    assert torch.stack(seen).max() < moved / (1 - FLOOR) + 1e-6
    assert torch.stack(seen).min() > 0.5


def test_the_logged_loss_does_not_jump(tmp_path: Path) -> None:
    """Sources of 6, 300 and 300 rows at equal weights: in the host's order a row of the first counts 33 times.

    Also where `max_repeats` holds it back, and a row of it counts for eight.
    """
    inputs = host.make_inputs(tmp_path, rows=300)
    rare = (inputs / "data/clean.jsonl").read_text().splitlines(keepends=True)[:6]
    (inputs / "data/clean.jsonl").write_text("".join(rare))
    spread = {}
    for sampling, max_repeats in (("host", 4), ("mixture", 4), ("mixture", 1000)):
        run = train(
            inputs,
            tmp_path / f"{sampling}{max_repeats}",
            20,
            scalebio={"sampling": sampling, "max_repeats": max_repeats, "mixture_learning_rate": 0.0},
            learning_rate=1e-6,  # the loss rests, but for what a step holds
        )
        spread[sampling, max_repeats] = float(np.std(np.diff(run.losses)))
        history = [json.loads(line) for line in (run.folder / "history.jsonl").open()]
        assert [record["train_loss"] for record in history] == pytest.approx(run.losses, rel=1e-3)
    print("sd of the logged loss between steps:", spread)
    assert max(spread["mixture", 4], spread["mixture", 1000]) < 0.05 * spread["host", 4]
