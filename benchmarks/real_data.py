"""A learned mixture against the uniform one, on a real model and real instruction data, at equal target tokens.

    python benchmarks/real_data.py --model DIR --data DIR --out DIR [--seeds 0 1] [--steps 80]

For each seed three runs of the real host, all from the base model and with the config of `real_data.yml`:

    learn    the bilevel run; of what it leaves, only mixture.json is used
    uniform  `scalebio: {apply: …}`, an ordinary run, on equal weights
    learned  the same on the learned weights

then the loss on the test rows, a mean over all their response tokens, of the base model and of the last two. `--data`
holds the sources, val_gsm8k.jsonl (what the mixture is tuned for) and test_gsm8k.jsonl (seen by no run), in the alpaca
format. A run whose arm.json is in `--out` is not run again, so a benchmark that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch.nn.functional import cross_entropy

from scalebio_plugin.report import SCHEMA, read_history, read_mixture, weights_table, write_mixture
from scalebio_plugin.report import summarise as summarise_history

SOURCES = {
    "gpt4": "GPT4-LLM-Cleaned.jsonl",
    "gpteacher": "GPTeacher-General-Instruct.jsonl",
    "math": "MathInstruct.jsonl",
}
VALIDATION, TEST = "val_gsm8k.jsonl", "test_gsm8k.jsonl"
TOLERANCE = 0.1  # arms whose expected target tokens differ by more get steps in proportion
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
    base = cached_losses(arguments.model, None, rows, arguments.out / "base")
    seeds = [run_seed(seed, arguments, rows, base) for seed in arguments.seeds]
    result = {
        "steps": arguments.steps,
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
    parser.add_argument("--steps", type=int, default=80, help="optimiser steps of the learning run and the longer arm")
    return parser.parse_args()


def run_seed(seed: int, arguments: argparse.Namespace, rows: Sequence[Any], base: RowLosses) -> dict[str, Any]:
    """All three runs of a seed, and the test losses of the two arms."""
    folder = arguments.out / f"seed{seed}-steps{arguments.steps}"
    learn = run_host(folder / "learn", learning_config(arguments, seed))
    learned_path, uniform_path = folder / "learn/out/scalebio/mixture.json", folder / "uniform.json"
    document = read_mixture(learned_path)
    write_mixture(uniform_path, {"schema": SCHEMA, "weights": dict.fromkeys(SOURCES, 1 / len(SOURCES))})
    paths = {"uniform": uniform_path, "learned": learned_path}
    steps = steps_at_equal_tokens({arm: read_mixture(path) for arm, path in paths.items()}, document, arguments.steps)
    arms, losses = {}, {}
    for arm, path in paths.items():
        facts = run_host(folder / arm, arm_config(arguments, seed, steps[arm], path))
        losses[arm] = cached_losses(arguments.model, folder / arm / "out", rows, folder / arm)
        gain, gain_se = paired_difference(losses[arm], base)
        arms[arm] = {**facts, "steps": steps[arm], "test_loss": token_mean(losses[arm]), "to_base": [gain, gain_se]}
        print(f"seed {seed}, {arm}: {arms[arm]}", flush=True)
    difference, error = paired_difference(losses["learned"], losses["uniform"])
    history = read_history(folder / "learn/out/scalebio/history.jsonl")
    print(weights_table(summarise_history(history, list(SOURCES))), flush=True)
    return {
        "seed": seed,
        "learn": {**learn, "tokens": sum(sum(record["tokens"].values()) for record in history)},
        "sources": document["sources"],
        "arms": arms,
        "difference": difference,
        "difference_se": error,
    }


def base_config(arguments: argparse.Namespace, seed: int, steps: int) -> dict[str, Any]:
    config = yaml.safe_load(Path(__file__).with_suffix(".yml").read_text())
    config["base_model"] = str(arguments.model)
    config["datasets"] = [entry(arguments.data / file) for file in SOURCES.values()]
    config["dataset_prepared_path"] = str(arguments.out / "prepared")
    return {**config, "seed": seed, "max_steps": steps}


def learning_config(arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    config = base_config(arguments, seed, arguments.steps)
    config["scalebio"]["validation_datasets"] = [entry(arguments.data / VALIDATION)]
    return config


def arm_config(arguments: argparse.Namespace, seed: int, steps: int, mixture: Path) -> dict[str, Any]:
    config = base_config(arguments, seed, steps)
    config["scalebio"] = {"names": list(SOURCES), "apply": str(mixture)}
    return config


def entry(path: Path) -> dict[str, str]:
    return {"path": str(path), "type": "alpaca", "split": "train"}


def steps_at_equal_tokens(
    mixtures: Mapping[str, Mapping[str, Any]], learned: Mapping[str, Any], steps: int
) -> dict[str, int]:
    """Steps of each arm: all `steps`, or fewer for the arm of longer responses if they differ by over `TOLERANCE`.

    Sequences of source i are drawn in proportion to p_i / length_i, so one holds 1 / Σ (p_i / length_i) target tokens
    on average.
    """
    length = {name: source["tokens"] / source["examples"] for name, source in learned["sources"].items()}
    expected = {
        arm: 1 / math.fsum(weight / length[name] for name, weight in mixture["weights"].items())
        for arm, mixture in mixtures.items()
    }
    shortest = min(expected.values())
    if max(expected.values()) <= shortest * (1 + TOLERANCE):
        return dict.fromkeys(mixtures, steps)
    return {arm: max(1, round(steps * shortest / tokens)) for arm, tokens in expected.items()}


def run_host(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Train in a process of the host. The target tokens are those the host logged."""
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
    result = {"seconds": round(seconds), "target_tokens": int(counts[-1]) if counts else None}
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


def cached_losses(model: Path, adapter: Path | None, rows: Sequence[Any], folder: Path) -> RowLosses:
    path = folder / "test_losses.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        sums, tokens = row_losses(model, adapter, rows)
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
    tokens = first[1]
    difference = token_mean(first) - token_mean(second)
    residual = first[0] - second[0] - difference * tokens  # of a ratio estimate
    return difference, float(np.sqrt(len(tokens) / (len(tokens) - 1) * (residual**2).sum()) / tokens.sum())


def table_of(result: Mapping[str, Any]) -> str:
    """The result in Markdown."""
    lines = [f"| seed | arm | {' | '.join(SOURCES)} | steps | target tokens | test loss | seconds |"]
    lines.append("|---" * (len(SOURCES) + 6) + "|")
    lines.append(f"| – | base model |{' – |' * (len(SOURCES) + 2)} {result['base']:.4f} | – |")
    for seed in result["seeds"]:
        learned = [seed["sources"][name]["weight"] for name in SOURCES]
        for arm, weights in (("uniform", [1 / len(SOURCES)] * len(SOURCES)), ("learned", learned)):
            facts = seed["arms"][arm]
            cells = [str(seed["seed"]), arm, *(f"{weight:.3f}" for weight in weights), str(facts["steps"])]
            cells += [str(facts["target_tokens"]), f"{facts['test_loss']:.4f}", str(facts["seconds"])]
            lines.append(f"| {' | '.join(cells)} |")
    for seed in result["seeds"]:
        lines.append(
            f"\nSeed {seed['seed']}: learned less uniform {seed['difference']:+.4f} ± {seed['difference_se']:.4f}; "
            f"learning took {seed['learn']['seconds']} s."
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
