"""What a learned mixture is worth on real data, with a model so small that mixtures differ by more than their noise.

    python -m benchmarks.small_model --data DIR [--work DIR] [--target gpteacher] [--seeds 1 2]
                                     [--arms uniform new ...] [--grid] [--table]

A Llama of 1.4M parameters with a vocabulary of its own is pretrained on Alpaca, once. From it starts every arm of every
seed: ordinary runs on given mixtures, runs that learn the mixture of three sources for GSM8K-style validation rows, and
ordinary runs on what those have learned, all of as many steps. Every arm is a run of the host, tested on rows that no
run has seen. An arm whose test.json is in `--work` is not run again.

With `--target gpteacher` the rows to tune for and those to test on are GPTeacher's own, held out of that source: thus
another source should win. `--grid` runs every mixture in quarters in the place of the arms: what a search would take.

`--data` holds instruction/ (the sources, val_gsm8k.jsonl, test_gsm8k.jsonl) and alpaca/alpaca.jsonl. An arm leaves
WORK/ARM-SEED, with scalebio/history.jsonl where it learned, as benchmarks/evidence.py --recorded reads it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.denoising import FORMAT, prompt_of
from benchmarks.process import ON_A_CPU, in_process
from benchmarks.real_data import SOURCES, TEST, VALIDATION, RowLosses, padded, paired_difference, token_mean
from scalebio_plugin.report.history import HistoryRecord, read_history, series
from scalebio_plugin.report.mixture_file import SCHEMA, write_mixture

Config = dict[str, Any]

STEPS, MICRO_BATCH, ACCUMULATION = 200, 8, 2
LENGTH, VOCABULARY = 128, 4096
MODEL = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4}
PRETRAINING: Config = {"max_steps": 250, "train_on_inputs": True, "learning_rate": 2e-3, "sequence_len": 96, "seed": 0}
LEARNING: dict[str, Config] = {
    "new": {},
    "old": {"mixture_update": "exponentiated_gradient", "sampling": "host", "mixture_init": "uniform"},
    "prior": {"prior": {"strength": 0.1}},
    "keep-inner": {"keep": "inner"},
    "learn-0.4": {"learn": {"fraction": 0.4}},
    "until-converged": {"learn": {"until": "converged", "at_most": 0.5}},
}
QUARTERS = [(first, second, 4 - first - second) for first in range(5) for second in range(5 - first)]
GRID = {f"grid-{'-'.join(map(str, point))}": tuple(part / 4 for part in point) for point in QUARTERS}
GIVEN = {"uniform": (1 / 3, 1 / 3, 1 / 3), **GRID}  # weights, by which an ordinary run draws its rows
ROWS = {"all-rows": list(SOURCES), **{name: [name] for name in SOURCES}}
ROWS["all-rows-and-validation"] = [*SOURCES, "validation"]
APPLIED = "-applied"  # an ordinary run on what the arm of that name has learned
ARMS = ["uniform", "new", "new-applied", *SOURCES, "old", "old-applied", "all-rows"]
ARMS += ["prior", "prior-applied", "learn-0.4", "all-rows-and-validation", "until-converged", "keep-inner"]
PAIRS = [("new-applied", arm) for arm in ("uniform", *SOURCES, "all-rows", "old-applied")]
PAIRS += [("new", "old"), ("all-rows-and-validation", "new-applied"), ("new", "all-rows-and-validation")]
TARGETS = {"gsm8k": "math", "gpteacher": "gpteacher"}  # and the source that is like it
HELD_OUT = {"validation": 150, "test": 200}  # rows of that source, from its end, where there are no others like them


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="each -applied after what it applies")
    parser.add_argument("--grid", action="store_true", help="every mixture in quarters in the place of the arms")
    arguments = parser.parse_args()
    target, seeds = arguments.target, arguments.seeds
    work = place(arguments.work, target)
    if not arguments.table:
        prepare(arguments.data, work, target)
        for seed in seeds:
            for arm in GRID if arguments.grid else arguments.arms:
                run_arm(work, arm, seed)
    for table in (results_table, pairs_table, mixtures_table, cost_table, grid_table):
        print("\n".join(table(work, seeds)), end="\n\n")
    print("\n".join(evidence_table(work, seeds, TARGETS[target])))


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """With the options of all that runs on this problem."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=lambda value: Path(value).resolve(), required=True)
    parser.add_argument("--work", type=lambda value: Path(value).resolve(), default=Path("small_model").resolve())
    parser.add_argument("--target", choices=TARGETS, default="gsm8k")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--table", action="store_true", help="run nothing, print the tables of what is there")
    return parser


# ---- data, model, configs


def place(work: Path, target: str) -> Path:
    return work if target == "gsm8k" else work / target


def prepare(data: Path, work: Path, target: str) -> None:
    """Rows, tokenizer, pretrained model, and the test rows as the host tokenises and cuts them."""
    for name, lines in rows_of(data, target).items():
        file = work / "rows" / f"{name}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(lines), encoding="utf-8")
    if not (work / "random").exists():
        build_model(data, work / "random")
    if not (work / "base/test.json").exists():
        tokenise(work, "test")
        alpaca = [{"path": str(data / "alpaca/alpaca.jsonl"), "type": FORMAT}]
        config = base_config(work, []) | {"base_model": str(work / "random"), "datasets": alpaca, **PRETRAINING}
        run(train, work / "base", config)


def rows_of(data: Path, target: str) -> dict[str, list[str]]:
    """Lines of each source, of `validation` and of `test`."""
    files = {**SOURCES, "validation": VALIDATION, "test": TEST}
    folder = data / "instruction"
    rows = {name: (folder / file).read_text(encoding="utf-8").splitlines(True) for name, file in files.items()}
    if target != "gsm8k":
        own = rows[TARGETS[target]]
        for name, number in HELD_OUT.items():
            rows[name] = own[-number:]
            del own[-number:]
    return rows


def build_model(data: Path, directory: Path) -> None:
    """A Llama of random weights, and a tokenizer made from the rows to train on."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from scalebio_plugin.quickstart import planted

    tokenizer = planted.build_tokenizer().train_new_from_iterator(texts(data), VOCABULARY)
    config = LlamaConfig(
        **MODEL,
        vocab_size=len(tokenizer),
        num_key_value_heads=MODEL["num_attention_heads"],
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def texts(data: Path) -> Iterator[str]:
    for file in [data / "alpaca/alpaca.jsonl", *(data / "instruction" / name for name in SOURCES.values())]:
        for row in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
            yield prompt_of(row) + row["output"]


def base_config(work: Path, sources: Sequence[str]) -> Config:
    """Of an ordinary run."""
    return {
        "base_model": str(work / "base"),
        "plugins": ["benchmarks.small_model.NotesPlugin"],
        "datasets": [entry(work, name) for name in sources],
        **ON_A_CPU,
        "dataset_prepared_path": str(work / "prepared"),
        "sequence_len": LENGTH,
        "excess_length_strategy": "truncate",
        "micro_batch_size": MICRO_BATCH,
        "gradient_accumulation_steps": ACCUMULATION,
        "max_steps": STEPS,
        "num_epochs": 9,
        "learning_rate": 1e-3,
        "logging_steps": 1,
    }


def entry(work: Path, name: str) -> Config:
    return {"path": str(work / "rows" / f"{name}.jsonl"), "type": FORMAT}


def arm_config(work: Path, arm: str, seed: int) -> Config:
    config = {**base_config(work, ROWS.get(arm, list(SOURCES))), "seed": seed}
    if arm in ROWS:
        return config
    if arm in LEARNING:
        block = {"validation_datasets": [entry(work, "validation")], **LEARNING[arm]}
    elif arm in GIVEN:
        weights = dict(zip(SOURCES, GIVEN[arm], strict=True))
        write_mixture(work / f"{arm}.json", {"schema": SCHEMA, "weights": weights})
        block = {"apply": str(work / f"{arm}.json")}
    else:
        block = {"apply": str(work / f"{arm.removesuffix(APPLIED)}-{seed}/scalebio/mixture.json")}
    return {**config, "plugins": ["scalebio", *config["plugins"]], "scalebio": {"names": list(SOURCES), **block}}


# ---- runs


def run_arm(work: Path, arm: str, seed: int) -> None:
    folder = work / f"{arm}-{seed}"
    if not (folder / "test.json").exists():
        began = time.perf_counter()
        run(train, folder, arm_config(work, arm, seed))
        print(f"{arm}-{seed} {token_mean(losses_of(folder)):.4f} {time.perf_counter() - began:.0f} s", flush=True)


def run(task: Callable[..., None], folder: Path, config: Config, *arguments: Any) -> None:
    """`task(folder, *arguments)` with the config, in a process of its own whose working directory is `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yml").write_text(yaml.safe_dump({**config, "output_dir": "."}, sort_keys=False))
    in_process(task, folder, "log.txt", folder, *arguments)


def train(folder: Path) -> None:
    """As `axolotl train` does; then test.json: summed loss and response tokens of each test row."""
    from axolotl.cli.train import do_cli

    do_cli(config="config.yml")
    rows = json.loads((folder.parent / "test_rows.json").read_text())
    losses, tokens = row_losses(folder, rows)
    Path("test.json").write_text(json.dumps({"losses": losses.tolist(), "tokens": tokens.tolist()}))


def tokenise(work: Path, name: str) -> None:
    """`name`_rows.json: the rows that keep a token of their response, as the host cuts them."""
    run(_tokenise, work, {**base_config(work, [name]), "base_model": str(work / "random")}, name)


def tokenised(work: Path, name: str) -> list[Any]:
    if not (work / f"{name}_rows.json").exists():
        tokenise(work, name)
    rows: list[Any] = json.loads((work / f"{name}_rows.json").read_text())
    return rows


def _tokenise(folder: Path, name: str) -> None:
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets

    rows = load_datasets(cfg=load_cfg("config.yml")).train_dataset
    kept = [dict(row) for row in rows if any(label != -100 for label in row["labels"][1:])]
    (folder / f"{name}_rows.json").write_text(json.dumps(kept))


def row_losses(model_directory: Path, rows: Sequence[Any], batch: int = 20) -> RowLosses:
    """Loss summed over the response tokens of each row, in nats, and their number."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32).eval()
    losses, tokens = [], []
    for start in range(0, len(rows), batch):
        ids, mask, labels = padded(rows[start : start + batch])
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
        of_token = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="none")
        losses += of_token.sum(dim=1).tolist()
        tokens += (labels[:, 1:] != -100).sum(dim=1).tolist()
    return np.array(losses), np.array(tokens)


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

    return NotesPlugin


def __getattr__(name: str) -> Any:
    if name == "NotesPlugin":
        return globals().setdefault(name, _plugin())
    raise AttributeError(name)


# ---- tables


def losses_of(folder: Path) -> RowLosses:
    saved = json.loads((folder / "test.json").read_text())
    return np.array(saved["losses"]), np.array(saved["tokens"])


def finished(work: Path, seeds: Sequence[int]) -> Iterator[tuple[str, int, Path]]:
    for seed in seeds:
        for arm in (*ARMS, *GRID):
            if (work / f"{arm}-{seed}/test.json").exists():
                yield arm, seed, work / f"{arm}-{seed}"


def histories(work: Path, seeds: Sequence[int]) -> Iterator[tuple[str, int, list[HistoryRecord]]]:
    for arm, seed, folder in finished(work, seeds):
        if (folder / "scalebio/history.jsonl").exists():
            yield arm, seed, read_history(folder / "scalebio/history.jsonl")


def results_table(work: Path, seeds: Sequence[int]) -> Iterator[str]:
    yield f"Test loss of the pretrained model: {token_mean(losses_of(work / 'base')):.4f}\n"
    yield "| seed | arm | test loss | less uniform's |"
    yield "|---|---|---|---|"
    for arm, seed, folder in finished(work, seeds):
        losses = losses_of(folder)
        difference, error = paired_difference(losses, losses_of(work / f"uniform-{seed}"))
        if arm not in GRID:
            yield f"| {seed} | {arm} | {token_mean(losses):.4f} | {difference:+.4f} ± {error:.4f} |"


def pairs_table(work: Path, seeds: Sequence[int]) -> Iterator[str]:
    """What the reading compares: test loss of the first less the second's."""
    yield "| first | second | mean ± standard error over seeds | seed: difference ± standard error over test rows |"
    yield "|---|---|---|---|"
    there = {(arm, seed): folder for arm, seed, folder in finished(work, seeds)}
    for first, second in PAIRS:
        of_seeds = [seed for seed in seeds if (first, seed) in there and (second, seed) in there]
        found = [paired_difference(*(losses_of(there[arm, seed]) for arm in (first, second))) for seed in of_seeds]
        if found:
            cells = [f"{seed}: {mean:+.3f} ± {error:.3f}" for seed, (mean, error) in zip(of_seeds, found, strict=True)]
            yield f"| {first} | {second} | {over_seeds([mean for mean, _ in found])} | {', '.join(cells)} |"


def over_seeds(differences: Sequence[float]) -> str:
    if len(differences) < 2:
        return "one seed"
    error = statistics.stdev(differences) / len(differences) ** 0.5
    return f"{statistics.mean(differences):+.3f} ± {error:.3f}"


def grid_table(work: Path, seeds: Sequence[int]) -> Iterator[str]:
    """What is left between what was learned and every mixture of the grid, the best first."""
    yield f"| {' | '.join(SOURCES)} | less what was learned, mean | seed: difference ± standard error over test rows |"
    yield "|---" * (len(SOURCES) + 2) + "|"
    there = {(arm, seed): folder for arm, seed, folder in finished(work, seeds)}
    found = {}
    for arm in GRID:
        of_seeds = [seed for seed in seeds if (arm, seed) in there and ("new-applied", seed) in there]
        pairs = [(losses_of(there[arm, seed]), losses_of(there["new-applied", seed])) for seed in of_seeds]
        if pairs:
            found[arm] = dict(zip(of_seeds, (paired_difference(*pair) for pair in pairs), strict=True))
    means = {arm: statistics.mean(mean for mean, _ in of_seeds.values()) for arm, of_seeds in found.items()}
    for arm in sorted(means, key=means.__getitem__):
        cells = [f"{seed}: {mean:+.3f} ± {error:.3f}" for seed, (mean, error) in found[arm].items()]
        yield f"| {' | '.join(f'{part:.2f}' for part in GRID[arm])} | {means[arm]:+.3f} | {', '.join(cells)} |"


def mixtures_table(work: Path, seeds: Sequence[int]) -> Iterator[str]:
    yield f"| seed | arm | verdict | {' | '.join(SOURCES)} | largest z / z₀ |"
    yield "|---" * (len(SOURCES) + 4) + "|"
    for arm, seed, history in histories(work, seeds):
        last, cells = history[-1], []
        for name in SOURCES:
            ends = (last["interval"] or {}).get(name)
            cells.append(f"{last['weights'][name]:.3f}" + (f" ({ends[0]:.3f} to {ends[1]:.3f})" if ends else ""))
        peaks = " ".join(f"{value:+.2f}" for value in last["evidence"].values())
        yield f"| {seed} | {arm} | {last['verdict']} | {' | '.join(cells)} | {peaks} |"


def cost_table(work: Path, seeds: Sequence[int]) -> Iterator[str]:
    """Jumps: standard deviation of the differences between successive training losses, first and last quarter."""
    yield "| seed | arm | CPU s, all steps | of a step, median | of uniform's | loss jumps, first, last quarter |"
    yield "|---|---|---|---|---|---|"
    for arm, seed, folder in finished(work, seeds):
        if arm in GRID or not (folder / "steps.json").exists():
            continue
        steps, plain = (_steps(where) for where in (folder, work / f"uniform-{seed}"))
        jumps, quarter = np.diff(steps["losses"]), STEPS // 4
        median = statistics.median(steps["seconds"][: quarter + 1])
        ratio = sum(steps["seconds"]) / sum(plain["seconds"])
        cells = [f"{sum(steps['seconds']):.0f}", f"{median:.2f}", f"{ratio:.2f}"]
        yield f"| {seed} | {arm} | {' | '.join(cells)} | {jumps[:quarter].std():.2f} {jumps[-quarter:].std():.2f} |"


def _steps(folder: Path) -> dict[str, list[float]]:
    return json.loads((folder / "steps.json").read_text())


def evidence_table(work: Path, seeds: Sequence[int], name: str) -> Iterator[str]:
    """Weight of source `name`, its largest z / z₀ and the verdict over time."""
    marks = [10, 20, 30, 40, 60, 80, 120, 160, STEPS]
    yield f"| seed | arm | step: {' | '.join(map(str, marks))} |"
    yield "|---" * (len(marks) + 2) + "|"
    for arm, seed, history in histories(work, seeds):
        weights = series(history, "weights", [name])[:, 0]
        peaks = series(history, "evidence", [name])[:, 0]
        cells = [f"{weights[mark - 1]:.2f} ({peaks[mark - 1]:+.1f})" if mark <= len(weights) else "" for mark in marks]
        yield f"| {seed} | {arm} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
