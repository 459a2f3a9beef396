"""What a learning run does besides the mathematics: metrics, files, refusals in mid-run, evaluation."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from scalebio_plugin.hooks.spec import hookimpl
from scalebio_plugin.report.cost import read_cost
from scalebio_plugin.report.history import read_history
from scalebio_plugin.report.mixture_file import read_mixture
from scalebio_plugin.training.resume_from import newest_whole
from tests import host


@pytest.fixture(scope="module")
def finished(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> host.Run:
    folder = tmp_path_factory.mktemp("finished")
    more = {"use_tensorboard": True, "logging_steps": 2, "picture": True, "parameters": True}
    return host.train(inputs, output_dir=str(folder / "out"), **more)


@pytest.mark.host_contract
def test_metrics_go_through_the_hosts_log(finished: host.Run) -> None:
    logged = [entry for entry in finished.trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in logged] == [2, 4, 6]
    for entry in logged:
        assert sum(entry[f"scalebio/weight/{name}"] for name in ("clean", "wrong", "offtopic")) == pytest.approx(1)
        assert {"scalebio/gap/clean", "scalebio/evidence/clean", "scalebio/val_loss"} <= set(entry)


def test_the_log_says_how_long_learning_goes_on(inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "axolotl.scalebio"):
        host.train(inputs, output_dir=str(tmp_path / "out"), max_steps=4, scalebio={"learn": {"steps": 3}})
    left = [message.split("no source is told apart yet")[1] for message in caplog.messages if "so far: " in message]
    assert [re.sub(r"[\d.]+ (s|min)$", "", line) for line in left] == [
        "; 2 learning steps left, about ",
        "; 1 learning step left, about ",
        "",
    ]


def test_no_step_asks_what_the_model_is_wrapped_in(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer takes accelerate a millisecond, for it looks on the disk which wrappers are installed."""
    asked, unwrap = [], Accelerator.unwrap_model

    def noted(self: Accelerator, *args: Any, **kwargs: Any) -> Any:
        asked.append(sys._getframe(1).f_globals["__name__"])
        return unwrap(self, *args, **kwargs)

    monkeypatch.setattr(Accelerator, "unwrap_model", noted)
    host.train(inputs, output_dir=str(tmp_path / "out"), max_steps=4)
    assert [name.split(".")[0] for name in asked].count("scalebio_plugin") == 1
    assert len(asked) > 4  # the host does


def test_tensorboard_shows_them(finished: host.Run) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = Path(finished.cfg.output_dir).glob("runs/**/events*")
    accumulator = EventAccumulator(str(events.parent))
    accumulator.Reload()
    tags = accumulator.Tags()["scalars"]
    assert "train/scalebio/weight/clean" in tags
    assert "train/scalebio/val_loss" in tags


@pytest.mark.host_contract
def test_what_a_run_leaves(finished: host.Run) -> None:
    history = read_history(finished.folder / "history.jsonl")
    assert [record["step"] for record in history] == [1, 2, 3, 4, 5, 6]
    document = read_mixture(finished.folder / "mixture.json")
    assert document["weights"] == pytest.approx(history[-1]["weights"])
    assert document["sources"]["clean"]["examples"] == 96
    assert document["sources"]["clean"]["tokens"] > 96
    assert document["seed"] == 42
    assert {"axolotl", "torch", "scalebio"} <= set(document["versions"])
    assert set(document["fingerprint"]) == {"config", "data", "validation"}
    assert (finished.folder / "mixture.png").read_bytes()[:4] == b"\x89PNG"
    page = (finished.folder / "report.html").read_text()
    assert all(f"{weight:.4f}" in page for weight in document["weights"].values())
    assert read_cost(finished.folder).phases.keys() == {"learn"}
    assert "6 learning steps" in page
    assert (document["config"], document["output_dir"]) == ("config.yml", finished.cfg.output_dir)
    settings = document["settings"]
    assert settings["learning_rate"] == finished.cfg.learning_rate
    assert settings["optimizer"] == "adamw_torch"
    assert settings["lr_scheduler"] == "cosine"
    assert settings["scalebio.bounds"] == {}
    assert settings["scalebio.mixture_learning_rate"] > 0
    assert not {"scalebio.penalty", "tokenizer", "scalebio.validation_datasets"} & set(settings)
    assert f"axolotl train {finished.cfg.output_dir}/scalebio/next.yml" in page


def test_a_run_that_is_killed_leaves_the_page_of_its_last_save(inputs: Path, tmp_path: Path) -> None:
    out, saves = str(tmp_path / "out"), {"save_strategy": "steps", "save_steps": 2}
    with pytest.raises(KeyboardInterrupt):
        host.train(inputs, output_dir=out, stop_after=3, **saves)
    page = (tmp_path / "out/scalebio/report.html").read_text()
    assert "2 updates of the weights in 2 optimiser steps" in page
    assert "<img" not in page, "the picture is drawn at the end"
    assert read_cost(tmp_path / "out/scalebio").phases["learn"].steps == 2
    host.train(inputs, output_dir=out, resume_from_checkpoint=f"{out}/checkpoint-2", **saves)
    assert read_cost(tmp_path / "out/scalebio").phases["learn"].steps == 6


class FailsAtTheEnd:
    @hookimpl
    def scalebio_run_ended(self, document: dict) -> None:
        raise KeyError("of an extension")


def test_what_fails_after_the_last_step_does_not_lose_the_model(inputs: Path, tmp_path: Path, monkeypatch) -> None:
    """A disk that is full of pictures, an extension with a bug: the host saves the model only afterwards."""

    def fail(*_: object) -> None:
        raise OSError("no room")

    monkeypatch.setattr("scalebio_plugin.report.page.drawn_mixture", fail)
    extension = f"{__name__}:FailsAtTheEnd"
    block = {"extensions": [extension]}
    run = host.train(inputs, output_dir=str(tmp_path / "out"), max_steps=2, scalebio=block, picture=True)
    assert (tmp_path / "out/model.safetensors").exists()
    assert read_mixture(run.folder / "mixture.json")
    assert (run.folder / "next.yml").exists()
    assert not (run.folder / "report.html").exists()


def test_a_history_that_is_torn_in_mid_run_does_not_lose_the_model(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def tear(trainer: Any, batch: Any) -> None:
        if trainer.state.global_step == 3:
            with (out / "scalebio/history.jsonl").open("ab") as file:
                file.write(b'{"step": 3, "wei\n')

    host.train(inputs, output_dir=str(out), on_batch=tear, max_steps=4, save_strategy="steps", save_steps=2)
    assert (out / "model.safetensors").exists()
    assert newest_whole(str(out)) == (f"{out}/checkpoint-4", {})
    assert read_mixture(out / "scalebio/mixture.json")["steps"] == 2, "it is left as the second step had it"


def test_the_model_left_is_w(finished: host.Run) -> None:
    from transformers import AutoModelForCausalLM

    loaded = dict(AutoModelForCausalLM.from_pretrained(finished.cfg.output_dir).named_parameters())
    assert all(torch.equal(loaded[name], value) for name, value in finished.model[-1].items())
    assert any(not torch.equal(finished.inner[-1][name], value) for name, value in finished.model[-1].items())


def test_an_adapter_run_leaves_an_adapter(inputs: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run = host.train(inputs, output_dir=str(tmp_path / "out"), parameters=True, **host.LORA)
    assert all("lora" in name for name in run.inner[-1])
    base = AutoModelForCausalLM.from_pretrained(inputs / "model")
    loaded = dict(PeftModel.from_pretrained(base, tmp_path / "out").named_parameters())
    for name, value in run.model[-1].items():
        assert torch.equal(loaded[name.removeprefix("module.")], value)


def test_a_second_run_in_the_same_folder_starts_anew_and_with_the_same_seed_writes_the_same_bytes(
    inputs: Path, tmp_path: Path, finished: host.Run
) -> None:
    shutil.copytree(finished.cfg.output_dir, tmp_path / "out")
    again = host.train(inputs, output_dir=str(tmp_path / "out"))
    first, second = ((run.folder / "history.jsonl").read_bytes() for run in (finished, again))
    assert first == second


def test_evaluation_during_learning_is_the_hosts(inputs: Path, tmp_path: Path) -> None:
    run = host.train(
        inputs,
        output_dir=str(tmp_path / "out"),
        test_datasets=[{"path": "data/test.jsonl", "type": "alpaca", "split": "train"}],
        eval_steps=3,
    )
    evaluated = [entry["eval_loss"] for entry in run.trainer.state.log_history if "eval_loss" in entry]
    assert len(evaluated) >= 2
    assert evaluated[-1] < evaluated[0]


OFFTOPIC = [{"path": "data/offtopic.jsonl", "type": "alpaca"}]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, r"training loss of \['offtopic'\] at the model"),
        ({"scalebio": {"warmup_steps": 8}, "max_steps": 9}, r"training loss of \['offtopic'\] at the model"),
        ({"datasets": host.BASE["datasets"][:2], "scalebio": {"validation_datasets": OFFTOPIC}}, "validation loss"),
        ({"scalebio": {"learn": {"steps": 4}}}, "gradient of the model"),
    ],
    ids=["train", "warmup", "validation", "after learning"],
)
def test_nan_stops_the_run_before_the_step_and_names_the_source(
    inputs: Path, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    """From step 5 on the embedding of a word that only the off-topic rows hold is NaN."""
    with pytest.raises(FloatingPointError, match=rf"{named}.*optimiser step 5"):
        host.train(
            inputs,
            output_dir=str(tmp_path / "out"),
            nan_from=(4, "both"),
            **{"max_steps": 8, "micro_batch_size": 8, "save_strategy": "steps", "save_steps": 2, **changes},
        )
    assert (tmp_path / "out/checkpoint-4/scalebio/inner.safetensors").exists()
    assert not (tmp_path / "out/checkpoint-6").exists()
    if "warmup_steps" in changes.get("scalebio", {}):
        assert not (tmp_path / "out/scalebio/history.jsonl").exists()
        return
    history = (tmp_path / "out/scalebio/history.jsonl").read_text()
    assert json.loads(history.splitlines()[-1])["step"] == 4
    assert "NaN" not in history
