"""The denoising benchmark: which of ten sources hold real answers, and does a run on the learned mixture gain by it.

    python -m benchmarks.denoising --data ../shared/data/alpaca/alpaca.jsonl

Ten sources of 500 Alpaca questions each; in 0, 20, 40, 60, 80 and five times 100% of them the answer is replaced by
".". A small Llama, pretrained on other rows, learns the mixture for clean validation data; ordinary runs then start
from the same pretrained model, on what was learned and on equal weights. Every run is a run of the host.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.answers import loss_of_answers
from benchmarks.apart import layers_drawn_apart
from benchmarks.process import ON_A_CPU, in_process
from scalebio_plugin.quickstart import planted
from scalebio_plugin.report.history import read_history, series
from scalebio_plugin.report.mixture_file import read_mixture

Row = dict[str, str]

RATES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0, 1.0, 1.0)
NAMES = [f"s{i}_noise{round(100 * rate):03d}" for i, rate in enumerate(RATES)]
PURE_NOISE = [name for name in NAMES if name.endswith("noise100")]
ROWS, PRETRAINING, VALIDATION, TEST = 500, 600, 150, 250
LONGEST_PROMPT, LONGEST_ROW = 120, 130  # characters; longer questions are left out, answers cut to what is left
STEPS, BATCH, PRETRAINING_STEPS = 240, 40, 300
FORMAT = {
    "field_instruction": "instruction",
    "field_input": "input",
    "field_output": "output",
    "format": "{instruction}\n{input}\n->\n",
    "no_input_format": "{instruction}\n->\n",
}
BEFORE = {"sampling": "host", "mixture_init": "uniform"}
# What learns: the paper's way, the defaults of the first version, and those of today.
LEARNING: dict[str, dict[str, Any]] = {
    "paper": {
        **BEFORE,
        **{"mixture_update": "adam", "mixture_learning_rate": 0.01, "penalty": 100.0, "loss_unit": "sequence"},
    },
    "old default": {**BEFORE, "mixture_update": "exponentiated_gradient"},
    "default": {},
    "with a prior": {"prior": {}},
}
CONTROL, CONTROL_STEPS = {"penalty": math.inf}, 40  # no validation pull: nothing can be learned
# The paper's way with LISA: the same layers in both sets, as here, or drawn apart, as its authors' code does.
LISA = {**LEARNING["paper"], "lisa": {"active_layers": 2, "interval": 20, "train_embeddings": True}}


def write_data(alpaca: Path, directory: Path, seed: int) -> dict[str, list[Row]]:
    """Write the splits as `NAME.jsonl`: the ten sources, pretraining, validation and test. No row is in two of them."""
    rng = random.Random(seed)
    rows = [_cut(json.loads(line)) for line in alpaca.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if len(row["instruction"] + row["input"]) <= LONGEST_PROMPT and row["output"]]
    sizes = [ROWS] * len(NAMES) + [PRETRAINING, VALIDATION, TEST]
    ends = np.cumsum([0, *sizes]).tolist()
    rows = rng.sample(rows, ends[-1])
    splits = {
        name: rows[start:end]
        for name, (start, end) in zip([*NAMES, "pretraining", "validation", "test"], pairwise(ends), strict=True)
    }
    for name, rate in zip(NAMES, RATES, strict=True):
        noisy = round(rate * ROWS)
        splits[name] = [{**row, "output": "."} for row in splits[name][:noisy]] + splits[name][noisy:]
    directory.mkdir(parents=True, exist_ok=True)
    for name, these in splits.items():
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in these))
    return splits


def _cut(row: Row) -> Row:
    """The row with as much of its answer as LONGEST_ROW leaves, cut between words."""
    answer, room = row["output"].strip(), max(0, LONGEST_ROW - len(row["instruction"] + row["input"]))
    if len(answer) > room:
        answer = answer[: room + 1].rpartition(" ")[0]
    return {**row, "output": answer}


def prompt_of(row: Row) -> str:
    return FORMAT["format" if row["input"] else "no_input_format"].format(**row)


def asked(rows: Sequence[Row]) -> list[tuple[str, str]]:
    return [(prompt_of(row), row["output"]) for row in rows]


def build_model(directory: Path, rows: Iterable[Row], seed: int) -> None:
    """A Llama of 0.23M random parameters, and a tokenizer of 1,024 tokens made from `rows`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    texts = [prompt_of(row) + row["output"] for row in rows]
    tokenizer = planted.build_tokenizer().train_new_from_iterator(texts, 1024)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def host_config(sources: Sequence[str], **changes: Any) -> dict[str, Any]:
    return {
        "datasets": [{"path": f"data/{name}.jsonl", "type": FORMAT} for name in sources],
        **ON_A_CPU,
        "sequence_len": 64,
        "micro_batch_size": BATCH,
        "gradient_accumulation_steps": 1,
        "max_steps": STEPS,
        "num_epochs": 1,
        "learning_rate": 3e-4,
        "logging_steps": 60,
        **changes,
    }


def launch(directory: Path, name: str, config: dict[str, Any], *, apart: bool = False) -> Path:
    """Train as `axolotl train` does, in a process of its own; returns the output folder.

    Args:
        apart: LISA draws the layers of u and w apart.
    """
    (directory / f"{name}.yml").write_text(yaml.safe_dump({**config, "output_dir": name}, sort_keys=False))
    in_process(train, directory, f"{name}.log", name, apart)
    return directory / name


def train(name: str, apart: bool = False) -> None:
    """The config of that name in the working directory."""
    from axolotl.cli.train import do_cli

    with layers_drawn_apart() if apart else nullcontext():
        do_cli(config=f"{name}.yml")


def prepare(alpaca: Path, directory: Path, seed: int) -> dict[str, list[Row]]:
    """Data and pretrained model of one seed, in `directory`."""
    splits = write_data(alpaca, directory / "data", seed)
    if not (directory / "base").exists():
        build_model(directory / "random", splits["pretraining"], seed)
        keys = {"train_on_inputs": True, "max_steps": PRETRAINING_STEPS, "num_epochs": 99, "learning_rate": 2e-3}
        launch(directory, "base", host_config(["pretraining"], base_model="random", seed=seed, **keys))
    return splits


def learn(
    directory: Path, name: str, seed: int, scalebio: Mapping[str, Any], steps: int = STEPS, *, apart: bool = False
) -> dict[str, Any]:
    """One run that learns the mixture from the pretrained model."""
    block = {"validation_datasets": [{"path": "data/validation.jsonl", "type": FORMAT}], **scalebio}
    config = host_config(NAMES, base_model="base", plugins=["scalebio"], scalebio=block, seed=seed, num_epochs=9)
    return learned(launch(directory, name, {**config, "max_steps": steps}, apart=apart))


def learned(out: Path) -> dict[str, Any]:
    """What there is to say of a run that has learned.

    Returns:
        mass_100, mass: Weight on the five sources of pure noise after 100 steps (or all, if fewer), and at the end.
        signal: Mean over sources of |mean| / standard deviation of the centred gap over steps.
        largest_gap: Of any source at any step, centred, in nats.
        weights: At the end. mixture: Path of mixture.json.
    """
    history = read_history(out / "scalebio" / "history.jsonl")
    weights, gap = series(history, "weights", NAMES), series(history, "gap", NAMES)
    gap = gap - (weights * gap).sum(axis=1, keepdims=True)
    noise = [NAMES.index(pure) for pure in PURE_NOISE]
    deviation = gap.std(axis=0)
    return {
        "mass_100": float(weights[:100][-1, noise].sum()),
        "mass": float(weights[-1, noise].sum()),
        "signal": float((np.abs(gap.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)).mean()),
        "largest_gap": float(np.abs(gap).max()),
        "weights": weights[-1].tolist(),
        "mixture": str(out / "scalebio" / "mixture.json"),
    }


def apply(directory: Path, name: str, mixture: str, seed: int, test: Sequence[Row]) -> float:
    """Test loss after an ordinary run, as long as learning was, on the weights of a mixture.json."""
    block = {"apply": mixture}
    config = host_config(NAMES, base_model="base", plugins=["scalebio"], scalebio=block, seed=seed, num_epochs=9)
    return loss_of_answers(launch(directory, name, config), asked(test))


def baselines(mixture: str, directory: Path) -> dict[str, str]:
    """Paths of more mixture.json by name.

    1/10 for every source; its share of the tokens, all rows alike; its share of the rows with real answers: the best
    that is known.
    """
    document = read_mixture(mixture)
    tokens = {name: source["tokens"] for name, source in document["sources"].items()}
    weights = {
        "equal weights": dict.fromkeys(tokens, 1 / len(tokens)),
        "all rows alike": {name: count / sum(tokens.values()) for name, count in tokens.items()},
        "real answers": {name: (1 - rate) / (len(RATES) - sum(RATES)) for name, rate in zip(NAMES, RATES, strict=True)},
    }
    paths = {name: directory / f"{name.replace(' ', '-')}.json" for name in weights}
    for name, path in paths.items():
        path.write_text(json.dumps({**document, "weights": weights[name]}))
    return {name: str(path) for name, path in paths.items()}


def measure(alpaca: Path, directory: Path, seed: int, arms: Sequence[str]) -> dict[str, Any]:
    """Of one seed: what learns, the control, and ordinary runs on those mixtures and on three others."""
    test = prepare(alpaca, directory, seed)["test"]
    results: dict[str, Any] = {"pretrained": loss_of_answers(directory / "base", asked(test)), "phase 2": {}}
    for name in arms:
        results[name] = learn(directory, name.replace(" ", "-"), seed, LEARNING[name])
        print(seed, name, json.dumps(results[name]), flush=True)
    results["control"] = learn(directory, "control", seed, CONTROL, CONTROL_STEPS)
    mixtures = {name: results[name]["mixture"] for name in arms}
    mixtures |= baselines(results[arms[-1]]["mixture"], directory)
    for name, mixture in mixtures.items():
        results["phase 2"][name] = apply(directory, f"phase-2-{name.replace(' ', '-')}", mixture, seed, test)
        print(seed, "phase 2", name, results["phase 2"][name], flush=True)
    return results


def measure_lisa(alpaca: Path, directory: Path, seed: int) -> dict[str, Any]:
    """LISA on one seed: the layers of both sets the same, and drawn apart."""
    prepare(alpaca, directory, seed)
    results = {name: learn(directory, name, seed, LISA, apart=name == "apart") for name in ("same", "apart")}
    print(seed, json.dumps(results), flush=True)
    return results


def lisa_table(results: Mapping[int, Mapping[str, Any]]) -> str:
    lines = [f"| seed | layers | mass at 100 | mass at {STEPS} | largest weight | SNR |", "|---|---|---|---|---|---|"]
    for seed, of in results.items():
        for name, run in of.items():
            numbers = [run["mass_100"], run["mass"], max(run["weights"]), run["signal"]]
            lines.append("| " + " | ".join([str(seed), name, *(f"{number:.3g}" for number in numbers)]) + " |")
    return "\n".join(lines)


def table(results: Mapping[int, Mapping[str, Any]]) -> str:
    """The results as Markdown."""
    head = ["seed", "λ", "mass at 100", f"mass at {STEPS}", "largest weight", "smallest", "SNR", "phase 2"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for seed, of in results.items():
        for name in [name for name in (*LEARNING, "control") if name in of]:
            run, loss = of[name], of["phase 2"].get(name)
            numbers = [run["mass_100"], run["mass"], max(run["weights"]), min(run["weights"]), run["signal"]]
            cells = [str(seed), name, *(f"{number:.3g}" for number in numbers), f"{loss:.4f}" if loss else "-"]
            lines.append("| " + " | ".join(cells) + " |")
        for name in [name for name in of["phase 2"] if name not in LEARNING]:
            lines.append("| " + " | ".join([str(seed), name, *"-----", f"{of['phase 2'][name]:.4f}"]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="alpaca.jsonl: instruction, input, output")
    parser.add_argument("--work", type=Path, default=Path("denoising"), help="folder for data, models and runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one that is done is not run again")
    parser.add_argument("--arms", nargs="+", choices=LEARNING, default=list(LEARNING), help="what learns")
    parser.add_argument("--lisa", action="store_true", help="LISA alone, its layers the same in both sets and apart")
    arguments = parser.parse_args()
    file, of_seed, as_text = (
        ("lisa.json", measure_lisa, lisa_table)
        if arguments.lisa
        else ("results.json", partial(measure, arms=arguments.arms), table)
    )
    results = {}
    for seed in arguments.seeds:
        directory = arguments.work.resolve() / f"seed{seed}"
        done = directory / file
        if not done.is_file():
            done.write_text(json.dumps(of_seed(arguments.data.resolve(), directory, seed), indent=1))
        results[seed] = json.loads(done.read_text())
    print(as_text(results))


if __name__ == "__main__":
    main()
