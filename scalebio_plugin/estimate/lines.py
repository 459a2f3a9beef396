"""An estimate as text: a table of GiB, compute, and whether it fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .cost import while_learning, whole_run
from .estimator import ALLOWANCE, Estimate, Run
from .records import GIB, Bytes, Engine

# Row, and what of the state it sums; what is zero in every column is left out.
_STATE = {
    "weights, frozen": "frozen",
    "weights, trained": "trained",
    "gradients": "gradients",
    "optimizer states": "optimizer",
    "inner parameters": "inner_values",
    "inner optimizer states": "inner_optimizer",
    "gradient buckets": "buckets",
}


@dataclass(frozen=True)
class _Row:
    name: str
    cells: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name:<26}" + "".join(f"{cell:>14}" for cell in self.cells)


def lines_of(found: Estimate, gpu_memory: float) -> list[str]:
    """The whole report; `gpu_memory` in GiB."""
    return [
        f"model        {found.model}",
        f"parameters   {found.total:,} in all, {found.trained:,} train{_at_a_time(found)}: {found.method}",
        f"engine       {_processes(found.engine, on_gpu=True)}; {found.batch}",
        "",
        *(str(row) for row in _table(found)),
        "",
        *_compute(found),
        *(f"note         {note}" for note in found.notes),
        *_fits(found, gpu_memory),
    ]


def fits(found: Estimate, gpu_memory: float) -> bool:
    return found.run.peak <= gpu_memory * GIB


def summary_line(found: Estimate, *, on_gpu: bool) -> list[str]:
    """Four or five lines for the log at the start of a run. Without a GPU all of it is in the memory of the CPU."""
    state, alone = found.run.state, found.ordinary.state
    unit, size = ("GiB", GIB) if state.held.gpu + state.held.cpu >= GIB else ("MiB", 2**20)

    def of(*parts: Bytes) -> str:
        whole = sum(parts, Bytes())
        return f"{(whole.gpu if on_gpu else whole.gpu + whole.cpu) / size:.2f}"

    result = [
        f"scalebio: {found.trained:,} of {found.total:,} parameters train{_at_a_time(found)} "
        f"({found.method}; {_processes(found.engine, on_gpu)})",
        f"  {unit} per {'GPU' if on_gpu else 'process'}: weights {of(state.frozen, state.trained)}, "
        f"gradients {of(state.gradients)}, optimizer states {of(state.optimizer)}",
        f"  of the inner set: parameters {of(state.inner_values)}, optimizer states {of(state.inner_optimizer)}",
        f"  together {of(state.held)}, without the inner set {of(alone.held)}; activations come on top",
    ]
    if on_gpu and state.held.cpu:
        result.append(f"  in CPU memory per GPU: {state.held.cpu / size:.2f} {unit}")
    return result


def _processes(engine: Engine, on_gpu: bool) -> str:
    if on_gpu:
        return f"{engine}, {engine.world} GPU{'s' * (engine.world > 1)}"
    return f"{engine}, {engine.world} processes on the CPU" if engine.world > 1 else f"{engine} on the CPU"


def _at_a_time(found: Estimate) -> str:
    return "" if found.active == found.trained else f" ({found.active:,} at a time)"


def _gib(amount: float) -> str:
    return f"{amount / GIB:.2f}"


def _columns(found: Estimate) -> list[tuple[str, Run]]:
    columns = [("this run", found.run), ("ordinary", found.ordinary)]
    return columns if found.lisa_alone is None else [*columns, ("LISA alone", found.lisa_alone)]


def _table(found: Estimate) -> Iterator[_Row]:
    """GiB per GPU: this run, the same config without `scalebio`, LISA without bilevel; extra: this minus ordinary."""
    columns = _columns(found)
    yield _Row("GiB per GPU", (*(name for name, _ in columns), "extra"))
    for name, part in _STATE.items():
        yield from _row(name, [getattr(run.state, part).gpu for _, run in columns])
    yield from _passing([run for _, run in columns])
    yield from _row("CUDA context, allowance", [ALLOWANCE for _ in columns])
    yield from _row("peak", [run.peak for _, run in columns])
    yield from _row("CPU memory per GPU", [run.state.held.cpu for _, run in columns])


def _row(name: str, amounts: list[float]) -> Iterator[_Row]:
    if any(amounts):
        extra = amounts[0] - amounts[1]
        yield _Row(
            name, (*(_gib(amount) for amount in amounts), "-" if abs(extra) < GIB / 200 else f"{extra / GIB:+.2f}")
        )


def _passing(runs: list[Run]) -> Iterator[_Row]:
    """What is there for a while; of a pass, an exchange and a step the largest counts."""
    passes = [run.passes for run in runs]
    if all(passes):
        yield from _row("activations", [one.activations for one in passes if one])
        yield from _row("logits and their loss", [one.logits for one in passes if one])
    yield from _row("gathered in a pass", [run.state.gathered.gpu for run in runs])
    yield from _row("(or: in the step)", [run.state.step.gpu for run in runs])
    yield from _row("(or: in an exchange)", [run.state.exchange.gpu for run in runs])


def _compute(found: Estimate) -> list[str]:
    if found.schedule is None:
        return ["compute      that of the ordinary run: no bilevel step"]
    schedule = found.schedule
    whole = whole_run(schedule)
    mean = "not known (add max_steps to count warmup and learn.steps)" if whole is None else f"{whole:.2f}"
    parts = f"w 1 + u 1 + w on validation {schedule.validation:.2f}"
    parts += f" + u on validation {schedule.validation:.2f}" if schedule.symmetric else ""
    return [
        f"compute      a step takes {while_learning(schedule):.2f} times the ordinary one's passes while learning "
        f"({parts})",
        f"             over the whole run: {mean}",
    ]


def _fits(found: Estimate, gpu_memory: float) -> list[str]:
    left = gpu_memory - found.run.peak / GIB
    verdict = f"fits, {left:.1f} GiB left" if left >= 0 else f"does NOT fit, {-left:.1f} GiB too much"
    return [f"{gpu_memory:g} GiB      {verdict}"]
