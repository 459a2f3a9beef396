"""Signs that learning goes wrong are seen, once, and noise is none."""

from __future__ import annotations

import logging
import math
import random
from pathlib import Path

import pytest
import torch

from scalebio_plugin.engines.base import Engine
from scalebio_plugin.training.watch import QUIET, RECENT, Watch, what_is_not_finite
from tests import host

FREE = [(0.0, 1.0), (0.0, 1.0)]


def watched(losses: list[tuple[float, float]]) -> list[tuple[int, str]]:
    """(step, sign) of a run with these losses of w and u."""
    watch = Watch(["a", "b"], FREE)
    return [(step, sign) for step, of in enumerate(losses, start=1) for sign in watch.signs(step, *of)]


def falling(steps: int, noise: float = 0.3, apart: float = 0.0) -> list[tuple[float, float]]:
    rng = random.Random(0)
    losses = [(3 / math.sqrt(step) + 1) * math.exp(rng.gauss(0, noise)) for step in range(1, steps + 1)]
    return [(loss * (1 + apart), loss) for loss in losses]


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.2])
@pytest.mark.parametrize("apart", [0.0, 0.3, -0.3])
def test_noise_is_no_sign(noise: float, apart: float) -> None:
    assert watched(falling(400, noise, apart)) == []


@pytest.mark.parametrize("at", [RECENT // 2 + 1, 80])
def test_a_leap_of_the_loss_is_told_once_at_its_step(at: int) -> None:
    losses = falling(at + 20, 0.1)
    for step in range(at - 1, at + 2):
        losses[step] = (30.0, 30.0)
    ((step, sign),) = watched(losses)
    assert step == at
    assert sign.startswith("the training loss is 30, and was about ")


def test_a_leap_is_told_again_after_a_while() -> None:
    losses = falling(80 + QUIET, 0.05)
    losses[59] = losses[61] = losses[59 + QUIET] = (30.0, 30.0)
    assert [step for step, _ in watched(losses)] == [60, 60 + QUIET]


def test_before_it_is_known_what_is_usual_nothing_is_a_leap() -> None:
    assert watched([(2.0, 2.0)] * 8 + [(90.0, 90.0)]) == []


@pytest.mark.parametrize(("loss", "inner", "shown"), [(6.0, 2.0, "+4"), (2.0, 5.2, "-3.2"), (2.0, 3.1, "-1.1")])
def test_sets_that_part_are_told(loss: float, inner: float, shown: str) -> None:
    ((step, sign),) = watched([(loss, inner)] * 90)
    assert step == RECENT
    assert sign.startswith(f"the losses of the model and of the inner parameters differ by {shown} on average")
    assert watched([(2.0, 2.9)] * 90) == []


def test_a_weight_that_stays_at_a_bound_is_told_by_name() -> None:
    watch = Watch(["a", "b\x1b", "c"], [(0.1, 0.6), (0.2, 0.2), (0.0, 1.0)])
    told = [(step, *watch.pinned(step, {"a": 0.6, "b\x1b": 0.2, "c": 0.2})) for step in range(1, RECENT + 40)]
    (at,) = [of for of in told if len(of) > 1]
    assert (at[0], len(at)) == (RECENT, 2)
    assert at[1].startswith("the weight of a has been at its bound, 0.6, for 32 steps")
    moved = Watch(["a"], [(0.1, 0.6)])
    assert not any(moved.pinned(step, {"a": 0.6 if step % RECENT else 0.5}) for step in range(1, 200))


def test_what_is_not_finite_is_named() -> None:
    nan, one = torch.tensor(math.nan), torch.tensor(1.0)
    assert what_is_not_finite(one, None) is what_is_not_finite(None, 2.0) is None
    assert what_is_not_finite(math.inf, one) == "the gradient of the model"
    assert what_is_not_finite(1.0, nan) == "the gradient of the inner parameters"
    assert what_is_not_finite(nan, nan) == "the gradient of the model and the gradient of the inner parameters"


SAVING = {"max_steps": 8, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}


def test_a_gradient_of_u_that_is_not_finite_stops_before_anything_is_saved(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step_inner = Engine.step_inner

    def broken(self: Engine, *args: object) -> None:
        step_inner(self, *args)  # type: ignore[arg-type]
        if self.trainer.state.global_step == 3:
            self.inner_norm = torch.tensor(math.nan)

    monkeypatch.setattr(Engine, "step_inner", broken)
    with pytest.raises(FloatingPointError, match=r"gradient of the inner parameters is NaN .* optimiser step 4"):
        host.train(inputs, output_dir=str(tmp_path / "out"), **SAVING)
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-3"]


@pytest.mark.parametrize("way", ["warn", "error"])
def test_a_sign_is_in_the_log_or_stops_the_run_with_its_history_whole(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(
        Watch, "signs", lambda self, step, loss, inner: ["it leaps"] * (step == 4 and 0 < abs(loss - inner) < 1)
    )
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("axolotl.scalebio")
    logger.addHandler(handler)
    settings = {**SAVING, "output_dir": str(tmp_path / "out"), "scalebio": {"on_divergence": way}}
    try:
        if way == "warn":
            host.train(inputs, **settings)
        else:
            with pytest.raises(FloatingPointError, match=r"stopped before optimiser step 4.*on_divergence.*it leaps"):
                host.train(inputs, **settings)
    finally:
        logger.removeHandler(handler)
    lines = (tmp_path / "out/scalebio/history.jsonl").read_text().splitlines()
    assert len(lines) == (8 if way == "warn" else 3)
    assert [line for line in said if "it leaps" in line] == (
        ["scalebio: in optimiser step 4, it leaps"] if way == "warn" else []
    )


def test_a_row_that_counts_for_much_is_no_leap(inputs: Path, tmp_path: Path) -> None:
    """In the host's order a row of a source counts p / share: one by one, that leaps; its loss does not."""
    block = {"sampling": "host", "mixture_init": {"clean": 0.9, "wrong": 0.05, "offtopic": 0.05}}
    block |= {"on_divergence": "error", "mixture_learning_rate": 0}
    steps = {"max_steps": 30, "micro_batch_size": 1, "gradient_accumulation_steps": 1, "learning_rate": 1e-5}
    run = host.train(inputs, output_dir=str(tmp_path), scalebio=block, **steps)
    assert max(run.losses) > 4 * min(run.losses)
    assert run.trainer.state.global_step == 30
