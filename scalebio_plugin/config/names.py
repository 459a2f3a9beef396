"""Names: of the plugin in `plugins:`, and readable, unique ones of the sources, from the `datasets:` entries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

_OF_THE_PLUGIN = (  # in lower case
    *("scalebio", "scalebio_plugin"),
    *("scalebio_plugin.scalebioplugin", "scalebio_plugin.plugin.scalebioplugin"),
)
# Tried in this order, each added to the name until the names differ.
_TELLING = ("name", "data_files", "split", "revision", "type", "shards_idx")


def listed(config: Mapping[str, Any]) -> list[str]:
    """The entries of `plugins:` that are this plugin."""
    return [name for name in map(str, config.get("plugins") or []) if is_the_plugin(name)]


def is_the_plugin(name: str) -> bool:
    """Whether an entry of `plugins:` is; `boot` has it loaded by its full name."""
    return name.replace(":", ".").lower() in _OF_THE_PLUGIN


def keys_like_the_block(config: Mapping[str, Any]) -> list[str]:
    """Keys beside `scalebio:` that are meant for it, `scalebio.penalty` and `ScaleBiO` say: nobody reads them."""
    plain = str.maketrans("", "", "_.-")
    keys = (str(key) for key in config)
    return [key for key in keys if key != "scalebio" and key.lower().translate(plain).startswith("scalebio")]


def source_names(entries: Sequence[Mapping[str, Any]], given: Sequence[str] | None = None) -> list[str]:
    """One name per entry: `given` if there are any, else made from path, name, data_files and, last, a number.

    Raises:
        ValueError: `given` holds what is no text, has the wrong length, repeats a name or holds an empty one.
    """
    if given is not None:
        if not isinstance(given, list | tuple) or not all(isinstance(name, str) for name in given):
            raise ValueError(f"scalebio.names must be texts in a list, got {given!r}; write each in quotes")
        if len(given) != len(entries):
            raise ValueError(
                f"scalebio.names must have one name per entry of datasets: ({len(entries)}), got {len(given)}"
            )
        if len(set(given)) != len(given) or not all(name.strip() for name in given):
            raise ValueError(
                f"scalebio.names must be unique and not empty, got {list(given)}; rename the repeated ones"
            )
        return list(given)
    names = [_short(entry.get("path")) for entry in entries]
    for key in _TELLING:
        repeated = {name for name, count in Counter(names).items() if count > 1}
        if not repeated:
            break
        names = [
            f"{name}/{_short(entry.get(key))}" if name in repeated and entry.get(key) is not None else name
            for name, entry in zip(names, entries, strict=True)
        ]
    return numbered(names)


def refuse_other_sources(saved: Sequence[str], names: Sequence[str], where: str) -> None:
    """Raise a ValueError that names the sources by which two mixtures differ; their order may differ only by name."""
    if list(saved) == list(names):
        return
    missing, new = sorted(set(saved) - set(names)), sorted(set(names) - set(saved))
    if not missing and not new:
        raise ValueError(
            f"scalebio: {where} lists the sources as {list(saved)}, this run as {list(names)}; "
            "put the entries of datasets: back in that order"
        )
    names_do = ", or give scalebio.names where entries were renamed" if len(missing) == len(new) else ""
    raise ValueError(
        f"scalebio: the sources of {where} are not those of this run: it has {missing or 'none'} that are missing "
        f"here, and lacks {new or 'none'}; use the datasets: and scalebio.split_by it was learned with{names_do}"
    )


def numbered(names: list[str]) -> list[str]:
    """The names, changed in place so that none is there twice."""
    taken: set[str] = set()
    for position, name in enumerate(names):
        unique, n = name, 1
        while unique in taken:
            n += 1
            unique = f"{name}#{n}"
        taken.add(unique)
        names[position] = unique
    return names


def _short(value: Any) -> str:
    """`org/data` stays, a local file or folder gives its stem, a list joins its members."""
    if isinstance(value, (list, tuple)):
        return "+".join(_short(member) for member in value)
    text = str(value)
    path = PurePosixPath(text)
    is_file = path.suffix.lower() in {".json", ".jsonl", ".parquet", ".csv", ".txt", ".arrow", ".gz", ".zst"}
    if is_file:
        return path.stem
    return path.name if text.startswith((".", "/", "~")) or len(path.parts) > 2 else text
