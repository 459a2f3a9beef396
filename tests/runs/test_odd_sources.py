"""Sources as people bring them: odd names, one row, columns of all kinds. Each keeps its weight and its name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from scalebio_plugin.report.history import read_history
from scalebio_plugin.report.tables import weights_line
from tests import host

NAMES = [
    "org/data",
    'it\'s "quoted"',
    "two\nlines\tand a tab",
    "<b onclick='x()'>bold</b> & more",
    "⚗️ 蒸留",
    "\u202egnihtyna",
    "\x1b[31mred\x1b[0m",
    "a" * 300,
    "../x",
    "{braces} %s $HOME",
    "- yaml: [list",
]
VALIDATION = "data/validation.jsonl"


def rows_of(kind: int, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the same question and answers, with what else stands in files."""
    if kind == 0:
        return rows[:1]
    if kind == 1:
        return [{**row, "meta": {"tags": [i], "of": {"deep": None}}, "score": i / 3} for i, row in enumerate(rows)]
    if kind == 2:
        return [{**row, "input": None, "score": "text"} for row in rows]
    if kind == 3:
        return [{key: value for key, value in row.items() if key != "input"} for row in rows]
    return rows


@pytest.fixture(scope="module")
def run(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> host.Run:
    folder = tmp_path_factory.mktemp("odd") / "inputs"
    shutil.copytree(inputs, folder, ignore=shutil.ignore_patterns("prepared*", "out*"))
    rows = [json.loads(line) for line in (folder / "data/clean.jsonl").read_text().splitlines()]
    for i in range(len(NAMES)):
        made = rows_of(i, rows[:24])
        (folder / f"data/{i}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    return host.train(
        folder,
        datasets=[{"path": f"data/{i}.jsonl", "type": "alpaca"} for i in range(len(NAMES))],
        scalebio={"names": NAMES, "sampling": "mixture"},
        max_steps=3,
        use_tensorboard=True,
        output_dir=str(folder / "out"),
    )


def test_every_file_has_the_names_as_they_were_given(run: host.Run) -> None:
    mixture = json.loads((run.folder / "mixture.json").read_text())
    assert sorted(mixture["weights"]) == sorted(NAMES)  # largest first
    assert sum(mixture["weights"].values()) == pytest.approx(1.0, abs=1e-4)
    examples = {name: source["examples"] for name, source in mixture["sources"].items()}
    assert examples == {name: 1 if i == 0 else 24 for i, name in enumerate(NAMES)}
    records = read_history(run.folder / "history.jsonl")
    assert [record["step"] for record in records] == [1, 2, 3]
    assert all(list(record["weights"]) == NAMES for record in records)
    assert yaml.safe_load((run.folder / "next.yml").read_text())["scalebio"]["names"] == NAMES


def test_the_page_shows_them_and_runs_none(run: host.Run) -> None:
    page = (run.folder / "report.html").read_text()
    assert "<b onclick" not in page
    assert "&lt;b onclick" in page
    assert "⚗️ 蒸留" in page


def test_the_tables_of_the_log_stay_tables() -> None:
    weights = {name: 1.0 / len(NAMES) for name in NAMES}
    line = weights_line(weights)
    assert line.isprintable()
    parts = (r"two\nlines\tand a tab", "⚗️ 蒸留", r"\u202egnihtyna", r"\x1b[31mred\x1b[0m", "../x")
    assert [part for part in parts if part not in line] == []


def test_nothing_was_written_elsewhere(run: host.Run) -> None:
    assert sorted(path.name for path in run.folder.iterdir() if path.is_dir()) == []
    assert not (run.folder.parent / "x").exists()
