"""The loss of every test row at the end of an arm, measured inside its run: whatever engine it has."""

from __future__ import annotations

import json
import math
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from axolotl.integrations.base import BasePlugin
from torch import Tensor
from transformers import Trainer, TrainerCallback

from ..algorithm.bilevel import IGNORED, token_losses
from ..report.files import replace_file
from .result import JUDGED


class JudgePlugin(BasePlugin):
    """For an arm's `plugins:`; leaves JUDGED in its output_dir."""

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Trainer) -> list[TrainerCallback]:
        return [Judge(trainer, Path(cfg.output_dir))]


class Judge(TrainerCallback):
    def __init__(self, trainer: Trainer, folder: Path) -> None:
        self.trainer, self.folder = trainer, folder
        self.began, self.first_step = 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began, self.first_step = time.monotonic(), state.global_step

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        seconds = time.monotonic() - self.began
        learning = getattr(self.trainer, "learning", None)
        with nullcontext() if learning is None else learning.kept_in_place():
            rows = row_losses(self.trainer)
        if not state.is_world_process_zero:
            return
        # Of a run that was resumed the seconds before are not known: those of its last part, made whole.
        whole = seconds * state.global_step / max(1, state.global_step - self.first_step)
        losses = [loss if math.isfinite(loss) else None for loss in rows[:, 0].tolist()]
        tokens = rows[:, 1].long().tolist()
        judged = {"losses": losses, "tokens": tokens, "steps": state.global_step, "seconds": whole}
        replace_file(self.folder / JUDGED, json.dumps(judged, allow_nan=False).encode())


def row_losses(trainer: Trainer) -> Tensor:  # (R, 2)
    """Of each row of the host's evaluation set: loss summed over its target tokens, nats, and their number."""
    found: list[Tensor] = []

    def collect(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        of_rows = losses_by_row(outputs["logits"], labels)
        found.append(trainer.accelerator.gather_for_metrics(of_rows).cpu())
        return of_rows[:, 0].sum() / of_rows[:, 1].sum().clamp(min=1)

    before = trainer.compute_loss_func, trainer.args.dataloader_drop_last
    trainer.compute_loss_func = collect
    trainer.args.dataloader_drop_last = False  # with packing the host drops the last
    try:
        trainer.evaluation_loop(trainer.get_eval_dataloader(), "Judging", prediction_loss_only=True)
    finally:
        trainer.compute_loss_func, trainer.args.dataloader_drop_last = before
    rows = torch.cat(found)
    if len(rows) != len(trainer.eval_dataset):
        raise RuntimeError(
            f"scalebio: {len(rows)} of {len(trainer.eval_dataset)} test rows were judged; please report it"
        )
    return rows


def losses_by_row(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:  # (B, 2), float64
    targets_BT = labels_BT[:, 1:]
    losses_BT = token_losses(logits_BTV, targets_BT)
    return torch.stack([losses_BT.double().sum(1), (targets_BT != IGNORED).double().sum(1)], dim=1)
