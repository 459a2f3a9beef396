"""Exchanging contents between an accelerator and the (pinned) CPU memory in which u rests, beside compute.

Chunk by chunk, on three lanes: a chunk of what rests comes in to a buffer on the accelerator, the chunk that it
replaces goes out to where it came from, and the buffer is put in its place. Different chunks are on different lanes at
a time, so the link is used in both directions, and nothing but the buffers is needed on either side. Whoever computes
with a tensor waits for the mark that its exchange gave, and no longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..algorithm.arrivals import Mark

CHUNK = 1 << 25  # bytes
BUFFERS = 4


class Lane(Protocol):
    """Copies in the order in which they are asked for, beside those of other lanes and beside compute."""

    def copy(self, to: Tensor, source: Tensor, after: Sequence[Mark]) -> Mark:
        """Copy once all of `after` have been reached; the mark of its end."""


class Device(Protocol):
    """Where lanes run."""

    def lane(self) -> Lane: ...

    def now(self) -> Mark:
        """The mark of all that was computed so far."""

    def finish(self) -> None:
        """Return when every lane has nothing left to do."""


class Transfer:
    """Exchanges contents of tensors on an accelerator with others of the same layout in CPU memory.

    Args:
        buffers: On the accelerator, bytes (uint8), all of one size.
    """

    def __init__(self, device: Device, buffers: Sequence[Tensor]):
        self.device = device
        self.incoming, self.outgoing, self.placing = device.lane(), device.lane(), device.lane()
        self.buffers = list(buffers)
        self.emptied: list[Mark | None] = [None] * len(buffers)  # when each buffer can be filled again
        self.next = 0

    def reaches(self, value: Tensor) -> bool:
        """Whether it lies where the buffers are."""
        return value.device == self.buffers[0].device

    def swap(self, near: Tensor, far: Tensor) -> Mark:
        """Begin to exchange the contents of `near` (accelerator) and `far` (CPU); both must be dense, laid out alike.

        Nothing that was computed before may still be on its way to either: `Mark.wait` for an earlier exchange.

        Returns:
            From when on `near` holds what `far` held. Of `far` the CPU knows no more before `finish`.
        """
        begin = done = self.device.now()
        size = self.buffers[0].numel() // near.element_size()
        for here, there in zip(torch.split(_flat(near), size), torch.split(_flat(far), size), strict=True):
            index, self.next = self.next, (self.next + 1) % len(self.buffers)
            buffer, emptied = self.buffers[index].view(near.dtype)[: here.numel()], self.emptied[index]
            came = self.incoming.copy(buffer, there, [begin] if emptied is None else [begin, emptied])
            left = self.outgoing.copy(there, here, [begin, came])
            done = self.emptied[index] = self.placing.copy(here, buffer, [left])
        return done

    def finish(self) -> None:
        """Return when the CPU can read what was exchanged."""
        self.device.finish()


def _flat(value: Tensor) -> Tensor:
    """All elements in the order of memory."""
    return torch.as_strided(value, (value.numel(),), (1,), value.storage_offset())


# ---- CUDA


class CudaDevice:
    """Lanes are streams, marks are events; what is computed runs on the current stream of the caller."""

    def __init__(self, device: torch.device):
        self.device = device

    def lane(self) -> CudaLane:
        return CudaLane(self.device)

    def now(self) -> CudaMark:
        return CudaMark(torch.cuda.current_stream(self.device).record_event(), self.device)

    def finish(self) -> None:
        torch.cuda.synchronize(self.device)


class CudaLane:
    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def copy(self, to: Tensor, source: Tensor, after: Sequence[Mark]) -> CudaMark:
        with torch.cuda.stream(self.stream):
            for mark in after:
                mark.wait()
            to.copy_(source, non_blocking=True)
            return CudaMark(self.stream.record_event(), self.device)


class CudaMark:
    def __init__(self, event: torch.cuda.Event, device: torch.device):
        self.event = event
        self.device = device

    def wait(self) -> None:
        torch.cuda.current_stream(self.device).wait_event(self.event)


def transfer_between(here: torch.device, rest: torch.device | None) -> Transfer | None:
    """For values that are used `here` and rest in CPU memory; None where pointers or plain copies will do."""
    if here.type != "cuda" or rest is None or rest.type != "cpu":
        return None
    return Transfer(CudaDevice(here), [torch.empty(CHUNK, dtype=torch.uint8, device=here) for _ in range(BUFFERS)])
