"""What it takes to prepare many small sources, with the plugin and without.

    python -m benchmarks.preparation --work WORK [--sources 16 64 200] [--rows 40]

Of each number of sources a config of as many files of Alpaca rows, packed, with a validation split, is prepared by the
host alone and with the plugin, each in a process of its own: from nothing, and once more from its prepared cache.
Seconds, without the imports.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml


def make_inputs(folder: Path, sources: int, rows: int) -> None:
    from scalebio_plugin.quickstart import planted

    if (folder / "data").exists():
        return
    planted.build_model(folder / "model", hidden=32, layers=2, heads=2)
    (folder / "data").mkdir()
    rng = random.Random(0)
    for index in range(sources):
        made = [planted.clean_row(question, rng) for question in rng.sample(planted.QUESTIONS, rows)]
        (folder / f"data/{index}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))


def config_of(sources: int, *, plugin: bool) -> dict[str, Any]:
    return {
        "base_model": "model",
        "datasets": [{"path": f"data/{index}.jsonl", "type": "alpaca"} for index in range(sources)],
        "plugins": ["scalebio"] if plugin else [],
        "dataset_prepared_path": "prepared",
        "output_dir": "out",
        "val_set_size": 0.1,
        "sequence_len": 256,
        "sample_packing": True,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-3,
        "max_steps": 2,
        "bf16": False,
        "seed": 1,
    }


def prepare(config: dict[str, Any]) -> dict[str, float]:
    """In the folder of the inputs: {from nothing, cached: seconds}, and the rows that came of it."""
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets
    from axolotl.integrations.base import PluginManager

    shutil.rmtree("prepared", ignore_errors=True)
    Path("config.yml").write_text(yaml.safe_dump(config))
    found = {}
    for name in ("nothing", "cached"):
        cfg = load_cfg("config.yml")
        manager = PluginManager.get_instance()
        began = time.monotonic()
        meta = (manager.load_datasets(cfg, preprocess=False) if cfg.plugins else None) or load_datasets(cfg=cfg)
        found[name] = time.monotonic() - began
        found["rows"] = len(meta.train_dataset)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--sources", type=int, nargs="+", default=[16, 64, 200])
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--only", help=argparse.SUPPRESS)  # one preparation, in this process
    arguments = parser.parse_args()
    if arguments.only:
        os.chdir(arguments.work)
        print("FOUND", json.dumps(prepare(config_of(arguments.sources[0], plugin=arguments.only == "plugin"))))
        return
    print("| sources | host | plugin | ratio | host, cached | plugin, cached |\n|---|---|---|---|---|---|")
    for sources in arguments.sources:
        folder = arguments.work / str(sources)
        make_inputs(folder, sources, arguments.rows)
        host, plugin = (measured(folder, sources, only) for only in ("host", "plugin"))
        assert host["rows"] == plugin["rows"], (host, plugin)
        seconds = [host["nothing"], plugin["nothing"], plugin["nothing"] / host["nothing"]]
        cells = [*seconds, host["cached"], plugin["cached"]]
        print(f"| {sources} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |", flush=True)


def measured(folder: Path, sources: int, only: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.preparation", "--work", str(folder), "--only", only]
    done = subprocess.run([*command, "--sources", str(sources)], capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    if not lines:
        raise RuntimeError(done.stderr[-3000:])
    return dict(json.loads(lines[0].removeprefix("FOUND ")))


if __name__ == "__main__":
    main()
