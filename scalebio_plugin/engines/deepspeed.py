"""DeepSpeed ZeRO-1, 2 and 3: its engine steps the optimizer inside the backward pass, which is held back here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from .base import Engine, InnerSet
from .transfer import transfer_between
from .zero import ZeroInner, without_steps

if TYPE_CHECKING:
    import deepspeed


class DeepSpeedEngine(Engine):
    """accelerate tells DeepSpeed by `sync_gradients` which backward pass is the last of a step."""

    sharded = True

    @property
    def engine(self) -> deepspeed.DeepSpeedEngine:
        return self.trainer.accelerator.deepspeed_engine_wrapped.engine

    @property
    def ranks_hold_whole_model(self) -> bool:
        return int(self.trainer.accelerator.state.deepspeed_plugin.zero_stage) < 3

    @contextmanager
    def synced(self, model: nn.Module, on: bool) -> Iterator[None]:
        gradient_state = self.trainer.accelerator.gradient_state
        before = gradient_state.sync_gradients
        gradient_state._set_sync_gradients(on)
        try:
            yield
        finally:
            gradient_state._set_sync_gradients(before)

    @contextmanager
    def hold_steps(self) -> Iterator[None]:
        with without_steps(self.engine):
            yield

    def step_model(self) -> None:
        self.engine.step()

    def average_gradients(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """ZeRO has done it."""

    def before_wrapping(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Nothing: LISA is refused."""

    def before_passes_in(self, head: nn.Module) -> None:
        """ZeRO-3 is to gather it as one: what an adapter wraps would be let go between forward and backward."""
        head._z3_leaf = True  # type: ignore[assignment]  # `deepspeed.utils.set_z3_leaf_module`

    def inner(
        self, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, device: torch.device | None
    ) -> InnerSet:
        return ZeroInner(self.engine, device, transfer_between(self.trainer.accelerator.device, device))

    def step_inner(self, model: nn.Module, inner: InnerSet) -> None:
        inner.step()  # ZeRO clips
