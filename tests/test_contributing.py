"""CONTRIBUTING, the task runner, pre-commit and the templates name what there is, and agree on what CI runs."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from scalebio_plugin import cli

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
TARGETS = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE).group(1).split()
BLOCKS = re.findall(r"```\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [line.split("  #")[0].strip() for block in BLOCKS for line in block.splitlines()]
COMMANDS += [code for code in re.findall(r"`([^`\n]+)`", PAGE) if code.startswith(("python ", "make ", "scalebio "))]
SPANS = re.findall(r"`([^`\n]+)`|\]\(([^)]+)\)", PAGE)
WORDS = {word for command in [*COMMANDS, *map("".join, SPANS)] for word in command.split()}
PATHS = sorted(word for word in WORDS if "/" in word or word.endswith((".md", ".toml")))
MADE = {".venv/bin/activate"}


@pytest.mark.parametrize("path", sorted(set(PATHS) - MADE))
def test_what_it_names_is_there(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize("command", sorted(set(COMMANDS)))
def test_its_commands_are_real(command: str) -> None:
    words = command.split()
    if words[0] == "make":
        assert set(words[1:]) <= set(TARGETS)
    elif words[0] == "scalebio":
        with pytest.raises(SystemExit, match="0"):
            cli.main([words[1], "--help"])
    elif words[0] == "bash":
        assert (ROOT / words[1]).is_file()
    else:
        assert words[:3] == ["python", "-m", "pytest"] or (words[0] == "python" and (ROOT / words[1]).is_file())


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("target", TARGETS)
def test_a_target_is_one_line(target: str) -> None:
    done = subprocess.run(
        ["make", "-n", "--no-print-directory", target], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert len(done.stdout.splitlines()) == 1
    assert all((ROOT / path).exists() for path in re.findall(r"\b(?:tests|benchmarks)/[\w/]+\.\w+", done.stdout))


def test_pre_commit_and_the_task_runner_run_what_ci_runs() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    ci = (ROOT / "tests" / "run.sh").read_text().splitlines()
    assert [hook["entry"] for hook in hooks] == ["ruff check .", "mypy"]
    assert not any(hook["pass_filenames"] for hook in hooks)
    assert all(hook["entry"] in ci and f"\t{hook['entry']}\n" in MAKEFILE for hook in hooks)


def test_the_bug_template_asks_for_the_report_and_reads_as_a_form() -> None:
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text("utf-8"))
        assert {"name", "description", "body"} <= set(form)
        ids = [part["id"] for part in form["body"]]
        assert len(ids) == len(set(ids))
    assert "scalebio report-bug CONFIG" in (ROOT / ".github" / "ISSUE_TEMPLATE" / "bug_report.yml").read_text("utf-8")
