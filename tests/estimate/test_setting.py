"""What of the host's config decides memory and compute."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scalebio_plugin.config.block import ScaleBiOSettings
from scalebio_plugin.config.refusals import problems_of
from scalebio_plugin.estimate.given import read_config
from scalebio_plugin.estimate.layout import Kind, layout_of
from scalebio_plugin.estimate.lines import lines_of
from scalebio_plugin.estimate.model import config_of
from scalebio_plugin.estimate.setting import Cost, precision_of, setting_of

from .tiny import estimated, rows


def test_keys_left_out_count_as_the_hosts_defaults(tmp_path: Path) -> None:
    from axolotl.utils.schemas.config import AxolotlInputConfig

    fields = AxolotlInputConfig.model_fields
    defaults = {key: fields[key].default for key in ("sequence_len", "micro_batch_size", "gradient_accumulation_steps")}
    short = {"base_model": rows(tmp_path)["base_model"], "sample_packing": True}
    found, spelt = (estimated(cfg, tmp_path) for cfg in (short, {**short, **defaults}))
    assert lines_of(found, 8.0) == lines_of(spelt, 8.0)
    assert found.setting.cost == spelt.setting.cost
    assert replace(found, setting=spelt.setting) == spelt
    assert found.run.peak > 0


@pytest.mark.parametrize("accumulation", [1, 3, 4, 10])
@pytest.mark.parametrize("gpus", [1, 2])
def test_validation_rows_are_a_quarter_or_a_micro_batch(tmp_path: Path, accumulation: int, gpus: int) -> None:
    cfg = {**rows(tmp_path), "gradient_accumulation_steps": accumulation, "sample_packing": True}
    whole = 2 * accumulation * gpus
    wanted = max(2 * gpus, math.ceil(whole / 4)) / whole
    assert setting_of(cfg, tmp_path, gpus).cost.validation == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("validation", "block", "max_steps", "learning", "whole"),
    [
        (0.25, {}, None, 2.25, 2.25),
        (0.25, {"estimator": "symmetric"}, None, 2.5, 2.5),
        (0.25, {"learn": {"fraction": 0.5}}, None, 2.25, 1.625),
        (0.3, {"penalty": math.inf}, None, 2.1, 2.1),
        (0.25, {"learn": {"steps": 10}}, None, 2.25, None),
        (0.25, {"learn": {"steps": 10}}, 100, 2.25, 1.125),
        (0.25, {"warmup_steps": 20}, 100, 2.25, 2.0),
        (0.25, {"warmup_steps": 20, "learn": {"fraction": 0.5}}, 100, 2.25, 1.5),
        (0.25, {"warmup_steps": 20}, None, 2.25, None),
        (0.25, {"learn": {"until": "converged", "at_most": 0.1}}, 1000, 2.25, 1.125),
        (0.25, {"learn": {"until": "converged"}}, None, 2.25, 1.625),
    ],
)
def test_passes_per_step(
    validation: float, block: dict[str, Any], max_steps: int | None, learning: float, whole: float | None
) -> None:
    cost = Cost(ScaleBiOSettings.model_validate(block), validation, max_steps)
    assert cost.while_learning == pytest.approx(learning)
    assert cost.whole_run == (None if whole is None else pytest.approx(whole))


@pytest.mark.parametrize(("max_steps", "whole"), [("100", 1.125), (100, 1.125), (0, None), (-1, None), (None, None)])
def test_steps_count_as_the_host_counts_them(tmp_path: Path, max_steps: Any, whole: float | None) -> None:
    """0 and less: as many as there are epochs."""
    cfg = {**rows(tmp_path), "max_steps": max_steps, "gradient_accumulation_steps": 4}
    cost = setting_of({**cfg, "scalebio": {"learn": {"steps": 10}}}, tmp_path, 1).cost
    assert cost.whole_run == (None if whole is None else pytest.approx(whole))


def test_what_learns_until_it_has_converged_is_said_to_cost_at_most_so_much(tmp_path: Path) -> None:
    block = {"learn": {"until": "converged", "at_most": 0.1}}
    found = estimated({**rows(tmp_path), "gradient_accumulation_steps": 4, "scalebio": block}, tmp_path)
    assert "             over the whole run: 1.12 at most" in lines_of(found, 8.0)


@pytest.mark.parametrize("key", ["micro_batch_size", "sequence_len", "gradient_accumulation_steps", "max_steps"])
@pytest.mark.parametrize("value", ["auto", [1], math.inf])
def test_a_number_that_is_none_is_named(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{key}: must be a whole number, got "):
        lines_of(estimated({**rows(tmp_path), key: value}, tmp_path), 8.0)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: 1\nb: [1, 2\nc: 3\n", r"is no YAML: .*expected ',' or ']'.*line 3, column 2"),
        (b"a: 1\nb: \x00\n", "is no YAML: .*special characters"),
        ("a: café\n".encode("latin-1"), "is no text in UTF-8.*line 1; save it as UTF-8"),
        (b"- a\n", "is no Axolotl config: it must be a block of keys"),
    ],
    ids=["flow", "control", "latin-1", "a list"],
)
def test_a_config_that_cannot_be_read_says_where_and_why(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "config.yml").write_bytes(content)
    with pytest.raises(ValueError, match=rf"config\.yml {said}") as error:
        read_config(tmp_path / "config.yml")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"{bro", "is no JSON: .*line 1"), (b"[]", "must be a JSON object"), (b'{"a": "\xe9"}', "is no text in UTF-8")],
)
def test_json_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zero.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"zero\.json {said}"):
        layout_of({"deepspeed": "zero.json"}, 1, 2.0)
    with pytest.raises(ValueError, match=rf"zero\.json {said}"):
        config_of("m", tmp_path, tmp_path / "zero.json")


@pytest.mark.parametrize("block", [{}, {"lisa": {"active_layers": 1}}, {"apply": "mixture.json"}], ids=str)
def test_the_hosts_lisa_keys_count_as_the_plugin_takes_them_over(tmp_path: Path, block: dict[str, Any]) -> None:
    lisa = setting_of({**rows(tmp_path), "lisa_n_layers": 3, "scalebio": block}, tmp_path, 1).block.lisa
    taken = (3, True) if not block else (1, False) if "lisa" in block else None
    assert (lisa and (lisa.active_layers, lisa.train_embeddings)) == taken


@pytest.mark.parametrize(
    ("cfg", "expected"),
    [
        ({}, "bf16"),
        ({"bf16": "auto"}, "bf16"),
        ({"bf16": "auto", "fp16": True}, "fp16"),
        ({"bf16": False, "fp16": True}, "fp16"),
        ({"bf16": False}, "fp32"),
        ({"bf16": True}, "bf16"),
        ({"bf16": False, "bfloat16": True}, "bf16"),
        ({"bf16": False, "float16": True}, "fp32"),  # all of it trains
        ({"bf16": False, "float16": True, "adapter": "lora"}, "fp16"),
    ],
)
def test_precision_is_resolved_as_the_host_does_on_a_gpu(cfg: dict[str, Any], expected: str) -> None:
    assert precision_of(cfg) == expected


def test_a_deepspeed_file_beside_the_config_alone_is_not_found_as_in_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "zero2.json").write_text('{"zero_optimization": {"stage": 2}}')
    given = {**rows(tmp_path), "deepspeed": "zero2.json"}
    said = r"^deepspeed: no file zero2\.json in the folder where the run starts; .* or give the whole path"
    with pytest.raises(FileNotFoundError, match=said):
        setting_of(given, tmp_path, 2)
    (problem,) = problems_of({**given, "val_set_size": 0.1, "datasets": [{"path": "a"}, {"path": "b"}]})
    assert re.match(said, problem)
    monkeypatch.chdir(tmp_path)
    assert setting_of(given, tmp_path, 2).layout.stage == 2


def test_layouts_are_read_from_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def kind(cfg: dict[str, Any], gpus: int) -> tuple[Kind, int]:
        layout = layout_of(cfg, gpus, 2.0)
        return layout.kind, layout.stage

    zero = {"zero_optimization": {"stage": 2, "overlap_comm": True, "offload_optimizer": {"device": "cpu"}}}
    (tmp_path / "zero2.json").write_text(json.dumps(zero))
    assert kind({}, 1) == (Kind.ONE, 0)
    assert kind({}, 2) == (Kind.DDP, 0)
    assert kind({"fsdp_version": 2, "fsdp_config": {"offload_params": True}}, 2) == (Kind.FSDP2, 0)
    assert kind({"deepspeed": "zero2.json"}, 2) == (Kind.DEEPSPEED, 2)
    layout = layout_of({"deepspeed": "zero2.json"}, 2, 2.0)
    assert (layout.offload_optimizer, layout.offload_weights, layout.buckets) == (True, False, 2)
    with pytest.raises(FileNotFoundError, match=r"zero9\.json"):
        layout_of({"deepspeed": "zero9.json"}, 2, 2.0)
    with pytest.raises(ValueError, match="dp_replicate_size: 2 must divide the GPUs, got 1"):
        layout_of({"fsdp_config": {"x": 1}, "dp_replicate_size": 2}, 1, 2.0)
    with pytest.raises(ValueError, match="dp_replicate_size: must be a whole number, got 'x'"):
        layout_of({"fsdp_config": {"x": 1}, "dp_replicate_size": "x"}, 1, 2.0)
    with pytest.raises(ValueError, match=r"deepspeed: zero_optimization\.stage: must be a whole number, got 'auto'"):
        layout_of({"deepspeed": {"zero_optimization": {"stage": "auto"}}}, 1, 2.0)
