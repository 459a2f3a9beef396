"""`scalebio estimate`: what it says, and the promises of the README."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import Gemma3Config

from scalebio_plugin import cli
from scalebio_plugin.algorithm.pieces import ENTRIES
from scalebio_plugin.estimate.estimator import estimate, from_model
from scalebio_plugin.estimate.lines import GIB, lines_of, summary_line
from scalebio_plugin.estimate.passes import PassBytes

from .tiny import LORA, bilevel, estimated, real

EXAMPLES = sorted((Path(__file__).parents[2] / "example_configs").glob("*.yml"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where activations are not the point: they are not counted."""
    monkeypatch.setattr("scalebio_plugin.estimate.estimator.measure", lambda *_: PassBytes(2.0**27, 2.0**26))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yml"
    path.write_text(yaml.safe_dump(bilevel(tmp_path)))
    return path


def test_it_says_that_it_fits(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["estimate", str(config), "--gpu-memory", "8"]) == 0
    printed = capsys.readouterr().out
    assert "LlamaForCausalLM, 8 blocks" in printed
    assert "2.25 times" in printed
    assert "8 GiB      fits" in printed
    for row in ("gradients", "optimizer states", "inner parameters", "inner optimizer states", "peak", "logits"):
        assert row in printed


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("gib", "status"), [("8", 0), ("1", 1)])
def test_the_same_for_a_program(config: Path, capsys: pytest.CaptureFixture[str], gib: str, status: int) -> None:
    assert cli.main(["estimate", str(config), "--gpu-memory", gib]) == status
    assert ("does NOT fit" in capsys.readouterr().out) == (status == 1)
    assert cli.main(["estimate", str(config), "--gpu-memory", gib, "--json"]) == status
    found, of = json.loads(capsys.readouterr().out), estimate(config)
    assert found["fits"] == (status == 0)
    assert found["parameters"] == {"total": of.total, "trained": of.trained, "at_a_time": of.active}
    assert found["bytes_per_gpu"]["this_run"]["peak"] == of.run.peak
    assert found["bytes_per_gpu"]["ordinary"]["inner_parameters"] == 0
    assert found["bytes_per_gpu"]["this_run"].keys() == found["bytes_per_gpu"]["ordinary"].keys()
    assert found["passes"] == {"while_learning": 2.25, "whole_run": 2.25}
    assert (found["scalebio_listed"], found["refused"], found["gpus"]) == (True, [], 1)


@pytest.mark.usefixtures("quick")
def test_what_would_be_refused_is_told_to_a_program(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text(yaml.safe_dump({**bilevel(config.parent), "datasets": [{"path": "a"}], "plugins": None}))
    assert cli.main(["estimate", str(config), "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert [line.split(":")[0] for line in found["refused"]] == ["datasets"]
    assert found["scalebio_listed"] is False


@pytest.mark.parametrize("block", [{"penlty": 1.0, "estimatr": "x"}, 3])
def test_a_wrong_block_is_told_to_a_program(config: Path, capsys: pytest.CaptureFixture[str], block: Any) -> None:
    config.write_text(yaml.safe_dump({**bilevel(config.parent), "scalebio": block}))
    assert cli.main(["estimate", str(config), "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    keys = ["scalebio"] if block == 3 else ["scalebio.estimatr", "scalebio.penlty"]
    assert [line.split(":")[0] for line in found["refused"]] == keys


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("plugins", [None, [], ["axolotl.integrations.liger.LigerPlugin"]], ids=str)
def test_it_says_that_the_plugin_is_off(
    config: Path, capsys: pytest.CaptureFixture[str], plugins: list[str] | None
) -> None:
    cli.main(["estimate", str(config), "--gpu-memory", "8"])
    numbers = capsys.readouterr().out
    assert "is off" not in numbers
    config.write_text(yaml.safe_dump({**bilevel(config.parent), "plugins": plugins}))
    assert cli.main(["estimate", str(config), "--gpu-memory", "8"]) == 0
    first, _, rest = capsys.readouterr().out.partition("\n\n")
    assert "scalebio is off" in first
    assert "add `plugins: [scalebio]`" in first
    assert rest == numbers


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", ["scalebio", "scalebio_plugin.ScaleBiOPlugin", "scalebio_plugin:ScaleBiOPlugin"])
def test_every_name_of_the_plugin_turns_it_on(config: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    config.write_text(yaml.safe_dump({**bilevel(config.parent), "plugins": [name]}))
    cli.main(["estimate", str(config), "--gpu-memory", "8"])
    assert "is off" not in capsys.readouterr().out


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_model": None}, "needs base_model"),
        ({"base_model": "no/such-model"}, "--model-config FILE"),
        ({"scalebio": {"penaltyy": 1.0}}, "penaltyy"),
        ({"deepspeed": "nowhere.json"}, "nowhere.json"),
        ({"scalebio": {"lisa": {"active_layers": 9}}}, "at most 8"),
        ({"adapter": "llama-adapter"}, "lora, qlora and none can"),
        ({"datasets": [{"path": "a"}]}, "at least two sources"),
        ({"max_steps": "many"}, "max_steps: must be a whole number, got 'many'"),
        ({"micro_batch_size": -2}, "micro_batch_size: must be at least 1, got -2"),
        ({"sequence_len": "-512"}, "sequence_len: must be at least 1, got -512"),
        ({"fsdp_version": 2, "fsdp_config": {"reshard": 1}, "dp_replicate_size": -1}, "dp_replicate_size: must be at"),
        ({"unfrozen_parameters": ["layers.[0"]}, "unterminated character set"),
        ({"unfrozen_parameters": ["lm_head[5:2]"]}, "unfrozen_parameters: ValueError: Invalid range"),
        ({"unfrozen_parameters": 3}, "unfrozen_parameters: TypeError"),
        (
            {"overrides_of_model_config": {"num_attention_heads": 0}},
            "overrides_of_model_config: no model has these shapes",
        ),
        ({"overrides_of_model_config": {"num_hidden_layers": "x"}}, "overrides_of_model_config: no model has these"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_config_is_status_2(
    config: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], message: str
) -> None:
    config.write_text(yaml.safe_dump({**bilevel(config.parent), **change}))
    assert cli.main(["estimate", str(config)]) == 2
    assert message in capsys.readouterr().err
    assert cli.main(["estimate", str(config), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["refused"]


@pytest.mark.usefixtures("quick")
def test_applying_a_mixture_costs_what_the_ordinary_run_costs(tmp_path: Path) -> None:
    found = estimated({**bilevel(tmp_path), "scalebio": {"apply": "mixture.json"}}, tmp_path)
    assert found.run == found.ordinary
    assert any("ordinary run: no bilevel step" in line for line in lines_of(found, 8.0))


def test_adapters_add_the_inner_set_and_nothing_else(tmp_path: Path) -> None:
    found = estimated({**bilevel(tmp_path), **LORA}, tmp_path)
    extra = found.run.peak - found.ordinary.peak
    assert extra == pytest.approx(12 * found.trained)
    assert found.run.state.gradients == found.ordinary.state.gradients


def test_a_model_whose_code_needs_data_is_estimated_roughly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def needs_data(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("data-dependent")

    monkeypatch.setattr("scalebio_plugin.estimate.estimator.measure", needs_data)
    found = estimated(bilevel(tmp_path), tmp_path)
    assert found.run.passes.activations > found.run.passes.logits > 0
    assert any("activations: rough" in line for line in lines_of(found, 8.0))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"adapter": "lora", "load_in_8bit": True, "lora_r": 4, "lora_target_linear": True}, "rough for an 8-bit base"),
        ({"activation_offloading": True}, "are not counted: less on the GPU, more on the CPU"),
        ({"sample_packing": True}, "validation_batch_size counts sequences"),
        ({"optimizer": "tomorrow"}, "counted as AdamW"),
        ({"optimizer": "paged_adamw_8bit"}, "may move to CPU memory"),
    ],
    ids=["8-bit", "offloading", "packing", "an unknown optimizer", "a paged one"],
)
def test_what_is_not_counted_is_told(keys: dict[str, Any], told: str, tmp_path: Path) -> None:
    found = estimated({**bilevel(tmp_path), **keys, "scalebio": {"validation_batch_size": 2}}, tmp_path)
    assert any(told in line for line in lines_of(found, 8.0))


@pytest.mark.parametrize("block", [{}, {"lisa": {"active_layers": 2}}], ids=["full", "lisa"])
def test_the_summary_is_a_few_lines(block: dict[str, Any]) -> None:
    found = from_model(real("llama", {}), {"optimizer": "adamw_torch", "scalebio": block})
    lines = summary_line(found, on_gpu=True)
    assert 3 <= len(lines) <= 6
    assert lines[0].startswith("scalebio: ")
    assert lines[0].endswith("; one process, 1 GPU)")
    assert any("CPU memory" in line for line in lines) == bool(block)


@pytest.mark.parametrize("device", ["model", "cpu"])
def test_the_summary_of_a_machine_without_gpu_says_so_and_shows_no_zeros(device: str) -> None:
    block = {"inner": {"device": device}}
    found = from_model(real("llama", {}), {"optimizer": "adamw_torch", "scalebio": block})
    text = "\n".join(summary_line(found, on_gpu=False))
    assert "one process on the CPU)" in text
    assert "GPU" not in text
    assert " 0.00" not in text
    held = found.run.state.held
    assert f"together {(held.gpu + held.cpu) / 2**20:.2f}, " in text
    assert "MiB per process" in text


# ---- the promises of the README


@pytest.mark.slow
def test_yi_34b_fits_where_the_readme_says() -> None:
    (lisa,) = [path for path in EXAMPLES if path.stem == "yi-34b-lisa"]
    cfg = {**yaml.safe_load(lisa.read_text()), "fsdp_version": 2, "fsdp_config": {"offload_params": False}}
    sharded = estimated(cfg, lisa.parent, 8)
    assert sharded.run.peak < 48 * GIB < sharded.ordinary.peak
    qlora = {
        **{"base_model": "01-ai/Yi-34B", "sequence_len": 1024, "micro_batch_size": 1, "bf16": True},
        **{"adapter": "qlora", "load_in_4bit": True, "lora_r": 16, "lora_target_linear": True},
        **{"gradient_checkpointing": True, "gradient_accumulation_steps": 16},
    }
    assert estimated(qlora, lisa.parent).run.peak < 48 * GIB


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in EXAMPLES if path.stem != "quickstart"], ids=lambda path: path.stem)
def test_every_example_can_be_estimated(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)  # where one has its DeepSpeed JSON
    found = estimate(path)
    assert found.run.passes.total > 0
    assert not found.rough
    assert math.isfinite(found.run.peak)


@pytest.mark.parametrize(
    ("key", "ordinary"),
    [("cut_cross_entropy", True), pytest.param("chunked_cross_entropy", False, marks=pytest.mark.slow)],
)
def test_a_fused_loss_has_no_logits_of_a_batch(tmp_path: Path, key: str, ordinary: bool) -> None:
    """The host's chunked loss has them; our passes have none with any of the keys."""
    cfg = {**bilevel(tmp_path), "micro_batch_size": 64, "overrides_of_model_config": {"vocab_size": 100_000}}
    plain, fused = estimated(cfg, tmp_path), estimated({**cfg, key: True}, tmp_path)
    one_piece = ENTRIES * 12  # entries; probabilities and two gradients of them
    assert plain.run.passes.logits > 10 * one_piece
    assert fused.run.passes.logits == pytest.approx(one_piece, rel=0.1)  # pieces are equally long
    assert (fused.ordinary.passes.logits < 1.1 * one_piece) == ordinary


@pytest.mark.usefixtures("quick")
def test_a_text_model_inside_a_multimodal_one_is_estimated(tmp_path: Path) -> None:
    text = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    text |= {"head_dim": 32, "intermediate_size": 128, "vocab_size": 512}
    seen = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    cfg = bilevel(tmp_path) | {"chunked_cross_entropy": True}
    Gemma3Config(text_config=text, vision_config=seen).save_pretrained(tmp_path / "model")
    assert estimated(cfg, tmp_path).run.peak > 0


@pytest.mark.usefixtures("quick")
def test_numbers_that_yaml_takes_for_texts_are_those_of_the_run(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    block = "\nscalebio: {names: [a, b], min_rows: 100, bounds: {a: [1e-2, 5e-1]}, mixture_init: {a: 4e-1, b: 0.6}}\n"
    config.write_text(config.read_text() + block)
    assert cli.main(["estimate", str(config), "--gpu-memory", "8"]) == 0, capsys.readouterr().err
