"""What would be found wrong in the model and its trainer, found before they are made: by the model's config, by steps.

`connect` and `layer_sampling` ask again, of the trainer and the model themselves. So does the trainer's choice of a
checkpoint.
"""

from __future__ import annotations

import os

from axolotl.loaders.utils import load_model_config
from axolotl.utils.dict import DictDefault

from ..config.block import ScaleBiOSettings
from . import checkpoint as checkpoints
from .checkpoint import Place
from .mixture_run import states_of
from .resume_from import newest_whole, refuse_problem


def refuse_more_layers_than_there_are(cfg: DictDefault, settings: ScaleBiOSettings) -> None:
    """By the model's config, which the host has read already.

    Raises:
        ValueError: LISA is to train more transformer blocks at a time than the model has.
    """
    if settings.lisa is None:
        return
    config = load_model_config(cfg)
    name = (getattr(config, "architectures", None) or [cfg.base_model])[0]
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    layers = getattr(config, "num_hidden_layers", None)
    if isinstance(layers, int):
        settings.lisa.refuse_fewer(layers, name)


def refuse_too_few_steps(settings: ScaleBiOSettings, steps: int) -> None:
    """
    Args:
        steps: Optimiser steps of the run; 0 or less where they are not known.

    Raises:
        ValueError: The run is over before it learns, or learning before the first update.
    """
    if 0 < steps <= settings.warmup_steps:
        raise ValueError(
            f"scalebio.warmup_steps must be below the steps of the run ({steps}), got {settings.warmup_steps}; lower "
            "it or train longer"
        )
    learns = settings.learn.last(steps - settings.warmup_steps) if steps > 0 else settings.learn.steps
    if learns is not None and learns < settings.update_interval:
        raise ValueError(
            f"scalebio.update_interval must be at most the steps that learn ({learns}), got "
            f"{settings.update_interval}, or no weight is ever moved; lower it or learn longer"
        )


def checkpoint_to_go_on_from(cfg: DictDefault) -> str | None:
    """As the first rank finds it; None where the run starts anew, and on the other ranks.

    Raises:
        ValueError: The checkpoint that the config names is not there or damaged, or with `auto_resume_from_checkpoints`
            all are; it lacks what this number of processes needs; or another version wrote it, and there is no reading
            it.
    """
    named, taken = cfg.resume_from_checkpoint, None
    if int(os.environ.get("RANK", "0")) > 0:
        return None  # the first rank says it for all
    if named:
        taken = str(named)
        refuse_problem(taken)
    elif cfg.auto_resume_from_checkpoints:
        taken, _ = newest_whole(str(cfg.output_dir))
    if taken is None:
        return None
    _refuse_missing_state(taken, sharded=bool(cfg.fsdp_config or cfg.deepspeed))
    with checkpoints.of_this_format(taken):
        states_of(checkpoints.read_run(taken))
    return taken


def _refuse_missing_state(checkpoint: str, *, sharded: bool) -> None:
    """Of every rank's part it is known which, but whether there are such parts only once the engine is there.

    Args:
        sharded: Whether there are, as the config has it.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    refused = []
    for one in (sharded, not sharded):
        try:
            checkpoints.refuse_missing_state(checkpoint, Place(0, ranks, one))
        except ValueError as error:
            refused.append(error)
    if len(refused) == 2:
        raise refused[0]
