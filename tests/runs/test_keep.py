"""`keep: inner`: the run goes on with u, or saves it; what is measured while it learns is measured at u."""

from __future__ import annotations

import logging
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from scalebio_plugin.engines import base
from scalebio_plugin.report.mixture_file import read_mixture
from scalebio_plugin.training.trainer import ScaleBiOTrainer
from tests import host
from tests.engines.simulated import simulated_transfer
from tests.training.test_resume import assert_same_end, same, tensors

INNER, MODEL = {"keep": "inner"}, {"keep": "model"}
FIRST_HALF = {"learn": {"steps": 3}}
LISA = {"lisa": {"active_layers": 1, "interval": 2}}
CASES: dict[str, dict[str, Any]] = {
    "full": {},
    "full, accumulated, bf16": {"gradient_accumulation_steps": 2, "bf16": True},
    "lora, dropout": {**host.LORA, "lora_dropout": 0.1},
    "lisa, handed over in mid-interval": {"scalebio": LISA, "base_model": "four"},
    "resting in another place": {"scalebio": {"inner": {"device": "cpu"}}},
    "packed": {"sample_packing": True, "micro_batch_size": 1, "num_epochs": 2},
    "an optimizer that counts in its groups": {"optimizer": "schedule_free_adamw", "lr_scheduler": "constant"},
    "an optimizer whose state is quantised": {"optimizer": "adamw_bnb_8bit"},
}
SLOW = {
    *("full", "full, accumulated, bf16", "packed", "lisa"),
    *("as it is due", "after it, lora", "after it, lisa", "learning to its end"),
}
EVALUATED = {"test_datasets": [{"path": "data/test.jsonl", "type": "alpaca", "split": "train"}], "eval_steps": 2}


def quick_and_slow(cases: dict[str, Any]) -> list[Any]:
    return [pytest.param(case, marks=[pytest.mark.slow] if case in SLOW else []) for case in cases]


def train(inputs: Path, out: Path, *blocks: dict[str, Any], **keys: Any) -> host.Run:
    """With what all the blocks say under `scalebio:`."""
    merged = {key: value for block in (keys.pop("scalebio", {}), *blocks) for key, value in block.items()}
    if keys.get("base_model") == "four":
        keys |= host.add_model(inputs, "four", layers=4)
    return host.train(inputs, output_dir=str(out), parameters=True, scalebio=merged, **keys)


def parameters_of(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trainer.trainable_parameters().items()}


# ---- the hand-over


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Of every hand-over: u and w before it, what the module and the optimizer hold after it."""
    found: list[dict[str, Any]] = []
    end = ScaleBiOTrainer.end_learning

    def watched(trainer: Any) -> None:
        if trainer.learning.inner is None:
            end(trainer)
            return
        gone = weakref.ref(trainer.learning.inner)
        before = {"step": trainer.state.global_step, "u": trainer.learning.inner.state_dict()}
        before["w"] = parameters_of(trainer)
        end(trainer)
        optimizer, parameters = trainer.raw_optimizer(), trainer.trainable_parameters()
        states = {name: optimizer.state[p] for name, p in parameters.items() if optimizer.state.get(p)}
        after = {
            "values": parameters_of(trainer),
            "states": {name: {key: _copied(value) for key, value in state.items()} for name, state in states.items()},
            "groups": [base_entries(group) for group in optimizer.param_groups],
            "strangers": set(optimizer.state) - set(parameters.values()),
            "gradients": [name for name, parameter in parameters.items() if parameter.grad is not None],
            "left": gone(),
        }
        found.append({"before": before, "after": after})

    monkeypatch.setattr(ScaleBiOTrainer, "end_learning", watched)
    return found


def _copied(value: Any) -> Any:
    return value.detach().cpu().clone() if isinstance(value, torch.Tensor) else value


def base_entries(group: dict[str, Any]) -> dict[str, Any]:
    from scalebio_plugin.algorithm.inner import own_entries

    return own_entries(group)


def assert_handed_over(one: dict[str, Any]) -> None:
    u, w, after = one["before"]["u"], one["before"]["w"], one["after"]
    assert u["values"]
    assert all(torch.equal(after["values"][name], value) for name, value in u["values"].items())
    assert all(not torch.equal(after["values"][name], w[name]) for name in u["values"])
    untouched = set(w) - set(u["values"])
    assert all(torch.equal(after["values"][name], w[name]) for name in untouched)
    assert u["states"].keys() == after["states"].keys()
    assert all(same(u["states"][name], state) for name, state in after["states"].items())
    assert same(u["groups"], after["groups"])
    assert not after["strangers"]
    assert not after["gradients"]
    assert after["left"] is None, "somebody keeps w"


@pytest.mark.parametrize("case", quick_and_slow(CASES))
def test_the_run_goes_on_with_all_that_u_had(
    case: str, inputs: Path, tmp_path: Path, handed: list[dict[str, Any]]
) -> None:
    run = train(inputs, tmp_path / "out", FIRST_HALF, INNER, **CASES[case])
    (one,) = handed
    assert one["before"]["step"] == 3
    assert_handed_over(one)
    assert len(run.inner[2]) > 0
    assert run.inner[3:] == [{}, {}, {}]
    moved = [name for name, value in run.model[3].items() if not torch.equal(value, one["after"]["values"][name])]
    assert moved, "it did not train on"
    for name, value in tensors(tmp_path / "out").items():
        name = name.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default.")
        if name in run.model[-1]:
            assert torch.equal(value, run.model[-1][name])


def test_copies_that_run_late_arrive_before_the_hand_over(
    inputs: Path, tmp_path: Path, handed: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a GPU and u in CPU memory."""
    plain = train(inputs, tmp_path / "plain", FIRST_HALF, INNER)
    monkeypatch.setattr(base, "transfer_between", lambda here, rest: simulated_transfer("late", chunk=4096))
    late = train(inputs, tmp_path / "late", FIRST_HALF, INNER)
    assert_handed_over(handed[1])
    assert same(late.model[-1], plain.model[-1])


def test_the_schedule_goes_on(inputs: Path, tmp_path: Path) -> None:
    rates = []
    for keep in (INNER, MODEL):
        run = train(inputs, tmp_path / keep["keep"], FIRST_HALF, keep, lr_scheduler="cosine")
        rates.append([entry["learning_rate"] for entry in run.trainer.state.log_history if "loss" in entry])
    assert rates[0] == rates[1]
    assert len(set(rates[0])) == 6


def test_with_keep_model_there_is_no_hand_over(inputs: Path, tmp_path: Path, handed: list[dict[str, Any]]) -> None:
    run = train(inputs, tmp_path / "out", FIRST_HALF, MODEL)
    (one,) = handed
    assert same(one["after"]["values"], one["before"]["w"])
    assert same(run.model[2], one["before"]["w"])
    assert not same(one["after"]["values"], one["before"]["u"]["values"])


# ---- what is saved


ENDS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {**host.LORA},
    "lisa": {"scalebio": LISA, "base_model": "four"},
    "evaluated": EVALUATED,
    "packed": CASES["packed"],
}


def saved_of(out: Path) -> dict[str, torch.Tensor]:
    return {
        name.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default."): value
        for name, value in tensors(out).items()
    }


@pytest.mark.parametrize("case", quick_and_slow(ENDS))
def test_a_run_that_learns_to_its_end_saves_u(case: str, inputs: Path, tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 3}
    kept = {
        keep["keep"]: train(inputs, tmp_path / keep["keep"], keep, **ENDS[case], **saving) for keep in (INNER, MODEL)
    }
    saved, last = saved_of(tmp_path / "inner"), kept["model"].inner[-1]
    assert last
    assert all(torch.equal(saved[name], value) for name, value in last.items())
    assert all(not torch.equal(saved_of(tmp_path / "model")[name], value) for name, value in last.items())
    for inner, model in zip(kept["inner"].model, kept["model"].model, strict=True):
        assert same(inner, model), "w's path depends on keep"
    histories = [(tmp_path / keep / "scalebio/history.jsonl").read_bytes() for keep in ("inner", "model")]
    assert histories[0] == histories[1]
    for name in ("optimizer.pt", "inner"):  # its checkpoints are those of a run that goes on with both sets
        assert same(*(host.saved(tmp_path / keep / "checkpoint-6", name) for keep in ("inner", "model")))
    assert same(*(tensors(tmp_path / keep / "checkpoint-6") for keep in ("inner", "model")))
    assert [read_mixture(kept[keep].folder / "mixture.json")["keep"] for keep in kept] == ["inner", "model"]
    assert kept["inner"].trainer.learning.inner is None


@pytest.mark.parametrize(
    "learn", [{}, pytest.param(FIRST_HALF, marks=pytest.mark.slow)], ids=["to its end", "half of the run"]
)
def test_without_a_pull_both_save_the_same_bytes(learn: dict[str, Any], inputs: Path, tmp_path: Path) -> None:
    for keep in (INNER, MODEL):
        train(inputs, tmp_path / keep["keep"], learn, keep, {"penalty": float("inf")})
    one, other = ((tmp_path / keep / "model.safetensors").read_bytes() for keep in ("inner", "model"))
    assert one == other


@pytest.mark.host_contract
def test_who_looks_at_the_model_at_the_end_sees_u(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B uploads it then; its callback stands before those of plugins, as TensorBoard's does."""
    from transformers.integrations import TensorBoardCallback

    seen: list[dict[str, torch.Tensor]] = []

    def look(self: Any, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        seen.append({name: parameter.detach().clone() for name, parameter in model.named_parameters()})

    monkeypatch.setattr(TensorBoardCallback, "on_train_end", look)
    train(inputs, tmp_path / "out", INNER, use_tensorboard=True)
    (found,) = seen
    assert all(torch.equal(found[name], value) for name, value in saved_of(tmp_path / "out").items())


# ---- evaluation


@pytest.mark.host_contract
def test_eval_loss_is_that_of_u(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Computed apart from the host's loop, at the parameters that u had after the same steps of another run."""
    seen = watched_evaluations(monkeypatch)
    run = train(inputs, tmp_path / "inner", FIRST_HALF, INNER, **EVALUATED)
    during = [entry for entry in run.trainer.state.log_history if "eval_loss" in entry and entry["step"] == 2]
    assert len(during) == 1
    plain = train(inputs, tmp_path / "model", FIRST_HALF, MODEL, **EVALUATED)
    at_u, at_w = (loss_apart(plain.trainer, of[1]) for of in (plain.inner, plain.model))
    assert abs(at_u - at_w) > 1e-4
    assert during[0]["eval_loss"] == pytest.approx(at_u, abs=1e-6)
    reported = [entry for entry in plain.trainer.state.log_history if "eval_loss" in entry and entry["step"] == 2]
    assert reported[0]["eval_loss"] == pytest.approx(at_w, abs=1e-6)
    assert during[0].keys() == reported[0].keys()
    assert same(seen[2], {name: plain.inner[1][name] for name in seen[2]}), "who follows an evaluation sees u"
    last = [entry for entry in run.trainer.state.log_history if "eval_loss" in entry][-1]
    assert last["eval_loss"] == pytest.approx(loss_apart(run.trainer, run.model[last["step"] - 1]), abs=1e-6)


def watched_evaluations(monkeypatch: pytest.MonkeyPatch) -> dict[int, dict[str, torch.Tensor]]:
    """The model as callbacks find it after the first evaluation at each step."""
    from transformers.trainer_callback import CallbackHandler

    seen: dict[int, dict[str, torch.Tensor]] = {}
    tell = CallbackHandler.on_evaluate

    def watched(self: Any, args: Any, state: Any, *others: Any) -> Any:
        found = {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}
        seen.setdefault(state.global_step, found)
        return tell(self, args, state, *others)

    monkeypatch.setattr(CallbackHandler, "on_evaluate", watched)
    return seen


@torch.no_grad()
def loss_apart(trainer: Any, values: dict[str, torch.Tensor]) -> float:
    """Mean over rows of the mean loss of their batch, as the host has it, at these parameters."""
    model = trainer.model.eval()
    state = {**model.state_dict(), **values}
    total = rows = 0.0
    for batch in trainer.get_eval_dataloader():
        batch = {key: value for key, value in batch.items() if key in ("input_ids", "attention_mask", "labels")}
        loss = torch.func.functional_call(model, state, kwargs=batch).loss
        total, rows = total + float(loss) * len(batch["labels"]), rows + len(batch["labels"])
    return total / rows


def test_sets_of_rows_within_an_evaluation_are_measured_at_u_too(inputs: Path, tmp_path: Path) -> None:
    """The host evaluates several sets by calling itself."""
    losses: list[dict[str, float]] = []

    class Several(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 4:
                rows = trainer.eval_dataset
                before = parameters_of(trainer)
                losses.append(trainer.evaluate({"a": rows.select(range(8)), "b": rows}))
                losses.append(trainer.evaluate())
                assert same(parameters_of(trainer), before)

    trainer: Any = None

    def on_batch(of: Any, batch: Any) -> None:
        nonlocal trainer
        if trainer is None:
            trainer = of
            of.add_callback(Several())

    train(inputs, tmp_path / "out", INNER, on_batch=on_batch, **{**EVALUATED, "eval_steps": 99})
    several, one = losses
    assert several["eval_b_loss"] == one["eval_loss"]
    assert several["eval_a_loss"] != one["eval_loss"]


def test_an_error_in_an_evaluation_leaves_w(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from axolotl.core.trainers.base import AxolotlTrainer

    def fail(self: Any, *args: Any, **kwargs: Any) -> None:
        raise KeyError("an evaluation")

    found: list[Any] = []
    evaluate = ScaleBiOTrainer.evaluate

    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = parameters_of(self)
        try:
            return evaluate(self, *args, **kwargs)
        finally:
            found.extend((before, parameters_of(self), self.learning.measures_inner))

    monkeypatch.setattr(AxolotlTrainer, "evaluation_loop", fail)
    monkeypatch.setattr(ScaleBiOTrainer, "evaluate", noted)
    with pytest.raises(KeyError, match="an evaluation"):
        train(inputs, tmp_path / "out", INNER, **EVALUATED, eval_on_start=False)
    before, after, measures = found[:3]
    assert same(before, after)
    assert not measures


def test_the_log_says_what_eval_loss_is_held_out_from(inputs: Path, tmp_path: Path) -> None:
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("axolotl.scalebio")
    logger.addHandler(handler)
    for keep in (INNER, MODEL):
        train(inputs, tmp_path / keep["keep"], {"validation_datasets": None}, keep, max_steps=1, **EVALUATED)
    logger.removeHandler(handler)
    inner, model = [message for message in messages if "tuned for the evaluation data" in message]
    assert "held out but for the 3 weights" in inner
    assert "no longer held out" in model
    assert [message for message in messages if "the model is u" in message] == [
        "scalebio: the model is u, the inner parameters, from here on (keep: inner)"
    ]


# ---- resume: (the block, the last checkpoint before the end, other keys)

SAVING = {"max_steps": 10, "save_strategy": "steps", "save_steps": 3, "save_total_limit": 9, "micro_batch_size": 3}
KILLED: dict[str, tuple[dict[str, Any], int, dict[str, Any]]] = {
    "before the hand-over": ({"learn": {"steps": 5}}, 3, {}),
    "as it is due": ({"learn": {"steps": 6}}, 6, {}),
    "after it": ({"learn": {"steps": 5}}, 6, {}),
    "after it, lora": ({"learn": {"steps": 5}}, 6, {**host.LORA, "lora_dropout": 0.1}),
    "after it, lisa": ({**LISA, "learn": {"steps": 5}}, 6, {}),
    "learning to its end": ({}, 6, EVALUATED),
}


@pytest.mark.parametrize("case", quick_and_slow(KILLED))
def test_a_resumed_run_ends_with_the_same_bytes(case: str, inputs: Path, tmp_path: Path) -> None:
    block, after, keys = KILLED[case]
    settings = {**SAVING, **keys}
    train(inputs, tmp_path / "whole", block, INNER, **settings)
    host.as_if_killed(tmp_path / "whole", tmp_path / "killed", after)
    again = train(inputs, tmp_path / "killed", block, INNER, auto_resume_from_checkpoints=True, **settings)
    assert len(again.weights) == 10 - after
    assert_same_end(tmp_path / "whole", tmp_path / "killed", 10)


def test_the_last_checkpoint_is_one_to_resume_from(inputs: Path, tmp_path: Path) -> None:
    """By a run that was killed after it and before the model was saved."""
    train(inputs, tmp_path / "whole", INNER, **SAVING)
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    (tmp_path / "killed/model.safetensors").unlink()
    train(inputs, tmp_path / "killed", INNER, auto_resume_from_checkpoints=True, **SAVING)
    assert_same_end(tmp_path / "whole", tmp_path / "killed", 10)
    checkpoint = tensors(tmp_path / "whole/checkpoint-10")
    assert not any(torch.equal(checkpoint[name], value) for name, value in tensors(tmp_path / "killed").items())


@pytest.mark.slow
def test_a_longer_run_learns_on_from_the_last_checkpoint(inputs: Path, tmp_path: Path) -> None:
    longer = {**SAVING, "max_steps": 12, "lr_scheduler": "constant"}
    train(inputs, tmp_path / "longer", INNER, **longer)
    train(inputs, tmp_path / "first", INNER, **{**longer, "max_steps": 10})
    shutil.copytree(tmp_path / "first", tmp_path / "on")
    train(inputs, tmp_path / "on", INNER, auto_resume_from_checkpoints=True, **longer)
    assert_same_end(tmp_path / "longer", tmp_path / "on", 12)


def test_a_checkpoint_of_the_other_keep_is_refused(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(inputs, tmp_path / "out", MODEL, stop_after=4, **SAVING)
    with pytest.raises(ValueError, match="scalebio.keep: this run has 'inner' and it had 'model' .*; set it back"):
        train(inputs, tmp_path / "out", INNER, auto_resume_from_checkpoints=True, **SAVING)
