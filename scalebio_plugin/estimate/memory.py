"""Bytes per GPU of everything but activations: weights, gradients, optimizer states, the inner set.

One process and DDP hold all of it; FSDP2 and DeepSpeed hold a share, and gather what they compute with. w and u have
their passes one after the other, u first, and u's gradients are freed before w's passes, so one set of gradients is
held. An exchange of the two sets needs one tensor's room at a time where values are copied on the GPU, a few buffers
where u rests in CPU memory, and nothing where pointers move.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields

from ..engines.transfer import BUFFERS, CHUNK
from ..engines.zero import ELEMENTS_ASIDE
from .layout import Kind, Layout
from .optimizers import state_of, temporary_of

FLOAT32 = 4.0


@dataclass(frozen=True)
class Parameter:
    """One parameter of the model.

    Attributes:
        shape: Of all of it, whatever share a rank holds.
        stored: Bytes as the host loads it: by its precision, or quantised with its constants.
        trains: The optimizer is made for it.
        block: Index of the transformer block it stands in; None outside of them.
        quantised: Has to be written out in full to compute with.
        embedding: Of an embedding, whose optimizer state bitsandbytes keeps in float32.
    """

    name: str
    shape: tuple[int, ...]
    stored: float
    trains: bool
    block: int | None = None
    quantised: bool = False
    embedding: bool = False

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Training:
    """What a run does with the parameters.

    Attributes:
        optimizer: The host's name of it.
        float32: What trains is kept in float32 (the plugin's rule); False: as the host loads it.
        second_set: The inner parameters exist; what trains is in float32 then.
        inner_on_cpu: Their values rest in CPU memory.
        active: Names that train at a time, under LISA; None: all that train.
        momentum: SGD keeps one.
        accumulates: Over micro-batches (the passes of the last one are reduced at once).
        both_gradients: u's gradients wait for w's (fp16: both sets step, or neither).
    """

    optimizer: str = "adamw_torch_fused"
    float32: bool = True
    second_set: bool = True
    inner_on_cpu: bool = False
    active: frozenset[str] | None = None
    momentum: bool = False
    accumulates: bool = True
    both_gradients: bool = False

    def ever_trains(self, parameter: Parameter) -> bool:
        """Every block is drawn sooner or later; what is outside trains all the time or never."""
        return self.is_active(parameter) or (parameter.trains and parameter.block is not None)

    def is_active(self, parameter: Parameter) -> bool:
        return parameter.trains and (self.active is None or parameter.name in self.active)


@dataclass(frozen=True)
class Bytes:
    """Bytes on one GPU, and in CPU memory for it."""

    gpu: float = 0.0
    cpu: float = 0.0

    def __add__(self, other: Bytes) -> Bytes:
        return Bytes(self.gpu + other.gpu, self.cpu + other.cpu)

    def to_cpu(self, moves: bool) -> Bytes:
        return Bytes(cpu=self.gpu + self.cpu) if moves else self


@dataclass(frozen=True)
class StateBytes:
    """What one GPU holds, without activations.

    Attributes:
        frozen, trained: Weights; `trained` with DeepSpeed's float32 masters.
        gradients: Of what trains at a time.
        optimizer: States of w.
        inner_values, inner_optimizer: u, at its largest (LISA: every layer has been drawn).
        buckets: Copies of the gradients that the engine sends; buffers of the exchange with CPU memory.
        gathered: During a pass: whole units of a sharded model, a quantised matrix written out.
        exchange: During an exchange of the sets. step: during the optimizer's step.
    """

    frozen: Bytes = Bytes()
    trained: Bytes = Bytes()
    gradients: Bytes = Bytes()
    optimizer: Bytes = Bytes()
    inner_values: Bytes = Bytes()
    inner_optimizer: Bytes = Bytes()
    buckets: Bytes = Bytes()
    gathered: Bytes = Bytes()
    exchange: Bytes = Bytes()
    step: Bytes = Bytes()

    @property
    def held(self) -> Bytes:
        """What is there all the time: all but `gathered`, `exchange` and `step`."""
        passing = {"gathered", "exchange", "step"}
        held: list[Bytes] = [getattr(self, field.name) for field in fields(self) if field.name not in passing]
        return sum(held, Bytes())

    def peak(self, activations: float) -> float:
        """Bytes on the GPU at the worst moment: in a pass, in an exchange or in the optimizer's step."""
        return self.held.gpu + max(self.gathered.gpu + activations, self.exchange.gpu, self.step.gpu)


def state_bytes(parameters: Sequence[Parameter], layout: Layout, training: Training) -> StateBytes:
    """Bytes per GPU and in CPU memory for it, at the fullest moment of a run."""
    count = _Count(parameters, layout, training)
    frozen = sum(p.stored for p in parameters if not training.ever_trains(p))
    trained, optimizer = count.trained(), count.optimizer()
    on_cpu, second_set = training.inner_on_cpu, training.second_set
    return StateBytes(
        frozen=Bytes(frozen * layout.weights_share).to_cpu(layout.offload_weights),
        trained=trained,
        gradients=count.gradients(),
        optimizer=optimizer,
        inner_values=trained.to_cpu(on_cpu) if second_set else Bytes(),
        inner_optimizer=optimizer.to_cpu(on_cpu and count.deepspeed) if second_set else Bytes(),
        buckets=Bytes(count.buckets()),
        gathered=Bytes(count.gathered()),
        exchange=Bytes(count.exchange()),
        step=Bytes(count.step()),
    )


class _Count:
    """The parts that hang on the layout. `active`: what trains at a time, `elements` of it."""

    def __init__(self, parameters: Sequence[Parameter], layout: Layout, training: Training) -> None:
        self.parameters, self.layout, self.training = parameters, layout, training
        self.active = [p for p in parameters if training.is_active(p)]
        self.elements = sum(p.elements for p in self.active)
        self.deepspeed, self.fsdp2 = layout.kind is Kind.DEEPSPEED, layout.kind is Kind.FSDP2

    def element(self, parameter: Parameter) -> float:
        """Bytes of an element of a trained weight's value, and of its gradient, without DeepSpeed.

        accelerate's FSDP2 keeps what trains in float32 whoever asks, where the run computes in half precision.
        """
        kept = self.training.float32 or self.fsdp2
        return FLOAT32 if kept else parameter.stored / max(1, parameter.elements)

    def values(self, parameters: Iterable[Parameter]) -> float:
        return sum(self.element(p) * p.elements for p in parameters)

    def trained(self) -> Bytes:
        """DeepSpeed: the module's copy in the precision of the run, and the float32 masters."""
        layout, trained = self.layout, [p for p in self.parameters if self.training.ever_trains(p)]
        if not self.deepspeed:
            return Bytes(self.values(trained) * layout.weights_share).to_cpu(layout.offload_weights)
        elements = sum(p.elements for p in trained)
        copy = Bytes(elements * layout.compute * layout.weights_share).to_cpu(layout.offload_weights)
        return copy + Bytes(elements * FLOAT32 * layout.states_share).to_cpu(layout.offload_optimizer)

    def gradients(self) -> Bytes:
        layout = self.layout
        if not self.deepspeed:
            sets = 2 if self.training.both_gradients and self.training.second_set else 1
            return Bytes(self.values(self.active) * layout.gradients_share * sets).to_cpu(layout.offload_weights)
        if layout.offload_optimizer and layout.stage >= 2:
            return Bytes(cpu=self.elements * FLOAT32 * layout.gradients_share)
        return Bytes(self.elements * layout.compute * layout.gradients_share)

    def optimizer(self) -> Bytes:
        """States of w, or of u; DeepSpeed steps one flat tensor in float32."""
        layout, kind, momentum = self.layout, self.training.optimizer, self.training.momentum
        if self.deepspeed:
            states = state_of(kind, (round(self.elements * layout.states_share),), momentum=momentum)
        else:
            states = layout.states_share * sum(
                state_of(
                    kind,
                    p.shape,
                    element=self.element(p),
                    momentum=momentum,
                    embedding=p.embedding,
                    in_block=p.block is not None,
                )
                for p in self.active
            )
        return Bytes(states).to_cpu(layout.offload_optimizer or layout.offload_weights)

    def buckets(self) -> float:
        """DDP reduces a copy of the gradients (with LISA the plugin reduces them itself), ZeRO fills buckets."""
        layout, training = self.layout, self.training
        crosses = training.second_set and training.inner_on_cpu and not self._shards_on_cpu()
        exchange = float(BUFFERS * CHUNK) if crosses else 0.0
        if layout.kind is Kind.DDP and training.active is None:
            return exchange + self.values(self.active)
        if self.deepspeed and layout.stage >= 1:
            return exchange + min(layout.bucket, self.elements) * layout.compute * layout.buckets
        return exchange

    def _shards_on_cpu(self) -> bool:
        """FSDP2 with `offload_params`: both sets are in CPU memory."""
        return self.fsdp2 and self.layout.offload_weights

    def gathered(self) -> float:
        """What a pass holds whole besides the shares."""
        compute = self.layout.compute
        written_out = max((p.elements * compute for p in self.parameters if p.quantised), default=0.0)
        if self.fsdp2:
            return written_out + self._gathered_units()
        if self.layout.stage >= 3:
            return written_out + min(self.layout.live, sum(p.elements for p in self.parameters)) * compute
        return written_out

    def _gathered_units(self) -> float:
        """FSDP2: two blocks (one is prefetched), what stands outside of the blocks, and gradients not yet scattered.

        Outside the blocks is one unit, whole from the head's backward to the end of the pass. A unit's gradients exist
        whole until they are scattered: after its backward, or, where several passes accumulate, after the last of them
        (the host's `no_sync`), in the precision of the run; for the largest unit once more, as the buffer that is
        reduced.
        """
        compute = self.layout.compute

        def whole(parameter: Parameter) -> float:
            full = parameter.elements * compute
            return full if parameter.trains else min(full, parameter.stored)

        root, block = self._units(whole)
        gradients_root, gradients_block = self._units(lambda p: p.elements * compute * self.training.is_active(p))
        waiting = self.elements * compute if self.training.accumulates else gradients_root + gradients_block
        return 2 * block + root + waiting + max(gradients_root, gradients_block)

    def _units(self, of: Callable[[Parameter], float]) -> tuple[float, float]:
        """Sums of `of` over what stands outside of the blocks, and over the largest block."""
        sums: dict[int | None, float] = {None: 0.0}
        for parameter in self.parameters:
            sums[parameter.block] = sums.get(parameter.block, 0.0) + of(parameter)
        return sums.pop(None), max(sums.values(), default=0.0)

    def exchange(self) -> float:
        """One tensor at a time, where values are copied and not only pointed to; with CPU memory it has its buffers."""
        training = self.training
        copied = (self.fsdp2 or self.deepspeed) and not training.inner_on_cpu
        if not training.second_set or not copied or self._shards_on_cpu():
            return 0.0
        if self.deepspeed:
            return FLOAT32 * min(ELEMENTS_ASIDE, self.elements)
        return max((p.elements * FLOAT32 * self.layout.weights_share for p in self.active), default=0.0)

    def step(self) -> float:
        """The optimizer's temporaries; ZeRO also turns its share of the gradients into float32."""
        layout, kind = self.layout, self.training.optimizer
        if layout.offload_optimizer or layout.offload_weights:
            return 0.0
        if self.deepspeed:
            temporary = sum(temporary_of(kind, p.shape) for p in self.active)
            return (temporary + self.elements * FLOAT32) * layout.states_share
        return sum(temporary_of(kind, p.shape, element=self.element(p)) for p in self.active) * layout.states_share
