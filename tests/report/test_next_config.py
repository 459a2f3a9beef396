"""`next.yml`: the config of a run as the ordinary run on its mixture."""

from __future__ import annotations

import pytest
import yaml

from scalebio_plugin.report.next_config import next_config

CONFIG = {
    "base_model": "some/model",
    "plugins": ["scalebio"],
    "datasets": [{"path": "a.jsonl", "type": "alpaca"}, {"path": "b.jsonl", "type": "alpaca"}],
    "scalebio": {
        "validation_datasets": [{"path": "v.jsonl", "type": "alpaca"}],
        "penalty": 20.0,
        "learn": {"fraction": 0.5},
        "names": ["math", "Märchen"],
    },
    "output_dir": "outputs/first/",
    "learning_rate": 1e-5,
    "axolotl_config_path": "config.yml",
    "resume_from_checkpoint": "outputs/first/checkpoint-10",
    "wandb_run_id": "abc",
    # Arguments of `axolotl train`, which the host hands over with the config.
    **{"debug": False, "debug_text_only": False, "debug_num_examples": 0, "shard": False},
}


def test_all_but_the_block_and_what_points_back_is_kept() -> None:
    text = next_config(CONFIG, "outputs/first/")
    kept = {key: CONFIG[key] for key in ("base_model", "plugins", "datasets", "output_dir", "learning_rate")}
    block = {"apply": "outputs/first/scalebio/mixture.json", "names": ["math", "Märchen"]}
    expected = {**kept, "output_dir": "outputs/first-applied", "scalebio": block}
    assert list(yaml.safe_load(text).items()) == list(expected.items())
    assert "LISA" not in text


@pytest.mark.parametrize(("on_leak", "kept"), [("drop", True), ("warn", False), ("error", False), (False, False)])
def test_rows_that_were_dropped_are_dropped_again(on_leak: str | bool, kept: bool) -> None:
    block = {**CONFIG["scalebio"], "on_leak": on_leak}
    applied = yaml.safe_load(next_config({**CONFIG, "scalebio": block}, "out"))["scalebio"]
    dropping = {key: block[key] for key in ("on_leak", "validation_datasets")}
    assert {key: value for key, value in applied.items() if key in dropping} == (dropping if kept else {})


@pytest.mark.parametrize("block", [None, {}], ids=str)
def test_the_plugins_line_alone(block: dict | None) -> None:
    applied = yaml.safe_load(next_config({**CONFIG, "scalebio": block}, "./out"))
    assert applied["scalebio"] == {"apply": "./out/scalebio/mixture.json"}


def test_that_lisa_stays_behind_is_said() -> None:
    text = next_config({**CONFIG, "scalebio": {"lisa": {"active_layers": 2}}}, "out")
    assert "trained with LISA" in text.split("base_model")[0]
    assert "lisa" not in yaml.safe_load(text)["scalebio"]


def test_what_has_no_form_in_yaml_is_an_error_of_yaml() -> None:
    with pytest.raises(yaml.YAMLError):
        next_config({**CONFIG, "callback": object()}, "out")
