"""docs/architecture.md and the folders' indexes: what they name is there, and all of the package is in them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "scalebio_plugin"
TEXT = (ROOT / "docs/architecture.md").read_text("utf-8")
MAP = TEXT.split("```")[1]


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`([\w/]+(?:\.py|/))`", TEXT))))
def test_a_path_leads_somewhere(path: str) -> None:
    """From the root of the repository, or of the package."""
    assert (ROOT / path).exists() or (PACKAGE / path).exists()


def test_the_map_has_every_folder_and_file_of_the_package_s_root() -> None:
    folders = {f"{path.name}/" for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    files = {path.name for path in PACKAGE.glob("*.py") if path.name != "__init__.py"}
    assert set(re.findall(r"\w+/|\w+\.py", MAP)) == folders | files


@pytest.mark.parametrize("index", sorted(PACKAGE.rglob("__init__.py")), ids=lambda path: path.parent.name)
def test_every_file_of_a_folder_stands_in_its_index(index: Path) -> None:
    told = ast.get_docstring(ast.parse(index.read_text("utf-8"))) or ""
    files = {path.stem for path in index.parent.glob("*.py")} | {
        path.parent.name for path in index.parent.glob("*/__init__.py")
    }
    assert files - {"__init__"} <= set(re.findall(r"\w+", told))


def test_it_fits_on_a_page() -> None:
    assert len(TEXT.splitlines()) <= 60
