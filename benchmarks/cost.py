"""What the bilevel step costs: CPU time a step and peak memory, against the plain host on the same batches.

    python benchmarks/cost.py [--repeats 3] [--out cost.json]

Every run is the real host in a process of its own, one thread, on a Llama of random weights and planted data. Plain and
bilevel runs alternate; a figure is the median over repeats of the median step. CPU time, not wall time, so that other
work on the machine counts less.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

BASE: dict[str, Any] = {
    "base_model": "model",
    "datasets": [{"path": f"data/{name}.jsonl", "type": "alpaca"} for name in ("clean", "wrong", "offtopic")],
    "dataset_prepared_path": "prepared",
    "dataset_num_proc": 1,
    "dataloader_num_workers": 0,
    "val_set_size": 0,
    "sequence_len": 128,
    "sample_packing": True,  # as people run, padded to sequence_len by the host's default
    "micro_batch_size": 16,
    "num_epochs": 5,
    "optimizer": "adamw_torch",
    "lr_scheduler": "constant",
    "learning_rate": 1e-4,
    "logging_steps": 1000,
    "bf16": False,
    "fp16": False,
    "tf32": False,
    "gradient_checkpointing": False,
    "attn_implementation": "sdpa",
    "save_strategy": "no",
    "seed": 1,
}
LORA = {
    "adapter": "lora",
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.0,
    "lora_target_linear": True,
    **dict.fromkeys(("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel"), False),
}
BILEVEL = {
    "plugins": ["scalebio", "benchmarks.cost.TimerPlugin"],
    "scalebio": {
        "validation_datasets": [{"path": "data/validation.jsonl", "type": "alpaca"}],
    },
}
PLAIN = {"plugins": ["benchmarks.cost.TimerPlugin"]}
LISA = {"scalebio": {**BILEVEL["scalebio"], "lisa": {"active_layers": 2, "interval": 5}, "inner": {"device": "cpu"}}}


def _plugin() -> type:
    from axolotl.integrations.base import BasePlugin
    from transformers import TrainerCallback

    class Timer(TrainerCallback):
        """CPU seconds and resident memory after every step."""

        def __init__(self) -> None:
            self.steps: list[tuple[float, int]] = []
            self.began = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.began = time.process_time()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
            self.steps.append((time.process_time() - self.began, resident))

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            Path("timed.json").write_text(json.dumps({"steps": self.steps, "peak": peak}))

    class TimerPlugin(BasePlugin):
        def add_callbacks_pre_trainer(self, cfg: Any, model: Any) -> list[Any]:
            return [Timer()]

    return TimerPlugin


def __getattr__(name: str) -> Any:
    if name == "TimerPlugin":
        return globals().setdefault(name, _plugin())
    raise AttributeError(name)


def make_inputs(folder: Path, hidden: int, layers: int, vocabulary: int) -> None:
    from transformers import LlamaConfig

    from scalebio_plugin.quickstart import planted

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 32,
        max_position_embeddings=512,
        pad_token_id=0,
    )
    planted.build_model(folder / "model", config=config)
    planted.write_data(folder / "data", rows=512, held_out=128)


# The C library gives each tensor back as it is freed, and none of it lies between others that are still in use.
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_ARENA_MAX": "1"}


def run(folder: Path, steps: int, *changes: dict[str, Any], settings: dict[str, str] | None = None) -> dict[str, Any]:
    """One training run; {"seconds": CPU seconds of each step, "resident": bytes after each step, "peak": bytes}.

    Args:
        settings: More of the environment.
    """
    config = {**BASE, "max_steps": steps, "output_dir": "out"}
    for change in changes:
        config |= change
    (folder / "config.yml").write_text(yaml.safe_dump(config))
    root = str(Path(__file__).resolve().parent.parent)
    environment = os.environ | {
        "PYTHONPATH": root,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "AXOLOTL_DO_NOT_TRACK": "1",
        "WANDB_MODE": "offline",
        "TOKENIZERS_PARALLELISM": "false",
        **(settings or {}),
    }
    command = [sys.executable, "-m", "axolotl.cli.train", "config.yml"]
    with (folder / "log.txt").open("w") as log:
        subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, check=True)
    timed = json.loads((folder / "timed.json").read_text())
    return {
        "seconds": [seconds for seconds, _ in timed["steps"]],
        "resident": [resident for _, resident in timed["steps"]],
        "peak": timed["peak"],
    }


def step_time(folder: Path, repeats: int, steps: int) -> dict[str, float]:
    """Median CPU seconds a step: plain, bilevel (three passes of equal batch), and the ratio to three plain steps."""
    plain, bilevel = [], []
    for _ in range(repeats):
        plain.append(statistics.median(run(folder, steps, PLAIN)["seconds"][3:]))
        bilevel.append(statistics.median(run(folder, steps, BILEVEL)["seconds"][3:]))
    ratios = [b / (3 * p) for p, b in zip(plain, bilevel, strict=True)]
    return {
        "plain_seconds": statistics.median(plain),
        "bilevel_seconds": statistics.median(bilevel),
        "bilevel_over_three_plain": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
    }


def probe(folder: Path, steps: int) -> dict[str, float]:
    """What a probe of two validation sets takes, in learning steps: the steps that have one less the others."""
    sets = [{"path": f"data/{name}.jsonl", "type": "alpaca"} for name in ("validation", "offtopic")]
    found = {}
    for name, packing in (("packed", True), ("unpacked", False)):
        block = {"scalebio": {"validation_datasets": sets, "probe_interval": 4}, "sample_packing": packing}
        seconds = run(folder, steps, BILEVEL, block)["seconds"]
        with_one = statistics.median(seconds[4::4])  # those of updates 0, 4, 8, …
        others = statistics.median([second for step, second in enumerate(seconds[4:]) if step % 4])
        found[name] = (with_one - others) / others
    return found


def memory(folder: Path, steps: int) -> dict[str, float]:
    """Peak resident bytes of the process: plain and bilevel, adapters and full."""
    runs = {
        "plain_lora": (PLAIN, LORA),
        "bilevel_lora": (BILEVEL, LORA),
        "plain_full": (PLAIN,),
        "bilevel_full": (BILEVEL,),
        "bilevel_lisa": (BILEVEL, LISA),
    }
    peaks = {name: run(folder, steps, *changes, settings=GIVEN_BACK)["peak"] for name, changes in runs.items()}
    peaks["lora_ratio"] = peaks["bilevel_lora"] / peaks["plain_lora"]
    return peaks


def growth(folder: Path, steps: int) -> dict[str, float]:
    """Resident bytes gained from the first quarter of the steps to the last, as means over the quarters."""
    resident = run(folder, steps, BILEVEL)["resident"]
    quarter = steps // 4
    first, last = statistics.mean(resident[quarter : 2 * quarter]), statistics.mean(resident[-quarter:])
    return {"second_quarter": first, "last_quarter": last, "gained": last - first}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--probe", action="store_true", help="what a probe takes, alone")
    parser.add_argument("--growth-steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("cost.json"))
    arguments = parser.parse_args()
    figures: dict[str, Any] = {
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
    }
    with tempfile.TemporaryDirectory() as name:
        small, large = Path(name) / "small", Path(name) / "large"
        make_inputs(small, hidden=256, layers=8, vocabulary=8192)
        if arguments.probe:
            print(json.dumps(probe(small, arguments.steps)))
            return
        make_inputs(large, hidden=768, layers=12, vocabulary=32000)
        figures["step_time"] = step_time(small, arguments.repeats, arguments.steps)
        print(json.dumps(figures, indent=2), flush=True)
        figures["probe_in_steps"] = probe(small, arguments.steps)
        figures["growth"] = growth(small, arguments.growth_steps)
        figures["memory"] = memory(large, 4)
    print(json.dumps(figures, indent=2))
    arguments.out.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
