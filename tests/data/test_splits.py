"""Sources inside a dataset: every token knows the value that a column of its raw row has."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import host
from tests.runs.test_apply import write_weights

pytestmark = pytest.mark.host_contract
COUNTS = {
    **{"web": 5000, "code": 2000, "law": 1000, "wiki": 700, "math": 450, "news": 300, "books": 200, "chat": 130},
    **{"poems": 100, "mail": 60, "maps": 40, "jokes": 20},
}
RARE = ("mail", "maps", "jokes")
NAMES = [*sorted(set(COUNTS) - set(RARE)), "other"]
LONG = " and so on" * 60  # beyond sequence_len


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def alpaca(number: int) -> dict[str, Any]:
    return {"instruction": f"say {number}", "input": "", "output": f"row {number} end"}


SHAPES: dict[str, Callable[[int], dict[str, Any]]] = {
    "alpaca": alpaca,
    "chat_template": lambda n: {
        "messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": f"row {n} end"}]
    },
    "completion": lambda n: {"text": f"row {n} end"},
    "input_output": lambda n: {
        "segments": [{"label": False, "text": f"<s>say {n}"}, {"label": True, "text": f" row {n} end</s>"}]
    },
}
CUSTOM = {
    "field_instruction": "instruction",
    "field_output": "output",
    "format": "{instruction}",
    "no_input_format": "{instruction}",
}


@pytest.fixture(scope="module")
def folder(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`all.jsonl` of 10,000 rows, and for every type a file of 300 rows of three values, in turns."""
    copy = tmp_path_factory.mktemp("split") / "inputs"
    shutil.copytree(inputs, copy, ignore=shutil.ignore_patterns("prepared*", "out*", "last_run*"))
    values = np.random.default_rng(1).permutation([value for value, count in COUNTS.items() for _ in range(count)])
    write(copy / "all.jsonl", [{**alpaca(n), "source": value} for n, value in enumerate(values.tolist())])
    for kind, shape in SHAPES.items():
        write(copy / f"{kind}.jsonl", [{**shape(n), **of_turn(n)} for n in range(300)])
    return copy


def of_turn(number: int) -> dict[str, Any]:
    value = ("red", "green", "blue")[number % 3]
    return {"source": value, "metadata": {"source": value, "id": number}, "year": 2000 + number % 2}


def prepared(folder: Path, monkeypatch: pytest.MonkeyPatch, preprocess: bool = False, **overrides: Any) -> Any:
    """What the plugin keeps of the data; `dataset_prepared_path` is one for all unless given."""
    from axolotl.integrations.base import PluginManager

    monkeypatch.chdir(folder)
    cfg = host.load(folder, host.config_of(**{"plugins": ["scalebio"], "dataset_num_proc": 1, **overrides}))
    (plugin,) = [one for one in PluginManager.get_instance().plugins.values() if "ScaleBiO" in type(one).__name__]
    plugin.load_datasets(cfg, preprocess=preprocess)
    return plugin.prepared


def one(kind: str = "alpaca", **entry: Any) -> dict[str, Any]:
    return {"datasets": [{"path": f"{kind}.jsonl", "type": kind, **entry}], "chat_template": "tokenizer_default"}


@pytest.fixture(scope="module")
def decode(inputs: Path) -> Callable[[Any], str]:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(inputs / "model").decode


def numbers(data: Any, decode: Callable[[Any], str]) -> Iterator[tuple[int, str]]:
    """(number of the raw row, name of its source) of every training row."""
    for row in data.rows:
        (number,) = re.findall(r"row (\d+)", decode(row["input_ids"]))
        yield int(number), data.table.names[row["scalebio_source"]]


# ---- ten thousand rows of twelve values


@pytest.mark.parametrize("packed", [pytest.param(False, marks=pytest.mark.slow), True])
def test_values_are_sources_and_rare_ones_together(
    folder: Path, monkeypatch: pytest.MonkeyPatch, decode: Any, packed: bool
) -> None:
    said: list[str] = []
    monkeypatch.setattr("scalebio_plugin.data.splits.LOG.info", said.append)
    raw = [json.loads(line) for line in (folder / "all.jsonl").read_text().splitlines()]
    packing = {"sample_packing": True, "eval_sample_packing": False} if packed else {}
    whole = {"datasets": [{"path": "all.jsonl", "type": "alpaca"}]}
    data = prepared(folder, monkeypatch, **whole, scalebio={"split_by": "source"}, **packing)
    assert data.table.names == NAMES
    plain = Counter("other" if row["source"] in RARE else row["source"] for row in raw)
    assert data.table.sequences.tolist() == [plain[name] for name in NAMES]
    found = sorted(numbers(data, decode))
    assert found == [(n, "other" if row["source"] in RARE else row["source"]) for n, row in enumerate(raw)]
    (line,) = said
    assert "'source' of datasets[0] (all.jsonl): 3 of 12 values have fewer than min_rows (100) rows" in line
    assert "120 rows: mail (60), maps (40), jokes (20)" in line


@pytest.mark.parametrize("packed", [False, True])
def test_every_token_of_a_batch_knows_the_value_of_its_row(folder: Path, packed: bool) -> None:
    seen: list[tuple[str, int]] = []

    def look(trainer: Any, batch: dict[str, Any]) -> None:
        names = trainer.learning.folder.names
        source, sequence = batch["scalebio_source"], batch["scalebio_sequence"]
        for number in set(sequence.flatten().tolist()) - {-1}:
            (which,) = set(source[sequence == number].tolist())
            text = trainer.processing_class.decode(batch["input_ids"][sequence == number])
            seen.append((names[which], int(re.findall(r"row (\d+)", text)[0])))

    packing = {"sample_packing": True, "eval_sample_packing": False} if packed else {}
    run = host.train(
        folder, on_batch=look, output_dir=f"out-{packed}", scalebio={"split_by": "source"}, **one(), **packing
    )
    assert run.trainer.learning.folder.names == ["blue", "green", "red"]
    assert len(seen) >= 24
    for name, number in seen:
        assert name == of_turn(number)["source"]


# ---- whatever the host does to rows on the way


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"sample_packing": True, "eval_sample_packing": False},
        {"dataset_num_proc": 2},
        pytest.param({"excess_length_strategy": "truncate"}, marks=pytest.mark.slow),
    ],
    ids=lambda keys: "+".join(keys) or "plain",
)
def test_every_type(folder: Path, monkeypatch: pytest.MonkeyPatch, decode: Any, kind: str, keys: Any) -> None:
    data = prepared(folder, monkeypatch, **one(kind), scalebio={"split_by": "metadata.source"}, **keys)
    found = list(numbers(data, decode))
    assert sorted(number for number, _ in found) == list(range(300))
    assert all(name == of_turn(number)["source"] for number, name in found)


@pytest.mark.parametrize("packed", [False, True])
def test_rows_that_are_tokenised_already(
    folder: Path, monkeypatch: pytest.MonkeyPatch, decode: Any, packed: bool
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    ids = [tokenizer(f"row {n} end")["input_ids"] for n in range(300)]
    rows = [{"input_ids": i, "labels": i, "attention_mask": [1] * len(i), **of_turn(n)} for n, i in enumerate(ids)]
    write(folder / "tokenised.jsonl", [{key: row[key] for key in row if key != "year"} for row in rows])
    packing = {"sample_packing": True, "eval_sample_packing": False} if packed else {}
    entry = {"datasets": [{"path": "tokenised.jsonl"}]}
    data = prepared(folder, monkeypatch, **entry, scalebio={"split_by": "metadata.source"}, **packing)
    assert "metadata" not in data.rows.column_names
    assert all(name == of_turn(number)["source"] for number, name in numbers(data, decode))


def test_a_column_that_tokenised_rows_have_not(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"input_ids": [5, 6, n], "labels": [5, 6, n], "attention_mask": [1] * 3, **of_turn(n)} for n in range(9)]
    write(folder / "few.jsonl", [{key: row[key] for key in row if key != "year"} for row in rows])
    for column in ("origin", "metadata.origin"):
        with pytest.raises(
            ValueError, match=rf"split_by: .* \(few.jsonl\) has no column '{column}'; its columns are \["
        ):
            prepared(folder, monkeypatch, datasets=[{"path": "few.jsonl"}], scalebio={"split_by": column})


def test_a_type_of_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch, decode: Any) -> None:
    data = prepared(folder, monkeypatch, **one(type=CUSTOM), scalebio={"split_by": "source"})
    assert all(name == of_turn(number)["source"] for number, name in numbers(data, decode))


@pytest.mark.parametrize(
    "keys",
    [
        {"val_set_size": 0.25},
        {"dataset_shard_num": 2, "dataset_shard_idx": 1},
        {"shuffle_merged_datasets": False},
        one(shards=2, shards_idx=1),
        one(preprocess_shards=3),
        one(split="train[:200]"),
    ],
    ids=str,
)
def test_parts_of_the_rows(folder: Path, monkeypatch: pytest.MonkeyPatch, decode: Any, keys: dict[str, Any]) -> None:
    block = {"split_by": "source", "min_rows": 20}
    data = prepared(folder, monkeypatch, **{**one(), **keys, "scalebio": block})
    found = list(numbers(data, decode))
    assert len(found) in {150, 200, 225, 300}
    assert data.table.names == ["blue", "green", "red"]
    assert all(name == of_turn(number)["source"] for number, name in found)


def test_the_rows_and_their_order_are_those_of_the_dataset_that_is_not_split(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = {"datasets": [*one()["datasets"], {"path": "completion.jsonl", "type": "completion"}]}
    whole = prepared(folder, monkeypatch, **two)
    split = prepared(folder, monkeypatch, **two, scalebio={"split_by": {"alpaca": "source"}})
    assert split.table.names == ["alpaca/blue", "alpaca/green", "alpaca/red", "completion"]
    assert [row["input_ids"] for row in split.rows] == [row["input_ids"] for row in whole.rows]
    assert split.table.tokens.sum() == whole.table.tokens.sum()


def test_rows_that_are_left_out_and_texts_cut_in_pieces(
    folder: Path, monkeypatch: pytest.MonkeyPatch, decode: Any
) -> None:
    rows = [{**alpaca(n), **of_turn(n)} for n in range(300)]
    write(folder / "long.jsonl", [{**row, "input": LONG} if n % 5 == 1 else row for n, row in enumerate(rows)])
    data = prepared(folder, monkeypatch, **one("long", type="alpaca"), scalebio={"split_by": "source", "min_rows": 9})
    found = list(numbers(data, decode))
    assert sorted(number for number, _ in found) == [n for n in range(300) if n % 5 != 1]
    assert all(name == of_turn(number)["source"] for number, name in found)

    text = [{"text": " ".join([f"row {n} is {of_turn(n)['source']}"] * 40), **of_turn(n)} for n in range(300)]
    write(folder / "texts.jsonl", text)
    data = prepared(folder, monkeypatch, **one("texts", type="completion"), scalebio={"split_by": "source"})
    assert len(data.rows) > 600
    for row in data.rows:
        words = set(re.findall("red|green|blue", decode(row["input_ids"])))
        assert words == {data.table.names[row["scalebio_source"]]}


def test_equal_rows_are_the_source_of_the_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with entries: of equal rows in two sources the first stays, however the column differs."""
    rows = [{**alpaca(n % 150), "source": "first" if n < 200 else "second"} for n in range(300)]
    write(folder / "twice.jsonl", rows)
    keys = {**one("twice", type="alpaca"), "scalebio": {"split_by": "source"}, "shuffle_merged_datasets": False}
    assert prepared(folder, monkeypatch, **keys).table.sequences.tolist() == [200, 100]
    with pytest.raises(ValueError, match=r"dataset_exact_deduplication leaves no row of \['second'\]: each"):
        prepared(folder, monkeypatch, **keys, dataset_exact_deduplication=True)
    write(folder / "twice.jsonl", [*rows, {**alpaca(777), "source": "second"}])
    keys |= {"dataset_prepared_path": "other-prepared"}
    data = prepared(folder, monkeypatch, **keys, dataset_exact_deduplication=True)
    assert data.table.sequences.tolist() == [150, 1]


# ---- the prepared cache


def test_the_cache_is_of_one_column_and_is_read_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, decode: Any, tmp_path: Path
) -> None:
    keys = {**one(), "dataset_prepared_path": str(tmp_path / "prepared"), "scalebio": {"split_by": "source"}}
    prepared(folder, monkeypatch, preprocess=True, **keys)
    made = caches(tmp_path)
    again = prepared(folder, monkeypatch, **keys)
    assert caches(tmp_path) == made
    assert all(name == of_turn(number)["source"] for number, name in numbers(again, decode))
    years = prepared(folder, monkeypatch, **{**keys, "scalebio": {"split_by": "year"}})
    assert years.table.names == ["2000", "2001"]
    assert all(name == str(of_turn(number)["year"]) for number, name in numbers(years, decode))
    assert len(caches(tmp_path)) == len(made) + 1
    whole = prepared(folder, monkeypatch, **{**keys, "datasets": one()["datasets"] * 2, "scalebio": {}})
    assert len(whole.rows) == 600
    rarer = prepared(folder, monkeypatch, **{**keys, "scalebio": {"split_by": "source", "min_rows": 99}})
    assert rarer.table.names == again.table.names
    assert len(caches(tmp_path)) == len(made) + 2


def caches(folder: Path) -> set[str]:
    return {path.parent.name for path in folder.glob("prepared/scalebio/*/state.json")}


# ---- names


def test_rows_without_a_value_are_a_source(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = [{"source": None}, {"source": " "}, {}]
    rows = [{**alpaca(n), **(empty[n % 3] if n % 2 else {"source": "web"})} for n in range(300)]
    write(folder / "gaps.jsonl", rows)
    data = prepared(folder, monkeypatch, **one("gaps", type="alpaca"), scalebio={"split_by": "source"})
    assert (data.table.names, data.table.sequences.tolist()) == (["none", "web"], [150, 150])


@pytest.mark.parametrize("kind", ["alpaca", "completion"])
def test_a_thousand_rows_without_a_value_may_come_first(
    folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    write(folder / "late.jsonl", [{**SHAPES[kind](n), "source": "web" if n >= 1000 else None} for n in range(1200)])
    data = prepared(folder, monkeypatch, **one("late", type=kind), scalebio={"split_by": "source"})
    assert (data.table.names, data.table.sequences.tolist()) == (["none", "web"], [1000, 200])


def test_a_mixture_names_the_sources(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = {
        "split_by": "source",
        "mixture_init": {"red": 0.5, "green": 0.3, "blue": 0.2},
        "groups": {"warm": ["red"]},
        "bounds": {"warm": [0.1, 0.9], "blue": [0.05, 1.0]},
        "prior": {"weights": {"red": 0.4, "green": 0.3, "blue": 0.3}},
    }
    assert prepared(folder, monkeypatch, **one(), scalebio=block).table.names == ["blue", "green", "red"]
    for wrong, said in (
        ({"bounds": {"rde": [0.1, 0.9]}}, "scalebio.bounds names unknown sources ['rde']"),
        ({"mixture_init": {"red": 0.5, "green": 0.5}}, "scalebio.mixture_init must give every source a weight"),
        ({"prior": {"weights": {"red": 1.0}}}, "scalebio.prior.weights must give every source a weight"),
        ({"groups": {"blue": ["red"]}}, "scalebio.groups: ['blue'] are names of sources"),
    ):
        with pytest.raises(ValueError, match="cannot run this config") as refused:
            prepared(folder, monkeypatch, **one(), scalebio={"split_by": "source", **wrong})
        assert said in str(refused.value)


def test_a_value_without_end_is_refused_before_a_run_that_could_not_write_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder / "endless.jsonl", [{**alpaca(n), "source": ("web", "x" * 10_001)[n % 2]} for n in range(240)])
    with pytest.raises(ValueError, match=r"at most 10000 characters each, \['x{40}'\].* split by another column"):
        prepared(folder, monkeypatch, **one("endless", type="alpaca"), scalebio={"split_by": "source"})


# ---- refused, before rows are tokenised


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"split_by": "origin"}, "(alpaca.jsonl) has no column 'origin'; its columns are ['instruction', 'input'"),
        ({"split_by": "metadata.origin"}, "no column 'metadata.origin'"),
        ({"split_by": "metadata"}, "holds {'source': 'red', 'id': 0}; a source is named by a text"),
        ({"split_by": "input"}, "holds only the value 'none'"),
        ({"split_by": "instruction", "min_rows": 1}, "makes 300 sources, more than 200"),
        ({"split_by": "instruction"}, "300 values, all of them with fewer than min_rows (100) rows"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_columns_that_make_no_sources(
    folder: Path, monkeypatch: pytest.MonkeyPatch, block: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="split_by") as refused:
        prepared(folder, monkeypatch, **one(), scalebio=block, dataset_prepared_path=str(tmp_path / "prepared"))
    assert said in str(refused.value)
    assert caches(tmp_path) == set()


def test_a_type_that_wraps_a_whole_dataset(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"'messages' of datasets\[0\] .* does not tokenise row by row"):
        prepared(folder, monkeypatch, **one("chat_template", type="messages"), scalebio={"split_by": "source"})


def test_two_files_of_one_value_each_are_two_sources(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("red", "green"):
        write(folder / f"{value}.jsonl", [{**alpaca(n), "source": value} for n in range(120)])
    two = {"datasets": [{"path": f"{value}.jsonl", "type": "alpaca"} for value in ("red", "green")]}
    data = prepared(folder, monkeypatch, **two, scalebio={"split_by": "source"})
    assert data.table.names == ["red/red", "green/green"]
    with pytest.raises(ValueError, match=r"column 'source' of datasets.1. .green.jsonl. holds only the value 'green'"):
        prepared(folder, monkeypatch, **two, scalebio={"split_by": {"green": "source"}})


# ---- what a run leaves, and goes on from


def test_next_yml_applies_by_the_same_names(folder: Path, tmp_path: Path) -> None:
    import yaml

    run = host.train(
        folder, output_dir=str(tmp_path / "learn"), scalebio={"split_by": "source", "min_rows": 50}, **one()
    )
    document = json.loads((run.folder / "mixture.json").read_text())
    assert sorted(document["weights"]) == ["blue", "green", "red"]
    config = yaml.safe_load((run.folder / "next.yml").read_text())
    assert config["scalebio"]["split_by"] == "source"
    assert config["scalebio"]["min_rows"] == 50
    applied = host.train(folder, whole_config=config)
    assert type(applied.trainer).__name__ == "AxolotlTrainer"
    assert set(applied.trainer.train_dataset.column_names) == {"input_ids", "attention_mask", "labels"}


def test_a_mixture_is_applied_by_the_values(
    folder: Path, monkeypatch: pytest.MonkeyPatch, decode: Any, tmp_path: Path
) -> None:
    path = write_weights(tmp_path / "mixture.json", {"blue": 0.0, "green": 0.25, "red": 0.75})
    config = host.config_of(**one(), scalebio={"apply": path, "split_by": "source"}, output_dir=str(tmp_path / "out"))
    run = host.train(folder, whole_config=config)
    texts = [decode(row["input_ids"]) for row in run.trainer.train_dataset]
    drawn = Counter(of_turn(int(re.findall(r"row (\d+)", text)[0]))["source"] for text in texts)
    assert drawn["blue"] == 0
    assert drawn["red"] / drawn.total() == pytest.approx(0.75, abs=0.02)


def test_other_values_are_another_mixture(folder: Path, tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "output_dir": str(tmp_path / "out")}
    with pytest.raises(KeyboardInterrupt):
        host.train(folder, scalebio={"split_by": "source"}, stop_after=3, **one(), **saving)
    other = {"split_by": "year"}
    with pytest.raises(ValueError, match=r"of another run:\n  - sources: it has .*blue.*2000.*is missing"):
        host.train(folder, scalebio=other, auto_resume_from_checkpoints=True, **one(), **saving)
    run = host.train(folder, scalebio={"split_by": "source"}, auto_resume_from_checkpoints=True, **one(), **saving)
    assert run.trainer.state.global_step == 4
    path = str(run.folder / "mixture.json")
    with pytest.raises(ValueError, match="sources of .*mixture.json are not those of this run"):
        host.train(folder, whole_config=host.config_of(**one(), scalebio={"apply": path, **other}, output_dir="x"))
