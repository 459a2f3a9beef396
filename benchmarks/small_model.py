"""What a learned mixture is worth on real data, with a model so small that mixtures differ by more than their noise.

    python -m benchmarks.small_model --data DIR [--work DIR] [--target gpteacher] [--packing] [--seeds 1 2]
                                     [--arms uniform new ...] [--grid] [--table]

A Llama of 1.4M parameters with a vocabulary of its own is pretrained on Alpaca, once. From it starts every arm of every
seed (benchmarks/arms.py): ordinary runs on given mixtures, runs that learn the mixture of three sources for GSM8K-style
validation rows, and ordinary runs on what those have learned, all of as many steps.

With `--target gpteacher` the rows to tune for and those to test on are GPTeacher's own, held out of that source: thus
another source should win. `--packing` fills sequences of 256 tokens with rows, which are cut there and not at 128; the
test is the same. `--grid` runs every mixture in quarters in the place of the arms: what a search would take.

`--data` holds instruction/ (the sources, val_gsm8k.jsonl, test_gsm8k.jsonl) and alpaca/alpaca.jsonl.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from benchmarks.arms import APPLIED, FORMAT, Config, Problem, Tables, run, run_arms, tokenised, train
from benchmarks.denoising import prompt_of
from benchmarks.process import ON_A_CPU

SOURCES = {
    "gpt4": "GPT4-LLM-Cleaned.jsonl",
    "gpteacher": "GPTeacher-General-Instruct.jsonl",
    "math": "MathInstruct.jsonl",
}
VALIDATION, TEST = "val_gsm8k.jsonl", "test_gsm8k.jsonl"
TARGETS = {"gsm8k": "math", "gpteacher": "gpteacher"}  # and the source that is like it
HELD_OUT = {"validation": 150, "test": 200}  # rows of that source, from its end, where there are no others like them

LENGTH, VOCABULARY = 128, 4096
MODEL = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4}
PRETRAINING: Config = {"max_steps": 250, "train_on_inputs": True, "learning_rate": 2e-3, "sequence_len": 96, "seed": 0}
CONFIG: Config = {
    **ON_A_CPU,
    "sequence_len": LENGTH,
    "excess_length_strategy": "truncate",
    "micro_batch_size": 8,
    "gradient_accumulation_steps": 2,
    "max_steps": 200,
    "num_epochs": 9,
    "learning_rate": 1e-3,
    "logging_steps": 1,
}
PACKED: Config = {"sample_packing": True, "sequence_len": 256, "micro_batch_size": 3, "gradient_accumulation_steps": 2}
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
GIVEN = {"uniform": (1 / 3, 1 / 3, 1 / 3), **GRID}
ROWS = {"all-rows": list(SOURCES), **{name: [name] for name in SOURCES}}
ROWS["all-rows-and-validation"] = [*SOURCES, "validation"]
ARMS = ["uniform", "new", f"new{APPLIED}", *SOURCES, "old", f"old{APPLIED}", "all-rows"]
ARMS += ["prior", f"prior{APPLIED}", "learn-0.4", "all-rows-and-validation", "until-converged", "keep-inner"]
PAIRS = [("new-applied", arm) for arm in ("uniform", *SOURCES, "all-rows", "old-applied")]
PAIRS += [("new", "old"), ("all-rows-and-validation", "new-applied"), ("new", "all-rows-and-validation")]


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="each -applied after what it applies")
    parser.add_argument("--grid", action="store_true", help="every mixture in quarters in the place of the arms")
    parser.add_argument("--packing", action="store_true", help="with `sample_packing: true`")
    arguments = parser.parse_args()
    problem = problem_of(arguments.work, arguments.target, arguments.packing)
    if not arguments.table:
        prepare(arguments.data, problem, arguments.target)
        run_arms(problem, list(GRID) if arguments.grid else arguments.arms, arguments.seeds)
    tables = Tables(problem, ARMS, arguments.seeds)
    for table in (tables.results(), tables.pairs(PAIRS), tables.mixtures(), tables.costs(), tables.ranked(GRID)):
        print("\n".join(table), end="\n\n")
    print("\n".join(tables.evidence(TARGETS[arguments.target])))


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """With the options of all that runs on this problem."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=lambda value: Path(value).resolve(), required=True)
    parser.add_argument("--work", type=lambda value: Path(value).resolve(), default=Path("small_model").resolve())
    parser.add_argument("--target", choices=TARGETS, default="gsm8k")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--table", action="store_true", help="run nothing, print the tables of what is there")
    return parser


def problem_of(work: Path, target: str, packing: bool = False) -> Problem:
    parts = [target] * (target != "gsm8k") + ["packed"] * packing
    return Problem(work.joinpath(*parts), tuple(SOURCES), CONFIG | (PACKED if packing else {}), ROWS, LEARNING, GIVEN)


def prepare(data: Path, problem: Problem, target: str) -> None:
    """Rows, tokenizer, pretrained model, and the test rows as the host tokenises and cuts them."""
    work = problem.work
    write_rows(work, rows_of(data, target))
    if not (work / "random").exists():
        build_model(data, work / "random")
    if not (work / "base/test.json").exists():
        plain = Problem(work, tuple(SOURCES), {**CONFIG, "base_model": str(work / "random")}, ROWS, LEARNING)
        tokenised(plain, "test")
        alpaca = [{"path": str(data / "alpaca/alpaca.jsonl"), "type": FORMAT}]
        run(train, work / "base", {**plain.ordinary([]), "datasets": alpaca, **PRETRAINING})


def write_rows(work: Path, rows: dict[str, list[str]]) -> None:
    (work / "rows").mkdir(parents=True, exist_ok=True)
    for name, lines in rows.items():
        (work / "rows" / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


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


if __name__ == "__main__":
    main()
