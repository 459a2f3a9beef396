"""What the trainer holds of a learning run, and of one optimiser step in the making."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from axolotl.utils.samplers import MultipackBatchSampler
from torch import Tensor

from ..algorithm.bilevel import Targets
from ..data.resampled import RestStream
from ..data.validation import ValidationStream
from ..engines.base import Engine, InnerSet
from ..estimate.estimator import Estimate
from ..report.summary import HistoryRecord
from .layer_sampling import LayerSampling
from .mixture_run import MixtureRun

# Of several ranks: transformers before 5.17 packs once a run, later ones every epoch as in one process.
_REACHES_SHARDED_BINS = tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 17)


@dataclass
class Learning:
    """What the plugin hands to the trainer, and the parts that come to be during the run.

    Attributes:
        run: λ and the phase.
        engine: How the parameter sets live on the host's engine.
        validation: L1's batches.
        layers: LISA, if any.
        trainable: Names of the parameters that the optimizer was made for.
        rest: The batches after learning.
        inner_device: Where u rests; None: beside the model.
        folder: `<output_dir>/scalebio`.
        manager: Of the run's hooks.
        facts: Of config and data, for mixture.json.
        next_config: YAML of the ordinary run on the mixture; None where the config cannot be written as YAML.
        memory: Bytes of the run's state, as counted before it began.
        inner: u, from the first learning step to the last.
        record: Last line of the history.
        order: What the order of the host's data came from.
    """

    run: MixtureRun
    engine: Engine
    validation: ValidationStream
    layers: LayerSampling | None
    trainable: list[str]
    rest: RestStream
    inner_device: torch.device | None
    folder: str
    manager: Any
    facts: dict[str, Any]
    next_config: str | None = None
    memory: Estimate | None = None
    inner: InnerSet | None = None
    record: HistoryRecord | None = None
    order: DataOrder = field(default_factory=lambda: DataOrder())

    def begun_inner(self) -> InnerSet:
        if self.inner is None:
            raise RuntimeError("scalebio: a learning step without inner parameters; this is a bug, please report it")
        return self.inner


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


@dataclass
class AccumulatedStep:
    """One optimiser step in the making: its micro-batches and the sums of their losses.

    Attributes:
        batches: Without tags. targets: One per micro-batch.
        units_S: (S,), n_i over the whole step. total: n.
        model_S, inner_S: (S,), Σ unit · loss at w and at u so far.
        router_scale: What the host multiplies a micro-batch's router loss by.
    """

    batches: list[dict[str, Any]]
    targets: list[Targets]
    units_S: Tensor
    total: Tensor
    model_S: Tensor
    inner_S: Tensor
    router_scale: float = 1.0
    done: int = 0


class RandomState:
    """State of torch's generators on the CPU and on the current accelerator."""

    def __init__(self) -> None:
        self.cpu = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda)
