"""The quickstart: what it prints and returns, with a stand-in for the host, and once as a whole."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from scalebio_plugin.quickstart import command as quickstart
from scalebio_plugin.quickstart import planted
from scalebio_plugin.report.history import read_history
from scalebio_plugin.report.mixture_file import read_mixture
from tests.quickstart.test_planted import assert_same_files

# Stands in for the interpreter that is launched: notes its arguments, then does as the test says.
STAND_IN = """#!{python}
import json, os, sys
from pathlib import Path
with open({calls!r}, "a") as file:
    print(json.dumps(sys.argv[1:]), os.environ["HF_HUB_OFFLINE"], repr(os.environ["CUDA_VISIBLE_DEVICES"]), file=file)
if sys.argv[2] == "axolotl.cli.train":
    {body}
"""
TRAINS = """
    folder = Path("out/scalebio")
    folder.mkdir(parents=True)
    for step in range(1, 21):
        weights = {"clean": 0.5 + step / 50, "wrong": 0.3 - step / 100, "offtopic": 0.2 - step / 100}
        with open(folder / "history.jsonl", "a") as file:
            print(json.dumps({"step": step, "weights": weights, "val_loss": 4.0 - step / 10}), file=file)
    (folder / "mixture.json").write_text(json.dumps({"schema": 1, "weights": weights}))
    print("a warning of the host")
"""
FAILS = """
    print(*(f"line {n}" for n in range(100)), sep="\\n")
    sys.exit(3)
"""

MADE_OTHERWISE = """#!/bin/sh
case "$2" in
    axolotl.cli.train) exec "{forked}" "$@" ;;
    *) PYTHONHASHSEED=1 exec "{python}" "$@" ;;
esac
"""


@pytest.fixture
def launched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes a stand-in with this body the interpreter, and returns the file of its calls."""

    def install(body: str) -> Path:
        script, calls = tmp_path / "python", tmp_path / "calls"
        script.write_text(STAND_IN.format(python=sys.executable, calls=str(calls), body=body.strip()))
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(sys, "executable", str(script))
        return calls

    return install


def test_it_prints_progress_and_the_learned_beside_the_true(launched, tmp_path: Path, capsys) -> None:
    calls = launched(TRAINS)
    assert quickstart.run(tmp_path / "new", steps=20) == 0
    example = quickstart.example_config("quickstart.yml")
    assert (tmp_path / "new" / "quickstart.yml").read_bytes() == example.read_bytes()
    made, trained = calls.read_text().splitlines()
    assert made.startswith('["-m", "scalebio_plugin.quickstart.planted", "."] 1')
    assert trained == '["-m", "axolotl.cli.train", "quickstart.yml", "--max_steps=20"] 1 \'\''
    out = capsys.readouterr().out
    progress = [line.split() for line in out.splitlines() if line.split()[:1] and line.split()[0].isdigit()]
    assert [int(line[0]) for line in progress] == list(range(2, 21, 2))
    assert progress[-1] == ["20", "0.9000", "0.1000", "0.0000", "2.000"]
    table = out[out.index("source") :].splitlines()
    assert [line.split()[0] for line in table[1:4]] == ["clean", "wrong", "offtopic"]
    assert [line.split()[1:] for line in table[1:4]] == [["1.00", "0.9000"], ["0.00", "0.1000"], ["0.00", "0.0000"]]
    assert "a warning of the host" not in out
    assert "a warning of the host" in (tmp_path / "new" / "quickstart.log").read_text()
    assert str(tmp_path / "new" / "out" / "scalebio" / "report.html") in out


def test_a_failed_run_shows_the_end_of_its_log(launched, tmp_path: Path, capsys) -> None:
    launched(FAILS)
    assert quickstart.run(tmp_path / "new") == 3
    shown = capsys.readouterr().err.splitlines()
    assert shown[:40] == [f"line {n}" for n in range(60, 100)]
    assert str(tmp_path / "new" / "quickstart.log") in shown[-1]


def test_a_run_that_learned_nothing_has_failed(launched, tmp_path: Path, capsys) -> None:
    launched("pass")
    assert quickstart.run(tmp_path / "new") == 1
    assert "The quickstart failed" in capsys.readouterr().err


def test_a_second_quickstart_replaces_the_first(launched, tmp_path: Path, capsys) -> None:
    launched(TRAINS)
    assert quickstart.run(tmp_path / "new", steps=20) == 0
    assert quickstart.run(tmp_path / "new", steps=20) == 0
    assert len((tmp_path / "new" / "out" / "scalebio" / "history.jsonl").read_text().splitlines()) == 20


def test_a_directory_of_somebody_else_is_left_alone(launched, tmp_path: Path) -> None:
    calls = launched(TRAINS)
    kept = tmp_path / "theirs" / "data" / "kept.txt"
    kept.parent.mkdir(parents=True)
    kept.touch()
    with pytest.raises(ValueError, match="must be new, empty or an earlier quickstart's"):
        quickstart.run(tmp_path / "theirs")
    assert kept.exists()
    assert not calls.exists()


def test_an_example_that_is_not_there_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="nothing.yml"):
        quickstart.example_config("nothing.yml")


class TestScript:
    """quickstart.sh, with a stand-in for the virtual environment and no interpreter to build another with."""

    def run(self, venv: Path, python: str) -> subprocess.CompletedProcess[str]:
        (venv / "bin").mkdir(parents=True)
        for name, body in {"python": python, "scalebio": 'echo "ran $*"'}.items():
            (venv / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
            (venv / "bin" / name).chmod(0o755)
        script = Path(__file__).parents[2] / "example_configs" / "quickstart.sh"
        environment = os.environ | {"VENV": str(venv), "PYTHON": "no-python"}
        command = ["bash", str(script), "--steps", "3"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    @pytest.mark.host_contract
    def test_a_venv_that_works_is_taken_as_it_is(self, tmp_path: Path) -> None:
        """Whatever host it was set up for: here the one that the tests run on."""
        (tmp_path / "venv").mkdir()
        (tmp_path / "venv" / ".installed").write_text("Python 3.12.1 123 axolotl==0.21.0\n")
        done = self.run(tmp_path / "venv", f'exec "{sys.executable}" "$@"')
        assert (done.returncode, done.stdout) == (0, "ran quickstart --steps 3\n"), done.stderr

    @pytest.mark.parametrize(
        "missing",
        [
            "import importlib.metadata as m; m.version = lambda name: '0.18.0'",  # of the host, too
            "import sys; sys.modules['scalebio_plugin'] = type(sys)('another'); "
            "sys.modules['scalebio_plugin'].__file__ = '/another/checkout/scalebio_plugin/__init__.py'",
            "raise ImportError",
        ],
        ids=["another version", "another checkout", "no package"],
    )
    def test_any_other_is_built(self, tmp_path: Path, missing: str) -> None:
        program = f'( echo "{missing}"; cat ) | exec "{sys.executable}" "$@"'
        done = self.run(tmp_path / "venv", program)
        assert "no usable Python" in done.stderr
        assert done.returncode == 1


@pytest.mark.slow
def test_as_a_whole_it_finds_the_true_weights(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch, forked_python: Path
) -> None:
    """Trained by a fork, see tests/forked.py; model and data are made by a process that hashes otherwise than this."""
    python = tmp_path / "python"
    python.write_text(MADE_OTHERWISE.format(python=sys.executable, forked=forked_python))
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    assert quickstart.run(tmp_path / "new") == 0
    planted.build_model(tmp_path / "here" / "model")
    planted.write_data(tmp_path / "here" / "data")
    for made in ("model", "data"):
        assert_same_files(tmp_path / "here" / made, tmp_path / "new" / made)
    folder = tmp_path / "new" / "out" / "scalebio"
    weights = read_mixture(folder / "mixture.json")["weights"]
    assert weights["clean"] > 0.8
    assert max(weights["wrong"], weights["offtopic"]) < 0.1
    assert len(read_history(folder / "history.jsonl")) == 150
    assert (folder / "mixture.png").stat().st_size > 10_000
    assert (tmp_path / "new" / "out" / "model.safetensors").is_file()
    assert len(capsys.readouterr().out.splitlines()) < 40
