"""Whole runs with the block's own defaults, which `tests.host.LIVELY` replaces elsewhere: rows drawn by source, λ moved
on evidence, from the proportions of the data.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scalebio_plugin.config.block import ScaleBiOSettings
from scalebio_plugin.training import objective
from tests import host
from tests.runs.test_learning import SETTINGS
from tests.training.test_resume import assert_same_end

DEFAULT = {key: getattr(ScaleBiOSettings(), key) for key in host.LIVELY}
LONG = {**SETTINGS, "max_steps": 84, "save_strategy": "steps", "save_steps": 77, "save_total_limit": 9}
GOALS = {
    "validation_datasets": [
        {"path": f"data/{name}.jsonl", "type": "alpaca", "shards": 4, "shards_idx": 0, "weight": weight}
        for name, weight in (("validation", 3.0), ("offtopic", 1.0))
    ]
}


def train(directory: Path, out: Path, *, scalebio: dict[str, Any] | None = None, **keys: Any) -> host.Run:
    return host.train(directory, output_dir=str(out), scalebio={**DEFAULT, **(scalebio or {})}, **keys)


def history(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "scalebio/history.jsonl").read_text().splitlines()]


def test_the_defaults_are_the_ones_that_were_measured() -> None:
    assert DEFAULT == {"mixture_update": "evidence", "mixture_init": "proportional", "sampling": "mixture"}


@pytest.fixture(scope="module")
def whole(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> host.Run:
    """It finds the planted mixture; with a checkpoint in the middle of a segment, after evidence has moved λ."""
    return train(inputs, tmp_path_factory.mktemp("whole"), picture=True, **LONG)


def test_the_planted_mixture_is_found_and_said_to_be(whole: host.Run) -> None:
    found = json.loads((whole.folder / "mixture.json").read_text())
    assert found["weights"]["clean"] > 0.9
    assert found["verdict"] != "no signal"
    assert found["sources"]["clean"]["evidence"] < -1
    low, high = found["sources"]["clean"]["interval"]
    assert low < found["weights"]["clean"] <= high
    assert sum(found["drawn"].values()) == LONG["max_steps"] * SETTINGS["micro_batch_size"]
    assert found["drawn"]["clean"] > 2 * found["drawn"]["wrong"]
    assert whole.losses[-1] < whole.losses[0]


def test_without_a_pull_the_mixture_stays_to_the_bit_and_learning_ends_for_want_of_signal(
    inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    block = {"penalty": float("inf"), "learn": {"until": "converged", "at_most": 0.8}}
    saving = {"max_steps": 40, "save_strategy": "steps", "save_steps": 12, "save_total_limit": 9}
    with caplog.at_level("INFO", logger="axolotl.scalebio"):
        run = train(inputs, tmp_path / "whole", scalebio=block, **saving)
    records = history(tmp_path / "whole")
    assert len(records) == 16  # half of 32
    assert all(record["weights"] == records[0]["weights"] for record in records)
    assert {record["verdict"] for record in records} == {"no signal"}
    assert all(ends[0] == ends[1] for ends in records[-1]["interval"].values())
    assert run.trainer.learning.run.learn_until == 16
    assert run.trainer.state.global_step == 40
    host.as_if_killed(tmp_path / "whole", tmp_path / "killed", 24)
    again = train(inputs, tmp_path / "killed", auto_resume_from_checkpoints=True, scalebio=block, **saving)
    assert len(again.weights) == 40 - 24
    assert again.trainer.state.global_step == 40
    assert_same_end(tmp_path / "whole", tmp_path / "killed", 40)


def test_a_resumed_run_goes_on_with_all_that_it_knew(inputs: Path, tmp_path: Path, whole: host.Run) -> None:
    there, again = Path(whole.cfg.output_dir), tmp_path / "again"
    host.as_if_killed(there, again, 77)
    run = train(inputs, again, auto_resume_from_checkpoints=True, **LONG)
    assert len(run.weights) == 84 - 77, "it did not go on from checkpoint-77"
    records = history(there)
    assert records[76]["weights"] != records[0]["weights"]
    assert records == history(again)
    assert_same_end(there, again, 84)


def test_packed_with_lora_and_accumulation_it_is_the_proportional_run_before_there_is_evidence(
    inputs: Path, tmp_path: Path
) -> None:
    keys = {**host.LORA, "sample_packing": True, "micro_batch_size": 1, "gradient_accumulation_steps": 2}
    run = train(inputs, tmp_path, max_steps=12, **keys)
    records = history(tmp_path)
    share = dict(zip(records[0]["weights"], run.trainer.learning.run.share_S.tolist(), strict=True))
    assert [record["weights"] for record in records] == [pytest.approx(share, abs=1e-12)] * 12
    assert {record["verdict"] for record in records} == {"no signal"}
    assert any(gap != 0.0 for gap in records[-1]["gap"].values())
    drawn = json.loads((tmp_path / "scalebio/mixture.json").read_text())["drawn"]
    floored = 0.9 * np.array(list(share.values())) + 0.1 / 3  # a tenth from all sources alike
    parts = np.array([drawn[name] for name in share]) / sum(drawn.values())
    assert parts == pytest.approx(run.trainer.learning.stream.table.sampling(floored), abs=0.06)


@pytest.mark.parametrize("worst", [False, True], ids=["mean", "worst"])
def test_the_validation_loss_is_that_of_the_weighted_sets(
    inputs: Path, tmp_path: Path, worst: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objective, "RATE", 0.5)
    block = {**GOALS, "objective": "worst" if worst else "mean", "validation_batch_size": 12}
    train(inputs, tmp_path, scalebio=block, max_steps=6, picture=worst)
    records = history(tmp_path)
    for record in records:  # however many rows of each set a batch holds
        seen = [(record["val_weights"][name], loss) for name, loss in record["val_losses"].items() if loss is not None]
        assert record["val_loss"] == pytest.approx(sum(q * loss for q, loss in seen) / sum(q for q, _ in seen))
    moved = records[-1]["val_weights"] != records[0]["val_weights"]
    assert moved == worst
    if worst:
        losses = records[0]["val_losses"]
        higher = max(losses, key=lambda name: losses[name])
        assert records[1]["val_weights"][higher] > records[0]["val_weights"][higher]
