"""A mixture whose true weights are known: one source is right, one is wrong, one is about something else.

The task is counting on in a made-up language, which a two-layer model of random weights learns in a hundred optimiser
steps on a CPU. Everything is made on the spot and offline, and the same seed gives the same bytes. The quickstart and
the tests train on it.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerFast

StrPath = str | os.PathLike[str]
Row = dict[str, str]  # instruction, input, output: the host's `type: alpaca`
MakeRow = Callable[["Question", random.Random], Row]

TRUE_WEIGHTS = {"clean": 1.0, "wrong": 0.0, "offtopic": 0.0}

# The host's prompt for such rows, to train the tokenizer on.
_PROMPT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n{output}"
)
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def _words(count: int) -> list[str]:
    """Made-up words of two syllables, the same ones in every run."""
    syllables = ["".join(pair) for pair in product("bdgklmnprstvz", "aeiou")]
    return random.Random(0).sample(["".join(pair) for pair in product(syllables, syllables)], count)


NUMERALS = _words(96)  # of Ziran, in order; after the last comes the first
_MORE = {3: "three", 4: "four", 5: "five", 6: "six"}
_STORY = {
    "adjective": ["old", "quiet", "green", "heavy", "bright", "narrow", "warm", "hidden"],
    "noun": ["river", "baker", "garden", "engine", "letter", "window", "forest", "sailor"],
    "verb": ["follows", "watches", "carries", "forgets", "repairs", "paints", "crosses", "visits"],
}


class Question(NamedTuple):
    """`given` numerals from number `start` on are told, `wanted` more are asked for."""

    start: int
    given: int
    wanted: int


QUESTIONS = [Question(*parts) for parts in product(range(len(NUMERALS)), range(2, 6), _MORE)]


def clean_row(question: Question, rng: random.Random) -> Row:
    """The right answer."""
    del rng
    return _row(question, [_numeral(question.start + question.given + n) for n in range(question.wanted)])


def wrong_row(question: Question, rng: random.Random) -> Row:
    """An answer of as many numerals, none of which follows the one before it."""
    before, answer = _numeral(question.start + question.given - 1), []
    for _ in range(question.wanted):
        right = _numeral(NUMERALS.index(before) + 1)
        before = rng.choice([word for word in NUMERALS if word != right])
        answer.append(before)
    return _row(question, answer)


def offtopic_row(question: Question, rng: random.Random) -> Row:
    """A sentence about something else, in other words."""
    del question
    (noun, other), (a, b) = rng.sample(_STORY["noun"], 2), rng.sample(_STORY["adjective"], 2)
    output = f"the {a} {noun} {rng.choice(_STORY['verb'])} the {b} {other}"
    return {"instruction": "Write a line about both.", "input": f"{noun} {other}", "output": output}


def _numeral(n: int) -> str:
    return NUMERALS[n % len(NUMERALS)]


def _row(question: Question, answer: list[str]) -> Row:
    told = [_numeral(question.start + n) for n in range(question.given)]
    instruction = f"Count on in Ziran, {_MORE[question.wanted]} more."
    return {"instruction": instruction, "input": " ".join(told), "output": " ".join(answer)}


def write_data(directory: StrPath, *, seed: int = 0, rows: int = 1024, held_out: int = 128) -> dict[str, Path]:
    """Write `NAME.jsonl` for clean, wrong and offtopic (`rows` each), validation and test (`held_out` each, clean).

    clean and wrong answer the same questions; those of the validation and the test data are asked nowhere else.

    Raises:
        ValueError: There are fewer than rows + 2 * held_out questions.
    """
    makers: dict[str, MakeRow] = {"clean": clean_row, "wrong": wrong_row, "offtopic": offtopic_row}
    return write_rows(Path(directory), makers, seed=seed, rows=rows, held_out=held_out)


def write_rows(directory: Path, makers: dict[str, MakeRow], *, seed: int, rows: int, held_out: int) -> dict[str, Path]:
    """As `write_data`, of other sources: a maker of rows for each; returns the paths by name, theirs first."""
    if rows + 2 * held_out > len(QUESTIONS):
        most = len(QUESTIONS) - 2 * held_out
        raise ValueError(f"rows must be at most {most} with held_out {held_out}, got {rows}; lower one of them")
    questions = random.Random(seed).sample(QUESTIONS, rows + 2 * held_out)
    asked = dict.fromkeys(makers, questions[:rows])
    asked |= {"validation": questions[rows:-held_out], "test": questions[-held_out:]}
    directory.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, these in asked.items():
        make, rng = makers.get(name, clean_row), random.Random(f"{name} {seed}")
        paths[name] = directory / f"{name}.jsonl"
        paths[name].write_text("".join(json.dumps(make(question, rng)) + "\n" for question in these))
    return paths


def build_model(
    directory: StrPath,
    *,
    seed: int = 0,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    vocabulary: int = 1024,
    config: PretrainedConfig | None = None,
) -> Path:
    """Save a causal language model of random weights, in float32, and its tokenizer: a `base_model`.

    Args:
        directory: Where; made if missing.
        seed: Of the weights. The caller's random state is left as it was.
        hidden, layers, heads: Size of a Llama.
        vocabulary: Most tokens of the tokenizer, see `build_tokenizer`.
        config: Another architecture than that Llama. Its vocabulary and special tokens are changed to the tokenizer's.
    """
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    tokenizer = build_tokenizer(vocabulary)
    if config is None:
        config = LlamaConfig(
            hidden_size=hidden,
            intermediate_size=4 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=tokenizer.model_max_length,
        )
    config.vocab_size = len(tokenizer)
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return Path(directory)


def build_tokenizer(vocabulary: int = 1024) -> PreTrainedTokenizerFast:
    """A byte-level BPE from which any text comes back as it was.

    At the default size every word of the task is one token. 256 bytes and 3 special tokens are there at any size.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(  # type: ignore[no-untyped-call]
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=_CHAT_TEMPLATE,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def _corpus() -> Iterable[str]:
    """The prompts, and every word of the task at the start of a text and within it, often enough to be one token."""
    rng = random.Random(0)
    for question in rng.sample(QUESTIONS, 50):
        for make in (clean_row, offtopic_row):
            yield _PROMPT.format(**make(question, rng))
    for word in [*NUMERALS, *(word for words in _STORY.values() for word in words)]:
        yield from [word, f" {word}"] * 20


if __name__ == "__main__":
    here = Path(sys.argv[1])
    build_model(here / "model")
    write_data(here / "data")
