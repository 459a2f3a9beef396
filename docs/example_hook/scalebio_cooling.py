"""An extension: `mixture_update: cooling`, whose steps become smaller, and a line in the log when the lead changes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from scalebio_plugin.hooks import Observation, hookimpl

LOG = logging.getLogger(__name__)
_leader: list[str] = []  # of the last update


@hookimpl
def scalebio_update_mixture(
    rule: str, observation: Observation, state: dict[str, Any] | None
) -> tuple[Tensor, dict[str, Any]] | None:
    if rule != "cooling":
        return None  # not ours: the next one answers
    updates = (state or {"updates": 0})["updates"] + 1
    largest = observation.gap_S.abs().max()
    if largest == 0:  # the control, `penalty: .inf`
        return observation.logits_S, {"updates": updates}
    step = observation.learning_rate * 10 / (10 + updates)
    return observation.logits_S - step * observation.gap_S / largest, {"updates": updates}


@hookimpl
def scalebio_mixture_updated(record: Mapping[str, Any]) -> None:
    leader = max(record["weights"], key=lambda name: record["weights"][name])
    if [leader] != _leader:
        LOG.warning("step %d: %s leads, with a weight of %.3f", record["step"], leader, record["weights"][leader])
    _leader[:] = [leader]
