"""The plugin in the real host trains what two whole models in a slow literal loop train: λ, w and u, every step."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import host
from tests.runs.twin import Recording, Twin

SOURCES = ["clean", "wrong", "offtopic"]
# Where no attention is named the host lets packed sequences attend to each other; the twin computes each alone.
PACKED = {"sample_packing": True, "micro_batch_size": 2, "attn_implementation": "sdpa"}
LISA = {"active_layers": 1, "interval": 3}
TWO_VALIDATION_SETS = [
    {"path": "data/validation.jsonl", "type": "alpaca", "weight": 3.0},
    {"path": "data/test.jsonl", "type": "alpaca", "weight": 1.0},
]


@dataclass(frozen=True)
class Case:
    """A config, and how it is run. `rows` of each source; `model`: see `model_keys`; `whole`: see `Twin`."""

    host: dict[str, Any] = field(default_factory=dict)
    scalebio: dict[str, Any] = field(default_factory=dict)
    model: str = "model"
    float64: bool = True
    whole: bool = False
    rows: int = 96
    steps: int = 7


def accumulated(micro_batches: int) -> dict[str, Any]:
    return {"gradient_accumulation_steps": micro_batches, "micro_batch_size": 2}


SYMMETRIC = {"estimator": "symmetric", "penalty": 5.0}
ADAM = {"mixture_update": "adam", "mixture_learning_rate": 0.05}
SEQUENCE = {"loss_unit": "sequence"}
DRAWN = {"sampling": "mixture", "max_repeats": 1000}
DROPOUT = {"overrides_of_model_config": {"attention_dropout": 0.1}}

CASES = {
    "full": Case(),
    "full, float32": Case(float64=False),
    "full, accumulated, sequence, symmetric, adam": Case(accumulated(4), {**SEQUENCE, **SYMMETRIC, **ADAM}),
    "full, packed, accumulated, proportional": Case({**PACKED, **accumulated(4)}, {"mixture_init": "proportional"}),
    # The first token of a sequence is a label there, but nothing precedes it: no target.
    "full, packed, train_on_inputs, sequence, float32": Case(
        {**PACKED, "train_on_inputs": True}, SEQUENCE, float64=False
    ),
    "full, dropout, symmetric": Case({**DROPOUT, "max_grad_norm": 0.1}, SYMMETRIC, whole=True),
    "lora, packed, dropout": Case({**host.LORA, **PACKED, "lora_dropout": 0.1}, whole=True),
    # A rate at which the first gaps of an adapter, which λ's rules scale up, stand far above the noise of float32.
    "lora, sequence, float32": Case({**host.LORA, "learning_rate": 2e-2}, SEQUENCE, float64=False),
    "lisa": Case(scalebio={"lisa": LISA}, model="four_layers"),
    "lisa, packed, accumulated, embeddings, symmetric": Case(
        {**PACKED, **accumulated(4)},
        {**SYMMETRIC, "lisa": {**LISA, "active_layers": 2, "train_embeddings": True}},
        model="four_layers",
    ),
    "lisa, adam, float32": Case(scalebio={**ADAM, "lisa": LISA}, model="four_layers", float64=False),
    # 30 rows: 8 micro-batches an epoch, the last of 2 rows; in threes, the last two.
    "accumulation with a remainder, four epochs": Case(
        {**accumulated(3), "micro_batch_size": 4}, SEQUENCE, rows=10, steps=10
    ),
    "warmup, update interval, lisa": Case(
        scalebio={"warmup_steps": 4, "update_interval": 2, "lisa": LISA}, model="four_layers"
    ),
    "gpt2, tied embeddings, dropout": Case(model="gpt2", whole=True),
    "gpt2, lisa with tied embeddings, dropout": Case(
        scalebio={"lisa": {**LISA, "train_embeddings": True}}, model="gpt2", whole=True
    ),
    "drawn by source": Case(scalebio={**DRAWN, **ADAM}, steps=18),
    "drawn by source, lora, accumulated with a remainder, sequence, symmetric, float32": Case(
        {**host.LORA, **accumulated(3), "micro_batch_size": 4, "learning_rate": 2e-2},
        {**DRAWN, **SEQUENCE, **SYMMETRIC},
        rows=10,
        float64=False,
        steps=10,
    ),
    "drawn by source, packed, accumulated, after a warmup": Case(
        {**PACKED, **accumulated(2)}, {**DRAWN, **ADAM, "warmup_steps": 3}, steps=14
    ),
    "two weighted validation sets, in chunks": Case(
        scalebio={"validation_batch_size": 6, "validation_datasets": TWO_VALIDATION_SETS}
    ),
}
QUICK = (
    *("full, packed, accumulated, proportional", "lora, packed, dropout"),
    "lisa, packed, accumulated, embeddings, symmetric",
    "gpt2, lisa with tied embeddings, dropout",
    "drawn by source, lora, accumulated with a remainder, sequence, symmetric, float32",
    "drawn by source, packed, accumulated, after a warmup",
    "two weighted validation sets, in chunks",
)
METHODS = {
    "full": Case(),
    "lora": Case(host.LORA),
    "lisa": Case(scalebio={"lisa": LISA}, model="four_layers"),
}
CHOICES = (
    tuple(METHODS),
    *((1, 4), ("padded", "packed"), ("token", "sequence"), ("forward", "symmetric"), ("eg", "adam")),
)
# A quarter of all combinations: with each method those in which both sums of these choices are even. Nothing in a step
# depends on more than three choices at once, and any three can be whatever they like (`test_any_three_choices_meet`).
CHOSEN = (((1, 2, 4), (1, 3, 5)), ((2, 3, 4), (1, 4, 5)), ((1, 2, 4), (1, 3, 5)))
PRODUCT = {
    ", ".join(map(str, names)): Case(
        {**METHODS[method].host, **accumulated(micro_batches), **(PACKED if packed == "packed" else {})},
        {**METHODS[method].scalebio, "loss_unit": unit, "estimator": estimator, **(ADAM if rule == "adam" else {})},
        model=METHODS[method].model,
    )
    for chosen in product(range(3), *[range(2)] * 5)
    if not any(sum(chosen[i] for i in of) % 2 for of in CHOSEN[chosen[0]])
    for names in [[levels[i] for levels, i in zip(CHOICES, chosen, strict=True)]]
    for method, micro_batches, packed, unit, estimator, rule in [names]
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in CASES]
)
def test_same_as_two_models(name: str, inputs: Path, tmp_path: Path) -> None:
    assert_same_as_two_models(CASES[name], inputs, tmp_path)


def test_any_three_choices_meet() -> None:
    rows = [name.split(", ") for name in PRODUCT]
    for three in combinations(range(len(CHOICES)), 3):
        assert len({tuple(row[i] for i in three) for row in rows}) == math.prod(len(CHOICES[i]) for i in three)


@pytest.mark.slow
@pytest.mark.parametrize("name", PRODUCT)
def test_same_as_two_models_in_every_combination(name: str, inputs: Path, tmp_path: Path) -> None:
    assert_same_as_two_models(PRODUCT[name], inputs, tmp_path)


def assert_same_as_two_models(case: Case, inputs: Path, tmp_path: Path) -> None:
    data = first_rows(case.rows, inputs)
    run = host.train(
        inputs,
        datasets=[{"path": str(file), "type": "alpaca"} for file in data],
        output_dir=str(tmp_path),
        plugins=["scalebio", "tests.host.ProbePlugin", "tests.runs.twin.RecorderPlugin"],
        parameters=True,
        float64=case.float64,
        max_steps=case.steps,
        weight_decay=0.1,
        scalebio=case.scalebio,
        **model_keys(case.model, inputs),
        **case.host,
    )
    recording, validation = Recording.last, case.scalebio.get("validation_datasets")
    twin = Twin(
        recording,
        [inputs / file for file in data],
        {inputs / entry["path"]: entry["weight"] for entry in validation or ()}
        or {inputs / "data/validation.jsonl": None},
        whole=case.whole,
    )
    tolerance = 1e-7 if case.float64 else 1e-4
    history = {record["step"]: record for record in map(json.loads, (run.folder / "history.jsonl").open())}
    differences: dict[str, float] = {}
    assert len(recording.steps) == case.steps
    for k, step in enumerate(recording.steps):
        twin.step(step)
        found = compare(twin, run, k, history.get(k + 1))
        assert history.get(k + 1, {}).get("learning_rate", step.rates[0]) == step.rates[0]
        differences = {what: largest([size, differences.get(what, 0.0)]) for what, size in found.items()}
    print("DEV", tmp_path.name, {k: f"{v:.1e}" for k, v in differences.items()})
    assert largest(differences.values()) < tolerance, differences


def first_rows(rows: int, inputs: Path) -> list[Path]:
    """Files of the sources with that many rows, relative to `inputs`."""
    files = [Path(f"data/{name}.jsonl") for name in SOURCES]
    lines = [(inputs / file).read_text().splitlines(keepends=True) for file in files]
    if rows == len(lines[0]):
        return files
    short = [Path(f"data_{rows}/{file.name}") for file in files]
    for file, all_lines in zip(short, lines, strict=True):
        (inputs / file).parent.mkdir(exist_ok=True)
        (inputs / file).write_text("".join(all_lines[:rows]))
    return short


def model_keys(name: str, inputs: Path) -> dict[str, str]:
    """The host's keys for the two-layer Llama of the inputs, one of four layers, or a GPT-2: tied weights, dropout."""
    if name == "model":
        return {}
    if name == "four_layers":
        return host.add_model(inputs, name, layers=4)
    from transformers import GPT2Config

    return host.add_model(inputs, name, config=GPT2Config(n_embd=32, n_layer=4, n_head=2, n_positions=512))


def compare(twin: Twin, run: host.Run, k: int, record: dict[str, Any] | None) -> dict[str, float]:
    """Largest absolute difference of everything after step k."""
    found = {"weights": difference(twin.weights, run.weights[k])}
    w = dict(twin.w.named_parameters())
    assert run.model[k].keys() <= w.keys()
    found["w"] = largest(difference(w[name], value) for name, value in run.model[k].items())
    if twin.u is not None:
        u = dict(twin.u.named_parameters())
        # What u does not hold has never been trained: it is w's.
        found["u"] = largest(difference(u[name], run.inner[k].get(name, w[name])) for name in run.model[k])
    if record is not None:
        found["gap"] = difference(twin.gap, list(record["pull"].values()))
        found["units"] = difference([round(units) for units in twin.units], list(record["units"].values()))
        found["losses"] = largest(
            [abs(twin.train_loss - record["train_loss"]), abs(twin.val_loss - record["val_loss"])]
        )
    return found


def largest(values: Iterable[float]) -> float:
    """NaN where one is: Python's `max` depends on the order then."""
    return float(np.max(list(values)))


def difference(a: torch.Tensor | list[float], b: torch.Tensor | list[float]) -> float:
    a, b = (torch.as_tensor(values, dtype=torch.float64).detach() for values in (a, b))
    return float((a - b).abs().max())
