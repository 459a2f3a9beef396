"""Every reason to refuse a config stands in docs/limits.md, by the key that its message begins with."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from scalebio_plugin.config import deepspeed, optimizers, refusals

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/limits.md").read_text()
OF_TABLES = {
    "keys": refusals._KEYS,
    "plugins": refusals._PLUGINS,
    "never": optimizers._NEVER,
    "with LISA": optimizers._WITH_LISA,
    **{f"optimizers, {engine}": parts for engine, parts in optimizers._ON_ENGINE.items()},
    "DeepSpeed": deepspeed._KEYS,
}


def first_words() -> list[str]:
    """What the messages begin with that config/ yields outside of its tables."""
    found = set()
    for file in (ROOT / "scalebio_plugin/config").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Yield) and node.value is not None:
                text = node.value.values[0] if isinstance(node.value, ast.JoinedStr) else node.value
                if isinstance(text, ast.Constant) and (word := re.match(r"[a-z_0-9.]*[a-z_0-9](?=[ :.])", text.value)):
                    found.add(word[0])
    return sorted(found - {"no"})  # "no validation data to tune the mixture for"


@pytest.mark.parametrize(("table", "key"), [(table, key) for table, keys in OF_TABLES.items() for key in keys])
def test_every_refused_key_stands_in_the_page(table: str, key: str) -> None:
    assert f"`{key}`" in PAGE, table


@pytest.mark.parametrize("word", first_words())
def test_every_other_message_is_explained_there(word: str) -> None:
    assert f"`{word}`" in PAGE


def test_messages_are_found() -> None:
    assert {"fsdp", "torch_compile", "scalebio.penalty", "load_in_8bit", "datasets"} <= set(first_words())


def test_each_row_has_a_reason() -> None:
    rows = [row for row in PAGE.splitlines() if row.startswith("| `")]
    assert len(rows) > 50
    assert all(len(cell.split()) > 1 for row in rows for cell in row.strip("| ").split(" | ")[-1:])


@pytest.mark.parametrize("path", re.findall(r"\]\(((?!https?:|#)[^)#]+)", PAGE))
def test_links_lead_somewhere(path: str) -> None:
    assert (ROOT / "docs" / path).exists()
