"""Every token knows its `datasets:` entry, whatever the host does to the rows on the way."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scalebio_plugin import ScaleBiOPlugin
from tests import host

WORDS = {"chat": "alpha", "alpaca": "beta", "completion": "gamma", "tokenised": "delta"}


@pytest.fixture(scope="module")
def mixed(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four sources of four types, each of one word that no other source has; two rows stand in two sources."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("mixed")
    tokenizer = AutoTokenizer.from_pretrained(inputs / "model")
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in WORDS}
    for n in range(24):
        text = {name: " ".join([word] * (3 + n % 5)) + f" {n}" for name, word in WORDS.items()}
        rows["chat"].append(
            {"messages": [{"role": "user", "content": "say"}, {"role": "assistant", "content": text["chat"]}]}
        )
        rows["alpaca"].append({"instruction": "say", "input": "", "output": text["alpaca"]})
        rows["completion"].append({"text": text["completion"]})
        ids = tokenizer(text["tokenised"])["input_ids"]
        rows["tokenised"].append({"input_ids": ids, "labels": ids, "attention_mask": [1] * len(ids)})
    for name, members in rows.items():
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in members))
    (folder / "model").symlink_to(inputs / "model")
    (folder / "data").symlink_to(inputs / "data")
    return folder


DATASETS = [
    {"path": "chat.jsonl", "type": "chat_template"},
    {"path": "alpaca.jsonl", "type": "alpaca"},
    {"path": "completion.jsonl", "type": "completion"},
    {"path": "tokenised.jsonl", "type": None},
]


def entries() -> list[dict[str, Any]]:
    return [{key: value for key, value in entry.items() if value is not None} for entry in DATASETS]


class Loaded:
    """What the plugin's `load_datasets` hook gives for a config."""

    def __init__(self, folder: Path, **overrides: Any):
        from axolotl.integrations.base import PluginManager
        from transformers import AutoTokenizer

        before = Path.cwd()
        os.chdir(folder)
        try:
            config = host.config_of(**{"datasets": entries(), "chat_template": "tokenizer_default", **overrides})
            self.cfg = host.load(folder, config)
            manager = PluginManager.get_instance()
            self.meta = manager.load_datasets(self.cfg, preprocess=False)
            ours = [plugin for plugin in manager.plugins.values() if isinstance(plugin, ScaleBiOPlugin)]
            self.prepared = ours[0].prepared if ours else None
        finally:
            os.chdir(before)
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "model")

    def words(self) -> Iterator[tuple[int, set[str]]]:
        """(source, which of the four words its text holds) of every training row."""
        for row in self.meta.train_dataset:
            text = self.tokenizer.decode(row["input_ids"])
            yield row["scalebio_source"], {word for word in WORDS.values() if word in text}


@pytest.mark.host_contract
def test_every_type_carries_its_source(mixed: Path) -> None:
    loaded = Loaded(mixed)
    found = list(loaded.words())
    assert len(found) == 4 * 24
    for source, words in found:
        assert words == {list(WORDS.values())[source]}


@pytest.mark.parametrize(
    "overrides",
    [
        {"sample_packing": True, "eval_sample_packing": False},
        {"dataset_num_proc": 2, "sequence_len": 96},
        {"shuffle_merged_datasets": False},
        {"shuffle_before_merging_datasets": True},
        {"datasets": entries()[::-1]},
        {"val_set_size": 0.25},
        {"dataset_shard_num": 2, "dataset_shard_idx": 1},
        {"datasets": [{**entries()[0], "shards": 2, "shards_idx": 1}, *entries()[1:]]},
    ],
    ids=lambda overrides: "+".join(overrides),
)
def test_rows_keep_their_source_through_the_hosts_handling(mixed: Path, overrides: dict[str, Any]) -> None:
    loaded = Loaded(mixed, **overrides)
    order = [list(WORDS.values())[[e["path"] for e in DATASETS].index(entry["path"])] for entry in loaded.cfg.datasets]
    found = list(loaded.words())
    assert len(found) >= 40
    for source, words in found:
        assert words == {order[source]}


def test_split_and_test_sets_are_the_hosts_and_untagged(mixed: Path) -> None:
    split = Loaded(mixed, val_set_size=0.25).meta
    assert (len(split.train_dataset), len(split.eval_dataset)) == (72, 24)
    assert "scalebio_source" not in split.eval_dataset.column_names
    test = Loaded(mixed, test_datasets=[{"path": "alpaca.jsonl", "type": "alpaca", "split": "train"}], eval_steps=3)
    assert (len(test.meta.train_dataset), len(test.meta.eval_dataset)) == (96, 24)


HELD_OUT = {"val_set_size": 0.1, "scalebio": {"held_out_rows": 5}}


@pytest.mark.parametrize("shards", [{}, {"shards": 2}], ids=["whole", "a shard"])
def test_a_test_set_at_the_path_of_a_source_is_its_test_split(mixed: Path, tmp_path: Path, shards: dict) -> None:
    """As the host has it, which says of neither what split it is."""
    folder = mixed / f"both{len(shards)}"
    folder.mkdir()
    for split, source in (("train", "alpaca"), ("test", "completion")):
        rows = [
            json.loads(line)["output" if split == "train" else "text"] for line in (mixed / f"{source}.jsonl").open()
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(json.dumps({"text": row}) for row in rows))
    both = {"path": folder.name, "type": "completion", **shards}
    shared = {"dataset_prepared_path": str(tmp_path / "prepared"), "datasets": [both, entries()[0]]}
    for tests in ([both], [both, {"path": "chat.jsonl", "type": "chat_template"}]):
        loaded = Loaded(mixed, test_datasets=tests, **shared)
        evaluation = loaded.prepared.test_sets.get(folder.name, loaded.prepared.evaluation)
        texts = [loaded.tokenizer.decode(row["input_ids"]) for row in evaluation]
        assert len(texts) == (12 if shards else 24)
        assert all(WORDS["completion"] in text for text in texts)
        assert any(WORDS["alpaca"] in words for _, words in loaded.words())


def test_so_many_rows_of_each_source_are_held_out_of_the_training_data(mixed: Path) -> None:
    whole, loaded = Loaded(mixed, val_set_size=0.1), Loaded(mixed, **HELD_OUT)
    sets = loaded.prepared.test_sets
    assert list(sets) == loaded.prepared.table.names
    assert [len(rows) for rows in sets.values()] == [5, 5, 5, 5]
    for rows, word in zip(sets.values(), WORDS.values(), strict=True):
        assert "scalebio_source" not in rows.column_names
        assert all(word in loaded.tokenizer.decode(row["input_ids"]) for row in rows)
    kept, held = ([str(row["input_ids"]) for row in of] for of in (loaded.meta.train_dataset, chain(*sets.values())))
    assert sorted(kept + held) == sorted(str(row["input_ids"]) for row in whole.meta.train_dataset)
    assert len(loaded.prepared.drawable) == len(kept) == whole.prepared.table.sequences.sum() - 20
    assert loaded.prepared.table.sequences.tolist() == (whole.prepared.table.sequences - 5).tolist()
    assert [str(row["input_ids"]) for of in Loaded(mixed, **HELD_OUT).prepared.test_sets.values() for row in of] == held


def test_an_ordinary_run_on_the_mixture_does_not_train_on_them_either(mixed: Path, tmp_path: Path) -> None:
    loaded = Loaded(mixed, **HELD_OUT)
    held = {str(row["input_ids"]) for rows in loaded.prepared.test_sets.values() for row in rows}
    mixture = tmp_path / "mixture.json"
    mixture.write_text(json.dumps({"schema": 1, "weights": dict.fromkeys(loaded.prepared.table.names, 0.25)}))
    applied = Loaded(mixed, val_set_size=0.1, scalebio={"apply": str(mixture), "held_out_rows": 5})
    assert not held & {str(row["input_ids"]) for row in applied.meta.train_dataset}


def test_a_source_of_which_nothing_would_be_left_is_named(mixed: Path) -> None:
    with pytest.raises(ValueError, match="held_out_rows: 24 would leave nothing to train on of source 'chat'"):
        Loaded(mixed, test_datasets=[{"path": "alpaca.jsonl", "type": "alpaca"}], scalebio={"held_out_rows": 24})


def test_without_validation_datasets_the_hosts_evaluation_data_steer(mixed: Path) -> None:
    for overrides in ({"val_set_size": 0.25}, {"test_datasets": [{"path": "alpaca.jsonl", "type": "alpaca"}]}):
        loaded = Loaded(mixed, scalebio={"validation_datasets": None}, **overrides)
        assert not loaded.prepared.validation.held_out
        assert len(loaded.prepared.validation.rows) == 24


def test_exact_deduplication_works_across_sources(mixed: Path) -> None:
    twice = [entries()[1], {"path": "./alpaca.jsonl", "type": "alpaca", "split": "train"}, entries()[2]]
    assert len(Loaded(mixed, datasets=twice).meta.train_dataset) == 72
    loaded = Loaded(mixed, datasets=twice, dataset_exact_deduplication=True)
    assert len(loaded.meta.train_dataset) == 48
    texts = [str(row["input_ids"]) for row in loaded.meta.train_dataset]
    assert len(set(texts)) == 48


def test_caches_made_without_the_plugin_are_never_read(mixed: Path, tmp_path: Path) -> None:
    from axolotl.common.datasets import load_datasets

    shared = {"dataset_prepared_path": str(tmp_path / "prepared")}
    before = Path.cwd()
    os.chdir(mixed)
    try:
        config = host.config_of(plugins=["tests.host.ProbePlugin"], datasets=entries()[1:3], **shared)
        load_datasets(cfg=host.load(mixed, config))
    finally:
        os.chdir(before)
    hosts = {path.name for path in (tmp_path / "prepared").iterdir()}
    loaded = Loaded(mixed, datasets=entries()[1:3], **shared)
    assert {path.name for path in (tmp_path / "prepared").iterdir()} - hosts == {"scalebio"}
    assert all(len(words) == 1 for _, words in loaded.words())


def test_caches_follow_reordered_entries(mixed: Path, tmp_path: Path) -> None:
    shared = {"dataset_prepared_path": str(tmp_path / "prepared")}
    Loaded(mixed, **shared)
    made = sorted((tmp_path / "prepared/scalebio").glob("*/data-*.arrow"))
    loaded = Loaded(mixed, datasets=entries()[::-1], **shared)
    assert sorted((tmp_path / "prepared/scalebio").glob("*/data-*.arrow")) == made
    for source, words in loaded.words():
        assert words == {list(WORDS.values())[::-1][source]}


@pytest.mark.parametrize("packed", [False, True])
def test_every_token_of_a_batch_knows_its_source(mixed: Path, packed: bool) -> None:
    """Batches as the training step gets them: the words decoded from each source's tokens are that source's alone."""
    packing = {"sample_packing": True, "eval_sample_packing": False} if packed else {}
    seen: list[tuple[int, str]] = []
    sequences_in_a_row = 0

    def look(trainer: Any, batch: dict[str, Any]) -> None:
        nonlocal sequences_in_a_row
        source, sequence = batch["scalebio_source"], batch["scalebio_sequence"]
        assert source.shape == sequence.shape == batch["input_ids"].shape
        sequences_in_a_row = max(sequences_in_a_row, *(len(set(row.tolist()) - {-1}) for row in sequence))
        for number in set(sequence.flatten().tolist()) - {-1}:
            which = set(source[sequence == number].tolist())
            assert len(which) == 1
            tokens = batch["input_ids"][sequence == number]
            seen.append((which.pop(), trainer.processing_class.decode(tokens)))

    host.train(
        mixed,
        output_dir=f"out-{packed}",
        datasets=entries(),
        chat_template="tokenizer_default",
        max_steps=4,
        on_batch=look,
        **packing,
    )
    assert len(seen) >= 12
    assert (sequences_in_a_row > 1) is packed
    for source, text in seen:
        assert [word for word in WORDS.values() if word in text] == [list(WORDS.values())[source]]


class TestRefused:
    @pytest.mark.parametrize(
        ("keys", "said"),
        [
            (
                {"dataset_exact_deduplication": True},
                "dataset_exact_deduplication leaves no row of ['again']: each stands",
            ),
            (
                {"dataset_shard_num": 9, "dataset_shard_idx": 0},
                "dataset_shard_num leaves no row of ['again']: shard 0 of",
            ),
            ({"val_set_size": 0.9, "scalebio": {}}, "val_set_size leaves no row of ['again']: all are among those"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_a_source_whose_rows_a_step_takes(self, mixed: Path, keys: dict[str, Any], said: str) -> None:
        (mixed / "again.jsonl").write_text((mixed / "alpaca.jsonl").open().readline())
        twice = [entries()[1], {"path": "again.jsonl", "type": "alpaca"}]
        with pytest.raises(ValueError, match="leaves no row of") as refused:
            Loaded(mixed, datasets=twice, shuffle_merged_datasets=False, **keys)
        assert said in str(refused.value)

    def test_validation_data_without_a_target(self, mixed: Path) -> None:
        (mixed / "empty.jsonl").write_text(json.dumps({"instruction": "say", "input": "", "output": ""}))
        long = json.dumps({"instruction": "say " * 300, "input": "", "output": "x"})
        (mixed / "long.jsonl").write_text("\n".join([long] * 4))
        with pytest.raises(ValueError, match="validation data|no example|empty|long"):
            Loaded(mixed, scalebio={"validation_datasets": [{"path": "long.jsonl", "type": "alpaca"}]})

    def test_names_given_for_other_entries(self, mixed: Path) -> None:
        with pytest.raises(ValueError, match="one name per entry"):
            Loaded(mixed, scalebio={"names": ["a", "b"]})


def test_counts_are_those_of_the_rows(mixed: Path) -> None:
    loaded = Loaded(mixed)
    table = loaded.prepared.table
    counted = np.zeros(4, dtype=int)
    for row in loaded.meta.train_dataset:
        counted[row["scalebio_source"]] += sum(label != -100 for label in row["labels"][1:])
    assert table.tokens.tolist() == counted.tolist()
    assert table.sequences.tolist() == [24, 24, 24, 24]
    assert table.names == ["chat", "alpaca", "completion", "tokenised"]
