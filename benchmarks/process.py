"""What the benchmarks that train share: a run in a process of its own, and the host's keys for a small one on a CPU."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ENVIRONMENT = {
    "AXOLOTL_DO_NOT_TRACK": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
ON_A_CPU: dict[str, Any] = {
    "dataset_prepared_path": "prepared",
    "dataset_num_proc": 1,
    "dataloader_num_workers": 0,
    "val_set_size": 0,
    "optimizer": "adamw_torch",
    "lr_scheduler": "constant",
    "weight_decay": 0.0,
    "bf16": False,
    "fp16": False,
    "tf32": False,
    "attn_implementation": "sdpa",
    "gradient_checkpointing": False,
    "save_strategy": "no",
}
IMPORTED = ("axolotl.cli.train",)
WITHOUT_CUDA = ("torch", "datasets")  # the host's imports would start CUDA, which no fork can share
_PROCESSES = multiprocessing.get_context("forkserver")  # the host is imported once


def on_a_gpu() -> None:
    """Every process started from here on sees the GPU; before the first of them."""
    ENVIRONMENT.pop("CUDA_VISIBLE_DEVICES", None)


def in_process(task: Callable[..., None], folder: Path, log: str, *arguments: Any) -> None:
    """`task(*arguments)` in a process of its own, in `folder`, where `log` takes what it prints.

    Raises:
        RuntimeError: It failed.
    """
    process = started(task, folder, log, *arguments)
    process.join()
    if process.exitcode:
        raise RuntimeError(f"a run failed, its log is {folder / log}")


def started(
    task: Callable[..., None], folder: Path, log: str, *arguments: Any, imported: Sequence[str] = IMPORTED
) -> Any:
    """The same, not waited for: a process of `multiprocessing`.

    Args:
        imported: What the server of all processes has imported, where no process sees a GPU; the first call decides.
    """
    os.environ.update(ENVIRONMENT)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder.mkdir(parents=True, exist_ok=True)
    _PROCESSES.set_forkserver_preload(list(imported if "CUDA_VISIBLE_DEVICES" in ENVIRONMENT else WITHOUT_CUDA))
    process = _PROCESSES.Process(target=_logged, args=(task, folder, log, arguments))
    process.start()
    return process


def _logged(task: Callable[..., None], folder: Path, log: str, arguments: tuple[Any, ...]) -> None:
    os.chdir(folder)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = ["axolotl"]
    task(*arguments)
