"""What holds for every test: nothing is fetched, reported or run on an accelerator.

Set before anything imports the host, which reads most of these at import.
"""

import gc
import logging
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

os.environ.update(
    {
        "AXOLOTL_DO_NOT_TRACK": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "DO_NOT_TRACK": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_OFFLINE": "1",
        "WANDB_MODE": "offline",
    }
)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: more threads only wait for each other

ON_RANKS = (
    "test_engines.py",
    "test_fused_on_ranks.py",
    "test_keep_on_ranks.py",
    "test_launched.py",
    "test_optimizers_on_ranks.py",
    "test_packed_on_ranks.py",
    "test_zero.py",
)
# Files of minutes, as a whole one process's: begun late, they would leave the other one without work at the end.
LONG = (
    "test_walkthrough.py",
    "test_learning.py",
    "test_command.py",
    "test_killed.py",
    "test_optimizers.py",
    "test_evidence.py",
    "test_certainty.py",
    "test_twin.py",
    "test_resume.py",
    "test_boot.py",
)

gc.disable()  # until all test files are imported: nothing of them is garbage, and to look for it takes a fifth of that


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first."""
    order = {name: place for place, name in enumerate(LONG, start=1)} | dict.fromkeys(ON_RANKS, 0)
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@cache
def step_back() -> None:
    """On cores that a run on ranks shares with other tests, its ranks would wait long for each other."""
    if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "nice"):
        os.nice(10)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.path.name not in ON_RANKS:
        step_back()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file is one process's, as `loadfile` has it, and files with runs on ranks are all the same one's.

    Two such runs at a time would be four processes that wait for each other on two cores, while what else there is to
    run waits. Of the slow tests alone most are on ranks: there they are run two at a time, for one leaves a core idle.
    """
    from xdist.scheduler import LoadFileScheduling

    class OneRunOnRanks(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return "ranks" if file.endswith(ON_RANKS) else file

    in_turn = config.getoption("dist") == "loadfile" and config.getoption("markexpr") != "slow"
    return OneRunOnRanks(config, log) if in_turn else None


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, planted data and the host's prepared caches, shared by the runs of a session.

    Give every run an `output_dir` of its own.
    """
    from . import host

    return host.make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def log() -> Iterator[list[str]]:
    """What the plugin says, whether or not the host's loggers propagate."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("axolotl.scalebio")
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


@pytest.fixture(scope="session")
def forked_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Python for commands that start others, see tests/forked.py."""
    from .forked import forking_python

    with forking_python(tmp_path_factory.mktemp("forked")) as python:
        yield python
