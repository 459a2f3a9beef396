"""Whether a config asks for a loss that is computed without the logits of a whole batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_KEYS = ("cut_cross_entropy", "liger_fused_linear_cross_entropy", "chunked_cross_entropy")


def fused_loss_of(config: Mapping[str, Any]) -> str | None:
    """The key that asks for it, of a config as it was written or as the host has it; None without one.

    The host's plugin for Cut Cross Entropy turns its key on unless the config turns it off.
    """
    listed = any("cut_cross_entropy" in str(plugin) for plugin in config.get("plugins") or [])
    given = {key: config.get(key) for key in _KEYS}
    if listed and given["cut_cross_entropy"] is None:
        given["cut_cross_entropy"] = True
    return next((key for key in _KEYS if given[key]), None)
