"""How the two parameter sets live on the host's engine: one module per engine, each with the methods of `base.Engine`.

base       one process, DDP: every rank holds all parameters
fsdp2      FSDP2: DTensors, the local shards are exchanged
deepspeed  ZeRO-1, 2, 3: all that its optimizer owns is exchanged (`zero`)
transfer   the exchange with the CPU memory in which u rests, beside compute
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import Engine

if TYPE_CHECKING:
    from transformers import Trainer


def engine_of(trainer: Trainer, *, switches_layers: bool) -> Engine:
    """The engine that the host is about to wrap the model with."""
    if trainer.is_deepspeed_enabled:
        from .deepspeed import DeepSpeedEngine

        return DeepSpeedEngine(trainer, switches_layers=switches_layers)
    if trainer.is_fsdp_enabled:
        from .fsdp2 import FSDP2Engine

        return FSDP2Engine(trainer, switches_layers=switches_layers)
    return Engine(trainer, switches_layers=switches_layers)
