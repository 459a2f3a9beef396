"""Keys of a YAML text by their places in it, so that what is not changed keeps every byte.

Only what is written one key below the other is edited. Whether an edit did what was meant is asked of what it parses to
(`parses_to`): an alias or a merge may have other keys follow.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..report.files import replace_file


@dataclass(frozen=True)
class Entry:
    """A key and its value.

    Attributes:
        start, end: The lines of both are `text[start:end]`; comments below that are indented are the value's.
        column: Of the key.
    """

    start: int
    end: int
    column: int
    value: yaml.Node


def read_text(path: Path) -> str:
    """As it stands; `read_config` has said what is no config."""
    return path.read_bytes().decode("utf-8")


def write_text(path: Path, text: str) -> None:
    """In place of what is there, under its name and permissions."""
    mode = path.stat().st_mode if path.exists() else None
    replace_file(path.resolve(), text.encode())
    if mode is not None:
        path.chmod(mode)


def entries(text: str, *within: str) -> dict[str, Entry]:
    """The keys of a config, or of a block in it; none where they are not written one below the other."""
    node, end = yaml.compose(text, yaml.SafeLoader), end_of(text)
    found = _entries(text, node, end)
    for name in within:
        found = _entries(text, found[name].value, found[name].end)
    return found


def end_of(text: str) -> int:
    """Where the document ends: at its `...`, if it has one, else with the text."""
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.DocumentEndEvent) and event.start_mark is not None:
            return event.start_mark.index
    return len(text)


def _entries(text: str, node: yaml.Node | None, end: int) -> dict[str, Entry]:
    if not isinstance(node, yaml.MappingNode) or node.flow_style or not node.value:
        return {}
    columns = [key.start_mark.column for key, _ in node.value]
    starts = [key.start_mark.index - key.start_mark.column for key, _ in node.value]
    lines = zip(node.value, starts, [*starts[1:], end], columns, strict=True)
    return {
        key.value: Entry(start, start + len(_own(text[start:upto], column)), column, value)
        for (key, value), start, upto, column in lines
    }


def _own(lines: str, column: int) -> str:
    """Without what stands above the next key: empty lines, and comments that are not indented."""
    own = lines.split("\n")
    if own[-1] == "":
        own.pop()
    kept = len(own)
    while kept > 1 and _is_between(own[kept - 1], column):
        kept -= 1
    return lines if kept == len(own) else "\n".join(own[:kept]) + "\n"


def _is_between(line: str, column: int) -> bool:
    stripped = line.lstrip(" ")
    return not stripped.strip() or (stripped.startswith("#") and len(line) - len(stripped) <= column)


def put(text: str, start: int, end: int, new: str) -> str:
    """With `new` in the place of `text[start:end]`, in the line ends of the text."""
    return text[:start] + new.replace("\n", line_end(text)) + text[end:]


def line_end(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def appended(text: str, lines: str) -> str:
    """With `lines` after an empty one at the end of the document; above its last key, where they would change that."""
    above = _above_an_open_text(text)
    at = end_of(text) if above is None else above
    before = text[:at].replace("\r\n", "\n")
    gap = "" if not before or before.endswith("\n\n") else "\n" if before.endswith("\n") else "\n\n"
    return put(text, at, at, gap + lines + ("" if above is None else "\n"))


def _above_an_open_text(text: str) -> int | None:
    """Where the last key, and what stands above it, begins, if it ends in a text to which an end of line is added.

    Such is one of several lines (`|`, `>`) that has no last end of line, or that keeps all (`|+`).
    """
    try:
        found = list(entries(text).values())
    except yaml.YAMLError:  # an edit before this one has spoilt it
        return None
    if not found:
        return None
    last = found[-1].value
    while isinstance(last, yaml.CollectionNode) and last.value:
        last = last.value[-1][1] if isinstance(last, yaml.MappingNode) else last.value[-1]
    if not isinstance(last, yaml.ScalarNode) or last.style not in ("|", ">"):
        return None
    header = text[last.start_mark.index :].partition("\n")[0].partition("#")[0]
    if text[: end_of(text)].endswith("\n") and "+" not in header:
        return None
    return found[-2].end if len(found) > 1 else found[-1].start


def with_plugin(text: str, given: Iterable[str]) -> str:
    """With scalebio at the end of `plugins:`, which lists those `given` so far."""
    entry = entries(text).get("plugins")
    if entry is None:  # none, or merged from elsewhere
        return appended(text, "plugins:\n" + "".join(f"  - {name}\n" for name in [*given, "scalebio"]))
    value = entry.value
    start, end = _span(value)
    if not isinstance(value, yaml.SequenceNode) or not value.value:
        return put(text, start, end, " [scalebio]" if start == end else "[scalebio]")
    last = _span(value.value[-1])[1]
    if value.flow_style:
        return put(text, last, last, ", scalebio")
    return _below(text, last, value.start_mark.column, "- scalebio")


def without_plugins(text: str, names: Collection[str]) -> str:
    """Without these names in `plugins:`, which lists others, too."""
    entry = entries(text).get("plugins")
    if entry is None or not isinstance(entry.value, yaml.SequenceNode):
        return text
    if entry.value.flow_style:
        return put(text, *_span(entry.value), dumped([of.value for of in entry.value.value if of.value not in names]))
    for start, end in reversed([_span(of) for of in entry.value.value if of.value in names]):
        text = put(text, text.rfind("\n", 0, start) + 1, text.find("\n", end) + 1 or len(text), "")
    return text


def without(text: str, keys: Iterable[str]) -> str:
    """Without these keys of the config, as far as it has them."""
    for key in keys:
        if (entry := entries(text).get(key)) is not None:
            text = put(text, entry.start, entry.end, "")
    return text


def with_value(text: str, key: str, value: Any) -> str:
    """With a value of one line at a key of the config; a comment beside the old one stays."""
    entry = entries(text).get(key)
    if entry is None:
        return appended(text, f"{key}: {dumped(value)}\n")
    old = entry.value
    if isinstance(old, yaml.ScalarNode) and old.style not in ("|", ">"):
        start, end = _span(old)
        return put(text, start, end, (" " if start == end else "") + dumped(value))
    return put(text, entry.start, entry.end, " " * entry.column + f"{key}: {dumped(value)}\n")


def with_weights(text: str, weights: Iterable[float]) -> str:
    """With a `weight:` in each entry of `datasets:`."""
    found = entries(text).get("datasets")
    given = found.value.value if found is not None and isinstance(found.value, yaml.SequenceNode) else []
    for node, weight in reversed(list(zip(given, weights, strict=False))):
        text = _with_weight(text, node, weight)
    return text


def _with_weight(text: str, node: yaml.Node, weight: float) -> str:
    if not isinstance(node, yaml.MappingNode):
        return text
    keys = {key.value: (key, value) for key, value in node.value}
    if "weight" in keys:
        return put(text, *_span(keys["weight"][1]), dumped(weight))
    if "path" not in keys:
        return text
    key, value = keys["path"]
    end, new = _span(value)[1], f"weight: {dumped(weight)}"
    return put(text, end, end, f", {new}") if node.flow_style else _below(text, end, key.start_mark.column, new)


def _below(text: str, at: int, column: int, line: str) -> str:
    """With a line below the one of that place."""
    end = text.find("\n", at) + 1
    line = " " * column + line
    return put(text, end, end, f"{line}\n") if end else put(text, len(text), len(text), f"\n{line}\n")


def _span(node: yaml.Node) -> tuple[int, int]:
    return node.start_mark.index, node.end_mark.index


def dumped(value: Any) -> str:
    """A value as YAML in one line."""
    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, default_flow_style=True, width=math.inf)
    return text.removesuffix("...\n").strip()


def parses_to(text: str, expected: Mapping[str, Any]) -> bool:
    try:
        return bool(yaml.safe_load(text) == expected)
    except yaml.YAMLError:
        return False


def difference(old: str, new: str, name: str) -> Iterator[str]:
    """Lines of a unified diff."""
    return difflib.unified_diff(old.splitlines(), new.splitlines(), name, name, lineterm="")
