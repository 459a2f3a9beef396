"""The whole way of a user, from a config without scalebio to a run on what was learned: docs/walkthrough.md.

python -m tests.runs.walkthrough     # some minutes; writes docs/walkthrough.md anew
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scalebio_plugin.quickstart import planted

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "walkthrough.md"
CONFIG = """\
# Three datasets, each of which has counted as much as it has tokens.
base_model: model

datasets:
  - path: data/clean.jsonl
    type: alpaca
  - path: data/wrong.jsonl     # of the old project
    type: alpaca
  - path: data/offtopic.jsonl
    type: alpaca
test_datasets:
  - {path: data/test.jsonl, type: alpaca, split: train}
dataset_prepared_path: prepared
output_dir: out

sequence_len: 128
micro_batch_size: 16
max_steps: 80
optimizer: adamw_torch
learning_rate: 0.003
lr_scheduler: constant

bf16: false                    # a CPU
attn_implementation: sdpa
logging_steps: 20
save_strategy: "no"
seed: 42
"""


@dataclass(frozen=True)
class Step:
    """A command, and what there is to say before it.

    Attributes:
        since: Of its output the page has what follows the first line with this; all of it by default.
    """

    said: str
    command: str
    since: str = ""


STEPS = [
    Step(
        "The config gets the plugin and a block. `data/validation.jsonl` has some rows like those the model is wanted "
        "for; they are in none of the datasets, and `test_datasets` has others.",
        "scalebio init config.yml --validation data/validation.jsonl",
    ),
    Step("Would plugin and host take it?", "scalebio check config.yml"),
    Step("Does it fit?", "scalebio estimate config.yml --gpu-memory 8"),
    Step("The launch line is the old one. This is the end of the log:", "axolotl train config.yml", "learned mixture"),
    Step(
        "The same table again, whenever it is wanted. (A gap is of the late updates, the weight of all of them; a "
        "source with a star goes along with those that it is not told from: "
        "[the table of weights](report.md#the-table-of-weights).)",
        "scalebio show out",
    ),
    Step("Picture and page, as the run has left them, drawn again:", "scalebio report out"),
    Step(
        "Does it beat doing nothing? The mixture beside the data as they are, each trained as long, on rows that "
        "nothing was tuned for. (One seed and few steps, for this page; `--seeds 3` tells more. `run` has trained on "
        "the validation rows, too: [how to read it](report.md#does-it-beat-doing-nothing).)",
        "scalebio compare config.yml --seeds 1 --steps 40 --arms learned proportional",
    ),
    Step(
        "The run of the comparison was half as long. Beside the first one:", "scalebio show out config-compare/run-42"
    ),
    Step(
        "The config of the ordinary run on what was learned ([what a weight means](weights.md)):",
        "scalebio apply config.yml out",
    ),
    Step(
        "And that run, at the price of any other:", "axolotl train config.apply.yml", "an ordinary run on the mixture"
    ),
]
_BEFORE = re.compile(r"^\[\d{4}-[^\]]*\] (\[\w+\] )+(\[[\w.]+\] )?")  # of a line of the log
_LOGGED = re.compile(r"^(\[\d{4}-|\{'|\s*$)")


def prepare(folder: Path, **model: int) -> None:
    """What a user has: a model (see `build_model`), data, and a config that trains."""
    planted.build_model(folder / "model", **model)
    planted.write_data(folder / "data")
    (folder / "config.yml").write_text(CONFIG)


def run(step: Step, folder: Path, python: Path = Path(sys.executable)) -> str:
    """What a command prints, typed in that folder; the commands are those beside `python`.

    Raises:
        RuntimeError: It failed.
    """
    beside = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    quiet = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "AXOLOTL_DO_NOT_TRACK": "1"}
    environment = {**os.environ, **quiet, "PATH": beside, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(shlex.split(step.command), cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            f"{step.command}: exit status {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        )
    return done.stdout


def excerpt(step: Step, output: str) -> list[str]:
    """Of what a command printed the lines for the page."""
    lines = output.splitlines()
    if not step.since:
        return [line for line in lines if not _BEFORE.match(line)]
    first = next(i for i, line in enumerate(lines) if step.since in line)
    kept = [_BEFORE.sub("", lines[first])]
    for line in lines[first + 1 :]:
        if _LOGGED.match(line):
            break
        kept.append(line)
    return kept


def page(outputs: list[str]) -> Iterator[str]:
    """Its lines, from what each step printed."""
    yield from (
        "# From a config to a run on the learned mixture",
        "",
        "One dataset is right, one answers at random, one is about something else; the config says nothing of that. "
        "All of it runs on a CPU, as `python -m tests.runs.walkthrough` did to write this page. With a config of your "
        "own: [start here](start.md).",
        "",
        "```yaml",
        *CONFIG.splitlines(),
        "```",
    )
    for step, output in zip(STEPS, outputs, strict=True):
        yield from ("", step.said, "", "```console", f"$ {step.command}", *excerpt(step, output), "```")


def commands_of(text: str) -> list[str]:
    return re.findall(r"^\$ (.*)$", text, re.MULTILINE)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        outputs = [run(step, Path(folder)) for step in STEPS]
    PAGE.write_text("\n".join(page(outputs)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
