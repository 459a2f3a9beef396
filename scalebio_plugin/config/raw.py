"""The config as its user wrote it, before the host validates it: what is taken over, and what would be lost in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from axolotl.utils.logging import get_logger
from axolotl.utils.schemas.config import AxolotlInputConfig
from axolotl.utils.schemas.datasets import SFTDataset, SyntheticDataset
from pydantic import ValidationError

from .block import LisaArgs
from .names import listed

LOG = get_logger("axolotl.scalebio")
DEFAULT_SEED = 42  # of transformers' TrainingArguments
_HOST_LISA = ("lisa_n_layers", "lisa_step_interval", "lisa_layers_attribute")


def refuse_two_names(cfg: dict[str, Any]) -> None:
    """One entry in `plugins:`; two would be two instances, and an obscure error of the host's later on."""
    ours = listed(cfg)
    if len(ours) > 1:
        raise ValueError(f"plugins: lists ScaleBiO {len(ours)} times ({', '.join(ours)}); keep one, `scalebio`")


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
        return False  # not numbers: of other values the spelling may differ


def give_seed(cfg: dict[str, Any]) -> None:
    """Without a seed the host shuffles the rows by chance, and every rank and every resume would see others.

    The host alone goes by the shuffled rows that it left on the disk; the plugin merges the sources in each process.
    """
    if cfg.get("seed") is None:
        cfg["seed"] = DEFAULT_SEED
        LOG.info(f"scalebio: the config has no seed, so that of the trainer, {DEFAULT_SEED}, also orders the rows")


def take_over_lisa_keys(cfg: dict[str, Any]) -> None:
    """The host's `lisa_*` become `scalebio.lisa`, so that its own callback is not added as well."""
    block = with_lisa_keys(cfg)
    if block == (cfg.get("scalebio") or {}):
        return
    cfg["scalebio"], taken = block, block["lisa"]
    for key in _HOST_LISA:
        if key in cfg:
            del cfg[key]
    LOG.info(
        f"scalebio: took lisa_n_layers {taken['active_layers']} and lisa_step_interval {taken['interval']} over as "
        "scalebio.lisa; the layers are found by structure, and embeddings and head train too, as in the host"
    )


def validate_validation_datasets(cfg: dict[str, Any]) -> None:
    """`scalebio.validation_datasets` become what they would be in `datasets:`: migrated, defaulted or refused.

    Their `weight` is ours; the host's, from 0.20 on, is the part of an entry to take.

    Raises:
        ValueError: The host refuses entries; all of them in one message, by their place.
    """
    block = cfg.get("scalebio")
    entries = block.get("validation_datasets") if isinstance(block, Mapping) else None
    if not isinstance(block, Mapping) or not isinstance(entries, list):
        return  # what else is wrong with the block is said where it is parsed
    validated, problems = [], []
    for index, entry in enumerate(entries):
        if not isinstance(entry, Mapping):
            validated.append(entry)
            continue
        try:
            weight = {key: value for key, value in entry.items() if key == "weight"}
            validated.append({**_as_in_datasets(entry), **weight})
        except ValueError as error:
            problems += [f"  - scalebio.validation_datasets[{index}]{what}" for what in _said_by_host(error)]
    if problems:
        raise ValueError("scalebio: the host refuses entries of validation_datasets:\n" + "\n".join(problems))
    cfg["scalebio"] = {**block, "validation_datasets": validated}


def _as_in_datasets(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The entry as the host's own model of a config leaves it; `validate_config` would ask the plugins again."""
    plain = {key: value for key, value in entry.items() if key != "weight"}
    parsed = (SyntheticDataset if plain.get("type") == "_synthetic" else SFTDataset)(**plain)
    around = {"base_model": "any", "micro_batch_size": 1, "gradient_accumulation_steps": 1, "learning_rate": 1e-5}
    config = AxolotlInputConfig(**around, num_epochs=1, seed=0, datasets=[parsed])
    return dict(config.model_dump(exclude_none=True)["datasets"][0])


def _said_by_host(error: ValueError) -> Iterator[str]:
    if not isinstance(error, ValidationError):
        yield f": {error}"
        return
    for one in error.errors():
        key = ".".join(str(part) for part in one["loc"] if part != "datasets")
        yield f"{f'.{key}' if key else ''}: {one['msg'].removeprefix('Value error, ')}"


def with_lisa_keys(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The `scalebio:` block, with the host's `lisa_*` in it unless it has a `lisa` of its own or applies a mixture."""
    block = dict(cfg.get("scalebio") or {})
    layers = cfg.get("lisa_n_layers")
    if not layers or block.get("lisa") is not None or block.get("apply"):
        return block
    interval = cfg.get("lisa_step_interval") or LisaArgs().interval
    return {**block, "lisa": {"active_layers": layers, "interval": interval, "train_embeddings": True}}
