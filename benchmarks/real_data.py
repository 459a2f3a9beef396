"""A learned mixture against the uniform one, on a real model and real instruction data, at equal target tokens.

    python benchmarks/real_data.py --model DIR --data DIR --out DIR [--seeds 0 1] [--steps 80] [--rate 0.1]

For each seed three runs of the real host, all from the base model and with the config of `real_data.yml`:

    learn    the bilevel run; of what it leaves, only mixture.json is used
    uniform  `scalebio: {apply: …}`, an ordinary run, on equal weights
    learned  the same on the learned weights

then the loss on the test rows, a mean over all their response tokens, of the base model and of the last two. Rows of
different sources differ in length, so equal steps are not equal target tokens: both arms save every step, and the one
that saw more tokens is also tested at the step where it had seen as many as the other (the learning rate is constant,
so that this is what a shorter run would have left). `--data` holds the sources, val_gsm8k.jsonl (what the mixture is
tuned for) and test_gsm8k.jsonl (seen by no run), in the alpaca format. A run whose arm.json is in `--out` is not run
again, so a benchmark that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch.nn.functional import cross_entropy

from scalebio_plugin.compare.result import error_over_rows
from scalebio_plugin.report.history import read_history
from scalebio_plugin.report.mixture_file import SCHEMA, write_mixture
from scalebio_plugin.report.summary import summarise as summarise_history
from scalebio_plugin.report.tables import weights_table

SOURCES = {
    "gpt4": "GPT4-LLM-Cleaned.jsonl",
    "gpteacher": "GPTeacher-General-Instruct.jsonl",
    "math": "MathInstruct.jsonl",
}
VALIDATION, TEST = "val_gsm8k.jsonl", "test_gsm8k.jsonl"
ENVIRONMENT = {
    "AXOLOTL_DO_NOT_TRACK": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_MODE": "disabled",
}

RowLosses = tuple[np.ndarray, np.ndarray]  # summed loss and response tokens of each test row


def main() -> None:
    arguments = _arguments()
    os.environ.update(ENVIRONMENT)
    rows = test_rows(arguments.model, arguments.data, arguments.out)
    base = cached_losses(arguments.model, arguments.out / "base", 0, rows)
    seeds = [run_seed(seed, arguments, rows) for seed in arguments.seeds]
    result = {
        "steps": arguments.steps,
        "rate": arguments.rate,
        "threads": torch.get_num_threads(),
        "test_rows": len(rows),
        "test_tokens": int(base[1].sum()),
        "base": token_mean(base),
        "seeds": seeds,
    }
    (arguments.out / "real_data.json").write_text(json.dumps(result, indent=2) + "\n")
    print(table_of(result))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Learned mixture against uniform, at equal target tokens.")
    for name in ("--model", "--data", "--out"):
        parser.add_argument(name, type=lambda value: Path(value).resolve(), required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=80, help="optimiser steps of every run")
    parser.add_argument("--rate", type=float, default=0.1, help="mixture_learning_rate")
    return parser.parse_args()


def run_seed(seed: int, arguments: argparse.Namespace, rows: Sequence[Any]) -> dict[str, Any]:
    """All three runs of a seed, and the test losses of the two arms at equal steps and at equal target tokens."""
    folder = arguments.out / f"seed{seed}-steps{arguments.steps}-rate{arguments.rate:g}"
    learn = run_host(folder / "learn", learning_config(arguments, seed))
    history = read_history(folder / "learn/out/scalebio/history.jsonl")
    summary = summarise_history(history, list(SOURCES))
    print(f"seed {seed}\n{weights_table(summary)}", flush=True)
    paths = {"uniform": folder / "uniform.json", "learned": folder / "learn/out/scalebio/mixture.json"}
    write_mixture(paths["uniform"], {"schema": SCHEMA, "weights": dict.fromkeys(SOURCES, 1 / len(SOURCES))})
    runs = {arm: run_host(folder / arm, arm_config(arguments, seed, mixture)) for arm, mixture in paths.items()}

    def compare(steps: Mapping[str, int]) -> dict[str, Any]:
        losses = {arm: cached_losses(arguments.model, folder / arm, step, rows) for arm, step in steps.items()}
        difference, error = paired_difference(losses["learned"], losses["uniform"])
        arms = {
            arm: {"steps": step, "tokens": runs[arm]["tokens"][step - 1], "test_loss": token_mean(losses[arm])}
            for arm, step in steps.items()
        }
        return {"arms": arms, "difference": difference, "difference_se": error}

    return {
        "seed": seed,
        "seconds": {"learn": learn["seconds"], **{arm: run["seconds"] for arm, run in runs.items()}},
        "sources": {name: asdict(source) for name, source in summary.items()},
        "equal_steps": compare(dict.fromkeys(paths, arguments.steps)),
        "equal_tokens": compare(steps_at_equal_tokens({arm: run["tokens"] for arm, run in runs.items()})),
    }


def steps_at_equal_tokens(tokens: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """The step of each arm whose target tokens, summed up to there, are nearest to the total of the arm with fewer."""
    budget = min(seen[-1] for seen in tokens.values())
    return {arm: 1 + int(np.argmin(np.abs(np.array(seen) - budget))) for arm, seen in tokens.items()}


def base_config(arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    config = yaml.safe_load(Path(__file__).with_suffix(".yml").read_text())
    config["base_model"] = str(arguments.model)
    config["datasets"] = [entry(arguments.data / file) for file in SOURCES.values()]
    config["dataset_prepared_path"] = str(arguments.out / "prepared")
    return {**config, "seed": seed, "max_steps": arguments.steps}


def learning_config(arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    config = base_config(arguments, seed)
    config["scalebio"]["validation_datasets"] = [entry(arguments.data / VALIDATION)]
    config["scalebio"]["mixture_learning_rate"] = arguments.rate
    return config


def arm_config(arguments: argparse.Namespace, seed: int, mixture: Path) -> dict[str, Any]:
    config = base_config(arguments, seed)
    config["scalebio"] = {"names": list(SOURCES), "apply": str(mixture)}
    return {**config, "save_strategy": "steps", "save_steps": 1, "save_only_model": True, "save_total_limit": 1000}


def entry(path: Path) -> dict[str, str]:
    return {"path": str(path), "type": "alpaca", "split": "train"}


def run_host(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Train in a process of the host. `tokens` are the target tokens that it logged, summed up to each step."""
    facts = folder / "arm.json"
    if facts.exists():
        return json.loads(facts.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yml").write_text(yaml.safe_dump({**config, "output_dir": str(folder / "out")}, sort_keys=False))
    started = time.perf_counter()
    with open(folder / "log.txt", "w") as log:
        command = [sys.executable, "-m", "axolotl.cli.train", str(folder / "config.yml")]
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=True)
    seconds = time.perf_counter() - started
    counts = re.findall(r"'tokens/trainable': '?(\d+)", (folder / "log.txt").read_text())
    result = {"seconds": round(seconds), "tokens": [int(count) for count in counts]}
    facts.write_text(json.dumps(result))
    return result


def test_rows(model: Path, data: Path, out: Path) -> list[dict[str, list[int]]]:
    """The test set as the host tokenises and truncates it, without the rows that keep no token of their response."""
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets

    config = yaml.safe_load(Path(__file__).with_suffix(".yml").read_text())
    config = {key: value for key, value in config.items() if key not in ("plugins", "scalebio")}
    config |= {"base_model": str(model), "datasets": [entry(data / TEST)], "output_dir": str(out / "test")}
    config |= {"dataset_prepared_path": str(out / "prepared"), "max_steps": 1, "seed": 0}
    out.mkdir(parents=True, exist_ok=True)
    (out / "test.yml").write_text(yaml.safe_dump(config, sort_keys=False))
    rows = load_datasets(cfg=load_cfg(str(out / "test.yml"))).train_dataset
    return [row for row in rows if any(label != -100 for label in row["labels"][1:])]


def cached_losses(model: Path, run: Path, step: int, rows: Sequence[Any]) -> RowLosses:
    """Test losses after `step` steps of a run; step 0 is the base model."""
    path = run / f"test_losses-{step}.json"
    if not path.exists():
        run.mkdir(parents=True, exist_ok=True)
        sums, tokens = row_losses(model, run / f"out/checkpoint-{step}" if step else None, rows)
        path.write_text(json.dumps({"sums": sums.tolist(), "tokens": tokens.tolist()}))
    saved = json.loads(path.read_text())
    return np.array(saved["sums"]), np.array(saved["tokens"])


@torch.no_grad()
def row_losses(model_path: Path, adapter: Path | None, rows: Sequence[Any], batch_size: int = 8) -> RowLosses:
    """Loss summed over the response tokens of each row, and their number; precision as in training."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.bfloat16, attn_implementation="sdpa")
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    model.eval()
    sums, tokens = [], []
    for start in range(0, len(rows), batch_size):
        ids, mask, labels = padded(rows[start : start + batch_size])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=ids, attention_mask=mask).logits
        losses = cross_entropy(logits[:, :-1].float().transpose(1, 2), labels[:, 1:], reduction="none")
        sums += losses.sum(dim=1).tolist()
        tokens += (labels[:, 1:] != -100).sum(dim=1).tolist()
    return np.array(sums), np.array(tokens)


def padded(rows: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # each (B, T)
    length = max(len(row["input_ids"]) for row in rows)

    def stack(key: str, filler: int) -> torch.Tensor:
        return torch.tensor([list(row[key]) + [filler] * (length - len(row[key])) for row in rows])

    return stack("input_ids", 0), stack("attention_mask", 0), stack("labels", -100)


def token_mean(losses: RowLosses) -> float:
    return float(losses[0].sum() / losses[1].sum())


def paired_difference(first: RowLosses, second: RowLosses) -> tuple[float, float]:
    """Token-mean loss of `first` less that of `second` on the same rows, and its standard error over the rows."""
    return token_mean(first) - token_mean(second), error_over_rows(first[0] - second[0], first[1])


def table_of(result: Mapping[str, Any]) -> str:
    """The result in Markdown."""
    lines = [
        f"Base model: {result['base']:.4f}\n",
        f"| seed | at equal | arm | {' | '.join(SOURCES)} | steps | tokens | loss |",
    ]
    lines.append("|---" * (len(SOURCES) + 6) + "|")
    for seed in result["seeds"]:
        weights = {"uniform": [1 / len(SOURCES)] * len(SOURCES)}
        weights["learned"] = [seed["sources"][name]["weight"] for name in SOURCES]
        for what in ("steps", "tokens"):
            for arm, facts in seed[f"equal_{what}"]["arms"].items():
                cells = [str(seed["seed"]), what, arm, *(f"{weight:.3f}" for weight in weights[arm])]
                cells += [str(facts["steps"]), str(facts["tokens"]), f"{facts['test_loss']:.4f}"]
                lines.append(f"| {' | '.join(cells)} |")
    for seed in result["seeds"]:
        for what in ("steps", "tokens"):
            pair = seed[f"equal_{what}"]
            difference = f"{pair['difference']:+.4f} ± {pair['difference_se']:.4f}"
            lines.append(f"\nSeed {seed['seed']}, at equal {what}: learned less uniform {difference}.")
        lines.append(f"Seconds: {seed['seconds']}.")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
