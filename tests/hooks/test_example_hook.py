"""docs/example_hook is installed, found, and answers; what docs/hooks.md shows of it is in tests/test_docs.py."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from scalebio_plugin.algorithm.evidence import Evidence
from scalebio_plugin.hooks import Observation
from scalebio_plugin.hooks.manager import manager_of, updated

EXAMPLE = Path(__file__).parents[2] / "docs/example_hook"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pip has put the example, offline."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(folder), str(EXAMPLE)], check=True, capture_output=True)
    return folder


def observation(gap: list[float], logits: torch.Tensor) -> Observation:
    gap_S = torch.tensor(gap, dtype=torch.float64)
    seen, _ = Evidence.zeros(len(gap)).plus(gap_S)
    return Observation(logits, logits.softmax(0), gap_S, gap_S, learning_rate=0.1, step=1, evidence=seen)


@pytest.mark.parametrize("extensions", [[], ["scalebio_cooling"]], ids=["installed", "by extensions:"])
def test_the_example_answers_for_its_rule(
    extensions: list[str], installed: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE if extensions else installed))
    monkeypatch.delitem(sys.modules, "scalebio_cooling", raising=False)
    manager = manager_of("cooling", extensions)
    logits, state, moved = torch.zeros(3, dtype=torch.float64), None, []
    for _ in range(30):
        after, state = updated(manager, "cooling", observation([0.02, -0.01, 0.0], logits), state)
        moved.append(float((after - logits).abs().max()))
        logits = after
    assert logits.argsort().tolist() == [0, 2, 1]
    assert moved[0] == pytest.approx(0.1 * 10 / 11)
    assert moved[-1] == pytest.approx(0.1 * 10 / 40)
    assert state == {"updates": 30}

    for step, weights in enumerate([{"a": 0.6, "b": 0.4}, {"a": 0.7, "b": 0.3}, {"a": 0.4, "b": 0.6}], start=1):
        manager.hook.scalebio_mixture_updated(record={"step": step, "weights": weights})
    said = [record.getMessage() for record in caplog.records]
    assert said == ["step 1: a leads, with a weight of 0.600", "step 3: b leads, with a weight of 0.600"]
    monkeypatch.delitem(sys.modules, "scalebio_cooling")


def test_without_a_pull_the_example_stays() -> None:
    rule: Any = runpy.run_path(str(EXAMPLE / "scalebio_cooling.py"))["scalebio_update_mixture"]
    logits = torch.tensor([0.1, 0.2], dtype=torch.float64)
    after, _ = rule("cooling", observation([0.0, 0.0], logits), None)
    assert torch.equal(after, logits)
