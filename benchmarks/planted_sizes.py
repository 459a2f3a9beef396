"""Planted mixtures of unequal sources, through the real host: what is learned, and what it is worth at equal compute.

    python -m benchmarks.planted_sizes --seeds 0 1 2 [--scenarios equal rare ...]

The planted problem of the quickstart (counting on in a made-up language), with sources of other sizes and kinds. Every
arm costs as many passes as an ordinary run of ORDINARY steps; every run is a run of the host in a process of its own.
One that is done is not run again. Results: benchmarks/planted_sizes.md.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks.answers import loss_of_answers
from benchmarks.denoising import FORMAT, train
from benchmarks.process import ON_A_CPU, in_process
from scalebio_plugin.quickstart import planted
from scalebio_plugin.quickstart.planted import MakeRow, Question, Row, clean_row, offtopic_row, wrong_row
from scalebio_plugin.report.history import read_history
from scalebio_plugin.report.mixture_file import read_mixture

BATCH, VALIDATION_BATCH = 16, 4  # a quarter, as by default with accumulation
LEARNED, FRACTION = 200, 0.4  # steps, and the part of them that learns
LEARNING_PASSES = 2 + VALIDATION_BATCH / BATCH  # u, w and the validation batch, in passes of an ordinary step
ORDINARY = round(LEARNED * (1 + FRACTION * (LEARNING_PASSES - 1)))  # steps that cost as much
VALIDATION, TEST = 128, 256  # rows


@dataclass(frozen=True)
class Source:
    """`rows` rows of `make` on the questions that `about` lets through; `like`: the rows of another source instead."""

    make: MakeRow
    rows: int
    about: Callable[[Question], bool] = lambda question: True
    like: str | None = None


@dataclass(frozen=True)
class Scenario:
    """Sources by name, the weights that are best where they are known, and keys of the block for every arm."""

    sources: Mapping[str, Source]
    truth: Mapping[str, float]
    block: Mapping[str, Any] = field(default_factory=dict)


def noisy(rate: float) -> MakeRow:
    """A maker whose rows are wrong at this rate."""

    def make(question: Question, rng: random.Random) -> Row:
        return (wrong_row if rng.random() < rate else clean_row)(question, rng)

    return make


def _low(question: Question) -> bool:
    return question.start < len(planted.NUMERALS) // 2


def _sizes(clean: int, wrong: int, offtopic: int) -> dict[str, Source]:
    made = {"clean": Source(clean_row, clean), "wrong": Source(wrong_row, wrong)}
    return made | ({"offtopic": Source(offtopic_row, offtopic)} if offtopic else {})


SCENARIOS = {
    "equal": Scenario(_sizes(1000, 1000, 1000), {"clean": 1.0}),
    "rare": Scenario(_sizes(60, 3000, 3000), {"clean": 1.0}),
    "rare, repeats": Scenario(_sizes(60, 3000, 3000), {"clean": 1.0}, {"max_repeats": 50}),
    "twins": Scenario(
        {"twin": Source(clean_row, 500), "again": Source(clean_row, 500, like="twin"), "wrong": Source(wrong_row, 500)},
        {"twin": 0.5, "again": 0.5},
    ),
    "alike": Scenario({name: Source(clean_row, 500) for name in ("one", "two", "three")}, {}),
    "together": Scenario(
        {
            "low": Source(clean_row, 500, _low),
            "high": Source(clean_row, 500, lambda question: not _low(question)),
            "wrong": Source(wrong_row, 500),
        },
        {"low": 0.5, "high": 0.5},
    ),
    "ten": Scenario({f"noise{11 * k:02d}": Source(noisy(k / 9), 300) for k in range(10)}, {"noise00": 1.0}),
    "fifty": Scenario({f"noise{2 * k:02d}": Source(noisy(k / 49), 100) for k in range(50)}, {"noise00": 1.0}),
    "one in a thousand": Scenario(_sizes(5, 5000, 0), {"clean": 1.0}),
}
OLD_DEFAULT = {"mixture_update": "exponentiated_gradient", "sampling": "host", "mixture_init": "uniform"}
FROZEN = {"mixture_learning_rate": 0}  # the same passes, weights in proportion: what the validation pull alone is worth
THROUGHOUT = {"learn": {"fraction": 1.0}}  # for their weights: they cost half as much again
LEARNING: dict[str, dict[str, Any]] = {
    "learned": {},
    "old default": OLD_DEFAULT,
    "from uniform": {"mixture_init": "uniform"},
    "with a prior": {"prior": {"strength": 0.1}},
    "frozen": FROZEN,
    "throughout": THROUGHOUT,
    "old throughout": OLD_DEFAULT | THROUGHOUT,
}
EQUAL = ("learned", "old default", "from uniform", "with a prior", "frozen")  # that learn, at equal compute
ORDINARY_ARMS = ("uniform", "proportional", "truth")


def write_data(directory: Path, scenario: Scenario, seed: int) -> list[Row]:
    """The sources, and validation and test rows on questions that no source asks; returns the test rows."""
    questions = random.Random(seed).sample(planted.QUESTIONS, len(planted.QUESTIONS))
    validation, test, pool = questions[:VALIDATION], questions[VALIDATION:][:TEST], questions[VALIDATION + TEST :]
    rows = {name: _rows(name, source, pool, seed) for name, source in scenario.sources.items()}
    rows |= {name: rows[source.like] for name, source in scenario.sources.items() if source.like}
    rng = random.Random(seed)
    rows["validation"] = [clean_row(question, rng) for question in validation]
    directory.mkdir(parents=True, exist_ok=True)
    for name, these in rows.items():
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in these))
    return [clean_row(question, rng) for question in test]


def _rows(name: str, source: Source, pool: Sequence[Question], seed: int) -> list[Row]:
    rng, asked = random.Random(f"{name} {seed}"), [question for question in pool if source.about(question)]
    return [source.make(asked[i % len(asked)], rng) for i in range(source.rows)]


def host_config(sources: Sequence[str], seed: int, steps: int) -> dict[str, Any]:
    return {
        "base_model": "model",
        "datasets": [{"path": f"data/{name}.jsonl", "type": FORMAT} for name in sources],
        **ON_A_CPU,
        "sequence_len": 64,
        "micro_batch_size": BATCH,
        "gradient_accumulation_steps": 1,
        "max_steps": steps,
        "num_epochs": 99,
        "learning_rate": 3e-3,
        "logging_steps": 50,
        "seed": seed,
    }


def launch(directory: Path, name: str, config: Mapping[str, Any]) -> Path:
    """Train as `axolotl train` does, in a process of its own; returns the output folder."""
    (directory / f"{name}.yml").write_text(yaml.safe_dump({**config, "output_dir": name}, sort_keys=False))
    in_process(_train, directory, f"{name}.log", name)
    return directory / name


def _train(name: str) -> None:
    """A few rows: the host's pool of one process takes longer than they do."""
    from datasets import Dataset

    for method in (Dataset.map, Dataset.filter, Dataset.save_to_disk):

        def here(self: Any, *args: Any, num_proc: int | None = None, method: Any = method, **kwargs: Any) -> Any:
            return method(self, *args, num_proc=None, **kwargs)

        setattr(Dataset, method.__name__, here)
    train(name)


def learn(directory: Path, arm: str, scenario: Scenario, seed: int) -> dict[str, Any]:
    """A run that learns for FRACTION of its steps and goes on with what it has found."""
    block = {
        "validation_datasets": [{"path": "data/validation.jsonl", "type": FORMAT}],
        "validation_batch_size": VALIDATION_BATCH,
        "learn": {"fraction": FRACTION},
        **scenario.block,
        **LEARNING[arm],
    }
    config = host_config(list(scenario.sources), seed, LEARNED)
    out = launch(directory, arm.replace(" ", "_"), {**config, "plugins": ["scalebio"], "scalebio": block})
    last = read_history(out / "scalebio" / "history.jsonl")[-1]
    return {key: last[key] for key in ("weights", "interval", "verdict")}


def train_on(directory: Path, arm: str, scenario: Scenario, seed: int) -> dict[str, Any]:
    """An ordinary run: the host's own, or on given weights."""
    names = list(scenario.sources)
    config = host_config(names, seed, ORDINARY)
    if arm != "proportional":
        weights = dict.fromkeys(names, 1 / len(names)) if arm == "uniform" else dict.fromkeys(names, 0.0)
        weights |= scenario.truth if arm == "truth" else {}
        document = read_mixture(directory / "learned" / "scalebio" / "mixture.json")
        (directory / f"{arm}.json").write_text(json.dumps({**document, "weights": weights}))
        block = {"apply": f"{arm}.json", **scenario.block}
        config |= {"plugins": ["scalebio"], "scalebio": block}
    launch(directory, arm, config)
    return {}


def measure(directory: Path, scenario: Scenario, seed: int, arms: Sequence[str]) -> dict[str, Any]:
    """All arms of one seed: weights, interval and verdict where it learns, and the test loss."""
    rows = write_data(directory / "data", scenario, seed)
    test = [(FORMAT["format"].format(**row), row["output"]) for row in rows]
    if not (directory / "model").exists():
        planted.build_model(directory / "model", seed=seed)
    results = {}
    for arm in arms:
        done = directory / f"{arm}.result.json"
        if not done.is_file():
            found = (learn if arm in LEARNING else train_on)(directory, arm, scenario, seed)
            found["test_loss"] = loss_of_answers(directory / arm.replace(" ", "_"), test)
            done.write_text(json.dumps(found))
            print(directory.name, arm, json.dumps(found), flush=True)
        results[arm] = json.loads(done.read_text())
    return results


def mean_and_error(values: Sequence[float]) -> str:
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):+.4f} ± {error:.4f}"


def losses_table(results: Mapping[str, Mapping[int, Mapping[str, Any]]], arms: Sequence[str]) -> str:
    """Mean test loss of each arm, and the paired differences of `learned` from the others."""
    against = [arm for arm in arms if arm != "learned"]
    head = ["scenario", "seeds", *arms, *(f"learned − {arm}" for arm in against)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, of in results.items():
        loss = {arm: [run[arm]["test_loss"] for run in of.values()] for arm in arms}
        cells = [name, str(len(of)), *(f"{statistics.mean(values):.4f}" for values in loss.values())]
        for arm in against:
            pairs = zip(loss["learned"], loss[arm], strict=True)
            cells.append(mean_and_error([ours - theirs for ours, theirs in pairs]))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def weights_table(results: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> str:
    """What every run that learns has found: weights with their intervals, and the verdict."""
    lines = ["| scenario | seed | arm | weights [95% interval] | verdict |", "|---|---|---|---|---|"]
    for name, of in results.items():
        for seed, run in of.items():
            for arm in [arm for arm in LEARNING if arm in run and arm != "frozen"]:
                found = run[arm]
                cells = [f"{source} {_weight(found, source)}" for source in found["weights"]]
                lines.append(f"| {name} | {seed} | {arm} | {', '.join(cells)} | {found['verdict']} |")
    return "\n".join(lines)


def _weight(found: Mapping[str, Any], source: str) -> str:
    weight, interval = found["weights"][source], found["interval"]
    return f"{weight:.3g}" + (f" [{interval[source][0]:.2g}, {interval[source][1]:.2g}]" if interval else "")


def main() -> None:
    arms = [*LEARNING, *ORDINARY_ARMS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("planted_sizes"), help="folder for data, models and runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--arms", nargs="+", choices=arms, default=arms, help="with learned, whose files others use")
    arguments = parser.parse_args()
    results: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in arguments.scenarios}
    for seed in arguments.seeds:
        for name in arguments.scenarios:
            directory = arguments.work.resolve() / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
            results[name][seed] = measure(directory, SCENARIOS[name], seed, arguments.arms)
    compared = [arm for arm in arguments.arms if arm in (*EQUAL, *ORDINARY_ARMS)]
    print(losses_table(results, compared) + "\n\n" + weights_table(results))


if __name__ == "__main__":
    main()
