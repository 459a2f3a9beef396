"""A comparison as its user runs it, through the host's own command."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import yaml

from scalebio_plugin.cli import main
from scalebio_plugin.compare.arms import JUDGE, RUN, UNIFORM, VALIDATION_DRAWN
from tests import host
from tests.engines.test_engines import LAYOUTS

pytestmark = pytest.mark.slow
TESTS = [{"path": "data/offtopic.jsonl", "type": "alpaca", "split": "train"}]
ARMS = (VALIDATION_DRAWN,)  # the others are configs of its kind, below, or in tests/runs/test_walkthrough.py
STILL = {"learning_rate": 1e-9, "max_steps": 2, "micro_batch_size": 2, "eval_batch_size": 5, "test_datasets": TESTS}
# From the host's defaults: packed, with evaluation and epochs.
ORDINARY = {"sample_packing": True, "micro_batch_size": 1, "num_epochs": 1, "max_steps": None, "evals_per_epoch": 2}


def test_every_arm_is_trained_and_judged_on_the_same_rows(
    inputs: Path, tmp_path: Path, monkeypatch, capsys, forked_python: Path
) -> None:
    config = host.config_of(test_datasets=TESTS, eval_steps=None, plugins=["scalebio"], **ORDINARY)
    monkeypatch.chdir(inputs)
    (tmp_path / "config.yml").write_text(yaml.safe_dump(config))
    folder = tmp_path / "compared"
    arms = ["compare", str(tmp_path / "config.yml"), "--dir", str(folder), "--seeds", "1", "--arms", *ARMS]
    assert main([*arms, "--launch", f"{forked_python} -m axolotl.cli.train"]) == 0, capsys.readouterr().err
    document = json.loads((folder / "compare.json").read_text())
    assert set(document["arms"]) == {RUN, *ARMS}
    assert len({arm["steps"] for arm in document["arms"].values()}) == 1
    judged = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/judged.json")}
    assert {len(of["tokens"]) for of in judged.values()} == {96}
    assert len({json.dumps(of["tokens"]) for of in judged.values()}) == 1
    assert len({of["losses"][0] for of in judged.values()}) == len(judged)  # no arm is another


@pytest.fixture(scope="module")
def judged_alone(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """By one process."""
    out = tmp_path_factory.mktemp("once")
    alone = {"plugins": [JUDGE, "tests.host.ProbePlugin"], "eval_strategy": "no"}
    host.train(inputs, output_dir=str(out), **STILL, **alone)
    expected: dict[str, list[float]] = json.loads((out / "judged.json").read_text())
    return expected


@pytest.mark.parametrize("engine", ["ddp", "fsdp2", "zero3"])
def test_two_ranks_judge_every_row_once_and_as_one_process_does(
    inputs: Path, tmp_path: Path, monkeypatch, capsys, engine: str, forked_python: Path, judged_alone
) -> None:
    """Of a model that stays as it was; 96 rows in batches of 5 leave an end that the ranks do not share evenly."""
    monkeypatch.chdir(inputs)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    (tmp_path / "config.yml").write_text(yaml.safe_dump(host.config_of(**STILL, **LAYOUTS[engine].keys)))
    launch = [str(forked_python), "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    arms = ["compare", str(tmp_path / "config.yml"), "--dir", str(tmp_path / "compared"), "--seeds", "1"]
    launched = ["--arms", UNIFORM, "--launch", shlex.join([*launch, "-m", "axolotl.cli.train"])]
    assert main([*arms, *launched]) == 0, capsys.readouterr().err
    judged = [json.loads(path.read_text()) for path in (tmp_path / "compared").glob("*/judged.json")]
    assert len(judged) == 2
    for of in judged:
        assert of["tokens"] == judged_alone["tokens"]
        assert of["losses"] == pytest.approx(judged_alone["losses"], rel=1e-4)
    log = (tmp_path / "compared/run-42/log.txt").read_text()
    assert "2 processes on the CPU" in log
