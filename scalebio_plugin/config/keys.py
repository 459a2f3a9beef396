"""What is wrong with single keys of the block, said by the key; of a misspelt one also which was meant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError

Path = tuple[str | int, ...]


def problems_of_keys(given: Any, error: ValidationError, block: type[BaseModel]) -> list[str]:
    """One line for each key of the `given` block that its model `block` refused, with rule, value and remedy."""
    found: dict[Path, list[str]] = {}
    for one in error.errors():
        path = _path(given, one["loc"])
        said = found.setdefault(path, [])
        if one["type"] == "extra_forbidden":
            said.append(_unknown(path, block))
        else:
            said.append(one["msg"].removeprefix("Value error, "))
            if not isinstance(one["input"], Mapping) and path:
                said[-1] += f", got {one['input']!r}"
    return [f"{'.'.join(map(str, ('scalebio', *path)))}: {'; or: '.join(said)}" for path, said in found.items()]


def _path(given: Any, loc: Sequence[str | int]) -> Path:
    """Where in what was given an error is: pydantic also notes which of several types it tried there."""
    path: list[str | int] = []
    for part in loc:
        try:
            given = given[part]
        except (KeyError, IndexError, TypeError):
            continue
        path.append(part)
    return tuple(path)


def _unknown(path: Path, block: type[BaseModel]) -> str:
    *parents, key = map(str, path)
    all_keys = list(leaves(block))
    here = ".".join(parents) + "." if parents else ""
    beside = [name.removeprefix(here) for name in all_keys if name.startswith(here)] if parents else all_keys
    siblings = list(dict.fromkeys(name.split(".")[0] for name in beside))
    meant = [here + name for name in get_close_matches(key, siblings, n=1, cutoff=0.6)]
    meant = meant or [name for name in all_keys if name.split(".")[-1] == key]
    hint = f"did you mean scalebio.{meant[0]}? " if meant else ""
    return f"there is no such key; {hint}the keys{f' of {here[:-1]}' if parents else ''} are {', '.join(siblings)}"


def leaves(block: type[BaseModel], before: str = "") -> Iterator[str]:
    """Names of all keys, those of blocks inside with dots."""
    for name, field in block.model_fields.items():
        inside = [of for of in (field.annotation, *getattr(field.annotation, "__args__", ())) if _is_model(of)]
        if inside:
            yield from leaves(inside[0], f"{before}{name}.")
        else:
            yield f"{before}{name}"


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
