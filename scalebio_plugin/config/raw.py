"""The config as its user wrote it, before the host validates it: what is taken over, and what would be lost in it.

What changes a config returns the line that says so, for the log.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from reprlib import repr
from typing import Any

from .block import LisaArgs
from .names import keys_like_the_block, listed
from .refusals import refuse

_LISTS = ("datasets", "test_datasets")  # of entries, which the host takes for such before it validates them
DEFAULT_SEED = 42  # of transformers' TrainingArguments
_SPELT = {"off": "false", "no": "false", "on": "true", "yes": "true", "null": "none", "~": "none", "": "none"}
_HOST_LISA = ("lisa_n_layers", "lisa_step_interval", "lisa_layers_attribute")


def refuse_shapes(cfg: Mapping[str, Any]) -> None:
    """What is no block and no list of entries, before anybody looks into it.

    Raises:
        ValueError: There is such a thing; all of them in one message.
    """
    block = cfg.get("scalebio")
    problems = [f"{key}: is not read; write it inside the scalebio: block" for key in keys_like_the_block(cfg)]
    lists = {key: cfg.get(key) for key in _LISTS}
    if block is not None and not _is_block(block):
        problems.append(f"scalebio: must be a block of keys, got {repr(block)}; see docs/reference.md")
    elif block is not None:
        lists["scalebio.validation_datasets"] = block.get("validation_datasets")
        if block.get("lisa", {}) is None:
            problems.append("scalebio.lisa: is empty, so that all layers would train; write `lisa: {}`, or take it out")
    for key, entries in lists.items():
        if entries is not None:
            problems += _wrong_entries(key, entries)
    plugins = cfg.get("plugins") or []
    if not isinstance(plugins, list | Mapping) or not all(isinstance(name, str) for name in plugins):
        problems.append(f"plugins: must be a list of names, got {repr(plugins)}; write `plugins: [scalebio]`")
    refuse(problems)


def _wrong_entries(key: str, entries: Any) -> Iterator[str]:
    if not isinstance(entries, list):
        yield f"{key}: must be a list of entries, got {repr(entries)}; write each as `- path: ...` below it"
        return
    for index, entry in enumerate(entries):
        if not _is_block(entry):
            yield f"{key}[{index}]: must be an entry of keys, got {repr(entry)}; write it as `- path: ...`"
        elif not entry.get("path") and entry.get("type") != "_synthetic":
            yield f"{key}[{index}]: must have a path; add `path:` with a file, a folder or a dataset of the Hub"
        elif not _is_block(entry.get("message_property_mappings", {})):
            yield f"{key}[{index}].message_property_mappings: must be a block of keys; write it as `role: ...`"


def _is_block(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


def whole_number(cfg: Mapping[str, Any], key: str, default: int) -> int:
    """Of a key that may be left out, be empty or stand in quotes.

    Raises:
        ValueError: It is no number.
    """
    try:
        return int(cfg.get(key) or default)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{key}: must be a whole number, got {repr(cfg[key])}; write one") from None


def count(cfg: Mapping[str, Any], key: str, default: int) -> int:
    """The same of a key that counts what there must be one of.

    Raises:
        ValueError: It is no number, or below 1.
    """
    number = whole_number(cfg, key, default)
    if number < 1:
        raise ValueError(f"{key}: must be at least 1, got {number}; raise it")
    return number


def refuse_two_names(cfg: dict[str, Any]) -> None:
    """One entry in `plugins:`; two would be two instances, and an obscure error of the host's later on."""
    ours = listed(cfg)
    if len(ours) > 1:
        raise ValueError(
            f"scalebio: plugins: lists ScaleBiO {len(ours)} times ({', '.join(ours)}); keep one, `scalebio`"
        )


def refuse_lost_arguments(cfg: dict[str, Any], command_line: Sequence[str]) -> None:
    """Of `--scalebio__penalty=20` on the command line nothing may be lost: the host drops what it does not know.

    It does with `axolotl train --launcher python`, and with other spellings (`--scalebio.penalty`) in every launch.
    """
    block = dict(cfg.get("scalebio") or {})
    for index, argument in enumerate(command_line):
        if not argument.startswith("--scalebio"):
            continue
        name, is_whole, text = argument[2:].partition("=")
        text = text if is_whole else next(iter(command_line[index + 1 :]), "")
        key = name.replace("-", "_").removeprefix("scalebio__")
        if name == "scalebio":
            raise ValueError(
                f"{argument} on the command line does not replace the scalebio: block; write it in the config, or give "
                "each key with `accelerate launch -m axolotl.cli.train config.yml --scalebio__key=value`"
            )
        if key not in block or _differ(block[key], text):
            raise ValueError(
                f"{argument} on the command line did not reach the config, where scalebio.{key} is "
                f"{block.get(key, 'not set')}; write it in the scalebio: block, or launch with "
                "`accelerate launch -m axolotl.cli.train config.yml --scalebio__key=value`"
            )


def _differ(value: Any, text: str) -> bool:
    try:
        return float(value) != float(text)
    except (TypeError, ValueError):
        if isinstance(value, Mapping | list | tuple):
            return False  # of those the spelling may differ
        return _word(value) != _word(text)


def _word(value: Any) -> str:
    word = str(value).strip().lower()
    return _SPELT.get(word, word)


def give_seed(cfg: dict[str, Any]) -> str | None:
    """Without a seed the host shuffles the rows by chance, and every rank and every resume would see others.

    The host alone goes by the shuffled rows that it left on the disk; the plugin merges the sources in each process.
    """
    if cfg.get("seed") is not None:
        return None
    cfg["seed"] = DEFAULT_SEED
    return f"scalebio: the config has no seed, so that of the trainer, {DEFAULT_SEED}, also orders the rows"


def take_over_lisa_keys(cfg: dict[str, Any]) -> str | None:
    """The host's `lisa_*` become `scalebio.lisa`, so that its own callback is not added as well."""
    block = with_lisa_keys(cfg)
    if block == (cfg.get("scalebio") or {}):
        return None
    cfg["scalebio"], taken = block, block["lisa"]
    for key in _HOST_LISA:
        if key in cfg:
            del cfg[key]
    return (
        f"scalebio: took lisa_n_layers {taken['active_layers']} and lisa_step_interval {taken['interval']} over as "
        "scalebio.lisa; the layers are found by structure, and embeddings and head train too, as in the host"
    )


def with_lisa_keys(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The `scalebio:` block, with the host's `lisa_*` in it unless it has a `lisa` of its own or applies a mixture."""
    block = dict(cfg.get("scalebio") or {})
    layers = cfg.get("lisa_n_layers")
    if not layers or block.get("lisa") is not None or block.get("apply"):
        return block
    interval = cfg.get("lisa_step_interval") or LisaArgs().interval
    return {**block, "lisa": {"active_layers": layers, "interval": interval, "train_embeddings": True}}
