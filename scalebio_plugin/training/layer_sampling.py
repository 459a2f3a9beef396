"""LISA in a run: switches which layers train, in both parameter sets, and drops the state of the others."""

from __future__ import annotations

from collections.abc import Mapping

import pluggy
import torch
from torch import nn

from ..algorithm.lisa import LayerPlan
from ..config.block import LisaArgs
from ..engines.base import InnerSet


class LayerSampling:
    """The layers of period `step // interval`, applied at the first step of the period and after a resume.

    Args:
        settings: The `lisa:` block.
        plan: Which trainable parameters stand in which block.
        manager: With the hook that draws.

    Raises:
        ValueError: More active layers than the model has.
    """

    def __init__(self, settings: LisaArgs, plan: LayerPlan, manager: pluggy.PluginManager, seed: int, model_name: str):
        settings.refuse_fewer(len(plan.blocks), model_name)
        if not any(plan.blocks):
            raise ValueError("scalebio.lisa: no parameter inside the transformer blocks trains; remove the lisa: block")
        self.settings = settings
        self.plan = plan
        self.manager = manager
        self.seed = seed
        self.period: int | None = None
        self.layers: tuple[int, ...] = ()

    def active_names(self, step: int) -> set[str]:
        """Names of the parameters that train in the optimiser step after `step` finished ones."""
        self.layers = self._drawn(step // self.settings.interval)
        return self.plan.active(self.layers, train_others=self.settings.train_embeddings)

    def steps_trained(self, steps: int) -> list[int]:
        """For how many of the first `steps` optimiser steps each block trains."""
        counts = [0] * len(self.plan.blocks)
        for start in range(0, steps, self.settings.interval):
            for layer in self._drawn(start // self.settings.interval):
                counts[layer] += min(self.settings.interval, steps - start)
        return counts

    def freeze_others(self, step: int, parameters: Mapping[str, nn.Parameter]) -> set[str]:
        """Let only what trains in the optimiser step after `step` finished ones want gradients; its names."""
        active = self.active_names(step)
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in active)
        return active

    def switch(
        self,
        step: int,
        parameters: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        inner: InnerSet | None,
    ) -> bool:
        """Make the layers of the coming step the ones that train. True if they were switched."""
        period = step // self.settings.interval
        if period == self.period:
            return False
        active = self.freeze_others(step, parameters)
        for name in set(parameters) - active:
            parameters[name].grad = None
            optimizer.state.pop(parameters[name], None)
        if inner is not None:
            inner.forget(set(parameters) - active)
        self.period = period
        return True

    def _drawn(self, period: int) -> tuple[int, ...]:
        layers: tuple[int, ...] = self.manager.hook.scalebio_draw_layers(
            layers=len(self.plan.blocks), active=self.settings.active_layers, seed=self.seed, period=period
        )
        return layers
