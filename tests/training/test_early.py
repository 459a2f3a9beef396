"""What cannot be trained is refused before a model loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from axolotl.core.trainers.base import AxolotlTrainer
from axolotl.integrations.base import BasePlugin

from tests import host

pytestmark = pytest.mark.host_contract


@pytest.fixture(autouse=True)
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    from axolotl.loaders.model import ModelLoader

    def load(self: Any) -> None:
        raise RuntimeError("the model loads")

    monkeypatch.setattr(ModelLoader, "load", load)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"scalebio": {"lisa": {"active_layers": 3}}},
            "scalebio.lisa.active_layers must be at most 2 (the layers of LlamaForCausalLM), got 3",
        ),
        ({"scalebio": {"warmup_steps": 6}}, "scalebio.warmup_steps must be below the steps of the run (6), got 6"),
        (
            {"scalebio": {"warmup_steps": 72}, "max_steps": None, "num_epochs": 1},
            "scalebio.warmup_steps must be below the steps of the run (72), got 72",
        ),
        (
            {"scalebio": {"update_interval": 5, "learn": {"steps": 3}}},
            "scalebio.update_interval must be at most the steps that learn (3), got 5",
        ),
        (
            {"scalebio": {"update_interval": 3, "warmup_steps": 2, "learn": {"fraction": 0.5}}},
            "scalebio.update_interval must be at most the steps that learn (2), got 3",
        ),
    ],
    ids=["more layers than there are", "warmup of all steps", "warmup of an epoch", "no update", "none in a part"],
)
def test_refused(inputs: Path, tmp_path: Path, keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match="scalebio") as refused:
        host.train(inputs, output_dir=str(tmp_path), **keys)
    assert str(refused.value).startswith(said)


@pytest.mark.parametrize(
    "keys",
    [
        {"scalebio": {"lisa": {"active_layers": 2}}},
        {"scalebio": {"warmup_steps": 5}},
        {"scalebio": {"update_interval": 3, "learn": {"steps": 3}}},
        {"scalebio": {"warmup_steps": 100}, "max_steps": 101, "num_epochs": 1},
    ],
    ids=["all layers", "one step to learn", "one update", "more steps than an epoch"],
)
def test_fine(inputs: Path, tmp_path: Path, keys: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match="the model loads"):
        host.train(inputs, output_dir=str(tmp_path), **keys)


class BringsATrainer(BasePlugin):
    """As a plugin for another way to train does."""

    def get_trainer_cls(self, cfg: Any) -> type[AxolotlTrainer]:
        return AxolotlTrainer


@pytest.mark.parametrize("first", [True, False])
def test_a_plugin_that_brings_a_trainer_too_is_refused_by_name(inputs: Path, tmp_path: Path, first: bool) -> None:
    plugins = ["tests.training.test_early.BringsATrainer", "scalebio", "tests.host.ProbePlugin"]
    order = plugins if first else [*plugins[1:], plugins[0]]
    with pytest.raises(
        ValueError, match=r"test_early\.BringsATrainer gives the run a trainer of its own .AxolotlTrainer"
    ):
        host.train(inputs, output_dir=str(tmp_path), plugins=order)
