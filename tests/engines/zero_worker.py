"""What a rank of tests/engines/test_zero.py runs: `<stage>:<case>`, one after the other, a JSON file for each.

u and w on one DeepSpeed engine, through accelerate's own wrapper, beside a literal reference: two copies of the module,
each with its optimizer, in this process, on the batches of all ranks.
"""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import deepspeed
import torch
from accelerate import Accelerator, DistributedType, PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DeepSpeedPlugin
from deepspeed.runtime.zero import stage_1_and_2
from torch import Tensor, nn

from scalebio_plugin.engines.zero import ZeroInner, without_steps
from tests.engines import gloo
from tests.engines.simulated import simulated_transfer
from tests.engines.worker import bytes_of, same_bits

STEPS, ROWS, WIDTH, CHUNKS = 6, 4, 6, 2
CLIP, PULL = 0.5, 0.3


@dataclass(frozen=True)
class Case:
    """What a run does differently. `check`: the function that runs it."""

    check: str = "reference"
    accumulation: int = 3
    optimizer: str = "adamw"
    dtype: torch.dtype = torch.float32
    pull: float = PULL
    uneven: bool = False  # a parameter that only some micro-batches reach
    zero: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    rests_on: str | None = None
    beside: str | None = None  # when the copies of a simulated exchange run


CASES: dict[str, Case] = {
    "adamw_3": Case(),
    "adamw_1": Case(accumulation=1),
    "sgd_3": Case(optimizer="sgd"),
    "sgd_1": Case(optimizer="sgd", accumulation=1),
    "cpu": Case(rests_on="cpu"),
    "beside": Case(beside="late"),
    "bf16_beside": Case(check="masters", dtype=torch.bfloat16, beside="at random"),
    "groups": Case(optimizer="counting"),
    "uneven": Case(uneven=True),
    "bf16": Case(check="masters", dtype=torch.bfloat16),
    "overlap": Case(zero={"overlap_comm": True}),
    "no_overlap": Case(zero={"overlap_comm": False}),
    "scattered": Case(zero={"contiguous_gradients": False}),
    "all_reduce": Case(zero={"reduce_scatter": False}),
    "round_robin": Case(zero={"round_robin_gradients": True}),
    "sub_groups": Case(zero={"sub_group_size": 30}),
    "small_buckets": Case(zero={"reduce_bucket_size": 40, "allgather_bucket_size": 40}),
    "optimizer_offload": Case(zero={"offload_optimizer": {"device": "cpu"}}),
    "optimizer_offload_1": Case(accumulation=1, zero={"offload_optimizer": {"device": "cpu"}}),
    "uneven_offload": Case(uneven=True, zero={"offload_optimizer": {"device": "cpu"}}),
    "param_offload": Case(zero={"offload_param": {"device": "cpu"}}),
    "both_offload": Case(zero={"offload_param": {"device": "cpu"}, "offload_optimizer": {"device": "cpu"}}),
    "bf16_offload": Case(check="masters", dtype=torch.bfloat16, zero={"offload_optimizer": {"device": "cpu"}}),
    "bf16_fp32_accumulation": Case(
        check="masters", dtype=torch.bfloat16, config={"data_types": {"grad_accum_dtype": "fp32"}}
    ),
    "bf16_masters": Case(
        check="masters",
        dtype=torch.bfloat16,
        config={"bf16": {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}},
    ),
    "autocast": Case(check="masters", config={"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}),
    # By hand: compiles for minutes.
    "cpu_adam": Case(zero={"offload_optimizer": {"device": "cpu"}}, config={"zero_force_ds_cpu_optimizer": True}),
    "hpz": Case(zero={"zero_hpz_partition_size": 2}),
    "save": Case(check="save"),
    "resume": Case(check="resume"),
    "save_bf16": Case(check="save", dtype=torch.bfloat16),
    "resume_bf16": Case(check="resume", dtype=torch.bfloat16),
    "error": Case(check="error"),
    "kept": Case(check="kept"),
    "kept_groups": Case(check="kept", optimizer="counting"),
    "kept_cpu": Case(check="kept", rests_on="cpu"),
    "kept_beside": Case(check="kept", beside="late"),
    "kept_bf16": Case(check="kept", dtype=torch.bfloat16),
    "kept_offload": Case(check="kept", zero={"offload_optimizer": {"device": "cpu"}}),
}


class Net(nn.Module):
    """Frozen parameters, a low-rank adapter, parameters under and over stage 3's persistence threshold, odd sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(WIDTH, 9).requires_grad_(False)
        self.down = nn.Linear(WIDTH, 2, bias=False)
        self.up = nn.Linear(2, 9, bias=False)
        self.norm = nn.LayerNorm(9)
        self.head = nn.Linear(9, 7)
        self.shift = nn.Linear(9, 9)

    def forward(self, rows: Tensor, targets: Tensor, shifted: bool = True) -> Tensor:
        hidden = self.norm(self.base(rows) + self.up(self.down(rows)))
        hidden = self.shift(hidden) if shifted else hidden
        return (self.head(torch.tanh(hidden)) - targets).square().sum()


class Counting(torch.optim.SGD):
    """Its groups hold something that it changes as it steps, as Prodigy's do, and that decides the next step."""

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["count"] = group.get("count", 0) + 1
            norm = sum(float(parameter.grad.abs().sum()) for parameter in group["params"] if parameter.grad is not None)
            group["scale"] = group.get("scale", 1.0) * (0.9 if norm > 0 else 1.0)
            group["momentum"] = 0.0
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(group["scale"])
        super().step(closure)


def new_net(dtype: torch.dtype = torch.float32) -> Net:
    torch.manual_seed(3)
    return Net().to(dtype)


def new_optimizer(net: nn.Module, kind: str) -> torch.optim.Optimizer:
    named = [(name, parameter) for name, parameter in net.named_parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for name, parameter in named if "norm" not in name], "weight_decay": 0.1},
        {"params": [parameter for name, parameter in named if "norm" in name], "weight_decay": 0.0},
    ]
    if kind == "adamw":
        return torch.optim.AdamW(groups, lr=0.05)
    return (torch.optim.SGD if kind == "sgd" else Counting)(groups, lr=0.05, momentum=0.9)


def batch(case: Case, step: int, number: int, rank: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, bool]:
    """Micro-batch `number` of a rank; validation chunks are numbered from 100."""
    generator = torch.Generator().manual_seed(10_000 * step + 10 * number + rank)
    made = torch.randn(ROWS, WIDTH + 7, generator=generator).to(dtype)
    return made[:, :WIDTH], made[:, WIDTH:], not case.uneven or (step + number) % 4 == 1


def learning_rate(step: int) -> float:
    return 0.05 * (1 - step / 10)


def passes(case: Case, *, of_w: bool) -> list[tuple[int, float]]:
    """(number of the micro-batch, its coefficient) of one set in one step."""
    training = [(number, 1.0 / (case.accumulation * ROWS)) for number in range(case.accumulation)]
    return [*training, *((100 + chunk, case.pull / (CHUNKS * ROWS)) for chunk in range(CHUNKS) if of_w and case.pull)]


class Reference:
    """One of two full copies, trained in one process."""

    def __init__(self, case: Case, *, of_w: bool):
        self.case, self.of_w = case, of_w
        self.net = new_net()
        self.optimizer = new_optimizer(self.net, case.optimizer)

    def step(self, step: int) -> None:
        ranks = torch.distributed.get_world_size()
        for parameter in self.net.parameters():  # not None: a flat tensor steps as a whole
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        for number, coefficient in passes(self.case, of_w=self.of_w):
            for rank in range(ranks):
                (coefficient / ranks * self.net(*batch(self.case, step, number, rank, torch.float32))).backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), CLIP)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step)
        self.optimizer.step()


class Run:
    """Both sets on one engine, as the trainer drives it."""

    def __init__(self, stage: int, case: Case):
        self.case = case
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
        zero = {"stage": stage, "stage3_param_persistence_threshold": 20, "stage3_prefetch_bucket_size": 30}
        config = {
            "train_micro_batch_size_per_gpu": ROWS,
            "gradient_accumulation_steps": case.accumulation,
            "gradient_clipping": CLIP,
            "bf16": {"enabled": case.dtype == torch.bfloat16},
            "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": {**zero, **case.zero},
            **case.config,
        }
        self.accelerator = Accelerator(
            deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=config), gradient_accumulation_steps=case.accumulation
        )
        net = new_net(case.dtype)
        self.model, self.optimizer = self.accelerator.prepare(net, new_optimizer(net, case.optimizer))
        self.engine = self.accelerator.deepspeed_engine_wrapped.engine
        self.model.train()
        self.inner = ZeroInner(
            self.engine,
            None if case.rests_on is None else torch.device(case.rests_on),
            None if case.beside is None else simulated_transfer(case.beside),
        )

    def passes(self, step: int, *, of_w: bool) -> None:
        todo = passes(self.case, of_w=of_w)
        for index, (number, coefficient) in enumerate(todo):
            self.accelerator.gradient_state._set_sync_gradients(index == len(todo) - 1)
            loss = self.model(*batch(self.case, step, number, self.accelerator.process_index, self.case.dtype))
            self.accelerator.backward(coefficient * loss, scale_wrt_gas=False)

    def begin(self, step: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step)

    def plain_step(self, step: int) -> None:
        """Of an engine with one set, which feels no pull."""
        self.begin(step)
        with without_steps(self.engine):
            self.passes(step, of_w=False)
        self.engine.step()

    def step(self, step: int) -> None:
        self.begin(step)
        self.inner.follow(["any"])
        before = self.counters()
        with self.inner.in_place():
            self.passes(step, of_w=False)
            self.inner.step()
        assert self.counters() == before, f"u's step moved the engine's counters {before} to {self.counters()}"
        with without_steps(self.engine):
            self.passes(step, of_w=True)
        assert self.counters() == before
        self.engine.step()
        assert self.counters() == [*(count + 1 for count in before[:2]), *before[2:]]

    def counters(self) -> list[int]:
        per_step = self.engine.train_batch_size()
        return [self.engine.global_steps, self.engine.global_samples // per_step, self.engine.skipped_steps]

    def parameters(self) -> dict[str, Tensor]:
        """All of the set that is in place."""
        found = {}
        partitioned = self.engine.zero_optimization_partition_weights()
        for name, parameter in self.engine.module.named_parameters():
            gathered = deepspeed.zero.GatheredParameters([parameter]) if partitioned else nullcontext()
            with gathered:
                found[name] = parameter.detach().float().clone()
        return found

    def both(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        w = self.parameters()
        with self.inner.in_place():
            u = self.parameters()
        return u, w

    def masters(self) -> list[Tensor]:
        """Of the set that is in place, without stage 3's padding, which DeepSpeed leaves uninitialised."""
        found = [master.detach().clone() for master in self.inner._masters()]
        zero = self.engine.optimizer
        if self.engine.zero_optimization_partition_weights():
            for master, parts, paddings in zip(found, zero.fp16_partitioned_groups, zero.groups_padding, strict=True):
                for part, padding in zip(master.split([part.ds_numel for part in parts]), paddings, strict=True):
                    part[part.numel() - padding :] = 0.0
        return found

    def masters_of_u(self) -> list[Tensor]:
        with self.inner.in_place():
            return self.masters()


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """NaN where either has one."""
    return float(torch.stack([(one[name] - other[name].float()).abs().max() for name in one]).max())


def reference(stage: int, case: Case, folder: Path) -> dict[str, Any]:
    run = Run(stage, case)
    w, u = Reference(case, of_w=True), Reference(case, of_w=False)
    distances: dict[str, list[float]] = {"w": [], "u": [], "apart": []}
    for step in range(STEPS):
        run.step(step)
        w.step(step)
        u.step(step)
        inner, model = run.both()
        distances["w"].append(distance(model, w.net.state_dict()))
        distances["u"].append(distance(inner, u.net.state_dict()))
        distances["apart"].append(distance(inner, model))
    start = new_net().state_dict()
    frozen = {name: value for name, value in run.parameters().items() if name.startswith("base")}
    return {
        **distances,
        "moved": distance(w.net.state_dict(), start),
        "frozen": distance(frozen, start),
        "bytes": bytes_of([*run.inner.tensors, *run.inner.states]),
    }


def masters(stage: int, case: Case, folder: Path) -> dict[str, Any]:
    """Full-precision masters: u is, bit for bit, what w is without a pull; and doesn't notice the pull on w."""
    calm, pulled = Run(stage, replace(case, pull=0.0)), Run(stage, case)
    start = calm.masters()
    for step in range(STEPS):
        calm.step(step)
    for step in range(STEPS):
        pulled.step(step)
    u, w = calm.both()
    pulled_u, pulled_w = pulled.both()
    last, last_u, last_pulled_u = calm.masters(), calm.masters_of_u(), pulled.masters_of_u()
    return {
        "dtype": str(last[0].dtype),
        "equal": distance(u, w) == 0.0 and same_bits(last, last_u),
        "undisturbed": distance(u, pulled_u) == 0.0 and same_bits(last_u, last_pulled_u),
        "apart": distance(pulled_u, pulled_w),
        "moved": max(float((a - b).abs().max()) for a, b in zip(start, last, strict=True)),
        "rounding": max(float((master - master.bfloat16().float()).abs().max()) for master in last),
    }


def _saved(run: Run) -> dict[str, Any]:
    u, w = run.both()
    return {"u": u, "w": w, "masters": run.masters(), "inner": run.inner.state_dict()}


def save(stage: int, case: Case, folder: Path) -> dict[str, Any]:
    """All steps in one go, with a checkpoint in the middle."""
    run = Run(stage, case)
    name = f"{case.dtype}_{run.accelerator.process_index}"
    for step in range(STEPS):
        if step == STEPS // 2:
            run.engine.save_checkpoint(str(folder), tag=str(case.dtype))
            torch.save(run.inner.state_dict(), folder / f"{name}_inner.pt")
        run.step(step)
    torch.save(_saved(run), folder / f"{name}_end.pt")
    return {}


def resume(stage: int, case: Case, folder: Path) -> dict[str, Any]:
    """The second half, in new processes."""
    run = Run(stage, case)
    name = f"{case.dtype}_{run.accelerator.process_index}"
    run.engine.load_checkpoint(str(folder), tag=str(case.dtype))
    run.inner.load_state_dict(torch.load(folder / f"{name}_inner.pt", weights_only=True))
    for step in range(STEPS // 2, STEPS):
        run.step(step)
    end = torch.load(folder / f"{name}_end.pt", weights_only=True)
    return {key: same_bits(value, end[key]) for key, value in _saved(run).items()}


def error(stage: int, case: Case, folder: Path) -> dict[str, Any]:
    """After an error inside the block w is back, and the engine steps again; what cannot be is refused."""
    run = Run(stage, case)
    run.step(0)
    u, w = run.both()
    caught = []
    try:
        with run.inner.in_place():
            raise KeyError("inside")
    except KeyError:
        caught.append("inside")
    saved = run.inner.state_dict()
    saved["masters"] = [master[:-1] for master in saved["masters"]]
    for refused in (lambda: run.inner.load_state_dict(saved), lambda: run.inner.forget(["head.weight"])):
        try:
            refused()
        except ValueError as problem:
            caught.append(str(problem))
    again_u, again_w = run.both()
    return {
        "same": distance(w, again_w) == 0.0 and distance(u, again_u) == 0.0,
        "caught": caught,
        "steps": "step" not in run.engine.__dict__,
    }


def kept(stage: int, case: Case, folder: Path) -> dict[str, Any]:
    """u takes over in mid-run: what the engine holds then, and where it goes from there."""
    run, u = Run(stage, case), Reference(case, of_w=False)
    for step in range(STEPS // 2):
        run.step(step)
        u.step(step)
    inner, model = run.both()
    masters, held = run.masters_of_u(), run.inner.state_dict()
    run.inner.take_over()
    copied = ZeroInner(run.engine)
    copied.follow()
    found = copied.state_dict()
    result = {
        "apart": distance(inner, model),
        "values": distance(run.parameters(), inner) == 0.0,
        "masters": same_bits(run.masters(), masters),
        **{kind: same_bits(found[kind], held[kind]) for kind in ("states", "groups")},
        "left": bytes_of([*run.inner.tensors, *run.inner.states]),
    }
    for step in range(STEPS // 2, STEPS):
        run.plain_step(step)
        u.step(step)
    return {**result, "end": distance(run.parameters(), u.net.state_dict())}


def run_items(folder: Path, items: list[str]) -> None:
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
    gloo.prepare_deepspeed()
    stage_1_and_2.split_half_float_double = lambda tensors: [tensors]  # knows no CPU tensor: they would not be reduced
    checks = {check.__name__: check for check in (reference, masters, save, resume, error, kept)}
    for item in items:
        stage, name = item.split(":")
        within = folder / stage
        within.mkdir(exist_ok=True)
        result = checks[CASES[name].check](int(stage), CASES[name], within)
        (within / f"{name}_{os.environ['RANK']}.json").write_text(json.dumps(result))
    torch.distributed.destroy_process_group()  # as the host does
