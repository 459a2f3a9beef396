"""What a run tells of itself, without one."""

from __future__ import annotations

from pathlib import Path

import pytest

from scalebio_plugin.training.provenance import config_name


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (None, None),
        ("configs/first.yml", "configs/first.yml"),
        (Path("first.yml"), "first.yml"),
        ("/home/somebody/first.yml", "first.yml"),
        ("/tmp/axolotl_config_x1y2.yml", None),  # what the host makes of a config that is no file
    ],
)
def test_the_config_is_named_as_it_was_typed(path: str | Path | None, name: str | None) -> None:
    assert config_name({} if path is None else {"axolotl_config_path": path}) == name
