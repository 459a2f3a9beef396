"""`python docs/reference.py` writes docs/reference.md, every key of the `scalebio:` block, from the model of it."""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from scalebio_plugin.config.block import ScaleBiOSettings

PAGE = Path(__file__).with_name("reference.md")
HEAD = """# Every key of the `scalebio:` block

All keys are optional. A misspelt one is an error that names it and the one that was meant, as is every unsupported
combination, before a model loads: one list of all problems, the last thing on the screen, and exit status 78
([limits.md](limits.md), [troubleshooting.md](troubleshooting.md)). On the command line:
`accelerate launch -m axolotl.cli.train config.yml --scalebio__penalty=20`. What a resume may change:
[resume.md](resume.md).

A default of – is one that the text tells. A key with a dot is one of a block: `learn.fraction` is
`learn: {fraction: 0.5}`. The defaults of `prior` and `lisa` act only where the block is written, `prior: {}` at least.

| key, type, default | what |
|---|---|
"""
TAIL = """
Written from the model that parses the block, by `python docs/reference.py`.
"""


def leaves(model: type[BaseModel] = ScaleBiOSettings, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key that has a value, by its path."""
    for name, field in model.model_fields.items():
        nested = [of for of in (field.annotation, *get_args(field.annotation)) if _is_block(of)]
        if nested:
            yield from leaves(nested[0], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def _is_block(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def type_of(annotation: Any) -> str:
    """In the words of YAML."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_of(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(type_of(of) for of in arguments if of is not type(None))
    if origin is list:
        return f"list of {type_of(arguments[0])}s".replace("mappings", "entries")
    if origin is dict:
        return "mapping"
    if origin is tuple:
        return "list of numbers"
    return {str: "text", int: "whole number", float: "number", bool: "`true`, `false`"}[annotation]


def row(key: str, field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    shown = "–" if default in (None, {}, [], PydanticUndefined) else f"`{_in_yaml(default)}`"
    return f"| `{key}`<br>{type_of(field.annotation)}<br>{shown} | {field.description} |"


def _in_yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def page() -> str:
    return HEAD + "\n".join(row(key, field) for key, field in leaves()) + "\n" + TAIL


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
