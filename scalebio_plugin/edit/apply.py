"""`scalebio apply`: a config as the ordinary run on a mixture, and what the numbers of that mixture mean."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import yaml

from ..config.block import settings_of
from ..config.names import listed, refuse_other_sources, source_names
from ..config.raw import refuse_shapes
from ..config.refusals import host_is_0_19
from ..config.split import columns_of
from ..report.mixture_file import fractions_of_rows, rows_of_an_epoch, times_drawn
from ..report.next_config import OF_THE_RUN, applied_config
from ..report.tables import align, by_weight, shorten
from .text import (
    Entry,
    appended,
    dumped,
    entries,
    parses_to,
    put,
    with_plugin,
    with_value,
    with_weights,
    without,
    without_plugins,
)

_OUTPUT_DIR = "./model-out"  # the host's, where a config has none


def applied(text: str, config: Mapping[str, Any], mixture: str) -> str:
    """The text of a config with the block that applies a mixture; without comments, where they cannot be kept.

    Args:
        config: What the text parses to.
        mixture: Path of the mixture.json, as the config is to have it.
    """
    plugins = list(config.get("plugins") or [])
    expected = _applied(config, mixture)
    if not listed(config):
        expected["plugins"] = [*plugins, "scalebio"]

    def edited() -> str:
        new = with_value(without(text, OF_THE_RUN), "output_dir", expected["output_dir"])
        return _with_block(new if listed(config) else with_plugin(new, plugins), expected["scalebio"])

    return _or_plain(edited, expected)


def as_weights(text: str, config: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    """The same for the host alone: of each entry of `datasets:` the part to keep, as its `weight:`.

    Raises:
        ValueError: The host has no such key, or the mixture cannot be said by it.
    """
    plugins = [name for name in config.get("plugins") or [] if name not in listed(config)]
    kept = _kept_of_entries(config, document)
    expected = {key: value for key, value in _applied(config, "").items() if key not in ("scalebio", "plugins")}
    expected["datasets"] = [{**entry, "weight": of} for entry, of in zip(config["datasets"], kept, strict=True)]
    if plugins:
        expected["plugins"] = plugins

    def edited() -> str:
        new = without(text, (*OF_THE_RUN, "scalebio", *([] if plugins else ["plugins"])))
        new = without_plugins(new, listed(config)) if plugins else new
        return with_value(with_weights(new, kept), "output_dir", expected["output_dir"])

    return _or_plain(edited, expected)


def _applied(config: Mapping[str, Any], mixture: str) -> dict[str, Any]:
    return applied_config(config, mixture, str(config.get("output_dir") or _OUTPUT_DIR))


def _or_plain(edited: Callable[[], str], expected: Mapping[str, Any]) -> str:
    """What cannot be edited, for an alias, a merge or the way that it is written, is written anew."""
    with suppress(yaml.YAMLError):  # one edit may leave what the next cannot read
        if parses_to(text := edited(), expected):
            return text
    anew: str = yaml.safe_dump(dict(expected), sort_keys=False, allow_unicode=True)
    return "# Written anew, without the comments: what was replaced is no line of its own, or has an alias.\n\n" + anew


def _with_block(text: str, block: Mapping[str, Any]) -> str:
    """What is kept of the old block keeps its lines."""
    entry, old = entries(text).get("scalebio"), dict[str, Entry]()
    if entry is not None:
        old = entries(text, "scalebio")
    indent = " " * next((one.column for one in old.values()), 2)
    kept = {key: text[old[key].start : old[key].end] for key in block if key in old and key != "apply"}
    lines = ["scalebio:  # no learning: rows are drawn by the weights of this file"]
    lines += [kept.get(key, f"{indent}{key}: {dumped(value)}").rstrip() for key, value in block.items()]
    new = "".join(f"{line}\n" for line in lines).replace("\r\n", "\n")
    return appended(text, new) if entry is None else put(text, entry.start, entry.end, " " * entry.column + new)


def refuse_unfit(config: Mapping[str, Any], document: Mapping[str, Any], where: str) -> None:
    """Raise a ValueError where a mixture is of other sources than the config, which it names.

    What a column splits an entry into is known once its rows are read.
    """
    refuse_shapes(config)
    names, columns = _entries(config)
    if len(names) == 1 and any(columns):
        return
    split = [name for name, column in zip(names, columns, strict=True) if column is not None]
    learned = {_entry_of(source, split) for source in document["weights"]}
    refuse_other_sources(sorted(learned), sorted(names), where)


def _entries(config: Mapping[str, Any]) -> tuple[list[str], list[str | None]]:
    """Names and columns of the entries of `datasets:`."""
    block = config.get("scalebio") or {}
    names = source_names(config.get("datasets") or [], block.get("names"))
    return names, columns_of(block.get("split_by"), names)


def _entry_of(source: str, split: list[str]) -> str:
    return next((name for name in split if source.startswith(f"{name}/")), source)


def _kept_of_entries(config: Mapping[str, Any], document: Mapping[str, Any]) -> list[float]:
    if host_is_0_19():
        raise ValueError(
            "--as-weights: Axolotl 0.19 has no datasets[].weight and would drop it; update Axolotl to 0.20 or later, "
            "or leave --as-weights out"
        )
    names, columns = _entries(config)
    if any(columns) or document.get("sources") is None or min(document["weights"].values()) <= 0:
        raise ValueError(
            "--as-weights: needs a mixture as a run wrote it, of whole entries of datasets: (no split_by), with "
            "weights above 0; leave --as-weights out"
        )
    kept = kept_of(document)
    return [
        float(f"{kept[name] * (entry.get('weight') or 1.0):.4g}")
        for name, entry in zip(names, config["datasets"], strict=True)
    ]


def kept_of(document: Mapping[str, Any]) -> dict[str, float]:
    """The largest parts of the sources' rows, in (0, 1], that are in the proportions of the mixture."""
    per_row = times_drawn(document, 1)
    return {name: of / max(per_row.values()) for name, of in per_row.items()}


def explained(document: Mapping[str, Any], block: Mapping[str, Any]) -> Iterator[str]:
    """The mixture as numbers, and what each of them means."""
    names = by_weight(document["weights"])
    weights = {name: f"{document['weights'][name]:.4f}" for name in names}
    if document.get("sources") is None:
        yield align([("source", "weight"), *((shorten(name), weights[name]) for name in names)])
        yield "weight   part in the training loss, by target tokens"
        return
    most, rows = settings_of({"scalebio": block}).max_repeats, fractions_of_rows(document)
    epoch, kept = rows_of_an_epoch(document), kept_of(document)
    asked = times_drawn(document, epoch)
    drawn = {name: f"{often:.2f}" + " *" * (often > most) for name, often in asked.items()}
    table = [(shorten(name), weights[name], f"{rows[name]:.1%}", drawn[name], f"{kept[name]:.4g}") for name in names]
    yield align([("source", "weight", "rows", "drawn", "keep"), *table])
    yield "weight   part in the training loss, by target tokens"
    yield "rows     part of the rows that are drawn: the weight over the mean target tokens of a row"
    yield f"drawn    how often that takes each row in an epoch of {epoch:,} rows"
    if any(often > most for often in asked.values()):
        yield f"         * but {most} times at most (max_repeats); the others share the rest"
    yield "keep     the same with no row taken twice: the part of each source's rows to keep"
    if block.get("lisa"):
        yield "LISA stays behind: all parameters train at a time, which takes more memory (scalebio.learn keeps it)"
