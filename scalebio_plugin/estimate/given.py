"""Files that a user names, read: what is wrong with one is a line with its name, the place and the remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml


def read_config(path: Path) -> dict[str, Any]:
    """The Axolotl config at `path`, as it stands.

    Raises:
        FileNotFoundError, ValueError: There is none.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; give an Axolotl config")
    try:
        cfg = yaml.safe_load(_text_at(path))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {_said_of(error)}; correct it there") from error
    if not isinstance(cfg, dict):
        raise ValueError(f"{path} is no Axolotl config: it must be a block of keys")
    return cfg


def _said_of(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError):
        return " ".join(str(error).split())
    mark = error.problem_mark or error.context_mark
    place = f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
    return f"{error.problem or error.context}{place}"


def json_at(path: Path) -> dict[str, Any]:
    """The content of a file that holds a JSON object.

    Raises:
        ValueError: It holds none.
    """
    text = _text_at(path)
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"{path} is no JSON: {error.msg}, {place}; correct it there") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must be a JSON object, got {type(found).__name__}; write it as {{...}}")
    return found


def _text_at(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path} is no text in UTF-8 ({error.reason}), line {line}; save it as UTF-8") from error
