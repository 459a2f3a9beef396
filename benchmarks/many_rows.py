"""What drawing by source takes for 10 million rows, in time and memory, without the rows.

    python -m benchmarks.many_rows

Sources and lengths of the rows are made up; the plan of the micro-batches is the package's own, as is that of a pass
after learning. What the host does with as many rows is not in here. Prints the table of benchmarks/many_rows.md; each
line is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from scalebio_plugin.data.applied import resample
from scalebio_plugin.data.packing import MicroBatches
from scalebio_plugin.data.step_plan import SEGMENT, Draw, DrawState, learning_fractions

CAPACITY = 4096  # tokens of a packed row
CASES = [
    (rows, sources, packed) for rows, sources in ((10**5, 5), (10**7, 5), (10**7, 200)) for packed in (False, True)
]


def timed(what: Callable[[], Any]) -> tuple[Any, float]:
    """Its answer, and the seconds of the CPU."""
    began = time.process_time()
    return what(), time.process_time() - began


def measure(rows: int, sources: int, packed: bool, segments: int) -> dict[str, float]:
    rng = np.random.default_rng(0)
    source = rng.integers(0, sources, rows)
    lengths = np.clip(rng.lognormal(5.4, 0.8, rows), 8, CAPACITY).astype(np.int64)
    mean_units = np.full(sources, 100.0)
    like = MicroBatches(4, 4, 1, capacity=CAPACITY, members=CAPACITY) if packed else MicroBatches(8, 4, 1)
    before = _resident()
    draw, began = timed(lambda: Draw(source, mean_units, 4, 0, like, lengths if packed else None))
    fractions = learning_fractions(rng.dirichlet(np.ones(sources)), mean_units)
    state, seconds = DrawState.start(sources), []
    for _ in range(segments):
        (_, state), taken = timed(lambda: draw.plan(fractions, [4] * SEGMENT, state))  # noqa: B023
        seconds.append(taken / SEGMENT)
    held = _resident() - before
    _, lap = timed(lambda: resample(source, fractions, 4, 0, rows))
    return {
        "made": began,
        "first": seconds[0] * SEGMENT,
        "step": statistics.median(seconds[1:]),
        "held": held,
        "lap": lap,
    }


def _resident() -> float:
    """MiB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segments", type=int, default=40)
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)  # one case, in this process
    arguments = parser.parse_args()
    if arguments.only is not None:
        print(json.dumps(measure(*CASES[arguments.only], arguments.segments)))
        return
    print("| rows | sources | packed | begin, s | first 8 steps, s | step, ms | held, MiB | pass after learning, s |")
    print("|---|---|---|---|---|---|---|---|")
    for number, (rows, sources, packed) in enumerate(CASES):
        command = [sys.executable, "-m", "benchmarks.many_rows", "--only", str(number)]
        done = subprocess.run(
            [*command, "--segments", str(arguments.segments)], capture_output=True, text=True, check=True
        )
        found = json.loads(done.stdout.splitlines()[-1])
        cells = [f"{found['made']:.2f}", f"{found['first']:.2f}", f"{1000 * found['step']:.2f}", f"{found['held']:.0f}"]
        print(
            f"| {rows:,} | {sources} | {'yes' if packed else 'no'} | {' | '.join(cells)} | {found['lap']:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
