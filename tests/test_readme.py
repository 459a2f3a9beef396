"""What the README says of the config is what the config is. `python -m tests.test_readme` prints the table anew."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from scalebio_plugin.config.block import ScaleBiOSettings

README = (Path(__file__).parent.parent / "README.md").read_text()


def reference_rows(model: type[BaseModel] = ScaleBiOSettings, prefix: str = "") -> list[str]:
    """One table row per leaf of the block: key, default, description."""
    rows: list[str] = []
    for name, field in model.model_fields.items():
        nested = [of for of in (field.annotation, *getattr(field.annotation, "__args__", ())) if _is_block(of)]
        if nested:
            rows += reference_rows(nested[0], f"{prefix}{name}.")
            continue
        default = field.get_default(call_default_factory=True)
        shown = "–" if default in (None, {}, [], PydanticUndefined) else f"`{default}`"
        rows.append(f"| `{prefix}{name}` | {shown} | {field.description} |")
    return rows


def _is_block(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


@pytest.mark.parametrize("row", reference_rows())
def test_reference_table_has_every_key_with_default_and_description(row: str) -> None:
    assert row in README


def test_reference_table_has_no_other_key() -> None:
    assert len(re.findall(r"^\| `[a-z_.]+` \| ", README, re.MULTILINE)) == len(reference_rows())


@pytest.mark.parametrize("path", re.findall(r"\]\(((?!https?:)[^)#]+)\)", README))
def test_links_lead_somewhere(path: str) -> None:
    assert (Path(__file__).parent.parent / path).exists()


def test_commands_exist() -> None:
    for command in ("example_configs/quickstart.sh", "tests/run.sh"):
        assert f"bash {command}" in README
        assert (Path(__file__).parent.parent / command).exists()


if __name__ == "__main__":
    print("\n".join(["| key | default | what |", "|---|---|---|", *reference_rows()]))
