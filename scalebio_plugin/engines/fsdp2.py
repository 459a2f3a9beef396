"""FSDP2: parameters, gradients and optimizer state are DTensors; each rank exchanges its local shards.

FSDP gathers from the memory that a shard had when the model was wrapped, so values are exchanged in place, and what
is still gathered from before an exchange is freed first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from ..algorithm.inner import InnerParameters, Transfer
from .base import Engine, InnerSet
from .transfer import transfer_between


class ShardedInner(InnerParameters):
    """u as this rank's shards; `values` are plain local tensors.

    Args:
        model: The wrapped module.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        device: torch.device | None = None,
        transfer: Transfer | None = None,
    ):
        super().__init__(parameters, optimizer, device, transfer)
        self.model = model

    def exchange(self) -> None:
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        super().exchange()
        self.settle()  # FSDP gathers on streams of its own, which nothing but the whole pass waits for

    def _value(self, parameter: nn.Parameter) -> Tensor:
        return _local(parameter).detach()

    def _put(self, name: str, parameter: nn.Parameter) -> None:
        mine, value = _local(parameter), self.values[name]
        if self.transfer is not None:
            super()._put(name, parameter)
            return
        theirs = mine.clone()
        mine.copy_(value)
        value.copy_(theirs)

    def _plain(self, value: Any) -> Any:
        return _local(value)

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        super().load_state_dict(saved)
        for name, state in self.states.items():
            parameter = self.parameters[name]
            if isinstance(parameter, DTensor):
                for key, value in state.items():
                    if isinstance(value, Tensor) and value.dim() > 0:
                        state[key] = _like(value, parameter)


def _local(value: Any) -> Any:
    return value.to_local() if isinstance(value, DTensor) else value


def _like(local: Tensor, parameter: DTensor) -> DTensor:
    """`local` as this rank's part of a tensor that is sharded as `parameter`."""
    return DTensor.from_local(
        local,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


class FSDP2Engine(Engine):
    sharded = True

    @contextmanager
    def synced(self, model: nn.Module, on: bool) -> Iterator[None]:
        if not isinstance(model, FSDPModule):
            raise RuntimeError(
                f"scalebio: {type(model).__name__} is not wrapped by FSDP2; this is a bug, please report it"
            )
        before = self.trainer.accelerator.sync_gradients  # off, FSDP keeps whole gradients: no more than the host does
        model.set_requires_gradient_sync(on or before)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(before)

    def part_of(self, gradient: Tensor) -> tuple[Tensor, int, int]:
        """This rank's shard of an averaged gradient."""
        if not isinstance(gradient, DTensor):
            raise RuntimeError("scalebio: FSDP2 left a gradient whole; this is a bug, please report it")
        first, copies, mesh = 0, 1, gradient.device_mesh
        for dimension, placement in enumerate(gradient.placements):
            if placement.is_replicate():  # `dp_replicate_size`
                copies *= mesh.size(dimension)
            elif placement.is_shard(0):
                rows = gradient.shape[0]
                before = min(rows, mesh.get_local_rank(dimension) * -(-rows // mesh.size(dimension)))
                first = before * (gradient.numel() // rows)
            else:
                raise RuntimeError(f"scalebio: a gradient is placed as {placement}; this is a bug, please report it")
        return gradient.to_local(), first, copies

    def average_gradients(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """FSDP has done it."""

    def before_wrapping(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """FSDP shards all parameters, and looks at what trains in every pass."""

    def inner(
        self, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, device: torch.device | None
    ) -> InnerSet:
        here = _local(next(iter(parameters.values()))).device  # the CPU with `offload_params`
        transfer = transfer_between(here, device)
        return ShardedInner(self.trainer.model_wrapped, parameters, optimizer, device, transfer)

    def model_part(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """This rank's shards of an adapter: the host's resume gives sharded adapters their values on no rank."""
        if not hasattr(self.trainer.accelerator.unwrap_model(self.trainer.model), "peft_config"):
            return {}
        return {name: _local(parameter).detach().cpu().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def restore_model_part(self, parameters: Mapping[str, nn.Parameter], part: Mapping[str, Tensor]) -> None:
        for name, value in part.items():
            _local(parameters[name]).copy_(value)
