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


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and pretrained model of seed 0."""
    directory = tmp_path_factory.mktemp("denoising")
    denoising.prepare(ALPACA, directory, seed=0)
    return directory


@pytest.mark.parametrize(("name", "most"), [("paper", 0.25), ("default", 0.05)])
def test_the_mixture_leaves_pure_noise(prepared: Path, name: str, most: float) -> None:
    learned = denoising.learn(prepared, name, 0, denoising.LEARNING[name])
    assert learned["mass"] < most


def test_with_lisa_it_does_so_where_both_sets_train_the_same_layers_and_not_where_they_are_drawn_apart(
    prepared: Path,
) -> None:
    same = denoising.learn(prepared, "same", 0, denoising.LISA)
    apart = denoising.learn(prepared, "apart", 0, denoising.LISA, apart=True)
    assert same["mass"] < 0.25
    assert apart["mass"] > 0.25
    assert same["signal"] > 3 * apart["signal"]
