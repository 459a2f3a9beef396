"""CUDA's streams without CUDA: what runs on a side stream runs as late as events and synchronisation allow.

What is computed runs at once, on the stream that is current from the start, and so does what it waits for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class Event:
    stream: Stream
    position: int  # reached once that many operations of its stream have run

    def reach(self) -> None:
        self.stream.run(self.position)


class Stream:
    """What `torch.cuda.Stream` is for the exchange."""

    def __init__(self, device: torch.device, cuda: Cuda, *, computes: bool = False):
        self.device, self.cuda, self.computes = torch.device(device), cuda, computes
        self.operations: list[Callable[[], None]] = []
        self.done = 0
        cuda.streams.append(self)

    def record_event(self) -> Event:
        return Event(self, len(self.operations))

    def wait_event(self, event: Event) -> None:
        assert event.stream.device == self.device
        self.add(event.reach)

    def add(self, operation: Callable[[], None]) -> None:
        self.operations.append(operation)
        if self.computes:
            self.run(len(self.operations))

    def run(self, until: int) -> None:
        while self.done < until:
            self.operations[self.done]()
            self.done += 1


assert {name for name in vars(Stream) if name.endswith("_event")} <= set(dir(torch.cuda.Stream))


class Cuda:
    """The names of `torch.cuda` that the exchange uses."""

    def __init__(self, device: torch.device):
        self.streams: list[Stream] = []
        self.current = Stream(device, self, computes=True)

    def current_stream(self, device: torch.device) -> Stream:
        assert device == self.current.device
        return self.current

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            with _OnStream(stream):
                yield
        finally:
            self.current = before

    def synchronize(self, device: torch.device) -> None:
        for stream in self.streams:
            stream.run(len(stream.operations))


class _OnStream(TorchFunctionMode):
    """Copies that the CPU does not wait for go to the stream; nothing else is computed there."""

    def __init__(self, stream: Stream):
        super().__init__()
        self.stream = stream

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not Tensor.copy_:
            return func(*args, **(kwargs or {}))
        assert (kwargs or {}).get("non_blocking"), "the CPU would wait"
        to, source = args
        self.stream.add(lambda: _copy(to, source))
        return to


@torch.no_grad()
def _copy(to: Tensor, source: Tensor) -> None:
    to.copy_(source)


def pretend_cuda(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> Cuda:
    """Put these streams where `torch.cuda`'s are."""
    cuda = Cuda(device)
    for name in ("current_stream", "stream", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(device, cuda))
    return cuda
