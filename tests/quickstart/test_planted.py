"""The planted data hold what they promise, counted; model and tokenizer are the same for everybody."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scalebio_plugin.quickstart.planted import NUMERALS, build_model, build_tokenizer, write_data

FOLLOWER = dict(zip(NUMERALS, [*NUMERALS[1:], NUMERALS[0]], strict=True))
STRANGE = ["", "Hello,  world's\n\n\tend ", "naïve Ω 語 🙂", *NUMERALS[:3]]


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def question(row: dict[str, str]) -> tuple[str, str]:
    return row["instruction"], row["input"]


def steps_right(row: dict[str, str]) -> list[bool]:
    """For each numeral of the answer, whether it follows the one before it."""
    told, answer = row["input"].split(), row["output"].split()
    return [FOLLOWER[before] == word for before, word in zip([told[-1], *answer], answer, strict=False)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, str]]]:
    return {name: read(path) for name, path in write_data(tmp_path_factory.mktemp("data")).items()}


def test_clean_is_right_and_wrong_is_wrong_throughout(data: dict[str, list[dict[str, str]]]) -> None:
    for name in ("clean", "validation", "test"):
        assert all(all(steps_right(row)) for row in data[name])
    assert not any(any(steps_right(row)) for row in data["wrong"])
    assert all(set(row["output"].split()).isdisjoint(NUMERALS) for row in data["offtopic"])


def test_clean_and_wrong_answer_the_same_questions(data: dict[str, list[dict[str, str]]]) -> None:
    assert [question(row) for row in data["clean"]] == [question(row) for row in data["wrong"]]
    lengths = [[len(row["output"].split()) for row in data[name]] for name in ("clean", "wrong")]
    assert lengths[0] == lengths[1]


def test_what_is_held_out_is_asked_nowhere_else(data: dict[str, list[dict[str, str]]]) -> None:
    asked = {name: {question(row) for row in rows} for name, rows in data.items()}
    assert [len(asked[name]) for name in ("clean", "validation", "test")] == [1024, 128, 128]
    assert asked["validation"].isdisjoint(asked["test"])
    assert (asked["validation"] | asked["test"]).isdisjoint(asked["clean"] | asked["wrong"] | asked["offtopic"])


def test_more_rows_than_questions_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rows must be at most 1280 with held_out 128, got 1281"):
        write_data(tmp_path, rows=1281)


def test_rows_are_a_function_of_the_seed(tmp_path: Path) -> None:
    first, again, other = (write_data(tmp_path / str(i), seed=seed) for i, seed in enumerate((0, 0, 1)))
    for name in first:
        assert first[name].read_bytes() == again[name].read_bytes() != other[name].read_bytes()


def test_another_process_writes_the_same_rows(tmp_path: Path) -> None:
    """And makes the same model: test_command.py, in the quickstart as a whole."""
    program = f"from scalebio_plugin.quickstart.planted import write_data; write_data({str(tmp_path / 'there')!r})"
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | {"PYTHONHASHSEED": "1"})
    assert_same_files(write_data(tmp_path / "here")["clean"].parent, tmp_path / "there")


def assert_same_files(one: Path, other: Path) -> None:
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
    assert [name for name in files if (one / name).read_bytes() != (other / name).read_bytes()] == []


def test_the_saved_tokenizer_gives_any_text_back(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    saved = AutoTokenizer.from_pretrained(build_model(tmp_path, hidden=16, layers=1, heads=1))
    for text in STRANGE:
        ids = saved(text)["input_ids"]
        assert ids[0] == saved.bos_token_id
        assert saved.decode(ids[1:]) == text
        assert build_tokenizer()(text)["input_ids"] == ids
    assert len({saved.bos_token_id, saved.eos_token_id, saved.pad_token_id}) == 3
    chat = saved.apply_chat_template([{"role": "user", "content": "bako"}], tokenize=False, add_generation_prompt=True)
    assert chat == "<|user|>\nbako</s>\n<|assistant|>\n"


def test_every_numeral_is_one_token() -> None:
    tokenizer = build_tokenizer()
    for word in NUMERALS:
        for text in (word, f" {word}"):
            assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) == 1


def test_the_weights_are_a_function_of_the_seed_alone(tmp_path: Path) -> None:
    import torch

    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    small = {"hidden": 16, "layers": 1, "heads": 1}
    models = [build_model(tmp_path / str(i), seed=seed, **small) for i, seed in enumerate((0, 0, 1))]
    assert torch.equal(torch.rand(1), expected)
    first, again, other = ((model / "model.safetensors").read_bytes() for model in models)
    assert first == again != other


def test_another_architecture(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

    model = AutoModelForCausalLM.from_pretrained(
        build_model(tmp_path, config=GPT2Config(n_embd=16, n_layer=2, n_head=2))
    )
    assert isinstance(model, GPT2LMHeadModel)
    assert model.config.vocab_size == model.get_input_embeddings().num_embeddings == len(build_tokenizer())
    assert model.config.pad_token_id == build_tokenizer().pad_token_id
