"""One process, and DDP: every rank holds all parameters; what the other engines change is overridden there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, distributed, nn

from ..algorithm.inner import InnerParameters
from .transfer import transfer_between

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import AbstractContextManager

    from transformers import Trainer


def plain_name(name: str) -> str:
    """A parameter's name without what wrappers (activation checkpointing, compilation) put into it."""
    return name.replace("_checkpoint_wrapped_module.", "").replace("_orig_mod.", "")


class InnerSet(Protocol):
    """u, as the trainer uses it on every engine; see `algorithm.inner.InnerParameters`."""

    def follow(self, names: Iterable[str]) -> None: ...

    def forget(self, names: Iterable[str]) -> None: ...

    def in_place(self, *, for_passes: bool = False) -> AbstractContextManager[None]: ...

    def take_over(self) -> None: ...

    def step(self) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, saved: Mapping[str, Any]) -> None: ...


class Engine:
    """What differs between engines, for one process and DDP.

    Args:
        trainer: The host's, before it wraps the model.
        switches_layers: LISA. Under DDP its gradients are averaged here: DDP itself would keep a copy of the gradients
            of all layers, and want one from each in every backward pass.
    """

    sharded = False  # whether a rank holds a part of u only
    inner_norm: Tensor | None = None  # of u's gradient in the last step, where it is clipped here

    def __init__(self, trainer: Trainer, *, switches_layers: bool):
        self.trainer = trainer
        self.switches_layers = switches_layers

    @property
    def world(self) -> int:
        return int(self.trainer.accelerator.num_processes)

    @property
    def rank(self) -> int:
        return int(self.trainer.accelerator.process_index)

    @property
    def ranks_hold_whole_model(self) -> bool:
        """Whether one rank alone can save the model, as the host has it do on Ctrl-C."""
        return True

    def total(self, values: Tensor) -> Tensor:
        """Sum of `values` over the ranks, the same bits on each."""
        if self.world > 1:
            values = values.clone()
            distributed.all_reduce(values)
        return values

    # ---- passes

    @contextmanager
    def synced(self, model: nn.Module, on: bool) -> Iterator[None]:
        """Whether backward passes inside average gradients over the ranks: the last one of a set has to."""
        if self.world == 1 or self.switches_layers:
            yield
            return
        if not isinstance(model, nn.parallel.DistributedDataParallel):
            raise RuntimeError(f"scalebio: {type(model).__name__} is not DDP's; this is a bug, please report it")
        before, model.require_backward_grad_sync = model.require_backward_grad_sync, on
        try:
            yield
        finally:
            model.require_backward_grad_sync = before

    @contextmanager
    def hold_steps(self) -> Iterator[None]:
        """Backward passes inside do not step the optimizer, where the engine would."""
        yield

    def step_model(self) -> None:
        """w's step, where the host leaves it to the backward pass."""

    def average_gradients(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """After the last backward pass of a set: what `synced` has not averaged yet."""
        if self.world == 1 or not self.switches_layers:
            return
        gradients = self._reached_anywhere([parameter for parameter in parameters.values() if parameter.requires_grad])
        for work in [distributed.all_reduce(gradient, async_op=True) for gradient in gradients]:
            work.wait()
        torch._foreach_div_(gradients, self.world)

    def _reached_anywhere(self, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
        """Gradients of those that the batches of any rank reached (not all have tokens of each expert), 0 elsewhere."""
        reached = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.float32)
        anywhere = self.total(reached.to(self.trainer.accelerator.device)).tolist()
        gradients = []
        for parameter, ranks in zip(parameters, anywhere, strict=True):
            if ranks and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if parameter.grad is not None:
                gradients.append(parameter.grad)
        return gradients

    def part_of(self, gradient: Tensor) -> tuple[Tensor, int, int]:
        """What this rank has of a parameter's gradient.

        Returns:
            The values; the position of the first of them in the flattened parameter; how many ranks hold the same. The
            sum over ranks, such duplicates counted once, is the gradient: here each rank's own, not yet averaged.
        """
        return gradient, 0, 1

    # ---- parameters

    def before_wrapping(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Once the optimizer is made and before the model is wrapped: hide the parameters of LISA from DDP."""
        if self.world > 1 and self.switches_layers:
            for parameter in parameters.values():
                parameter.requires_grad_(False)

    def before_passes_in(self, head: nn.Module) -> None:
        """Before the model is wrapped: passes will go over this module's forward several times."""

    def inner(
        self, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, device: torch.device | None
    ) -> InnerSet:
        transfer = transfer_between(self.trainer.accelerator.device, device)
        inner = InnerParameters(parameters, optimizer, device, transfer)
        if transfer is not None and not self.trainer.args.torch_compile:  # hooks would cut a compiled graph
            inner.wait_in(self.trainer.bare_model())
        return inner

    def model_part(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """What of w a checkpoint needs besides the host's files, on the CPU."""
        return {}

    def restore_model_part(self, parameters: Mapping[str, nn.Parameter], part: Mapping[str, Tensor]) -> None:
        """Once the host has loaded its files."""

    @contextmanager
    def hosts_optimizer(self) -> Iterator[None]:
        """While the host writes or reads its files: it does nothing with a state that `optimizer_part` holds."""
        yield

    def optimizer_part(
        self, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
    ) -> dict[str, Any] | None:
        """State of w's optimizer where a checkpoint has it in place of the host's file, on the CPU; None elsewhere."""
        return None

    def restore_optimizer_part(
        self, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, part: Mapping[str, Any]
    ) -> None:
        """What `optimizer_part` gave."""

    def step_inner(self, model: nn.Module, inner: InnerSet) -> None:
        """With u in place and all its gradients there: clip as the host does, and step."""
        limit = self.trainer.args.max_grad_norm
        if limit and limit > 0:
            self.inner_norm = nn.utils.clip_grad_norm_(model.parameters(), limit)
        inner.step()
