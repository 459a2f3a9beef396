"""A run on training rows that stand in the validation data: told, or dropped, also by those who go on from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import host
from tests.data.test_leaks import FOUND, LONG, SOURCES, entry, write_leaky

pytestmark = pytest.mark.host_contract
SAVED = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
SETS = {"validation: validation": {"rows": 25, "compared": 25, "sources": {"two": FOUND}}}


@pytest.fixture(scope="module")
def folder(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = write_leaky(tmp_path_factory.mktemp("leaky"))
    (made / "model").symlink_to(inputs / "model")
    return made


def train(folder: Path, out: str, on_leak: str, **overrides: Any) -> host.Run:
    block = {"validation_datasets": [entry("validation")], "on_leak": on_leak}
    datasets = [entry(name) for name in SOURCES]
    return host.train(
        folder, output_dir=out, datasets=datasets, scalebio=block, **{**LONG, "max_steps": 4, **overrides}
    )


@pytest.fixture(scope="module")
def dropped(folder: Path) -> host.Run:
    return train(folder, "dropped", "drop", **SAVED)


def test_it_is_on_what_the_run_leaves(dropped: host.Run) -> None:
    document = json.loads((dropped.folder / "mixture.json").read_text())
    assert document["leaks"] == {"on_leak": "drop", "sets": SETS}
    assert {name: of["examples"] for name, of in document["sources"].items()} == {"one": 60, "two": 55, "three": 60}
    assert "were dropped (on_leak: drop)" in (dropped.folder / "report.html").read_text()
    applied = yaml.safe_load((dropped.folder / "next.yml").read_text())["scalebio"]
    assert applied["on_leak"] == "drop"
    assert applied["validation_datasets"][0]["path"] == "validation.jsonl"


def test_the_next_run_drops_the_same_rows(dropped: host.Run, folder: Path) -> None:
    config = yaml.safe_load((dropped.folder / "next.yml").read_text())
    run = host.train(folder, whole_config={**config, "output_dir": "applied"})
    assert len(run.trainer.train_dataset) == 175


def test_a_resume_goes_on_without_them_and_refuses_to_go_on_with_them(dropped: host.Run, folder: Path) -> None:
    checkpoint = {"resume_from_checkpoint": str(Path(dropped.cfg.output_dir) / "checkpoint-2")}
    again = train(folder, "again", "drop", **SAVED, **checkpoint)
    assert again.weights[-1].tolist() == dropped.weights[-1].tolist()
    assert again.losses == dropped.losses
    with pytest.raises(ValueError, match="source 'two' had 55 rows and has 60: rows were added") as refused:
        train(folder, "other", "warn", **SAVED, **checkpoint)
    assert "scalebio.on_leak: this run has False and it had True" in str(refused.value)


def test_to_warn_changes_no_bit(folder: Path) -> None:
    warned, blind = (train(folder, on_leak, on_leak, parameters=True) for on_leak in ("warn", "off"))
    assert warned.losses == blind.losses
    for one, other in zip((*warned.model, *warned.inner), (*blind.model, *blind.inner), strict=True):
        assert all(one[name].equal(other[name]) for name in one)
    assert [of.tolist() for of in warned.weights] == [of.tolist() for of in blind.weights]
    leaks = [json.loads((run.folder / "mixture.json").read_text())["leaks"] for run in (warned, blind)]
    assert leaks == [{"on_leak": "warn", "sets": SETS}, None]
