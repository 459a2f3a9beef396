"""Of several `test_datasets` the evaluation has the loss of each, and its own as ever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests import host

pytestmark = pytest.mark.host_contract
TESTS = [{"path": f"data/{name}.jsonl", "type": "alpaca", "split": "train"} for name in ("validation", "offtopic")]
EVERY = {"eval_steps": 3, "max_steps": 6}
PACKED = {"sample_packing": True, "eval_sample_packing": True, "micro_batch_size": 1}


def logged(run: host.Run, key: str) -> list[float]:
    return [entry[key] for entry in run.trainer.state.log_history if key in entry]


def token_mean(trainer: Any, rows: Any) -> float:
    total, targets = 0.0, 0
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        with torch.no_grad():
            loss = trainer.model(input_ids=ids, labels=labels).loss
        count = int((labels[:, 1:] != -100).sum())
        total, targets = total + float(loss) * count, targets + count
    return total / targets


@pytest.mark.parametrize("packing", [pytest.param({}, marks=pytest.mark.slow), PACKED], ids=["plain", "packed"])
def test_the_loss_of_each(inputs: Path, tmp_path: Path, packing: dict[str, Any]) -> None:
    found: dict[str, float] = {}

    def look(trainer: Any) -> None:
        found.update({name: token_mean(trainer, rows) for name, rows in trainer.test_sets.items()})

    longer = {
        "max_steps": 24,
        "eval_steps": 12,
        "learning_rate": 1e-2,
        "test_datasets": TESTS,
    }  # until the losses differ
    run = host.train(inputs, output_dir=str(tmp_path / "out"), at_end=look, **longer, **packing)
    assert list(run.trainer.test_sets) == ["validation", "offtopic"]
    assert [len(rows) for rows in run.trainer.test_sets.values()] == [32, 96]
    for name in ("validation", "offtopic"):
        losses = logged(run, f"eval_{name}_loss")
        assert len(losses) == len(logged(run, "eval_loss")) >= 2
        assert losses[-1] == pytest.approx(found[name], rel=0.05)  # the host averages the means of batches
    assert abs(found["validation"] - found["offtopic"]) > 0.3


def test_the_loss_of_all_is_as_ever_and_one_set_has_no_other(inputs: Path, tmp_path: Path) -> None:
    two = host.train(inputs, output_dir=str(tmp_path / "two"), test_datasets=TESTS, **EVERY)
    assert len(two.trainer.eval_dataset) == 128
    one = host.train(inputs, output_dir=str(tmp_path / "one"), test_datasets=TESTS[:1], **EVERY)
    assert not [key for entry in one.trainer.state.log_history for key in entry if key.startswith("eval_validation")]


@pytest.mark.parametrize("packing", [{}, {**PACKED, "micro_batch_size": 2}], ids=["plain", "packed"])
def test_a_set_that_fills_no_packed_batch_is_told(
    inputs: Path, tmp_path: Path, packing: dict[str, Any], log: list[str]
) -> None:
    (tmp_path / "few.jsonl").write_text("".join((inputs / "data/clean.jsonl").read_text().splitlines(True)[:1]))
    few = {"path": str(tmp_path / "few.jsonl"), "type": "alpaca", "split": "train"}
    run = host.train(inputs, output_dir=str(tmp_path / "out"), test_datasets=[TESTS[0], few], **EVERY, **packing)
    assert len([line for line in log if "few has too few rows for a loss of its own" in line]) == bool(packing)  # once
    assert bool(logged(run, "eval_few_loss")) is not bool(packing)
    assert logged(run, "eval_validation_loss")


def test_the_best_model_can_be_that_of_one_set(inputs: Path, tmp_path: Path) -> None:
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_validation_loss", "save_strategy": "steps"}
    run = host.train(inputs, output_dir=str(tmp_path), test_datasets=TESTS, save_steps=3, **EVERY, **best)
    assert run.trainer.state.best_metric == min(logged(run, "eval_validation_loss")[-2:])


def test_a_run_can_stop_early_by_the_loss_of_one_set(inputs: Path, tmp_path: Path) -> None:
    """Which falls, where more is said to be better: so it is worse at each of the two evaluations after the first."""
    by_it = {"metric_for_best_model": "eval_validation_loss", "greater_is_better": True, "early_stopping_patience": 2}
    saving = {"load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 1}
    steps = {"max_steps": 9, "eval_steps": 1, "learning_rate": 5e-3}
    run = host.train(inputs, output_dir=str(tmp_path), test_datasets=TESTS, **steps, **saving, **by_it)
    losses = logged(run, "eval_validation_loss")
    assert losses == sorted(losses, reverse=True)
    assert run.trainer.state.global_step == 3


def test_the_loss_of_what_is_held_out_of_each_source(inputs: Path, tmp_path: Path) -> None:
    """A source may have the name of a test set."""
    found: dict[str, float] = {}

    def look(trainer: Any) -> None:
        found.update({name: token_mean(trainer, rows) for name, rows in trainer.test_sets.items()})

    names = ["clean", "wrong", "validation"]
    block = {"held_out_rows": 20, "names": names}
    longer = {"max_steps": 12, "eval_steps": 12, "learning_rate": 1e-2, "eval_batch_size": 4}
    run = host.train(inputs, output_dir=str(tmp_path), test_datasets=TESTS, at_end=look, scalebio=block, **longer)
    assert [(name, len(rows)) for name, rows in run.trainer.test_sets.items()] == [
        *(("validation", 32), ("offtopic", 96)),
        *((name, 20) for name in ("clean", "wrong", "validation#2")),
    ]
    for name, loss in found.items():
        assert logged(run, f"eval_{name}_loss")[-1] == pytest.approx(loss, rel=0.05)
    assert len(run.trainer.train_dataset) == 3 * 76
