"""This project's step in benchopt's bilevel benchmark, beside its F2SA, SOBA, StocBiO and BOME.

    python -m benchmarks.benchopt_table --checkout DIR [--work DIR] [--budget N]

DIR is a checkout of github.com/benchopt/benchmark_bilevel, in an environment with benchopt, jax, torch, scikit-learn.
Ours is benchmarks/benchopt/solvers/scalebio.py, the second problem benchmarks/benchopt/datasets/sources.py; the
checkout stays as it is but for benchopt's cache and outputs.

A run may take --budget evaluations: gradients of one sample's f or g, or Hessian-vector products of one sample's g.
Each way first tries its grid on one instance of a problem, then runs with what ended lowest there on five others. What
benchopt writes goes to --work (a folder for each budget); what is there is not run again. The table:
benchmarks/benchopt.md.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[1]
OURS, SOURCES = (ROOT / "benchmarks" / "benchopt" / path for path in ("solvers/scalebio.py", "datasets/sources.py"))
TRIED_ON, SEEDS = (101,), (1, 2, 3, 4, 5)  # instances
BATCH, INNER_STEPS = 64, 10  # samples; steps of an inner loop, and of what solves for the Hessian
LOOKS, EARLY = 16, 8  # looks in a run; the first one that is reported comes after one EARLY-th of it
Values = Mapping[str, float | str]
Grid = Mapping[str, Sequence[float | str]]


@dataclass(frozen=True)
class Problem:
    """Attributes: of, its selector for benchopt; rows, samples of g and of f; steps, what is tried of step sizes."""

    title: str
    of: str
    rows: tuple[int, int]
    steps: Grid


@dataclass(frozen=True)
class Way:
    """Attributes: batches, evaluations of a step in batches; None: BOME's, which goes over all samples."""

    title: str
    solver: str
    batches: int | None
    grid: Grid
    fixed: Values = field(default_factory=dict)
    of_mixtures: bool = False  # alone

    def cost(self, problem: Problem) -> int:
        """Evaluations of a step."""
        inner, outer = problem.rows
        return self.batches * BATCH if self.batches else (INNER_STEPS + 2) * inner + outer

    def interval(self, problem: Problem, budget: int) -> int:
        """Steps from one look to the next."""
        return budget // LOOKS // self.cost(problem) if self.batches else 1

    def looks(self, problem: Problem, budget: int) -> int:
        return budget // (self.cost(problem) * self.interval(problem, budget))

    def tried(self, problem: Problem) -> Grid:
        """Ours has no `outer_ratio`: the rate of its rule stands in the place of it."""
        ours = self.solver == str(OURS)
        return {**{name: of for name, of in problem.steps.items() if name == "step_size" or not ours}, **self.grid}

    def selector(self, grid: Grid, interval: int) -> str:
        """For benchopt: all points of a grid."""
        values = {**self.fixed, **{name: listed(of) for name, of in grid.items()}}
        if self.batches:
            values.update(batch_size=BATCH, eval_freq=interval)
        return f"{self.solver}[{','.join(f'{name}={value}' for name, value in values.items())}]"


def listed(values: Sequence[float | str]) -> str:
    return f"[{','.join(map(str, values))}]"


PROBLEMS = {
    "quadratic": Problem(
        "quadratic: ‖∇h‖²",
        "simulated[dim_inner=30,dim_outer=10,L_cross_inner=0.1,L_cross_outer=0.1,mu_inner=0.1,random_state={}]",
        (1024, 1024),
        {"step_size": (0.1, 0.3), "outer_ratio": (0.01, 0.1, 1.0, 10.0)},
    ),
    "sources": Problem(
        "eight sources: h − least h",
        f"{SOURCES}[random_state={{}}]",
        (1024, 512),
        {"step_size": (0.1, 1.0), "outer_ratio": (0.001, 0.01, 0.1, 1.0)},
    ),
}
PENALTY, ADAM = {"penalty": (10.0, 100.0, 1000.0)}, {"learning_rate": (0.001, 0.003, 0.01, 0.03)}
EVIDENCE, OF_EVIDENCE = {"learning_rate": (0.01, 0.02, 0.05, 0.1)}, {"rule": "evidence"}
PLAIN = {"learning_rate": (0.1, 1.0, 10.0, 100.0)}
LOOP = {"n_inner_steps": INNER_STEPS}
WAYS = {
    "adam": Way("ours, λ by Adam", str(OURS), 3, {**ADAM, **PENALTY}),
    "adam-paper": Way("ours, λ by Adam at 0.01, α = 10 (paper)", str(OURS), 3, {}),
    "evidence": Way("ours, λ on evidence", str(OURS), 3, {**EVIDENCE, **PENALTY}, OF_EVIDENCE, of_mixtures=True),
    "evidence-default": Way(
        "ours, λ on evidence at 0.05, α = 10 (default)",
        str(OURS),
        3,
        {},
        {**OF_EVIDENCE, "learning_rate": 0.05},
        of_mixtures=True,
    ),
    "plain": Way(
        "ours, λ by plain gradient descent, α = 100", str(OURS), 3, PLAIN, {"rule": "plain", "penalty": 100.0}
    ),
    "f2sa": Way("F2SA", "F2SA", 3 * INNER_STEPS + 3, {"delta_lmbda": (0.01, 0.1, 1.0)}, {**LOOP, "lmbda0": 1.0}),
    "soba": Way("SOBA", "SOBA", 3, {}),
    "stocbio": Way("StocBiO", "StocBiO", 2 * INNER_STEPS + 2, {}, {**LOOP, "n_shia_steps": INNER_STEPS}),
    "bome": Way("BOME", "BOME", None, {"eta": (0.05, 0.5, 5.0)}, LOOP),
}


@dataclass(frozen=True)
class Benchmark:
    """Attributes: checkout, of benchopt's benchmark; work, where results go; budget, evaluations a run."""

    checkout: Path
    work: Path
    budget: int

    def measured(self, name: str, at: str) -> tuple[Values, pd.DataFrame]:
        """What a way chose on a problem, and how it ended with that (see `ends`)."""
        way, problem = WAYS[name], PROBLEMS[at]
        grid = way.tried(problem)
        points = [dict(zip(grid, point, strict=True)) for point in product(*grid.values())]
        results = self.run(f"{at}-{name}-tried", way, problem, grid, TRIED_ON)
        looks = way.looks(problem, self.budget)
        chosen = min(points, key=lambda point: ends(results, looks, point, TRIED_ON)["end"].median())
        only = {parameter: (value,) for parameter, value in chosen.items()}
        results = self.run(f"{at}-{name}-final", way, problem, only, SEEDS)
        return chosen, ends(results, looks, chosen, SEEDS)

    def run(self, name: str, way: Way, problem: Problem, grid: Grid, seeds: Sequence[int]) -> pd.DataFrame:
        """benchopt's table of all points of a grid on all instances."""
        result = self.work / f"{name}.parquet"
        if not result.exists():
            solver = way.selector(grid, way.interval(problem, self.budget))
            command = [sys.executable, "-m", "benchopt", "run", str(self.checkout)]
            command += ["-s", solver, "-d", problem.of.format(listed(seeds))]
            command += ["-n", str(way.looks(problem, self.budget)), "--timeout", "3600", "--output", name]
            self.call([*command, "--no-plot", "--no-display"])
            shutil.move(self.checkout / "outputs" / result.name, result)
        return pd.read_parquet(result)

    def call(self, command: Sequence[str]) -> None:
        """Points of a grid that differ in a number are compiled once."""
        compiled = {"JAX_COMPILATION_CACHE_DIR": str(self.work / "compiled")}
        compiled["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        environment = {**os.environ, **compiled, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")


def ends(results: pd.DataFrame, looks: int, values: Values, seeds: Sequence[int]) -> pd.DataFrame:
    """The metric of runs with these values, a row an instance: `start`, `early`, `end`; infinite once it diverged."""
    for name, value in values.items():
        results = results[results[f"p_solver_{name}"] == value]
    curves = results.pivot(index="p_dataset_random_state", columns="stop_val", values="objective_value")
    curves = curves.reindex(index=seeds, columns=range(looks + 1)).fillna(math.inf)
    return pd.DataFrame({"start": curves[0], "early": curves[looks // EARLY], "end": curves[looks]})


def figure(values: pd.Series) -> str:
    """Median, least and largest."""
    return f"{values.median():.1e} ({values.min():.0e} to {values.max():.0e})"


def table(benchmark: Benchmark) -> Iterator[str]:
    early, budget = f"{benchmark.budget // EARLY:,}", f"{benchmark.budget:,}"
    heads = [
        f"{problem.title}, after {early} | after {budget} | below the others, of {len(SEEDS)} | chosen"
        for problem in PROBLEMS.values()
    ]
    yield f"| | evaluations a step | {' | '.join(heads)} |"
    yield "|---" * (2 + 4 * len(PROBLEMS)) + "|"
    starts = [figure(benchmark.measured("soba", at)[1]["start"]) for at in PROBLEMS]
    yield f"| *at the start* | | {' | | | | '.join(starts)} | | | |"
    for name, way in WAYS.items():
        costs = dict.fromkeys(f"{way.cost(problem):,}" for problem in PROBLEMS.values())
        yield f"| {way.title} | {', '.join(costs)} | {' | '.join(cells(benchmark, name))} |"


def cells(benchmark: Benchmark, name: str) -> Iterator[str]:
    for at in PROBLEMS:
        if WAYS[name].of_mixtures and at != "sources":
            yield from ("–", "–", "–", "–")
            continue
        values, found = benchmark.measured(name, at)
        yield from (figure(found["early"]), figure(found["end"]))
        yield str((found["end"] < least_of_others(benchmark, at)).sum()) if WAYS[name].solver == str(OURS) else ""
        yield ", ".join(f"{parameter} {value:g}" for parameter, value in values.items())


def least_of_others(benchmark: Benchmark, at: str) -> pd.Series:
    """On each instance, where the best of the ways that are not ours ended."""
    others = [name for name, way in WAYS.items() if way.solver != str(OURS)]
    return pd.concat([benchmark.measured(name, at)[1]["end"] for name in others], axis=1).min(axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("benchopt-results"))
    parser.add_argument("--budget", type=int, default=2**19)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    benchmark = Benchmark(arguments.checkout.resolve(), arguments.work.resolve(), arguments.budget)
    for row in table(benchmark):
        print(row, flush=True)


if __name__ == "__main__":
    main()
