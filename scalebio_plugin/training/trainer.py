"""The host's trainer with one overridden training step; `step` has what happens in it, from top to bottom."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from accelerate import skip_first_batches
from accelerate.utils import broadcast_object_list, gather_object
from axolotl.core.trainers.base import AxolotlTrainer
from axolotl.utils.logging import get_logger
from torch import Tensor, nn
from torch.utils.data import BatchSampler, SequentialSampler
from transformers.trainer_utils import SaveStrategy, rotate_checkpoints

from ..data.drawn_stream import DrawnStream
from ..data.tags import COLUMN, SEQUENCE
from ..engines.base import plain_name
from ..report.history import metrics
from ..report.identity import write_identity
from ..report.tables import progress_table, weights_line
from . import checkpoint as checkpoints
from .checkpoint import HISTORY, InnerPart, MixturePart
from .console import own_line
from .learning import Learning
from .mixture_run import Phase
from .probe import Probe
from .random_state import RandomState
from .same_run import refuse_another_run
from .step import Batch, LossOf, Step, StepBatches
from .watch import stopped, what_is_not_finite

LOG = get_logger("axolotl.scalebio")


class ScaleBiOTrainer(AxolotlTrainer):
    """Learns the mixture while it trains. Without `learning` (`axolotl evaluate`) it is the host's trainer."""

    learning: Learning | None = None
    test_sets: Mapping[str, Any] = MappingProxyType({})  # rows of each of several `test_datasets`
    optimizer: Any
    compute_loss_func: Any
    loss_is_scaled_for_ga: Any = None
    _signature_columns: list[str] | None
    _batches: StepBatches | None = None
    _step: Iterator[Tensor] | None = None
    _own_loss_seen = False
    _epoch_batches = 0
    _is_over = False  # it was when it was resumed

    # ---- data

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if self._signature_columns is not None and COLUMN not in self._signature_columns:
            self._signature_columns = [*self._signature_columns, COLUMN]

    def get_train_dataloader(self) -> Any:
        if self.learning is None:
            return super().get_train_dataloader()
        self.learning.order.at_loader()
        loader = super().get_train_dataloader()
        self._epoch_batches = len(loader)
        return loader

    def micro_batches(self, step: int) -> int:
        """Micro-batches of an optimiser step, from 0, on each rank: an epoch's last step takes what is left of it."""
        full = int(self.args.gradient_accumulation_steps)
        steps = max(1, -(-self._epoch_batches // full))
        return full if (step + 1) % steps else self._epoch_batches % full or full

    def loader_of(self, batches: BatchSampler) -> Any:
        """The host's loader over the training set that takes these micro-batches; its workers stay while it does."""
        persistent, workers = self.args.dataloader_persistent_workers, self.args.dataloader_num_workers
        self.args.dataloader_persistent_workers = persistent or workers > 0
        try:
            return self._loader(self._counted_rows(), lambda rows: batches)
        finally:
            self.args.dataloader_persistent_workers = persistent

    def loader_over(self, rows: np.ndarray, skipped: int) -> Any:
        """The host's loader over these rows of the training set, in that order, without the first micro-batches."""

        def sampler(chosen: Any) -> Any:
            sequential = SequentialSampler(chosen)
            return self._create_multipack_sampler(sequential, chosen) if self.args.sample_packing else sequential

        loader = self._loader(self._counted_rows().select(rows), sampler)
        return skip_first_batches(loader, skipped) if skipped else loader

    def _loader(self, rows: Any, sampler: Callable[[Any], Any]) -> Any:
        return self._get_dataloader(
            dataset=rows,
            description="Training",
            batch_size=self._train_batch_size,
            sampler_fn=sampler,
            is_training=True,
        )

    def _counted_rows(self) -> Any:
        if len(self.train_dataset) != len(self._connected().resampled.drawable):
            raise RuntimeError("scalebio: the training set was changed after it was counted; please report this bug")
        return self.train_dataset

    # ---- the step: the host asks for its batches, begins it, asks for each micro-batch, then clips and steps

    def begin_step(self) -> None:
        """Before an optimiser step: LISA's layers, and u where learning starts or ends."""
        learning = self._connected()
        step, parameters, optimizer = self.state.global_step, self.trainable_parameters(), self.raw_optimizer()
        phase = learning.run.phase(step)
        if phase is Phase.LEARN and learning.inner is None:
            learning.inner = learning.engine.inner(parameters, optimizer, learning.inner_device)
        if phase is Phase.AFTER:
            self.end_learning()
        if learning.layers is not None and learning.layers.switch(step, parameters, optimizer, learning.inner):
            with own_line():
                LOG.info(f"scalebio: layers {list(learning.layers.layers)} train from optimiser step {step + 1} on")
        if learning.inner is not None:
            learning.inner.follow([name for name, parameter in parameters.items() if parameter.requires_grad])

    def end_learning(self) -> None:
        """After the last learning step: what goes on, or is saved, is the set to keep."""
        if self._connected().end():
            with own_line():
                LOG.info("scalebio: the model is u, the inner parameters, from here on (keep: inner)")

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The micro-batches of one optimiser step: the host's, or those that follow the mixture."""
        learning = self.learning
        if learning is None:
            return super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.state.global_step >= self.state.max_steps:  # resumed from its last checkpoint: the host takes one more
            self._is_over = self.control.should_training_stop = True
            return [], None
        learning.order.at_batches()
        after, planned = learning.run.phase(self.state.global_step) is Phase.AFTER, None
        if learning.drawn is not None:
            planned = learning.drawn.step(self.state.global_step, learning.run.weights_S.numpy())
            batches, items = self._planned_samples(learning.drawn, num_batches, device)
        else:
            if after:
                epoch_iterator = learning.resampled.batches(learning.run.weights_S.numpy())
            batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._batches = self._step = None
        if after:
            for batch in batches:
                del batch[COLUMN], batch[SEQUENCE]
        elif batches:
            sums = items is not None and self.model_accepts_loss_kwargs  # else the host takes means of micro-batches
            self._batches = StepBatches.of(batches, learning, 1.0 if sums else 1.0 / len(batches), planned)
        return batches, items

    def _planned_samples(self, drawn: DrawnStream, asked: int, device: torch.device) -> tuple[list[Any], Any]:
        """Of the step that was planned last. Torch's generators stay as they were: a resumed run makes more loaders."""
        before = RandomState()
        batches, items = super().get_batch_samples(drawn.batches(), asked, device)
        before.restore()
        step = self.state.global_step
        if not asked == self.micro_batches(step) == len(batches):
            raise ValueError(
                f"scalebio: the host asks for {asked} micro-batches in optimiser step {step + 1}, for which "
                f"{self.micro_batches(step)} were planned and {len(batches)} came; remove ignore_data_skip and "
                "split_batches, or set scalebio.sampling: host"
            )
        return batches, items

    def training_step(self, model: nn.Module, inputs: Batch, num_items_in_batch: Any = None) -> Tensor:
        """One micro-batch: of a bilevel step, of its warmup, or as the host has it."""
        learning, batches = self.learning, self._batches
        if learning is None or batches is None:
            loss = super().training_step(model, inputs, num_items_in_batch)
            if learning is not None and self.accelerator.sync_gradients:
                learning.engine.average_gradients(self.trainable_parameters())
            return loss
        if self._step is None:
            self._look_at_own_loss(model, batches.batches[0])
            step = Step(self, learning, model, batches)
            learns = learning.run.phase(self.state.global_step) is Phase.LEARN
            if learns and learning.probes.is_due(self.state.global_step):
                sketch = learning.probes.sketch(self.state.global_step)
                learning.run.alignment_SV = Probe(self, learning, model, sketch).measure(batches)
            self._step = step.learn() if learns else step.warm_up()
        return next(self._step)

    def backward_pass(self, model: nn.Module, batch: Batch, loss_of: LossOf) -> Tensor:
        with self._loss(loss_of):
            return super().training_step(model, batch)

    def forward_pass(self, model: nn.Module, batch: Batch, loss_of: LossOf) -> None:
        with self._loss(loss_of), torch.no_grad(), self.compute_loss_context_manager():
            self.compute_loss(model, dict(batch))

    @contextmanager
    def _loss(self, loss_of: LossOf) -> Iterator[None]:
        before = self.compute_loss_func, self.loss_is_scaled_for_ga
        self.compute_loss_func, self.loss_is_scaled_for_ga = loss_of, True
        try:
            yield
        finally:
            self.compute_loss_func, self.loss_is_scaled_for_ga = before

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        counting, self.args.include_tkps = self.args.include_tkps, False
        try:
            yield
        finally:
            self.args.include_tkps = counting

    def _look_at_own_loss(self, model: nn.Module, batch: Batch) -> None:
        """Before the first step: one forward pass with labels, to refuse a model whose loss our passes would cut."""
        if self._own_loss_seen:
            return
        before = RandomState()
        model.train()
        with torch.no_grad(), self.uncounted(), self.compute_loss_context_manager(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "None of the inputs have requires_grad")  # of checkpointed blocks
            inputs = self._prepare_inputs(dict(batch))
            own, outputs = self.compute_loss(model, dict(inputs), return_outputs=True)
            unwrapped, labels = self.accelerator.unwrap_model(self.model), inputs["labels"][:, 1:]
            self._connected().losses.check(
                own, outputs, unwrapped, labels, lambda loss_of: self.forward_pass(model, inputs, loss_of)
            )
        before.restore()
        self._own_loss_seen = True

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """The host's, callbacks too (they generate samples), at the set to keep; and the loss of each test set."""
        if self.learning is None:
            return super().evaluate(*args, **kwargs)
        with self.learning.kept_in_place():
            measured = super().evaluate(*args, **kwargs)
            return (
                measured if args or kwargs.get("eval_dataset") is not None else measured | self._losses_of_test_sets()
            )

    def _losses_of_test_sets(self) -> dict[str, float]:
        losses: dict[str, float] = {}
        for name, rows in self.test_sets.items():
            prefix = f"eval_{name}"
            loader = self.get_eval_dataloader(rows)
            found = self.evaluation_loop(loader, f"Evaluation of {name}", True, metric_key_prefix=prefix).metrics
            losses |= {key: value for key, value in found.items() if key == f"{prefix}_loss"}
            self.callback_handler.on_predict(self.args, self.state, self.control, found)  # the progress bar ends
        if losses:
            self.log(dict(losses))
        return losses

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        learning = self.learning
        if learning is not None and learning.record is not None and "loss" in logs:
            logs.update(metrics(learning.record))
            if learning.run.phase(max(0, self.state.global_step - 1)) is Phase.LEARN:
                with own_line():
                    LOG.info(
                        f"scalebio: after optimiser step {self.state.global_step}\n{progress_table(learning.record)}"
                    )
        super().log(logs, start_time)

    # ---- parameters

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The host's, of all ranks, before each optimizer step; fp16 skips a step by itself."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if self.learning is not None and self.accelerator.scaler is None:
            bad = what_is_not_finite(norm, self.learning.engine.inner_norm)
            if bad is not None:
                raise FloatingPointError(stopped(bad, self.state.global_step + 1))
        return norm

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)
        if self.learning is not None:
            self.learning.engine.before_wrapping(self.trainable_parameters())
        return optimizer

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        model = self.accelerator.unwrap_model(self.model)
        named = {plain_name(name): parameter for name, parameter in model.named_parameters()}
        return {name: named[name] for name in self._connected().trainable}

    def raw_optimizer(self) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        return optimizer

    def _connected(self) -> Learning:
        if self.learning is None:
            raise RuntimeError("scalebio: the trainer was not connected to the plugin; this is a bug, please report it")
        return self.learning

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """After every optimiser step and epoch."""
        learning = self.learning
        if learning is None:
            super()._maybe_log_save_evaluate(*args, **kwargs)
            return
        told = learning.told_to_end(self.args.device)
        saves = told and self.args.save_strategy != SaveStrategy.NO
        if told:
            self.control.should_evaluate, self.control.should_save = False, saves
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if told:
            self._end_as_told(learning, saves and not self.args.save_only_model)

    def _end_as_told(self, learning: Learning, saved: bool) -> None:
        step = self.state.global_step
        LOG.warning(
            f"scalebio: {learning.signals.first.name} ends the run after optimiser step {step}; "
            + (
                f"auto_resume_from_checkpoints goes on from checkpoint-{step}"
                if saved
                else "the state of learning is not saved, as the config says (save_strategy: no, or save_only_model)"
            )
        )
        with learning.kept_in_place():  # the host may save the model on the way out
            learning.signals.deliver()

    # ---- checkpoints: the host's files, and ours beside them

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        learning = self.learning
        if learning is not None and resume_from_checkpoint:
            found = self._checkpoint_to_take(resume_from_checkpoint) if self.is_world_process_zero() else None
            taken: str | None = broadcast_object_list([found])[0]
            resume_from_checkpoint = taken
            if taken is not None:
                saved = checkpoints.read_mixture(taken, learning.place)
                refuse_another_run(taken, learning.identity, learning.run.settings.on_mismatch)
                learning.run.load_state_dict(saved.run)
                learning.order.resume(*saved.order_of(learning.place))
        with nullcontext() if learning is None else learning.signals:
            return super().train(resume_from_checkpoint, *args, **kwargs)

    def _checkpoint_to_take(self, asked: str | bool) -> str | None:
        """The checkpoint that was asked for; where the host chose it, the newest whole one.

        Raises:
            ValueError: It, or where the host chose every one that there is, is damaged.
        """
        output_dir, taken = str(self.args.output_dir), None if asked is True else str(asked)
        automatic = bool(self.axolotl_cfg and self.axolotl_cfg.auto_resume_from_checkpoints)
        if taken is None or (automatic and checkpoints.is_newest(taken, output_dir)):
            taken, passed_over = checkpoints.newest_whole(output_dir)
            for line in passed_over:
                LOG.warning(f"scalebio: {line}, so the run " + (f"goes on from {taken}" if taken else "starts anew"))
        else:
            checkpoints.refuse_problem(taken)
        if taken is not None and checkpoints.is_unchecked(taken):
            LOG.warning(
                f"scalebio: {taken} was written by an earlier version, which noted no sizes and digests of its files: "
                "nobody can tell whether they are damaged"
            )
        return taken

    def _save_checkpoint(self, model: nn.Module, trial: Any, **kwargs: Any) -> None:
        learning = self.learning
        if learning is None:
            super()._save_checkpoint(model, trial, **kwargs)
            return
        if self._is_over:
            return
        try:
            self._save_all(learning, model, trial, **kwargs)
        except Exception as error:
            error.add_note(
                f"scalebio: checkpoint-{self.state.global_step} was not written to its end (is the disk full?). Those "
                "before it are as they were: with room again, auto_resume_from_checkpoints goes on from the newest"
            )
            raise

    def _save_all(self, learning: Learning, model: nn.Module, trial: Any, **kwargs: Any) -> None:
        """In this order: ours, the host's, the manifest; then older ones go."""
        run_dir = self._get_output_dir(trial=trial)
        folder = os.path.join(run_dir, f"checkpoint-{self.state.global_step}")
        os.makedirs(folder, exist_ok=True)
        if self.is_world_process_zero():
            checkpoints.forget(folder)
        orders = gather_object([(learning.order.loader, learning.order.epoch)])  # the others wait in here
        if self.is_world_process_zero():
            checkpoints.write_mixture(folder, MixturePart(learning.run.state_dict(), orders))
            learning.folder.save_history(os.path.join(folder, HISTORY))
            write_identity(folder, learning.identity)
        limit, self.args.save_total_limit = self.args.save_total_limit, None  # none goes before this one is whole
        try:
            super()._save_checkpoint(model, trial, **kwargs)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            checkpoints.write_complete(folder, self.state.global_step, learning.place)
        if self.args.should_save and limit:
            checkpoints.drop_later_problems(run_dir, self.state.global_step)
            rotate_checkpoints(run_dir, limit, self.state.best_model_checkpoint, use_mtime=True)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        learning = self.learning
        if learning is None:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        with learning.engine.hosts_optimizer():
            super()._save_optimizer_and_scheduler(output_dir)
        if learning.place.writes_inner:
            parameters = self.trainable_parameters()
            part = InnerPart(
                inner=None if learning.inner is None else learning.inner.state_dict(),
                position=learning.position,
                record=learning.record,
                model=learning.engine.model_part(parameters),
                optimizer=learning.engine.optimizer_part(parameters, self.raw_optimizer()),
            )
            checkpoints.write_inner(output_dir, part, learning.place)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if self.learning is not None:
            self.learning.order.at_restored()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        learning = self.learning
        if learning is not None and learning.layers is not None and checkpoint is not None:
            # The checkpoint has optimizer state for the layers of its period, and FSDP wants one for all that train.
            learning.layers.freeze_others(max(0, self.state.global_step - 1), self.trainable_parameters())
        with nullcontext() if learning is None else learning.engine.hosts_optimizer():
            super()._load_optimizer_and_scheduler(checkpoint)
        if learning is not None and checkpoint is not None:
            self._restore(learning, checkpoint)

    def _restore(self, learning: Learning, checkpoint: str) -> None:
        """Go on from a checkpoint, once the optimizer exists: u, positions, history.

        Raises:
            ValueError: u has parameters that do not train here, or is missing where this run would go on learning.
        """
        saved = checkpoints.read_inner(checkpoint, learning.place)
        done, parameters = self.state.global_step, self.trainable_parameters()
        phase = learning.run.phase(done)
        learning.resume_at(saved.position, done)
        learning.record = saved.record
        learning.engine.restore_model_part(parameters, saved.model)
        if saved.optimizer is not None:
            learning.engine.restore_optimizer_part(parameters, self.raw_optimizer(), saved.optimizer)
        if saved.inner is not None:
            learning.inner = learning.engine.inner(parameters, self.raw_optimizer(), learning.inner_device)
            learning.inner.load_state_dict(saved.inner)
        elif phase is Phase.LEARN and done > learning.run.settings.warmup_steps:
            raise ValueError(
                f"scalebio: {checkpoint} was written after learning had ended, and this run would learn on; set learn: "
                "back to what it was"
            )
        history = checkpoints.history_in(checkpoint)
        if self.is_world_process_zero() and learning.folder.restore_history(history):
            LOG.warning(f"scalebio: {history} is damaged; the run goes on without the lines that cannot be read")
        weights = weights_line(dict(zip(learning.run.names, learning.run.weights_S.tolist(), strict=True)))
        LOG.info(
            f"scalebio: resumed from {checkpoint} after optimiser step {done} of {self.state.max_steps} "
            f"({phase.in_words}); weights: {weights}"
        )
