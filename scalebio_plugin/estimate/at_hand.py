"""An estimate of a model at hand, that is about to train: its state, without activations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from ..algorithm.lisa import find_blocks
from ..config.block import ScaleBiOSettings
from .estimator import Estimate, Run, largest_draw, method_of
from .memory import state_bytes
from .model import block_of, names_of_embeddings
from .records import Engine, Training, Weight
from .setting import DEFAULT_OPTIMIZER, Setting


def from_model(
    model: nn.Module, cfg: Mapping[str, Any], *, engine: Engine | None = None, inner_on_cpu: bool | None = None
) -> Estimate:
    """State (no activations) of a real model that is about to train, with its parameters as they stand.

    Args:
        model: With `requires_grad` as the optimizer was made for it; sharded ones give their full shapes.
        cfg: The host's config or any mapping like it: `optimizer`, `optim_args`, `scalebio`.
        inner_on_cpu: As resolved for this machine; None: as on a GPU.
    """
    setting = Setting(cfg, Path(), _parsed(cfg.get("scalebio")), engine or Engine(), "bf16")
    try:
        path, blocks = find_blocks(model)
    except ValueError:  # a model without blocks trains as any other, but for LISA
        path, blocks = "no blocks", nn.ModuleList()
    embeddings = names_of_embeddings(model)
    weights = [
        Weight(
            name,
            _full_shape(parameter),
            _bytes_of(parameter),
            parameter.requires_grad,
            block_of(name, path),
            embedding=name in embeddings,
        )
        for name, parameter in model.named_parameters()
    ]
    active = largest_draw(weights, setting.block)
    on_cpu = setting.inner_on_cpu if inner_on_cpu is None else inner_on_cpu
    ours = Training(
        str(cfg.get("optimizer") or DEFAULT_OPTIMIZER), inner_on_cpu=on_cpu, active=active, momentum=setting.momentum
    )
    alone = Run(state_bytes(weights, setting.engine, replace(ours, second_set=False, inner_on_cpu=False)))
    return Estimate(
        model=f"{type(model).__name__}, {len(blocks)} blocks",
        method=method_of(setting),
        engine=setting.engine,
        total=sum(weight.elements for weight in weights),
        trained=sum(weight.elements for weight in weights if weight.trains),
        active=sum(weight.elements for weight in weights if ours.is_active(weight)),
        run=Run(state_bytes(weights, setting.engine, ours)),
        ordinary=alone,
        lisa_alone=None if active is None else alone,
        schedule=None,
    )


def _parsed(block: Any) -> ScaleBiOSettings:
    if isinstance(block, ScaleBiOSettings):
        return block
    return ScaleBiOSettings.model_validate(dict(block or {}))


def _full_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """DeepSpeed's ZeRO-3 leaves an empty tensor with its shape beside it; a quantised tensor is packed."""
    return tuple(getattr(parameter, "ds_shape", None) or parameter.shape)


def _bytes_of(parameter: nn.Parameter) -> float:
    """With the constants of a bitsandbytes tensor, where they are there."""
    constants = getattr(parameter, "quant_state", None)
    extra = 0.0
    for part in (constants, getattr(constants, "state2", None)):
        absmax = getattr(part, "absmax", None)
        extra += 0.0 if absmax is None else absmax.numel() * absmax.element_size()
    return math.prod(_full_shape(parameter)) * parameter.element_size() + extra
