"""An accelerator whose copies run when a test wants them to: within what was promised, at any time."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from scalebio_plugin.engines.transfer import Transfer

WHEN = ("at once", "late", "at random")


class Copy:
    """A copy that somebody asked for, and the mark of its end."""

    def __init__(self, device: SimulatedDevice, to: Tensor, source: Tensor, after: Sequence[Copy]):
        self.device = device
        self.to, self.source, self.after = to, source, list(after)
        self.done = False

    def run(self) -> None:
        assert all(mark.done for mark in self.after)
        self.to.copy_(self.source)
        self.done = True

    def wait(self) -> None:
        self.device.reach(self)


class Now:
    done = True

    def wait(self) -> None:
        pass


class SimulatedLane:
    def __init__(self, device: SimulatedDevice):
        self.device = device
        self.copies: list[Copy] = []

    def copy(self, to: Tensor, source: Tensor, after: Sequence[Copy]) -> Copy:
        # In the order of its lane; what is copied is what is there once it runs.
        asked = Copy(self.device, to, source, [*after, *self.copies[-1:]])
        self.copies.append(asked)
        if self.device.when == "at once":
            asked.run()
        return asked


class SimulatedDevice:
    """Runs copies at once; late: when somebody waits for them; at random: some of those that may run, at any wait."""

    def __init__(self, when: str, seed: int = 0):
        self.when = when
        self.random = random.Random(seed)
        self.lanes: list[SimulatedLane] = []

    def lane(self) -> SimulatedLane:
        self.lanes.append(SimulatedLane(self))
        return self.lanes[-1]

    def now(self) -> Now:
        return Now()

    def reach(self, mark: Copy) -> None:
        if self.when == "late":
            for earlier in mark.after:
                if not earlier.done:
                    self.reach(earlier)
            if not mark.done:
                mark.run()
            return
        while not mark.done:
            self.random.choice(self.ready()).run()

    def ready(self) -> list[Copy]:
        waiting = [copy for lane in self.lanes for copy in lane.copies if not copy.done]
        return [copy for copy in waiting if all(mark.done for mark in copy.after)]

    def finish(self) -> None:
        while ready := self.ready():
            self.random.choice(ready).run()
        for lane in self.lanes:
            lane.copies = lane.copies[-1:]


def simulated_transfer(when: str, *, seed: int = 0, chunk: int = 64, buffers: int = 3) -> Transfer:
    return Transfer(SimulatedDevice(when, seed), [torch.empty(chunk, dtype=torch.uint8) for _ in range(buffers)])
