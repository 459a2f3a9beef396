"""What bilevel runs cost on one GPU: peak memory and seconds a step, against the plain host; and a few checks on CUDA.

    python benchmarks/gpu.py [--out gpu-figures] [--work /dev/shm/x] [--budget 500] [--only 8B] [--together N]
                             [--dry-run]

Every run is the real host in a process of its own, on a Llama of random weights (the shapes of Llama 3.2 1B and Llama 3
8B) and planted rows packed to 2,048 positions, 4 micro-batches of one row a step. First come the checks, one on each
core at once: with an infinite penalty u stays w to the last bit; LISA with u in CPU memory computes the bits that it
does with u on the GPU; fp16 stays finite, and both sets step. Then the runs that are measured, one after the other.
Figures are in `figures.jsonl` as soon as they are there; `table.md` is printed last. `--budget` seconds after its start
the command begins no run that it does not expect to end. `--together N` starts N of the measured runs at once, has them
wait before their first step, and lets one after the other go, since their start takes longer than their steps; what
they take of the card beside their tensors is not known then. `--dry-run` does all of it on the CPU with tiny shapes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from gpu_checks import verdicts
from gpu_runs import (
    LARGE,
    SHAPES,
    SMALL,
    Planned,
    config_at,
    config_of,
    in_turn,
    make_checkpoint,
    right_or_wrong,
    roomy,
)
from gpu_table import GIB, table

WARMUP = 3  # steps that are not measured
LIMIT = 150.0  # seconds of a run; the checks share the machine
ROOM = 24e9  # bytes of the checkpoints, and some


@dataclass
class Session:
    """What the runs share."""

    out: Path
    work: Path
    deadline: float
    dry: bool
    together: int = 1
    kernels: bool = True
    found: dict[str, dict[str, Any]] = field(default_factory=dict)

    def note(self, record: dict[str, Any]) -> None:
        with (self.out / "figures.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
        shown = {key: value for key, value in record.items() if key not in ("steps", "history", "log")}
        print(f"[{self.deadline - time.monotonic():.0f} s left]", json.dumps(shown), flush=True)

    @property
    def limit(self) -> float:
        return 900.0 if self.dry else max(10.0, min(LIMIT, self.deadline + 20.0 - time.monotonic()))


@dataclass
class Started:
    planned: Planned
    folder: Path
    process: subprocess.Popen[bytes]
    kernels: bool
    began: float


def start(session: Session, planned: Planned, prepared: str, waits: bool = False) -> Started:
    folder = session.work / "runs" / planned.name.replace(" ", "-").replace(",", "")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = config_of(planned, session.work, prepared, kernels=session.kernels, dry=session.dry)
    (folder / "config.yml").write_text(yaml.safe_dump(config))
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "axolotl.cli.train", "config.yml"],
            cwd=folder,
            env=environment(session.dry) | ({"MEASURE_IN_TURN": "1"} if waits else {}),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    # Should the machine run out of memory, it is to end this process and not the one that holds the figures.
    with suppress(OSError):
        Path(f"/proc/{process.pid}/oom_score_adj").write_text("900")
    return Started(planned, folder, process, session.kernels, time.monotonic())


def environment(without_gpu: bool) -> dict[str, str]:
    here = Path(__file__).resolve().parent
    paths = [str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]
    fixed = {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "HF_HUB_OFFLINE": "1",
        "AXOLOTL_DO_NOT_TRACK": "1",
        "WANDB_MODE": "offline",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if without_gpu:
        fixed |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return os.environ | fixed


def finish(session: Session, run: Started) -> bool:
    """Wait for a run and record it; False if it failed."""
    try:
        status: int | None = run.process.wait(max(1.0, session.limit - (time.monotonic() - run.began)))
    except subprocess.TimeoutExpired:
        os.killpg(run.process.pid, signal.SIGKILL)
        status = None
    log = (run.folder / "log.txt").read_text(errors="replace")
    with (session.out / "logs.txt").open("a") as file:
        file.write(f"\n===== {run.planned.name}\n{log[-60000:]}")
    measured = run.folder / "measured.json"
    record: dict[str, Any] = {
        "run": run.planned.name,
        "status": status,
        "host_kernels": run.kernels and run.planned.adapter and not session.dry,
        "wall_seconds": round(time.monotonic() - run.began, 1),
    }
    good = status == 0 and measured.is_file()
    if good:
        record |= summary(json.loads(measured.read_text()))
        record["history"] = history(run.folder)
        session.found[run.planned.name] = record
    else:
        record["log"] = log.replace("\r", "\n").splitlines()[-30:]
        print("\n".join(record["log"]), flush=True)
    session.note(record)
    return good


def summary(measured: dict[str, Any]) -> dict[str, Any]:
    steps = measured["steps"][WARMUP:]
    kinds = ("seconds", "from_end_to_end", "positions")
    medians = {kind: statistics.median(step[kind] for step in steps) for kind in kinds}
    means = {f"mean_{kind}": statistics.mean(step[kind] for step in steps) for kind in kinds}
    return {**medians, **means, **measured}


def history(folder: Path) -> list[dict[str, Any]]:
    path = folder / "out" / "scalebio" / "history.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def one(session: Session, planned: Planned) -> None:
    """A measured run; once more without the host's LoRA kernels if it fails with them."""
    if time.monotonic() + planned.seconds > session.deadline and not session.dry:
        session.note({"run": planned.name, "skipped": "no time left"})
        return
    if finish(session, start(session, planned, "prepared")) or not planned.adapter or not session.kernels:
        return
    session.kernels = False
    if not finish(session, start(session, planned, "prepared")):
        session.kernels = True  # it was not the kernels


def in_groups(session: Session, runs: list[Planned]) -> None:
    """Measured runs, `session.together` of them started at once; each goes when the one before has ended.

    None is tried once more without the host's kernels.
    """
    for first in range(0, len(runs), session.together):
        group = runs[first : first + session.together]
        if time.monotonic() + max(planned.seconds for planned in group) > session.deadline and not session.dry:
            session.note({"runs": [planned.name for planned in group], "skipped": "no time left"})
            continue
        started = [start(session, run, f"prepared-of-{first + at}", True) for at, run in enumerate(group)]
        until = time.monotonic() + session.limit
        while time.monotonic() < until and not all(
            (run.folder / "ready").exists() or run.process.poll() is not None for run in started
        ):
            time.sleep(0.1)
        for run in started:
            (run.folder / "go").touch()
            run.began = time.monotonic()
            finish(session, run)
            write_table(session)


def checks(session: Session, runs: list[Planned]) -> None:
    """One on each core at once, every one with its own prepared data; those that fail once more without kernels."""
    failed = at_once(session, runs, "prepared")
    again = [planned for planned in failed if planned.adapter]
    if again:
        session.kernels = False
        session.kernels = len(at_once(session, again, "prepared-again")) == len(again)
    for record in verdicts(session.found):
        session.found[record["check"]] = record
        session.note(record)


def at_once(session: Session, runs: list[Planned], prepared: str) -> list[Planned]:
    """Those that failed."""
    size, failed = os.cpu_count() or 1, []
    for first in range(0, len(runs), size):
        group = enumerate(runs[first : first + size], start=first)
        started = [start(session, planned, f"{prepared}-{number}") for number, planned in group]
        failed += [run.planned for run in started if not finish(session, run)]
    return failed


def estimates(work: Path, dry: bool, only: list[str]) -> None:
    """`scalebio estimate` of every measured bilevel run, in GiB."""
    from scalebio_plugin.estimate.estimator import ALLOWANCE, of_setting
    from scalebio_plugin.estimate.setting import setting_of

    found = {}
    for planned in in_turn():
        if planned.block is None or not _wanted(planned, only):
            continue
        estimate = of_setting(setting_of(config_of(planned, work, "prepared", kernels=True, dry=dry), work, 1))
        alone = estimate.lisa_alone
        found[planned.name] = {
            "run": estimate.run.peak / GIB,
            "plain": estimate.ordinary.peak / GIB,
            "lisa_alone": None if alone is None else alone.peak / GIB,
            "allowance": ALLOWANCE / GIB,
            "cpu": estimate.run.state.held.cpu / GIB,
        }
        (work / "estimates.json").write_text(json.dumps(found))


def beside(session: Session, *arguments: str) -> subprocess.Popen[bytes]:
    """A part of this command in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--work", str(session.work), *arguments]
    return subprocess.Popen(
        [*command, "--dry-run"] if session.dry else command, env=environment(session.dry or "--estimates" in arguments)
    )


def machine() -> dict[str, Any]:
    from importlib import metadata

    import torch

    names = ("torch", "axolotl", "transformers", "accelerate", "peft", "bitsandbytes", "triton")
    smi = shutil.which("nvidia-smi")
    query = ["--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    device = subprocess.run([smi, *query], capture_output=True, text=True).stdout.strip() if smi else "no GPU"
    versions = {name: metadata.version(name) for name in names}
    return {"machine": device, "python": sys.version.split()[0], "cuda": torch.version.cuda, **versions}


def measure(session: Session, only: list[str]) -> None:
    from scalebio_plugin.quickstart import planted

    planted.write_data(session.work / "data", rows=1152, held_out=192)
    for shape in SHAPES:
        config_at(session.work / shape, shape, session.dry)
    first, wanted = ([run for run in runs if _wanted(run, only)] for runs in (right_or_wrong(), in_turn()))
    shapes = [shape for shape in (SMALL, LARGE) if any(run.shape == shape for run in first + wanted)]
    making = {shape: beside(session, "--checkpoint", shape) for shape in shapes}
    estimating = beside(session, "--estimates", "--only", *only)
    try:
        if first:
            making[SMALL].wait()
            checks(session, first)
        session.note({"checkpoints": {shape: process.wait() for shape, process in making.items()}})
        made = [run for run in wanted if making[run.shape].returncode == 0]
        if session.together > 1:
            in_groups(session, made)
        else:
            for planned in made:
                one(session, planned)
                write_table(session)
    finally:
        for process in (*making.values(), estimating):
            process.kill()
    write_table(session)


def _wanted(planned: Planned, only: list[str]) -> bool:
    return any(text in planned.name for text in only)


def write_table(session: Session) -> str:
    counted = session.work / "estimates.json"
    text = table(session.found, json.loads(counted.read_text()) if counted.is_file() else {})
    (session.out / "table.md").write_text(text)
    return text


def main() -> None:
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-figures"), help="where the figures go")
    parser.add_argument("--work", type=Path, default=Path("gpu-work"), help="where checkpoints and runs go")
    parser.add_argument("--budget", type=float, default=1e9, metavar="SECONDS")
    parser.add_argument("--only", nargs="+", default=[""], metavar="TEXT", help="runs with one of these in their names")
    parser.add_argument("--together", type=int, default=1, metavar="N", help="measured runs started at once")
    parser.add_argument("--dry-run", action="store_true", help="tiny, on the CPU")
    parser.add_argument("--checkpoint", choices=SHAPES, help=argparse.SUPPRESS)
    parser.add_argument("--estimates", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.checkpoint:
        make_checkpoint(arguments.work / arguments.checkpoint)
    elif arguments.estimates:
        estimates(arguments.work, arguments.dry_run, arguments.only)
    else:
        out, work = arguments.out.resolve(), arguments.work.resolve()
        out.mkdir(parents=True, exist_ok=True)
        work = work if arguments.dry_run else roomy(work, out.parent / "gpu-work", ROOM)
        work.mkdir(parents=True, exist_ok=True)
        session = Session(out, work, began + arguments.budget, arguments.dry_run, arguments.together)
        session.note(machine())
        measure(session, arguments.only)
        print(write_table(session))


if __name__ == "__main__":
    main()
