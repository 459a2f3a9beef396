"""The page of a learned mixture: whole in one file, and nothing of a source's name is taken for markup."""

from __future__ import annotations

from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from scalebio_plugin.report.charts import script
from scalebio_plugin.report.leaks import Leak, Leaks, LeakSet
from scalebio_plugin.report.mixture_file import mixture_document
from scalebio_plugin.report.page import write_page, write_report
from scalebio_plugin.report.summary import Cosine, SourceSummary, summarise
from tests.report.histories import drifting_history, facts, old_document, record

ODD = "<script>alert('a & b')</script>"
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Its tables as rows of cells, its addresses and scripts, and whether elements are closed where they should be."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.rows: list[list[str]] = []
        self.addresses: list[str] = []
        self.text = ""
        self.scripts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
            return
        self.text += data
        if "td" in self.open:
            self.rows[-1][-1] += data


def document(run: dict[str, Any] | None = None, **sources: Any) -> dict[str, Any]:
    """Of sources with (weight, gap, its standard error, target tokens, sequences, evidence)."""
    summaries = {
        name: SourceSummary(weight, weight, None if error is None else 1.25, 1.0, gap, error, interval, evidence)
        for name, (weight, gap, error, _, _, evidence) in sources.items()
        for interval in [None if error is None else (weight - 0.05, weight + 0.05)]
    }
    known = facts(
        {name: source[3] for name, source in sources.items()},
        {name: source[4] for name, source in sources.items()},
        steps=200,
        updates=100,
        seed=7,
        versions={"axolotl": "0.19.0"},
        fingerprint={"data": "cafe"},
        layer_steps=[20, 0],
        **run or {},
    )
    return mixture_document(summaries, known, "still moving")


SOURCES = {
    ODD: (0.2, 0.02, 0.004, 1000, 100, 1.5),
    "long answers": (0.6, 0.001, 0.001, 4000, 100, -4.0),  # its recent gaps are 0: it has arrived
    "as good as any": (0.15, 0.009, 0.002, 1000, 100, 0.9),
    "rare": (0.05, 0.001, None, 1000, 100, 0.0),
}
TWO = {"a": (0.6, 0.02, 0.004, 1000, 100, 1.5), "b": (0.4, -0.02, 0.004, 1000, 100, -1.5)}
ODD_ONE = {ODD: TWO["a"], "b": TWO["b"]}


def updates(sources: dict[str, Any], count: int) -> list[Any]:
    return [record(step, {name: source[0] for name, source in sources.items()}) for step in range(1, count + 1)]


def markup(folder: Path, written: dict[str, Any], history: list[Any] | None = None) -> str:
    """Of the page, without the picture, which takes long to draw."""
    return write_page(folder, written, history or []).read_text(encoding="utf-8")


def shown_of(folder: Path, written: dict[str, Any], history: list[Any] | None = None) -> Page:
    return Page(markup(folder, written, history))


HISTORY = updates(SOURCES, 20)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(write_report(tmp_path_factory.mktemp("page"), document(**SOURCES), HISTORY).read_text(encoding="utf-8"))


def test_every_source_is_a_line_with_its_numbers(page: Page) -> None:
    lines = {row[0]: row[1:] for row in page.rows if len(row) == 12 and row[0]}
    assert list(lines) == ["long answers", ODD, "as good as any", "rare"]  # largest first
    numbers = ["0.6000", "0.550 to 0.650", "27.3%", "+0.001", "0.001", "gains", "1.250 / 1.000", "4,000", "100", "1.09"]
    assert lines["long answers"] == ["", *numbers]
    assert lines[ODD][1:7] == ["0.2000", "0.150 to 0.250", "36.4%", "+0.02", "0.004", "loses"]
    assert lines["as good as any"][6] == "as the average"
    assert lines["rare"][2] == "–"
    assert lines["rare"][5:8] == ["–", "too few updates", "– / 1.000"]


def test_what_an_older_version_learned_has_a_page_too(tmp_path: Path) -> None:
    old = old_document(document(**SOURCES))
    page = shown_of(tmp_path, old, HISTORY)
    lines = {row[0]: row[1:] for row in page.rows if len(row) == 12 and row[0]}
    assert lines[ODD][1:7] == ["0.2000", "–", "36.4%", "+0.02", "0.004", "loses"]  # beyond two standard errors
    assert lines["long answers"][6] == "as the average"
    assert "Verdict" not in page.text


def test_the_rows_of_an_ordinary_run_are_those_that_apply_draws(page: Page) -> None:
    """Weights over mean target tokens: 0.6 / 40 and 0.2 / 10, 0.15 / 10, 0.05 / 10."""
    shown = [float(row[4].rstrip("%")) / 100 for row in page.rows if len(row) == 12 and row[0]]
    per_row = [0.6 / 40, 0.2 / 10, 0.15 / 10, 0.05 / 10]
    assert shown == pytest.approx([value / sum(per_row) for value in per_row], abs=1e-3)


def test_it_says_how_many_sources_are_told_apart_and_how_it_was_learned(page: Page) -> None:
    assert "100 updates of the weights in 200 optimiser steps, penalty 10. 2 of 4 sources are told from" in page.text
    assert "Verdict: still moving, the weights have not settled; learn longer." in page.text
    assert "LISA moved 1 of 2 blocks, each for 20 optimiser steps; never drawn: 1." in page.text
    assert ["version of axolotl", "0.19.0"] in page.rows
    assert ["fingerprint of the data", "cafe"] in page.rows
    assert ["seed", "7"] in page.rows


def test_it_says_how_often_the_rows_were_drawn(tmp_path: Path) -> None:
    page = shown_of(tmp_path, document({"drawn": {"a": 150, "b": 25}}, **TWO))
    assert [row[-1] for row in page.rows if len(row) == 13 and row[0]] == ["1.50 times", "0.25 times"]
    assert [row[-2] for row in page.rows if len(row) == 13 and row[0]] == ["1.05", "0.70"]  # 175 rows at 0.6, 0.4
    assert "each drawn" in page.text
    assert "of as many rows as this run drew (175)" in page.text


def test_it_says_of_which_sources_the_mixture_asks_more_than_max_repeats(page: Page, tmp_path: Path) -> None:
    assert "max_repeats)" not in page.text
    assert "as an epoch has (400)" in page.text
    sources = {ODD: (0.9, 0.02, 0.004, 1000, 10, 1.5), "b": (0.1, 0.01, 0.004, 9000, 90, 1.2)}
    for most, said in [(8, True), (9, False), ("8", False)]:
        shown = shown_of(tmp_path, document({"settings": {"scalebio.max_repeats": most}}, **sources))
        sentence = f"each row is drawn {most} times at most (max_repeats); the mixture asks for more of {ODD} (9.0)."
        assert (sentence in shown.text) is said


def test_it_says_what_was_set(tmp_path: Path) -> None:
    settings = {
        **{"scalebio.bounds": {ODD: [0.1, 0.5], "b": [0, 1]}, "scalebio.groups": {}, "scalebio.prior": None},
        **{"sample_packing": True, "bf16": False, "learning_rate": 2e-5, "optimizer": "adamw_torch", "<b>": "<i>"},
    }
    shown = shown_of(tmp_path, document({"settings": settings}, **TWO))
    assert ["scalebio.bounds", f"{ODD}: [0.1, 0.5], b: [0, 1]"] in shown.rows
    assert ["scalebio.groups", "none"] in shown.rows
    assert "scalebio.prior" not in shown.text
    told = [row for row in shown.rows if row[0] in ("sample_packing", "bf16", "learning_rate", "optimizer", "<b>")]
    names = ["sample_packing", "bf16", "learning_rate", "optimizer", "<b>"]
    assert told == [list(pair) for pair in zip(names, ["yes", "no", "2e-05", "adamw_torch", "<i>"], strict=True)]


def test_on_a_narrow_screen_every_number_has_the_name_of_its_column(tmp_path: Path) -> None:
    text = markup(tmp_path, document(**TWO))
    for name, value in [("weight", "0.6000"), ("95% interval", "0.550 to 0.650"), ("epochs asked", "1.20")]:
        assert f'<td data-label="{name}">{value}</td>' in text
    assert "content: attr(data-label)" in text


@pytest.mark.parametrize("sources", [2, 60])
def test_of_few_and_of_many_sources_each_has_its_line(sources: int, tmp_path: Path) -> None:
    history, names = drifting_history(sources, 8)
    written = mixture_document(summarise(history, names), facts(dict.fromkeys(names, 900), steps=8), None)
    shown = shown_of(tmp_path, written, history)
    assert {row[0] for row in shown.rows if len(row) == 12 and row[0] != "source"} - {""} == set(names)


@pytest.mark.parametrize(
    ("run", "sentence"),
    [
        ({}, "The model saved is w (keep: model): it has trained on the validation rows too"),
        ({"penalty": float("inf")}, "The model saved is w (keep: model): without a pull it has trained on none of"),
        ({"keep": "inner"}, "The model saved is u (keep: inner): it has trained on none of the validation rows."),
    ],
    ids=["w", "w without a pull", "u"],
)
def test_it_says_which_set_was_saved_and_whether_it_knows_the_validation_rows(
    run: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    shown = shown_of(tmp_path, document(run, **TWO))
    assert sentence in shown.text
    assert shown.text.count("The model saved is") == 1
    assert ["keep", run.get("keep", "model")] in shown.rows


def test_a_document_of_the_first_version_is_one_of_w(tmp_path: Path) -> None:
    written = document(**TWO)
    del written["keep"]
    assert "The model saved is w (keep: model)" in shown_of(tmp_path, written).text


def test_nothing_is_fetched_and_no_name_is_markup(page: Page) -> None:
    data, program = page.scripts
    assert program == script()
    assert "<" not in data
    assert ODD in page.text
    (picture,) = page.addresses
    assert picture.startswith("data:image/png;base64,iVBORw0KGgo")


def test_each_of_several_validation_sets_has_its_losses(tmp_path: Path) -> None:
    history = [
        one | {"val_losses": {"x<": float(step), "y": None if step < 8 else 2.0}, "val_weights": {"x<": 0.9, "y": 0.1}}
        for step, one in enumerate(updates(TWO, 8), 1)
    ]
    shown = shown_of(tmp_path, document(**TWO), history)
    assert ["x<", "1.500", "7.500", "0.900"] in shown.rows
    assert ["y", "–", "2.000", "0.100"] in shown.rows
    assert "Validation sets" not in markup(tmp_path, document(**TWO), updates(TWO, 8))
    held = {"validation": {"x<": {"weight": 0.9, "tokens": 3400, "examples": 120}}}
    shown = shown_of(tmp_path, document(held, **TWO), history)
    assert ["x<", "1.500", "7.500", "0.900", "120", "3,400"] in shown.rows
    assert ["y", "–", "2.000", "0.100", "–", "–"] in shown.rows


def test_of_a_single_validation_set_it_says_what_it_holds(tmp_path: Path) -> None:
    held = {"validation": {"goal": {"weight": 1.0, "tokens": 3400, "examples": 120}}}
    shown = shown_of(tmp_path, document(held, **TWO), updates(TWO, 8))
    assert ["goal", "1.750", "1.134", "1.000", "120", "3,400"] in shown.rows
    assert "Validation data" in shown.text


@pytest.mark.parametrize(("on_leak", "said"), [("warn", "were trained on"), ("drop", "were dropped")])
def test_it_says_which_training_rows_stand_in_what_judges_them(tmp_path: Path, on_leak: str, said: str) -> None:
    found = Leaks(on_leak, {"validation: x<y": LeakSet(1200, 1100, {ODD: Leak(7, 5, 6)}), "test: t": LeakSet(9, 9, {})})
    shown = shown_of(tmp_path, document({"leaks": found}, **ODD_ONE))
    assert ["validation: x<y", "1,200", "1,100", ODD, "7", "5", "6"] in shown.rows
    assert f"These training rows {said}" in shown.text


def test_it_says_that_nothing_was_found_where_it_was_looked_for(tmp_path: Path, page: Page) -> None:
    found = Leaks("warn", {"validation: v": LeakSet(1200, 1100, {})})
    shown = shown_of(tmp_path, document({"leaks": found}, **TWO))
    assert "looked for were 1,100 of 1,200 rows of validation: v" in shown.text
    assert "row it is judged by" not in page.text


def test_it_says_which_sources_have_rows_in_common(tmp_path: Path) -> None:
    sources = {ODD: (0.6, 0.02, 0.004, 1000, 1000, 1.5), "b": (0.4, -0.02, 0.004, 9000, 9000, -1.5)}
    found = {"shared_rows": {ODD: {"b": 700}, "b": {ODD: 80}}}
    shown = shown_of(tmp_path, document(found, **sources))
    assert [ODD, "b", "700", "1,000"] in shown.rows
    assert "b" not in [row[0] for row in shown.rows if row[1:3] == [ODD, "80"]], "less than a hundredth of its rows"
    assert "Rows that stand in two sources" in shown.text
    for found in ({}, {"shared_rows": {"b": {ODD: 80}}}):
        without = shown_of(tmp_path, document(found, **sources))
        assert "stand in two sources" not in without.text


def test_which_source_helps_which_set_is_shaded_where_it_is_clear(tmp_path: Path) -> None:
    goals = {
        ODD: {"x<y": Cosine(0.5, 0.1, 4), "z": Cosine(-0.5, 0.1, 4)},
        "b": {"x<y": Cosine(0.5, 0.3, 4), "z": Cosine(None, None, 0)},
    }
    written = document(**ODD_ONE)
    written["goals"] = {name: {goal: asdict(of) for goal, of in row.items()} for name, row in goals.items()}
    text = markup(tmp_path, written)
    shown = Page(text)
    assert shown.scripts[1:] == [script()]
    assert [ODD, "+0.500 ± 0.100", "−0.500 ± 0.100"] in shown.rows
    assert ["b", "+0.500 ± 0.300", "–"] in shown.rows
    assert '<td style="background: rgba(63, 144, 218, 0.30)">+0.500 ± 0.100</td>' in text
    assert '<td style="background: rgba(255, 143, 0, 0.30)">−0.500 ± 0.100</td>' in text
    assert '<td class="grey">+0.500 ± 0.300</td>' in text
    assert "Which source helps which validation set" in shown.text
    assert "helps which" not in markup(tmp_path, document(**ODD_ONE))
