"""Runs that are killed without warning, at random moments, again and again: what they end with.

    python -m benchmarks.chaos --kills 100 [--engine fsdp2] [--work WORK] [--out chaos.jsonl]

Each chain is a run of the real host that is killed (SIGKILL) and resumed with auto_resume_from_checkpoints, perhaps
killed once more, until it is done; of several ranks one, or all at once. Every file that it leaves is then compared,
byte for byte, with what a run has left that nobody killed. A line a kill and a line a chain goes to --out; what stands
there is not done again.

A run is a fork of one server that has imported the host and done nothing else: no model, no data, no random number, no
thread. So a process is what a new interpreter would be after its imports, which take longer than the run; nothing of a
killed one is left in the next but its files. Moments are uniform over the time from the first batch of a run to the end
of its process, and in a resumed one from its start, so that reading a checkpoint is interrupted too.

A kill loses what a process holds, not what the system has taken from it: a power cut is not in here.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.process import started
from tests import host
from tests.engines.launch import IMPORTED, free_port, on_rank
from tests.training.test_resume import same

SAVING = {"max_steps": 12, "save_strategy": "steps", "save_steps": 3, "save_total_limit": 1, "micro_batch_size": 2}
DRAWN = {"sampling": "mixture", "max_repeats": 2, "learn": {"steps": 8}}
CASES: dict[str, dict[str, Any]] = {
    "lora": {**host.LORA, "lora_dropout": 0.1, "gradient_accumulation_steps": 2, "scalebio": DRAWN},
    "full": {"scalebio": {"learn": {"steps": 8}, "keep": "inner"}, "save_total_limit": 2},
    "lisa": {"scalebio": {"lisa": {"active_layers": 1, "interval": 5}, "learn": {"steps": 9}}},
    "packed": {
        **{"sample_packing": True, "micro_batch_size": 1, "dataloader_num_workers": 1},
        "scalebio": {**DRAWN, "mixture_update": "evidence"},
    },
}
# The host's arguments and its log, which name processes and times; the digests of those and of all else; its count of
# tokens, which it restores of a checkpoint that the config names, not of one that it finds itself; and the seconds that
# steps took, in a file of their own and on the page.
NOT_COMPARED = ("training_args.bin", "debug.log", "manifest.json", "tokens_state.json", "cost.json")
PASSING = re.compile(
    rb',?\s*"tokens/[^"]*": [0-9.e+-]+|\d{4}-\d\d-\d\d \d\d:\d\d UTC'
    rb"|<tr><td>(time of the steps|a learning step)</td>.*?</tr>"
)
AGAIN = 0.5  # of the resumed runs are killed too
PATIENCE = 30.0  # seconds that the other ranks have to see that one is gone
LONG = 600.0  # seconds, for any run


@dataclass
class Launched:
    """The processes of one run, and when it took its first batch."""

    processes: list[Any]
    began: Path
    first: float | None = None
    since: float = field(default_factory=time.monotonic)

    def wait(self, seconds: float) -> bool:
        """Whether all have ended by then."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and any(process.is_alive() for process in self.processes):
            if self.first is None and self.began.exists():
                self.first = time.monotonic()
                return False
            time.sleep(0.005)
        return not any(process.is_alive() for process in self.processes)

    def to_the_first_batch(self) -> None:
        while self.first is None and not self.wait(LONG):
            pass

    def end(self, which: list[int]) -> None:
        """Kill these ranks; the others, as a launcher would, once they have had time to notice."""
        for rank in which:
            self.processes[rank].kill()
        self.wait(PATIENCE)
        for process in self.processes:
            process.kill()
            process.join()


def train(inputs: Path, out: Path, began: Path, keys: dict[str, Any]) -> None:
    """In a process of its own."""
    multiprocessing.set_start_method("fork", force=True)  # of the loader's workers, as in a new interpreter
    host.train(inputs, output_dir=str(out), on_batch=lambda *_: began.touch(), **keys)


def launched(inputs: Path, out: Path, keys: dict[str, Any], ranks: int) -> Launched:
    began, folder = out.with_suffix(".began"), out.parent
    began.unlink(missing_ok=True)
    log, port = out.with_suffix(".log"), free_port()
    log.unlink(missing_ok=True)
    arguments = (inputs, out, began, keys)
    processes = [
        started(on_rank, folder, f"{rank}.out", rank, ranks, port, log, train, arguments, imported=IMPORTED)
        if ranks > 1
        else started(train, folder, log.name, *arguments, imported=IMPORTED)
        for rank in range(ranks)
    ]
    return Launched(processes, began)


def settings_of(engine: str, case: str) -> tuple[dict[str, Any], int]:
    """Keys of the host, and the number of ranks."""
    keys = {**SAVING, "auto_resume_from_checkpoints": True, **CASES[case]}
    if engine == "one":
        return keys, 1
    from tests.engines.test_engines import LAYOUTS

    return {**keys, **LAYOUTS[engine].keys}, 2


def cases_of(engine: str) -> list[str]:
    return [case for case in CASES if not (engine.startswith("zero") and case == "lisa")]


# ---- what a run has left


def content(out: Path) -> dict[str, Any]:
    """Every file of a run: its bytes; what it holds where it is a pickle, whose bytes hang on more than that."""
    files = (path for path in sorted(out.rglob("*")) if path.is_file() and path.name not in NOT_COMPARED)
    return {path.relative_to(out).as_posix(): reader_of(path)(path, out) for path in files}


def unpickled(path: Path, out: Path) -> Any:
    return torch.load(path, weights_only=True)


def by_name(path: Path, out: Path) -> Any:
    """Of the optimizer's file under FSDP2: the host orders names otherwise after a resume, and has lists for tuples."""
    saved = unpickled(path, out)
    groups = [
        {**group, "params": sorted(group["params"]), "betas": list(group["betas"])} for group in saved["param_groups"]
    ]
    return {
        "state": dict(sorted(saved["state"].items())),
        "param_groups": [dict(sorted(group.items())) for group in groups],
    }


def of_deepspeed(path: Path, out: Path) -> Any:
    """Holds objects of DeepSpeed's own; it is a file that was just written here."""
    saved = torch.load(path, weights_only=False)
    optimizer = saved.get("optimizer_state_dict") or {}
    if "loss_scaler" in optimizer:
        optimizer["loss_scaler"] = vars(optimizer["loss_scaler"])
    return saved


def plain(path: Path, out: Path) -> bytes:
    """Without the name of its folder (the host's README has it without a slash), tokens so far, and the date."""
    return PASSING.sub(b"", path.read_bytes().replace(str(out).lstrip("/").encode(), b"OUT"))


READ: dict[str, Callable[[Path, Path], Any]] = {".pt": unpickled, "optimizer.bin": by_name}


def reader_of(path: Path) -> Callable[[Path, Path], Any]:
    if path.parent.name.startswith("global_step") and path.suffix == ".pt":
        return of_deepspeed
    return READ.get(path.name) or READ.get(path.suffix, plain)


def unlike(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    return sorted(name for name in a.keys() | b.keys() if not same(a.get(name), b.get(name)))


def found_after_a_kill(out: Path) -> dict[str, Any]:
    """Lines of the history, whole checkpoints, and whether one is there that is not whole."""
    from scalebio_plugin.training.resume_from import problem_of

    history = out / "scalebio/history.jsonl"
    checkpoints = sorted(out.glob("checkpoint-*"))
    problems = [problem_of(str(path)) for path in checkpoints]
    return {
        "updates": len(history.read_bytes().splitlines()) if history.exists() else 0,
        "whole": [
            int(path.name.split("-")[1]) for path, problem in zip(checkpoints, problems, strict=True) if not problem
        ],
        "half": sum(problem is not None for problem in problems),
        "temporary": sum(1 for _ in out.rglob("*.tmp")),
    }


# ---- chains


def chain(
    inputs: Path, out: Path, engine: str, case: str, seconds: tuple[float, float], rng: random.Random
) -> Iterator[dict[str, Any]]:
    """One run until it is done; a record of every kill.

    Args:
        seconds: That a run takes as a whole, and from its first batch.
    """
    keys, ranks = settings_of(engine, case)
    shutil.rmtree(out, ignore_errors=True)
    resumed = False
    while True:
        run, dies = launched(inputs, out, keys, ranks), not resumed or rng.random() < AGAIN
        moment = rng.uniform(0, seconds[0] if resumed else seconds[1]) if dies else LONG
        which = [rng.randrange(ranks)] if rng.random() < 0.5 else list(range(ranks))
        if not resumed:
            run.to_the_first_batch()
        began = time.monotonic()
        while not (over := run.wait(began + moment - time.monotonic())) and time.monotonic() < began + moment:
            pass
        if over:
            codes = [process.exitcode for process in run.processes]
            if any(codes):
                raise RuntimeError(f"a run ended with {codes} by itself; its log is {out.with_suffix('.log')}")
            return
        run.end(which)
        if all(process.exitcode == 0 for process in run.processes):
            return  # it was quicker
        if not dies:
            raise RuntimeError(f"a run hangs; its log is {out.with_suffix('.log')}")
        yield {"moment": round(moment, 3), "resumed": resumed, "ranks": which, **found_after_a_kill(out)}
        resumed = True


def whole_run(inputs: Path, out: Path, engine: str, case: str) -> tuple[dict[str, Any], tuple[float, float]]:
    """What a run leaves that nobody kills, and the seconds that it takes, from its start and its first batch."""
    keys, ranks = settings_of(engine, case)
    shutil.rmtree(out, ignore_errors=True)
    run = launched(inputs, out, keys, ranks)
    run.to_the_first_batch()
    if not run.wait(LONG) or any(process.exitcode for process in run.processes):
        raise RuntimeError(f"a run that nobody killed did not end well; its log is {out.with_suffix('.log')}")
    now = time.monotonic()
    return content(out), (now - run.since, now - (run.first or run.since))


def undisturbed(inputs: Path, work: Path, engine: str, case: str) -> tuple[dict[str, Any], tuple[float, float]]:
    """See `whole_run`; twice, as what differs between two of them says nothing of a kill."""
    whole_run(inputs, work / f"{case}-whole", engine, case)  # prepares the data
    other, before = whole_run(inputs, work / f"{case}-again", engine, case)
    left, seconds = whole_run(inputs, work / f"{case}-whole", engine, case)
    if differ := unlike(left, other):
        raise RuntimeError(f"two runs that nobody killed differ in {differ}")
    return left, min(before, seconds)


def chaos(work: Path, engine: str, kills: int, done: list[dict[str, Any]], seed: int = 0) -> Iterator[dict[str, Any]]:
    """Chains until there are so many kills, with those that were `done` before."""
    inputs = work / "inputs"
    if not (inputs / "data").exists():
        inputs.mkdir(parents=True, exist_ok=True)
        host.make_inputs(inputs)
    cases, whole = cases_of(engine), {}
    count, number = sum(record["kills"] for record in done), len(done)
    while count < kills:
        case = cases[number % len(cases)]
        if case not in whole:
            whole[case] = undisturbed(inputs, work, engine, case)
        out, rng = work / f"{case}-killed", random.Random(f"{seed} {engine} {number}")
        found = list(chain(inputs, out, engine, case, whole[case][1], rng))
        differ = unlike(content(out), whole[case][0])
        if differ:
            shutil.copytree(out, work / f"differs-{number}", dirs_exist_ok=True)
        yield {"engine": engine, "case": case, "chain": number, "kills": len(found), "differ": differ, "at": found}
        count, number = count + len(found), number + 1


def table(records: list[dict[str, Any]]) -> str:
    lines = [
        "| engine | runs | kills | of resumed runs | before the first checkpoint | with a checkpoint half written "
        "| after the last | other bytes at the end |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for engine in dict.fromkeys(record["engine"] for record in records):
        of = [record for record in records if record["engine"] == engine]
        at = [kill for record in of for kill in record["at"]]
        counts: Counter[str] = Counter()
        for kill in at:
            counts["resumed"] += kill["resumed"]
            counts["none"] += not kill["whole"]
            counts["half"] += bool(kill["half"])
            counts["last"] += SAVING["max_steps"] in kill["whole"]
        cells = [engine, len(of), len(at), *(counts[key] for key in ("resumed", "none", "half", "last"))]
        lines.append("| " + " | ".join(map(str, [*cells, sum(bool(record["differ"]) for record in of)])) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--engine", choices=("one", "ddp", "fsdp2", "zero3"), default="one")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "scalebio-chaos")
    parser.add_argument("--out", type=Path, default=Path("chaos.jsonl"))
    arguments = parser.parse_args()
    records = [json.loads(line) for line in arguments.out.open()] if arguments.out.exists() else []
    of = [record for record in records if record["engine"] == arguments.engine]
    for record in chaos(arguments.work.absolute() / arguments.engine, arguments.engine, arguments.kills, of):
        records.append(record)
        with arguments.out.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(record["chain"], record["case"], record["kills"], record["differ"] or "the same bytes", flush=True)
    print(table(records))


if __name__ == "__main__":
    main()
