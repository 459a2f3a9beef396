"""Exchanges that run beside compute end as those that run at once, whenever their copies run."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scalebio_plugin.algorithm.inner import InnerParameters
from scalebio_plugin.engines.transfer import CudaDevice, Transfer
from tests.algorithm.test_inner import PULL, loss_of, plain
from tests.engines import simulated
from tests.engines.simulated import WHEN
from tests.engines.streams import pretend_cuda

STREAMS = "on CUDA's streams"  # the device that GPUs have, on streams that are simulated
WHENEVER = pytest.mark.parametrize("when", [*WHEN, STREAMS])


@pytest.fixture(autouse=True)
def _cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_cuda(monkeypatch, torch.device("cpu"))


def simulated_transfer(when: str, *, seed: int = 0, chunk: int = 64, buffers: int = 3) -> Transfer:
    if when != STREAMS:
        return simulated.simulated_transfer(when, seed=seed, chunk=chunk, buffers=buffers)
    room = [torch.empty(chunk, dtype=torch.uint8) for _ in range(buffers)]
    return Transfer(CudaDevice(torch.device("cpu")), room)


@WHENEVER
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (16,), (7, 33)])
@pytest.mark.parametrize("buffers", [1, 3])
def test_two_tensors_exchange_their_contents(when, dtype, shape, buffers):
    for seed in range(5):
        transfer = simulated_transfer(when, seed=seed, buffers=buffers)
        near, far = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
        near_before, far_before = near.clone(), far.clone()
        for _ in range(2):
            transfer.swap(near, far).wait()
            assert torch.equal(near, far_before)
            transfer.swap(near, far).wait()
            assert torch.equal(near, near_before)
        transfer.finish()
        assert torch.equal(far, far_before)


@WHENEVER
def test_many_exchanges_run_at_a_time(when):
    """More chunks than buffers, waited for in another order."""
    for seed in range(20):
        transfer = simulated_transfer(when, seed=seed)
        pairs = [(torch.randn(size), torch.randn(size)) for size in (5, 40, 100, 1)]
        before = [(near.clone(), far.clone()) for near, far in pairs]
        marks = [transfer.swap(near, far) for near, far in pairs]
        for index in (2, 0, 3, 1):
            marks[index].wait()
            assert torch.equal(pairs[index][0], before[index][1])
        transfer.finish()
        assert all(torch.equal(far, near) for (_, far), (near, _) in zip(pairs, before, strict=True))


@WHENEVER
@pytest.mark.parametrize("make", [lambda: torch.randn(40), lambda: torch.randn(9, 5).T], ids=["plain", "transposed"])
def test_after_the_finish_the_cpu_reads_both_as_they_lie_in_memory_without_waiting(when, make):
    transfer, near, far = simulated_transfer(when), make(), make()
    near_before, far_before = near.clone(), far.clone()
    transfer.swap(near, far)
    transfer.finish()
    assert torch.equal(near, far_before)
    assert torch.equal(far, near_before)


# ---- the inner parameters


class Blocks(nn.Module):
    """An embedding, three blocks, a norm and a head."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.embedding = nn.Embedding(13, width)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(3))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 13, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embedding(tokens)
        for layer in self.layers:
            hidden = hidden + layer(hidden)
        return self.head(self.norm(hidden))


def flat() -> nn.Module:
    """No blocks to be found."""
    return nn.Sequential(nn.Embedding(13, 8), nn.Linear(8, 13))


class Trained:
    """u and w in one module, as the trainer does it: u's step first."""

    def __init__(self, make: Callable[[], nn.Module], when: str | None, seed: int = 0, *, hooked: bool = False):
        torch.manual_seed(0)
        self.model = make()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        transfer = None if when is None else simulated_transfer(when, seed=seed)
        self.inner = InnerParameters(dict(self.model.named_parameters()), self.optimizer, transfer=transfer)
        self.inner.follow(self.inner.parameters)
        if hooked:
            self.inner.wait_in(self.model)

    def step(self, number: int) -> None:
        with self.inner.in_place(for_passes=True):
            loss_of(self.model, number).backward()
            self.inner.step()
        (loss_of(self.model, number) + PULL * loss_of(self.model, 1000 + number)).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def everything(self) -> dict[str, Any]:
        return {"w": copy.deepcopy(self.model.state_dict()), **self.inner.state_dict()}


def assert_same(one: Trained, other: Trained) -> None:
    assert plain(one.everything()) == plain(other.everything())


@WHENEVER
@pytest.mark.parametrize("make", [Blocks, flat])
@pytest.mark.parametrize("hooked", [True, False])
def test_both_sets_train_the_same_bits(when, make, hooked):
    """Not hooked: the exchange is waited for at once."""
    alone = Trained(make, None)
    for number in range(4):
        alone.step(number)
    for seed in range(3):
        beside = Trained(make, when, seed, hooked=hooked)
        for number in range(4):
            beside.step(number)
        assert_same(beside, alone)


def test_a_pass_begins_before_all_has_arrived_and_each_block_waits_for_its_own():
    beside = Trained(Blocks, "late", hooked=True)
    seen = []
    for layer in beside.model.layers:
        layer.register_forward_hook(lambda *_: seen.append(set(beside.inner.arriving)))
    with beside.inner.in_place(for_passes=True):
        assert len(beside.inner.arriving) == 10
        loss_of(beside.model, 0)
        assert not beside.inner.arriving
    ahead = [(1, 2), (2,), ()]
    assert seen == [{f"layers.{n}.0.{kind}" for n in numbers for kind in ("weight", "bias")} for numbers in ahead]


def test_what_a_pass_leaves_out_has_arrived_at_its_end():
    beside = Trained(Blocks, "late", hooked=True)
    beside.model.layers = beside.model.layers[:-1]
    with beside.inner.in_place(for_passes=True):
        assert len(beside.inner.arriving) == 10
        loss_of(beside.model, 0)
        assert not beside.inner.arriving


def test_a_block_that_is_not_said_to_begin_with_a_pass_begins_and_ends_once_all_has_arrived():
    beside = Trained(Blocks, "late", hooked=True)
    with beside.inner.in_place():
        assert not beside.inner.arriving
    assert not beside.inner.arriving


def test_the_simulation_shows_a_pass_that_does_not_wait():
    alone, beside = Trained(Blocks, None), Trained(Blocks, "late")
    for trained in (alone, beside):
        trained.step(0)
    beside.inner.arriving.passes_wait = True  # which nobody saw to
    for trained in (alone, beside):
        trained.step(1)
    assert plain(alone.model.state_dict()) != plain(beside.model.state_dict())


@WHENEVER
def test_an_exchange_waits_for_the_one_before(when):
    """Also where there are buffers enough for both."""
    for seed in range(3):
        beside = Trained(flat, when, seed, hooked=True)
        beside.inner.arriving.transfer = simulated_transfer(when, seed=seed, buffers=64)
        beside.step(0)
        before = plain(beside.everything())
        beside.inner.exchange()
        beside.inner.exchange()
        beside.inner.arriving.settle()
        assert plain(beside.everything()) == before


@WHENEVER
def test_w_has_arrived_after_an_error(when):
    beside = Trained(Blocks, when, hooked=True)
    beside.step(0)
    before = plain(beside.everything())
    with pytest.raises(KeyError), beside.inner.in_place(for_passes=True):
        raise KeyError
    assert not beside.inner.arriving
    assert plain(beside.everything()) == before


@WHENEVER
def test_restored_it_goes_on_with_the_same_bits(when):
    whole, again = (Trained(Blocks, when, hooked=True) for _ in range(2))
    for number in range(2):
        whole.step(number)
    saved, optimizer = whole.everything(), copy.deepcopy(whole.optimizer.state_dict())
    again.model.load_state_dict(saved.pop("w"))
    again.optimizer.load_state_dict(optimizer)
    again.inner.load_state_dict(saved)
    for trained in (whole, again):
        trained.step(2)
    assert_same(again, whole)


def test_hooks_do_not_keep_u_alive():
    beside = Trained(Blocks, "late", hooked=True)
    beside.step(0)
    reference = weakref.ref(beside.inner)
    del beside.inner
    gc.collect()
    assert reference() is None
    loss_of(beside.model, 1)
