"""What `scalebio check` says of a config, by the host's own validation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from axolotl.integrations import base

from scalebio_plugin.cli import main
from scalebio_plugin.quickstart.command import example_config
from tests import host

pytestmark = pytest.mark.host_contract
GOOD: dict[str, Any] = yaml.safe_load(example_config("quickstart.yml").read_text())


def check(folder: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any]) -> tuple[int, list[str]]:
    host.forget_plugins()
    (folder / "config.yml").write_text(yaml.safe_dump(GOOD | change))
    capsys.readouterr()  # of the host, as it was imported
    status = main(["check", str(folder / "config.yml")])
    return status, capsys.readouterr().out.splitlines()


def test_nothing_is_wrong(tmp_path: Path, capsys) -> None:
    assert check(tmp_path, capsys, {}) == (0, [f"{tmp_path}/config.yml: nothing is wrong with it"])


def test_keys_that_the_host_drops_without_a_word_are_told(tmp_path: Path, capsys) -> None:
    status, lines = check(tmp_path, capsys, {"learning_rat": 1e-4, "zzz\x1b[2J": 1})
    assert status == 1
    assert lines == [
        "learning_rat: the host knows no such key and ignores it; did you mean learning_rate?",
        "zzz\\x1b[2J: the host knows no such key and ignores it",
    ]


def test_keys_that_the_host_takes_over_under_another_name_are_not_told(tmp_path: Path, capsys) -> None:
    names = {"model_type": "LlamaForCausalLM", "model_revision": "main", "model_kwargs": {}, "model_config": {}}
    for key in ("type_of_model", "revision_of_model", "overrides_of_model_kwargs", "overrides_of_model_config"):
        assert check(tmp_path, capsys, {key: None})[0] == 0
    assert check(tmp_path, capsys, names)[0] == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scalebio": {"penlty": 3.0}}, "did you mean scalebio.penalty?"),
        ({"streaming": True, "test_datasets": None, "scalebio": {}}, "no validation data"),
        ({"micro_batch_size": "a lot"}, "micro_batch_size: "),  # the host's own
        ({"plugins": None}, "plugins: does not list scalebio"),
        ({"datasets": 3}, "datasets: must be a list of entries"),
        ({"base_model": None}, "base_model: must name a model"),
        ({"plugins": ["scalebio", None]}, "plugins: must be a list of names"),
        ({"plugins": 5}, "plugins: must be a list of names, got 5"),
        ({"plugins": ["scalebio", "axolotl.integrations.liger.LigerPluginn"]}, "liger.LigerPluginn cannot be loaded"),
        ({"plugins": ["scalebio", "nodots"]}, "plugins: nodots cannot be loaded"),
        ({"datasets": [{"type": "alpaca"}, {"path": "b"}]}, "datasets[0]: must have a path"),
    ],
)
def test_what_would_be_refused_is_told_in_whole(tmp_path: Path, capsys, change: dict[str, Any], said: str) -> None:
    status, lines = check(tmp_path, capsys, change)
    assert status == 2
    assert any(said in line for line in lines)
    assert not any("Traceback" in line for line in lines)


def test_what_breaks_the_hosts_validation_is_refused(tmp_path: Path, capsys, monkeypatch) -> None:
    from axolotl.utils import config

    def validate_config(*given: Any) -> None:
        raise AttributeError("'str' object has no attribute 'get'")

    monkeypatch.setattr(config, "validate_config", validate_config)
    status, lines = check(tmp_path, capsys, {})
    assert status == 2
    assert lines == [
        "the host's validation ends in an error of its own (AttributeError: 'str' object has no attribute 'get', in "
        "validate_config); correct the key it is of"
    ]


def test_a_plugin_that_cannot_be_imported_is_told(tmp_path: Path, capsys) -> None:
    """The host goes on without it; from 0.21 on it ends."""
    status, lines = check(tmp_path, capsys, {"plugins": ["scalebio", "no.such.Plugin"]})
    if hasattr(base, "normalize_plugin_name"):
        assert status == 2
        assert "plugins: no.such.Plugin cannot be loaded (No module named 'no')" in lines[0]
    else:
        without = "plugins: the host cannot import no.such.Plugin and goes on without it; correct or install it"
        assert (status, lines) == (1, [without])


def test_keys_of_entries_that_the_host_drops_are_told(tmp_path: Path, capsys) -> None:
    wrong = {"path": "a", "roles_to_trian": ["x"], "tyep": "alpaca", "type": {"field_output": "o", "fromat": "x"}}
    block = {"validation_datasets": [{"path": "v", "type": "alpaca", "weight": 2.0, "splitt": "train"}]}
    entries = {"datasets": [wrong, {"path": "b", "type": "alpaca"}], "test_datasets": [{"path": "t", "splt": "x"}]}
    status, lines = check(tmp_path, capsys, {**entries, "scalebio": block})
    assert status == 1
    ignores = "the host knows no such key and ignores it; did you mean"
    assert lines == [
        f"datasets[0].roles_to_trian: {ignores} roles_to_train?",
        f"datasets[0].tyep: {ignores} type?",
        f"datasets[0].type.fromat: {ignores} format?",
        f"test_datasets[0].splt: {ignores} split?",
        f"scalebio.validation_datasets[0].splitt: {ignores} split?",
    ]


def test_keys_of_entries_that_the_host_reads_are_not_told(tmp_path: Path, capsys) -> None:
    chat = {"path": "a", "type": "chat_template", "field_messages": "m", "roles": {"user": ["human", "x"]}}
    chat |= {"message_property_mappings": {"role": "from", "any": "b"}, "roles_to_train": ["x"], "train_on_eos": "turn"}
    old = {"path": "b", "type": "chat_template", "message_field_role": "from", "message_field_content": "value"}
    given = {"path": "c", "type": {"field_instruction": "i", "format": "x"}, "data_files": ["x"], "ds_type": "json"}
    made = {"type": "_synthetic", "length": 10, "sequence_length": 8}
    whole = {"path": "d", "name": "n", "split": "train", "revision": "r", "shards": 2, "shards_idx": 1, "field": "f"}
    entries = [chat, old, given, made, {**whole, "type": "completion", "trust_remote_code": True}]
    assert check(tmp_path, capsys, {"datasets": entries, "chat_template": "chatml"}) == (
        0,
        [f"{tmp_path}/config.yml: nothing is wrong with it"],
    )


def test_each_problem_is_one_for_a_program(tmp_path: Path, capsys) -> None:
    (tmp_path / "config.yml").write_text(yaml.safe_dump(GOOD | {"scalebio": {"penlty": 3.0, "estimatr": "x"}}))
    host.forget_plugins()
    assert main(["check", str(tmp_path / "config.yml"), "--json"]) == 2
    refused = json.loads(capsys.readouterr().out)["refused"]
    assert [line.split(":")[0] for line in refused] == ["scalebio.estimatr", "scalebio.penlty"]


def test_the_same_for_a_program(tmp_path: Path, capsys) -> None:
    (tmp_path / "config.yml").write_text(yaml.safe_dump(GOOD | {"zzz": 1, "micro_batch_size": "\x1b[2J"}))
    host.forget_plugins()
    assert main(["check", str(tmp_path / "config.yml"), "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert found.pop("config") == f"{tmp_path}/config.yml"
    assert found.pop("ignored") == ["zzz: the host knows no such key and ignores it"]
    assert [line.split(":")[0] for line in found.pop("refused")] == ["micro_batch_size"]
    assert not found
