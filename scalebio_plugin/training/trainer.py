"""The host's trainer with one overridden training step.

A pass (u on a training batch, w on a training batch, w on a validation batch) *is* the host's own training step, run
with another loss function and, for u, with the inner parameters exchanged into the module: so autocast, gradient
checkpointing, offloading, loss scaling and model quirks are the host's in every pass. `hooks.spec` draws the step.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import gather_object
from axolotl.core.trainers.base import AxolotlTrainer
from axolotl.utils.logging import get_logger
from torch import Tensor, nn
from transformers.trainer_utils import get_last_checkpoint, rotate_checkpoints

from ..algorithm.bilevel import Targets, sum_by_source, targets_of, token_losses, weighted_loss
from ..algorithm.inner import InnerParameters
from ..data.sources import COLUMN, SourceCollator
from ..engines.base import plain_name
from ..report.summary import progress_table
from . import checkpoint as state
from .console import own_line
from .learning import AccumulatedStep, Learning, RandomState
from .mixture_run import MixtureRun, Phase, StepLosses
from .model_loss import refuse_unseen_additions, router_loss

LOG = get_logger("axolotl.scalebio")


class ScaleBiOTrainer(AxolotlTrainer):
    """Learns the mixture while it trains. Without `scalebio` set (`axolotl evaluate`) it is the host's trainer."""

    scalebio: Learning | None = None
    optimizer: Any
    compute_loss_func: Any
    loss_is_scaled_for_ga: Any = None
    _signature_columns: list[str] | None
    _accumulated: AccumulatedStep | None = None
    _own_loss_seen = False

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
            resume_from_checkpoint = self._checkpoint_to_take(resume_from_checkpoint)
            if resume_from_checkpoint is not None:
                state.load_mixture(self.scalebio, str(resume_from_checkpoint))
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _checkpoint_to_take(self, asked: str | bool) -> str | None:
        """The checkpoint that was asked for; where the host chose it, the newest one that was written to its end."""
        output_dir = str(self.args.output_dir)
        checkpoint = get_last_checkpoint(output_dir) if asked is True else str(asked)
        chosen_by_host = asked is True or bool(self.axolotl_cfg and self.axolotl_cfg.auto_resume_from_checkpoints)
        if checkpoint is None or not chosen_by_host or not state.is_half_written(checkpoint):
            return checkpoint
        whole = state.last_whole_checkpoint(output_dir)
        LOG.warning(
            f"scalebio: {checkpoint} was not written to its end, so the run "
            + (f"goes on from {whole}" if whole else "starts anew")
        )
        return whole

    def get_train_dataloader(self) -> Any:
        if self.scalebio is not None:
            self.scalebio.order.at_loader()
        return super().get_train_dataloader()

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The micro-batches of one optimiser step: the host's, or after learning those of the resampled mixture."""
        learning = self.scalebio
        if learning is not None:
            learning.order.at_batches()
        phase = None if learning is None else learning.run.phase(self.state.global_step)
        if learning is not None and phase is Phase.REST:
            epoch_iterator = learning.rest.batches(self, learning.run)
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        tags = [(batch.pop(SourceCollator.SOURCE, None), batch.pop(SourceCollator.SEQUENCE, None)) for batch in batches]
        self._accumulated = None
        if learning is not None and phase is not Phase.REST and batches:
            sums = items is not None and self.model_accepts_loss_kwargs  # else the host takes means of micro-batches
            self._accumulated = self._accumulate(batches, tags, learning.run, 1.0 if sums else 1.0 / len(batches))
        return batches, items

    def _accumulate(
        self, batches: list[Any], tags: list[tuple[Tensor, Tensor]], run: MixtureRun, router_scale: float
    ) -> AccumulatedStep:
        per_sequence = run.settings.loss_unit == "sequence"
        targets = [
            targets_of(batch["labels"], source, sequence, per_sequence=per_sequence)
            for batch, (source, sequence) in zip(batches, tags, strict=True)
        ]
        units = self.learning.engine.total(torch.stack([target.counts(len(run.names)) for target in targets]).sum(0))
        return AccumulatedStep(
            batches=batches,
            targets=targets,
            units_S=units,
            total=units.sum().clamp(min=1.0),
            model_S=torch.zeros_like(units),
            inner_S=torch.zeros_like(units),
            router_scale=router_scale,
        )

    # ---- the step

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """One micro-batch of w. Before the first of a step: u's passes and step. After the last: validation, and λ."""
        learning, step = self.scalebio, self._accumulated
        if learning is None:
            return super().training_step(model, inputs, num_items_in_batch)
        learns = step is not None and learning.run.phase(self.state.global_step) is Phase.LEARN
        if step is not None and not self._own_loss_seen:
            self._look_at_own_loss(model, step.batches[0])
        if step is not None and learns:
            if step.done == 0:
                self._inner_step(model, learning, step)
            if step.done == len(step.batches) - 1:
                return self._last_pass(model, learning, step)
        if step is None:
            loss = super().training_step(model, inputs, num_items_in_batch)
        else:
            loss = self._model_pass(model, step)
        if self.accelerator.sync_gradients:
            learning.engine.average_gradients(self.trainable_parameters())
            if step is not None and not learns:
                self._refuse_not_finite("the model", learning.engine.total(step.model_S))
        return loss

    def _look_at_own_loss(self, model: nn.Module, batch: dict[str, Any]) -> None:
        """Before the first step: one forward pass with labels, to refuse a model whose loss our passes would cut."""
        before = RandomState()
        model.train()
        with torch.no_grad(), self._uncounted(), self.compute_loss_context_manager(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "None of the inputs have requires_grad")  # of checkpointed blocks
            inputs = self._prepare_inputs(dict(batch))
            own, outputs = self.compute_loss(model, dict(inputs), return_outputs=True)
            refuse_unseen_additions(own, outputs, inputs["labels"], self.accelerator.unwrap_model(self.model))
        before.restore()
        self._own_loss_seen = True

    def _inner_step(self, model: nn.Module, learning: Learning, step: AccumulatedStep) -> None:
        """u's passes over all micro-batches, and its step, before w's: u's gradients are gone before w's come."""
        run, inner = learning.run, learning.begun_inner()
        symmetric = run.settings.estimator == "symmetric"
        before = RandomState()
        with inner.in_place(for_passes=True), self._uncounted():
            for index in range(len(step.batches)):
                with learning.engine.synced(model, index == len(step.batches) - 1 and not symmetric):
                    self._train_pass(model, step, index, step.inner_S)
            if symmetric:
                self._validation_pass(model, learning, -run.settings.pull)
            if self.accelerator.scaler is None:
                self._step_inner(model, learning)
        before.restore()  # w sees u's dropout masks

    def _model_pass(self, model: nn.Module, step: AccumulatedStep) -> Tensor:
        loss = self._train_pass(model, step, step.done, step.model_S)
        step.done += 1
        return loss

    def _last_pass(self, model: nn.Module, learning: Learning, step: AccumulatedStep) -> Tensor:
        """The last micro-batch of w and the validation batch; then λ, from the losses of both sets."""
        pull = learning.run.settings.pull
        with learning.engine.held():
            with learning.engine.synced(model, pull == 0.0):
                loss = self._model_pass(model, step)
            after = RandomState()
            val_loss = self._validation_pass(model, learning, pull)
            after.restore()
        learning.engine.average_gradients(self.trainable_parameters())
        if self.accelerator.scaler is not None:  # fp16: only now is it known whether both sets can step
            with learning.begun_inner().in_place():
                self._step_inner(model, learning)
        self._observe(learning, step, val_loss)
        learning.engine.step_model()
        return loss

    def _observe(self, learning: Learning, step: AccumulatedStep, val_loss: Tensor) -> None:
        total = learning.engine.total(torch.cat([step.model_S, step.inner_S, val_loss[None]]))
        gathered = torch.cat([total, step.units_S]).cpu()  # the one synchronisation
        sources = len(step.units_S)
        model_S, inner_S, val, units_S = torch.split(gathered, [sources, sources, 1, sources])
        train = (learning.run.coefficient_S() * model_S).sum() / units_S.sum().clamp(min=1.0)
        losses = StepLosses(model_S, inner_S, units_S, float(train), float(val))
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
        world = self.learning.engine.world
        config = self.accelerator.unwrap_model(self.model).config

        def loss_of(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
            losses = token_losses(outputs["logits"], targets.labels)
            sums_S.add_(sum_by_source(losses.detach() * targets.units, targets.source, len(sums_S)))
            loss = weighted_loss(losses, targets, coefficient, step.total) * world  # engines average over the ranks
            router = router_loss(outputs, config)
            return loss if router is None else loss + step.router_scale * router.to(loss.device)

        with self._loss(loss_of):
            return super().training_step(model, step.batches[index])

    def _validation_pass(self, model: nn.Module, learning: Learning, pull: float) -> Tensor:
        """Backward of pull · L1; with no pull only the value. Returns this rank's part of L1. Uses dropout."""
        engine, stream = learning.engine, learning.validation
        chunks = [
            self._prepare_inputs(chunk)
            for chunk in stream.batches(self.state.global_step, rank=engine.rank, ranks=engine.world)
        ]
        targets = [
            targets_of(chunk["labels"], chunk.pop(COLUMN), chunk.pop(SourceCollator.SEQUENCE), per_sequence=False)
            for chunk in chunks
        ]
        total = engine.total(torch.stack([target.units.sum() for target in targets]).sum()).clamp(min=1.0)
        value = torch.zeros((), dtype=torch.float64, device=total.device)
        for number, (chunk, target) in enumerate(zip(chunks, targets, strict=True), start=1):

            def loss_of(outputs: Any, labels: Any, num_items_in_batch: Any = None, of: Targets = target) -> Tensor:
                losses = token_losses(outputs["logits"], of.labels)
                loss = weighted_loss(losses, of, stream.coefficient_V, total)
                value.add_(loss.detach())
                return pull * loss * engine.world

            with self._loss(loss_of), self._uncounted():
                if pull != 0.0:
                    with engine.synced(model, number == len(chunks)):
                        super().training_step(model, chunk)
                else:
                    with torch.no_grad(), self.compute_loss_context_manager():
                        self.compute_loss(model, dict(chunk))
        return value

    def _step_inner(self, model: nn.Module, learning: Learning) -> None:
        """While u is in place: clip and step it with the host's optimizer, at the learning rate of w's coming step."""
        engine, inner, scaler = learning.engine, learning.begun_inner(), self.accelerator.scaler
        engine.average_gradients(self.trainable_parameters())
        overflow = scaler is not None and isinstance(inner, InnerParameters) and not inner.unscale(scaler.get_scale())
        if overflow:
            return  # both sets skip the step: the scaler finds the overflow in w's gradients
        engine.step_inner(model, inner)

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

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)
        if self.scalebio is not None:
            self.scalebio.engine.before_wrapping(self.trainable_parameters())
        return optimizer

    def begin_step(self) -> None:
        """Before an optimiser step: LISA's layers, and u where learning starts or ends."""
        learning = self.learning
        step = self.state.global_step
        parameters = self.trainable_parameters()
        optimizer = self.raw_optimizer()
        phase = learning.run.phase(step)
        if phase is Phase.LEARN and learning.inner is None:
            learning.inner = learning.engine.inner(parameters, optimizer, learning.inner_device)
        if phase is Phase.REST:
            learning.inner = None
        if learning.layers is not None and learning.layers.switch(step, parameters, optimizer, learning.inner):
            with own_line():
                LOG.info(f"scalebio: layers {list(learning.layers.layers)} train from optimiser step {step + 1} on")
        if learning.inner is not None:
            active = [name for name, parameter in parameters.items() if parameter.requires_grad]
            learning.inner.follow(active)

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        model = self.accelerator.unwrap_model(self.model)
        named = {plain_name(name): parameter for name, parameter in model.named_parameters()}
        return {name: named[name] for name in self.learning.trainable}

    def raw_optimizer(self) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        return optimizer

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        learning = self.scalebio
        if learning is not None and learning.record is not None and "loss" in logs:
            logs.update(state.metrics(learning.record))
            if learning.run.phase(max(0, self.state.global_step - 1)) is Phase.LEARN:
                with own_line():
                    LOG.info(
                        f"scalebio: after optimiser step {self.state.global_step}\n{progress_table(learning.record)}"
                    )
        super().log(logs, start_time)

    # ---- checkpoints

    def _save_checkpoint(self, model: nn.Module, trial: Any, **kwargs: Any) -> None:
        if self.scalebio is None:
            super()._save_checkpoint(model, trial, **kwargs)
            return
        run_dir = self._get_output_dir(trial=trial)
        folder = os.path.join(run_dir, f"checkpoint-{self.state.global_step}")
        os.makedirs(folder, exist_ok=True)
        order = self.scalebio.order
        orders = gather_object([(order.loader, order.epoch)])
        if self.is_world_process_zero():
            state.save_mixture(self.scalebio, orders, folder)
        limit, self.args.save_total_limit = self.args.save_total_limit, None  # none goes before this one is whole
        try:
            super()._save_checkpoint(model, trial, **kwargs)
        finally:
            self.args.save_total_limit = limit
        state.mark_complete(self, folder)
        if self.args.should_save:
            rotate_checkpoints(run_dir, limit, self.state.best_model_checkpoint, use_mtime=True)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.scalebio is not None:
            state.save_inner(self, output_dir)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if self.scalebio is not None:
            self.scalebio.order.at_restored()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        learning = self.scalebio
        if learning is not None and learning.layers is not None and checkpoint is not None:
            # The checkpoint has optimizer state for the layers of its period, and FSDP wants one for all that train.
            learning.layers.freeze_others(max(0, self.state.global_step - 1), self.trainable_parameters())
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.scalebio is not None and checkpoint is not None:
            state.load_inner(self, checkpoint)
            LOG.info(state.resumed(self, checkpoint))
