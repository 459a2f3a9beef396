"""The `scalebio` command prints a mixture, and answers mistakes in one line."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scalebio_plugin import __version__, cli
from scalebio_plugin import commands as implementations
from scalebio_plugin.quickstart import command as quickstart
from scalebio_plugin.report.history import append_history
from scalebio_plugin.report.mixture_file import mixture_document, write_mixture
from scalebio_plugin.report.summary import summarise
from tests.report.histories import NEW_IN_A_RECORD, drifting_history, facts, old_document

SOURCE: dict[str, Any] = {"weight_average": 0.5, "inner_loss": 2.0, "tokens": 10, "examples": 2}
MIXTURE = {
    "schema": 1,
    "weights": {"poems": 0.75, "logs": 0.25},
    "sources": {
        "poems": {"weight": 0.75, "gap": -0.012, "gap_se": 0.001, "loss": 1.5} | SOURCE,
        "logs": {"weight": 0.25, "gap": 0.036, "gap_se": None, "loss": None} | SOURCE,
    },
}


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    path = tmp_path / "scalebio" / "mixture.json"
    path.parent.mkdir()
    path.write_text(json.dumps(MIXTURE))
    return path


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out.strip() == f"scalebio {__version__}"


@pytest.mark.parametrize("of_a_run", [True, False], ids=["output_dir", "file"])
def test_show_prints_every_source(mixture: Path, capsys: pytest.CaptureFixture[str], of_a_run: bool) -> None:
    assert cli.main(["show", str(mixture.parent.parent if of_a_run else mixture)]) == 0
    header, poems, logs = capsys.readouterr().out.splitlines()
    assert header.split() == ["source", "weight", "95%", "interval", "gap", "s.e.", "loss"]
    assert poems.split()[:2] == ["poems", "0.7500"]
    assert logs.split()[-2:] == ["-", "-"]


def test_the_folder_of_the_mixture_is_taken_for_it(mixture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", str(mixture)]) == 0
    shown = capsys.readouterr().out
    assert cli.main(["show", str(mixture.parent)]) == 0
    assert capsys.readouterr().out == shown


def test_show_prints_which_source_helps_which_set(mixture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cosine = {"mean": 0.25, "se": 0.03, "probes": 4}
    goals = {name: dict.fromkeys(("verse", "prose"), cosine) for name in ("poems", "logs")}
    mixture.write_text(json.dumps({**MIXTURE, "goals": goals}))
    assert cli.main(["show", str(mixture)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[3:6] == ["", "helps           verse           prose", "poems  +0.250 ± 0.030  +0.250 ± 0.030"]


def test_show_for_a_program(mixture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = json.loads(json.dumps({**MIXTURE, "verdict": "converged"}).replace("logs", "\\u001b[2J"))
    mixture.write_text(json.dumps(hostile))
    assert cli.main(["show", "--json", str(mixture)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    [run] = json.loads(out)["runs"]
    assert (run["run"], run["weights"], run["verdict"]) == (str(mixture), hostile["weights"], "converged")
    assert run["sources"]["poems"] == {
        **dict.fromkeys(("interval", "evidence")),
        **{key: MIXTURE["sources"]["poems"][key] for key in ("weight", "gap", "gap_se", "loss")},
        **{key: SOURCE[key] for key in ("weight_average", "inner_loss")},
    }


def test_several_runs_are_shown_and_drawn_side_by_side(
    mixture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps(MIXTURE).replace("poems", "letters"))
    assert cli.main(["show", str(mixture), str(other)]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[:4]] == [
        "source",
        *("poems", "letters", "logs"),
    ]
    assert cli.main(["show", str(mixture), str(other), "--json"]) == 0
    assert [run["run"] for run in json.loads(capsys.readouterr().out)["runs"]] == [str(mixture), str(other)]
    page = tmp_path / "both.html"
    assert cli.main(["report", str(mixture), str(other), "--output", str(page)]) == 0
    assert capsys.readouterr().out == f"{page}\n"
    assert "letters" in page.read_text()
    assert cli.main(["report", str(mixture), "--output", str(page)]) == 2


def test_show_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", str(tmp_path)]) == 2
    assert f"no file {tmp_path / 'scalebio' / 'mixture.json'}" in capsys.readouterr().err


def test_show_says_what_is_broken(mixture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mixture.write_text(json.dumps(MIXTURE | {"weights": {"poems": 0.75, "logs": 0.75}}))
    assert cli.main(["show", str(mixture)]) == 2
    assert "must sum to 1" in capsys.readouterr().err


def test_report_draws_a_run_again_as_far_as_its_mixture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    history, names = drifting_history(2, 12)
    folder = tmp_path / "scalebio"
    folder.mkdir()
    for record in history:  # two steps have been made since the last checkpoint
        append_history(folder / "history.jsonl", record)
    known = facts(dict.fromkeys(names, 900), steps=10)
    write_mixture(folder / "mixture.json", mixture_document(summarise(history[:10], names), known, "still moving"))

    assert cli.main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "report.html")
    page = (folder / "report.html").read_text()
    assert all(f"{history[9]['weights'][name]:.4f}" in page for name in names)
    assert (folder / "mixture.png").read_bytes()[:4] == b"\x89PNG"


def test_what_an_older_version_wrote_is_shown_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It had two standard errors of the gap, no evidence, no intervals and no verdict."""
    history, names = drifting_history(2, 12)
    folder = tmp_path / "scalebio"
    folder.mkdir()
    for record in history:
        old = {key: value for key, value in record.items() if key not in NEW_IN_A_RECORD}
        append_history(folder / "history.jsonl", old)  # type: ignore[arg-type]
    summaries = summarise(history, names)
    document = old_document(mixture_document(summaries, facts(dict.fromkeys(names, 900), steps=12), None))
    write_mixture(folder / "mixture.json", document)

    assert cli.main(["show", str(tmp_path)]) == 0
    _, *rows = capsys.readouterr().out.splitlines()
    told = {row.split()[0] for row in rows if row.startswith("source") and " *" not in row}
    assert told == {name for name in names if abs(summaries[name].gap) > 2 * 0.002}
    assert "verdict" not in "".join(rows)
    (folder / "mixture.png").unlink(missing_ok=True)
    assert cli.main(["report", str(tmp_path)]) == 0
    assert all(f"{history[-1]['weights'][name]:.4f}" in (folder / "report.html").read_text() for name in names)
    assert (folder / "mixture.png").read_bytes()[:4] == b"\x89PNG"


def test_report_says_which_file_is_missing(mixture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(mixture)]) == 2
    assert f"no file {mixture.with_name('history.jsonl')}; " in capsys.readouterr().err


@pytest.mark.parametrize("ending", ['{"step": 13, "weig', "nonsense"])
def test_a_run_that_was_killed_as_it_wrote_is_shown_and_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str
) -> None:
    history, names = drifting_history(2, 12)
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        for record in history:
            append_history(folder / "history.jsonl", record)
        with (folder / "history.jsonl").open("a") as file:
            file.write(ending)
        known = facts(dict.fromkeys(names, 900), steps=12)
        write_mixture(folder / "mixture.json", mixture_document(summarise(history, names), known, "still moving"))
    runs = [str(tmp_path / name / "mixture.json") for name in "ab"]
    for arguments in (
        ["show", runs[0]],
        ["show", *runs],
        ["report", runs[0]],
        ["report", *runs, "--output", str(tmp_path / "c")],
    ):
        assert cli.main(arguments) == 0, capsys.readouterr().err
    (tmp_path / "a/history.jsonl").write_text("nonsense\n")
    assert cli.main(["show", *runs]) == 0
    assert cli.main(["report", runs[0]]) == 2


def test_a_reader_that_has_enough_ends_it_without_a_word(mixture: Path) -> None:
    program = "import sys; from scalebio_plugin.cli import main; sys.exit(main())"
    ends, gone = os.pipe()
    os.close(ends)  # nobody reads
    done = subprocess.run(
        [sys.executable, "-c", program, "show", str(mixture)],
        stdin=subprocess.DEVNULL,
        stdout=gone,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
    )
    os.close(gone)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    "typed",
    ["", "unknown", "show", "estimate", "quickstart --steps 0", "estimate c --gpus 0", "estimate c --gpu-memory -1"],
)
def test_a_wrong_use_is_an_error(typed: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(typed.split())


@pytest.mark.parametrize("command", ["check", "estimate", "init", "apply", "compare", "report-bug"])
def test_a_config_that_is_not_there_is_a_line(mixture: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert cli.main([command, "none.yml", *([str(mixture)] if command == "apply" else [])]) == 2
    assert capsys.readouterr() == ("", "scalebio: no file none.yml; give an Axolotl config\n")


def commands() -> dict[str, argparse.ArgumentParser]:
    [action] = [action for action in cli.parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return action.choices


@pytest.mark.parametrize("name", commands())
def test_a_command_can_be_run_and_the_examples_of_its_help_can_be_typed(name: str) -> None:
    assert callable(getattr(implementations, name.replace("-", "_")))
    head, *examples = commands()[name].format_help().partition("examples:")[2].splitlines()
    assert not head
    assert examples
    for example in examples:
        words = shlex.split(example)
        typed = words[1 : words.index("|")] if "|" in words else words[1:]
        assert (words[0], cli.parser().parse_args(typed).command) == ("scalebio", name)


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("a", {"apply"}),
        ("re", {"report", "report-bug"}),
        ("estimate --gpu", {"--gpus", "--gpu-memory"}),
        ("check conf", {"config.yml", "configs"}),
    ],
    ids=["a command", "two that begin alike", "options", "paths"],
)
def test_a_shell_completes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], typed: str, completed: set[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--print-completion", "bash"])
    (tmp_path / "config.yml").touch()
    (tmp_path / "configs").mkdir()
    program = f"{capsys.readouterr().out}\nCOMP_WORDS=(scalebio {typed}); COMP_CWORD={len(typed.split())}\n"
    program += "_shtab_scalebio\n"
    program += 'printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == completed


@pytest.mark.parametrize("shell", ["zsh", "fish", "tcsh"])
def test_there_is_a_completion_for_other_shells(capsys: pytest.CaptureFixture[str], shell: str) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--print-completion", shell])
    assert "report-bug" in capsys.readouterr().out


def test_quickstart_passes_its_arguments_and_status_on(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(quickstart, "run", lambda directory, steps: calls.append((directory, steps)) or 7)
    assert cli.main(["quickstart"]) == 7
    assert cli.main(["quickstart", "--dir", "there", "--steps", "3"]) == 7
    assert calls == [(Path("scalebio-quickstart"), None), (Path("there"), 3)]
