"""What is on its way between a module and the memory in which u rests: who computes with it waits for it, no longer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from torch import Tensor, nn

from .lisa import LayerPlan, find_blocks


class Mark(Protocol):
    """A point in what a device does."""

    def wait(self) -> None:
        """Let what the caller computes from here on come after it."""


class Transfer(Protocol):
    """Exchanges contents with the CPU memory in which u rests, beside compute; see `engines.transfer`."""

    def reaches(self, value: Tensor) -> bool:
        """Whether it can exchange this one."""

    def swap(self, near: Tensor, far: Tensor) -> Mark:
        """Begin to exchange; from the mark on `near` holds what `far` held."""

    def finish(self) -> None:
        """Return when the CPU can read what was exchanged."""


class Arrivals(dict[str, Mark]):
    """What of an exchange nobody has waited for yet, by name.

    Args:
        transfer: None: nothing is ever on its way.

    Attributes:
        passes_wait: Whether forward passes do, so that nobody else has to before them.
    """

    def __init__(self, transfer: Transfer | None):
        super().__init__()
        self.transfer = transfer
        self.passes_wait = False

    def begin(self, name: str, near: Tensor, far: Tensor) -> bool:
        """Begin to exchange what a name stands for; False: they are not within reach of a transfer."""
        if self.transfer is None or not self.transfer.reaches(near):
            return False
        self[name] = self.transfer.swap(near, far)
        return True

    def wait(self, names: Iterable[str]) -> None:
        """What is computed from here on comes after the arrival of these."""
        for name in names:
            if name in self:
                self.pop(name).wait()

    def settle(self) -> None:
        """What is computed from here on comes after the arrival of all."""
        self.wait(list(self))

    def finish(self) -> None:
        """The same, and the CPU can read what was exchanged."""
        self.settle()
        if self.transfer is not None:
            self.transfer.finish()

    def wait_in_passes(self, module: nn.Module, names: Iterable[str]) -> list[str]:
        """Let forward passes wait: at their start for what stands outside the blocks, at each block for its own.

        Args:
            names: Of the parameters that are exchanged.

        Returns:
            The names in the order in which they are used.
        """
        self.passes_wait, names = True, list(names)
        try:
            (_, blocks), plan = find_blocks(module), LayerPlan.of(module, names)
        except ValueError:  # no blocks to be found
            module.register_forward_pre_hook(self._waiting(names), prepend=True)
            return names
        module.register_forward_pre_hook(self._waiting(plan.others), prepend=True)
        for block, own in zip(blocks, plan.blocks, strict=True):
            block.register_forward_pre_hook(self._waiting(own), prepend=True)
        module.register_forward_hook(self._waiting(names))
        return [*plan.others, *(name for own in plan.blocks for name in own)]

    def _waiting(self, names: Iterable[str]) -> Callable[..., None]:
        return lambda *_: self.wait(names)
