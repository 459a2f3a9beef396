"""A comparison as its user runs it, through the host's own command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from scalebio_plugin.cli import main
from scalebio_plugin.compare.arms import LEARNED, PROPORTIONAL, RUN, VALIDATION_DRAWN
from tests import host

pytestmark = pytest.mark.slow
TESTS = [{"path": "data/offtopic.jsonl", "type": "alpaca", "split": "train"}]
ARMS = (LEARNED, PROPORTIONAL, VALIDATION_DRAWN)  # the others are configs of these kinds
# From the host's defaults: packed, with evaluation and epochs.
ORDINARY = {"sample_packing": True, "micro_batch_size": 1, "num_epochs": 1, "max_steps": None, "evals_per_epoch": 2}


def test_every_arm_is_trained_and_judged_on_the_same_rows(inputs: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    config = host.config_of(test_datasets=TESTS, eval_steps=None, plugins=["scalebio"], **ORDINARY)
    monkeypatch.chdir(inputs)
    (tmp_path / "config.yml").write_text(yaml.safe_dump(config))
    folder = tmp_path / "compared"
    arms = ["compare", str(tmp_path / "config.yml"), "--dir", str(folder), "--seeds", "1", "--arms", *ARMS]
    assert main(arms) == 0, capsys.readouterr().err
    document = json.loads((folder / "compare.json").read_text())
    assert set(document["arms"]) == {RUN, *ARMS}
    assert len({arm["steps"] for arm in document["arms"].values()}) == 1
    judged = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/judged.json")}
    assert {len(of["tokens"]) for of in judged.values()} == {96}
    assert len({json.dumps(of["tokens"]) for of in judged.values()}) == 1
    assert len({of["losses"][0] for of in judged.values()}) == len(judged)  # no arm is another
