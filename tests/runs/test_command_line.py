"""What is given on the command line beside the config arrives, or is an error: the host drops what it does not know."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from scalebio_plugin.config.block import ScaleBiOSettings
from tests import host

pytestmark = pytest.mark.host_contract
BLOCK = {"warmup_steps": 2, "keep": "model", "on_leak": False}  # off


@pytest.fixture
def config(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(inputs)
    host.forget_plugins()
    path = tmp_path / "config.yml"
    path.write_text(yaml.safe_dump(host.config_of(output_dir=str(tmp_path / "out"), scalebio=BLOCK)))
    return str(path)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("penalty", "20", 20),
        ("warmup_steps", "3", 3),
        ("mixture_learning_rate", "1e-3", 1e-3),
        ("estimator", "symmetric", "symmetric"),
        ("keep", "inner", "inner"),
        ("on_leak", "off", "off"),
        ("names", "a,b,c", ["a", "b", "c"]),
    ],
)
@pytest.mark.parametrize("apart", [True, False])
def test_a_key_of_the_block_arrives(monkeypatch, config: str, key: str, text: str, value: object, apart: bool) -> None:
    from axolotl.cli.config import load_cfg

    name = f"--scalebio__{key}"
    monkeypatch.setattr(sys, "argv", ["train", config, *([name, text] if apart else [f"{name}={text}"])])
    given = tuple(value) if isinstance(value, list) else value  # as fire reads it
    cfg = load_cfg(config, **{f"scalebio__{key}": given})
    assert getattr(ScaleBiOSettings.model_validate(cfg.scalebio.to_dict()), key) == value


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--scalebio__penalty=20", r"scalebio\.penalty is not set"),
        ("--scalebio.penalty=20", r"--scalebio\.penalty=20 on the command line did not reach"),
        ("--scalebio__warmup-steps=5", r"scalebio\.warmup_steps is 2"),
        ("--scalebio__on_leak=drop", r"scalebio\.on_leak is False"),
        ("--scalebio__keep=inner", r"scalebio\.keep is model"),
        ("--scalebio={penalty: 20}", r"^--scalebio=\{penalty: 20\} on the command line does not replace the scalebio:"),
    ],
)
def test_a_key_that_the_host_drops_is_an_error(monkeypatch, config: str, argument: str, message: str) -> None:
    """`axolotl train --launcher python` hands on the options it knows alone."""
    from axolotl.cli.main import cli

    arguments = ["train", config, "--launcher", "python", argument]
    monkeypatch.setattr(sys, "argv", ["axolotl", *arguments])
    with pytest.raises(ValueError, match=message):
        cli.main(arguments, standalone_mode=False)
