"""`scalebio.apply`: an ordinary run whose sampling follows learned weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from scalebio_plugin.report.mixture_file import mixture_document, write_mixture
from scalebio_plugin.report.summary import SourceSummary
from tests import host
from tests.report.histories import facts


def write_weights(path: Path, weights: dict[str, float]) -> str:
    summaries = {name: SourceSummary(weight, weight, 1.0, 1.0, 0.0, None) for name, weight in weights.items()}
    counts = dict.fromkeys(weights, 1)
    write_mixture(path, mixture_document(summaries, facts(counts, counts), None))
    return str(path)


def apply(inputs: Path, path: str, **overrides: Any) -> host.Run:
    block = {"validation_datasets": None, "apply": path, **overrides.pop("scalebio", {})}
    return host.train(inputs, scalebio=block, **overrides)


@pytest.fixture(scope="module")
def applied(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> host.Run:
    folder = tmp_path_factory.mktemp("applied")
    path = write_weights(folder / "mixture.json", {"clean": 0.5, "wrong": 0.3, "offtopic": 0.2})
    return apply(inputs, path, output_dir=str(folder / "out"))


@pytest.mark.host_contract
def test_tokens_of_the_training_set_follow_the_weights(applied: host.Run) -> None:
    tokens = np.zeros(3)
    for row in applied.trainer.train_dataset:
        text = applied.trainer.processing_class.decode(row["input_ids"])
        tokens[2 if "about both" in text else 0] += sum(label != -100 for label in row["labels"][1:])
    assert tokens[2] / tokens.sum() == pytest.approx(0.2, abs=0.02)
    assert len(applied.trainer.train_dataset) == 3 * 96


def test_the_run_is_the_hosts_own(applied: host.Run) -> None:
    assert type(applied.trainer).__name__ == "AxolotlTrainer"
    assert "scalebio_source" not in applied.trainer.train_dataset.column_names
    assert len(applied.losses) == 6
    assert not applied.folder.exists()


@pytest.mark.host_contract
def test_the_next_config_that_a_run_leaves_runs_as_it_is(inputs: Path, tmp_path: Path) -> None:
    learned = host.train(inputs, output_dir=str(tmp_path / "learn"))
    config = yaml.safe_load((tmp_path / "learn/scalebio/next.yml").read_text())
    assert "axolotl_config_path" not in config
    assert config["plugins"] == host.BASE["plugins"]
    applied = host.train(inputs, whole_config=config)
    assert Path(applied.cfg.output_dir) == tmp_path / "learn-applied"
    assert type(applied.trainer).__name__ == "AxolotlTrainer"
    assert applied.cfg.learning_rate == learned.cfg.learning_rate
    assert np.isfinite(applied.losses).all()


def test_packed(inputs: Path, tmp_path: Path) -> None:
    path = write_weights(tmp_path / "mixture.json", {"clean": 1.0, "wrong": 0.0, "offtopic": 0.0})
    run = apply(inputs, path, output_dir=str(tmp_path / "out"), sample_packing=True, max_steps=3)
    assert len(run.trainer.train_dataset) == 3 * 96
    assert np.isfinite(run.losses).all()


def test_max_repeats_caps_a_small_source(inputs: Path, tmp_path: Path) -> None:
    path = write_weights(tmp_path / "mixture.json", {"clean": 1.0, "wrong": 0.0, "offtopic": 0.0})
    run = apply(inputs, path, output_dir=str(tmp_path / "out"), scalebio={"max_repeats": 2}, max_steps=2)
    rows = [str(row["input_ids"]) for row in run.trainer.train_dataset]
    assert len(rows) == 192
    assert max(rows.count(row) for row in set(rows)) == 2


def test_other_sources_are_refused_by_name(inputs: Path, tmp_path: Path) -> None:
    path = write_weights(tmp_path / "mixture.json", {"clean": 0.5, "noise": 0.5})
    with pytest.raises(ValueError, match=r"noise.*offtopic"):
        apply(inputs, path, output_dir=str(tmp_path / "out"))


def test_a_file_that_is_no_mixture_is_refused(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "mixture.json").write_text(json.dumps({"schema": 1, "weights": {"clean": 0.7, "wrong": 0.7}}))
    with pytest.raises(ValueError, match="sum to 1"):
        apply(inputs, str(tmp_path / "mixture.json"), output_dir=str(tmp_path / "out"))
