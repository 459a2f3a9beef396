"""The loaded model, before the optimizer is made for it."""

from __future__ import annotations

import torch
from axolotl.utils.dict import DictDefault
from axolotl.utils.logging import get_logger
from torch import nn
from transformers import PreTrainedModel

from ..algorithm.lisa import LayerPlan
from ..config.block import ScaleBiOSettings

LOG = get_logger("axolotl.scalebio")


def prepare_model(cfg: DictDefault, settings: ScaleBiOSettings, model: nn.Module) -> None:
    """Before the optimizer is made: something trains, and in float32; what LISA never trains does not.

    A half-precision parameter loses most of its updates to rounding at fine-tuning learning rates (84% of the weights
    stay as they were at 1e-5 in bf16), and the two sets would differ by their rounding. So what trains is kept in
    float32 in both sets; autocast still computes in the precision of the config.
    """
    if settings.lisa is not None and not settings.lisa.train_embeddings:
        freeze_outside_blocks(model)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError(
            "scalebio: no parameter trains (an adapter that was merged or frozen, or unfrozen_parameters that match "
            "nothing), so there is nothing to learn a mixture with; check adapter:, lora_target_modules: and "
            "unfrozen_parameters:"
        )
    if cfg.deepspeed:
        return  # ZeRO steps a copy in float32 itself
    halves = [parameter for parameter in trainable if parameter.dtype in (torch.bfloat16, torch.float16)]
    for parameter in halves:
        parameter.data = parameter.data.float()
    if halves:
        extra = sum(parameter.numel() for parameter in halves) * 2 / 2**30
        LOG.info(
            f"scalebio: {len(halves)} trainable tensors were loaded in half precision and are kept in float32 "
            f"({extra:.2f} GiB more), so that neither parameter set loses updates to rounding"
        )
    if settings.lisa is not None and cfg.gradient_checkpointing and isinstance(model, PreTrainedModel):
        model.enable_input_require_grads()  # checkpointed blocks need it where the embeddings are frozen


def freeze_outside_blocks(model: nn.Module) -> None:
    """LISA without embeddings: they would be kept in float32 and in the optimizer's groups for nothing."""
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    plan = LayerPlan.of(model, named)
    if any(plan.blocks):
        for name in plan.others:
            named[name].requires_grad_(False)
