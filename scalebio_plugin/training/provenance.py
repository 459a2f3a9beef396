"""What a run tells of itself: where its mixture comes from, and the config of the next run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from axolotl.utils.dict import DictDefault
from axolotl.utils.logging import get_logger

from ..config.block import ScaleBiOSettings
from ..data.sources import Prepared
from ..data.validation_data import Validation
from ..hooks.spec import RunFacts
from ..report.folder import fingerprint
from ..report.identity import RunIdentity
from ..report.mixture_file import Provenance, ValidationSet
from ..report.next_config import next_config

LOG = get_logger("axolotl.scalebio")
_TEMPORARY = "axolotl_config_"  # the host's name for what is no file of a user's
_TOLD_ELSEWHERE = {  # or digests
    *("base_model", "model", "trainable", "tokenizer", "seed", "validation weights"),
    *(f"scalebio.{key}" for key in ("penalty", "estimator", "loss_unit", "mixture_update", "keep", "on_leak")),
}
_HOST_SETTINGS = (
    *("adapter", "lora_r", "learning_rate", "lr_scheduler", "num_epochs", "max_steps"),
    *("micro_batch_size", "gradient_accumulation_steps"),
)
_HOSTS = ("axolotl", "transformers", "accelerate", "torch", "peft")


def provenance_of(
    cfg: DictDefault,
    settings: ScaleBiOSettings,
    prepared: Prepared,
    validation: Validation,
    facts: RunFacts,
    identity: RunIdentity,
    written: Mapping[str, Any],
    version: str,
) -> Provenance:
    """Before the first step.

    Args:
        written: The config as its user wrote it.
        version: Of the plugin.
    """
    config = {
        "scalebio": settings.model_dump(),
        "datasets": [entry.to_dict() for entry in cfg.datasets],
        "base_model": cfg.base_model,
        "learning_rate": cfg.learning_rate,
    }
    parts = {"config": config, "data": prepared.table.digest, "validation": validation.table.digest}
    return Provenance(
        **settings.model_dump(include={"penalty", "estimator", "loss_unit", "mixture_update", "keep"}),
        steps=0,
        updates=0,
        seed=facts.seed,
        versions={"scalebio": version} | {name: metadata.version(name) for name in _HOSTS},
        fingerprint={name: fingerprint(part) for name, part in parts.items()},
        tokens=dict(zip(facts.sources, facts.tokens, strict=True)),
        examples=dict(zip(facts.sources, facts.sequences, strict=True)),
        validation=_sets_of(validation),
        base_model=str(cfg.base_model),
        digests=dict(zip(facts.sources, prepared.table.digests, strict=True)),
        leaks=prepared.leaks,
        shared_rows={name: dict(of) for name, of in prepared.table.shared_rows.items()},
        config=config_name(written),
        output_dir=str(cfg.output_dir),
        settings=_settings_told(cfg, settings, identity),
    )


def config_name(written: Mapping[str, Any]) -> str | None:
    """As it was typed, without the folders of an absolute path; None where a program made the config."""
    path = written.get("axolotl_config_path")
    if not path or Path(path).name.startswith(_TEMPORARY):
        return None
    return Path(path).name if Path(path).is_absolute() else str(path)


def _settings_told(cfg: DictDefault, settings: ScaleBiOSettings, identity: RunIdentity) -> dict[str, Any]:
    """Plain values of what a run is told by, the same after a resume; without what `mixture.json` says elsewhere."""
    told = {key: value for key, value in identity.keys.items() if key not in _TOLD_ELSEWHERE}
    host = {key: cfg.get(key) for key in _HOST_SETTINGS}
    learn = settings.learn.model_dump(exclude_none=True) or None  # throughout
    plain: dict[str, Any] = json.loads(json.dumps({**told, **host, "scalebio.learn": learn}, default=str))
    return plain


def _sets_of(validation: Validation) -> dict[str, ValidationSet]:
    table = validation.table
    held = zip(table.names, validation.weights.tolist(), table.tokens.tolist(), table.sequences.tolist(), strict=True)
    return {name: ValidationSet(weight=weight, tokens=t, examples=rows) for name, weight, t, rows in held}


def next_config_of(written: Mapping[str, Any], output_dir: str) -> str | None:
    """Text of `next.yml`; None, with a warning, where the config has no form in YAML."""
    try:
        return next_config(written, output_dir)
    except yaml.YAMLError as error:
        LOG.warning(f"scalebio: next.yml will not be written, the config has no form in YAML: {error}")
        return None
