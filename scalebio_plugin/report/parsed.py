"""Documents that people send each other, parsed once: what is wrong in one is a line with file, key, rule and value.

Bounded in size, depth (pydantic's JSON parser ends at 200 levels) and in every number; keys that are not known, as a
newer version may write them, are left out.
"""

from __future__ import annotations

import os
import reprlib
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from .files import StrPath
from .words import printable

Name = Annotated[str, Field(max_length=10_000)]
Text = Annotated[str, Field(max_length=1000)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=-1e60, le=1e60)]  # its square is finite, too
NotNegative = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=0.0, le=1e60)]
Count = Annotated[int, Field(strict=True, ge=0, le=10**18)]
Positive = Annotated[int, Field(strict=True, ge=1, le=10**18)]
Many = Field(max_length=10_000)  # sources, validation sets
T = TypeVar("T")


def at_most(newest: int) -> AfterValidator:
    """Of the number of a format: what a newer version wrote is not guessed at."""

    def ours(schema: int) -> int:
        if schema > newest:
            raise ValueError(f"{schema} is newer than what this version of scalebio reads ({newest}); update scalebio")
        return schema

    return AfterValidator(ours)


def content_of(path: StrPath, most_bytes: int) -> bytes:
    """Of a file.

    Raises:
        ValueError: It is larger than that.
    """
    size = os.path.getsize(path)
    if size > most_bytes:
        raise ValueError(f"{path}: must have at most {most_bytes} bytes, got {size}; give a file that a run wrote")
    return Path(path).read_bytes()


def parsed(shape: TypeAdapter[T], content: bytes, where: str, remedy: str) -> T:
    """The content of that `shape`.

    Raises:
        ValueError: It is of another; in one line, with `where` it stands and the `remedy`.
    """
    try:
        return shape.validate_json(content)
    except ValidationError as error:
        raise ValueError(printable(f"{where}{_first_of(error)}; {remedy}")) from error


def _first_of(error: ValidationError) -> str:
    first, *more = sorted(error.errors(include_url=False), key=lambda one: one["loc"][:1] != ("schema",))
    key = "".join(f"[{reprlib.repr(part)}]" if depth else f": {part}" for depth, part in enumerate(first["loc"]))
    also = f" (and {len(more)} more)" if more else ""
    if first["type"] == "json_invalid":
        return f" must be JSON, got: {first['msg'].removeprefix('Invalid JSON: ')}"
    if first["type"] == "missing":
        return f"{key} is missing{also}"
    rule = first["msg"].replace("Input should be", "must be").removeprefix("Value error, ")
    got = "" if first["type"] == "value_error" else f", got {reprlib.repr(first['input'])}"
    return f"{key or ':'} {rule}{got}{also}"
