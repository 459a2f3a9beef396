"""Which source helps which validation set, measured at the beginning of a learning step, when no gradients exist.

One pass for each source over its part of the step's training batch, and one for each set over its part of the
validation batch, all at w; of each gradient a sketch is kept (`algorithm.alignment`). Nothing of the run changes by
it: gradients are gone and random states are back when the step begins.

Legend: G groups, which are the sources or the validation sets; K micro-batches; D buckets of a sketch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..algorithm.alignment import CountSketch, alignment
from ..algorithm.bilevel import IGNORED, Targets, weighted_loss
from ..data.tags import Batch
from .learning import Learning
from .random_state import same_afterwards
from .step import Host, StepBatches, validation_chunks


@dataclass(frozen=True)
class Probe:
    """The passes of one probe.

    Attributes:
        model: As the host wrapped it.
    """

    host: Host
    learning: Learning
    model: nn.Module
    sketch: CountSketch

    def measure(self, batches: StepBatches) -> Tensor:  # (S, V), NaN where the batches hold none of a source or a set
        """Cosines of the gradients, of the global batches: the same on every rank."""
        chunks, targets = validation_chunks(self.host, self.learning)
        sources, sets = len(self.learning.run.names), len(self.learning.validation.coefficient_V)
        with same_afterwards(), self.host.uncounted():
            of_sources = self._sketches(batches.micro_batches, batches.targets, sources)
            of_sets = self._sketches(chunks, targets, sets)
        both = self.learning.engine.total(torch.cat([of_sources, of_sets])).cpu()
        return alignment(*torch.split(both, [sources, sets]))

    def _sketches(self, batches: Sequence[Batch], targets: Sequence[Targets], groups: int) -> Tensor:  # (G, D)
        """This rank's part of the sketched gradient of each group's mean loss."""
        units_KG = self.learning.engine.total(torch.stack([of.counts(groups) for of in targets]))
        sketches = torch.zeros(groups, self.sketch.buckets, dtype=torch.float64, device=units_KG.device)
        for group, units_K in enumerate(units_KG.T):
            held = units_K.nonzero().flatten().tolist()  # by some rank: all of them run equally many passes
            for index in held:
                self._pass(*self._part(batches[index], targets[index], group), units_K.sum())
            if held:
                sketches[group] = self._taken(sketches.device)
        return sketches

    def _part(self, batch: Batch, targets: Targets, group: int) -> tuple[Batch, Targets]:
        return part_of_group(batch, targets, group, whole=self.learning.probes.whole_batches)

    def _pass(self, batch: Batch, targets: Targets, total: Tensor) -> None:
        """Backward of this rank's part of the mean loss.

        A sharded gradient is one only once it is averaged over the ranks; else it stays this rank's own.
        """
        engine = self.learning.engine
        scale = float(engine.world) if engine.sharded else 1.0
        ones = torch.ones(int(targets.source.max()) + 1, dtype=torch.float64)

        def mean(losses: Tensor) -> Tensor:
            return weighted_loss(losses, targets, ones, total) * scale

        def loss_of(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
            return mean(losses_of(outputs))

        losses = self.learning.losses.within(self.host.bare_model(), targets.labels, mean)
        with losses as losses_of, engine.synced(self.model, engine.sharded):
            self.host.backward_pass(self.model, batch, loss_of)

    def _taken(self, device: torch.device) -> Tensor:  # (D,)
        """The sketch of the gradients, which are gone afterwards."""
        found = torch.zeros(self.sketch.buckets, dtype=torch.float64, device=device)
        for number, parameter in enumerate(self.host.trainable_parameters().values()):
            if parameter.grad is not None:
                values, first, copies = self.learning.engine.part_of(parameter.grad)
                found += self.sketch.of(values, number, first).to(device) / copies
                parameter.grad = None
        return found


def part_of_group(batch: Batch, targets: Targets, group: int, *, whole: bool = False) -> tuple[Batch, Targets]:
    """The rows that hold a group, with its targets alone: of none, a row without targets.

    Args:
        whole: All rows. So are they where something in the batch is no tensor of rows.
    """
    mine = (targets.source == group) & (targets.units > 0)
    rows = mine.any(1).nonzero().flatten()
    rows = rows if len(rows) else torch.zeros(1, dtype=torch.long, device=rows.device)
    labels, units = targets.labels.masked_fill(~mine, IGNORED), targets.units.masked_fill(~mine, 0.0)
    tensors = [value for value in batch.values() if isinstance(value, Tensor)]
    if whole or any(value.shape[:1] != mine.shape[:1] for value in tensors):
        return batch, Targets(labels, units, targets.source)
    some = {key: value[rows.to(value.device)] if isinstance(value, Tensor) else value for key, value in batch.items()}
    return some, Targets(labels[rows], units[rows], targets.source[rows])
