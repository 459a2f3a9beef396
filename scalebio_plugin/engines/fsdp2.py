"""FSDP2: parameters, gradients and optimizer state are DTensors; each rank exchanges its local shards.

FSDP gathers from the memory that a shard had when the model was wrapped, so values are exchanged in place, and what
is still gathered from before an exchange is freed first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from ..algorithm.arrivals import Transfer
from ..algorithm.inner import InnerParameters, copied_state, restored_state
from ..config.optimizers import saved_by_rank
from .base import Engine, InnerSet
from .transfer import transfer_between

_PARAMETERS = ("params", "param_names")  # entries of an optimizer's groups that no checkpoint needs
_SHARDED = "scalebio_sharded"  # in a saved state: keys of the tensors that were sharded


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
        device: torch.device | None,
        transfer: Transfer | None,
    ):
        super().__init__(parameters, optimizer, device, transfer)
        self.model = model

    def exchange(self) -> None:
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        super().exchange()
        self.arriving.settle()  # FSDP gathers on streams of its own, which nothing but the whole pass waits for

    def _value(self, parameter: nn.Parameter) -> Tensor:
        return _local(parameter).detach()

    def _put(self, name: str, parameter: nn.Parameter) -> None:
        mine, value = self._value(parameter), self.values[name]
        if not self.arriving.begin(name, mine, value):
            theirs = mine.clone()
            mine.copy_(value)
            value.copy_(theirs)

    def _saved(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        return _local_state(state)

    def _restored(self, parameter: nn.Parameter, state: Mapping[str, Any]) -> dict[str, Any]:
        return _sharded_state(super()._restored(parameter, state), parameter)


def _local_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter's optimizer state with the local tensors of DTensors, and which those were."""
    sharded = [key for key, value in state.items() if isinstance(value, DTensor)]
    return {key: _local(value) for key, value in state.items()} | {_SHARDED: sharded}


def _sharded_state(state: dict[str, Any], parameter: nn.Parameter) -> dict[str, Any]:
    """What `_local_state` was given. In place."""
    tensors = [key for key, value in state.items() if isinstance(value, Tensor) and value.dim() > 0]
    for key in state.pop(_SHARDED, tensors):  # absent from what older versions wrote
        if isinstance(parameter, DTensor):
            state[key] = _like(state[key], parameter)
    return state


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


class NothingToSave(torch.optim.Optimizer):
    """Stands in for an optimizer where the host writes and reads its state: one number, as it wants to see a device."""

    def __init__(self, groups: Sequence[Mapping[str, Any]]):
        super().__init__([{"params": group["params"]} for group in groups], {"lr": 0.0})

    def step(self, closure: Any = None) -> Any:
        """Called by what gathers the state of an optimizer that has none yet."""
        for parameter in (parameter for group in self.param_groups for parameter in group["params"]):
            if parameter.grad is not None:
                self.state[parameter]["nothing"] = torch.zeros(1, device=parameter.device)


class FSDP2Engine(Engine):
    sharded = True

    @property
    def ranks_hold_whole_model(self) -> bool:
        return False

    @property
    def saves_optimizer(self) -> bool:
        """Whether `optimizer_part` takes the place of the host's file."""
        return saved_by_rank(str(self.trainer.axolotl_cfg.optimizer))

    @contextmanager
    def hosts_optimizer(self) -> Iterator[None]:
        if not self.saves_optimizer:
            yield
            return
        optimizer = self.trainer.optimizer
        self.trainer.optimizer = NothingToSave(optimizer.param_groups)
        try:
            yield
        finally:
            self.trainer.optimizer = optimizer

    def optimizer_part(
        self, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
    ) -> dict[str, Any] | None:
        """This rank's shards, and the groups."""
        if not self.saves_optimizer:
            return None
        return {
            "states": {
                name: copied_state(_local_state(optimizer.state[parameter]), "cpu")
                for name, parameter in parameters.items()
                if parameter in optimizer.state
            },
            "groups": [
                copied_state({key: value for key, value in group.items() if key not in _PARAMETERS}, "cpu")
                for group in optimizer.param_groups
            ],
        }

    def restore_optimizer_part(
        self, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, part: Mapping[str, Any]
    ) -> None:
        for name, state in part["states"].items():
            parameter = parameters[name]
            optimizer.state[parameter] = _sharded_state(restored_state(state, parameter, optimizer), parameter)
        for group, saved in zip(optimizer.param_groups, part["groups"], strict=True):
            group.update(copied_state(saved))

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
        if not hasattr(self.trainer.bare_model(), "peft_config"):
            return {}
        return {name: _local(parameter).detach().cpu().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def restore_model_part(self, parameters: Mapping[str, nn.Parameter], part: Mapping[str, Tensor]) -> None:
        for name, value in part.items():
            _local(parameters[name]).copy_(value)
