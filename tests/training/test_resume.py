"""A run that was killed and resumed ends with the same bytes as one never stopped."""

from __future__ import annotations

import json
import multiprocessing
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, patch

import pytest
import torch
from axolotl.core.trainers.base import AxolotlTrainer
from safetensors import SafetensorError

from scalebio_plugin.training import checkpoint
from scalebio_plugin.training.manifest import write_manifest
from scalebio_plugin.training.phase import Phase
from scalebio_plugin.training.random_state import DataOrder
from scalebio_plugin.training.resumable import ResumableTrainer
from scalebio_plugin.training.resume_from import newest_whole, problem_of, refuse_problem
from tests import host

LISA = {"lisa": {"active_layers": 1, "interval": 4}}
SAVING = {"max_steps": 10, "save_strategy": "steps", "save_steps": 3, "save_total_limit": 2, "micro_batch_size": 3}
ALL = {**SAVING, "save_total_limit": 9}
PACKED = {"sample_packing": True, "micro_batch_size": 1, "num_epochs": 4, "dataloader_num_workers": 1}
DRAWN = {"sampling": "mixture", "max_repeats": 2}
EPOCHS = {
    "datasets": [{**entry, "shards": 6, "shards_idx": 0} for entry in host.BASE["datasets"]],
    **{"max_steps": None, "num_epochs": 2, "micro_batch_size": 2, "gradient_accumulation_steps": 5},
}
CASES = {
    "full": {},
    "quantisation-aware": {"qat": host.QAT},
    "accumulated": {"gradient_accumulation_steps": 3},
    "lora": {**host.LORA, "lora_dropout": 0.1},
    "lisa in mid-interval": {"scalebio": LISA},
    "packed": PACKED,
    "evidence": {"scalebio": {"mixture_update": "evidence"}},
    "bf16": {"bf16": True},
    "after learning": {"scalebio": {"learn": {"steps": 5}}},
    "after learning, packed": {**PACKED, "scalebio": {"learn": {"steps": 4}}},
    "warmup": {"scalebio": {"warmup_steps": 4}},
    "update_interval": {"scalebio": {"update_interval": 4, "mixture_update": "adam"}},
    "drawn by source": {"scalebio": DRAWN, "gradient_accumulation_steps": 2, "dataloader_num_workers": 2},
    "drawn by source, lora, warmup": {**host.LORA, "lora_dropout": 0.1, "scalebio": {**DRAWN, "warmup_steps": 4}},
    "drawn by source, packed": {**PACKED, "scalebio": DRAWN},
    "drawn by source, after learning": {"scalebio": {**DRAWN, "learn": {"steps": 4}}},
    "drawn by source, after learning, packed": {**PACKED, "scalebio": {**DRAWN, "learn": {"steps": 5}}},
    "drawn by source, epochs": {**EPOCHS, "scalebio": DRAWN},
    # Three steps an epoch: where an epoch begins, the host restores its generators before it takes batches.
    "drawn by source, between epochs, lora": {
        **{**EPOCHS, **host.LORA, "lora_dropout": 0.1, "gradient_accumulation_steps": 8, "num_epochs": 4},
        "scalebio": DRAWN,
    },
    "epochs": EPOCHS,
    # The first batches of a lap are taken before the host restores its generators, and those of dropout are among them.
    "as learning ends, lora": {**host.LORA, "lora_dropout": 0.1, "scalebio": {"learn": {"steps": 6}}},
    "after learning, between laps, lora": {
        **{**EPOCHS, **host.LORA, "lora_dropout": 0.1, "gradient_accumulation_steps": 8, "num_epochs": 4},
        "scalebio": {"learn": {"steps": 3}},
    },
}


STATES = ("mixture", "inner", "optimizer.pt", "scheduler.pt")
SLOW = {  # other twos of what is there by default, or more of it
    *("accumulated", "epochs", "quantisation-aware", "after learning, packed", "drawn by source, lora, warmup"),
    *("drawn by source, after learning", "drawn by source, between epochs, lora"),
    "after learning, between laps, lora",
    *("full", "lora", "packed", "bf16", "after learning", "warmup", "drawn by source, packed"),  # less of it
}


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {key: value for file in sorted(folder.glob("*.safetensors")) for key, value in load_file(file).items()}


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def assert_same_end(a: Path, b: Path, last: int) -> None:
    assert (a / "scalebio/history.jsonl").read_bytes() == (b / "scalebio/history.jsonl").read_bytes()
    assert same(tensors(a), tensors(b))
    counts = [json.loads((folder / "scalebio/mixture.json").read_text())["drawn"] for folder in (a, b)]
    assert counts[0] == counts[1]
    for name in STATES:
        assert same(*(host.saved(folder / f"checkpoint-{last}", name) for folder in (a, b))), name
    assert len({(folder / f"checkpoint-{last}/rng_state.pth").read_bytes() for folder in (a, b)}) == 1


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] if case in SLOW else []) for case in CASES]
)
def test_resumed_run_ends_with_the_same_bytes(inputs: Path, tmp_path: Path, case: str) -> None:
    whole = host.train(inputs, output_dir=str(tmp_path / "whole"), **{**ALL, **CASES[case]})
    last = whole.trainer.state.global_step
    assert last > 6
    host.as_if_killed(tmp_path / "whole", tmp_path / "killed", 6)
    settings = {**SAVING, **CASES[case], "auto_resume_from_checkpoints": True}
    again = host.train(inputs, output_dir=str(tmp_path / "killed"), **settings)
    assert len(again.weights) == last - 6, "it did not go on from checkpoint-6"
    assert_same_end(tmp_path / "whole", tmp_path / "killed", last)
    documents = [(tmp_path / name / "scalebio/mixture.json").read_text() for name in ("whole", "killed")]
    assert documents[0].replace(str(tmp_path / "whole"), str(tmp_path / "killed")) == documents[1]
    newest = {f"checkpoint-{3 * ((last - 1) // 3)}", f"checkpoint-{last}"}  # old ones go with their state
    assert {path.name for path in (tmp_path / "killed").glob("checkpoint-*")} == newest


@pytest.mark.parametrize("case", [pytest.param("full", marks=pytest.mark.slow), "drawn by source, packed"])
def test_a_run_that_was_killed_has_left_what_the_others_begin_with(inputs: Path, tmp_path: Path, case: str) -> None:
    settings = {**ALL, **CASES[case]}
    host.train(inputs, output_dir=str(tmp_path / "whole"), **settings)
    host.as_if_killed(tmp_path / "whole", tmp_path / "copied", 6)
    with pytest.raises(KeyboardInterrupt):
        host.train(inputs, output_dir=str(tmp_path / "killed"), stop_after=8, **settings)
    assert sorted(path.name for path in (tmp_path / "killed").glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-6"]
    folders = [tmp_path / name for name in ("copied", "killed")]
    files = [
        {path.relative_to(folder) for path in folder.glob("checkpoint-*/**/*") if path.name != "training_args.bin"}
        for folder in folders
    ]
    assert files[0] == files[1]
    for name in STATES:
        assert same(*(host.saved(folder / "checkpoint-6", name) for folder in folders)), name
    assert same(*(tensors(folder / "checkpoint-6") for folder in folders))
    histories = [(folder / "scalebio/history.jsonl").read_text().splitlines() for folder in folders]
    assert histories[0][: len(histories[1])] == histories[1]


@pytest.fixture(scope="module")
def whole(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> host.Run:
    """A run with all of its checkpoints. Whoever goes on from one does so in a copy."""
    return host.train(inputs, output_dir=str(tmp_path_factory.mktemp("whole")), **ALL)


def resume(inputs: Path, whole: host.Run, checkpoint: int, tmp_path: Path, **changes: Any) -> Path:
    """The folder of a run that went on from that checkpoint."""
    out = tmp_path / "out"
    shutil.copytree(whole.cfg.output_dir, out)
    (out / "scalebio/report.html.123.tmp").touch()  # of a process that was killed
    host.train(inputs, output_dir=str(out), resume_from_checkpoint=f"{out}/checkpoint-{checkpoint}", **ALL | changes)
    return out


def test_resume_from_an_older_checkpoint_forgets_what_came_later(inputs: Path, tmp_path: Path, whole: host.Run) -> None:
    out = resume(inputs, whole, 3, tmp_path)
    assert_same_end(Path(whole.cfg.output_dir), out, 10)
    assert not [*out.glob("scalebio/*.tmp")]


def test_before_the_first_batch_the_order_of_an_epoch_comes_from_what_the_host_restored() -> None:
    states = [torch.Generator().manual_seed(seed).get_state() for seed in range(2)]
    trainer, order = ResumableTrainer.__new__(ResumableTrainer), DataOrder()
    trainer.learning = SimpleNamespace(order=order)
    with (
        torch.random.fork_rng(devices=[]),
        patch.object(AxolotlTrainer, "_load_rng_state", lambda self, state: torch.set_rng_state(state)),
    ):
        order.at_epoch(None, 0)
        for state in states:
            trainer._load_rng_state(state)
            order.at_batches()
    assert torch.equal(order.epoch, states[0])


@pytest.mark.parametrize(("done", "last"), [(1, 0), (6, 5)])
def test_the_host_loads_its_optimizer_while_the_layers_of_the_last_step_train(done: int, last: int) -> None:
    events: list[str | int] = []

    @contextmanager
    def hosts_optimizer() -> Iterator[None]:
        events.append("the host's optimizer")
        yield
        events.append("ours")

    trainer = ResumableTrainer.__new__(ResumableTrainer)
    layers = SimpleNamespace(freeze_others=lambda step, parameters: events.append(step))
    trainer.learning = SimpleNamespace(layers=layers, engine=SimpleNamespace(hosts_optimizer=hosts_optimizer))
    trainer.state = SimpleNamespace(global_step=done)
    trainer.optimizer = SimpleNamespace(param_groups=[])
    with (
        patch.object(ResumableTrainer, "trainable_parameters", lambda self: {}),
        patch.object(AxolotlTrainer, "_load_optimizer_and_scheduler", lambda self, folder: events.append("loaded")),
        patch.object(ResumableTrainer, "_restore", lambda self, learning, folder: events.append("u")),
    ):
        trainer._load_optimizer_and_scheduler("checkpoint")
    assert events == [last, "the host's optimizer", "loaded", "ours", "u"]


def test_what_our_files_hold_of_the_optimizer_goes_back_into_it() -> None:
    """As on FSDP2, where the host cannot save all of it."""
    calls: list[Any] = []
    engine = SimpleNamespace(
        restore_model_part=lambda parameters, part: calls.append(part),
        restore_optimizer_part=lambda parameters, optimizer, part: calls.append((optimizer, part)),
    )
    settings = SimpleNamespace(warmup_steps=9)
    run = SimpleNamespace(phase=lambda done: Phase.LEARN, settings=settings, names=["a"], weights_S=torch.ones(1))
    folder = SimpleNamespace(restore_history=lambda path: False)
    stream = SimpleNamespace(load_state_dict=lambda position, done: None)
    learning = SimpleNamespace(place=None, run=run, engine=engine, folder=folder, stream=stream)
    trainer = ResumableTrainer.__new__(ResumableTrainer)
    trainer.optimizer, trainer.state = "the optimizer", SimpleNamespace(global_step=3, max_steps=9)
    saved = checkpoint.InnerPart(None, (0, 0), {}, {"of": "the model"}, {"of": "the optimizer"})
    with (
        patch.object(ResumableTrainer, "trainable_parameters", lambda self: {}),
        patch.object(ResumableTrainer, "is_world_process_zero", lambda self: True),
        patch.object(checkpoint, "read_inner", lambda folder, place: saved),
    ):
        trainer._restore(learning, "checkpoint-3")
    assert calls == [saved.model, ("the optimizer", saved.optimizer)]


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("train", ("checkpoint-3",)),
        ("_save_checkpoint", ("model", "trial")),
        ("_save_optimizer_and_scheduler", ("checkpoint-3",)),
        ("_load_rng_state", ("checkpoint-3",)),
        ("_load_optimizer_and_scheduler", ("checkpoint-3",)),
        ("_maybe_log_save_evaluate", (0.5, None)),
    ],
)
def test_without_learning_it_is_the_hosts_trainer(method: str, arguments: tuple[Any, ...]) -> None:
    trainer, calls = ResumableTrainer.__new__(ResumableTrainer), []
    with patch.object(AxolotlTrainer, method, lambda self, *given: calls.append(given)):
        getattr(trainer, method)(*arguments)
    assert calls == [arguments]


def test_a_resume_says_where_it_goes_on(inputs: Path, tmp_path: Path, whole: host.Run, log: list[str]) -> None:
    out = resume(inputs, whole, 9, tmp_path)
    (line,) = [message for message in log if "resumed" in message]
    weights = dict(zip(("clean", "wrong", "offtopic"), whole.weights[8].tolist(), strict=True))
    largest = sorted(weights, key=lambda name: -weights[name])
    shown = ", ".join(f"{name} {weights[name]:.4f}" for name in largest)
    assert line == (
        f"scalebio: resumed from {out}/checkpoint-9 after optimiser step 9 of 10 (learning goes on); weights: {shown}"
    )


def test_it_saves_as_often_as_its_config_says_and_the_log_says_what_it_does_not_follow(
    inputs: Path, tmp_path: Path, whole: host.Run, log: list[str]
) -> None:
    changes = {"save_steps": 2, "learning_rate": 5e-4, "adam_beta2": 0.98}
    out = resume(inputs, whole, 6, tmp_path, **changes)
    assert {path.name for path in out.glob("checkpoint-*")} == {f"checkpoint-{step}" for step in (3, 6, 8, 9, 10)}
    kept = "as in the checkpoint, whose optimizer the host goes on with; this config has"
    assert [line for line in log if "as in the checkpoint" in line] == [
        f"scalebio: learning_rate remains 0.002, {kept} 0.0005",
        f"scalebio: betas remains [0.9, 0.999], {kept} [0.9, 0.98]",
    ]
    assert_same_end(Path(whole.cfg.output_dir), out, 10)


def as_an_earlier_version_wrote_it(folder: Path) -> None:
    for name in ("mixture", "inner"):
        torch.save(host.saved(folder, name), folder / f"scalebio_{name}.pt")
    (folder / "scalebio/history.jsonl").rename(folder / "scalebio_history.jsonl")
    (folder / "scalebio_complete").write_text("step 6, 1 ranks\n")
    shutil.rmtree(folder / "scalebio")


@pytest.mark.parametrize("earlier", [False, True], ids=["this version's", "an earlier version's"])
def test_one_that_is_written_over_another_is_not_whole_before_its_end(
    inputs: Path, tmp_path: Path, whole: host.Run, earlier: bool
) -> None:
    out = tmp_path / "out"
    for step in (6, 9):
        shutil.copytree(Path(whole.cfg.output_dir) / f"checkpoint-{step}", out / f"checkpoint-{step}")
    if earlier:
        as_an_earlier_version_wrote_it(out / "checkpoint-9")
    with (
        patch("scalebio_plugin.training.resumable.write_manifest", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        host.train(inputs, output_dir=str(out), resume_from_checkpoint=f"{out}/checkpoint-6", **ALL)
    assert "not written to its end" in str(problem_of(f"{out}/checkpoint-9"))


def test_a_checkpoint_of_an_earlier_version_resumes(
    inputs: Path, tmp_path: Path, whole: host.Run, log: list[str]
) -> None:
    folder = tmp_path / "out/checkpoint-6"
    shutil.copytree(Path(whole.cfg.output_dir) / "checkpoint-6", folder)
    as_an_earlier_version_wrote_it(folder)
    host.train(inputs, output_dir=str(folder.parent), auto_resume_from_checkpoints=True, **ALL)
    assert_same_end(Path(whole.cfg.output_dir), folder.parent, 10)
    assert any(f"{folder} was written by an earlier version" in line for line in log)


AT_THE_END = {
    **{name: CASES[name] for name in ("full", "drawn by source, packed", "drawn by source, epochs")},
    "keep: inner": {**host.LORA, "scalebio": {"keep": "inner"}},
    "saved by epoch": {"save_strategy": "epoch", "save_steps": None},  # which ends once more
}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[] if case in ("full", "drawn by source, packed") else [pytest.mark.slow])
        for case in AT_THE_END
    ],
)
def test_a_run_that_was_killed_before_its_final_save_takes_no_step_more(
    inputs: Path, tmp_path: Path, case: str
) -> None:
    """The host alone, resumed within an epoch, would take step 11 of 10, and save the model of that."""
    keys = {**ALL, **AT_THE_END[case]}
    run = host.train(inputs, output_dir=str(tmp_path / "whole"), **keys)
    last = run.trainer.state.global_step
    host.as_if_killed(tmp_path / "whole", tmp_path / "killed", last)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("checkpoint-*/**/*")}
    again = host.train(inputs, output_dir=str(tmp_path / "killed"), **keys, auto_resume_from_checkpoints=True)
    assert (again.trainer.state.global_step, again.weights) == (last, [])
    assert_same_end(tmp_path / "whole", tmp_path / "killed", last)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("checkpoint-*/**/*")} == before


class TestEnded:
    """By a signal: after the step, with a checkpoint from which the run ends as if nothing had been."""

    @staticmethod
    def train_until(inputs: Path, out: Path, number: int, **keys: Any) -> None:
        """A run that is sent the signal in its fifth step, and so are its children: launchers send it to a group."""

        step, others = ResumableTrainer.training_step, multiprocessing.active_children()

        def tell(trainer: Any, *args: Any, **kwargs: Any) -> Any:
            if trainer.state.global_step == 4 and number not in trainer.learning.signals.noted:
                for child in set(multiprocessing.active_children()).difference(others):
                    # By another process: torch sees who it is from.
                    subprocess.run(["kill", f"-{int(number)}", str(child.pid)], check=True)
                signal.raise_signal(number)
            return step(trainer, *args, **kwargs)

        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # where a process would be gone
        try:
            with pytest.raises(SystemExit), patch.object(ResumableTrainer, "training_step", tell):
                host.train(inputs, output_dir=str(out), **keys)
        finally:
            signal.signal(signal.SIGTERM, before)

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_the_state_is_saved_first(
        self, inputs: Path, tmp_path: Path, whole: host.Run, log: list[str], number: signal.Signals
    ) -> None:
        out = tmp_path / "out"
        self.train_until(inputs, out, number, **ALL)
        assert {path.name for path in out.glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-5"}
        assert (
            f"scalebio: {number.name} ends the run after optimiser step 5; auto_resume_from_checkpoints goes on from "
            "checkpoint-5"
        ) in log
        host_saved = (out / "model.safetensors").exists()  # its handler of Ctrl-C does: the model after the step
        assert host_saved == (number is signal.SIGINT)
        if host_saved:
            assert same(tensors(out), tensors(out / "checkpoint-5"))
        host.train(inputs, output_dir=str(out), auto_resume_from_checkpoints=True, **ALL)
        assert_same_end(Path(whole.cfg.output_dir), out, 10)

    def test_a_signal_that_comes_during_a_save_ends_the_run_with_it(
        self, inputs: Path, tmp_path: Path, log: list[str]
    ) -> None:
        """Not after another step and another save, for which a launcher may leave no time."""

        def told(*args: Any) -> None:
            signal.raise_signal(signal.SIGTERM)
            write_manifest(*args)

        with patch("scalebio_plugin.training.resumable.write_manifest", told):
            self.train_until(inputs, tmp_path, signal.SIGTERM, **ALL)
        assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]
        refuse_problem(str(tmp_path / "checkpoint-3"))
        assert any("SIGTERM ends the run after optimiser step 3; auto_resume" in line for line in log)

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_workers_of_the_data_loader_bring_the_step_to_its_end(
        self, inputs: Path, tmp_path: Path, number: signal.Signals
    ) -> None:
        """The host has one a GPU, of itself; torch's end at SIGTERM, and the run with them, in mid-step."""
        workers = {"dataloader_num_workers": 1, "gradient_accumulation_steps": 4, "micro_batch_size": 1}
        self.train_until(inputs, tmp_path, number, **(ALL | workers))
        refuse_problem(str(tmp_path / "checkpoint-5"))

    def test_or_the_log_says_that_it_is_not(self, inputs: Path, tmp_path: Path, log: list[str]) -> None:
        self.train_until(inputs, tmp_path, signal.SIGTERM, **{**ALL, "save_strategy": "no", "save_steps": None})
        assert not list(tmp_path.glob("checkpoint-*"))
        assert any("after optimiser step 5; the state of learning is not saved" in line for line in log)

    def test_what_is_saved_on_ctrl_c_is_the_set_to_keep(self, inputs: Path, tmp_path: Path) -> None:
        saved = {}
        for keep in ("model", "inner"):
            self.train_until(inputs, tmp_path / keep, signal.SIGINT, **ALL, scalebio={"keep": keep})
            saved[keep] = tensors(tmp_path / keep)
        (u,) = [host.saved(tmp_path / "inner/checkpoint-5", "inner")["inner"]["values"]]
        assert u.keys() <= saved["inner"].keys()
        assert all(torch.equal(saved["inner"][name], value) for name, value in u.items())
        assert same(tensors(tmp_path / "inner/checkpoint-5"), saved["model"])


def test_a_checkpoint_is_pushed_to_the_hub_once_it_is_whole(inputs: Path, tmp_path: Path) -> None:
    """What is fetched from there is one to go on from."""
    pushed: list[tuple[str, str | None]] = []

    def upload(folder_path: str, path_in_repo: str | None = None, **_: Any) -> Any:
        if path_in_repo is not None:
            pushed.append((path_in_repo, problem_of(folder_path)))
        return MagicMock(is_done=lambda: True)

    hub = MagicMock(upload_folder=upload)
    keys = {**ALL, "hub_model_id": "someone/model", "hub_strategy": "all_checkpoints", "output_dir": str(tmp_path)}
    with patch("transformers.trainer.hf_api", lambda: hub), pytest.raises(KeyboardInterrupt):
        host.train(inputs, stop_after=7, **keys)
    assert pushed == [("checkpoint-3", None), ("checkpoint-6", None)]


@pytest.mark.parametrize(
    ("limit", "file"),
    [pytest.param(500_000, "optimizer.pt", marks=pytest.mark.slow), (800_000, "scalebio/inner.safetensors")],
)
def test_a_file_that_cannot_be_written_leaves_the_checkpoint_before(
    inputs: Path, tmp_path: Path, whole: host.Run, limit: int, file: str
) -> None:
    """As on a full disk: the system refuses to write more bytes than that into the host's file, or into ours."""
    out, (_, most) = tmp_path / "out", resource.getrlimit(resource.RLIMIT_FSIZE)
    sizes = {path.name: path.stat().st_size for path in (Path(whole.cfg.output_dir) / "checkpoint-6").rglob("*")}
    in_turn = ("model.safetensors", "optimizer.pt", "inner.safetensors")
    assert next(name for name in in_turn if sizes[name] > limit) == Path(file).name

    def fill(trainer: Any, batch: Any) -> None:
        if trainer.state.global_step == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))

    try:
        with pytest.raises((OSError, RuntimeError, SafetensorError)) as error:
            host.train(inputs, output_dir=str(out), on_batch=fill, **ALL)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert any("checkpoint-6 was not written to its end (is the disk full?)" in note for note in error.value.__notes__)
    assert not list(out.rglob("*.tmp"))
    taken, passed_over = newest_whole(str(out))
    assert taken == f"{out}/checkpoint-3"
    assert passed_over[f"{out}/checkpoint-6"].startswith("was not written to its end")
    host.train(inputs, output_dir=str(out), auto_resume_from_checkpoints=True, **ALL)
    assert_same_end(Path(whole.cfg.output_dir), out, 10)


def before_the_model_loads() -> Any:
    return patch("axolotl.train.setup_model_and_trainer", side_effect=AssertionError("the model was loaded"))


class TestDamaged:
    """Of what the checkpoint before has all of, nothing is lost; see also test_manifest.py."""

    @staticmethod
    def damage(path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content[:200] + bytes([content[200] ^ 1]) + content[201:])

    def copy(self, whole: host.Run, out: Path, *steps: int) -> Path:
        """A folder with these checkpoints of a whole run, the newest of them damaged."""
        for step in steps:
            shutil.copytree(Path(whole.cfg.output_dir) / f"checkpoint-{step}", out / f"checkpoint-{step}")
        self.damage(out / f"checkpoint-{steps[-1]}/optimizer.pt")
        return out

    def test_the_run_goes_on_from_the_one_before(
        self, inputs: Path, tmp_path: Path, whole: host.Run, log: list[str]
    ) -> None:
        out = self.copy(whole, tmp_path / "out", 3, 6, 9)
        host.train(inputs, output_dir=str(out), auto_resume_from_checkpoints=True, **ALL)
        assert_same_end(Path(whole.cfg.output_dir), out, 10)
        (line,) = [line for line in log if "damaged" in line]
        assert line == (
            f"scalebio: {out}/checkpoint-9 is damaged (optimizer.pt is changed), so the run goes on from "
            f"{out}/checkpoint-6"
        )

    def test_what_was_written_since_stays_where_one_is_kept(
        self, inputs: Path, tmp_path: Path, whole: host.Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """On a file system without times, say, the host would keep the one with the largest number."""
        monkeypatch.setattr("os.path.getmtime", lambda path: 0.0)
        out = self.copy(whole, tmp_path / "out", 6, 10)
        one = {**SAVING, "save_total_limit": 1, "auto_resume_from_checkpoints": True}
        with pytest.raises(KeyboardInterrupt):
            host.train(inputs, output_dir=str(out), stop_after=10, **one)
        assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-9"]
        host.train(inputs, output_dir=str(out), **one)
        assert_same_end(Path(whole.cfg.output_dir), out, 10)

    def test_a_run_that_begins_elsewhere_deletes_none_of_them(
        self, inputs: Path, tmp_path: Path, whole: host.Run
    ) -> None:
        out = self.copy(whole, tmp_path / "out", 3, 6, 9)
        (out / "checkpoint-9/optimizer.pt").unlink()  # to save room
        (out / "checkpoint-9000").mkdir()
        (out / "checkpoint-9000/model.safetensors").touch()  # made by hand
        with pytest.raises(KeyboardInterrupt):
            host.train(inputs, output_dir=str(out), stop_after=7, resume_from_checkpoint=f"{out}/checkpoint-3", **ALL)
        names = {path.name for path in out.glob("*checkpoint-*")}
        assert names == {f"checkpoint-{step}" for step in (3, 6, 9, 9000)}

    @pytest.mark.parametrize("how", ["by name", "all of them"])
    def test_an_error_before_the_model_loads(self, inputs: Path, tmp_path: Path, whole: host.Run, how: str) -> None:
        out = self.copy(whole, tmp_path / "out", 6)
        keys: dict[str, Any] = {"auto_resume_from_checkpoints": True}
        message = "none is whole:\n.*checkpoint-6 is damaged .optimizer.pt is changed"
        if how == "by name":
            keys["resume_from_checkpoint"] = f"{out}/checkpoint-6"
            message = "^scalebio: .*checkpoint-6 is damaged .optimizer.pt is changed.*resume from another"
        with before_the_model_loads(), pytest.raises(ValueError, match=message):
            host.train(inputs, output_dir=str(out), **ALL, **keys)


def edited(inputs: Path, folder: Path) -> list[dict[str, str]]:
    """`datasets:` of which one row of `wrong` says something else."""
    copy = folder / "wrong.jsonl"
    first, *rest = (inputs / "data/wrong.jsonl").read_text().splitlines(keepends=True)
    row = json.loads(first)
    copy.write_text(json.dumps(row | {"instruction": row["instruction"][::-1]}) + "\n" + "".join(rest))
    return [entry | ({"path": str(copy)} if "wrong" in entry["path"] else {}) for entry in host.BASE["datasets"]]


def test_edited_rows_are_refused_by_their_source_and_taken_if_asked_to(
    inputs: Path, tmp_path: Path, whole: host.Run
) -> None:
    """The prompt alone is another one: its labels, and the order of all rows, are as before."""
    changes = {"datasets": edited(inputs, tmp_path)}
    with pytest.raises(ValueError, match=r"\n  - texts: source 'wrong' has 96 rows as before, but edited ones") as told:
        resume(inputs, whole, 9, tmp_path / "refused", **changes)
    assert len(str(told.value).splitlines()) == 3
    out = resume(inputs, whole, 9, tmp_path / "taken", **changes, scalebio={"on_mismatch": "warn"})
    now = json.loads((out / "checkpoint-10/scalebio/run.json").read_text())
    before = json.loads((out / "checkpoint-9/scalebio/run.json").read_text())
    assert [name for name in now["sources"] if now["sources"][name] != before["sources"][name]] == ["wrong"]


class TestRefused:
    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"scalebio": {"penalty": 20.0}}, ["scalebio.penalty: this run has 20.0 and it had 10.0"]),
            ({"optimizer": "sgd"}, ["optimizer: this run has 'sgd' and it had 'adamw_torch'"]),
            (
                {"micro_batch_size": 2},
                [
                    "rows of a step: this run has 2 and it had 3",
                    "scalebio.validation_batch_size: this run has 2 and it had 3",
                ],
            ),
            (
                {"micro_batch_size": 1, "gradient_accumulation_steps": 3},
                ["scalebio.validation_batch_size: this run has 1 and it had 3 (rows of a validation batch)"],
            ),
            (
                {"scalebio": {"validation_datasets": [{"path": "data/clean.jsonl", "type": "alpaca"}]}},
                ["validation sets: it has ['validation'], this run ['clean']: 'validation' is missing, 'clean' is new"],
            ),
            (host.LORA, ["model: this run has another one", "trainable: this run has another one", "lora_alpha: this"]),
        ],
        ids=["penalty", "optimizer", "batch", "micro-batch", "validation", "adapter"],
    )
    def test_another_run(
        self, inputs: Path, tmp_path: Path, whole: host.Run, changes: dict[str, Any], said: list[str]
    ) -> None:
        early = nullcontext() if changes is host.LORA else before_the_model_loads()
        with early, pytest.raises(ValueError, match="is of another run") as told:
            resume(inputs, whole, 9, tmp_path, **changes)
        lines = str(told.value).splitlines()[1:-1]
        assert [line.startswith(f"  - {start}") for line, start in zip(lines, said, strict=True)] == [True] * len(said)

    @pytest.mark.parametrize(
        ("datasets", "message"),
        [
            (host.BASE["datasets"][:2], r"(?s)of another run:\n  - sources: .*'offtopic' is missing; put them back"),
            (host.BASE["datasets"][::-1], "back in that order"),
        ],
        ids=["others", "another order"],
    )
    def test_other_sources(self, inputs: Path, tmp_path: Path, whole: host.Run, datasets: Any, message: str) -> None:
        with before_the_model_loads(), pytest.raises(ValueError, match=message):
            resume(inputs, whole, 9, tmp_path, datasets=datasets)

    def test_another_sampling(self, inputs: Path, tmp_path: Path, whole: host.Run) -> None:
        said = r"scalebio.sampling: this run has 'mixture' and it had 'host'.*; set it back"
        with before_the_model_loads(), pytest.raises(ValueError, match=said):
            resume(inputs, whole, 9, tmp_path, scalebio={"sampling": "mixture"})

    def test_checkpoint_without_our_state(self, inputs: Path, tmp_path: Path) -> None:
        host.train(inputs, output_dir=str(tmp_path / "plain"), plugins=["tests.host.ProbePlugin"], **SAVING)
        checkpoint = str(tmp_path / "plain/checkpoint-9")
        with before_the_model_loads(), pytest.raises(ValueError, match=r"checkpoint-9 holds no state of the mixture"):
            host.train(inputs, output_dir=str(tmp_path / "plain"), resume_from_checkpoint=checkpoint, **SAVING)

    def test_checkpoint_with_the_model_alone(self, inputs: Path, tmp_path: Path) -> None:
        settings = {**SAVING, "save_only_model": True, "output_dir": str(tmp_path / "out")}
        host.train(inputs, **settings)
        checkpoint = tmp_path / "out/checkpoint-9"
        assert (checkpoint / "scalebio/mixture.safetensors").exists()
        assert not (checkpoint / "scalebio/inner.safetensors").exists()
        with before_the_model_loads(), pytest.raises(ValueError, match="inner parameters"):
            host.train(inputs, resume_from_checkpoint=str(checkpoint), **settings)

    def test_a_checkpoint_that_is_not_there(self, inputs: Path, tmp_path: Path) -> None:
        named = str(tmp_path / "checkpoint-9")
        with before_the_model_loads(), pytest.raises(ValueError, match=r"checkpoint-9 does not exist; resume from"):
            host.train(inputs, output_dir=str(tmp_path), resume_from_checkpoint=named, **ALL)
