"""The host's trainer with one overridden training step; `step` has what happens in it, from top to bottom."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from accelerate import skip_first_batches
from axolotl.utils.logging import get_logger
from torch import Tensor, nn
from torch.utils.data import BatchSampler, SequentialSampler

from ..data.planned_stream import PlannedStream
from ..data.tags import COLUMN, SEQUENCE, Batch
from ..report.history import metrics
from ..report.tables import progress_table, shorten
from .console import say
from .phase import Phase
from .probe import Probe
from .random_state import same_afterwards
from .resumable import ResumableTrainer
from .step import LossOf, Step, StepBatches
from .watch import stopped, what_is_not_finite

LOG = get_logger("axolotl.scalebio")


class ScaleBiOTrainer(ResumableTrainer):
    """Learns the mixture while it trains. Without `learning` (`axolotl evaluate`) it is the host's trainer."""

    test_sets: Mapping[str, Any] = MappingProxyType({})  # rows of each of several `test_datasets`
    compute_loss_func: Any
    loss_is_scaled_for_ga: Any = None
    _signature_columns: list[str] | None
    _batches: StepBatches | None = None
    _step: Iterator[Tensor] | None = None
    _own_loss_seen = False
    _unmeasured: Sequence[str] = ()  # test sets of which the log has said so
    _epoch_batches = 0

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
        if len(self.train_dataset) != self._connected().rows:
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
            say(LOG.info, f"scalebio: layers {list(learning.layers.layers)} train from optimiser step {step + 1} on")
        if learning.inner is not None:
            learning.inner.follow([name for name, parameter in parameters.items() if parameter.requires_grad])

    def end_learning(self) -> None:
        """After the last learning step: what goes on, or is saved, is the set to keep."""
        if self._connected().end():
            say(LOG.info, "scalebio: the model is u, the inner parameters, from here on (keep: inner)")

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
        phase = learning.run.phase(self.state.global_step)
        learning.pace.begin(phase)
        after, planned, stream = phase is Phase.AFTER, None, learning.stream
        if isinstance(stream, PlannedStream):
            planned = stream.step(self.state.global_step, learning.run.weights_S.numpy())
            batches, items = self._planned_samples(stream, num_batches, device)
        elif after:
            batches, items = self._own_samples(stream.batches(learning.run.weights_S.numpy()), num_batches, device)
        else:
            batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._batches = self._step = None
        if after:
            for batch in batches:
                del batch[COLUMN], batch[SEQUENCE]
        elif batches:
            sums = items is not None and self.model_accepts_loss_kwargs  # else the host takes means of micro-batches
            self._batches = StepBatches.of(batches, learning, 1.0 if sums else 1.0 / len(batches), planned)
        return batches, items

    def _planned_samples(self, stream: PlannedStream, asked: int, device: torch.device) -> tuple[list[Any], Any]:
        """Of the step that was planned last."""
        batches, items = self._own_samples(stream.batches(), asked, device)
        step = self.state.global_step
        if not asked == self.micro_batches(step) == len(batches):
            raise ValueError(
                f"scalebio: the host asks for {asked} micro-batches in optimiser step {step + 1}, for which "
                f"{self.micro_batches(step)} were planned and {len(batches)} came; remove ignore_data_skip and "
                "split_batches, or set scalebio.sampling: host"
            )
        return batches, items

    def _own_samples(self, ours: Iterator[Batch], asked: int, device: torch.device) -> tuple[list[Any], Any]:
        """Not of the host's loader. Torch's generators stay as they were: a resumed run makes more loaders."""
        with same_afterwards():
            return super().get_batch_samples(ours, asked, device)

    def training_step(self, model: nn.Module, inputs: Batch, num_items_in_batch: Any = None) -> Tensor:
        """One micro-batch: of a bilevel step, of its warmup, or as the host has it."""
        learning, batches = self.learning, self._batches
        if learning is None or batches is None:
            loss = super().training_step(model, inputs, num_items_in_batch)
            if learning is not None and self.accelerator.sync_gradients:
                learning.engine.average_gradients(self.trainable_parameters())
            return loss
        if self._step is None:
            self._look_at_own_loss(model, batches.micro_batches[0])
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
        model.train()
        with torch.no_grad(), self.uncounted(), self.compute_loss_context_manager(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "None of the inputs have requires_grad")  # of checkpointed blocks
            inputs = self._prepare_inputs(dict(batch))
            with same_afterwards():
                own, outputs = self.compute_loss(model, dict(inputs), return_outputs=True)
            unwrapped, labels, losses = self.bare_model(), inputs["labels"][:, 1:], self._connected().losses
            outputs = outputs if losses.reads_outputs else {}  # else logits of the host's would lie beside ours
            with same_afterwards():  # and another pass has the same masks
                again = partial(self.forward_pass, model, inputs)
                losses.check(own, outputs, unwrapped, labels, again)
        self._own_loss_seen = True

    # ---- evaluations and logs

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """The host's, callbacks too (they generate samples), at the set to keep; and the loss of each test set."""
        if self.learning is None:
            return super().evaluate(*args, **kwargs)
        whole = not args and kwargs.get("eval_dataset") is None
        with self.learning.kept_in_place(), self._with_test_sets() if whole else nullcontext():
            return super().evaluate(*args, **kwargs)

    @contextmanager
    def _with_test_sets(self) -> Iterator[None]:
        """Within, an evaluation measures each test set before it tells its callbacks: early stopping may go by one."""
        tell = self.callback_handler.on_evaluate

        def measure_and_tell(args: Any, state: Any, control: Any, metrics: dict[str, float]) -> Any:
            metrics |= self._losses_of_test_sets()
            return tell(args, state, control, metrics)

        self.callback_handler.on_evaluate = measure_and_tell
        try:
            yield
        finally:
            del self.callback_handler.on_evaluate

    def _losses_of_test_sets(self) -> dict[str, float]:
        losses: dict[str, float] = {}
        for name, rows in self.test_sets.items():
            prefix = f"eval_{name}"
            loader = self.get_eval_dataloader(rows)
            found = self.evaluation_loop(loader, f"Evaluation of {name}", True, metric_key_prefix=prefix).metrics
            measured = {key: value for key, value in found.items() if key == f"{prefix}_loss"}
            if not measured and name not in self._unmeasured:
                self._unmeasured = (*self._unmeasured, name)
                LOG.warning(
                    f"scalebio: {shorten(name)} has too few rows for a loss of its own: packed, they fill no batch on "
                    "all GPUs; eval_sample_packing: false measures them"
                )
            losses |= measured
            self.callback_handler.on_predict(self.args, self.state, self.control, found)  # the progress bar ends
        if losses:
            self.log(dict(losses))
        return losses

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        learning = self.learning
        if learning is not None and learning.record is not None and "loss" in logs:
            logs.update(metrics(learning.record))
            if learning.run.phase(max(0, self.state.global_step - 1)) is Phase.LEARN:
                step = self.state.global_step
                said = progress_table(learning.record, learning.left(step))
                say(LOG.info, f"scalebio: after optimiser step {step}\n{said}")
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
