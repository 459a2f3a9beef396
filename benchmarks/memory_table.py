"""What `scalebio estimate` says of three models and five ways to train them, as memory.md has it.

    python -m benchmarks.memory_table [--out FILE]

Counted from shapes, not measured. A row is a run on 1,024 tokens a pass with gradient checkpointing in bf16 and AdamW;
its ordinary run is the same without the inner set. The authors' way is two whole models in float32, each with gradients
and Adam states: 32 bytes a parameter, all GPUs together, before activations.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml

from scalebio_plugin.estimate.estimator import Estimate, of_setting
from scalebio_plugin.estimate.lines import GIB, lines_of
from scalebio_plugin.estimate.setting import setting_of

MODELS = ("NousResearch/Meta-Llama-3-8B", "EleutherAI/gpt-neox-20b", "01-ai/Yi-34B")
AUTHORS = 32  # bytes a parameter: 2 models × (4 weight + 4 gradient + 8 Adam)
CARD = 48.0  # GiB
EXAMPLES = Path(__file__).parent.parent / "example_configs"

RUN: dict[str, Any] = {
    "sequence_len": 1024,
    "micro_batch_size": 1,
    "gradient_accumulation_steps": 16,
    "optimizer": "adamw_torch_fused",
    "bf16": True,
    "attn_implementation": "sdpa",
    "gradient_checkpointing": True,
}
LORA: dict[str, Any] = {"adapter": "lora", "lora_r": 16, "lora_dropout": 0.05, "lora_target_linear": True}
FSDP2: dict[str, Any] = {"fsdp_version": 2, "fsdp_config": {"offload_params": False}}
LISA: dict[str, Any] = {"scalebio": {"lisa": {"active_layers": 2}}}
# What trains, its keys, GPUs.
METHODS: list[tuple[str, dict[str, Any], int]] = [
    ("LoRA r=16", LORA, 1),
    ("QLoRA r=16", {**LORA, "adapter": "qlora", "load_in_4bit": True}, 1),
    ("LISA, 2 blocks", LISA, 1),
    ("LISA, 2 blocks", {**LISA, **FSDP2}, 8),
    ("all parameters", FSDP2, 8),
]


def estimated(model: str, keys: dict[str, Any], gpus: int) -> Estimate:
    return of_setting(setting_of({"base_model": model, **RUN, **keys}, Path(), gpus))


def rows(model: str) -> list[str]:
    """One table row per method, and one for the authors' way."""
    found = [(name, estimated(model, keys, gpus)) for name, keys, gpus in METHODS]
    shown = [_row(model, name, one) for name, one in found]
    everything = next(one.total for name, one in found if name == "all parameters") * AUTHORS / GIB
    return [
        *shown,
        f"| {_short(model)} | two whole models (the authors') | all together | – | {everything:,.0f} | – | – |",
    ]


def _row(model: str, name: str, found: Estimate) -> str:
    """LISA's ordinary run is LISA with one parameter set: without the block the config would train everything."""
    ordinary = found.lisa_alone or found.ordinary
    layout = found.setting.layout
    cpu = found.run.state.held.cpu
    cells = (
        _short(model),
        name,
        f"{layout.world} × {layout}" if layout.world > 1 else "1",
        f"{ordinary.peak / GIB:.1f}",
        f"{found.run.peak / GIB:.1f}",
        f"{cpu / GIB:.0f}" if cpu else "–",
        "yes" if found.run.peak <= CARD * GIB else "no",
    )
    return f"| {' | '.join(cells)} |"


def _short(model: str) -> str:
    return model.rsplit("/", 1)[-1]


def yi_34b() -> list[str]:
    """The arithmetic of the two ways in which Yi-34B fits cards of 48 GiB."""
    example = {**yaml.safe_load((EXAMPLES / "yi-34b-lisa.yml").read_text("utf-8"))}
    sharded = example if example.get("fsdp_config") else {**example, **FSDP2}
    lisa = of_setting(setting_of(sharded, EXAMPLES, 8))
    qlora = estimated("01-ai/Yi-34B", {**LORA, "adapter": "qlora", "load_in_4bit": True}, 1)
    titles = ("yi-34b-lisa.yml, FSDP2 on 8 GPUs", "QLoRA on one GPU")
    return [
        line
        for title, found in zip(titles, (lisa, qlora), strict=True)
        for line in (f"Yi-34B, {title}:", "", "```", *lines_of(found, CARD), "```", "")
    ]


def table() -> list[str]:
    head = ["model", "what trains", "GPUs", "ordinary run, GiB a GPU", "with scalebio", "CPU memory, GiB a GPU"]
    columns = [*head, f"fits {CARD:g} GiB"]
    return [
        f"| {' | '.join(columns)} |",
        "|" + "---|" * len(columns),
        *(row for model in MODELS for row in rows(model)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="The table of memory.md.")
    parser.add_argument("--out", type=Path, help="where it is written (default: printed)")
    out = parser.parse_args().out
    text = "\n".join([*table(), "", *yi_34b()])
    if out is None:
        print(text)
    else:
        out.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
