"""The quickstart: the planted mixture, learned by a real run of the host with `example_configs/quickstart.yml`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, BinaryIO

from ..report.mixture_file import read_mixture
from .planted import TRUE_WEIGHTS

CONFIG = "quickstart.yml"
_MADE = ("model", "data", "prepared", "out")  # in the directory, beside the config and the log
# Local files alone, no telemetry, and the CPU even where there is a GPU: the same numbers for everybody.
_ENVIRONMENT = {
    "AXOLOTL_DO_NOT_TRACK": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "DO_NOT_TRACK": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_OFFLINE": "1",
    "WANDB_MODE": "disabled",
}


def example_config(name: str) -> Traversable:
    """An example config: a wheel holds them inside the package, also a zipped one, a checkout beside it."""
    package = files("scalebio_plugin")
    for folder in (package / "example_configs", Path(str(package)).parent / "example_configs"):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{name} must be in example_configs/ of the package, and is not; install it again")


def run(directory: str | os.PathLike[str], *, steps: int | None = None) -> int:
    """Make model, data and config in `directory`, train, and print the learned weights beside the true ones.

    What an earlier quickstart left in the directory is replaced.

    Args:
        directory: Made if missing.
        steps: Optimiser steps instead of the config's `max_steps`.

    Returns:
        The exit status: 0, or that of the process that failed.

    Raises:
        ValueError: The directory holds something, and no quickstart made it.
    """
    directory = Path(directory)
    config = _clear(directory)
    out, log = directory / config["output_dir"], directory / "quickstart.log"
    history, mixture = out / "scalebio" / "history.jsonl", out / "scalebio" / "mixture.json"
    make = [sys.executable, "-m", "scalebio_plugin.quickstart.planted", "."]
    train = [sys.executable, "-m", "axolotl.cli.train", CONFIG, *([f"--max_steps={steps}"] if steps else [])]
    with open(log, "wb") as file:
        print(f"Making model and data in {directory} (full log: {log})", flush=True)
        status = _launch(make, directory, file).wait()
        if status == 0:
            print(f"Training: python {' '.join(train[1:])} (the first lines come in about half a minute)", flush=True)
            with _launch(train, directory, file) as process:
                _follow(process, history, steps or config["max_steps"])
            status = process.returncode
    if status or not mixture.is_file():
        print("\n".join(log.read_text(errors="replace").splitlines()[-40:]), file=sys.stderr)
        print(f"\nThe quickstart failed (exit status {status}); full log: {log}", file=sys.stderr)
        return status or 1
    print(f"\n{comparison(read_mixture(mixture)['weights'])}\n\n{_places(out)}")
    return 0


def comparison(weights: Mapping[str, float]) -> str:
    """The table of learned and true weights."""
    rows = [f"{name:<10}{TRUE_WEIGHTS[name]:>8.2f}{weight:>10.4f}" for name, weight in weights.items()]
    return "\n".join([f"{'source':<10}{'true':>8}{'learned':>10}", *rows])


def _clear(directory: Path) -> dict[str, Any]:
    """Leave the config alone in the directory; returns it."""
    import yaml

    if directory.is_dir() and any(directory.iterdir()) and not (directory / CONFIG).is_file():
        raise ValueError(f"{directory} must be new, empty or an earlier quickstart's, and is not; name another")
    for made in _MADE:
        shutil.rmtree(directory / made, ignore_errors=True)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / CONFIG).write_bytes(example_config(CONFIG).read_bytes())
    config: dict[str, Any] = yaml.safe_load((directory / CONFIG).read_bytes())
    return config


def _launch(command: list[str], directory: Path, log: BinaryIO) -> subprocess.Popen[bytes]:
    """Start a process of its own: what the host and its libraries print belongs in the log."""
    threads = {"OMP_NUM_THREADS": "1"}  # a tiny model: more threads would wait for each other
    environment = {**threads, **os.environ, **_ENVIRONMENT}
    return subprocess.Popen(
        command, cwd=directory, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
    )


def _follow(process: subprocess.Popen[bytes], history: Path, steps: int, lines: int = 10) -> None:
    """Print about `lines` lines of the growing history until the process ends."""
    every, printed, ended = max(1, steps // lines), 0, False
    while not ended:
        ended = process.poll() is not None
        # What follows the last newline is empty, or a line that is being written.
        records = [json.loads(line) for line in history.read_bytes().split(b"\n")[:-1]] if history.is_file() else []
        for record in records[printed:]:
            if record["step"] == 1:
                print("\n  step" + "".join(f"{name:>10}" for name in record["weights"]) + "   validation loss")
            if record["step"] % every == 0:
                weights = "".join(f"{weight:>10.4f}" for weight in record["weights"].values())
                print(f"{record['step']:>6}{weights}{record['val_loss']:>18.3f}", flush=True)
        printed = len(records)
        if not ended:
            time.sleep(0.5)


def _places(out: Path) -> str:
    files = {
        "model": out,
        "mixture": out / "scalebio" / "mixture.json",
        "report": out / "scalebio" / "report.html",
        "next run": out / "scalebio" / "next.yml",
    }
    return "\n".join(f"{what:<9} {path}" for what, path in files.items())
