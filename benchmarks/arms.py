"""Runs of one problem that differ in their mixture, each tested on rows that no run has seen, and tables of them.

An *arm* is one of

    learning     a run that learns the mixture for the rows `validation`
    NAME-applied an ordinary run on what the arm NAME has learned
    given        an ordinary run that draws its rows by given weights
    rows         an ordinary run of the host, without the plugin, over all rows of some sources

All start from the same model. An arm leaves WORK/ARM-SEED with test.json, and scalebio/history.jsonl
where it learned, as benchmarks/evidence.py --recorded reads it; one whose test.json is there is not run again.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch.nn.functional import cross_entropy

from benchmarks.denoising import FORMAT
from benchmarks.process import in_process
from scalebio_plugin.compare.result import error_over_rows
from scalebio_plugin.report.history import HistoryRecord, read_history, series
from scalebio_plugin.report.mixture_file import SCHEMA, write_mixture

Config = dict[str, Any]
RowLosses = tuple[np.ndarray, np.ndarray]  # summed loss and response tokens of each test row

APPLIED = "-applied"
MARKS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)  # of the steps, at which a table looks


@dataclass(frozen=True)
class Problem:
    """What all arms share.

    Attributes:
        work: Folder with rows/NAME.jsonl for each source, for `validation` and `test`, and base/: the test of the model
            that all start from, and that itself where the config has no base_model.
        sources: In the order of `datasets:`.
        config: Of an ordinary run, without data, model and seed.
        rows: Arms by the sources of which they take all rows.
        learning: Arms by the keys of their block `scalebio:`, beside names and validation rows.
        given: Arms by their weights, in the order of `sources`.
        learning_steps: Of what learns; None: as many as all others.
    """

    work: Path
    sources: tuple[str, ...]
    config: Config
    rows: Mapping[str, Sequence[str]]
    learning: Mapping[str, Config]
    given: Mapping[str, Sequence[float]] = field(default_factory=dict)
    learning_steps: int | None = None

    @property
    def steps(self) -> int:
        return int(self.config["max_steps"])

    def ordinary(self, sources: Sequence[str]) -> Config:
        """The config of an ordinary run over all rows of these sources."""
        return {
            "base_model": str(self.work / "base"),
            "plugins": ["benchmarks.arms.NotesPlugin"],
            "datasets": [self.entry(name) for name in sources],
            "dataset_prepared_path": str(self.work / "prepared"),
            **self.config,
        }

    def entry(self, name: str) -> Config:
        return {"path": str(self.work / "rows" / f"{name}.jsonl"), "type": FORMAT}

    def arm(self, arm: str, seed: int) -> Config:
        if arm in self.rows:
            return {**self.ordinary(self.rows[arm]), "seed": seed}
        if arm in self.learning:
            block = {"validation_datasets": [self.entry("validation")], **self.learning[arm]}
            return {**self._with(block, seed), "max_steps": self.learning_steps or self.steps}
        if arm not in self.given:
            return self.applied(self.work / f"{arm.removesuffix(APPLIED)}-{seed}/scalebio/mixture.json", seed)
        weights = dict(zip(self.sources, self.given[arm], strict=True))
        write_mixture(self.work / f"{arm}.json", {"schema": SCHEMA, "weights": weights})
        return self.applied(self.work / f"{arm}.json", seed)

    def applied(self, mixture: Path, seed: int) -> Config:
        """The config of an ordinary run that draws its rows by a mixture.json."""
        return self._with({"apply": str(mixture)}, seed)

    def _with(self, block: Config, seed: int) -> Config:
        config = self.ordinary(self.sources)
        block = {"names": list(self.sources), **block}
        return {
            **config,
            "plugins": ["scalebio_plugin.ScaleBiOPlugin", *config["plugins"]],
            "scalebio": block,
            "seed": seed,
        }


# ---- runs


def run_arm(problem: Problem, arm: str, seed: int) -> None:
    folder = problem.work / f"{arm}-{seed}"
    if not (folder / "test.json").exists():
        began = time.perf_counter()
        run(train, folder, problem.arm(arm, seed))
        print(f"{arm}-{seed} {token_mean(losses_of(folder)):.4f} {time.perf_counter() - began:.0f} s", flush=True)


def run_arms(problem: Problem, arms: Sequence[str], seeds: Sequence[int], jobs: int = 1) -> None:
    """One seed after the other; or `jobs` runs side by side, those that learn first, what applies them last."""
    pairs = [(arm, seed) for seed in seeds for arm in arms]
    if jobs > 1:
        pairs.sort(key=lambda pair: (pair[0].endswith(APPLIED), pair[0] not in problem.learning))
    started: dict[tuple[str, int], Future[None]] = {}

    def in_turn(arm: str, seed: int) -> None:
        learning = started.get((arm.removesuffix(APPLIED), seed))
        if arm.endswith(APPLIED) and learning:
            learning.result()
        run_arm(problem, arm, seed)

    with ThreadPoolExecutor(jobs) as pool:
        for pair in pairs:
            started[pair] = pool.submit(in_turn, *pair)
        try:
            for future in started.values():
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)  # what has begun is waited for
            raise


def run(task: Callable[..., None], folder: Path, config: Config, *arguments: Any) -> None:
    """`task(folder, *arguments)` with the config, in a process of its own whose working directory is `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yml").write_text(yaml.safe_dump({**config, "output_dir": "."}, sort_keys=False))
    in_process(task, folder, "log.txt", folder, *arguments)


def train(folder: Path) -> None:
    """As `axolotl train` does, and the test."""
    from axolotl.cli.train import do_cli

    do_cli(config="config.yml")
    test(folder, folder)


def test(folder: Path, model: Path) -> None:
    """test.json: summed loss and response tokens of each test row, by the model, or the adapter, of that folder."""
    losses, tokens = row_losses(model, json.loads((folder.parent / "test_rows.json").read_text()))
    Path("test.json").write_text(json.dumps({"losses": losses.tolist(), "tokens": tokens.tolist()}))


def tokenised(problem: Problem, name: str) -> list[Any]:
    """The rows `name` that keep a token of their response, as the host cuts them; NAME_rows.json holds them."""
    file = problem.work / f"{name}_rows.json"
    if not file.exists():
        run(_tokenise, problem.work, problem.ordinary([name]), name)
    rows: list[Any] = json.loads(file.read_text())
    return rows


def _tokenise(folder: Path, name: str) -> None:
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets

    rows = load_datasets(cfg=load_cfg("config.yml")).train_dataset
    kept = [dict(row) for row in rows if any(label != -100 for label in row["labels"][1:])]
    (folder / f"{name}_rows.json").write_text(json.dumps(kept))


@torch.no_grad()
def row_losses(folder: Path, rows: Sequence[Any], batch: int = 20) -> RowLosses:
    """In float32, nats."""
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    kind = AutoPeftModelForCausalLM if (folder / "adapter_config.json").exists() else AutoModelForCausalLM
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = kind.from_pretrained(folder, dtype=torch.float32).eval().to(device)
    losses, tokens = [], []
    for start in range(0, len(rows), batch):
        ids, mask, labels = (part.to(device) for part in padded(rows[start : start + batch]))
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
        losses += cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="none").sum(dim=1).tolist()
        tokens += (labels[:, 1:] != -100).sum(dim=1).tolist()
    return np.array(losses), np.array(tokens)


def padded(rows: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # each (B, T)
    length = max(len(row["input_ids"]) for row in rows)

    def stack(key: str, filler: int) -> torch.Tensor:
        return torch.tensor([list(row[key]) + [filler] * (length - len(row[key])) for row in rows])

    return stack("input_ids", 0), stack("attention_mask", 0), stack("labels", -100)


def _plugin() -> type:
    from axolotl.integrations.base import BasePlugin
    from transformers import TrainerCallback

    class Notes(TrainerCallback):
        """steps.json: CPU seconds of every step, and the training losses that the host logged."""

        def __init__(self) -> None:
            self.seconds: list[float] = []
            self.began = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.began = time.process_time()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.seconds.append(time.process_time() - self.began)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            losses = [float(line["loss"]) for line in state.log_history if "loss" in line]
            Path("steps.json").write_text(json.dumps({"seconds": self.seconds, "losses": losses}))

    class NotesPlugin(BasePlugin):
        def add_callbacks_pre_trainer(self, cfg: Any, model: Any) -> list[Any]:
            return [Notes()]

        def get_training_args(self, cfg: Any) -> dict[str, Any]:  # else no bfloat16 on a CPU
            return {} if torch.cuda.is_available() else {"use_cpu": True}

    return NotesPlugin


def __getattr__(name: str) -> Any:
    if name == "NotesPlugin":
        return globals().setdefault(name, _plugin())
    raise AttributeError(name)


# ---- tables


def losses_of(folder: Path) -> RowLosses:
    saved = json.loads((folder / "test.json").read_text())
    return np.array(saved["losses"]), np.array(saved["tokens"])


def token_mean(losses: RowLosses) -> float:
    return float(losses[0].sum() / losses[1].sum())


def paired_difference(first: RowLosses, second: RowLosses) -> tuple[float, float]:
    """Token-mean loss of `first` less that of `second` on the same rows, and its standard error over the rows."""
    return token_mean(first) - token_mean(second), error_over_rows(first[0] - second[0], first[1])


@dataclass(frozen=True)
class Tables:
    """Of the arms of a problem that are there."""

    problem: Problem
    arms: Sequence[str]
    seeds: Sequence[int]

    def _finished(self) -> Iterator[tuple[str, int, Path]]:
        for seed in self.seeds:
            for arm in self.arms:
                if (self.problem.work / f"{arm}-{seed}/test.json").exists():
                    yield arm, seed, self.problem.work / f"{arm}-{seed}"

    def _histories(self) -> Iterator[tuple[str, int, list[HistoryRecord]]]:
        for arm, seed, folder in self._finished():
            if (folder / "scalebio/history.jsonl").exists():
                yield arm, seed, read_history(folder / "scalebio/history.jsonl")

    def results(self) -> Iterator[str]:
        yield f"Test loss of the pretrained model: {token_mean(losses_of(self.problem.work / 'base')):.4f}\n"
        yield "| seed | arm | test loss | less uniform's |"
        yield "|---|---|---|---|"
        for arm, seed, folder in self._finished():
            pair = self._differences(arm, "uniform").get(seed)
            less = f"{pair[0]:+.4f} ± {pair[1]:.4f}" if pair else ""
            yield f"| {seed} | {arm} | {token_mean(losses_of(folder)):.4f} | {less} |"

    def pairs(self, pairs: Sequence[tuple[str, str]]) -> Iterator[str]:
        """Test loss of the first less the second's."""
        yield "| first | second | mean ± standard error over seeds | seed: difference ± standard error over test rows |"
        yield "|---|---|---|---|"
        for first, second in pairs:
            found = self._differences(first, second)
            if found:
                mean = over_seeds([mean for mean, _ in found.values()])
                yield f"| {first} | {second} | {mean} | {_of_seeds(found)} |"

    def ranked(self, arms: Mapping[str, Sequence[float]], reference: str = "new-applied") -> Iterator[str]:
        """What is left between what was learned and each of these mixtures, the best first."""
        yield f"| {' | '.join(self.problem.sources)} | less {reference}, mean | seed: difference ± over test rows |"
        yield "|---" * (len(self.problem.sources) + 2) + "|"
        found = {arm: self._differences(arm, reference) for arm in arms}
        means = {arm: statistics.mean(mean for mean, _ in pairs.values()) for arm, pairs in found.items() if pairs}
        for arm in sorted(means, key=means.__getitem__):
            cells = " | ".join(f"{part:.2f}" for part in arms[arm])
            yield f"| {cells} | {means[arm]:+.3f} | {_of_seeds(found[arm])} |"

    def _differences(self, first: str, second: str) -> dict[int, tuple[float, float]]:
        folders = {seed: [self.problem.work / f"{arm}-{seed}" for arm in (first, second)] for seed in self.seeds}
        return {
            seed: paired_difference(*map(losses_of, pair))
            for seed, pair in folders.items()
            if all((folder / "test.json").exists() for folder in pair)
        }

    def mixtures(self) -> Iterator[str]:
        sources = self.problem.sources
        yield f"| seed | arm | verdict | {' | '.join(sources)} | largest z / z₀ |"
        yield "|---" * (len(sources) + 4) + "|"
        for arm, seed, history in self._histories():
            last, cells = history[-1], []
            for name in sources:
                ends = (last["interval"] or {}).get(name)
                cells.append(f"{last['weights'][name]:.3f}" + (f" ({ends[0]:.3f} to {ends[1]:.3f})" if ends else ""))
            peaks = " ".join(f"{value:+.2f}" for value in last["evidence"].values())
            yield f"| {seed} | {arm} | {last['verdict']} | {' | '.join(cells)} | {peaks} |"

    def costs(self) -> Iterator[str]:
        """Jumps: standard deviation of the differences between successive training losses, first and last quarter."""
        yield "| seed | arm | CPU s, all steps | of a step, median | of uniform's | loss jumps, first, last quarter |"
        yield "|---|---|---|---|---|---|"
        for arm, seed, folder in self._finished():
            both = [folder, self.problem.work / f"uniform-{seed}"]
            if not all((where / "steps.json").exists() for where in both):
                continue
            steps, plain = map(_steps, both)
            jumps, quarter = np.diff(steps["losses"]), self.problem.steps // 4
            median = statistics.median(steps["seconds"][: quarter + 1])
            ratio = sum(steps["seconds"]) / sum(plain["seconds"])
            cells = [f"{sum(steps['seconds']):.0f}", f"{median:.2f}", f"{ratio:.2f}"]
            yield f"| {seed} | {arm} | {' | '.join(cells)} | {jumps[:quarter].std():.2f} {jumps[-quarter:].std():.2f} |"

    def evidence(self, name: str) -> Iterator[str]:
        """Weight of source `name` over time and, in brackets, its largest z / z₀."""
        marks = [round(part * (self.problem.learning_steps or self.problem.steps)) for part in MARKS]
        yield f"| seed | arm | step: {' | '.join(map(str, marks))} |"
        yield "|---" * (len(marks) + 2) + "|"
        for arm, seed, history in self._histories():
            weights = series(history, "weights", [name])[:, 0]
            peaks = series(history, "evidence", [name])[:, 0]
            cells = [
                f"{weights[mark - 1]:.2f} ({peaks[mark - 1]:+.1f})" if mark <= len(weights) else "" for mark in marks
            ]
            yield f"| {seed} | {arm} | {' | '.join(cells)} |"


def over_seeds(differences: Sequence[float]) -> str:
    if len(differences) < 2:
        return "one seed"
    error = statistics.stdev(differences) / len(differences) ** 0.5
    return f"{statistics.mean(differences):+.3f} ± {error:.3f}"


def _of_seeds(found: Mapping[int, tuple[float, float]]) -> str:
    return ", ".join(f"{seed}: {mean:+.3f} ± {error:.3f}" for seed, (mean, error) in found.items())


def _steps(folder: Path) -> dict[str, list[float]]:
    return json.loads((folder / "steps.json").read_text())
