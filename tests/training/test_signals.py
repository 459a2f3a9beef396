"""Signals that wait: noted once, delivered once, and never lost."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from scalebio_plugin.training.signals import ONE_SIGNAL, HeldSignals

INT, TERM = signal.SIGINT, signal.SIGTERM


@pytest.fixture
def came() -> Iterator[list[int]]:
    """What reached the handlers of before."""
    numbers: list[int] = []
    before = {number: signal.signal(number, lambda number, frame: numbers.append(number)) for number in (INT, TERM)}
    yield numbers
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [INT, TERM])
def test_a_signal_waits_until_it_is_delivered(came: list[int], number: signal.Signals) -> None:
    with HeldSignals() as held:
        assert not held.noted
        signal.raise_signal(number)
        assert (held.noted, came, held.first) == ([number], [], number)
        held.deliver()
        assert (held.noted, came) == ([], [number])
    assert came == [number]


def test_the_same_signal_again_acts_at_once(came: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("scalebio_plugin.training.signals.time.monotonic", lambda: now)
    with HeldSignals() as held:
        signal.raise_signal(INT)
        now += ONE_SIGNAL  # a launcher passes on what its ranks have from the terminal, too
        signal.raise_signal(INT)
        assert (held.noted, came) == ([INT], [])
        now += 0.1
        signal.raise_signal(INT)
        assert came == [INT]
        signal.raise_signal(INT)  # nothing waits any more
        assert came == [INT, INT]
        held.noted.clear()  # else it would be delivered at the end


def test_a_launcher_that_passes_ctrl_c_on_as_sigterm_does_not_cut_it_short(came: list[int]) -> None:
    with HeldSignals() as held:
        signal.raise_signal(INT)
        signal.raise_signal(TERM)
        assert (held.noted, came) == ([INT, TERM], [])
        held.deliver()
        assert came == [INT]


def test_a_rank_that_has_none_ends_with_those_that_have(came: list[int]) -> None:
    with HeldSignals() as held:
        held.deliver()
    assert came == [TERM]


@pytest.mark.parametrize("again", [False, True], ids=["at the end of the step", "at once"])
def test_where_the_host_cannot_save_the_model_ctrl_c_interrupts(
    came: list[int], monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    held, now = HeldSignals(), 100.0
    held.host_saves = False
    monkeypatch.setattr("scalebio_plugin.training.signals.time.monotonic", lambda: now)

    def told() -> None:
        nonlocal now
        with held:
            signal.raise_signal(INT)
            now += ONE_SIGNAL + 0.1
            if again:
                signal.raise_signal(INT)
            held.deliver()

    with pytest.raises(KeyboardInterrupt):
        told()
    assert came == []
    signal.raise_signal(INT)
    assert came == [INT], "what was there before is there again"
    with held:
        signal.raise_signal(TERM)
    assert came == [INT, TERM]


def test_what_comes_after_the_last_step_is_delivered_at_the_end(came: list[int]) -> None:
    with HeldSignals():
        signal.raise_signal(TERM)
    assert came == [TERM]


def test_an_error_goes_before(came: list[int]) -> None:
    def fail() -> None:
        with HeldSignals():
            signal.raise_signal(TERM)
            raise ValueError("of the run")

    with pytest.raises(ValueError, match="of the run"):
        fail()
    assert came == []
    signal.raise_signal(TERM)
    assert came == [TERM]


def test_it_can_be_entered_again(came: list[int]) -> None:
    held = HeldSignals()
    for _ in range(2):
        with held:
            signal.raise_signal(TERM)
    assert came == [TERM, TERM]


def test_outside_of_the_main_thread_nothing_is_held(came: list[int]) -> None:
    def enter() -> None:
        with HeldSignals():
            pass

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    signal.raise_signal(INT)
    assert came == [INT]


WORKERS = """
import os, subprocess, sys
from functools import partial
from torch.utils.data import DataLoader
from scalebio_plugin.training.signals import begin_worker, held_from_children

begin = partial(begin_worker, lambda number: print("began", number))
loader = DataLoader(range(8), num_workers=1, worker_init_fn=begin)
with held_from_children():
    batches = iter(loader)
taken = [next(batches).item()]
for worker in batches._workers:
    for name in ("-INT", "-TERM"):
        subprocess.run(["kill", name, str(worker.pid)], check=True)
taken += [batch.item() for batch, _ in zip(batches, range(6))]
print("taken", taken)  # and one batch waits: at the end the iterator is alive, and nobody has told the worker
"""


def test_workers_are_ended_by_their_parent_alone() -> None:
    done = subprocess.run([sys.executable, "-c", WORKERS], capture_output=True, text=True, timeout=60, check=True)
    assert sorted(done.stdout.splitlines()) == ["began 0", "taken [0, 1, 2, 3, 4, 5, 6]"]
