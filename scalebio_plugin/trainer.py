"""The host's trainer with one overridden training step.

A pass (u on a training batch, w on a training batch, w on a validation batch) *is* the host's own training step, run
with another loss function and, for u, with the inner parameters exchanged into the module: so autocast, gradient
checkpointing, offloading, loss scaling and model quirks are the host's in every pass. `hooks.spec` draws the step.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from axolotl.core.trainers.base import AxolotlTrainer
from axolotl.utils.logging import get_logger
from torch import Tensor, nn
from transformers.trainer_utils import get_last_checkpoint

from . import state
from .algorithm.bilevel import Targets, sum_by_source, targets_of, token_losses, weighted_loss
from .algorithm.inner import InnerParameters
from .learning import AccumulatedStep, Learning, RandomState
from .report import progress_table
from .run import MixtureRun, Phase, StepLosses
from .sources import COLUMN, SourceCollator

LOG = get_logger("axolotl.scalebio")


class ScaleBiOTrainer(AxolotlTrainer):
    """Learns the mixture while it trains. Without `scalebio` set (`axolotl evaluate`) it is the host's trainer."""

    scalebio: Learning | None = None
    optimizer: Any
    compute_loss_func: Any
    loss_is_scaled_for_ga: Any = None
    _signature_columns: list[str] | None
    _accumulated: AccumulatedStep | None = None

    @property
    def learning(self) -> Learning:
        """What the plugin connected; for code that runs only after it did."""
        if self.scalebio is None:
            raise RuntimeError("scalebio: the trainer was not connected to the plugin; this is a bug, please report it")
        return self.scalebio

    # ---- data

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if self._signature_columns is not None and COLUMN not in self._signature_columns:
            self._signature_columns = [*self._signature_columns, COLUMN]

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        if self.scalebio is not None and resume_from_checkpoint:
            found = resume_from_checkpoint
            checkpoint = get_last_checkpoint(self.args.output_dir) if found is True else str(found)
            if checkpoint is not None:
                state.load_mixture(self.scalebio, checkpoint)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def get_train_dataloader(self) -> Any:
        if self.scalebio is not None:
            self.scalebio.order.at_loader()
        return super().get_train_dataloader()

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The micro-batches of one optimiser step: the host's, or after learning those of the resampled mixture."""
        learning = self.scalebio
        phase = None if learning is None else learning.run.phase(self.state.global_step)
        if learning is not None and phase is Phase.REST:
            epoch_iterator = learning.rest.batches(self, learning.run)
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        tags = [(batch.pop(SourceCollator.SOURCE, None), batch.pop(SourceCollator.SEQUENCE, None)) for batch in batches]
        self._accumulated = None
        if learning is not None and phase is not Phase.REST and batches:
            self._accumulated = self._accumulate(batches, tags, learning.run)
        return batches, items

    def _accumulate(self, batches: list[Any], tags: list[tuple[Tensor, Tensor]], run: MixtureRun) -> AccumulatedStep:
        per_sequence = run.settings.loss_unit == "sequence"
        targets = [
            targets_of(batch["labels"], source, sequence, per_sequence=per_sequence)
            for batch, (source, sequence) in zip(batches, tags, strict=True)
        ]
        units = torch.stack([target.counts(len(run.names)) for target in targets]).sum(0)
        return AccumulatedStep(
            batches=batches,
            targets=targets,
            units_S=units,
            total=units.sum().clamp(min=1.0),
            model_S=torch.zeros_like(units),
            inner_S=torch.zeros_like(units),
            before=RandomState(),
        )

    # ---- the step

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """One micro-batch. With the last of a step: the validation pass, the inner pass, the step of u and of λ."""
        learning, step = self.scalebio, self._accumulated
        if learning is None or step is None:
            return super().training_step(model, inputs, num_items_in_batch)
        if step.done == 0:
            step.before = RandomState()
        loss = self._train_pass(model, step, step.done, step.model_S)
        step.train_loss.append(loss)
        step.done += 1
        if step.done == len(step.batches):
            if learning.run.phase(self.state.global_step) is Phase.LEARN:
                self._learn(model, learning, step)
            else:
                self._refuse_not_finite("the model", step.model_S)
        return loss

    def _learn(self, model: nn.Module, learning: Learning, step: AccumulatedStep) -> None:
        run, inner = learning.run, learning.begun_inner()
        after_w = RandomState()
        val_loss = self._validation_pass(model, learning, run.settings.pull)
        with inner.in_place(), self._uncounted():
            step.before.restore()
            for index in range(len(step.batches)):
                self._train_pass(model, step, index, step.inner_S)
            if run.settings.estimator == "symmetric":
                after_w.restore()
                self._validation_pass(model, learning, -run.settings.pull)
            self._step_inner(model, inner)
        after_w.restore()
        self._observe(learning, step, val_loss)

    def _observe(self, learning: Learning, step: AccumulatedStep, val_loss: Tensor) -> None:
        train_loss = torch.stack(step.train_loss).sum().to(torch.float64)
        scalars = torch.stack([train_loss, val_loss])
        gathered = torch.cat([step.model_S, step.inner_S, step.units_S, scalars]).cpu()  # the one synchronisation
        model_S, inner_S, units_S = gathered[:-2].chunk(3)
        losses = StepLosses(model_S, inner_S, units_S, float(gathered[-2]), float(gathered[-1]))
        self._refuse_not_finite("the model", model_S)
        self._refuse_not_finite("the inner parameters", inner_S)
        if not math.isfinite(losses.val_loss):
            raise FloatingPointError(self._stopped("the validation loss"))
        number = self.state.global_step + 1
        record = learning.run.observe(losses, number, float(self._get_learning_rate()))
        if record is not None:
            learning.record = record
            state.add_to_history(learning, record, main_process=self.is_world_process_zero())

    def _refuse_not_finite(self, where: str, sums_S: Tensor) -> None:
        names = self.learning.run.names
        bad = [name for name, total in zip(names, sums_S.tolist(), strict=True) if not math.isfinite(total)]
        if bad:
            raise FloatingPointError(self._stopped(f"the training loss of {bad} at {where}"))

    def _stopped(self, what: str) -> str:
        return (
            f"scalebio: {what} is NaN or infinite in optimiser step {self.state.global_step + 1}, so the run stops "
            "before that step is taken; the checkpoints written so far are untouched. Lower learning_rate, look at "
            "that data, or resume from the last checkpoint"
        )

    # ---- passes

    def _train_pass(self, model: nn.Module, step: AccumulatedStep, index: int, sums_S: Tensor) -> Tensor:
        """Backward of L2 on one micro-batch, at whichever set is in place; adds its losses to `sums_S`."""
        targets = step.targets[index]
        coefficient = self.learning.run.coefficient_S()

        def loss_of(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
            losses = token_losses(outputs["logits"], targets.labels)
            sums_S.add_(sum_by_source(losses.detach() * targets.units, targets.source, len(sums_S)))
            return weighted_loss(losses, targets, coefficient, step.total)

        with self._loss(loss_of):
            return super().training_step(model, step.batches[index])

    def _validation_pass(self, model: nn.Module, learning: Learning, pull: float) -> Tensor:
        """Backward of pull · L1; with no pull only the value. Returns L1. Leaves dropout as if it had not been."""
        chunks = [self._prepare_inputs(batch) for batch in learning.validation.batches(self.state.global_step)]
        targets = [
            targets_of(chunk["labels"], chunk.pop(COLUMN), chunk.pop(SourceCollator.SEQUENCE), per_sequence=False)
            for chunk in chunks
        ]
        total = torch.stack([target.units.sum() for target in targets]).sum().clamp(min=1.0)
        value = torch.zeros((), dtype=torch.float64, device=total.device)
        for chunk, target in zip(chunks, targets, strict=True):

            def loss_of(outputs: Any, labels: Any, num_items_in_batch: Any = None, of: Targets = target) -> Tensor:
                losses = token_losses(outputs["logits"], of.labels)
                loss = weighted_loss(losses, of, learning.validation.coefficient_V, total)
                value.add_(loss.detach())
                return pull * loss

            with self._loss(loss_of), self._uncounted():
                if pull != 0.0:
                    super().training_step(model, chunk)
                else:
                    with torch.no_grad(), self.compute_loss_context_manager():
                        self.compute_loss(model, dict(chunk))
        return value

    def _step_inner(self, model: nn.Module, inner: InnerParameters) -> None:
        """Clip and step u with the host's optimizer, at the learning rate that w's step is about to take."""
        optimizer, scaler = inner.optimizer, self.accelerator.scaler
        if scaler is not None and not inner.unscale(scaler.get_scale()):
            return  # both sets skip the step: the scaler finds the overflow in w's gradients
        if self.args.max_grad_norm and self.args.max_grad_norm > 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), self.args.max_grad_norm)
        optimizer.step()
        for name in inner.values:
            inner.parameters[name].grad = None

    @contextmanager
    def _loss(self, function: Any) -> Iterator[None]:
        """The host's training step with another loss, which is scaled for gradient accumulation already."""
        before = self.compute_loss_func, self.loss_is_scaled_for_ga
        self.compute_loss_func, self.loss_is_scaled_for_ga = function, True
        try:
            yield
        finally:
            self.compute_loss_func, self.loss_is_scaled_for_ga = before

    @contextmanager
    def _uncounted(self) -> Iterator[None]:
        """Passes that are not training on a new token: the host's token counters rest."""
        counting, self.args.include_tkps = self.args.include_tkps, False
        try:
            yield
        finally:
            self.args.include_tkps = counting

    # ---- around the step

    def begin_step(self) -> None:
        """Before an optimiser step: LISA's layers, and u where learning starts or ends."""
        learning = self.learning
        step = self.state.global_step
        parameters = self.trainable_parameters()
        optimizer = self.raw_optimizer()
        phase = learning.run.phase(step)
        if phase is Phase.LEARN and learning.inner is None:
            learning.inner = InnerParameters(parameters, optimizer, learning.inner_device)
        if phase is Phase.REST:
            learning.inner = None
        if learning.layers is not None and learning.layers.switch(step, parameters, optimizer, learning.inner):
            LOG.info(f"scalebio: layers {list(learning.layers.layers)} train from optimiser step {step + 1} on")
        if learning.inner is not None:
            active = [name for name, parameter in parameters.items() if parameter.requires_grad]
            learning.inner.follow(active)

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        named = dict(self.accelerator.unwrap_model(self.model).named_parameters())
        return {name: named[name] for name in self.learning.trainable}

    def raw_optimizer(self) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        return optimizer

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        learning = self.scalebio
        if learning is not None and learning.record is not None and "loss" in logs:
            logs.update(state.metrics(learning.record))
            if learning.run.phase(max(0, self.state.global_step - 1)) is Phase.LEARN:
                LOG.info(f"scalebio: after optimiser step {self.state.global_step}\n{progress_table(learning.record)}")
        super().log(logs, start_time)

    # ---- checkpoints

    def _save_checkpoint(self, model: nn.Module, trial: Any, **kwargs: Any) -> None:
        if self.scalebio is not None:
            folder = os.path.join(self._get_output_dir(trial=trial), f"checkpoint-{self.state.global_step}")
            os.makedirs(folder, exist_ok=True)
            state.save_mixture(self, folder)
        super()._save_checkpoint(model, trial, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.scalebio is not None:
            state.save_inner(self, output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.scalebio is not None and checkpoint is not None:
            state.load_inner(self, checkpoint)
