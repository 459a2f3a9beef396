"""An estimate as text: a table of GiB, compute, and whether it fits."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from ..report.words import counted
from .estimator import ALLOWANCE, Estimate, Run
from .layout import Layout
from .memory import Bytes
from .optimizers import STATES
from .setting import Setting

GIB = 2**30
# A row and what it shows of a run; a row that is zero in every column is left out.
_ROWS: dict[str, Callable[[Run], float]] = {
    "weights, frozen": lambda run: run.state.frozen.gpu,
    "weights, trained": lambda run: run.state.trained.gpu,
    "gradients": lambda run: run.state.gradients.gpu,
    "optimizer states": lambda run: run.state.optimizer.gpu,
    "inner parameters": lambda run: run.state.inner_values.gpu,
    "inner optimizer states": lambda run: run.state.inner_optimizer.gpu,
    "gradient buckets": lambda run: run.state.buckets.gpu,
    # For a while: of a pass, a step and an exchange the largest counts.
    "activations": lambda run: run.passes.activations,
    "logits and their loss": lambda run: run.passes.logits,
    "gathered in a pass": lambda run: run.state.gathered.gpu,
    "(or: in the step)": lambda run: run.state.step.gpu,
    "(or: in an exchange)": lambda run: run.state.exchange.gpu,
    "CUDA context, allowance": lambda run: ALLOWANCE,
    "peak": lambda run: run.peak,
    "CPU memory per GPU": lambda run: run.state.held.cpu,
}


def lines_of(found: Estimate, gpu_memory: float) -> list[str]:
    """The whole report; `gpu_memory` in GiB."""
    left = gpu_memory - found.run.peak / GIB
    verdict = f"fits, {left:.1f} GiB left" if left >= 0 else f"does NOT fit, {-left:.1f} GiB too much"
    return [
        f"model        {found.model}",
        f"parameters   {found.total:,} in all, {found.trained:,} train{_at_a_time(found)}: {_method(found.setting)}",
        f"engine       {_processes(found.setting.layout, on_gpu=True)}; {_batch(found.setting)}",
        "",
        *_table(found),
        "",
        *_compute(found),
        *(f"note         {note}" for note in _notes(found)),
        f"{gpu_memory:g} GiB      {verdict}",
    ]


def facts_of(found: Estimate, gpu_memory: float) -> dict[str, Any]:
    """The same for a program: plain values by key, memory in bytes; `gpu_memory` in GiB."""
    layout, cost = found.setting.layout, found.setting.cost
    learns = not found.setting.block.apply
    return {
        "model": found.model,
        "parameters": {"total": found.total, "trained": found.trained, "at_a_time": found.active},
        "engine": str(layout),
        "gpus": layout.world,
        "bytes_per_gpu": {
            _key(name): {_key(row): round(of(run)) for row, of in _ROWS.items()} for name, run in _runs(found).items()
        },
        "passes": {
            "while_learning": cost.while_learning if learns else 1.0,
            "whole_run": cost.whole_run if learns else 1.0,
        },
        "notes": list(_notes(found)),
        "gpu_memory_gib": gpu_memory,
        "fits": fits(found, gpu_memory),
    }


def _key(row: str) -> str:
    return "_".join(re.findall(r"\w+", row)).lower()


def _runs(found: Estimate) -> dict[str, Run]:
    """By the columns of the table."""
    columns = {"this run": found.run, "ordinary": found.ordinary, "LISA alone": found.lisa_alone}
    return {name: run for name, run in columns.items() if run is not None}


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
        f"({_method(found.setting)}; {_processes(found.setting.layout, on_gpu)})",
        f"  {unit} per {'GPU' if on_gpu else 'process'}: weights {of(state.frozen, state.trained)}, "
        f"gradients {of(state.gradients)}, optimizer states {of(state.optimizer)}",
        f"  of the inner set: parameters {of(state.inner_values)}, optimizer states {of(state.inner_optimizer)}",
        f"  together {of(state.held)}, without the inner set {of(alone.held)}; activations come on top",
    ]
    if on_gpu and state.held.cpu:
        result.append(f"  in CPU memory per GPU: {state.held.cpu / size:.2f} {unit}")
    return result


def _method(setting: Setting) -> str:
    """What trains."""
    cfg, lisa = setting.cfg, setting.block.lisa
    if cfg.get("adapter"):
        bits = " on 4 bits" if cfg.get("load_in_4bit") else " on 8 bits" if cfg.get("load_in_8bit") else ""
        return f"{'QLoRA' if cfg['adapter'] == 'qlora' else 'LoRA'} r={cfg.get('lora_r')}{bits}"
    if lisa is not None and not setting.block.apply:
        return f"LISA, {lisa.active_layers} blocks at a time{' and what is outside' if lisa.train_embeddings else ''}"
    return "some parameters" if cfg.get("unfrozen_parameters") else "all parameters"


def _processes(layout: Layout, on_gpu: bool) -> str:
    if on_gpu:
        return f"{layout}, {counted(layout.world, 'GPU')}"
    return f"{layout}, {layout.world} processes on the CPU" if layout.world > 1 else f"{layout} on the CPU"


def _batch(setting: Setting) -> str:
    checkpointing = "gradient checkpointing" if setting.checkpointing else "no checkpointing"
    return f"{setting.micro_batch} x {setting.length} tokens a pass, {setting.precision}, {checkpointing}"


def _at_a_time(found: Estimate) -> str:
    return "" if found.active == found.trained else f" ({found.active:,} at a time)"


def _table(found: Estimate) -> Iterator[str]:
    """GiB per GPU: this run, the same config without `scalebio`, LISA without bilevel; extra: this minus ordinary."""
    columns = _runs(found)
    runs = list(columns.values())
    yield _row("GiB per GPU", *columns, "extra")
    for name, of in _ROWS.items():
        amounts = [of(run) for run in runs]
        extra = amounts[0] - amounts[1]
        if any(amounts):
            difference = "-" if abs(extra) < GIB / 200 else f"{extra / GIB:+.2f}"
            yield _row(name, *(f"{amount / GIB:.2f}" for amount in amounts), difference)


def _row(name: str, *cells: str) -> str:
    return f"{name:<26}" + "".join(f"{cell:>14}" for cell in cells)


def _compute(found: Estimate) -> list[str]:
    if found.setting.block.apply:
        return ["compute      that of the ordinary run: no bilevel step"]
    cost = found.setting.cost
    whole = cost.whole_run
    mean = "not known (add max_steps to count warmup and learn.steps)" if whole is None else f"{whole:.2f}"
    mean += " at most" if whole is not None and found.setting.block.learn.until else ""
    parts = f"w 1 + u 1 + w on validation {cost.validation:.2f}"
    parts += f" + u on validation {cost.validation:.2f}" if cost.symmetric else ""
    return [
        f"compute      a step takes {cost.while_learning:.2f} times the ordinary one's passes while learning ({parts})",
        f"             over the whole run: {mean}",
    ]


def _notes(found: Estimate) -> Iterator[str]:
    """What the reader has to know."""
    setting = found.setting
    cfg, optimizer = setting.cfg, setting.optimizer
    if found.rough:
        yield f"activations: rough, by rule of thumb ({found.rough}: the model's code needs real data)"
    if optimizer not in STATES:
        yield f"optimizer {optimizer} is not known here: counted as AdamW, 8 bytes a parameter"
    if optimizer.startswith("paged"):
        yield "a paged optimizer's states may move to CPU memory; here they are counted on the GPU"
    if cfg.get("load_in_8bit"):
        yield "activations: rough for an 8-bit base, whose kernels keep int8 copies of inputs"
    if cfg.get("activation_offloading") or cfg.get("layer_offloading"):
        yield "activation_offloading and layer_offloading are not counted: less on the GPU, more on the CPU"
    if setting.block.validation_batch_size is not None and cfg.get("sample_packing"):
        yield "validation_batch_size counts sequences, several to a packed row: its compute is an upper bound"
    if setting.block.lisa is not None and not setting.checkpointing:
        yield "LISA without gradient_checkpointing: the lowest layers drawn, whose backward is longest"
