"""What is found of training rows that stand in a validation set, what is missed, and what looking for them takes.

    python -m benchmarks.leaks --data DATA --work WORK [--rows 100000]

Prints the tables of benchmarks/leaks.md. `--data`: instruction sets, files of Alpaca rows, those whose names begin with
`val_` or `test_` being what others are tuned for or tested on. Tokens are those of a byte-level BPE of 32,000 that is
trained on all of them.

1. Each set as a validation set, looked for in each other one: rows found, and (`--show`) the pairs themselves.
2. Rows of two sets planted in another one, changed in ways that leave the text what it is: how many are found.
3. CPU time: of looking for validation sets in `--rows` rows of made-up text and in the largest set, and of the host's
   tokenising of the same rows.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import resource
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from scalebio_plugin.data.leaks import Found, Search
from scalebio_plugin.data.tags import tagged

Row = dict[str, str]
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{asked}\n\n### Response:\n{output}"
)
CHAT = "<|user|>\n{asked}\n<|assistant|>\n{output}\n"
PLANTED = 100


def text_of(row: Row, template: str = ALPACA) -> str:
    return template.format(asked=f"{row['instruction']}\n{row['input']}".strip(), output=row["output"])


def read(data: Path) -> dict[str, list[Row]]:
    return {path.stem: [json.loads(line) for line in path.open()] for path in sorted(data.rglob("*.jsonl"))}


def trained_tokenizer(sets: Mapping[str, list[Row]], folder: Path) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=32_000, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator((text_of(row) for rows in sets.values() for row in rows), trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    made.save_pretrained(folder)
    return made


class Tokenised:
    """Sets of texts as sets of rows of tokens, and what is found of one in another."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self.tokenizer = tokenizer

    def rows(self, texts: Sequence[str]) -> Dataset:
        return Dataset.from_dict({"input_ids": self.tokenizer(list(texts))["input_ids"]})

    def found(self, wanted: Dataset, rows: Dataset) -> tuple[Search, Found]:
        search = Search(tagged(rows, 0), {"validation": wanted}, self.tokenizer)
        return search, search.found()


# ---- 1. real sources


def false_alarms(sets: Mapping[str, list[Row]], tokenised: Tokenised, show: int) -> Iterator[str]:
    rows = {name: tokenised.rows([text_of(row) for row in members]) for name, members in sets.items()}
    yield "| validation set | rows | compared | " + " | ".join(f"in {name}" for name in sets) + " |"
    yield "|---|---|---|" + "---|" * len(sets)
    pairs = []
    for name, wanted in rows.items():
        cells = []
        for other, of in rows.items():
            if other == name:
                cells.append("–")
                continue
            search, found = tokenised.found(wanted, of)
            cells.append(str(len(np.unique(found.row))))
            pairs += [
                (name, sets[name][v], other, sets[other][t]) for t, v in zip(found.row, found.wanted, strict=True)
            ]
        yield f"| {name} | {len(wanted)} | {search.index.compared.sum()} | " + " | ".join(cells) + " |"
    for name, theirs, other, ours in random.Random(0).sample(pairs, min(show, len(pairs))):
        yield f"{name}: {_line(theirs)}\n{other}: {_line(ours)}\n"


def _line(row: Row) -> str:
    return " ".join(text_of(row, "{asked} => {output}").split())[:300]


# ---- 2. planted copies


def changed_words(number: int) -> Callable[[Row, random.Random], str]:
    def change(row: Row, rng: random.Random) -> str:
        words = row["output"].split(" ")
        for at in rng.sample(range(len(words)), min(number, len(words))):
            words[at] = "however"
        return text_of({**row, "output": " ".join(words)})

    return change


def part(begin: float, end: float) -> Callable[[Row, random.Random], str]:
    def cut(row: Row, rng: random.Random) -> str:
        words = f"{row['instruction']} {row['input']} {row['output']}".split(" ")
        return text_of({"instruction": " ".join(words[int(begin * len(words)) : int(end * len(words))]), **_EMPTY})

    return cut


_EMPTY = {"input": "", "output": ""}
CHANGES: dict[str, Callable[[Row, random.Random], str]] = {
    "as it is": lambda row, rng: text_of(row),
    "another template": lambda row, rng: text_of(row, CHAT),
    "capitals, no signs": lambda row, rng: "".join(one for one in text_of(row).upper() if one.isalnum() or one == " "),
    "a word of the answer changed": changed_words(1),
    "three words of the answer changed": changed_words(3),
    "first half": part(0, 0.5),
    "second half, another template": lambda row, rng: part(0.5, 1)(row, rng).replace(ALPACA[:100], ""),
    "first quarter": part(0, 0.25),
    "its prompt, with the answer of another row": lambda row, rng: text_of({**row, "output": row["another"]}),
}


def planted(sets: Mapping[str, list[Row]], names: Sequence[str], host: str, tokenised: Tokenised) -> Iterator[str]:
    yield "| change | " + " | ".join(names) + " |\n|---|" + "---|" * len(names)
    for kind, change in CHANGES.items():
        yield f"| {kind} | " + " | ".join(_recall(sets[name], sets[host], change, tokenised) for name in names) + " |"


def _recall(
    wanted: list[Row], hosts: list[Row], change: Callable[[Row, random.Random], str], tokenised: Tokenised
) -> str:
    """Of the planted rows how many were found, and how many rows that were not planted."""
    rng = random.Random(0)
    copied, others = wanted[:PLANTED], reversed(hosts)
    copies = [change({**row, "another": next(others)["output"]}, rng) for row in copied]
    own = [text_of(row) for row in hosts[:1000]]
    validation = tokenised.rows([text_of(row) for row in wanted])
    before = {*tokenised.found(validation, tokenised.rows(own))[1].row.tolist()}
    _, found = tokenised.found(validation, tokenised.rows([*own, *copies]))
    right = {(len(own) + at, at) for at in range(len(copied))}
    pairs = {*zip(found.row.tolist(), found.wanted.tolist(), strict=True)}
    more = len({row for row, _ in pairs - right} - before)
    return f"{len(pairs & right)} of {len(copied)}" + (f", {more} others" if more else "")


# ---- 3. time


def cpu_seconds() -> float:
    used = [resource.getrusage(of) for of in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(of.ru_utime + of.ru_stime for of in used)


def made_up(number: int) -> list[Row]:
    """Rows as long as Alpaca's, of 20,000 words drawn as often as words of a language are."""
    rng = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    words = np.array(["".join(rng.choice(letters, rng.integers(2, 10))) for _ in range(20_000)])
    odds = 1 / np.arange(2, len(words) + 2)
    drawn = iter(words[rng.choice(len(words), number * 75, p=odds / odds.sum())].tolist())
    return [
        {
            "instruction": " ".join(itertools.islice(drawn, 15)),
            "input": "",
            "output": " ".join(itertools.islice(drawn, 60)),
        }
        for _ in range(number)
    ]


def prepared(rows: list[Row], name: str, folder: Path) -> tuple[Dataset, float]:
    """The rows as the host makes them, and the CPU seconds that it takes to tokenise, filter and save them."""
    from axolotl.cli.config import load_cfg

    from scalebio_plugin.data.loading import training_parts

    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    entry = {"path": f"{name}.jsonl", "type": "alpaca"}
    config = {
        **{"base_model": "model", "tokenizer_config": "tokenizer", "sequence_len": 2048, "micro_batch_size": 1},
        **{"datasets": [entry, entry], "plugins": ["scalebio"], "dataset_prepared_path": f"prepared-{name}"},
        **{"learning_rate": 1e-3, "gradient_accumulation_steps": 1, "val_set_size": 0.1, "bf16": False, "seed": 1},
        **{"max_steps": 1, "output_dir": "out", "dataset_num_proc": 1},
    }
    shutil.rmtree(folder / f"prepared-{name}", ignore_errors=True)
    Path(folder / "config.yml").write_text(yaml.safe_dump(config))
    cfg = load_cfg("config.yml")
    began = cpu_seconds()
    (made,) = training_parts(cfg, "datasets", cfg.datasets[:1])
    return made, cpu_seconds() - began


def times(sets: Mapping[str, list[Row]], largest: str, number: int, tokenised: Tokenised, work: Path) -> Iterator[str]:
    from scalebio_plugin.quickstart import planted as models_of

    if not (work / "model").exists():
        models_of.build_model(work / "model", hidden=32, layers=2, heads=2)
    os.chdir(work)
    yield "| rows | validation set | tokenising, s | looking, s | of it | µs a row |\n|---|---|---|---|---|---|"
    for name, rows in (("made up", made_up(number)), (largest, sets[largest])):
        made, tokenising = prepared(rows, name.replace(" ", "-"), work)
        for wanted in (of for of in sets if of != name):
            validation = tokenised.rows([text_of(row) for row in sets[wanted]])
            began = cpu_seconds()
            tokenised.found(validation, made)
            took = cpu_seconds() - began
            cells = (f"{tokenising:.1f}", f"{took:.2f}", f"{took / tokenising:.1%}", f"{1e6 * took / len(made):.0f}")
            yield f"| {len(made):,} {name} | {len(validation):,} of {wanted} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--show", type=int, default=0, help="pairs that were found, to be judged by eye")
    parser.add_argument("--tables", nargs="+", default=["found", "planted", "times"])
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    sets = read(given.data)
    tokenised = Tokenised(trained_tokenizer(sets, given.work / "tokenizer"))
    largest, judges = max(sets, key=lambda name: len(sets[name])), [name for name in sets if name.startswith("val_")]
    trained = [name for name in sets if not name.startswith(("val_", "test_"))]
    tables: dict[str, Iterator[str]] = {
        "found": false_alarms(sets, tokenised, given.show),
        "planted": planted(sets, [*judges, largest], next(name for name in trained if name != largest), tokenised),
        "times": times(sets, largest, given.rows, tokenised, given.work),
    }
    for name in given.tables:
        for line in tables[name]:
            print(line, flush=True)
        print()


if __name__ == "__main__":
    main()
