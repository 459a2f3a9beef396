"""The quickstart: the planted mixture, learned by a real run of the host with `example_configs/quickstart.yml`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .planted import TRUE_WEIGHTS, build_model, ten_sources, write_data
from .report import read_mixture

__all__ = ["build_model", "example_config", "run", "ten_sources", "write_data"]

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


def example_config(name: str) -> Path:
    """The path of an example config: a wheel holds them inside the package, a checkout beside it."""
    package = Path(__file__).resolve().parent
    for folder in (package / "example_configs", package.parent / "example_configs"):
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
        The exit status: 0, or that of the run that failed.

    Raises:
        ValueError: The directory holds something, and no quickstart made it.
    """
    directory = Path(directory)
    config = _make_inputs(directory)
    out = directory / config["output_dir"]
    log = directory / "quickstart.log"
    command = [sys.executable, "-m", "axolotl.cli.train", CONFIG, *([f"--max_steps={steps}"] if steps else [])]
    print(f"Model, data and {CONFIG} are in {directory}. Training: {' '.join(command[1:])}")
    print(f"(the first lines come in about half a minute; full log: {log})", flush=True)
    with open(log, "wb") as file:
        process = subprocess.Popen(
            command, cwd=directory, env=_environment(), stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
        with process:
            _follow(process, out / "scalebio" / "history.jsonl", steps or config["max_steps"])
    mixture = out / "scalebio" / "mixture.json"
    if process.returncode or not mixture.is_file():
        print("\n".join(log.read_text(errors="replace").splitlines()[-40:]), file=sys.stderr)
        print(f"\nThe run failed (exit status {process.returncode}); full log: {log}", file=sys.stderr)
        return process.returncode or 1
    print(f"\n{comparison(read_mixture(mixture)['weights'])}\n\n{_places(out)}")
    return 0


def comparison(weights: Mapping[str, float]) -> str:
    """The table of learned and true weights."""
    rows = [f"{name:<10}{TRUE_WEIGHTS[name]:>8.2f}{weight:>10.4f}" for name, weight in weights.items()]
    return "\n".join([f"{'source':<10}{'true':>8}{'learned':>10}", *rows])


def _make_inputs(directory: Path) -> dict[str, Any]:
    """Fill the directory; returns the config."""
    import yaml

    if directory.is_dir() and any(directory.iterdir()) and not (directory / CONFIG).is_file():
        raise ValueError(f"{directory} must be new, empty or an earlier quickstart's, and holds something else; name another")
    for made in _MADE:
        shutil.rmtree(directory / made, ignore_errors=True)
    build_model(directory / "model")
    write_data(directory / "data")
    shutil.copyfile(example_config(CONFIG), directory / CONFIG)
    config: dict[str, Any] = yaml.safe_load((directory / CONFIG).read_bytes())
    return config


def _environment() -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(min(2, os.cpu_count() or 1)), **os.environ, **_ENVIRONMENT}


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
        "picture": out / "scalebio" / "mixture.png",
        "history": out / "scalebio" / "history.jsonl",
    }
    return "\n".join(f"{what:<9} {path}" for what, path in files.items())
