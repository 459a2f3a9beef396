"""The inner parameters (u): a second value, gradient and optimizer state for every trainable tensor of one module.

There is one module, one optimizer and one engine. `exchange` makes u the module's parameters, with u's gradients and
u's optimizer state; the same module then runs forward and backward and the same optimizer steps; a second `exchange`
puts w back. Nothing is computed twice and nothing can differ between the sets but their values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .arrivals import Arrivals, Transfer
from .saved import refuse_missing

# Entries of an optimizer's groups that belong to the run, not to a parameter set: fixed, or moved by the schedule
# (one cycle moves the momentum too).
_SHARED = {"params", "param_names", "weight_decay", "lr", "initial_lr", "max_lr", "min_lr"}
_SHARED |= {"betas", "momentum", "base_momentum", "max_momentum"}


class InnerParameters:
    """Values, gradients and optimizer state of u, by parameter name.

    A parameter that has never been trained has the same value in both sets; its entry appears when it first trains
    (`follow`), so that under LISA the second set grows with the layers drawn.

    Args:
        parameters: The trainable parameters of the module, by name; looked up anew after the module was wrapped.
        optimizer: The host's own, the raw `torch.optim.Optimizer`.
        device: Where the values rest between passes; None: beside the module's.
        transfer: Exchanges them from there, beside compute; None: by pointers, or plain copies.

    A step, with the gradients of w made before or after the block, never in it (docs/bilevel_loop.py):

        inner.follow(names)        # once, and when other layers begin to train
        with inner.in_place():     # the module is u
            loss().backward()
            inner.step()
        ...                        # the module is w; backward and optimizer.step() as ever
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        device: torch.device | None = None,
        transfer: Transfer | None = None,
    ):
        self.parameters = dict(parameters)
        self.optimizer = optimizer
        self.device = device
        self.arriving = Arrivals(transfer)
        self.values: dict[str, Tensor] = {}
        self.gradients: dict[str, Tensor | None] = {}
        self.states: dict[str, dict[str, Any]] = {}
        self.groups: list[dict[str, Any]] = [own_entries(group) for group in optimizer.param_groups]

    @torch.no_grad()
    def follow(self, names: Iterable[str]) -> None:
        """Start u as the copy of w for those of `names` that it does not hold yet: value and optimizer state.

        Not to be called while exchanged.

        Raises:
            KeyError: One of `names` is none of `parameters`.
        """
        self.arriving.settle()
        for name in names:
            if name not in self.values:
                parameter = self.parameters[name]
                self.values[name] = resting(self._value(parameter), self.device)
                self.gradients[name] = None
                if parameter in self.optimizer.state:
                    # To the parameter's device: paged state (bitsandbytes) looks as if it were on the CPU.
                    self.states[name] = copied_state(self.optimizer.state[parameter], parameter.device)

    def forget(self, names: Iterable[str]) -> None:
        """Drop the optimizer state and gradients of `names` in both sets: they are frozen now."""
        for name in names:
            self.optimizer.state.pop(self.parameters[name], None)
            self.parameters[name].grad = None
            self.states.pop(name, None)
            if name in self.gradients:
                self.gradients[name] = None

    @torch.no_grad()
    def exchange(self) -> None:
        """Swap values, gradients, optimizer state and the groups' own entries between the module and u. In place.

        With a transfer the values are only on their way: see `Arrivals`.
        """
        self.arriving.settle()
        for name, parameter in self.parameters.items():
            if name not in self.values:
                continue
            self._put(name, parameter)
            parameter.grad, self.gradients[name] = self.gradients[name], parameter.grad
            state = self.optimizer.state.pop(parameter, None)
            if name in self.states:
                self.optimizer.state[parameter] = self.states.pop(name)
            if state is not None:
                self.states[name] = state
        exchange_entries(self.optimizer.param_groups, self.groups)

    @contextmanager
    def in_place(self, *, for_passes: bool = False) -> Iterator[None]:
        """The module *is* u inside the block; w is back afterwards, also after an error.

        Args:
            for_passes: The block begins with a forward pass, and so does what follows it: those wait for each block of
                the module as they come to it (`wait_in`), so that the exchange runs beside them.
        """
        passes_follow = for_passes and self.arriving.passes_wait
        self.exchange()
        if not passes_follow:
            self.arriving.settle()
        done = False
        try:
            yield
            done = True
        finally:
            self.exchange()
            if not (done and passes_follow):
                self.arriving.settle()

    def take_over(self) -> None:
        """The module is u from here on, with u's optimizer state; w is gone, and so is what this holds.

        Between two steps, once nobody learns any more; not to be used afterwards.
        """
        self.exchange()
        self.arriving.finish()
        self.values, self.gradients, self.states, self.groups = {}, {}, {}, []

    def wait_in(self, module: nn.Module) -> None:
        """Let the module's forward passes wait for what they use, block by block: see `in_place`."""
        names = self.arriving.wait_in_passes(module, self.parameters)
        self.parameters = {name: self.parameters[name] for name in names}

    def step(self) -> None:
        """While u is in place: the optimizer's step, which leaves no gradient behind."""
        self.arriving.settle()
        self.optimizer.step()
        for name in self.values:
            self.parameters[name].grad = None

    @torch.no_grad()
    def unscale(self, scale: float) -> bool:
        """fp16, while u is in place: take the loss scale off u's gradients. False if either set overflowed.

        u and w must take the same number of steps. Where either overflowed, u's gradients are dropped and w's (still
        scaled) are made to overflow, so that the host's scaler skips its step and lowers the scale for both.
        """
        mine = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        others = [gradient for gradient in self.gradients.values() if gradient is not None]
        for gradient in mine:
            gradient.div_(scale)
        finite = all(bool(gradient.isfinite().all()) for gradient in [*mine, *others])
        if not finite:
            for name in self.values:
                self.parameters[name].grad = None
            if others:
                others[0].fill_(float("inf"))
        return finite

    def state_dict(self) -> dict[str, Any]:
        """All of u, on the CPU. Not to be called while exchanged."""
        self.arriving.finish()
        return {
            "values": {name: value.detach().cpu().clone() for name, value in self.values.items()},
            "states": {name: copied_state(self._saved(state), "cpu") for name, state in self.states.items()},
            "groups": [copied_state(group) for group in self.groups],
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave.

        Raises:
            ValueError: It holds parameters that do not train here, or another version wrote it.
        """
        refuse_missing("the state of the inner parameters", saved, ("values", "states", "groups"))
        strangers = sorted(set(saved["values"]) - set(self.parameters))
        if strangers:
            raise ValueError(
                f"the checkpoint's inner parameters {strangers[:3]} ({len(strangers)} in all) do not train in this "
                "run; resume with the adapter and layers of the run that wrote it"
            )
        self.arriving.finish()
        self.values, self.gradients, self.states = {}, {}, {}
        for name, value in saved["values"].items():
            self.values[name] = resting(self._value(self.parameters[name]), self.device).copy_(value)
            self.gradients[name] = None
        for name, state in saved["states"].items():
            self.states[name] = self._restored(self.parameters[name], state)
        self.groups = [copied_state(group) for group in saved["groups"]]

    def _value(self, parameter: nn.Parameter) -> Tensor:
        """What is exchanged of a parameter."""
        return parameter.detach()

    def _saved(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """What is saved of a parameter's optimizer state."""
        return state

    def _restored(self, parameter: nn.Parameter, state: Mapping[str, Any]) -> dict[str, Any]:
        """A parameter's optimizer state from what was saved of it."""
        return restored_state(state, parameter, self.optimizer)

    def _put(self, name: str, parameter: nn.Parameter) -> None:
        """Begin to make u's value the parameter's, and what it had the one that rests."""
        own, value = parameter.data, self.values[name]
        if not self.arriving.begin(name, own, value):
            self.values[name] = own if self.device in (None, own.device) else resting(own, self.device)
            parameter.data = value.to(own.device, non_blocking=True)


def resting(value: Tensor, device: torch.device | None) -> Tensor:
    """A copy to rest in this memory (that of a CPU pinned, for a GPU's values), or, with None, beside the value."""
    if device in (None, value.device):
        return value.clone()
    return torch.empty_like(value, device=device, pin_memory=value.is_cuda).copy_(value)


def own_entries(group: Mapping[str, Any]) -> dict[str, Any]:
    """Copy of a group's entries that an optimizer may change as it steps (say Prodigy's distance)."""
    return copied_state({key: value for key, value in group.items() if key not in _SHARED})


def exchange_entries(groups: Sequence[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    """Swap what `own_entries` gives of an optimizer's groups with the other set's. In place."""
    for index, group in enumerate(groups):
        own = own_entries(group)
        for key in own:
            del group[key]  # also what the optimizer has put there since: u's first step must not start w's count
        group.update(others[index])
        others[index] = own


def copied_state(state: Mapping[str, Any], device: torch.device | str | None = None) -> dict[str, Any]:
    """Copy of one parameter's optimizer state; scalar tensors (Adam's step) stay where the optimizer keeps them."""
    return {key: _copied(value, device) for key, value in state.items()}


def restored_state(
    state: Mapping[str, Any], parameter: nn.Parameter, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Copy of a state that `copied_state` gave for the CPU, where the optimizer keeps it."""
    restored = copied_state(state, parameter.device)
    on_device = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
    if on_device and isinstance(restored.get("step"), Tensor):
        restored["step"] = restored["step"].to(parameter.device)
    return restored


def _copied(value: Any, device: torch.device | str | None) -> Any:
    if not isinstance(value, Tensor):
        return deepcopy(value)  # a number, or say GaLore's projection
    if is_traceable_wrapper_subclass(value):  # quantised: TorchAO's know no clone()
        parts, context = value.__tensor_flatten__()
        copies = {part: _copied(getattr(value, part), device) for part in parts}
        return type(value).__tensor_unflatten__(copies, context, value.size(), value.stride())
    moved = value.to(device) if device is not None and value.dim() > 0 else value
    return moved.detach().clone()
