"""Several runs beside each other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from scalebio_plugin.report.history import append_history
from scalebio_plugin.report.mixture_file import mixture_document, write_mixture
from scalebio_plugin.report.side_by_side import Learned, learned_at, weights_beside, write_side_by_side
from scalebio_plugin.report.summary import SourceSummary, summarise
from tests.report.histories import drifting_history, facts
from tests.report.test_page import ODD, Page


def learned(label: str, verdict: str, **sources: tuple[float, float]) -> Learned:
    """Of sources with (weight, evidence); steps, penalty and config say which of the runs it is."""
    summaries = {
        name: SourceSummary(weight, weight, 1.0, 1.0, 0.1, 0.02, (weight - 0.1, weight + 0.1), evidence)
        for name, (weight, evidence) in sources.items()
    }
    told: dict[str, Any] = {"config": f"{label}.yml", "steps": 10 * len(label)}
    return Learned(label, mixture_document(summaries, facts(dict.fromkeys(sources, 900), **told), verdict), [])


RUNS = [
    learned("one", "converged", math=(0.7, 3.0), code=(0.3, 0.5)),
    learned("second", "no signal", code=(0.9, -4.0), law=(0.1, 2.0)),
]


def test_each_source_has_a_line_and_each_run_a_column() -> None:
    *table, hint = weights_beside(RUNS).splitlines()
    assert [line.split("  ", 1)[0] for line in table[:4]] == ["source", "code", "math", "law"]
    assert [line.split() for line in table] == [
        ["source", "one", "second"],
        ["code", "0.3000", "*", "0.9000"],
        ["math", "0.7000", "-"],
        ["law", "-", "0.1000"],
        ["config", "one.yml", "second.yml"],
        ["verdict", "converged", "no", "signal"],
        ["steps", "30", "60"],
        ["penalty", "10", "10"],
    ]
    assert hint.startswith("* not told from the average of its run")


@pytest.mark.parametrize(
    ("labels", "headings"),
    [
        (
            ["outputs/first-run/scalebio/mixture.json", "outputs/first-run-lr3/scalebio/mixture.json"],
            ["first-run", "first-run-lr3"],
        ),
        (["/a/b/first-run", "/a/b/first-run-lr3"], ["first-run", "first-run-lr3"]),
        (["a/x/one.json", "b/x/one.json"], ["a/x/one.json", "b/x/one.json"]),
        ([".", "a"], [".", "a"]),
        (["a", "a#2"], ["a", "a#2"]),
        (["a", "a/b"], ["a", "a/b"]),
        (
            [f"the-same-long-beginning-{of}-the-same-long-end" for of in "ab"],
            ["1: the-sam...me-long-end", "2: the-sam...me-long-end"],
        ),
    ],
)
def test_runs_are_told_apart_by_their_headings(labels: list[str], headings: list[str]) -> None:
    first, *_ = weights_beside([learned(label, "converged", math=(1.0, 3.0)) for label in labels]).splitlines()
    assert [heading.strip() for heading in re.split("  +", first)[1:]] == headings


def test_names_from_elsewhere_move_no_cursor_and_are_no_markup(tmp_path: Path) -> None:
    runs = [learned(f"{ODD}\x1b[2J", f"\x1b{ODD}", **{f"\u202e{ODD}": (1.0, 2.0)}), RUNS[0]]
    assert not {"\x1b", "\u202e"} & set(weights_beside(runs))
    write_side_by_side(tmp_path / "page.html", runs)
    text = (tmp_path / "page.html").read_text()
    assert not {"\x1b", "\u202e"} & set(text)
    page = Page(text)
    assert "script" not in page.tags
    assert any(ODD in cell for row in page.rows for cell in row)
    assert f"source{ODD}" in page.text


def run_at(folder: Path, updates: int, until: int) -> Path:
    """A run whose mixture was saved after `until` of its updates."""
    history, names = drifting_history(2, updates, seed=updates)
    folder.mkdir()
    for record in history:
        append_history(folder / "history.jsonl", record)
    document = mixture_document(
        summarise(history[:until], names), facts(dict.fromkeys(names, 900), steps=until), "still moving"
    )
    write_mixture(folder / "mixture.json", document)
    return folder / "mixture.json"


def test_the_page_has_weights_with_intervals_verdicts_losses_and_pictures(tmp_path: Path) -> None:
    runs = [learned_at(run_at(tmp_path / name, updates, 8), name) for name, updates in (("a", 8), ("b", 12))]
    assert [len(run.history) for run in runs] == [8, 8]
    write_side_by_side(tmp_path / "page.html", [*runs, RUNS[0]])
    text = (tmp_path / "page.html").read_text()
    assert '<td class="grey">0.3000' in text  # what is no more than noise, and what is
    assert "<td>0.7000" in text
    page = Page(text)
    rows = {row[0]: row[1:] for row in page.rows if row[1:]}
    assert "sourceabone" in page.text
    weights = [run.document["weights"]["source-00"] for run in runs]
    assert [cell[:6] for cell in rows["source-00"]] == [f"{weight:.4f}" for weight in weights] + ["–"]
    assert rows["math"] == ["–", "–", "0.70000.600 to 0.800"]
    assert rows["verdict"] == [*2 * ["still moving: the weights have not settled; learn longer"]] + [
        "converged: the weights have settled"
    ]
    end = (1 + 1 / 7 + 1 + 1 / 8) / 2
    assert rows["validation loss"][0] == f"1.750 at the start, {end:.3f} at the end (first and last 2 updates)"
    assert rows["validation loss"][2] == "–"
    assert [address[:22] for address in page.addresses] == 2 * ["data:image/png;base64,"]
    assert page.addresses[0] != page.addresses[1]


def test_a_run_without_a_mixture_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "mixture.json").write_text('{"schema": 1, "weights": {"a": 1.0}}')
    with pytest.raises(ValueError, match="sources must be there"):
        learned_at(tmp_path / "mixture.json", "a")
