"""The charts of a page: what is drawn, and that a browser draws it, with names that were meant to do harm."""

from __future__ import annotations

import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from scalebio_plugin.report.charts import MOST_POINTS, charts, policy, positions
from scalebio_plugin.report.mixture_file import mixture_document
from scalebio_plugin.report.page import write_page, write_report
from scalebio_plugin.report.summary import summarise
from tests.report.histories import drifting_history, facts, old_record, record
from tests.report.test_page import Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = [
    "</script><script>document.title='owned'</script>",
    "a\u2028b\u202e",
    '"><img src=x onerror=alert(1)>',
    "&lt;i&gt;",
]
SPELT = [HOSTILE[0], r"a\u2028b\u202e", *HOSTILE[2:]]  # as they are shown


def data_of(history: list[Any]) -> dict[str, Any]:
    """As the script has it, in units."""
    data = json.loads(Page(charts(history)).scripts[0])
    for chart in data["charts"]:
        for one in chart["series"]:
            for key in ("lines", "band"):
                columns = one[key] or []
                one[key] = [[None if of is None else of / chart["scale"] for of in column] for column in columns]
    return data


def renamed(history: list[Any], names: list[str], to: list[str]) -> list[Any]:
    text = json.dumps(history)
    for name, other in zip(names, to, strict=True):
        text = text.replace(json.dumps(name), json.dumps(other))
    return json.loads(text)


def test_each_source_has_its_curves_largest_weight_first() -> None:
    history, names = drifting_history(3, 8)
    weights, gaps, losses, validation = data_of(history)["charts"]
    last = history[-1]["weights"]
    assert [one["name"] for one in weights["series"]] == sorted(names, key=lambda name: -last[name])
    first = weights["series"][0]
    assert first["lines"][0] == pytest.approx([of["weights"][first["name"]] for of in history], abs=1e-4)
    assert [ends[3] for ends in first["band"]] == pytest.approx(history[3]["interval"][first["name"]], abs=1e-4)
    gap, low, high = (gaps["series"][0][key] for key in ("lines", "band", "band"))
    assert low[0][5] == pytest.approx(gap[0][5] - 0.004, abs=1e-5)
    assert high[1][5] == pytest.approx(gap[0][5] + 0.004, abs=1e-5)
    assert {len(one["lines"]) for one in losses["series"]} == {2}, "of w and of u"
    assert [one["name"] for one in validation["series"]] == ["validation"]
    assert validation["series"][0]["lines"][0] == pytest.approx([of["val_loss"] for of in history], abs=1e-4)


def test_a_batch_without_a_source_leaves_a_hole() -> None:
    history = [record(1, {"a": 1.0}, loss={"a": None}), record(2, {"a": 1.0}, loss={"a": 2.0})]
    assert data_of(history)["charts"][2]["series"][0]["lines"][0] == [None, 2.0]


def test_each_of_several_validation_sets_has_its_curve() -> None:
    history = [
        record(step, {"a": 1.0}) | {"val_losses": {"x": 1.0, "y": None}, "val_weights": {"x": 0.5, "y": 0.5}}
        for step in (1, 2)
    ]
    sets = data_of(history)["charts"][3]["series"]
    assert [(one["name"], one["lines"]) for one in sets] == [("x", [[1.0, 1.0]]), ("y", [[None, None]])]


def test_of_many_sources_the_largest_are_in_colour_and_have_bands() -> None:
    history, _ = drifting_history(60, 4)
    series = data_of(history)["charts"][0]["series"]
    assert [bool(one["colour"]) for one in series] == [True] * 8 + [False] * 52
    assert [bool(one["band"]) for one in series] == [True] * 8 + [False] * 52


def test_what_an_older_version_learned_has_no_chart_of_gaps() -> None:
    found = data_of([old_record(step, {"a": 0.5, "b": 0.5}) for step in (1, 2)])
    assert [chart["title"] for chart in found["charts"]] == ["Weights", "Training loss", "Validation loss"]


def test_without_an_update_there_is_no_chart() -> None:
    assert data_of([]) == {"steps": [], "charts": []}
    assert 'id="charts"' not in charts([])


@pytest.mark.parametrize(
    ("count", "columns", "most"), [(3, 9, 3), (500, 9, 500), (9000, 9, MOST_POINTS), (9000, 300, 100)]
)
def test_a_long_run_is_thinned_and_keeps_its_ends(count: int, columns: int, most: int) -> None:
    at = positions(count, columns)
    assert len(at) == len(set(at)) == most
    assert (at[0], at[-1]) == (0, count - 1)


@pytest.mark.parametrize("sources", [2, 60])
def test_a_page_of_a_long_run_is_less_than_half_a_megabyte(sources: int, tmp_path: Path) -> None:
    history, names = drifting_history(sources, 1200)
    document = mixture_document(summarise(history, names), facts(dict.fromkeys(names, 900), steps=1200), None)
    page = write_report(tmp_path, document, history)
    assert page.stat().st_size < 500_000
    assert "<img" in page.read_text(encoding="utf-8")
    assert "<img" not in write_page(tmp_path, document, history).read_text(encoding="utf-8"), "which takes long to draw"


def test_no_name_ends_the_data(tmp_path: Path) -> None:
    history, names = drifting_history(4, 4)
    text = charts(renamed(history, names, HOSTILE))
    data, _ = Page(text).scripts
    assert not set("<>&\u2028\u202e") & set(data)
    shown = {one["name"] for one in json.loads(data)["charts"][0]["series"]}
    assert shown == set(SPELT)


# ---- in a browser


class Drawn(HTMLParser):
    """What a browser made of a page: canvases, and the texts of the legends' buttons."""

    def __init__(self, text: str):
        super().__init__()
        self.canvases, self.images = 0, 0
        self.buttons: list[list[str]] = []
        self.title, self.live, self._in = "", False, ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        of = dict(attrs)
        self.canvases += tag == "canvas"
        self.images += tag == "img"
        self.live |= tag == "html" and of.get("class") == "live"
        self._in = tag if tag in ("button", "title") or (self._in == "button" and tag in ("span", "b", "i")) else ""
        if tag == "button":
            self.buttons.append([])
        elif self._in:
            self._in = "button" if tag in ("span", "b", "i") else tag

    def handle_endtag(self, tag: str) -> None:
        if tag in ("button", "title"):
            self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in == "button":
            self.buttons[-1].append(data)
        elif self._in == "title":
            self.title += data


def browse(page: Path) -> tuple[Drawn, list[str]]:
    """The page as a browser has it once its scripts have run, and what it wrote to its console."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium to open the page")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0", "--dump-dom"]
    folder = f"--user-data-dir={page.parent / 'browser'}"
    done = subprocess.run(
        [CHROMIUM, *options, "--virtual-time-budget=2000", folder, page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return Drawn(done.stdout), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def page_of(sources: int, folder: Path) -> Path:
    history, names = drifting_history(sources, 40)
    to = [*HOSTILE, *names[4:]][:sources]
    history = renamed(history, names, to)
    document = mixture_document(summarise(history, to), facts(dict.fromkeys(to, 900), steps=40), "still moving")
    return write_report(folder, document, history)


@pytest.mark.parametrize("sources", [2, pytest.param(60, marks=pytest.mark.slow)])
def test_a_browser_draws_every_source_and_complains_of_nothing(sources: int, tmp_path: Path) -> None:
    drawn, console = browse(page_of(sources, tmp_path))
    assert console == []
    assert drawn.live
    assert drawn.canvases == 4
    names = [button[0] for button in drawn.buttons]
    assert set(names) == {*[*SPELT, *drifting_history(sources, 1)[1][4:]][:sources], "validation"}
    assert len(names) == 3 * sources + 1
    assert all(float(button[1].split(" / ")[0]) >= 0 for button in drawn.buttons[:sources]), "the last weights"
    assert drawn.images == 1, "the picture for paper alone: no name has become an element"
    assert drawn.title == f"Learned mixture of {sources} sources"


@pytest.mark.slow
def test_the_policy_of_the_page_stops_a_script_that_is_not_its_own(tmp_path: Path) -> None:
    page = page_of(2, tmp_path)
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace("<h1>", "<script>document.title='owned'</script><h1>"), encoding="utf-8")
    drawn, console = browse(page)
    assert drawn.title == "Learned mixture of 2 sources"
    assert len(console) == 1
    assert "Content Security Policy" in console[0]
    assert drawn.canvases == 4, "its own runs"


@pytest.mark.slow
def test_the_keyboard_moves_along_all_charts_and_a_legend_hides_a_source(tmp_path: Path) -> None:
    program = """
    addEventListener("load", () => {
      const plots = [...document.querySelectorAll(".plot")], steps = () => [...document.querySelectorAll(".at")].map(of => of.textContent);
      const press = (key, shiftKey = false) => { plots[0].dispatchEvent(new KeyboardEvent("keydown", { key, shiftKey })); return steps(); };
      const button = document.querySelector(".legend button"), pressed = () => button.getAttribute("aria-pressed");
      const found = [steps(), press("ArrowLeft"), press("ArrowLeft", true), press("Home"), press("ArrowLeft"), press("End"), press("a")];
      const toggled = [pressed()];
      for (const time of [1, 2]) { button.click(); toggled.push(pressed()); }
      document.title = JSON.stringify([found, toggled, plots.map(of => of.tabIndex)]);
    });
    """  # noqa: E501
    page = page_of(2, tmp_path)
    text = page.read_text(encoding="utf-8").replace(f'content="{policy()}"', 'content=""')
    page.write_text(text.replace("</body>", f"<script>{program}</script></body>"), encoding="utf-8")
    drawn, console = browse(page)
    assert console == []
    steps, toggled, stops = json.loads(drawn.title)
    assert steps == [[f"step {step}"] * 4 for step in (40, 39, 29, 1, 1, 40, 40)]
    assert toggled == ["true", "false", "true"]
    assert stops == [0, 0, 0, 0]
