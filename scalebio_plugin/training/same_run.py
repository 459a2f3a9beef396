"""Whether a checkpoint is one of this run; what a run is stands in `report.identity`."""

from __future__ import annotations

import json
import os
from typing import Any

from axolotl.utils.dict import DictDefault
from axolotl.utils.logging import get_logger
from transformers import Trainer

from ..config.block import ScaleBiOSettings, validation_rows
from ..data.packing import MicroBatches
from ..data.sources import Prepared
from ..data.validation_data import Validation
from ..engines.base import plain_name
from ..report.folder import fingerprint
from ..report.identity import KEYS, RunIdentity, differences, read_identity

LOG = get_logger("axolotl.scalebio")
LATER = {"base_model", "lora_alpha", "lora_dropout", "scalebio.learn"}  # said with the model's shapes, or by its steps


def identity_of(
    cfg: DictDefault,
    settings: ScaleBiOSettings,
    prepared: Prepared,
    validation: Validation,
    trainer: Trainer,
    last_step: int,
    like: MicroBatches,
) -> RunIdentity:
    """Of a run whose trainer is there, before an engine takes its model.

    Args:
        last_step: With which learning ends, at most.
        like: The training micro-batches.
    """
    keys = _of_model(trainer) | _of_config(cfg, int(trainer.accelerator.num_processes))
    keys |= _of_block(settings, last_step, like)
    return _identity(prepared, validation, keys)


def identity_before_the_model(
    cfg: DictDefault, settings: ScaleBiOSettings, prepared: Prepared, validation: Validation
) -> RunIdentity:
    """What of `identity_of` is known once the data are there, but for LATER."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    like = MicroBatches(int(cfg.micro_batch_size), int(cfg.gradient_accumulation_steps), ranks)
    later = LATER | ({"scalebio.validation_batch_size"} if cfg.sample_packing else set())  # what a row is, then
    keys = _of_config(cfg, ranks) | _of_block(settings, 0, like)
    return _identity(prepared, validation, {key: keys[key] for key in keys.keys() - later})


def _identity(prepared: Prepared, validation: Validation, known: dict[str, Any]) -> RunIdentity:
    known = known | {"validation weights": validation.weights.tolist()}
    keys = {key: known[key] for key in KEYS if key in known}
    plain = json.loads(json.dumps(keys))  # as a checkpoint gives it back
    return RunIdentity(prepared.table.parts, validation.table.parts, prepared.table.digest, plain)


def _of_model(trainer: Trainer) -> dict[str, Any]:
    named = {plain_name(name): parameter for name, parameter in trainer.model.named_parameters()}
    shapes = {name: list(getattr(parameter, "ds_shape", parameter.shape)) for name, parameter in named.items()}
    tokenizer = trainer.processing_class
    return {
        "model": fingerprint({name: of for name, of in shapes.items() if not named[name].requires_grad}),
        "trainable": fingerprint({name: of for name, of in shapes.items() if named[name].requires_grad}),
        "tokenizer": fingerprint([tokenizer.get_vocab(), tokenizer.all_special_tokens]),
    }


def _of_config(cfg: DictDefault, ranks: int) -> dict[str, Any]:
    rows = int(cfg.micro_batch_size) * int(cfg.gradient_accumulation_steps) * ranks
    keys = ("base_model", "lora_alpha", "lora_dropout", "seed", "sequence_len")
    return {
        **{key: cfg[key] for key in keys},
        "optimizer": str(cfg.optimizer),
        "rows of a step": rows,
        "sample_packing": bool(cfg.sample_packing),
    }


def _of_block(settings: ScaleBiOSettings, last_step: int, like: MicroBatches) -> dict[str, Any]:
    given = {f"scalebio.{key}": value for key, value in settings.model_dump(mode="json").items()}
    resolved = {
        "mixture_learning_rate": settings.rate,
        "learn": last_step,
        "on_leak": settings.on_leak == "drop",
        "validation_batch_size": settings.validation_batch_size or _validation_rows(like),
    }
    return given | {f"scalebio.{key}": value for key, value in resolved.items()}


def _validation_rows(like: MicroBatches) -> int | str:
    """Of a validation batch by default, in the unit that it counts."""
    rows = validation_rows(like.rows, like.accumulation, like.ranks)
    return rows if like.capacity is None else f"{rows} packed rows"


def refuse_another_run(checkpoint: str, here: RunIdentity, on_mismatch: str, *, aloud: bool = True) -> None:
    """Compare a checkpoint with the run that would go on from it.

    Args:
        aloud: Whether the log says with what other things it goes on.

    Raises:
        ValueError: They differ; all of it in one message. With `on_mismatch: warn`, where that cannot be right.
    """
    saved = read_identity(checkpoint)
    if saved is None:
        if aloud:
            LOG.info(
                f"scalebio: {checkpoint} does not say what its run was (an older version wrote it): its sources, "
                "sampling, rule and keep alone are compared with this run's"
            )
        return
    found = differences(saved, here)
    fatal = [one for one in found if on_mismatch == "error" or not one.may_go_on]
    if not fatal:
        for one in found if aloud else []:
            LOG.warning(f"scalebio: goes on from another run: {one.key}: {one.text.rpartition('; ')[0]}")
        return
    lines = "".join(f"\n  - {one.key}: {one.text}" for one in fatal)
    can = [one.key for one in fatal if one.may_go_on]
    hint = f"; to go on all the same with other {', '.join(can)}, set scalebio.on_mismatch: warn" if can else ""
    raise ValueError(f"scalebio: {checkpoint} is of another run:{lines}\nor start a new output_dir{hint}")
