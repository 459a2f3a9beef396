"""What the whole method is for, in the real host: planted mixtures are found; and the facts of LISA in a run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from scipy.stats import spearmanr

from benchmarks.apart import layers_drawn_apart
from scalebio_plugin.algorithm.lisa import LayerPlan, draw_layers
from scalebio_plugin.quickstart import planted
from scalebio_plugin.quickstart.command import example_config
from scalebio_plugin.quickstart.planted import TRUE_WEIGHTS
from tests import host

EXAMPLE = yaml.safe_load(example_config("quickstart.yml").read_text())
SETTINGS = {key: EXAMPLE[key] for key in ("micro_batch_size", "learning_rate", "lr_scheduler", "weight_decay")}
SMALL = {"layers": 2, "hidden": 32, "heads": 2}
FOUR_LAYERS = {**SMALL, "layers": 4}
LISA = {"lisa": {"active_layers": 2, "interval": 10}}
PAPER_WITH_LISA = {
    "lisa": {"active_layers": 2, "interval": 20},
    "penalty": 100.0,
    "mixture_update": "adam",
    "mixture_learning_rate": 0.02,
}


def learn(directory: Path, *, seed: int, steps: int, model: dict[str, int] | None = None, **settings: Any) -> host.Run:
    """Train on the planted mixture as the quickstart does, with another seed of data, model and run."""
    directory.mkdir(exist_ok=True)
    planted.build_model(directory / "model", seed=seed, **(model or {}))
    planted.write_data(directory / "data", seed=seed)
    return host.train(directory, max_steps=steps, seed=seed, **{**SETTINGS, **settings})


def first_found(run: host.Run) -> int | None:
    """The optimiser step from which on `clean` is above 0.8 and each other source below 0.1."""
    step = None
    for number, weights in enumerate(run.weights, start=1):
        of = dict(zip(TRUE_WEIGHTS, weights.tolist(), strict=True))
        found = of["clean"] > 0.8 and max(of["wrong"], of["offtopic"]) < 0.1
        step = (step or number) if found else None
    print(f"found from step {step} on; at the end {of}")
    return step


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2, 3, 4])
def test_the_planted_mixture_is_found(tmp_path: Path, seed: int) -> None:
    assert first_found(learn(tmp_path, seed=seed, steps=70, model=SMALL)) is not None


def noisy(rate: float) -> planted.MakeRow:
    """Rows that are wrong with probability `rate`."""
    return lambda question, rng: (planted.wrong_row if rng.random() < rate else planted.clean_row)(question, rng)


@pytest.mark.slow
def test_ten_sources_end_ordered_by_their_noise(tmp_path: Path) -> None:
    """-ρ after 60, 80, 100 and 120 steps: 0.976, 0.964, 0.988, 0.988; with data and model of seed 1 0.939 to 1."""
    planted.build_model(tmp_path / "model", **SMALL)
    rates = {f"ninths{n}": n / 9 for n in range(10)}
    makers = {name: noisy(rate) for name, rate in rates.items()}
    planted.write_rows(tmp_path / "data", makers, seed=0, rows=512, held_out=128)
    datasets = [{"path": f"data/{name}.jsonl", "type": "alpaca"} for name in rates]
    run = host.train(tmp_path, datasets=datasets, max_steps=120, **SETTINGS)
    weights = run.weights[-1].tolist()
    print(dict(zip(rates, weights, strict=True)))
    assert -spearmanr([*rates.values()], weights).statistic > 0.9


@pytest.mark.slow
def test_the_planted_mixture_is_found_by_an_adapter(tmp_path: Path) -> None:
    """On a base that knows the words: an adapter cannot write with a head of small random weights."""
    planted.build_model(tmp_path / "model")
    planted.write_data(tmp_path / "data")
    host.train(tmp_path, plugins=["tests.host.ProbePlugin"], output_dir="base", max_steps=100, **SETTINGS)
    settings = {**SETTINGS, **host.LORA, "lora_r": 8, "lora_alpha": 16}
    assert first_found(host.train(tmp_path, base_model="base", max_steps=100, **settings)) is not None


class TestLisaLearns:
    @pytest.mark.slow
    def test_the_planted_mixture_is_found_and_not_with_layers_drawn_apart(self, tmp_path: Path) -> None:
        """A pretrained model, LISA, the paper's update of λ at 0.02: found at step 61 of 90 (seeds 1 and 2: at 72, 61).

        With layers drawn apart `clean` has 0.28 then. With twice the width it was found in a longer run, at step 142:
        where the data is this clear, the noise between the sets averages out. benchmarks/denoising.md (`--lisa`) has a
        case where it does not.
        """
        planted.build_model(tmp_path / "model", **FOUR_LAYERS)
        planted.write_data(tmp_path / "data")
        host.train(tmp_path, plugins=["tests.host.ProbePlugin"], output_dir="base", max_steps=100, seed=0, **SETTINGS)
        keys = {**SETTINGS, "base_model": "base", "learning_rate": 5e-4, "num_epochs": 9, "max_steps": 90}

        def found(name: str) -> int | None:
            return first_found(host.train(tmp_path, output_dir=name, seed=0, scalebio=PAPER_WITH_LISA, **keys))

        assert found("same") is not None
        with layers_drawn_apart():
            assert found("apart") is None

    @pytest.mark.slow
    def test_without_validation_data_the_mixture_rests_but_moves_with_layers_drawn_apart(self, tmp_path: Path) -> None:
        """The negative control: two sets that differ in their layers have a gap that says nothing of the data.

        With seeds 0, 1 and 2 λ has moved by 0.17, 0.21 and 0.23 after 30 steps.
        """
        control = {**LISA, "penalty": math.inf}
        same = learn(tmp_path / "same", seed=0, steps=40, model=FOUR_LAYERS, scalebio=control)
        assert all(torch.equal(weights, same.weights[0]) for weights in same.weights)
        with layers_drawn_apart():
            apart = learn(tmp_path / "apart", seed=0, steps=40, model=FOUR_LAYERS, scalebio=control)
        print(apart.weights[-1])
        assert max(float((weights - 1 / 3).abs().max()) for weights in apart.weights) > 0.1


class Steps:
    """After every step of a run: names that trained, and names with optimizer state at w and at u."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        from scalebio_plugin.training.callbacks import ScaleBiOCallback

        self.active: list[set[str]] = []
        self.model_state: list[set[str]] = []
        self.inner_state: list[set[str]] = []
        self.layers: list[tuple[int, ...]] = []

        def on_step_end(_: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.note(_.trainer)

        monkeypatch.setattr(ScaleBiOCallback, "on_step_end", on_step_end, raising=False)

    def note(self, trainer: Any) -> None:
        parameters, optimizer = trainer.trainable_parameters(), trainer.raw_optimizer()
        self.active.append({name for name, parameter in parameters.items() if parameter.requires_grad})
        self.model_state.append({name for name, parameter in parameters.items() if optimizer.state.get(parameter)})
        self.inner_state.append({name for name, state in trainer.learning.inner.states.items() if state})
        self.layers.append(trainer.learning.layers.layers)
        self.plan: LayerPlan = trainer.learning.layers.plan


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    return Steps(monkeypatch)


class TestLisaRuns:
    """Short runs of a four-layer model, two layers at a time, three steps each."""

    SETTINGS = {"max_steps": 8, "scalebio": {"lisa": {"active_layers": 2, "interval": 3}}}

    @pytest.fixture(scope="class")
    def four(self, inputs: Path) -> dict[str, str]:
        return host.add_model(inputs, "four-layers", layers=4)

    @pytest.mark.parametrize("train_embeddings", [False, True])
    def test_state_exists_and_values_move_for_the_active_layers_alone(
        self, inputs: Path, tmp_path: Path, four: dict[str, str], steps: Steps, train_embeddings: bool
    ) -> None:
        block = {"lisa": {"active_layers": 2, "interval": 3, "train_embeddings": train_embeddings}}
        run = host.train(
            inputs, output_dir=str(tmp_path), parameters=True, **{**self.SETTINGS, "scalebio": block}, **four
        )
        expected = [draw_layers(4, 2, host.BASE["seed"], step // 3) for step in range(8)]
        assert steps.layers == expected
        assert len(set(expected)) > 1
        others = set(steps.plan.others)
        outside = {"embed_tokens", "norm", "lm_head"}
        assert {name.split(".")[-2] for name in others} == (outside if train_embeddings else set())
        frozen = {name.split(".")[-2] for name, p in run.trainer.model.named_parameters() if not p.requires_grad}
        assert outside & frozen == (set() if train_embeddings else outside)
        trained: set[str] = set()
        for number, layers in enumerate(expected):
            active = {name for layer in layers for name in steps.plan.blocks[layer]}
            active |= others if train_embeddings else set()
            assert steps.active[number] == active
            assert steps.model_state[number] == active
            assert steps.inner_state[number] == active
            trained |= active
            assert set(run.inner[number]) == trained
        for number in range(1, 8):
            assert moved(run.model[number - 1], run.model[number]) == steps.active[number]
            assert moved(run.inner[number - 1], run.inner[number]) == steps.active[number]
        document = json.loads((tmp_path / "scalebio/mixture.json").read_text())
        assert document["layer_steps"] == [sum(layer in layers for layers in expected) for layer in range(4)]

    def test_layers_after_a_resume_are_those_of_the_unbroken_run(
        self, inputs: Path, tmp_path: Path, four: dict[str, str], steps: Steps
    ) -> None:
        saving = {**self.SETTINGS, **four, "save_strategy": "steps", "save_steps": 4}
        host.train(inputs, output_dir=str(tmp_path / "whole"), **saving)
        whole = [steps.layers[:], steps.active[:], steps.model_state[:], steps.inner_state[:]]
        for noted in (steps.layers, steps.active, steps.model_state, steps.inner_state):
            noted.clear()
        checkpoint = str(tmp_path / "whole/checkpoint-4")  # in the middle of the second period
        host.train(inputs, output_dir=str(tmp_path / "again"), resume_from_checkpoint=checkpoint, **saving)
        again = [steps.layers, steps.active, steps.model_state, steps.inner_state]
        assert again == [noted[4:] for noted in whole]

    def test_the_keys_of_the_host_are_taken_over(
        self, inputs: Path, tmp_path: Path, four: dict[str, str], steps: Steps
    ) -> None:
        keys = {"lisa_n_layers": 1, "lisa_step_interval": 2, "lisa_layers_attribute": "model.layers"}
        run = host.train(inputs, output_dir=str(tmp_path), max_steps=5, **keys, **four)
        settings = run.trainer.learning.layers.settings
        assert (settings.active_layers, settings.interval, settings.train_embeddings) == (1, 2, True)
        assert steps.layers == [draw_layers(4, 1, host.BASE["seed"], step // 2) for step in range(5)]
        names = [type(callback).__name__ for callback in run.trainer.callback_handler.callbacks]
        assert not [name for name in names if "lisa" in name.lower()]
        assert run.cfg.lisa_n_layers is None

    def test_more_layers_than_there_are_is_an_error_that_says_how_many(
        self, inputs: Path, tmp_path: Path, four: dict[str, str]
    ) -> None:
        with pytest.raises(ValueError, match=r"active_layers must be at most 4 \(the layers of LlamaForCausalLM\)"):
            host.train(inputs, output_dir=str(tmp_path), scalebio={"lisa": {"active_layers": 5}}, **four)


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """Names whose values differ; what is new in `after` has just begun to train."""
    return {name for name in after if name not in before or not torch.equal(before[name], after[name])}
