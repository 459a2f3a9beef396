"""Configs as people write them, from learning over `next.yml` and a resume to the host's own run."""

from __future__ import annotations

import copy
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from tests import host
from tests.runs import ordinary
from tests.runs.ordinary import ROWS, Row
from tests.runs.test_inert import OUT_OF_PLAY
from tests.training.test_resume import assert_same_end

# Also on the newest host: every level of every choice, or both ways to pack, both lengths and all kinds of validation
# data. By default the first of these, or those that differ in most; the others are among the slow.
APPLIED = [ROWS[i] for i in (0, 4, 8, 11)]
RESUMED = [ROWS[i] for i in (2, 3, 4)]
SAME_AS_HOST = [ROWS[i] for i in (1, 2, 9)]
BETWEEN = [ROWS[i] for i in (2, 4, 8, 9)]  # those that save there
WHOLE = [row for row in ROWS if row.learn == "whole"]
KINDS = ("validation", "packed", "length")


def each(argument: str, rows: list[Row], newest: list[Row], quick: list[Row]) -> pytest.MarkDecorator:
    """Of `rows` the `newest` also on the newest host; the `quick` by default, the others with the slow tests."""
    params = [
        pytest.param(
            row,
            id=str(row),
            marks=[
                *([pytest.mark.host_contract] if row in newest else []),
                *([] if row in quick else [pytest.mark.slow]),
            ],
        )
        for row in rows
    ]
    return pytest.mark.parametrize(argument, params, indirect=True)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ordinary.make_inputs(tmp_path_factory.mktemp("ordinary"))


@dataclass(frozen=True)
class Learned:
    row: Row
    config: dict[str, Any]
    run: host.Run

    @property
    def out(self) -> Path:
        return Path(self.config["output_dir"])

    @property
    def saved(self) -> list[int]:
        return sorted(int(path.name.split("-")[1]) for path in self.out.glob("checkpoint-*"))


@pytest.fixture(scope="module")
def learned(request: pytest.FixtureRequest, inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Learned:
    config = ordinary.config_of(request.param, tmp_path_factory.mktemp("row") / "out")
    return Learned(request.param, config, host.train(inputs, whole_config=config))


def test_every_pair_is_there() -> None:
    assert ordinary.pairs(ROWS) == ordinary.all_pairs()
    assert all({getattr(row, choice) for row in APPLIED} == set(levels) for choice, levels in ordinary.LEVELS.items())
    for some in (RESUMED, SAME_AS_HOST):
        assert all({getattr(row, kind) for row in some} == set(ordinary.LEVELS[kind]) for kind in KINDS)


@each("learned", ROWS, ROWS, APPLIED)
def test_learns(learned: Learned) -> None:
    mixture = json.loads((learned.out / "scalebio/mixture.json").read_text())
    assert sorted(mixture["weights"]) == sorted(ordinary.SOURCES)
    assert all(0 < weight < 1 for weight in mixture["weights"].values())
    state = learned.run.trainer.state
    updates = len((learned.out / "scalebio/history.jsonl").read_text().splitlines())
    assert updates == (state.max_steps if learned.row.learn == "whole" else round(state.max_steps / 2))
    assert np.isfinite(learned.run.losses).all()
    assert_whole(learned.run, learned.config)


@each("learned", ROWS, APPLIED, APPLIED[2:])
def test_the_next_config_runs_for_as_long_as_the_host_would(learned: Learned, inputs: Path) -> None:
    config = yaml.safe_load((learned.out / "scalebio/next.yml").read_text())
    applied = host.train(inputs, whole_config=config)
    assert applied.directory / config["output_dir"] == learned.out.with_name("out-applied")
    assert np.isfinite(applied.losses).all()
    assert_whole(applied, config)
    assert applied.trainer.state.max_steps in host_counts(inputs, config, applied.trainer.train_dataset)


def assert_whole(run: host.Run, config: dict[str, Any]) -> None:
    """All of its steps were made, and they make up its epochs."""
    state = run.trainer.state
    assert state.global_step == state.max_steps == len(run.losses)
    if "max_steps" in config:
        assert state.max_steps == config["max_steps"]
    else:
        a_step = config["num_epochs"] / state.max_steps
        assert state.epoch == pytest.approx(config["num_epochs"], abs=a_step)
        assert state.num_train_epochs == config["num_epochs"]


def host_counts(inputs: Path, config: dict[str, Any], rows: Any) -> set[int]:
    """Steps that the host counts for `rows`. Packed, its count hangs a little on the order that it happens to draw."""
    from axolotl.utils.trainer import calculate_total_num_steps

    before = Path.cwd()
    os.chdir(inputs)
    try:
        counts, cfg = set(), host.load(inputs, config)
        for seed in range(8):
            torch.manual_seed(seed)
            counts.add(calculate_total_num_steps(copy.deepcopy(cfg), rows.flatten_indices()))
    finally:
        os.chdir(before)
    assert max(counts) - min(counts) <= 2, "the host's count says little"
    return {min(count, config.get("max_steps", count)) for count in counts}


@each("learned", ROWS, RESUMED, [row for row in RESUMED if row in APPLIED])
def test_resumed_from_the_middle_of_an_epoch_it_ends_with_the_same_bytes(
    learned: Learned, inputs: Path, tmp_path: Path
) -> None:
    assert_resumes(learned, learned.saved[0], inputs, tmp_path / "out")


@each("learned", BETWEEN, [], [])
def test_resumed_between_two_epochs_it_ends_with_the_same_bytes(learned: Learned, inputs: Path, tmp_path: Path) -> None:
    between = learned.run.trainer.state.global_step // 2
    assert_resumes(learned, between, inputs, tmp_path / "out")


def assert_resumes(learned: Learned, step: int, inputs: Path, again: Path) -> None:
    last = learned.run.trainer.state.global_step
    assert 0 < step < last == learned.saved[-1]
    shutil.copytree(learned.out / f"checkpoint-{step}", again / f"checkpoint-{step}")
    config = {**learned.config, "output_dir": str(again), "resume_from_checkpoint": f"{again}/checkpoint-{step}"}
    run = host.train(inputs, whole_config=config)
    assert len(run.weights) == last - step
    assert run.losses == learned.run.losses
    assert_same_end(learned.out, again, last)


@pytest.mark.host_contract
def test_without_a_seed_every_process_sees_the_same_rows(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from axolotl.integrations.base import PluginManager

    monkeypatch.chdir(inputs)
    row = next(row for row in ROWS if row.validation == "val_set_size")
    seen = []
    for process in range(2):
        np.random.seed(process)  # what differs between two processes
        cfg = host.load(inputs, ordinary.config_of(row, inputs / "out"))
        meta = PluginManager.get_instance().load_datasets(cfg, preprocess=False)
        seen.append([list(rows["input_ids"]) for rows in (meta.train_dataset, meta.eval_dataset)])
    assert seen[0] == seen[1]


@pytest.fixture(scope="module")
def same(request: pytest.FixtureRequest, inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """How the run ended with all of ours out of play, and how the plain host's did."""
    folder = tmp_path_factory.mktemp("same")
    config = ordinary.config_of(request.param, folder / "ours")
    if host.HOST_AVERAGES_MEANS:  # and the plugin all tokens of a step: only without accumulation the same
        config.pop("gradient_accumulation_steps", None)
    config["scalebio"] |= {**OUT_OF_PLAY, "sampling": "host"}
    config["seed"] = 42  # without one the plain host shuffles by chance
    stock = {key: value for key, value in config.items() if key != "scalebio"}
    plugins = ["tests.runs.ordinary.SeededPlugin", "tests.host.ProbePlugin"]
    stock |= {"plugins": plugins, "output_dir": str(folder / "host")}
    ours, theirs = (host.train(inputs, whole_config=each).trainer.state for each in (config, stock))
    return ours, theirs


def logged(state: Any, key: str) -> list[float]:
    return [entry[key] for entry in state.log_history if key in entry]


@each("same", WHOLE, SAME_AS_HOST, SAME_AS_HOST[:2])
def test_with_all_of_ours_out_of_play_it_is_the_hosts_run(same: tuple[Any, Any]) -> None:
    ours, theirs = same
    assert len(logged(ours, "loss")) == ours.max_steps
    for key in ("loss", "grad_norm", "learning_rate", "epoch"):
        assert logged(ours, key) == logged(theirs, key), key
    for key in ("global_step", "max_steps", "num_train_epochs", "epoch", "save_steps", "eval_steps"):
        assert getattr(ours, key) == getattr(theirs, key), key


@each("same", WHOLE, SAME_AS_HOST, SAME_AS_HOST[:2])
def test_the_evaluation_is_the_hosts_too(same: tuple[Any, Any], request: pytest.FixtureRequest) -> None:
    ours, theirs = same
    assert logged(ours, "eval_loss") == logged(theirs, "eval_loss")
    row = request.node.callspec.params["same"]
    assert bool(logged(ours, "eval_loss")) == (row.validation != "validation_datasets")
