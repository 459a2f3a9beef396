"""The host's other commands take the config of a run that learned, as it is, and what that run left."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from scalebio_plugin.config.refusals import problems_of
from tests import host

pytestmark = pytest.mark.slow
KEYS = {**host.LORA, "max_steps": 3, "val_set_size": 0.2, "seed": 1}


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> host.Run:
    inputs = host.make_inputs(tmp_path_factory.mktemp("commands"))
    return host.train(inputs, output_dir="out", scalebio={"keep": "inner"}, **KEYS)


@pytest.fixture
def config(learned: host.Run, monkeypatch: pytest.MonkeyPatch) -> str:
    """Its file, in the folder that it is for."""
    monkeypatch.chdir(learned.directory)
    host.forget_plugins()
    path = learned.directory / "config.yml"
    path.write_text(yaml.safe_dump(host.config_of(output_dir="out", scalebio={"keep": "inner"}, **KEYS)))
    return str(path)


@pytest.mark.parametrize("method", ["memory_efficient", "legacy"])
def test_merge_lora_adds_the_adapter(learned: host.Run, config: str, method: str) -> None:
    from axolotl.cli.merge_lora import do_cli

    do_cli(config, merge_method=method)
    merged, base = (load_file(learned.directory / f"{name}/model.safetensors") for name in ("out/merged", "model"))
    adapter = load_file(learned.directory / "out/adapter_model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    a, b = (adapter[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    assert b.abs().max() > 0
    torch.testing.assert_close(merged[f"{name}.weight"].float(), base[f"{name}.weight"].float() + 2.0 * b @ a)


def test_evaluate_measures_what_the_host_alone_measures(learned: host.Run, config: str) -> None:
    from axolotl.cli.args import TrainerCliArgs
    from axolotl.cli.config import load_cfg
    from axolotl.cli.evaluate import do_evaluate

    alone = learned.directory / "alone.yml"
    alone.write_text(yaml.safe_dump(host.config_of(output_dir="out", plugins=["tests.host.ProbePlugin"], **KEYS)))
    losses = []
    for path in (config, str(alone)):
        host.forget_plugins()
        do_evaluate(load_cfg(path, lora_model_dir="out"), TrainerCliArgs())
        table = (learned.directory / "out/eval_summary.csv").read_text()
        losses.append([line for line in table.splitlines() if line.startswith("loss")])
    assert len(losses[0]) == 1
    assert losses[0] == losses[1]


def test_inference_answers_from_the_adapter(
    learned: host.Run, config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from axolotl.cli import inference

    questions = iter(["what is the colour of", ""])
    monkeypatch.setattr(inference, "get_multi_line_input", lambda: next(questions))
    inference.do_cli(config, prompter=None, lora_model_dir="out")
    assert "=" * 20 in capsys.readouterr().out


def test_preprocess_leaves_what_a_run_takes(learned: host.Run, config: str) -> None:
    from axolotl.cli.preprocess import do_cli

    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (learned.directory / "before").rglob("*.arrow")}

    do_cli(config, dataset_prepared_path="before")
    prepared = files()
    assert len(prepared) >= 3
    host.train(learned.directory, output_dir="out-before", dataset_prepared_path="before", **KEYS)
    assert prepared.items() <= files().items()


def test_a_sweep_over_the_block_makes_configs_that_differ_in_it(config: str) -> None:
    from axolotl.cli.utils.sweeps import generate_sweep_configs

    given = yaml.safe_load(Path(config).read_text())
    swept = generate_sweep_configs(
        given, {"scalebio": [{**given["scalebio"], "penalty": value} for value in (5.0, 20.0)]}
    )
    assert sorted(problems_of(each) == [] and each["scalebio"]["penalty"] for each in swept) == [5.0, 20.0]
