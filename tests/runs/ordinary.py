"""Configs as people write them: seven choices, a table of rows in which every two meet, and their tiny data.

What is not chosen stays at the host's default. FORCED and QUICK are all that departs from one, each with its reason.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tests import host

SOURCES = ("clean", "wrong", "offtopic")
FORCED: dict[str, Any] = {  # by a CPU
    "bf16": False,  # the host's `auto` turns fp16 on where it finds no GPU
    "dataset_num_proc": 1,  # two cores for everything: forked workers take longer than their rows
}
FORCED_WITH_LORA = dict.fromkeys(("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel"), False)  # on by default, CUDA
QUICK: dict[str, Any] = {  # what every user writes, in figures that take seconds
    "base_model": "model",
    "sequence_len": 128,
    "learning_rate": 2e-3,
    "logging_steps": 1,  # every loss is compared; the host's default depends on the number of steps
    "warmup_ratio": 0.1,
    "lr_scheduler": "cosine",
    "evals_per_epoch": 2,
    "saves_per_epoch": 2,
}
LEVELS: dict[str, tuple[Any, ...]] = {
    "format": ("alpaca", "chat_template", "completion", "input_output"),
    "validation": ("val_set_size", "test_datasets", "validation_datasets"),
    "packed": (True, False),
    "length": ("epochs", "max_steps"),
    "learn": ("whole", "half"),
    "method": ("full", "lora"),
    "accumulation": (1, 2),
}


@dataclass(frozen=True)
class Row:
    """One config. `str()` is its name in a test's."""

    format: str
    validation: str
    packed: bool
    length: str
    learn: str
    method: str
    accumulation: int

    def __str__(self) -> str:
        packed = "packed" if self.packed else "unpacked"
        return f"{self.format}-{self.validation}-{packed}-{self.length}-{self.learn}-{self.method}-{self.accumulation}"


ROWS = [
    Row("alpaca", "val_set_size", True, "max_steps", "half", "full", 1),
    Row("alpaca", "test_datasets", True, "max_steps", "whole", "lora", 2),
    Row("alpaca", "validation_datasets", False, "epochs", "whole", "full", 1),
    Row("chat_template", "val_set_size", True, "max_steps", "whole", "lora", 2),
    Row("chat_template", "test_datasets", True, "epochs", "whole", "full", 2),
    Row("chat_template", "validation_datasets", False, "max_steps", "half", "full", 1),
    Row("completion", "val_set_size", False, "max_steps", "half", "full", 2),
    Row("completion", "test_datasets", False, "max_steps", "whole", "lora", 1),
    Row("completion", "validation_datasets", True, "epochs", "half", "lora", 1),
    Row("input_output", "val_set_size", True, "epochs", "whole", "lora", 1),
    Row("input_output", "test_datasets", True, "epochs", "half", "lora", 2),
    Row("input_output", "validation_datasets", False, "max_steps", "whole", "full", 2),
]


def pairs(rows: list[Row], names: tuple[str, ...] = tuple(LEVELS)) -> set[tuple[tuple[str, Any], ...]]:
    """The pairs of levels of two choices among `names` that meet in a row."""
    return {((a, getattr(row, a)), (b, getattr(row, b))) for row in rows for a, b in itertools.combinations(names, 2)}


def all_pairs() -> set[tuple[tuple[str, Any], ...]]:
    assert [field.name for field in fields(Row)] == list(LEVELS)
    return {
        ((a, x), (b, y))
        for a, b in itertools.combinations(LEVELS, 2)
        for x, y in itertools.product(LEVELS[a], LEVELS[b])
    }


def config_of(row: Row, output_dir: Path) -> dict[str, Any]:
    """As its user would write it. A run of epochs has two, one of `max_steps` the host's default of one."""
    adapter = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True, **FORCED_WITH_LORA}
    return {
        **FORCED,
        **QUICK,
        "plugins": ["scalebio", "tests.host.ProbePlugin"],
        "datasets": [entry(row.format, name) for name in SOURCES],
        "output_dir": str(output_dir),
        "micro_batch_size": 2 if row.packed else 4,
        **({"gradient_accumulation_steps": row.accumulation} if row.accumulation > 1 else {}),
        **({"sample_packing": True} if row.packed else {}),
        **({"max_steps": 6} if row.length == "max_steps" else {"num_epochs": 2}),
        **({**adapter, "gradient_checkpointing": True} if row.method == "lora" else {}),
        **({"val_set_size": 0.2} if row.validation == "val_set_size" else {}),
        **({"test_datasets": [entry(row.format, "validation")]} if row.validation == "test_datasets" else {}),
        "scalebio": {
            **({"learn": {"fraction": 0.5}} if row.learn == "half" else {}),
            **(
                {"validation_datasets": [entry(row.format, "validation")]}
                if row.validation == "validation_datasets"
                else {}
            ),
        },
    }


def entry(kind: str, name: str) -> dict[str, Any]:
    return {"path": f"data/{kind}/{name}.jsonl", "split": "train", "type": kind}


_SHAPES: dict[str, Callable[[dict[str, str]], dict[str, Any]]] = {
    "alpaca": lambda row: row,
    "chat_template": lambda row: {
        "messages": [
            {"role": "user", "content": f"{row['instruction']} {row['input']}"},
            {"role": "assistant", "content": row["output"]},
        ]
    },
    "completion": lambda row: {"text": f"{row['instruction']} {row['input']} {row['output']}"},
    "input_output": lambda row: {
        "segments": [
            {"label": False, "text": f"<s>{row['instruction']} {row['input']}"},
            {"label": True, "text": f" {row['output']}</s>"},
        ]
    },
}


def make_inputs(directory: Path) -> Path:
    """The tiny model, and the planted data in every format."""
    host.make_inputs(directory, rows=48)
    for kind, shape in _SHAPES.items():
        (directory / "data" / kind).mkdir()
        for name in (*SOURCES, "validation"):
            rows = map(json.loads, (directory / f"data/{name}.jsonl").read_text().splitlines())
            written = "".join(json.dumps(shape(row)) + "\n" for row in rows)
            (directory / f"data/{kind}/{name}.jsonl").write_text(written)
    return directory


def __getattr__(name: str) -> Any:
    """`SeededPlugin`, made when the host asks for it: importing this module imports no host."""
    if name != "SeededPlugin":
        raise AttributeError(name)
    from axolotl.integrations.base import BasePlugin
    from transformers import set_seed

    class SeededPlugin(BasePlugin):
        """The plain host leaves how an adapter starts to chance: it seeds in its trainer, later. Ours seeds here."""

        def pre_model_load(self, cfg: Any) -> None:
            set_seed(int(cfg.seed or 0))

    return globals().setdefault(name, SeededPlugin)
