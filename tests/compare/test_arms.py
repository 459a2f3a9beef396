"""The config of each arm: what it shares with the run that learns, and what it leaves out."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from scalebio_plugin.compare import arms
from scalebio_plugin.config.block import settings_of
from scalebio_plugin.config.refusals import problems_of

CONFIG: dict[str, Any] = {
    "base_model": "org/model",
    "plugins": ["scalebio", "axolotl.integrations.liger.LigerPlugin"],
    "datasets": [{"path": "math.jsonl", "type": "alpaca"}, {"path": "org/chat", "type": "chat_template"}],
    "test_datasets": [{"path": "test.jsonl", "type": "alpaca", "split": "train"}],
    "sample_packing": True,
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "num_epochs": 2,
    "evals_per_epoch": 4,
    "early_stopping_patience": 3,
    "load_best_model_at_end": True,
    "hub_model_id": "me/mine",
    "output_dir": "out",
    "seed": 7,
    "scalebio": {
        "validation_datasets": [{"path": "wanted.jsonl", "type": "alpaca", "weight": 2.0}],
        "penalty": 20.0,
        "max_repeats": 3,
    },
}
KNOWN = {"weight_average": 0.5, "loss": 1.0, "inner_loss": 1.0, "gap": 0.0, "gap_se": None}
DOCUMENT: dict[str, Any] = {
    "schema": 1,
    "weights": {"org/chat": 0.9, "math": 0.1},
    "sources": {
        "org/chat": {"weight": 0.9, "tokens": 6000, "examples": 200, **KNOWN},
        "math": {"weight": 0.1, "tokens": 2000, "examples": 200, **KNOWN},
    },
    "validation": {"wanted": {"weight": 1.0, "tokens": 500, "examples": 50}},
}


def run_config() -> dict[str, Any]:
    return arms.run_config(CONFIG, Path("arms/run-7"), 7)


def test_run_is_the_config_judged_at_its_end() -> None:
    before = copy.deepcopy(CONFIG)
    made = run_config()
    assert before == CONFIG
    assert made["scalebio"] == CONFIG["scalebio"]
    assert made["plugins"] == [*CONFIG["plugins"], arms.JUDGE]
    for key in ("base_model", "datasets", "test_datasets", "sample_packing", "num_epochs", "micro_batch_size"):
        assert made[key] == CONFIG[key]
    assert (made["output_dir"], made["seed"]) == ("arms/run-7", 7)


def test_no_arm_is_chosen_by_the_rows_that_judge_it_or_pushed_anywhere() -> None:
    gone = {"evals_per_epoch", "early_stopping_patience", "load_best_model_at_end", "hub_model_id"}
    assert not gone & run_config().keys()
    assert run_config()["eval_strategy"] == "no"


def test_no_arm_saves_by_a_metric_that_it_does_not_have() -> None:
    best = {**CONFIG, "save_strategy": "best", "metric_for_best_model": "loss"}
    assert "save_strategy" not in arms.run_config(best, Path("arms/run-7"), 7)
    assert arms.run_config({**CONFIG, "save_strategy": "epoch"}, Path("a"), 7)["save_strategy"] == "epoch"


def test_no_arm_keeps_rows_back_that_another_trains_on() -> None:
    block = {**CONFIG["scalebio"], "held_out_rows": 5}
    assert arms.run_config({**CONFIG, "scalebio": block}, Path("arms/run-7"), 7)["scalebio"] == CONFIG["scalebio"]


def test_an_ordinary_run_applies_a_mixture() -> None:
    made = arms.applied_config(run_config(), Path(__file__))
    assert made["scalebio"] == {"apply": __file__, "max_repeats": 3}
    assert problems_of(made) == []
    assert {key: made[key] for key in CONFIG if key in made and key not in ("scalebio", "plugins", "output_dir")} == {
        key: CONFIG[key] for key in CONFIG if key in made and key not in ("scalebio", "plugins", "output_dir")
    }


def test_without_scalebio_nothing_of_it_is_left() -> None:
    made = arms.plain_config(run_config())
    assert "scalebio" not in made
    assert made["plugins"] == [CONFIG["plugins"][1], arms.JUDGE]
    assert made["datasets"] == CONFIG["datasets"]


def test_validation_rows_are_added_as_they_are() -> None:
    made = arms.plain_config(run_config(), with_validation=True)
    assert made["datasets"] == [*CONFIG["datasets"], {"path": "wanted.jsonl", "type": "alpaca"}]


def test_validation_rows_are_drawn_as_often_as_the_pull_sees_them() -> None:
    weights = arms.validation_drawn_weights({**CONFIG, "sample_packing": False}, DOCUMENT)
    # A step has 8 rows of 20 tokens, and 2 validation rows of 10.
    assert weights == pytest.approx(
        {"org/chat": 0.75 * 160 / 180, "math": 0.25 * 160 / 180, "validation: wanted": 20 / 180}
    )
    packed = arms.validation_drawn_weights(CONFIG, DOCUMENT)  # a step has 8 bins, and 2 of validation rows, all full
    assert packed == pytest.approx({"org/chat": 0.75 * 8 / 10, "math": 0.25 * 8 / 10, "validation: wanted": 2 / 10})
    made = arms.drawn_config(run_config(), Path(__file__))
    assert made["scalebio"]["names"] == ["math", "org/chat", "validation: wanted"]
    assert set(made["scalebio"]["names"]) == set(weights)
    assert len(made["datasets"]) == 3
    assert problems_of(made) == []
    settings_of(made)


def test_mixtures_by_name() -> None:
    names = ["math", "org/chat"]
    assert arms.weights_of("uniform", names, None) == {"math": 0.5, "org/chat": 0.5}
    assert arms.weights_of("single-org/chat", names, None) == {"math": 0.0, "org/chat": 1.0}
    assert arms.weights_of("own", names, {"math": 3.0, "org/chat": 1.0}) == {"math": 0.75, "org/chat": 0.25}
    assert arms.weights_of("own", names, {"math": 3.0}) == {"math": 1.0, "org/chat": 0.0}
    one, again, other = (arms.weights_of(f"random-{k}", names, None) for k in (1, 1, 2))
    assert one == again != other
    assert sum(one.values()) == pytest.approx(1)
    assert arms.weights_of("random-1", names[::-1], None) == one
    assert arms.proportional(DOCUMENT) == {"org/chat": 0.75, "math": 0.25}


@pytest.mark.parametrize(
    "own", [{"maths": 1.0}, {"math": 0.0}, {"math": -1.0, "org/chat": 2.0}, {"math": float("nan")}]
)
def test_a_mixture_of_other_sources_or_without_weights_is_refused(own: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="there are math, org/chat"):
        arms.weights_of("own", ["math", "org/chat"], own)
    with pytest.raises(ValueError, match="no source 'maths'"):
        arms.weights_of("single-maths", ["math", "org/chat"], None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"plugins": []}, "plugins:"),
        ({"scalebio": {**CONFIG["scalebio"], "apply": "mixture.json"}}, "scalebio.apply"),
        ({"scalebio": {**CONFIG["scalebio"], "on_leak": "drop"}}, "scalebio.on_leak: drop"),
        ({"test_datasets": None}, "test_datasets"),
        ({"lr_scheduler": "reduce_lr_on_plateau"}, "lr_scheduler: reduce_lr_on_plateau"),
        ({"scalebio": {}}, "scalebio.validation_datasets"),
    ],
)
def test_what_cannot_be_compared_is_refused(change: dict[str, Any], said: str) -> None:
    arms.refuse_unfit(CONFIG)
    with pytest.raises(ValueError, match=said):
        arms.refuse_unfit({**CONFIG, **change})


def test_an_unknown_arm_is_refused() -> None:
    arms.refuse_unknown(["run", "uniform", "single-math"])
    with pytest.raises(ValueError, match="got unifrom"):
        arms.refuse_unknown(["unifrom"])
