"""Two ranks on every engine train what one process trains: λ, w and u after six steps, at equal global batches.

One launch an engine runs many cases (starting the host takes longer than any of them): by default one mode of each
kind, the others among the slow tests.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import scalebio_plugin
from scalebio_plugin.training.resume_from import problem_of
from tests import host
from tests.engines.launch import launch as on_ranks
from tests.engines.worker import Outcome, run_case, run_cases, same_bits

STEPS = 6
TOLERANCE = 1e-5  # float32
LISA = {"lisa": {"active_layers": 1, "interval": 4}}
ONE_LAYER = {"base_model": "one_layer", "tokenizer_config": "model"}  # where steps cost more than what a test is about
# Every layer is drawn: for bytes alone, as in each first step of Adam the sign of a gradient near 0 decides.
DRAWN = "lisa, every layer drawn"
# `few`: 32 rows, 8 global micro-batches an epoch, in threes 3 + 3 + 2
MODES: dict[str, dict[str, Any]] = {
    "full": {"base_model": "four_layers", "learning_rate": 1e-3},
    "full, accumulated": {"gradient_accumulation_steps": 3},
    "full, uneven": {"gradient_accumulation_steps": 3, "num_epochs": 4, "datasets": "few"},
    # A rate at which the first gaps of an adapter, which λ's rules scale up, stand far above the noise of float32.
    "lora": {**host.LORA, "learning_rate": 5e-3},
    "lora, accumulated, clipped": {
        **host.LORA,
        "learning_rate": 5e-3,
        "gradient_accumulation_steps": 3,
        "max_grad_norm": 0.05,
    },
    "full, symmetric, sequence": {"scalebio": {"estimator": "symmetric", "penalty": 5.0, "loss_unit": "sequence"}},
    "full, exchanged late": {"exchanged_late": True, "gradient_accumulation_steps": 2},
    "full, drawn by source": {"gradient_accumulation_steps": 2, "scalebio": {"sampling": "mixture"}},
    "full, then the rest": {"scalebio": {"learn": {"steps": 4}}},
    "full, odd validation batch": {"scalebio": {"validation_batch_size": 5}, "gradient_checkpointing": True},
    # A pull at which the first gaps of one layer stand above the noise of float32. λ's rule divides a gap by its
    # running size, so the noise of a gap (measured: 1e-7 to 5e-7; an ulp of a loss of 7 nats is 4.8e-7) moves λ by
    # a part of mixture_learning_rate * noise / size. Measured on DDP against one process: at penalty 10 the first
    # gap is 1.2e-4 to 1.5e-3, and λ was apart by up to 6.6e-6 (seven seeds; 1.1e-5 with two layers), w by up to
    # 2.1e-5; at penalty 2 it is 1.5e-3 to 5e-3, λ was apart by up to 4.8e-7, w and u by up to 1e-6 (five seeds).
    # The error comes with the first update that has a gap, and its largest did not grow from step 2 to 20.
    "lisa": {"scalebio": {**LISA, "penalty": 2.0}, "base_model": "four_layers"},
    "lisa, accumulated, embeddings": {
        "gradient_accumulation_steps": 3,
        "scalebio": {"lisa": {**LISA["lisa"], "train_embeddings": True}},
        "base_model": "four_layers",
    },
    DRAWN: {"scalebio": {"lisa": {"active_layers": 2, "interval": 1}}, "base_model": "four_layers"},
}

EACH_KIND = ("full", "full, uneven", "lora", "full, symmetric, sequence", "lisa, accumulated, embeddings", DRAWN)


@dataclass(frozen=True)
class Layout:
    """An engine: the test device that lets it run here, and the host's keys."""

    device: str
    engine: dict[str, Any]
    lisa: bool = True

    @property
    def keys(self) -> dict[str, Any]:
        return {**self.engine, "plugins": [f"tests.engines.ranks.{self.device}", *host.BASE["plugins"]]}


FSDP2 = {
    "fsdp_version": 2,
    "fsdp_config": {
        "offload_params": False,
        "cpu_ram_efficient_loading": False,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": "LlamaDecoderLayer",
        "state_dict_type": "FULL_STATE_DICT",
        "reshard_after_forward": True,
    },
}


def zero(stage: int) -> Layout:
    return Layout("CpuDeepSpeed", {"deepspeed": str(Path(__file__).parent / f"zero{stage}.json")}, lisa=False)


LAYOUTS = {
    "ddp": Layout("CpuRanks", {}),
    "fsdp2": Layout("CpuFsdp2", FSDP2),
    "zero1": zero(1),
    "zero2": zero(2),
    "zero3": zero(3),
}
_OTHERS = tuple(mode for mode in MODES if mode not in EACH_KIND)
COUNTED = ("full", "lora", DRAWN)  # whose bytes are counted, which depend on the stage
LAUNCHES = {engine: [EACH_KIND, _OTHERS] if engine in ("ddp", "fsdp2") else [tuple(MODES)] for engine in LAYOUTS}


def shared_by_stages(engine: str, names: Iterable[str], of_both: Sequence[str] = ()) -> tuple[str, ...]:
    """What is run on an engine, where ZeRO-1 and ZeRO-2 run half of it each, and both `of_both`.

    To the package they are one engine (`test_stages_1_and_2_are_one_engine`), and one class of DeepSpeed's, which
    test_zero.py runs with all of its settings at both stages.
    """
    names = tuple(names)
    halves = {"zero1": names[0::2], "zero2": names[1::2]}
    return tuple(name for name in names if name in halves.get(engine, names) or name in of_both)


LAUNCHES |= {engine: [shared_by_stages(engine, MODES, COUNTED)] for engine in ("zero1", "zero2")}


def arguments_of(inputs: Path, mode: str, out: Path, layout: Layout | None) -> dict[str, Any]:
    """Of `host.train`, for one process (4 rows a micro-batch) or two ranks (2 each)."""
    # With an epsilon above the rounding of gradients: else Adam scales that up, where a gradient is as good as 0.
    keys = {"adam_epsilon": 1e-6, "max_steps": STEPS, "micro_batch_size": 4 if layout is None else 2, **MODES[mode]}
    if keys.get("datasets") == "few":
        keys["datasets"] = [
            {**entry, "path": entry["path"].replace("data/", "few/")} for entry in host.BASE["datasets"]
        ]
    if "base_model" in keys:
        keys["tokenizer_config"] = "model"
    keys["scalebio"] = {"validation_batch_size": 8, **keys.get("scalebio", {})}
    if layout is not None:
        keys.update(layout.keys)
    return {"directory": str(inputs), "output_dir": str(out), **keys}


@pytest.fixture(scope="module")
def engine_inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    inputs = host.make_inputs(tmp_path_factory.mktemp("engine_inputs"))
    for name, layers in (("one_layer", 1), ("four_layers", 4)):
        host.add_model(inputs, name, layers=layers)
    (inputs / "few").mkdir()
    for entry, rows in zip(host.BASE["datasets"], (10, 11, 11), strict=True):
        lines = (inputs / entry["path"]).read_text().splitlines(keepends=True)
        (inputs / "few" / Path(entry["path"]).name).write_text("".join(lines[:rows]))
    return inputs


def launch(cases: dict[str, dict[str, Any]], folder: Path, ranks: int = 2) -> None:
    """Run the cases on `ranks` ranks; their outcomes are left in `folder`."""
    if any("deepspeed" in case for case in cases.values()):
        pytest.importorskip("deepspeed")
    on_ranks(run_cases, cases, folder, log=folder / "log.txt", ranks=ranks)


@pytest.fixture(scope="module")
def one_process(engine_inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Outcome]:
    """The outcome of a mode in this process, run when it is first asked for."""

    @cache
    def outcome(mode: str) -> Outcome:
        found = run_case(arguments_of(engine_inputs, mode, tmp_path_factory.mktemp("one"), None))
        assert found is not None
        return found

    return outcome


def run_modes(modes: Iterable[str], layout: Layout, engine_inputs: Path, folder: Path) -> dict[str, list[Outcome]]:
    """The outcomes of both ranks, by mode; the first one's with what the run saved."""
    modes = [mode for mode in modes if layout.lisa or "lisa" not in mode]
    launch(
        {mode: arguments_of(engine_inputs, mode, folder / f"out{i}", layout) for i, mode in enumerate(modes)}, folder
    )
    outcomes = {
        mode: [Outcome(**torch.load(folder / f"{mode}.{rank}.pt", weights_only=True)) for rank in (0, 1)]
        for mode in modes
    }
    for i, mode in enumerate(modes):
        outcomes[mode][0].saved = saved_tensors(folder / f"out{i}")
    return outcomes


@pytest.fixture(scope="module")
def two_ranks(
    engine_inputs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], dict[str, list[Outcome]]]:
    """The outcomes of the launch that a mode is in. (As a parameter of a fixture it would be launched once a mode.)"""

    @cache
    def launched(engine: str, modes: tuple[str, ...]) -> dict[str, list[Outcome]]:
        return run_modes(modes, LAYOUTS[engine], engine_inputs, tmp_path_factory.mktemp(engine))

    return lambda engine, mode: launched(engine, next(modes for modes in LAUNCHES[engine] if mode in modes))


def on_engines(modes: Sequence[str]) -> list[Any]:
    """(engine, mode) of a test: by default the first launch of DDP, all others are among the slow tests.

    By default FSDP2 runs in test_keep_on_ranks.py alone, and ZeRO is compared with a reference on its engine, in
    test_zero.py.
    What is relied on in the host shows in all modes of DDP and in one of each kind under FSDP2.
    """
    found = []
    for engine, launches in LAUNCHES.items():
        for mode in modes:
            relied_on = engine == "ddp" or (engine == "fsdp2" and mode in launches[0])
            marks = [pytest.mark.host_contract] if relied_on else []
            if engine != "ddp" or mode not in launches[0]:
                marks.append(pytest.mark.slow)
            if any(mode in launched for launched in launches) and (LAYOUTS[engine].lisa or "lisa" not in mode):
                found.append(pytest.param(engine, mode, marks=marks))
    return found


def saved_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The model or adapter that the run left, by the names that its parameters have in training."""
    from safetensors.torch import load_file

    found = {key: value for file in sorted(folder.glob("*.safetensors")) for key, value in load_file(file).items()}
    return {
        key.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default."): value
        for key, value in found.items()
    }


@pytest.mark.parametrize(("engine", "mode"), on_engines([mode for mode in MODES if mode != DRAWN]))
def test_two_ranks_are_one_process(
    engine: str,
    mode: str,
    one_process: Callable[[str], Outcome],
    two_ranks: Callable[[str, str], dict[str, list[Outcome]]],
) -> None:
    alone, (first, second) = one_process(mode), two_ranks(engine, mode)[mode]
    assert len(first.weights) == STEPS
    assert all(torch.equal(a, b) for a, b in zip(first.weights, second.weights, strict=True)), "ranks disagree on λ"
    assert first.layers == second.layers == alone.layers
    far = {
        "λ": float((torch.stack(alone.weights) - torch.stack(first.weights)).abs().max()),
        "w": farthest(alone.model, first.model),
        "u": farthest(alone.inner, first.inner),
        "loss": float((torch.tensor(alone.losses) - torch.tensor(first.losses)).abs().max()),
    }
    print(mode, far)
    frozen = {name for name in first.saved if name not in first.model}
    assert not frozen or "lisa" in mode, "what LISA never trains is saved with the rest, nothing else is"
    saved = {name: value for name, value in first.saved.items() if name not in frozen}
    assert farthest(saved, first.model) == 0.0, "what was saved is not w"
    if MODES[mode].get("scalebio", {}).get("learn"):
        del far["w"], far["loss"]  # after learning the loss is the host's, which averages the means of the ranks
    assert float((alone.weights[-1] - alone.weights[0]).abs().max()) > 1e-3, "λ did not move"
    tolerance = {"λ": TOLERANCE, "w": TOLERANCE, "u": TOLERANCE, "loss": 10 * TOLERANCE}  # losses are 1 to 10 nats
    assert all(value < tolerance[name] for name, value in far.items()), far


def test_stages_1_and_2_are_one_engine() -> None:
    """All that the package asks of a stage is whether parameters are partitioned, or it is below the third."""
    package = Path(scalebio_plugin.__file__).parent
    files = [file for folder in ("engines", "training", "algorithm") for file in (package / folder).glob("*.py")]
    nodes = (node for file in files for node in ast.walk(ast.parse(file.read_text("utf-8"))))
    asked = {node.attr for node in nodes if isinstance(node, ast.Attribute) and re.search("stage|zero_opt", node.attr)}
    assert asked == {"zero_optimization_partition_weights", "zero_stage"}
    assert "zero_stage) < 3" in (package / "engines/deepspeed.py").read_text("utf-8")


# ---- resume

SAVING = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 2, "max_steps": STEPS}
PACKED = {"sample_packing": True, "micro_batch_size": 1, "num_epochs": 4}
RESUMED: dict[str, dict[str, Any]] = {
    "full, accumulated": {"gradient_accumulation_steps": 2},
    "lora, dropout": {**host.LORA, "lora_dropout": 0.1},
    "lisa in mid-interval": {
        "scalebio": {"lisa": {**LISA["lisa"], "interval": 3}},
        **{"base_model": "four_layers", "tokenizer_config": "model"},
    },
    "packed, bf16": {**PACKED, "bf16": True},
    "after learning": {"scalebio": {"learn": {"steps": 3}}},
    "packed, drawn by source": {**PACKED, "scalebio": {"sampling": "mixture"}},
    "drawn by source, after learning": {"scalebio": {"sampling": "mixture", "learn": {"steps": 3}}},
}


def resumed_on(engine: str) -> list[str]:
    """The cases of an engine."""
    return [name for name in shared_by_stages(engine, RESUMED) if LAYOUTS[engine].lisa or "lisa" not in name]


@pytest.fixture(scope="module")
def resumed_runs(engine_inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder with <case>/whole and /resumed of every case of an engine, and the outcomes of both, run once."""

    @cache
    def launched(engine: str) -> Path:
        layout, folder = LAYOUTS[engine], tmp_path_factory.mktemp(f"resume_{engine}")
        cases = {}
        for name in resumed_on(engine):
            common = {"directory": str(engine_inputs), "micro_batch_size": 2, **ONE_LAYER, **SAVING}
            common |= {**RESUMED[name], **layout.keys}
            whole, again = (str(folder / f"{name}/{run}") for run in ("whole", "resumed"))
            cases[f"{name}, whole"] = {**common, "output_dir": whole}
            keys = {**common, "output_dir": again, "auto_resume_from_checkpoints": True}
            cases[f"{name}, resumed"] = {**keys, "killed": (whole, 4)}
        launch(cases, folder)
        return folder

    return launched


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "name"),
    [
        pytest.param(engine, name, marks=[pytest.mark.host_contract] if engine == "ddp" else [])
        for engine in LAYOUTS
        for name in resumed_on(engine)
    ],
)
def test_resumed_run_ends_with_the_same_bytes(engine: str, name: str, resumed_runs: Callable[[str], Path]) -> None:
    resumed = resumed_runs(engine)
    histories = [(resumed / name / run / "scalebio/history.jsonl").read_bytes() for run in ("whole", "resumed")]
    assert histories[0] == histories[1]
    for rank in (0, 1):
        whole, again = (
            torch.load(resumed / f"{name}, {run}.{rank}.pt", weights_only=True) for run in ("whole", "resumed")
        )
        assert whole["model"]
        assert whole["losses"]
        for kind in ("model", "inner"):
            assert whole[kind].keys() == again[kind].keys()
            unlike = [key for key in whole[kind] if not torch.equal(whole[kind][key], again[kind][key])]
            assert not unlike, (kind, unlike)
        assert torch.equal(whole["weights"][-1], again["weights"][-1])
        assert len(again["weights"]) == STEPS - 4, "it did not go on from checkpoint-4"
    for run in ("whole", "resumed"):
        kept = sorted(path.name for path in (resumed / name / run).glob("checkpoint-*"))
        assert kept == ["checkpoint-4", "checkpoint-6"]


@pytest.mark.slow
def test_a_rank_that_dies_while_saving_leaves_no_checkpoint_to_resume_from(engine_inputs: Path, tmp_path: Path) -> None:
    """Rank 1 dies before it has written its part of checkpoint 4, rank 0 after all of its own."""
    common = {"directory": str(engine_inputs), "micro_batch_size": 2, **SAVING, **LAYOUTS["fsdp2"].keys}
    killed = {**common, "output_dir": str(tmp_path / "killed")}
    whole = {**common, "output_dir": str(tmp_path / "whole")}
    with pytest.raises(RuntimeError):
        launch({"killed": {**killed, "dies_at": [1, 4]}}, tmp_path)
    half = tmp_path / "killed/checkpoint-4"
    assert (half / "scalebio/inner_00000_of_00002.safetensors").exists()
    assert not (half / "scalebio/manifest.json").exists()
    launch({"whole": whole, "resumed": {**killed, "auto_resume_from_checkpoints": True}}, tmp_path)
    assert "checkpoint-4 was not written to its end" in (tmp_path / "log.txt").read_text()
    ends = [torch.load(tmp_path / f"{run}.0.pt", weights_only=True) for run in ("whole", "resumed")]
    assert all(torch.equal(ends[0]["model"][key], ends[1]["model"][key]) for key in ends[0]["model"])
    assert len(ends[1]["weights"]) == STEPS - 2, "it did not go on from checkpoint-2"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_a_signal_to_one_rank_ends_all_with_a_checkpoint(name: str, engine_inputs: Path, tmp_path: Path) -> None:
    common = {"directory": str(engine_inputs), "micro_batch_size": 2, **SAVING, **LAYOUTS[name].keys}
    told = {**common, "output_dir": str(tmp_path / "told")}
    launch({"told": {**told, "told_at": [1, 3]}}, tmp_path)
    assert sorted(path.name for path in (tmp_path / "told").glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
    assert "SIGTERM ends the run after optimiser step 3" in (tmp_path / "log.txt").read_text()
    whole = {**common, "output_dir": str(tmp_path / "whole")}
    launch({"whole": whole, "resumed": {**told, "auto_resume_from_checkpoints": True}}, tmp_path)
    ends = [torch.load(tmp_path / f"{run}.0.pt", weights_only=True) for run in ("whole", "resumed")]
    assert all(torch.equal(ends[0]["model"][key], ends[1]["model"][key]) for key in ends[0]["model"])
    assert len(ends[1]["weights"]) == STEPS - 3, "it did not go on from checkpoint-3"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fsdp2", "zero3"])
def test_ctrl_c_leaves_no_part_of_a_model_beside_its_checkpoint(name: str, engine_inputs: Path, tmp_path: Path) -> None:
    """Of ZeRO-3 the host's handler would save empty tensors, of FSDP2 it fails."""
    keys = {"directory": str(engine_inputs), "micro_batch_size": 2, **SAVING, **LAYOUTS[name].keys}
    launch({"told": {**keys, "output_dir": str(tmp_path / "told"), "told_at": [None, 3, "SIGINT"]}}, tmp_path)
    assert problem_of(str(tmp_path / "told/checkpoint-3")) is None
    assert not list((tmp_path / "told").glob("*.safetensors"))
    assert "checkpoint-3; no model is saved beside it" in (tmp_path / "log.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("sampling", ["host", "mixture"])
def test_ddp_goes_on_in_one_process(engine_inputs: Path, tmp_path: Path, sampling: str) -> None:
    keys = {**arguments_of(engine_inputs, "full", tmp_path / "out", None), **SAVING}
    keys["scalebio"] = {**keys["scalebio"], "sampling": sampling}
    never_stopped = run_case({**keys, "output_dir": str(tmp_path / "whole")})
    two = {**keys, "micro_batch_size": 2, "stop_after": 5}
    launch({"two": {**two, **LAYOUTS["ddp"].keys}}, tmp_path)
    alone = run_case({**keys, "auto_resume_from_checkpoints": True})
    assert alone is not None
    assert never_stopped is not None
    assert len(alone.weights) == STEPS - 4
    assert farthest(alone.model, never_stopped.model) < TOLERANCE
    assert farthest(alone.inner, never_stopped.inner) < TOLERANCE


# ---- probes

GOALS = ("data/validation.jsonl", "few/offtopic.jsonl")
PROBED: dict[str, dict[str, Any]] = {
    "uneven": {**ONE_LAYER, "gradient_accumulation_steps": 3, "scalebio": {"validation_batch_size": 5}},
    "lora": {**ONE_LAYER, **host.LORA, "learning_rate": 5e-3},
    "lisa": {"scalebio": {**LISA, "penalty": 2.0}, "base_model": "four_layers", "tokenizer_config": "model"},
}


def probed(inputs: Path, out: Path, name: str, interval: int, layout: Layout | None) -> dict[str, Any]:
    """Of `host.train`: a run with that many updates between two probes."""
    keys = {"adam_epsilon": 1e-6, "max_steps": 4, "micro_batch_size": 2 if layout else 4, **PROBED[name]}
    goals = {"validation_datasets": [{"path": path, "type": "alpaca"} for path in GOALS]}
    block = {"validation_batch_size": 8, **goals, **keys.get("scalebio", {}), "probe_interval": interval}
    saving = {"save_strategy": "steps", "save_steps": 4}
    engine = {} if layout is None else layout.keys
    return {"directory": str(inputs), "output_dir": str(out), **keys, **saving, **engine, "scalebio": block}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_probes_on_ranks_find_what_one_process_finds_and_change_nothing(
    engine: str, engine_inputs: Path, tmp_path: Path
) -> None:
    cases = {
        f"{name}, {interval}": probed(engine_inputs, tmp_path / f"{name}, {interval}", name, interval, LAYOUTS[engine])
        for name in PROBED
        for interval in (0, 1)
    }
    launch(cases, tmp_path)
    for name in PROBED:
        run_case(probed(engine_inputs, tmp_path / "alone" / name, name, 1, None))
        alone, without, ranks = (
            [json.loads(line) for line in (folder / "scalebio/history.jsonl").open()]
            for folder in (tmp_path / "alone" / name, tmp_path / f"{name}, 0", tmp_path / f"{name}, 1")
        )
        goals = [record.pop("goals") for record in ranks]
        assert [record.pop("goals") for record in without] == [None] * 4
        assert without == ranks
        for kind in ("model", "inner", "grad_norms"):
            ends = [torch.load(tmp_path / f"{name}, {of}.1.pt", weights_only=True)[kind] for of in (0, 1)]
            assert same_bits(*ends), kind
        far = [
            abs(value - record["goals"][source][goal])
            for record, of in zip(alone, goals, strict=True)
            for source, row in of.items()
            for goal, value in row.items()
            if (value is None) != (record["goals"][source][goal] is None) or value is not None
        ]
        print(engine, name, len(far), max(far))
        assert len(far) > 10
        assert max(far) < 10 * TOLERANCE


@pytest.mark.slow
def test_under_zero_there_are_no_probes_and_the_log_says_so(engine_inputs: Path, tmp_path: Path) -> None:
    case = probed(engine_inputs, tmp_path / "out", "uneven", 0, LAYOUTS["zero2"])
    del case["scalebio"]["probe_interval"]
    launch({"zero": case}, tmp_path)
    assert "which source helps which validation set is not measured: DeepSpeed" in (tmp_path / "log.txt").read_text()
    records = [json.loads(line) for line in (tmp_path / "out/scalebio/history.jsonl").open()]
    assert [record["goals"] for record in records] == [None] * 4


# ---- bytes


@pytest.mark.parametrize(("engine", "mode"), on_engines(COUNTED))
def test_a_rank_holds_what_estimate_counts(
    engine: str,
    mode: str,
    one_process: Callable[[str], Outcome],
    two_ranks: Callable[[str, str], dict[str, list[Outcome]]],
) -> None:
    """Tensor by tensor: weights, optimizer states, and both of the inner set."""
    for outcome in [one_process(mode), *two_ranks(engine, mode)[mode]]:
        print(mode, outcome.measured, outcome.formula)
        assert outcome.measured["inner_values"] > 0
        for name, counted in outcome.formula.items():
            assert outcome.measured[name] == pytest.approx(counted, rel=0.02, abs=64), name


def farthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return float(torch.stack([torch.zeros(()), *((a[name] - b[name]).abs().max() for name in a)]).max())  # NaN shows
