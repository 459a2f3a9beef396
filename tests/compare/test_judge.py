"""Losses of single test rows, measured inside the host's run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from scalebio_plugin.compare.arms import JUDGE
from scalebio_plugin.compare.judge import losses_by_row
from tests import host

pytestmark = pytest.mark.host_contract
TESTS = [{"path": "data/validation.jsonl", "type": "alpaca", "split": "train"}]
JUDGED = {"test_datasets": TESTS, "eval_strategy": "no", "eval_batch_size": 5, "eval_steps": None}
PACKED = {"sample_packing": True, "eval_sample_packing": False, "micro_batch_size": 1}


def test_losses_by_row_against_a_loop() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 5, 7), torch.randint(0, 7, (3, 5))
    labels[0, :3] = labels[2] = -100
    found = losses_by_row(logits, labels)
    for row in range(3):
        chances = [logits[row, at - 1].log_softmax(0)[labels[row, at]] for at in range(1, 5) if labels[row, at] >= 0]
        assert found[row, 0].item() == pytest.approx(-sum(float(of) for of in chances), rel=1e-5)
        assert found[row, 1].item() == len(chances)


def by_hand(trainer: Any) -> list[tuple[float, int]]:
    found = []
    for row in trainer.eval_dataset:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        with torch.no_grad():
            loss = trainer.model.eval()(input_ids=ids, labels=labels).loss
        count = int((labels[:, 1:] != -100).sum())
        found.append((float(loss) * count, count))
    return found


@pytest.mark.parametrize(
    "change",
    [
        {"plugins": [JUDGE, "tests.host.ProbePlugin"]},
        {"plugins": ["scalebio", JUDGE, "tests.host.ProbePlugin"], **host.LORA, **PACKED},
        {"plugins": ["scalebio", JUDGE, "tests.host.ProbePlugin"], "scalebio": {"keep": "inner"}},
    ],
    ids=["ordinary", "learns, lora, packed", "keeps the inner set"],
)
def test_it_is_that_of_the_model_that_is_saved(inputs: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    expected: list[tuple[float, int]] = []

    def look(trainer: Any) -> None:
        learning = getattr(trainer, "learning", None)
        if learning is None:
            expected.extend(by_hand(trainer))
        else:
            with learning.kept_in_place():
                expected.extend(by_hand(trainer))

    out = tmp_path / "out"
    host.train(inputs, output_dir=str(out), at_end=look, max_steps=6, learning_rate=1e-2, **JUDGED, **change)
    judged = json.loads((out / "judged.json").read_text())
    assert judged["tokens"] == [count for _, count in expected]
    assert judged["losses"] == pytest.approx([loss for loss, _ in expected], rel=2e-4)
    assert judged["steps"] == 6
    assert judged["seconds"] > 0
