"""Training rows that stand in what they are judged by are found with their numbers, and `drop` takes exactly these."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.data.test_overlap import sentence
from tests.data.test_sources import Loaded

Row = dict[str, str]
SOURCES = ("one", "two", "three")
LONG = {"sequence_len": 512}  # rows of thirty made-up words, of which the tiny tokenizer makes many tokens
COPIES = {
    4: "copied",
    20: "changed",
    33: "copied",
    41: "changed",
    50: "framed",
}  # of `two`, of the validation rows 0 to 4


def alpaca(rng: random.Random) -> Row:
    return {"instruction": f"Say it. {sentence(rng, 16)}", "input": "", "output": sentence(rng, 14)}


def chat(row: Row) -> dict[str, Any]:
    said = zip(("user", "assistant"), (row["instruction"], row["output"]), strict=True)
    return {"messages": [{"role": role, "content": content} for role, content in said]}


def copy(row: Row, how: str) -> Row:
    words = row["output"].split()
    if how == "changed":
        words[6] = "quux"
    return {**row, "output": " ".join(words)} if how != "framed" else {**row, "instruction": row["instruction"].upper()}


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_leaky(folder: Path) -> Path:
    """Three sources of 60 rows, 25 rows to validate on and 20 to test; a fifth of the former stand in `two`."""
    rng = random.Random(0)
    rows = {name: [alpaca(rng) for _ in range(60)] for name in SOURCES}
    rows |= {"validation": [alpaca(rng) for _ in range(25)], "test": [alpaca(rng) for _ in range(20)]}
    for which, (at, how) in enumerate(COPIES.items()):
        rows["two"][at] = copy(rows["validation"][which], how)
    rows["three"][7] = rows["test"][9]
    rows["all"] = rows["validation"][:6]
    rows["mixed"] = [{**row, "from": name} for name in SOURCES for row in rows[name]]
    for name, members in rows.items():
        write(folder / f"{name}.jsonl", members)
    write(folder / "chat.jsonl", [chat(row) for row in rows["validation"]])
    return folder


@pytest.fixture(scope="module")
def leaky(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_leaky(tmp_path_factory.mktemp("leaky"))
    (folder / "model").symlink_to(inputs / "model")
    return folder


def entry(name: str, kind: str = "alpaca") -> dict[str, Any]:
    return {"path": f"{name}.jsonl", "type": kind, "split": "train"}


def loaded(folder: Path, on_leak: str = "warn", **overrides: Any) -> Loaded:
    block = {"validation_datasets": [entry("validation")], "on_leak": on_leak, **overrides.pop("scalebio", {})}
    config = {"datasets": [entry(name) for name in SOURCES], **LONG, **overrides}
    return Loaded(folder, scalebio=block, **config)


def tokens(of: Loaded) -> list[tuple[int, str]]:
    return [(row["scalebio_source"], str(row["input_ids"])) for row in of.meta.train_dataset]


def counted(of: Loaded) -> dict[str, Any]:
    return {name: one["sources"] for name, one in asdict(of.prepared.leaks)["sets"].items()}


FOUND = {"rows": 5, "same": 3, "found": 5}  # a row in capitals is the same one


@pytest.mark.host_contract
def test_a_fifth_of_the_validation_rows_is_found_in_its_source_and_told(leaky: Path, log: list[str]) -> None:
    found = loaded(leaky)
    assert counted(found) == {"validation: validation": {"two": FOUND}}
    assert found.prepared.leaks.sets["validation: validation"].compared == 25
    (said,) = [line for line in log if "stand in the data that judge them" in line]
    assert "validation: validation: 5 of its 25 rows stand in two (5 rows, 3 of them letter for letter)" in said
    shown = [line.split(maxsplit=3) for line in said.splitlines() if line.startswith("    row ")]
    assert [int(number) for _, number, *_ in shown] == [5, 21, 34]
    file = (leaky / "two.jsonl").read_text().splitlines()
    for _, number, _, text in shown:
        assert text.removesuffix('..."').partition("Say it. ")[2] in json.loads(file[int(number) - 1])["instruction"]


@pytest.mark.host_contract
def test_drop_takes_these_rows_alone_and_leaves_the_others_in_order(leaky: Path) -> None:
    whole, dropped = loaded(leaky), loaded(leaky, "drop")
    clean = (leaky / "two.jsonl").read_text().splitlines()
    write(leaky / "clean.jsonl", [json.loads(row) for at, row in enumerate(clean) if at not in COPIES])
    names = {"names": list(SOURCES)}
    without = loaded(leaky, datasets=[entry("one"), entry("clean"), entry("three")], scalebio=names)
    assert sorted(tokens(dropped)) == sorted(tokens(without))
    kept = set(tokens(dropped))
    assert [row for row in tokens(whole) if row in kept] == tokens(dropped)
    assert dropped.prepared.table.sequences.tolist() == [60, 55, 60]
    assert dropped.prepared.table.digests == without.prepared.table.digests
    assert len(dropped.prepared.drawable) == 175
    assert dropped.meta.train_dataset.data.num_rows == 175


def test_warn_changes_no_row_and_off_does_not_look(leaky: Path) -> None:
    warned, blind = loaded(leaky), loaded(leaky, "off")
    assert blind.prepared.leaks is None
    assert tokens(warned) == tokens(blind)
    assert warned.meta.train_dataset.features == blind.meta.train_dataset.features
    assert warned.prepared.table.digest == blind.prepared.table.digest
    for one in ("rows", "evaluation"):
        columns = [getattr(of.prepared.validation if one == "rows" else of.prepared, one) for of in (warned, blind)]
        assert str(columns[0]) == str(columns[1])


@pytest.mark.parametrize(("on_leak", "rows"), [("warn", None), ("drop", 175)])
def test_of_several_ranks_the_first_looks_for_all_where_no_row_goes(
    leaky: Path, monkeypatch: pytest.MonkeyPatch, on_leak: str, rows: int | None
) -> None:
    first = loaded(leaky, on_leak)
    monkeypatch.setenv("RANK", "1")
    second = loaded(leaky, on_leak)
    assert tokens(second) == tokens(first)
    assert (second.prepared.leaks is None) == (rows is None)
    assert rows in (None, len(second.meta.train_dataset))


def test_error_says_all_and_what_to_do(leaky: Path) -> None:
    with pytest.raises(ValueError, match=r"scalebio\.on_leak: error.*\n.*5 of its 25 rows stand in two") as raised:
        loaded(leaky, "error")
    assert "on_leak: drop" in str(raised.value)
    assert loaded(leaky, "error", datasets=[entry("one"), entry("three")]).prepared.leaks.sets


def test_a_source_of_which_nothing_would_be_left_is_named(leaky: Path) -> None:
    with pytest.raises(ValueError, match=r"drop would leave nothing to train on of 'all' \(6 rows\)"):
        loaded(leaky, "drop", datasets=[entry("one"), entry("all")])


def test_a_validation_set_in_another_template(leaky: Path) -> None:
    of = {"scalebio": {"validation_datasets": [entry("chat", "chat_template")]}, "chat_template": "tokenizer_default"}
    found = loaded(leaky, **of)
    assert counted(found) == {"validation: chat": {"two": {**FOUND, "same": 0}}}


OF_THE_TEST = {"three": {"rows": 1, "same": 1, "found": 1}}


def test_each_test_set_is_looked_for_too(leaky: Path) -> None:
    of_validation = {"validation: validation": {"two": FOUND}}
    one = loaded(leaky, test_datasets=[entry("test")], eval_steps=3)
    assert counted(one) == {**of_validation, "test: test": OF_THE_TEST}
    two = loaded(leaky, test_datasets=[entry("test"), entry("validation")], eval_steps=3)
    assert counted(two) == {**of_validation, "test: test": OF_THE_TEST, "test: validation": {"two": FOUND}}


def test_a_test_set_that_steers_is_looked_for_once(leaky: Path) -> None:
    steers = {"scalebio": {"validation_datasets": None}, "eval_steps": 3}
    assert counted(loaded(leaky, test_datasets=[entry("test")], **steers)) == {"validation: validation": OF_THE_TEST}
    two = loaded(leaky, test_datasets=[entry("test"), entry("validation")], **steers)
    assert counted(two) == {"test: test": OF_THE_TEST, "test: validation": {"two": FOUND}}


def test_packed_rows_are_dropped_before_they_are_packed(leaky: Path) -> None:
    packed = {"sample_packing": True, "eval_sample_packing": False, "test_datasets": [entry("test")], "eval_steps": 3}
    of = loaded(leaky, "drop", **packed)
    assert counted(of) == {"validation: validation": {"two": FOUND}, "test: test": OF_THE_TEST}
    assert of.prepared.table.sequences.tolist() == [60, 55, 59]


def test_a_split_of_the_training_data_that_its_rest_repeats(leaky: Path) -> None:
    twice = {"datasets": [entry("one"), {**entry("one"), "path": "./one.jsonl"}], "val_set_size": 0.25}
    of = loaded(leaky, scalebio={"validation_datasets": None}, **twice)
    leaks = counted(of)["validation: validation"]
    assert 0 < sum(leak["found"] for leak in leaks.values()) <= 30
    dropped = loaded(leaky, "drop", scalebio={"validation_datasets": None}, **twice)
    assert len(dropped.meta.train_dataset) == 90 - sum(leak["rows"] for leak in leaks.values())
    judged = {str(row["input_ids"]) for row in dropped.meta.eval_dataset}
    assert not judged & {text for _, text in tokens(dropped)}


def test_sources_of_a_column(leaky: Path) -> None:
    of = loaded(leaky, "drop", datasets=[entry("mixed")], scalebio={"split_by": "from", "min_rows": 10})
    assert counted(of) == {"validation: validation": {"two": FOUND}}
    assert dict(zip(of.prepared.table.names, of.prepared.table.sequences.tolist(), strict=True)) == {
        "one": 60,
        "two": 55,
        "three": 60,
    }


def test_held_out_rows_come_from_what_stays(leaky: Path) -> None:
    of = loaded(leaky, "drop", test_datasets=[entry("test")], eval_steps=3, scalebio={"held_out_rows": 5})
    assert of.prepared.table.sequences.tolist() == [55, 50, 54]


def test_apply_drops_what_was_dropped_as_it_was_learned(leaky: Path, tmp_path: Path) -> None:
    learned = loaded(leaky, "drop", test_datasets=[entry("test")], eval_steps=3)
    table = learned.prepared.table
    sources = {
        name: {"weight": 1 / 3, "examples": rows, "digest": digest, "tokens": 1, "weight_average": 1 / 3, "gap": 0.0}
        | dict.fromkeys(("loss", "inner_loss", "gap_se"))
        for name, rows, digest in zip(table.names, table.sequences.tolist(), table.digests, strict=True)
    }
    mixture = {"schema": 1, "weights": dict.fromkeys(table.names, 1 / 3), "sources": sources, "base_model": "model"}
    (tmp_path / "mixture.json").write_text(json.dumps(mixture))
    apply = {"apply": str(tmp_path / "mixture.json"), "validation_datasets": [entry("validation")]}
    tests = {"test_datasets": [entry("test")], "eval_steps": 3}
    applied = Loaded(
        leaky, datasets=[entry(name) for name in SOURCES], **LONG, **tests, scalebio={**apply, "on_leak": "drop"}
    )
    trained = {str(row["input_ids"]) for row in applied.meta.train_dataset}
    assert trained <= {text for _, text in tokens(learned)}
    with pytest.raises(ValueError, match="rows were added"):
        Loaded(leaky, datasets=[entry(name) for name in SOURCES], **LONG, **tests, scalebio={"apply": apply["apply"]})


def test_rows_of_every_batch_have_their_numbers(leaky: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scalebio_plugin.data.leaks.BATCH", 50)
    dropped = loaded(leaky, "drop")
    assert counted(dropped) == {"validation: validation": {"two": FOUND}}
    assert dropped.prepared.table.sequences.tolist() == [60, 55, 60]


def test_of_a_large_set_rows_evenly_spaced_are_looked_for(leaky: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scalebio_plugin.data.leaks.MOST", 2000)
    of = loaded(leaky).prepared.leaks.sets["validation: validation"]
    assert of.rows == 25
    assert 5 <= of.compared < 13
