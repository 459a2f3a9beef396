"""One optimiser step, from top to bottom: of a run that learns (`Step.learn`), and of its warmup (`Step.warm_up`).

The host's loop asks for the micro-batches of a step one by one, accumulates what their backward passes give, then clips
and steps. So a step is a generator: it yields w's loss of each micro-batch in turn, and what comes before, between and
after them stands where it happens. `hooks.spec` draws the same step with the hooks in place.

Every pass (u on a training batch, w on a training batch, w on a validation batch) *is* the host's own training step,
run with another loss function and, for u, with the inner parameters exchanged into the module: autocast, gradient
checkpointing, offloading, loss scaling and model quirks are the host's in every pass.

Legend: S sources.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..algorithm.bilevel import Targets, sum_by_source, targets_of, weighted_loss
from ..algorithm.inner import InnerParameters
from ..data.step_plan import PlannedStep
from ..data.tags import COLUMN, SEQUENCE, Batch
from .learning import Learning
from .model_loss import router_loss
from .random_state import same_afterwards
from .step_losses import StepLosses
from .watch import stopped

LossOf = Callable[..., Tensor]  # (outputs, labels, num_items_in_batch) -> loss


class Host(Protocol):
    """What a step asks of the host's trainer."""

    accelerator: Any
    state: Any

    def bare_model(self) -> nn.Module:
        """The model without its wrappers."""

    def backward_pass(self, model: nn.Module, batch: Batch, loss_of: LossOf) -> Tensor:
        """The host's own training step with another loss, which is scaled for accumulation already."""

    def forward_pass(self, model: nn.Module, batch: Batch, loss_of: LossOf) -> None:
        """Forward alone, without gradients; `loss_of` sees the outputs."""

    def uncounted(self) -> AbstractContextManager[None]:
        """Passes inside are not training on a new token: the host's token counters pause."""

    def trainable_parameters(self) -> dict[str, nn.Parameter]: ...

    def _prepare_inputs(self, batch: Batch) -> Batch: ...

    def _get_learning_rate(self) -> Any: ...


@dataclass(frozen=True)
class StepBatches:
    """The micro-batches of one optimiser step, and what their losses are divided by.

    Attributes:
        micro_batches: Without tags.
        targets: One per micro-batch.
        units_S: (S,), n_i over the global accumulated batch.
        share_S: (S,), on the CPU, part of each source in the units that are drawn.
        total: N of equation (1) in `algorithm.bilevel`: n, or what was expected of it.
        router_scale: What the host multiplies a micro-batch's router loss by.
        drawn: Whether rows were drawn by source.
    """

    micro_batches: Sequence[Batch]
    targets: Sequence[Targets]
    units_S: Tensor
    share_S: Tensor
    total: Tensor
    router_scale: float
    drawn: bool

    @classmethod
    def of(
        cls, tagged: Sequence[Batch], learning: Learning, router_scale: float, planned: PlannedStep | None
    ) -> StepBatches:
        """Take the tags out of the batches, which were `planned` or came in the host's order."""
        per_sequence, sources = learning.run.settings.loss_unit == "sequence", len(learning.run.names)
        targets = [_targets(batch, per_sequence=per_sequence) for batch in tagged]
        units = learning.engine.total(torch.stack([target.counts(sources) for target in targets]).sum(0))
        if planned is None:
            total = units.sum().clamp(min=1.0)
            return cls(tagged, targets, units, learning.run.share_S, total, router_scale, drawn=False)
        share = torch.from_numpy(planned.share_S)
        total = torch.full_like(units[0], planned.units)
        return cls(tagged, targets, units, share, total, router_scale, drawn=True)


class Step:
    """The passes of one optimiser step, and their order.

    Args:
        model: As the host wrapped it.
    """

    def __init__(self, host: Host, learning: Learning, model: nn.Module, batches: StepBatches):
        self.host, self.learning, self.model = host, learning, model
        self.batches, self.last = batches, len(batches.micro_batches) - 1
        self.coefficient_S = learning.run.coefficient_S(batches.share_S)
        self.model_S, self.inner_S = torch.zeros_like(batches.units_S), torch.zeros_like(batches.units_S)
        self.validation_V = torch.zeros(0)  # units of each validation set in its batch
        self.scaler = host.accelerator.scaler

    def learn(self) -> Iterator[Tensor]:
        """The bilevel step: u's passes and its step, w's passes, the validation pass, λ; w steps last, by the host."""
        engine, settings = self.learning.engine, self.learning.run.settings
        mirrored = settings.estimator == "symmetric"

        with same_afterwards(), self.learning.begun_inner().in_place(for_passes=True), self.host.uncounted():
            for index in range(self.last + 1):
                with engine.synced(self.model, index == self.last and not mirrored):
                    self._train_pass(index, self.inner_S)
            if mirrored:
                self._validation_pass(-settings.pull)
            if self.scaler is None:
                self._step_inner()
        # w sees u's dropout masks
        for index in range(self.last):
            yield self._shown(self._train_pass(index, self.model_S))

        with engine.hold_steps():
            with engine.synced(self.model, settings.pull == 0.0):
                loss = self._train_pass(self.last, self.model_S)
            with same_afterwards():
                val_V = self._validation_pass(settings.pull)
        engine.average_gradients(self.host.trainable_parameters())
        if self.scaler is not None:  # fp16: only now is it known whether both sets can step
            with self.learning.begun_inner().in_place():
                self._step_inner()

        losses = self._losses(val_V)
        part_S = self.coefficient_S / (self.coefficient_S * losses.units_S).sum().clamp(min=1e-9)  # of what came
        seen = (float((part_S * sums_S).sum()) for sums_S in (losses.model_S, losses.inner_S))
        self.learning.look_at(self._number, *seen)
        record = self.learning.run.observe(losses, self._number, float(self.host._get_learning_rate()))
        if record is not None:
            self.learning.note(record)
        engine.step_model()
        yield self._shown(loss)

    def warm_up(self) -> Iterator[Tensor]:
        """w alone on the mixture."""
        for index in range(self.last):
            yield self._shown(self._train_pass(index, self.model_S))
        loss = self._train_pass(self.last, self.model_S)
        self.learning.engine.average_gradients(self.host.trainable_parameters())
        self._refuse_not_finite("the model", self.learning.engine.total(self.model_S))
        yield self._shown(loss)

    # ---- passes

    def _train_pass(self, index: int, sums_S: Tensor) -> Tensor:
        """Backward of L2 on one micro-batch, at whichever set is in place; adds its losses to `sums_S`."""
        batches, world = self.batches, self.learning.engine.world
        targets = batches.targets[index]

        def weighted(losses: Tensor) -> Tensor:  # engines average over ranks
            return weighted_loss(losses, targets, self.coefficient_S, batches.total) * world

        with self._loss_of(targets, weighted, sums_S, batches.router_scale) as loss_of:
            return self.host.backward_pass(self.model, batches.micro_batches[index], loss_of)

    def _validation_pass(self, pull: float) -> Tensor:
        """Backward of pull · L1; with no pull only the losses. Uses dropout.

        Returns:
            (V,): this rank's part of the sum of the losses of each validation set.
        """
        engine, world = self.learning.engine, self.learning.engine.world
        coefficient_V, factor_V = self.learning.validation.coefficient_V, self.learning.run.objective.factor_V()
        coefficient_V = coefficient_V if factor_V is None else coefficient_V * factor_V
        chunks, targets = validation_chunks(self.host, self.learning)
        sets = len(coefficient_V)
        self.validation_V = engine.total(torch.stack([target.counts(sets) for target in targets]).sum(0))
        total = self.validation_V.sum().clamp(min=1.0)
        sums_V = torch.zeros(sets, dtype=torch.float64, device=total.device)

        def pulled(losses: Tensor, of: Targets) -> Tensor:
            return pull * weighted_loss(losses, of, coefficient_V, total) * world

        run = self.host.backward_pass if pull else self.host.forward_pass
        for number, (chunk, target) in enumerate(zip(chunks, targets, strict=True), start=1):
            with (
                engine.synced(self.model, number == len(chunks)) if pull else nullcontext(),
                self._loss_of(target, partial(pulled, of=target), sums_V) as loss_of,
                self.host.uncounted(),
            ):
                run(self.model, chunk, loss_of)
        return sums_V

    @contextmanager
    def _loss_of(
        self, targets: Targets, mean: Callable[[Tensor], Tensor], sums: Tensor, router_scale: float | None = None
    ) -> Iterator[LossOf]:
        """For one pass: its loss, which also adds the losses by source to `sums`.

        Args:
            mean: Of the losses of the targets.
            router_scale: With which the model's router loss is added; None: without.
        """
        model = self.host.bare_model()

        def loss_of(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Tensor:
            losses = losses_of(outputs)
            sums.add_(sum_by_source(losses.detach() * targets.units, targets.source, len(sums)))
            loss = mean(losses)
            if router_scale is None:
                return loss
            router = router_loss(outputs, model.config)
            return loss if router is None else loss + router_scale * router.to(loss.device)

        with self.learning.losses.within(model, targets.labels, mean) as losses_of:
            yield loss_of

    def _step_inner(self) -> None:
        """While u is in place: clip and step it with the host's optimizer, at the learning rate of w's coming step."""
        engine, inner, scaler = self.learning.engine, self.learning.begun_inner(), self.scaler
        engine.average_gradients(self.host.trainable_parameters())
        if scaler is not None and isinstance(inner, InnerParameters) and not inner.unscale(scaler.get_scale()):
            return  # both sets skip the step: the scaler finds the overflow in w's gradients
        engine.step_inner(self.model, inner)

    # ---- losses

    def _shown(self, loss: Tensor) -> Tensor:
        """What the host logs: a mean over what came, whatever was expected."""
        return (loss * (self.batches.total / self._came(self.batches.units_S))).to(loss.dtype)

    def _came(self, units_S: Tensor) -> Tensor:
        """What makes a mean of the sum in equation (1): n; where rows are drawn by source, its sum without the losses.

        So no number of rows of a source makes a logged loss jump, which of one that `max_repeats` holds back would.
        """
        if not self.batches.drawn:
            return units_S.sum().clamp(min=1.0)
        return (self.coefficient_S.to(units_S.device) * units_S).sum().clamp(min=1e-9)

    def _losses(self, val_V: Tensor) -> StepLosses:
        """Of the global batch, on the CPU.

        Raises:
            FloatingPointError: One of them is NaN or infinite.
        """
        total = self.learning.engine.total(torch.cat([self.model_S, self.inner_S, val_V]))
        counts = [self.batches.units_S, self.validation_V, self.batches.total[None]]
        gathered = torch.cat([total, *counts]).cpu()  # the one synchronisation
        sources, sets = len(self.model_S), len(self.validation_V)
        sizes = [sources, sources, sets, sources, sets, 1]
        model_S, inner_S, val_V, units_S, of_V, of = torch.split(gathered, sizes)
        train = (self.coefficient_S * model_S).sum() / self._came(units_S)
        self._refuse_not_finite("the model", model_S)
        self._refuse_not_finite("the inner parameters", inner_S)
        if not math.isfinite(float(val_V.sum())):
            raise FloatingPointError(stopped("the validation loss", self._number))
        return StepLosses(model_S, inner_S, units_S, self.batches.share_S, of[0], float(train), val_V, of_V)

    def _refuse_not_finite(self, where: str, sums_S: Tensor) -> None:
        names = self.learning.run.names
        bad = [name for name, total in zip(names, sums_S.tolist(), strict=True) if not math.isfinite(total)]
        if bad:
            raise FloatingPointError(stopped(f"the training loss of {bad} at {where}", self._number))

    @property
    def _number(self) -> int:
        """Of this optimiser step, from 1."""
        return int(self.host.state.global_step) + 1


def validation_chunks(host: Host, learning: Learning) -> tuple[list[Batch], list[Targets]]:
    """This rank's part of the validation batch of the coming step, in passes, and their targets."""
    engine, step = learning.engine, host.state.global_step
    parts = learning.validation.batches(step, rank=engine.rank, ranks=engine.world)
    chunks = [host._prepare_inputs(chunk) for chunk in parts]
    return chunks, [_targets(chunk, per_sequence=False) for chunk in chunks]


def _targets(tagged: Batch, *, per_sequence: bool) -> Targets:
    """The targets of a batch, whose tags are taken out."""
    return targets_of(tagged["labels"], tagged.pop(COLUMN), tagged.pop(SEQUENCE), per_sequence=per_sequence)
