"""What a long run holds on to: memory, open files, threads, files and the time of a step, from its first to its last.

    python -m benchmarks.soak --steps 3000 [--work WORK] [--sampling mixture host]

A run of the real host in a process of its own, small, that learns to its end, logs and evaluates, and saves every
`steps / 30`. A line every 100 steps goes to <work>/<sampling>/soak.jsonl. Prints the table of benchmarks/soak.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.process import in_process
from tests import host

EVERY = 100  # steps


def state_of_process() -> dict[str, float]:
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return {
        "MiB": resident / 2**20,
        "open files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "objects": len(gc.get_objects()),
    }


def _plugin() -> type:
    from axolotl.integrations.base import BasePlugin
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):
        def __init__(self) -> None:
            self.began, self.steps = 0.0, list[float]()

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.began = time.process_time()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.steps.append(time.process_time() - self.began)
            if state.global_step % EVERY == 0:
                gc.collect()
                record = {"step": state.global_step, "ms": 1000 * statistics.median(self.steps), **state_of_process()}
                history = Path(args.output_dir, "scalebio/history.jsonl")
                with open("soak.jsonl", "a") as file:
                    file.write(json.dumps({**record, "history KiB": history.stat().st_size / 2**10}) + "\n")
                self.steps.clear()

    class WatcherPlugin(BasePlugin):
        def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[Any]:
            return [Watcher()]

    return WatcherPlugin


def __getattr__(name: str) -> Any:
    if name == "WatcherPlugin":
        return globals().setdefault(name, _plugin())
    raise AttributeError(name)


def train(steps: int, sampling: str) -> None:
    """In the folder and process of its own."""
    keys: dict[str, Any] = {
        **{
            "max_steps": steps,
            "micro_batch_size": 2,
            "logging_steps": 10,
            "val_set_size": 0.1,
            "eval_steps": steps // 10,
        },
        **{"save_strategy": "steps", "save_steps": steps // 30, "save_total_limit": 2},
        "plugins": ["scalebio", "benchmarks.soak.WatcherPlugin"],
    }
    goals = [{"path": f"data/{name}.jsonl", "type": "alpaca"} for name in ("validation", "clean")]  # two: with probes
    block = {"sampling": sampling, "mixture_update": "evidence", "validation_datasets": goals}
    host.train(Path.cwd(), output_dir="out", picture=True, scalebio=block, **host.LORA, **keys)


def soaked(work: Path, steps: int, sampling: str) -> list[dict[str, float]]:
    folder = work / sampling
    if not (folder / "soak.jsonl").exists():
        folder.mkdir(parents=True, exist_ok=True)
        host.make_inputs(folder, rows=400)
        in_process(train, folder, "log.txt", steps, sampling)
    return [json.loads(line) for line in (folder / "soak.jsonl").open()]


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """Of each run the state after a tenth, after half and at the end; the time of a step in 300 steps up to there."""
    columns = [name for name in next(iter(found.values()))[0] if name not in ("step", "ms")]
    lines = [f"| sampling | step | CPU of a step, ms | {' | '.join(columns)} |", "|---" * (3 + len(columns)) + "|"]
    for sampling, records in found.items():
        for number in sorted({max(3, len(records) // 10), max(3, len(records) // 2), len(records)}):
            record, last = records[number - 1], records[max(0, number - 3) : number]
            cells = [
                f"{statistics.median(each['ms'] for each in last):.1f}",
                *(f"{record[name]:,.0f}" for name in columns),
            ]
            lines.append(f"| {sampling} | {record['step']:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "scalebio-soak")
    parser.add_argument("--sampling", nargs="+", default=["mixture", "host"])
    arguments = parser.parse_args()
    work = arguments.work.absolute()
    print(table({sampling: soaked(work, arguments.steps, sampling) for sampling in arguments.sampling}))


if __name__ == "__main__":
    main()
