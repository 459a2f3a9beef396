"""Killed without warning, at the points where it would hurt, and resumed: the run ends with the same bytes.

One checkpoint is kept, so that there is no other to fall back on but the one before.
"""

from __future__ import annotations

import os
import pkgutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from benchmarks.chaos import chaos
from tests import host
from tests.training.test_resume import assert_same_end

KEYS = {"max_steps": 8, "save_strategy": "steps", "save_steps": 3, "micro_batch_size": 3}
KEPT = {**KEYS, "save_total_limit": 1}
Real = Callable[..., Any]


def gone() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before(real: Real, *args: Any, **kwargs: Any) -> None:
    gone()


def after(real: Real, *args: Any, **kwargs: Any) -> None:
    real(*args, **kwargs)
    gone()


def half_saved(real: Real, value: Any, path: Any, *args: Any, **kwargs: Any) -> None:
    real(value, path, *args, **kwargs)
    half(Path(path))


def half_noted(real: Real, path: Path, record: Any) -> None:
    real(path, record)
    half(path, keep=-20)


def optimizer_half_saved(real: Real, trainer: Any, folder: str) -> None:
    real(trainer, folder)
    half(Path(folder, "optimizer.pt"))


def half_removed(real: Real, folder: str, *args: Any, **kwargs: Any) -> None:
    for name in ("optimizer.pt", "trainer_state.json"):
        Path(folder, "checkpoint-3", name).unlink()
    gone()


def half(path: Path, keep: int | None = None) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2 if keep is None else keep])
    gone()


# Where, in which call of it, how, and the step from which the run goes on.
POINTS: dict[str, tuple[str, int, Callable[..., None], int]] = {
    "a line of the history": ("scalebio_plugin.report.folder.append_history", 5, half_noted, 3),
    "lambda half written": ("scalebio_plugin.training.state_file.save_file", 3, half_saved, 3),
    "before the model": ("transformers.Trainer.save_model", 2, before, 3),
    "the optimizer half written": ("transformers.Trainer._save_optimizer_and_scheduler", 2, optimizer_half_saved, 3),
    "u half written": ("scalebio_plugin.training.state_file.save_file", 4, half_saved, 3),
    "before the host's state": ("transformers.TrainerState.save_to_json", 2, before, 3),
    "before the manifest": ("scalebio_plugin.training.manifest.replace_file", 2, before, 3),
    "after the manifest": ("scalebio_plugin.training.manifest.replace_file", 2, after, 6),
    "an old one half removed": ("scalebio_plugin.training.resumable.rotate_checkpoints", 2, half_removed, 6),
    "after the old one": ("scalebio_plugin.training.resumable.rotate_checkpoints", 2, after, 6),
    "mixture.json": ("scalebio_plugin.report.mixture_file.replace_file", 2, before, 6),
    "in the last checkpoint": ("scalebio_plugin.training.manifest.replace_file", 3, before, 6),
    "before the report": ("scalebio_plugin.report.page.drawn_mixture", 1, before, 8),
    "before the final save": ("axolotl.train.save_trained_model", 1, before, 8),
    "after the final save": ("axolotl.train.save_trained_model", 1, after, 8),
}


def killed(inputs: Path, out: Path, target: str, call: int, how: Callable[..., None]) -> bool:
    """Whether a run in a process of its own was killed in that call of the target."""
    child = os.fork()
    if child == 0:
        try:
            calls, real = 0, pkgutil.resolve_name(target)

            def counted(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                calls += 1
                return how(real, *args, **kwargs) if calls == call else real(*args, **kwargs)

            with patch(target, counted):
                host.train(inputs, output_dir=str(out), picture="drawn_mixture" in target, **KEPT)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


@pytest.fixture(scope="module")
def whole(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    host.train(inputs, output_dir=str(out), **KEYS)
    return out


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("point", POINTS)
def test_the_resumed_run_ends_with_the_same_bytes(inputs: Path, tmp_path: Path, whole: Path, point: str) -> None:
    target, call, how, goes_on = POINTS[point]
    out = tmp_path / "out"
    assert killed(inputs, out, target, call, how)
    again = host.train(inputs, output_dir=str(out), auto_resume_from_checkpoints=True, **KEPT)
    assert len(again.weights) == 8 - goes_on
    assert_same_end(whole, out, 8)
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-8"]


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed_every_file_is_the_same(tmp_path: Path) -> None:
    """A few of those of benchmarks/chaos.md."""
    chains = list(chaos(tmp_path, "one", kills=6, done=[]))
    assert [chain["differ"] for chain in chains] == [[]] * len(chains)
    assert sum(chain["kills"] for chain in chains) >= 6
