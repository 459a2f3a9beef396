"""States of torch's generators: what makes u's dropout masks w's, and a resumed run's batches those of the first."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from axolotl.utils.samplers import MultipackBatchSampler
from torch import Tensor

# Of several ranks: transformers before 5.17 packs once a run, later ones every epoch as in one process.
_REACHES_SHARDED_BINS = tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 17)


def same_afterwards() -> AbstractContextManager[None]:
    """Torch's generators, on the CPU and on the current accelerator, are after the block what they were before."""
    return torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else [])


@dataclass
class DataOrder:
    """States of torch's generator that decide the order of the host's data.

    With sample packing the host draws that order from the global generator, when the data loader is made and again in
    every epoch, and a resumed run has used the generator differently by then: it would see other batches. So both
    states are kept, and taken up again on a resume.

    Attributes:
        loader, epoch: State when the loader was made, and when the current epoch began.
        resumed: Whether they come from a checkpoint and still wait for the epoch they belong to.
        untouched: Whether no batch of the current epoch was taken yet.
    """

    loader: Tensor | None = None
    epoch: Tensor | None = None
    resumed: bool = False
    untouched: bool = False

    def resume(self, loader: Tensor | None, epoch: Tensor | None) -> None:
        """Take up a checkpoint's."""
        self.loader, self.epoch, self.resumed = loader, epoch, True

    def at_loader(self) -> None:
        if self.resumed and self.loader is not None:
            torch.set_rng_state(self.loader)
        self.loader = torch.get_rng_state()

    def at_epoch(self, loader: Any, number: int) -> None:
        if self.resumed and self.epoch is not None:
            torch.set_rng_state(self.epoch)
            sampler = getattr(loader, "batch_sampler", None)
            if _REACHES_SHARDED_BINS:
                sampler = getattr(sampler, "batch_sampler", sampler)
            if isinstance(sampler, MultipackBatchSampler):
                sampler.set_epoch(number)  # skipping hides it from the host's own call, and it would keep old bins
        self.epoch, self.resumed, self.untouched = torch.get_rng_state(), False, True

    def at_restored(self) -> None:
        """The host restored its generators: before the first batch of an epoch, this is where its order comes from."""
        if self.untouched:
            self.epoch = torch.get_rng_state()

    def at_batches(self) -> None:
        self.untouched = False
