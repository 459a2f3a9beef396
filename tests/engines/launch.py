"""Ranks as torchrun starts them, but as forks of one server that has imported the host, which takes longest.

python -m tests.engines.launch      # imports that and no more: what was not compiled yet is then
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

IMPORTED = (  # what a run of the host imports at some time, and DeepSpeed where it is installed
    "tests.engines.uncollected",
    "tests.engines.worker",
    "axolotl.train",
    "axolotl.common.datasets",
    "axolotl.core.builders",
    "matplotlib.backends.backend_agg",
    "deepspeed",
    "tests.engines.warmed",
)
TIMEOUT = 900.0  # seconds
os.environ["DS_ACCELERATOR"] = "cpu"  # DeepSpeed looks there when it is imported


def launch(function: Callable[..., None], *arguments: Any, log: Path, ranks: int = 2) -> None:
    """`function(*arguments)` on every rank; raises with the end of the log if one fails, and ends the others."""
    from torch.multiprocessing.spawn import ProcessException, start_processes

    multiprocessing.get_context("forkserver").set_forkserver_preload(list(IMPORTED))
    port = free_port()
    log.write_text("")
    everything = (ranks, port, log, function, arguments)
    started = start_processes(on_rank, everything, nprocs=ranks, join=False, start_method="forkserver")
    until = time.monotonic() + TIMEOUT
    try:
        while not started.join(timeout=until - time.monotonic(), grace_period=10):
            if time.monotonic() > until:
                raise TimeoutError(f"ranks took longer than {TIMEOUT:.0f} seconds")
    except ProcessException as error:
        raise RuntimeError("\n".join(line[:300] for line in log.read_text().splitlines()[-60:])) from error
    finally:
        for process in started.processes:
            process.kill()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


def on_rank(rank: int, ranks: int, port: int, log: Path, function: Callable[..., None], arguments: Any) -> None:
    """In a process of its own, which ends with it."""
    import torch

    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in places.items()}, MASTER_ADDR="127.0.0.1")
    multiprocessing.set_start_method("fork", force=True)  # as in a process of its own: of the loader's workers
    torch.set_num_threads(1)
    gc.freeze()  # what the server has imported: a collection would look through it, and copy it page by page
    gc.enable()
    with log.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    failed = False
    try:
        function(*arguments)
    except BaseException:
        failed = True
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(failed)  # threads of the host's reporting would be waited for, those of gloo have aborted an interpreter


def main() -> None:
    import tests.conftest  # noqa: F401  # before the host

    for name in IMPORTED:
        with suppress(ImportError):
            import_module(name)


if __name__ == "__main__":
    main()
