"""What the config says of the mixture, as tensors: where it starts, what draws it, what bounds it.

Legend: S sources.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..algorithm.bounds import Bounds
from ..config.block import PriorArgs, ScaleBiOSettings


def initial_weights(settings: ScaleBiOSettings, names: Sequence[str], share_S: Tensor) -> Tensor:  # (S,)
    if isinstance(settings.mixture_init, Mapping):
        return torch.tensor([settings.mixture_init[name] for name in names], dtype=torch.float64)
    if settings.mixture_init == "proportional":
        return share_S.to(torch.float64)
    return torch.full((len(names),), 1.0 / len(names), dtype=torch.float64)


def prior_of(prior: PriorArgs, names: Sequence[str], first_S: Tensor) -> Tensor:  # (S,), > 0
    """The weights that a prior draws to: its own, or those at the start."""
    if prior.weights is None:
        return first_S.clamp(min=1e-30)
    return torch.tensor([prior.weights[name] for name in names], dtype=torch.float64)


def bounds_of(settings: ScaleBiOSettings, names: Sequence[str], most_S: Tensor) -> Bounds | None:
    """The config's bounds, and none above `most_S`; None where nothing is bounded."""
    if not settings.bounds and bool((most_S == 1).all()):
        return None
    pairs = [settings.bounds.get(name, (0.0, 1.0)) for name in names]
    groups = [
        ([names.index(member) for member in members], *settings.bounds[group])
        for group, members in settings.groups.items()
        if group in settings.bounds
    ]
    low, high = (torch.tensor(column, dtype=torch.float64) for column in zip(*pairs, strict=True))
    return Bounds(low, torch.minimum(high, most_S), groups)
