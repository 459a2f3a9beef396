"""What every rank runs: a list of cases through the host, one after the other, and what each came to."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests import host


@dataclass
class Outcome:
    """λ after every step, active layers, w and u (whole tensors), the logged losses and gradient norms, of one rank."""

    weights: list[torch.Tensor]
    layers: list[int]
    model: dict[str, torch.Tensor]
    inner: dict[str, torch.Tensor]
    losses: list[float]
    grad_norms: list[float]
    measured: dict[str, float] = field(default_factory=dict)  # bytes on this rank, counted tensor by tensor
    formula: dict[str, float] = field(default_factory=dict)  # the same by `estimate`
    saved: dict[str, torch.Tensor] = field(default_factory=dict)  # what the run left on disk; filled in by the test
    handed: dict[str, bool] = field(default_factory=dict)  # what held right after u took over
    eval_losses: list[float] = field(default_factory=list)  # as logged, and once more at the end
    calm: list[bool] = field(default_factory=list)  # whether u was w, bit for bit, when the pull began


def whole(parameter: torch.Tensor) -> torch.Tensor:
    """All of a parameter, from whatever the engine left on this rank."""
    if hasattr(parameter, "full_tensor"):
        return parameter.detach().full_tensor().clone()
    if hasattr(parameter, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()
    return parameter.detach().clone()


def outcome_of(trainer: Any, counted: Any) -> Outcome:
    """At the end of a run, while the engine still stands."""
    learning = trainer.learning

    def values() -> dict[str, torch.Tensor]:
        return {name: value.float() for name, value in parameters_of(trainer).items()}

    model, inner = values(), {}
    if learning.inner is not None:
        with learning.inner.in_place():
            inner = values()
    if trainer.eval_dataset is not None:
        trainer.evaluate()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    return Outcome(
        weights=[],
        layers=list(learning.layers.layers) if learning.layers else [],
        model=model,
        inner=inner,
        losses=[entry["loss"] for entry in logged],
        grad_norms=[float(entry["grad_norm"]) for entry in logged],
        eval_losses=[entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry],
        measured=measured_bytes(trainer),
        formula={name: getattr(counted.run.state, name).gpu for name in CATEGORIES},
    )


@contextmanager
def noted_estimate() -> Iterator[list[Any]]:
    """What the run inside announces that it will hold."""
    from scalebio_plugin.training import connect

    found: list[Any] = []
    before = connect.from_model
    connect.from_model = lambda *args, **kwargs: found.append(before(*args, **kwargs)) or found[-1]
    try:
        yield found
    finally:
        connect.from_model = before


CATEGORIES = ("frozen", "trained", "optimizer", "inner_values", "inner_optimizer")


def measured_bytes(trainer: Any) -> dict[str, float]:
    """What this rank holds between two steps, tensor by tensor."""
    inner = trainer.learning.inner
    if inner is None:
        return {}
    trainable = trainer.trainable_parameters()
    ids = {id(parameter) for parameter in trainable.values()}
    others = [p for p in trainer.accelerator.unwrap_model(trainer.model).parameters() if id(p) not in ids]
    if hasattr(inner, "engine"):  # ZeRO's flat tensors: values and masters
        return {
            "frozen": bytes_of(others),
            "trained": bytes_of(inner._owned()),
            "optimizer": bytes_of(inner.optimizer.optimizer.state.values()),
            "inner_values": bytes_of(inner.tensors),
            "inner_optimizer": bytes_of(inner.states),
        }
    return {
        "frozen": bytes_of(others),
        "trained": bytes_of(trainable.values()),
        "optimizer": bytes_of(trainer.raw_optimizer().state.values()),
        "inner_values": bytes_of(inner.values.values()),
        "inner_optimizer": bytes_of(inner.states.values()),
    }


def bytes_of(held: Any) -> float:
    """Of tensors, DTensors (this rank's shard), partitioned parameters, and of dicts of them."""
    total = 0.0
    for value in held:
        if isinstance(value, dict):
            total += bytes_of(value.values())
        elif isinstance(value, torch.Tensor):
            local = getattr(value, "ds_tensor", None)
            local = value.to_local() if hasattr(value, "to_local") else value if local is None else local
            total += local.nbytes
    return total


def same_bits(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.shape == other.shape and one.reshape(-1).view(torch.uint8).equal(other.reshape(-1).view(torch.uint8))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_bits(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(same_bits(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


@contextmanager
def noted_hand_over() -> Iterator[dict[str, bool]]:
    """Of a run that keeps u: whether what the engine holds right after the hand-over is, bit for bit, what u had."""
    from scalebio_plugin.training.trainer import ScaleBiOTrainer

    found: dict[str, bool] = {}
    end = ScaleBiOTrainer.end_learning

    def noted(trainer: Any) -> None:
        learning = trainer.learning
        if not learning.keeps_inner:
            end(trainer)
            return
        held, w = learning.inner.state_dict(), parameters_of(trainer)
        with learning.inner.in_place():
            u = parameters_of(trainer)
        end(trainer)
        copied = learning.engine.inner(trainer.trainable_parameters(), trainer.raw_optimizer(), None)
        copied.follow(held.get("values", u))
        after, now = copied.state_dict(), parameters_of(trainer)
        found.update({kind: same_bits(after[kind], held[kind]) for kind in held})
        found["parameters"] = same_bits(now, u)
        found["another set"] = not same_bits(now, w)
        found["none is left"] = learning.inner is None
        found["state"] = any(held["states"].values() if isinstance(held["states"], dict) else held["states"])

    ScaleBiOTrainer.end_learning = noted
    try:
        yield found
    finally:
        ScaleBiOTrainer.end_learning = end


def parameters_of(trainer: Any) -> dict[str, torch.Tensor]:
    """All of what trains, whole."""
    return {name: whole(parameter) for name, parameter in trainer.trainable_parameters().items()}


def run_case(arguments: dict[str, Any]) -> Outcome | None:
    """One run in this process; None if it was to be killed and was."""
    arguments = dict(arguments)
    dies_at = arguments.pop("dies_at", None)
    if dies_at is not None:
        die_while_saving(*dies_at)
    told_at = arguments.pop("told_at", None)
    if told_at is not None:
        arguments["on_batch"] = told_to_end(*told_at)
    calm: list[bool] = []
    calm_steps = arguments.pop("calm_steps", None)
    if calm_steps is not None:
        arguments["after_step"] = pulled_after(calm_steps, calm)
    order = drawn_in_the_same_order() if arguments.pop("same_order", False) else nullcontext()
    late = exchanged_late() if arguments.pop("exchanged_late", False) else nullcontext()
    found: list[Outcome] = []
    try:
        with late, order, noted_estimate() as counted, noted_hand_over() as handed:
            run = host.train(
                Path(arguments.pop("directory")),
                at_end=lambda trainer: found.append(outcome_of(trainer, counted[0])),
                **arguments,
            )
    except KeyboardInterrupt:
        if "stop_after" not in arguments and told_at is None:
            raise
        return None
    found[0].weights, found[0].handed, found[0].calm = run.weights, handed, calm
    return found[0]


def pulled_after(steps: int, calm: list[bool]) -> Callable[[Any], None]:
    """For `after_step` of a run without a pull, which from then on has one; notes whether u was w."""

    def pull(trainer: Any) -> None:
        if trainer.state.global_step != steps:
            return
        run, w = trainer.learning.run, parameters_of(trainer)
        with trainer.learning.inner.in_place():
            u = parameters_of(trainer)
        assert run.settings.pull == 0.0
        calm.append(w.keys() == u.keys() and all(torch.equal(w[name], value) for name, value in u.items()))
        run.settings = run.settings.model_copy(update={"penalty": 10.0})

    return pull


def told_to_end(rank: int | None, step: int, name: str = "SIGTERM") -> Callable[[Any, Any], None]:
    """For `on_batch`: this rank, or each, is sent that signal in that step, at which a process would be gone."""

    def gone(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    def tell(trainer: Any, batch: Any) -> None:
        if rank in (None, trainer.args.process_index) and trainer.state.global_step + 1 == step:
            signal.raise_signal(signal.Signals[name])

    signal.signal(signal.SIGTERM, gone)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return tell


@contextmanager
def exchanged_late() -> Iterator[None]:
    """u is exchanged as with a GPU, by copies that run only once somebody waits for them."""
    from scalebio_plugin.engines import base, deepspeed, fsdp2
    from tests.engines.simulated import simulated_transfer

    before = base.transfer_between
    for module in (base, deepspeed, fsdp2):
        module.transfer_between = lambda here, rest: simulated_transfer("late", chunk=4096)
    try:
        yield
    finally:
        for module in (base, deepspeed, fsdp2):
            module.transfer_between = before


class SameOrder(torch.utils.data.Sampler):
    """One and the same random order in every epoch.

    The host's packing counts its bins before accelerate exchanges their sampler for its own: one process packs anew
    afterwards, several ranks keep those bins for a while, in another order.
    """

    def __init__(self, rows: Any):
        self.rows = rows

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(len(self.rows), generator=torch.Generator().manual_seed(0)).tolist())

    def __len__(self) -> int:
        return len(self.rows)


@contextmanager
def drawn_in_the_same_order() -> Iterator[None]:
    from axolotl.core.trainers import base

    before, base.RandomSampler = base.RandomSampler, SameOrder
    try:
        yield
    finally:
        base.RandomSampler = before


def forget_state() -> None:
    """accelerate's and the host's notes on the run: DeepSpeed's set-up refuses to find any."""
    import axolotl.utils.distributed
    from accelerate.state import AcceleratorState, GradientState, PartialState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    PartialState._reset_state()
    axolotl.utils.distributed.distributed_state = None


def die_while_saving(rank: int, step: int) -> None:
    """Rank `rank` is gone when it comes to writing its part of u in checkpoint `step`; the others are not hurried."""
    from scalebio_plugin.training import checkpoint

    write_inner = checkpoint.write_inner

    def write_or_die(folder: str, part: Any, place: Any) -> None:
        if place.rank == rank and Path(folder).name == f"checkpoint-{step}":
            time.sleep(5)
            os._exit(1)
        write_inner(folder, part, place)

    checkpoint.write_inner = write_or_die


def begin_as(output_dir: str, killed: tuple[str, int] | None = None, **arguments: Any) -> None:
    """`killed`: the folder of an earlier case, and the checkpoint up to which there is as much here as in it."""
    if killed is None:
        return
    if os.environ["RANK"] == "0":
        host.as_if_killed(Path(killed[0]), Path(output_dir), killed[1])
    torch.distributed.barrier()


def run_cases(cases: dict[str, dict[str, Any]], out: Path) -> None:
    """`cases`: the keyword arguments of `tests.host.train`, with `directory`. Leaves OUT/<case>.<rank>.pt."""
    destroy = torch.distributed.destroy_process_group
    torch.distributed.destroy_process_group = lambda *args: None  # the host ends it with a run; here others follow
    torch.compiler.set_stance("force_eager")  # optimizers that compile their step: it takes longer than the steps
    for name, arguments in cases.items():
        host.forget_parameters()
        begin_as(**arguments)
        outcome = run_case({key: value for key, value in arguments.items() if key != "killed"})
        forget_state()
        if outcome is not None:
            torch.save(asdict(outcome), out / f"{name}.{os.environ['RANK']}.pt")
    destroy()
