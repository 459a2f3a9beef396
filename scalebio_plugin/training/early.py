"""What would be found wrong in the model and its trainer, found before they are made: by the model's config, by steps.

The checks of `connect` and `layer_sampling` stay: what they see, they see in the model itself.
"""

from __future__ import annotations

from axolotl.loaders.utils import load_model_config
from axolotl.utils.dict import DictDefault

from ..config.block import ScaleBiOSettings


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
    if isinstance(layers, int) and settings.lisa.active_layers > layers:
        raise ValueError(
            f"scalebio.lisa.active_layers must be at most {layers} (the layers of {name}), got "
            f"{settings.lisa.active_layers}; lower it or remove the lisa: block"
        )


def refuse_warmup_without_end(cfg: DictDefault, settings: ScaleBiOSettings, counted: int | None) -> None:
    """
    Args:
        counted: Optimiser steps that the host counts; -1 or None where it does not.

    Raises:
        ValueError: The run is over before it learns.
    """
    steps = int(cfg.max_steps or counted or -1)
    if 0 < steps <= settings.warmup_steps:
        raise ValueError(
            f"scalebio.warmup_steps must be below the steps of the run ({steps}), got {settings.warmup_steps}; lower "
            "it or train longer"
        )
