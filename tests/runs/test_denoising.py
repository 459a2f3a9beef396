"""One seed of the denoising benchmark: the mixture leaves the sources whose answers are all noise."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import denoising

ALPACA = Path(__file__).resolve().parents[3] / "shared/data/alpaca/alpaca.jsonl"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not ALPACA.is_file(), reason="the Alpaca rows are not there; see benchmarks/denoising.md"),
]


def test_the_mixture_leaves_pure_noise(tmp_path: Path) -> None:
    """Of the defaults; the paper's settings, other seeds and LISA are the benchmark's."""
    denoising.prepare(ALPACA, tmp_path, seed=0)
    learned = denoising.learn(tmp_path, "default", 0, denoising.LEARNING["default"])
    assert learned["mass"] < 0.05
