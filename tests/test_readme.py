"""README is what a visitor sees first: its links and commands are real."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


@pytest.mark.parametrize("path", re.findall(r"\]\(((?!https?:)[^)#]+)\)", README))
def test_links_lead_somewhere(path: str) -> None:
    assert (ROOT / path).exists()


def test_commands_exist() -> None:
    for command in ("example_configs/quickstart.sh", "tests/run.sh"):
        assert f"bash {command}" in README
        assert (ROOT / command).exists()


def test_every_page_is_a_link() -> None:
    here = {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert set(re.findall(r"\]\(docs/([\w-]+\.md)\)", README)) == here


def test_it_is_a_screen_and_a_half() -> None:
    assert len(README.splitlines()) <= 90
