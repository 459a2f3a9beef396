"""What a reader of the page alone is told of the run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from scalebio_plugin.report.about_run import about
from tests.report.histories import record
from tests.report.test_page import ODD, SOURCES, Page, document

KNOWN = {"config": "configs/<i>.yml", "base_model": "org/model", "output_dir": "outputs/first run"}


def lines(folder: Path, run: dict[str, Any], history: list[Any]) -> dict[str, str]:
    return dict(Page(about(folder, document(run, **SOURCES), history)).rows)


def test_which_run_it_is(tmp_path: Path) -> None:
    mixture = tmp_path / "mixture.json"
    mixture.touch()
    os.utime(mixture, (1_800_000_000, 1_800_000_000))
    (tmp_path / "next.yml").touch()
    assert lines(tmp_path, KNOWN, []) == {
        **{"config": "configs/<i>.yml", "base model": "org/model", "output folder": "outputs/first run"},
        "date": "2027-01-15 08:00 UTC (of mixture.json)",
        "is it better?": "the mixture beside others, on test rows:scalebio compare 'configs/<i>.yml'",
        "next run": "your config on this mixture is in next.yml:axolotl train 'outputs/first run/scalebio/next.yml'",
    }


def test_of_an_older_run_what_is_known(tmp_path: Path) -> None:
    assert lines(tmp_path, {}, []) == {}
    (tmp_path / "next.yml").touch()
    (said,) = lines(tmp_path, {}, []).values()
    assert said.endswith(f"axolotl train {tmp_path}/next.yml")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([ODD], f"{ODD}: 1,200 sequences, 34,000 target tokens"),
        (["a", "b"], "2 sets: 2,400 sequences, 68,000 target tokens"),
    ],
)
def test_what_the_validation_data_hold(tmp_path: Path, names: list[str], said: str) -> None:
    sets = {name: {"weight": 1 / len(names), "tokens": 34_000, "examples": 1200} for name in names}
    assert lines(tmp_path, {"validation": sets}, []) == {"validation data": said}


def history(weights: list[float], every: int = 1) -> list[Any]:
    """Of the source a, b having the rest; an update in that many steps."""
    return [record(i * every, {"a": of, ODD: 1 - of}) for i, of in enumerate(weights, 1)]


def test_the_validation_loss_at_both_ends(tmp_path: Path) -> None:
    eight = lines(tmp_path, {}, history([0.5] * 8))["validation loss"]
    assert eight == "1.750 at the start, 1.134 at the end (first and last 2 updates)"
    two = lines(tmp_path, {}, history([0.5] * 2))["validation loss"]
    assert two == "2.000 at the start, 1.500 at the end (first and last update)"
    many = lines(tmp_path, {}, history([0.5] * 400))["validation loss"]
    assert many == "1.180 at the start, 1.003 at the end (first and last 20 updates)"
    assert lines(tmp_path, {}, history([0.5])) == {}


def test_how_far_the_weights_moved_in_the_last_quarter(tmp_path: Path) -> None:
    moved = lines(tmp_path, {}, history([0.1, 0.5, 0.9, 0.95, 0.965], every=10))["still moving?"]
    after = "after step 40 of 50, the last quarter of the learning"
    assert moved == f"0.015 of the weight changed its source {after}: a 0.950 → 0.965, {ODD} 0.050 → 0.035"
    still = lines(tmp_path, {}, history([0.1, *[0.9] * 7]))["still moving?"]
    assert still == "0.000 of the weight changed its source after step 6 of 8, the last quarter of the learning"


def test_of_many_sources_those_are_named_that_moved_most(tmp_path: Path) -> None:
    def weights(shift: float) -> dict[str, float]:
        return {"up": 0.2 + shift, "down": 0.2 - shift, "a": 0.2 + shift / 2, "b": 0.2 - shift / 2, "c": 0.2}

    ends = [record(step, weights(0.1 if step == 4 else 0.0)) for step in range(1, 5)]
    said = lines(tmp_path, {}, ends)["still moving?"]
    assert said.startswith("0.150 of")
    assert said.endswith(": up 0.200 → 0.300, down 0.200 → 0.100, a 0.200 → 0.250")
