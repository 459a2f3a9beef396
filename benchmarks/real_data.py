"""What a learned mixture is worth with a real pretrained model, against what it could be worth.

    python -m benchmarks.real_data --model DIR --data DIR [--work DIR] [--target gpteacher] [--seeds 1 2]
                                   [--arms math uniform ...] [--rows 32] [--learning-steps 400]
                                   [--float32] [--gpu] [--jobs N] [--table]

Gemma 3 270M with LoRA, from `--model`, on the sources and for the targets of benchmarks/small_model.py, with two more
sources of which the truth is known: `again`, the rows of `math` a second time, and `shuffled`, math questions each with
the answer to another. First each source alone, which says how much a mixture can matter here, then uniform weights and
all rows as they are, each of 100 steps; then what learns, in 200 steps, and an ordinary run on that. A step has 8 rows.
The arms: benchmarks/arms.py.

In bfloat16, for processors that have it; `--float32` for those that do not. `--gpu`: on one GPU, all rows of a step in
one micro-batch and `--jobs` runs side by side.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from benchmarks.arms import APPLIED, Config, Problem, Tables, run, run_arms, test, tokenised
from benchmarks.process import ON_A_CPU, on_a_gpu
from benchmarks.small_model import SOURCES, TARGETS, parser_of, rows_of, write_rows

MADE = ("again", "shuffled")
CONFIG: Config = {
    **ON_A_CPU,
    "sequence_len": 96,
    "pad_to_sequence_len": True,  # the host would pad to 128
    "excess_length_strategy": "truncate",
    "adapter": "lora",
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.0,
    "lora_target_linear": True,
    **dict.fromkeys(("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel"), False),  # Triton: CUDA alone
    "micro_batch_size": 4,  # on a CPU
    "max_steps": 100,
    "num_epochs": 9,
    "learning_rate": 5e-4,
    "logging_steps": 1,
}
ALONE = [*SOURCES, "shuffled"]
EVERY = [*SOURCES, *MADE]
ROWS = {**{name: [name] for name in ALONE}, "all-rows": EVERY, "all-rows-and-validation": [*EVERY, "validation"]}
LEARNING: dict[str, Config] = {"new": {}}
GIVEN = {"uniform": (1 / len(EVERY),) * len(EVERY)}
ARMS = [*ALONE, "uniform", "all-rows", "new", f"new{APPLIED}", "all-rows-and-validation"]
PAIRS = [(f"new{APPLIED}", arm) for arm in ("uniform", "all-rows", *ALONE)]
PAIRS += [(arm, "uniform") for arm in ALONE] + [("all-rows-and-validation", f"new{APPLIED}")]


def main() -> None:
    parser = parser_of(__doc__)
    parser.set_defaults(work=Path("real_data").resolve())
    parser.add_argument("--model", type=lambda value: Path(value).resolve(), required=True)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="new-applied after new")
    parser.add_argument("--rows", type=int, default=8, help="of a step")
    parser.add_argument("--learning-steps", type=int, default=200)
    parser.add_argument("--float32", action="store_true", help="for processors without bfloat16")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    arguments = parser.parse_args()
    config = CONFIG | {"base_model": str(arguments.model), "bf16": not arguments.float32}
    if arguments.gpu:
        on_a_gpu()
        config |= {"micro_batch_size": arguments.rows}
    if arguments.rows % config["micro_batch_size"]:
        parser.error(f"--rows must be a multiple of {config['micro_batch_size']} on a CPU")
    config |= {"gradient_accumulation_steps": arguments.rows // config["micro_batch_size"]}
    work = arguments.work / arguments.target
    problem = Problem(work, tuple(EVERY), config, ROWS, LEARNING, GIVEN, arguments.learning_steps)
    if not arguments.table:
        prepare(arguments.data, problem, arguments.target)
        run_arms(problem, arguments.arms, arguments.seeds, arguments.jobs)
    tables = Tables(problem, ARMS, arguments.seeds)
    for table in (tables.results(), tables.pairs(PAIRS), tables.mixtures(), tables.costs()):
        print("\n".join(table), end="\n\n")
    print("\n".join(tables.evidence(TARGETS[arguments.target])))


def prepare(data: Path, problem: Problem, target: str) -> None:
    """Rows, the test rows as the host tokenises and cuts them, and the test of the model before any run."""
    rows = rows_of(data, target)
    write_rows(problem.work, rows | {"again": rows["math"], "shuffled": shuffled(rows["math"])})
    if not (problem.work / "base/test.json").exists():
        tokenised(problem, "test")
        run(test, problem.work / "base", {}, Path(problem.config["base_model"]))


def shuffled(lines: list[str]) -> list[str]:
    """Each question with the answer to another."""
    rows = [json.loads(line) for line in lines]
    answers = [row["output"] for row in rows]
    random.Random(0).shuffle(answers)
    return [json.dumps({**row, "output": answer}) + "\n" for row, answer in zip(rows, answers, strict=True)]


if __name__ == "__main__":
    main()
