"""The inner parameters (u) under DeepSpeed ZeRO: one engine, one module, two contents of all that its optimizer owns.

ZeRO's optimizer owns flat tensors: the module's parameters are views into the `values` (whole in stages 1 and 2, this
rank's part in stage 3), and the base optimizer steps this rank's part of their `masters` in full precision. An
exchange swaps the contents of both and of the base optimizer's state, in place, so that every view and every link that
DeepSpeed keeps stays right. A step of u then *is* a step of ZeRO's optimizer: clipping, masters and the gathering of
what was updated are DeepSpeed's.

    with inner.in_place():         u is the engine's; backward passes step nothing
        backward(...)              u's passes, the last at an accumulation boundary
        inner.step()               u's gradients are gone before w's come, so none is put aside
    with without_steps(engine):
        backward(...)              w's passes
    engine.step()
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..algorithm.arrivals import Arrivals, Transfer
from ..algorithm.inner import copied_state, exchange_entries, own_entries, resting
from ..algorithm.saved import refuse_missing

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

ELEMENTS_ASIDE = 1 << 25  # of a tensor, at a time in an exchange


class ZeroInner:
    """u on this rank: values, masters and optimizer state, by ZeRO's (sub)groups.

    Args:
        engine: With ZeRO stage 1, 2 or 3; what it must not be configured with is `refusals`' business.
        device: Where u rests between its passes; None: beside the engine's own.
        transfer: Exchanges it from there, in both directions at once.
    """

    def __init__(self, engine: DeepSpeedEngine, device: torch.device | None = None, transfer: Transfer | None = None):
        self.engine = engine
        self.device = device
        self.arriving = Arrivals(transfer)
        self.tensors: list[Tensor] = []
        self.states: list[dict[str, Any]] = []
        self.groups: list[dict[str, Any]] = []

    @property
    def optimizer(self) -> Any:
        """ZeRO's; its `optimizer` is the base optimizer."""
        return self.engine.optimizer

    @torch.no_grad()
    def follow(self, names: Iterable[str] = ()) -> None:
        """Start u, all of it, as the copy of w: values, masters and optimizer state. Later calls change nothing."""
        if self.tensors:
            return
        base = self.optimizer.optimizer
        self.tensors = [resting(theirs, self.device) for theirs in self._owned()]
        self.states = [
            self._rested(copied_state(base.state.get(master, {}), master.device)) for master in self._masters()
        ]
        self.groups = [own_entries(group) for group in base.param_groups]

    def forget(self, names: Iterable[str]) -> None:
        """Nothing: ZeRO's flat tensors train as a whole.

        Raises:
            ValueError: Some parameters were to be frozen.
        """
        names = list(names)
        if names:
            raise ValueError(
                f"under DeepSpeed ZeRO all parameters train in every step, {names[0]} ({len(names)} in all) cannot be "
                "frozen; remove the lisa: block, or use FSDP2"
            )

    @torch.no_grad()
    def exchange(self) -> None:
        """Swap values, masters, optimizer state and the groups' own entries between the engine and u. In place."""
        self._empty()
        for mine, theirs in zip(self.tensors, self._owned(), strict=True):
            self._swap(mine, theirs)
        base = self.optimizer.optimizer
        for index, master in enumerate(self._masters()):
            self._exchange_state(index, master, base.state)
        exchange_entries(base.param_groups, self.groups)
        self.arriving.settle()  # ZeRO gathers and reduces on streams of its own: nothing runs beside the exchange

    def _swap(self, mine: Tensor, theirs: Tensor) -> None:
        if not self.arriving.begin(str(len(self.arriving)), theirs, mine):
            _swap(mine, theirs)

    @contextmanager
    def in_place(self, *, for_passes: bool = False) -> Iterator[None]:
        """The engine *is* u inside the block, and its backward passes step nothing; w is back afterwards."""
        self.exchange()
        try:
            with without_steps(self.engine):
                yield
        finally:
            self.exchange()

    def take_over(self) -> None:
        """The engine is u from here on, masters and optimizer state too; w is gone. Not to be used afterwards."""
        self.exchange()
        self.arriving.finish()
        self.tensors, self.states, self.groups = [], [], []

    def step(self) -> None:
        """While u is in place, after a backward pass at an accumulation boundary: clip and step u.

        The engine's counters, its schedule and its monitors see nothing of it.

        Raises:
            FloatingPointError: ZeRO's optimizer found infinite gradients and skipped the step, which w's would not.
        """
        self.optimizer.step()
        self.optimizer.zero_grad()
        if getattr(self.optimizer, "overflow", False):
            raise FloatingPointError("the gradients of the inner parameters are NaN or infinite")
        if not all(self.states) and hasattr(self.optimizer, "_hp_optimizer_states_linked"):
            # The parameters were linked to the state that the step made: it is u's, so link once more at w's step.
            self.optimizer._hp_optimizer_states_linked = False

    def state_dict(self) -> dict[str, Any]:
        """This rank's part of u, on the CPU: the values are the masters, rounded. Not to be called while exchanged."""
        self.arriving.finish()
        return {
            "masters": [tensor.cpu().clone() for tensor in self.tensors[-len(self._masters()) :]],
            "states": [copied_state(state, "cpu") for state in self.states],
            "groups": [dict(group) for group in self.groups],
        }

    @torch.no_grad()
    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave this rank, on all ranks at once, after the engine loaded its checkpoint.

        Raises:
            ValueError: It was written with other parameters, by another number of ranks, or by another version.
        """
        refuse_missing("the state of the inner parameters", saved, ("masters", "states", "groups"))
        here, there = ([tuple(master.shape) for master in masters] for masters in (self._masters(), saved["masters"]))
        if here != there:
            raise ValueError(
                f"this rank's inner parameters have the shapes {here}, the checkpoint's {there}: resume with the "
                "model, adapter, ZeRO stage and number of GPUs of the run that wrote it"
            )
        self.follow()
        self.arriving.finish()
        states = zip(saved["states"], self._masters(), strict=True)
        self.states = [self._rested(copied_state(state, master.device)) for state, master in states]
        self.groups = [dict(group) for group in saved["groups"]]
        with self.in_place():
            for theirs, master in zip(self._masters(), saved["masters"], strict=True):
                theirs.detach().copy_(master)
            if self._is_partitioned:
                for value, master in zip(self._values(), self._masters(), strict=True):
                    value.copy_(master)
            else:
                self.optimizer.update_lp_params()

    # ---- what ZeRO's optimizer owns

    @property
    def _is_partitioned(self) -> bool:
        return bool(self.engine.zero_optimization_partition_weights())

    def _values(self) -> list[Tensor]:
        """In the module's precision, by group (stage 3: subgroup)."""
        return self.optimizer.fp16_partitioned_groups_flat if self._is_partitioned else self.optimizer.bit16_groups_flat

    def _masters(self) -> list[Tensor]:
        """This rank's part in the optimizer's precision; what the base optimizer's state is keyed by."""
        zero = self.optimizer
        return zero.fp32_partitioned_groups_flat if self._is_partitioned else zero.single_partition_of_fp32_groups

    def _owned(self) -> list[Tensor]:
        """Values, then masters; once, where a master is its value (stage 3 in full precision)."""
        masters = [master.detach() for master in self._masters()]
        apart = [value for value, master in zip(self._values(), masters, strict=True) if not _same(value, master)]
        return [*apart, *masters]

    def _empty(self) -> None:
        """Free what still holds the values or the gradients of the set that leaves."""
        buffers = [master.grad for master in self._masters() if master.grad is not None]
        if self._is_partitioned:
            self.optimizer.empty_partition_cache()  # parameters kept gathered would go on with the old values
            self.optimizer.invalidate_secondary_tensor()  # the same, for the copies of zero_hpz_partition_size
            buffers.append(self.optimizer.grad_partitions_flat_buffer)
        for gradient in buffers:
            gradient.zero_()  # is overwritten only where a backward pass arrives

    # ---- optimizer state

    def _exchange_state(self, index: int, master: Tensor, of: dict[Tensor, dict[str, Any]]) -> None:
        mine, theirs = self.states[index], of.get(master, {})
        if mine.keys() != theirs.keys():  # before the first step of one of them
            of.pop(master, None)
            self.states[index] = self._rested(theirs)
            if mine:
                of[master] = {key: _moved(value, master.device) for key, value in mine.items()}
            return
        for key, value in mine.items():
            if isinstance(value, Tensor) and isinstance(theirs[key], Tensor) and value.shape == theirs[key].shape:
                self._swap(value, theirs[key])
            else:
                mine[key], theirs[key] = theirs[key], value

    def _rested(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Scalars (Adam's step) stay where the optimizer keeps them."""
        return {
            key: resting(value, self.device) if self._rests_elsewhere(value) else value for key, value in state.items()
        }

    def _rests_elsewhere(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.dim() > 0 and self.device not in (None, value.device)


@contextmanager
def without_steps(engine: DeepSpeedEngine) -> Iterator[None]:
    """`engine.step` does nothing inside: accelerate calls it after every backward pass at a boundary."""
    before = engine.__dict__.get("step")
    engine.step = lambda *args, **kwargs: None
    try:
        yield
    finally:
        del engine.step
        if before is not None:
            engine.step = before


def _swap(one: Tensor, other: Tensor) -> None:
    """Exchange the contents of two tensors, wherever they are."""
    parts = (torch.split(tensor.view(-1), ELEMENTS_ASIDE) for tensor in (one, other))
    for a, b in zip(*parts, strict=True):
        aside = a.clone()
        a.copy_(b)
        b.copy_(aside)


def _moved(value: Any, device: torch.device) -> Any:
    """Scalars (Adam's step) stay where the optimizer keeps them."""
    return value.to(device) if isinstance(value, Tensor) and value.dim() > 0 else value


def _same(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.dtype == other.dtype
