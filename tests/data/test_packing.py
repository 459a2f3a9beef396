"""Packed runs at the host's defaults (its padding, epochs instead of max_steps): steps, loading, validation batches."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests import host

PACKED = {"sample_packing": True, "micro_batch_size": 2, "max_steps": None}
TEST_SETS = {"test_datasets": [{"path": "data/validation.jsonl", "type": "alpaca", "split": "train"}]}
COUNTED = {"sample_packing_eff_est", "total_num_tokens", "total_supervised_tokens"}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few rows, as the runs have whole epochs."""
    return host.make_inputs(tmp_path_factory.mktemp("packing"), rows=32)


def counted_anew(run: host.Run) -> int:
    """Steps that the host counts for the training set of a run, from its config as the user wrote it."""
    from axolotl.utils.trainer import calculate_total_num_steps

    cfg = copy.deepcopy(run.cfg)
    for key in COUNTED:
        cfg.pop(key, None)
    rows = run.trainer.train_dataset
    return calculate_total_num_steps(cfg, rows.remove_columns(set(rows.column_names) & {"scalebio_source"}))


def set_weights(run: host.Run, path: Path, weights: dict[str, float]) -> None:
    document = json.loads((run.folder / "mixture.json").read_text())
    document["weights"] = weights
    path.write_text(json.dumps(document))


@pytest.fixture(scope="module")
def learned(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> host.Run:
    """A packed run of an epoch, and a mixture for the next one."""
    run = host.train(inputs, output_dir=str(tmp_path_factory.mktemp("learn") / "out"), **PACKED)
    set_weights(run, run.folder / "mixture.json", {"clean": 0.1, "wrong": 0.1, "offtopic": 0.8})
    return run


@pytest.mark.host_contract
@pytest.mark.parametrize("epochs", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_the_next_run_has_as_many_steps_as_the_host_counts_on_its_rows(
    inputs: Path, learned: host.Run, tmp_path: Path, epochs: int
) -> None:
    assert learned.trainer.state.global_step == learned.trainer.state.max_steps == counted_anew(learned)
    config = yaml.safe_load((learned.folder / "next.yml").read_text())
    assert "max_steps" not in config
    config |= {"num_epochs": epochs, "output_dir": str(tmp_path / "applied")}
    applied = host.train(inputs, whole_config=config)
    state = applied.trainer.state
    assert isinstance(state.max_steps, int)
    assert state.global_step == state.max_steps == counted_anew(applied)
    assert state.epoch == pytest.approx(epochs, abs=0.35)  # the host's count leaves out a last bin that is not full
    assert applied.cfg.total_num_tokens == sum(map(len, applied.trainer.train_dataset["input_ids"]))


def test_the_part_after_learning_ends_where_the_hosts_run_would(inputs: Path, tmp_path: Path) -> None:
    keys = {**PACKED, "num_epochs": 2}
    plain = host.train(inputs, plugins=["tests.host.ProbePlugin"], output_dir=str(tmp_path / "plain"), **keys)
    half = host.train(inputs, output_dir=str(tmp_path / "half"), scalebio={"learn": {"fraction": 0.5}}, **keys)
    assert half.trainer.state.global_step == half.trainer.state.max_steps == plain.trainer.state.global_step
    assert half.trainer.state.epoch == plain.trainer.state.epoch


@pytest.mark.host_contract
@pytest.mark.parametrize(
    "keys", [{}, {"max_steps": 3}, pytest.param({"eval_sample_packing": False}, marks=pytest.mark.slow)], ids=str
)
def test_test_datasets_load_with_sample_packing(inputs: Path, tmp_path: Path, keys: dict[str, Any]) -> None:
    run = host.train(inputs, output_dir=str(tmp_path / "out"), **{**PACKED, **TEST_SETS, **keys})
    assert run.trainer.state.global_step == min(counted_anew(run), keys.get("max_steps", 1000))
    assert run.folder.joinpath("mixture.json").exists()


@pytest.mark.host_contract
@pytest.mark.parametrize("keys", [{}, TEST_SETS, {"val_set_size": 0.1}], ids=lambda keys: "".join(keys) or "own")
def test_loading_leaves_the_config_as_the_host_would(inputs: Path, keys: dict[str, Any]) -> None:
    from axolotl.common.datasets import load_datasets
    from axolotl.integrations.base import PluginManager

    from scalebio_plugin.config.block import settings_of
    from scalebio_plugin.data.loading import COUNTED_BY_HOST
    from scalebio_plugin.data.sources import prepare

    assert set(COUNTED_BY_HOST) == COUNTED
    before = Path.cwd()
    os.chdir(inputs)
    try:
        cfg = host.load(inputs, host.config_of(**{**PACKED, **keys}))
        written = copy.deepcopy(cfg.to_dict())
        prepare(cfg, settings_of(cfg.to_dict()))
        assert cfg.to_dict() == written
        PluginManager.get_instance().load_datasets(cfg, preprocess=False)
        alone = host.load(inputs, host.config_of(plugins=[], **{**PACKED, **keys}))
        load_datasets(cfg=alone)
    finally:
        os.chdir(before)
    assert {key for key, value in cfg.to_dict().items() if written.get(key) != value} == COUNTED
    assert {key: cfg[key] for key in COUNTED} == {key: alone[key] for key in COUNTED}


@pytest.mark.host_contract
@pytest.mark.parametrize(
    ("keys", "rows"),
    [({}, 2), ({"gradient_accumulation_steps": 4}, 2), ({"gradient_accumulation_steps": 12}, 6)],
    ids=["one micro-batch", "a quarter of four", "a quarter of twelve"],
)
def test_validation_rows_are_packed_as_training_rows(
    inputs: Path, tmp_path: Path, keys: dict[str, Any], rows: int
) -> None:
    """In passes no larger than a training micro-batch, each of them full."""
    seen: list[tuple[int, ...]] = []
    run = host.train(
        inputs,
        output_dir=str(tmp_path / "out"),
        plugins=["tests.host.ProbePlugin", "scalebio"],  # the probe sees what the host's collator gives
        on_batch=lambda trainer, batch: seen.append(tuple(batch["input_ids"].shape)),
        **{**PACKED, "max_steps": 2, **keys},
    )
    stream = run.trainer.learning.validation
    passes = [list(stream.batches(step)) for step in range(5)]
    assert set(seen) == {(2, 128)}
    assert all(tuple(batch["input_ids"].shape) == (2, 128) for one in passes for batch in one)
    assert all(sum(len(batch["input_ids"]) for batch in one) == rows for one in passes)
    for batch in (batch for one in passes for batch in one):
        assert (batch["scalebio_source"] >= 0).double().mean() > 0.6
        assert batch["position_ids"].max() < 128
        assert (np.diff(batch["scalebio_sequence"].flatten()) != 0).sum() > len(batch["input_ids"])


def test_a_given_validation_batch_holds_so_many_sequences(inputs: Path, tmp_path: Path) -> None:
    run = host.train(
        inputs, output_dir=str(tmp_path / "out"), scalebio={"validation_batch_size": 7}, **{**PACKED, "max_steps": 2}
    )
    stream = run.trainer.learning.validation
    for step in range(6):
        batches = list(stream.batches(step))
        assert sum(int((batch["scalebio_sequence"].unique() >= 0).sum()) for batch in batches) == 7  # -1 on padding
        assert all(len(batch["input_ids"]) <= 2 for batch in batches)


class TestRowsWithoutTarget:
    """The host keeps such rows where it does not pack; they are never drawn, so that the shares are the weights."""

    KEYS = {"type": "alpaca"}

    @pytest.fixture(scope="class")
    def folder(self, inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("without")
        (folder / "model").symlink_to(inputs / "model")
        for name, empty in (("half", 100), ("full", 0)):
            rows = [{"instruction": f"say {name} {n}", "input": "", "output": "yes"} for n in range(200)]
            for row in rows[:empty]:
                row["instruction"] += " and again" * 200  # truncated before its answer
            (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return folder

    def keys(self, output_dir: Path, **block: Any) -> dict[str, Any]:
        return {
            "datasets": [{"path": f"{name}.jsonl", **self.KEYS} for name in ("half", "full")],
            "scalebio": {"validation_datasets": [{"path": "full.jsonl", **self.KEYS}], **block},
            "excess_length_strategy": "truncate",
            "output_dir": str(output_dir),
        }

    def shares(self, rows: list[list[int]], of_half: list[bool]) -> float:
        """Part of the drawn target tokens that are of `half`."""
        targets = [sum(label != -100 for label in labels[1:]) for labels in rows]
        assert min(targets) > 0
        return sum(n for n, half in zip(targets, of_half, strict=True) if half) / sum(targets)

    def test_apply(self, folder: Path, tmp_path: Path) -> None:
        from tests.runs import test_apply

        path = test_apply.write_weights(tmp_path / "mixture.json", {"half": 0.5, "full": 0.5})
        run = test_apply.apply(folder, path, **self.keys(tmp_path / "out", validation_datasets=None))
        rows = run.trainer.train_dataset
        of_half = ["half" in run.trainer.processing_class.decode(ids) for ids in rows["input_ids"]]
        assert len(rows) == 300
        assert self.shares(rows["labels"], of_half) == pytest.approx(0.5, abs=0.01)

    def test_after_learning(self, folder: Path, tmp_path: Path) -> None:
        block = {"learn": {"steps": 1}, "mixture_learning_rate": 0.0}
        run = host.train(folder, **self.keys(tmp_path / "out", **block), max_steps=3)
        stream = run.trainer.learning.stream
        assert (stream.drawable == -1).sum() == 100
        labels, of_half = [], []
        for batch in stream.loader_over(stream._rows(stream.table.sampling(np.array([0.5, 0.5]))), 0):
            labels += batch["labels"].tolist()
            of_half += (batch["scalebio_source"].max(dim=1).values == 0).tolist()
        assert self.shares(labels, of_half) == pytest.approx(0.5, abs=0.02)
