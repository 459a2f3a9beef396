"""What a model adds to its loss by itself, wherever it is given labels, which our passes keep from it.

A mixture of experts adds a router loss, a regulariser of training that spreads the tokens over the experts. u's and w's
training passes carry it, on the host's scale; it belongs to no source, so it is in no recorded loss and in no gap, and
L1, the plain validation loss, does not have it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..algorithm.bilevel import IGNORED


def router_loss(outputs: Mapping[str, Any], config: Any) -> Tensor | None:
    """The model's router loss times its coefficient; None where it has none, or `output_router_logits` is off."""
    auxiliary = outputs.get("aux_loss")
    text = config.get_text_config()
    coefficient = getattr(text, "router_aux_loss_coef", getattr(text, "aux_loss_coef", None))
    return None if auxiliary is None or coefficient is None else coefficient * auxiliary


def refuse_unseen_additions(
    own: Tensor, losses: Tensor, labels: Tensor, outputs: Mapping[str, Any], model: Any, dtype: torch.dtype
) -> None:
    """Compare the model's `own` loss of a batch with what our passes make of it.

    Args:
        own: The mean over the batch, as the model gives it to the host.
        losses: (B, T-1), as our passes have them.
        labels: (B, T-1), IGNORED where there is no target.
        outputs: Of the forward pass that gave `losses`.
        dtype: The least precise that the two were computed in: they agree up to its rounding.

    Raises:
        ValueError: They differ by more than rounding, so that a run would train without a part of the host's loss.
    """
    router = router_loss(outputs, model.config)
    mean = losses.sum() / (labels != IGNORED).sum()
    seen = float(mean) + (0.0 if router is None else float(router))
    rounding = max(1e-4, 4 * torch.finfo(dtype).eps) * max(1.0, abs(seen))
    if abs(float(own) - seen) > rounding:  # a batch without targets gives NaN, which is never above
        raise ValueError(
            f"scalebio: {type(model).__name__} adds {float(own) - seen:.4g} to its loss that the plugin does not see "
            f"({float(own):.6g} for the first batch, whose tokens and routers make {seen:.6g}), so the mixture would "
            "be learned without it; turn it off in the model's config (overrides_of_model_config), or remove scalebio"
        )
