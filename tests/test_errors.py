"""What a person is told of an error, and which errors keep their traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from scalebio_plugin.config.block import ScaleBiOArgs
from scalebio_plugin.errors import STATUS, ending_quietly, said_by
from tests import host
from tests.config.test_refusals import GOOD


class Host(ScaleBiOArgs):
    learning_rate: float = 0.0


def error_of(model: type[BaseModel], given: Any) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(given)
    return caught.value


def test_the_text_alone() -> None:
    assert said_by(ValueError("scalebio.penalty: no")) == "scalebio.penalty: no"
    assert said_by(ValueError("--scalebio.penalty=1 did not reach")) == "--scalebio.penalty=1 did not reach"


def test_notes_of_where_it_came_up_belong_to_it() -> None:
    error = ValueError("scalebio: no")
    error.add_note("scalebio: this came up while loading datasets[0] (a.jsonl)")
    assert said_by(error) == "scalebio: no\nscalebio: this came up while loading datasets[0] (a.jsonl)"


def test_it_does_nothing_to_a_terminal() -> None:
    assert said_by(ValueError("scalebio: no source \x1b[2Ja\n  - b")) == "scalebio: no source \\x1b[2Ja\n  - b"


def test_of_the_hosts_error_for_a_whole_config_the_problems() -> None:
    error = error_of(Host, {**GOOD, "datasets": GOOD["datasets"][:1], "rl": "dpo"})
    text = said_by(error)
    assert text is not None
    assert text.startswith("scalebio cannot run this config:\n  - datasets: must list")
    assert "\n  - rl: 'dpo'" in text
    assert "type=value_error" not in text


@pytest.mark.parametrize(
    "error",
    [
        ValueError("too many values to unpack (expected 1)"),
        RuntimeError("scalebio: this is a bug, please report it"),
        KeyError("scalebio"),
        KeyboardInterrupt(),
        error_of(Host, {**GOOD, "learning_rate": "fast"}),
    ],
    ids=lambda error: type(error).__name__,
)
def test_others_keep_their_traceback(error: BaseException) -> None:
    assert said_by(error) is None


def test_of_several_processes_one_that_said_it_is_enough() -> None:
    class Failure:
        exitcode = STATUS

    class ChildFailedError(Exception):
        failures = {0: Failure()}  # noqa: RUF012

    class Arguments:
        training_script = "axolotl.cli.train"

    def launcher(args: object) -> None:
        raise ChildFailedError

    with pytest.raises(SystemExit) as ended:
        ending_quietly(launcher)(Arguments())
    assert ended.value.code == STATUS


@pytest.mark.slow
@pytest.mark.host_contract
@pytest.mark.parametrize(
    "command", [["accelerate", "launch", "-m", "axolotl.cli.train"], ["axolotl", "train"]], ids=str
)
def test_it_is_the_last_thing_on_the_screen(inputs: Path, tmp_path: Path, command: list[str]) -> None:
    path = tmp_path / "config.yml"
    path.write_text(yaml.safe_dump(host.config_of(plugins=["scalebio"], scalebio={"penalti": 10})))
    program = [str(Path(sys.executable).parent / command[0]), *command[1:], str(path)]
    done = subprocess.run(program, cwd=inputs, capture_output=True, text=True)
    assert done.returncode == STATUS
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-2] == "scalebio cannot run this config:"
    assert "did you mean scalebio.penalty?" in done.stderr.splitlines()[-1]
