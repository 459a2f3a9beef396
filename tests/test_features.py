"""docs/features.md: every test that it names is there, and what it calls refused is refused, in its words."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from scalebio_plugin.config.refusals import problems_of
from tests.config.test_refusals import config

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/features.md").read_text("utf-8")
ROWS = [row.strip("| ").split(" | ") for row in PAGE.splitlines() if row.startswith("| ")]
ROWS = [row for row in ROWS if row[0] != "feature"]
STATES = ("works", "works, same bits", "refused", "untouched", "not tried")


def of(*states: str) -> list[Any]:
    return [pytest.param(keys, shown, id=name) for name, keys, state, shown in ROWS if state in states]


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


@cache
def named_in(path: Path) -> tuple[set[str], set[str]]:
    """Names of the tests of a file, and its strings."""
    nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
    names = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    return names, {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def test_every_row_has_a_state_and_what_shows_it() -> None:
    assert len(ROWS) > 80
    assert [row for row in ROWS if len(row) != 4 or row[2] not in STATES or not row[3]] == []


@pytest.mark.parametrize(("keys", "shown"), of("works", "works, same bits"))
def test_what_works_has_a_test(keys: str, shown: str) -> None:
    path, name, case = re.fullmatch(r"`([^:]+)::(\w+)(?:\[(.+)\])?`", shown).groups()  # type: ignore[union-attr]
    names, strings = named_in(ROOT / path)
    assert name in names
    assert case is None or case in strings


@pytest.mark.parametrize(("keys", "shown"), of("refused"))
def test_what_is_refused_is_refused_in_these_words(keys: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scalebio_plugin.config.refusals.host_is_0_19", lambda: True)
    given = {name: value for each in code(keys) for name, value in yaml.safe_load(each).items()}
    block = given.pop("scalebio", None)
    if "plugins" in given:
        given["plugins"] = [*given["plugins"], "scalebio"]
    (problem,) = problems_of(config(given, scalebio=block))
    (words,) = code(shown)
    assert words in problem


@pytest.mark.parametrize(("keys", "shown"), of("works", "works, same bits", "untouched", "not tried"))
def test_what_is_not_refused_is_not(keys: str, shown: str) -> None:
    for each in code(keys):
        assert problems_of(config(yaml.safe_load(each))) == []
