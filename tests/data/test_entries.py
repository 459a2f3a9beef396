"""Entries that the host migrates, refuses or cannot load: validation entries are as others, errors say the place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from scalebio_plugin.errors import said_by
from tests import host

PACKED = {"sample_packing": True, "eval_sample_packing": False, "micro_batch_size": 1}
TURNS = {"path": "data/turns.jsonl", "type": "chat_template", "field_messages": "turns"}
OLD_KEYS = {**TURNS, "message_field_role": "from", "message_field_content": "value"}
TEMPLATE = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {{ eos_token }}{% endfor %}"
VALIDATION = host.BASE["scalebio"]["validation_datasets"]
pytestmark = pytest.mark.host_contract
# The test runs' own process would save it (see `host._hasten`), and hide what a user meets.
SAVES_NO_EMPTY_SET = pytest.mark.skipif(
    not host.HOST_AVERAGES_MEANS,
    reason="on 0.21 the host's process that saves an unpacked set without rows dies on a circular import of the host; "
    "the error carries the note with the place of the entry",
)


@pytest.fixture(scope="module")
def folder(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The inputs with rows in turns, and rows that are too long."""
    copy = tmp_path_factory.mktemp("loading") / "inputs"
    shutil.copytree(inputs, copy, ignore=shutil.ignore_patterns("prepared*", "out*"))
    rows = [json.loads(line) for line in (copy / "data/validation.jsonl").read_text().splitlines()]
    turns = [[{"from": "human", "value": row["instruction"]}, {"from": "gpt", "value": row["output"]}] for row in rows]
    write(copy / "data/turns.jsonl", [{"turns": turn} for turn in turns])
    write(copy / "data/long.jsonl", [{**row, "output": " ".join([row["output"]] * 300)} for row in rows])
    return copy


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def prepared(folder: Path, monkeypatch: pytest.MonkeyPatch, **overrides: Any) -> Any:
    """What the plugin keeps of `axolotl preprocess` on BASE with `overrides`."""
    from axolotl.integrations.base import PluginManager

    monkeypatch.chdir(folder)
    cfg = host.load(folder, host.config_of(**{"plugins": ["scalebio"], **overrides}))
    (plugin,) = [one for one in PluginManager.get_instance().plugins.values() if "ScaleBiO" in type(one).__name__]
    plugin.load_datasets(cfg, preprocess=True)
    return plugin.prepared


# ---- validation_datasets are entries as in datasets:


@pytest.mark.parametrize("where", ["datasets", "validation_datasets"])
def test_deprecated_keys_are_migrated(folder: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    both = {"chat_template": "jinja", "chat_template_jinja": TEMPLATE}
    new = {**TURNS, **both, "message_property_mappings": {"role": "from", "content": "value"}}
    found = []
    for entry in ({**OLD_KEYS, **both}, new):
        if where == "datasets":
            keys: dict[str, Any] = {"datasets": [*host.BASE["datasets"], entry]}
            found.append(prepared(folder, monkeypatch, **keys).table)
        else:
            found.append(prepared(folder, monkeypatch, scalebio={"validation_datasets": [entry]}).validation.table)
    assert found[0].tokens[-1] > 0
    assert found[0].digest == found[1].digest


def test_what_the_host_refuses_is_refused_by_its_place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [
        VALIDATION[0],
        {"path": "data/validation.jsonl", "type": "sharegpt"},
        {"path": "data/validation.jsonl", "type": "alpaca", "shards": "many"},
        {**TURNS, "chat_template": "jinja"},
        {**OLD_KEYS, "message_property_mappings": {"role": "other", "content": "value"}},
    ]
    with pytest.raises(ValueError, match="validation_datasets") as refused:
        prepared(folder, monkeypatch, scalebio={"validation_datasets": entries})
    text = str(refused.value)
    for said in (
        "scalebio.validation_datasets[1]: `type: sharegpt.*` is deprecated",
        "scalebio.validation_datasets[2].shards: Input should be a valid integer",
        "scalebio.validation_datasets[3]: chat_template_jinja is required",
        "scalebio.validation_datasets[4]: Conflicting message role fields",
    ):
        assert said in text
    assert "validation_datasets[0]" not in text


def test_a_key_that_the_host_does_not_know_is_dropped_as_in_datasets(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = {**VALIDATION[0], "typpe": "completion"}
    monkeypatch.chdir(folder)
    cfg = host.load(
        folder,
        host.config_of(
            plugins=["scalebio"],
            datasets=[*host.BASE["datasets"], entry],
            scalebio={"validation_datasets": [{**entry, "weight": 3.0}]},
        ),
    )
    theirs, ours = cfg.datasets[-1].to_dict(), cfg.scalebio.validation_datasets[0].to_dict()
    assert ours.pop("weight") == 3.0, "the weight is ours: not the host's part of an entry to take, at most 1"
    assert ours == theirs
    assert "typpe" not in ours


def test_a_validated_config_is_validated_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With Ray the worker does so."""
    from axolotl.utils.dict import DictDefault

    from scalebio_plugin.data.entries import validate_validation_datasets

    cfg = DictDefault({"scalebio": {"validation_datasets": [{**OLD_KEYS, "weight": 0.5}]}})
    validate_validation_datasets(cfg)
    once = cfg.to_dict()
    validate_validation_datasets(cfg)
    assert cfg.to_dict() == once


# ---- what cannot be loaded


MISSING = {"path": "data/nowhere.jsonl", "type": "alpaca"}
SPLIT = {"split": "train"}


@pytest.mark.parametrize(
    ("keys", "place"),
    [
        (
            {"scalebio": {"validation_datasets": [*VALIDATION, MISSING]}},
            "scalebio.validation_datasets[1] (data/nowhere",
        ),
        ({"datasets": [*host.BASE["datasets"], MISSING]}, "datasets[3] (data/nowhere"),
        ({"test_datasets": [{**MISSING, **SPLIT}]}, "test_datasets"),
        # Something else than the file: the rows have no such columns.
        ({"datasets": [*host.BASE["datasets"][:2], {**TURNS, "type": "alpaca"}]}, "datasets[2] (data/turns.jsonl)"),
    ],
    ids=["validation_datasets", "datasets", "test_datasets", "columns"],
)
def test_what_cannot_be_loaded_is_told_by_its_place(
    folder: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any], place: str
) -> None:
    with pytest.raises(Exception) as failed:  # noqa: PT011 - the host's, whatever it is
        prepared(folder, monkeypatch, **keys)
    if place.startswith("datasets[2]"):
        (note,) = failed.value.__notes__
        assert note.startswith(f"scalebio: this came up while loading {place}")
    else:  # the host itself says so, to a person
        assert (said_by(failed.value) or "").startswith(f"scalebio: {place}")
        assert "The dataset could not be loaded" in str(failed.value)


@pytest.mark.parametrize("text", ["", "\n\n", "[]"], ids=repr)
@pytest.mark.parametrize("where", ["datasets", "validation_datasets", "test_datasets"])
def test_a_file_without_a_row_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch, where: str, text: str) -> None:
    (folder / "data/none.jsonl").write_text(text)
    entry = {"path": "data/none.jsonl", "type": "alpaca"}
    keys, place = {
        "datasets": ({"datasets": [*host.BASE["datasets"], entry]}, "datasets[3] (data/none.jsonl)"),
        "validation_datasets": (
            {"scalebio": {"validation_datasets": [entry]}},
            "scalebio.validation_datasets[0] (data/none.jsonl)",
        ),
        "test_datasets": ({"test_datasets": [{**entry, **SPLIT}]}, "test_datasets"),
    }[where]
    with pytest.raises(ValueError, match="fill the file, or remove the entry") as refused:
        prepared(folder, monkeypatch, **keys)
    assert str(refused.value).startswith(f"scalebio: {place}: no row in data/none.jsonl")


@pytest.mark.parametrize(
    ("packed", "where"), [({}, "['silent']"), (PACKED, "validation_datasets[0] (data/silent.jsonl)")]
)
def test_validation_rows_without_answer_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, packed: dict[str, Any], where: str
) -> None:
    write(folder / "data/silent.jsonl", [{"instruction": f"say {n}", "input": "", "output": ""} for n in range(4)])
    silent = {"validation_datasets": [{"path": "data/silent.jsonl", "type": "alpaca"}]}
    with pytest.raises(ValueError, match="trained on|train on") as refused:
        prepared(folder, monkeypatch, scalebio=silent, **packed)
    assert where in (said_by(refused.value) or "")


def test_a_test_set_of_which_nothing_is_left_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {"test_datasets": [{"path": "data/long.jsonl", "type": "alpaca", **SPLIT}]}
    with pytest.raises(ValueError, match=r"validation data \(test_datasets\) holds no example.*sequence_len 128"):
        prepared(folder, monkeypatch, scalebio={"validation_datasets": None}, **keys)


@pytest.mark.parametrize("size", [288, 500])
def test_a_validation_split_that_takes_all(folder: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    with pytest.raises(ValueError, match=f"val_set_size {size} leaves nothing of 288 rows to train on"):
        prepared(folder, monkeypatch, scalebio={"validation_datasets": None}, val_set_size=size)


@pytest.mark.parametrize(
    ("where", "packed"),
    [
        pytest.param("datasets", {}, marks=SAVES_NO_EMPTY_SET),
        ("datasets", PACKED),
        ("first of datasets", PACKED),
        ("validation_datasets", PACKED),
    ],
    ids=["plain", "packed", "packed, first", "packed, validation"],
)
def test_an_entry_of_which_nothing_is_left_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, where: str, packed: dict[str, Any], tmp_path: Path
) -> None:
    """Twice: what the host keeps of an empty entry cannot be read again. And cured as the message says."""
    long = {"path": "data/long.jsonl", "type": "alpaca"}
    keys, place = {
        "datasets": ({"datasets": [*host.BASE["datasets"], long]}, "datasets[3]"),
        "first of datasets": ({"datasets": [long, *host.BASE["datasets"]]}, "datasets[0]"),
        "validation_datasets": ({"scalebio": {"validation_datasets": [*VALIDATION, long]}}, "validation_datasets[1]"),
    }[where]
    settings = {**packed, **keys, "dataset_prepared_path": str(tmp_path / "prepared")}
    for _ in range(2):
        with pytest.raises(ValueError, match="no example is left after tokenising") as refused:
            prepared(folder, monkeypatch, **settings)
        assert f"{place} (data/long.jsonl)" in str(refused.value)
        assert "sequence_len 128" in str(refused.value)
        assert "excess_length_strategy: truncate" in str(refused.value)
    cured = prepared(folder, monkeypatch, **settings, excess_length_strategy="truncate")
    assert min(cured.table.tokens.min(), cured.validation.table.tokens.min()) > 0
