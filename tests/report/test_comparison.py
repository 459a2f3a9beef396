"""What stands in a compare.json beside a run is on its page, or is told to be none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scalebio_plugin.report.charts import script
from scalebio_plugin.report.comparison import comparison_beside
from tests.report.test_page import ODD, SOURCES, Page, document, shown_of


def arm(loss: float, **others: Any) -> dict[str, Any]:
    return {
        **{"losses": {"1": loss, "2": loss}, "loss": loss, "seed_error": 0.01, "steps": 5},
        **{"time": 1.0, "time_with_learning": 1.0, **others},
    }


def against(difference: float, verdict: str) -> dict[str, Any]:
    return {
        **{"difference": difference, "interval": [difference - 0.1, difference + 0.1], "verdict": verdict},
        **{"difference_seed_error": 0.01, "difference_row_error": 0.02, "more_seeds": 3},
    }


def comparison() -> dict[str, Any]:
    arms = {
        "learned": arm(2.0, time_with_learning=3.5),
        ODD: arm(2.05, **against(-0.05, "cannot be told apart")),
        "uniform": arm(2.5, seed_error=None, time=None, time_with_learning=None, **against(-0.5, "better")),
    }
    return {"schema": 1, "reference": "learned", "arms": arms}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a run that `scalebio compare` made."""
    made = tmp_path / "run-42" / "scalebio"
    made.mkdir(parents=True)
    (tmp_path / "compare.json").write_text(json.dumps(comparison()))
    return made


def page(folder: Path) -> Page:
    return shown_of(folder, document(**SOURCES))


def test_its_table_and_sentences_are_on_the_page(folder: Path) -> None:
    shown = page(folder)
    assert [row for row in shown.rows if len(row) == 7 and row[0]] == [
        ["learned", "2.0000", "0.0100", "", "", "", "1.00, 3.50 with learning"],
        [ODD, "2.0500", "0.0100", "-0.0500", "-0.1500 to +0.0500", "cannot be told apart", "1.00"],
        ["uniform", "2.5000", "", "-0.5000", "-0.6000 to -0.4000", "better", ""],
    ]
    assert "learned is better than uniform: -0.5000 nats a token, -0.6000 to -0.4000." in shown.text
    assert f"learned and {ODD} cannot be told apart" in shown.text
    assert "3 more seeds would, if the difference stayed." in shown.text
    assert "By scalebio compare, 2 seeds:" in shown.text
    assert shown.scripts[1:] == [script()]


def test_without_an_arm_to_count_time_in_it_says_so(folder: Path) -> None:
    assert "Time: that of an ordinary arm is 1." in page(folder).text
    untimed = comparison()
    for of in untimed["arms"].values():
        of |= {"time": None, "time_with_learning": None}
    (folder.parent.parent / "compare.json").write_text(json.dumps(untimed))
    assert "Time: not told, as no ordinary arm beside learned is there to count it in." in page(folder).text


def test_of_one_seed_it_says_what_is_missing(folder: Path) -> None:
    one = comparison()
    one["arms"]["uniform"] |= {"verdict": "better on one seed", "difference_seed_error": None}
    (folder.parent.parent / "compare.json").write_text(json.dumps(one))
    said = "learned is better than uniform on one seed: -0.5000 nats a token, -0.6000 to -0.4000; one seed says nothing"
    assert said in page(folder).text


def test_an_arm_that_diverged_costs_no_page(folder: Path) -> None:
    spoilt = comparison()
    nan = float("nan")
    spoilt["arms"]["uniform"] |= {"loss": nan, "losses": {"1": nan}, "difference": nan, "interval": [nan, nan]}
    (folder.parent.parent / "compare.json").write_text(json.dumps(spoilt))
    shown = page(folder)
    assert ["uniform", "diverged", "", "", "", "", ""] in shown.rows
    assert "uniform diverged: its test loss is no finite number on seed 1" in shown.text


@pytest.mark.parametrize("name", ["first-run", "learned-42"])
def test_a_file_two_folders_up_counts_for_runs_of_compare_alone(folder: Path, name: str) -> None:
    other = folder.parent.parent / name / "scalebio"
    other.mkdir(parents=True)
    assert comparison_beside(folder) == comparison()
    assert comparison_beside(other) is None
    assert "Beside other mixtures" not in page(other).text


def test_a_folder_may_be_named_from_within(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert comparison_beside(".") == comparison()


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (["schema"], 2, "schema 2 is newer than what this version of scalebio reads"),
        (["arms", "uniform", "loss"], "low", "arms['uniform']['loss'] must be a valid number, got 'low'"),
        (["arms", "uniform", "interval"], [0.1], "arms['uniform']['interval'] List should have at least 2 items"),
        (["arms", "learned", "verdict"], "better", "arms an arm with a verdict must have difference, interval"),
        (["arms", "learned", "time"], None, "arms an arm must have both times or none"),
        (["arms"], [], "arms must be an object, got []"),
    ],
)
def test_one_that_is_none_is_named(folder: Path, place: list[str], value: Any, said: str) -> None:
    spoilt = comparison()
    within = spoilt
    for part in place[:-1]:
        within = within[part]
    within[place[-1]] = value
    path = folder.parent.parent / "compare.json"
    path.write_text(json.dumps(spoilt))
    with pytest.raises(ValueError, match=r"compare\.json: .*run `scalebio compare` again") as error:
        page(folder)
    assert said in str(error.value)
    assert not (folder / "report.html").exists()
