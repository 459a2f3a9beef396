"""What `scalebio check` says of a config, by the host's own validation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

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
    ],
)
def test_what_would_be_refused_is_told_in_whole(tmp_path: Path, capsys, change: dict[str, Any], said: str) -> None:
    status, lines = check(tmp_path, capsys, change)
    assert status == 2
    assert any(said in line for line in lines)
    assert not any("Traceback" in line for line in lines)


def test_the_same_for_a_program(tmp_path: Path, capsys) -> None:
    (tmp_path / "config.yml").write_text(yaml.safe_dump(GOOD | {"zzz": 1, "micro_batch_size": "\x1b[2J"}))
    host.forget_plugins()
    assert main(["check", str(tmp_path / "config.yml"), "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert found.pop("config") == f"{tmp_path}/config.yml"
    assert found.pop("ignored") == ["zzz: the host knows no such key and ignores it"]
    assert [line.split(":")[0] for line in found.pop("refused")] == ["micro_batch_size"]
    assert not found


def test_no_file_is_a_line(tmp_path: Path, capsys) -> None:
    assert main(["check", str(tmp_path / "none.yml")]) == 2
    assert "no file" in capsys.readouterr().err
