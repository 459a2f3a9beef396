"""Which source helps which validation set: what a probe finds in the host, and that nothing of a run changes by it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from scalebio_plugin.algorithm import CountSketch
from scalebio_plugin.quickstart import planted
from scalebio_plugin.training.probe import Probe
from tests import host
from tests.training.test_resume import same, tensors

SETS = ("validation", "stories")
BLOCK: dict[str, Any] = {"validation_datasets": [{"path": f"data/{name}.jsonl", "type": "alpaca"} for name in SETS]}
PACKED = {"sample_packing": True, "micro_batch_size": 1, "num_epochs": 4}
SAVING = {"save_strategy": "steps", "save_steps": 3}
LISA = {"lisa": {"active_layers": 1, "interval": 3}}
CASES: dict[str, dict[str, Any]] = {
    "full, dropout, accumulated": {
        "overrides_of_model_config": {"attention_dropout": 0.1},
        "gradient_accumulation_steps": 2,
        "micro_batch_size": 3,
    },
    "lora, dropout, packed, drawn by source": {
        **host.LORA,
        **PACKED,
        "lora_dropout": 0.1,
        "gradient_accumulation_steps": 2,
        "scalebio": {"sampling": "mixture"},
    },
    "lisa, update_interval": {"scalebio": {**LISA, "update_interval": 2}},
    "qlora, worst": {
        **host.LORA,
        **{"adapter": "qlora", "load_in_4bit": True, "base_model": "wide", "tokenizer_config": "model"},
        "scalebio": {"objective": "worst"},
    },
    "u rests elsewhere": {"scalebio": {"inner": {"device": "cpu"}, "mixture_update": "evidence"}},
    "gradient checkpointing, symmetric, bf16": {
        "gradient_checkpointing": True,
        "bf16": True,
        "scalebio": {"estimator": "symmetric", "warmup_steps": 1},
    },
}

QUICK = ("full, dropout, accumulated", "lora, dropout, packed, drawn by source")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a second validation set, of offtopic's kind."""
    directory = host.make_inputs(tmp_path_factory.mktemp("probe_inputs"))
    host.add_model(directory, "wide", hidden=64, layers=2)
    makers = {"stories": planted.offtopic_row}
    planted.write_rows(directory / "more", makers, seed=5, rows=32, held_out=1)
    shutil.copy(directory / "more/stories.jsonl", directory / "data/stories.jsonl")
    return directory


def train(inputs: Path, out: Path, **keys: Any) -> host.Run:
    host.forget_parameters()
    keys["scalebio"] = {**BLOCK, "validation_batch_size": 8, **keys.get("scalebio", {})}
    return host.train(inputs, output_dir=str(out), **{"max_steps": 6, **keys})


def history_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "scalebio/history.jsonl").open()]


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if case in QUICK else [pytest.mark.slow]) for case in CASES]
)
def test_nothing_of_a_run_changes_by_probes(case: str, inputs: Path, tmp_path: Path) -> None:
    keys = CASES[case]
    ends = []
    for interval in (0, 1):
        block = {**keys.get("scalebio", {}), "probe_interval": interval}
        run = train(inputs, tmp_path / str(interval), **{**SAVING, **keys, "scalebio": block})
        last = Path(run.cfg.output_dir) / "checkpoint-6"
        states = [host.saved(last, part) for part in ("mixture", "inner")]
        states[1]["record"].pop("goals")
        ends.append((history_of(tmp_path / str(interval)), tensors(Path(run.cfg.output_dir)), states, run.grad_norms))
    without, with_probes = ([record.pop("goals") for record in end[0]] for end in ends)
    assert without == [None] * len(without)
    assert None not in with_probes
    assert same(*ends)


def exact(probe: Probe, batches: Any) -> Tensor:
    """The slow twin: sequence by sequence, whole gradients by autograd; (S, V)."""
    learning, model = probe.learning, probe.host.bare_model()
    parameters = [of for of in probe.host.trainable_parameters().values() if of.requires_grad]
    chunks = list(learning.validation.batches(probe.host.state.global_step))

    def gradients(batches: list[dict[str, Any]], sources: list[Tensor], groups: int) -> list[Tensor]:
        sums: list[Any] = [[] for _ in range(groups)]
        for batch, source in zip(batches, sources, strict=True):
            given = {key: value for key, value in batch.items() if key in ("input_ids", "position_ids")}
            if "position_ids" not in given:
                given["attention_mask"] = batch["attention_mask"]
            logits = model(**given).logits
            losses = functional.cross_entropy(logits[:, :-1].transpose(1, 2), batch["labels"][:, 1:], reduction="none")
            first = batch["position_ids"][:, 1:] == 0 if "position_ids" in batch else torch.zeros_like(losses).bool()
            counts = (batch["labels"][:, 1:] != -100) & ~first
            for group in range(groups):
                sums[group].append(losses[counts & (source[:, 1:] == group)])
        found = []
        for parts in sums:
            every = torch.cat(parts)
            whole = torch.autograd.grad(every.mean(), parameters, retain_graph=True) if len(every) else None
            found.append(None if whole is None else torch.cat([part.flatten() for part in whole]).double())
        return found

    def padded(of: Any) -> Tensor:
        return functional.pad(torch.where(of.units > 0, of.source, -1), (1, 0), value=-1)

    tags = [chunk.pop("scalebio_source") for chunk in chunks]
    rows = gradients(list(batches.micro_batches), [padded(of) for of in batches.targets], len(learning.run.names))
    columns = gradients(chunks, tags, 2)
    nothing = torch.tensor(math.nan, dtype=torch.float64)
    return torch.stack(
        [
            torch.stack([nothing if a is None or b is None else functional.cosine_similarity(a, b, 0) for b in columns])
            for a in rows
        ]
    )


@pytest.mark.host_contract
@pytest.mark.parametrize(
    "case",
    ["padded, accumulated", "packed", *(pytest.param(case, marks=pytest.mark.slow) for case in ("lora", "lisa"))],
)
def test_cosines_are_those_of_the_gradients(
    case: str, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: dict[str, Any] = {
        "padded, accumulated": {"gradient_accumulation_steps": 2, "micro_batch_size": 2},
        "packed": {**PACKED, "attn_implementation": "eager"},
        "lora": host.LORA,
        "lisa": {"scalebio": LISA},
    }[case]
    expected, measure = [], Probe.measure

    def measured(probe: Probe, batches: Any) -> Tensor:
        expected.append(exact(probe, batches))
        assert all(parameter.grad is None for parameter in probe.model.parameters())
        found = measure(probe, batches)
        assert all(parameter.grad is None for parameter in probe.model.parameters())
        return found

    monkeypatch.setattr(Probe, "measure", measured)
    block = {**keys.get("scalebio", {}), "probe_interval": 2}
    run = train(inputs, tmp_path, **{**keys, "scalebio": block})
    records = history_of(tmp_path)
    assert [record["goals"] is not None for record in records] == [True, False, True, False, True, False]
    names = run.trainer.learning.run.names
    found = [
        torch.tensor([[of[name][goal] or math.nan for goal in SETS] for name in names], dtype=torch.float64)
        for record in records
        if (of := record["goals"]) is not None
    ]
    assert len(expected) == 3
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.isnan(), other.isnan())
        off = (one - other).nan_to_num()
        print(case, one.tolist(), float(off.abs().max()))
        assert float(off.abs().max()) < 5 / math.sqrt(CountSketch(0).buckets)
    assert not torch.stack(expected).isnan().all()


@pytest.mark.host_contract
def test_a_source_helps_the_set_of_its_kind(inputs: Path, tmp_path: Path) -> None:
    block = {"probe_interval": 10, "validation_batch_size": 32, "mixture_learning_rate": 0.0}
    train(inputs, tmp_path, max_steps=31, micro_batch_size=16, scalebio=block)
    probes = [record["goals"] for record in history_of(tmp_path) if record["goals"]]
    assert len(probes) == 4

    def mean(source: str, goal: str) -> float:
        seen = [probe[source][goal] for probe in probes]
        return sum(seen) / len(seen)

    for source, goal in (("clean", "validation"), ("offtopic", "stories")):
        others = [mean(source, other) for other in SETS if other != goal]
        others += [mean(other, goal) for other in ("clean", "offtopic") if other != source]
        print(source, goal, mean(source, goal), others)
        assert mean(source, goal) > max(others) + 0.2
    assert mean("clean", "validation") > mean("wrong", "validation")


def test_with_two_sets_there_is_a_probe_every_25_updates(inputs: Path, tmp_path: Path) -> None:
    train(inputs, tmp_path, max_steps=27, micro_batch_size=2)
    assert [record["step"] for record in history_of(tmp_path) if record["goals"]] == [1, 26]


def test_with_one_set_there_is_no_probe_unless_asked_for(inputs: Path, tmp_path: Path) -> None:
    one = {"validation_datasets": BLOCK["validation_datasets"][:1]}
    train(inputs, tmp_path / "default", max_steps=2, scalebio=one)
    assert [record["goals"] for record in history_of(tmp_path / "default")] == [None, None]
    train(inputs, tmp_path / "asked", max_steps=2, scalebio={**one, "probe_interval": 5})
    assert list(history_of(tmp_path / "asked")[0]["goals"]["clean"]) == ["validation"]


def test_a_resumed_run_ends_with_the_same_bytes(inputs: Path, tmp_path: Path) -> None:
    keys = {**SAVING, "scalebio": {"probe_interval": 2}}
    train(inputs, tmp_path / "whole", **keys)
    with pytest.raises(KeyboardInterrupt):
        train(inputs, tmp_path / "killed", stop_after=5, **keys)
    train(inputs, tmp_path / "killed", auto_resume_from_checkpoints=True, **keys)
    files = [(tmp_path / run / "scalebio/history.jsonl").read_bytes() for run in ("whole", "killed")]
    assert files[0] == files[1]
    mixtures = [json.loads((tmp_path / run / "scalebio/mixture.json").read_text()) for run in ("whole", "killed")]
    assert [mixture.pop("output_dir") for mixture in mixtures] == [str(tmp_path / run) for run in ("whole", "killed")]
    assert mixtures[0] == mixtures[1]
