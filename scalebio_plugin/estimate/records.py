"""What an estimate of memory is made from and comes to: weights, engine, training; bytes. Standard library."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from enum import Enum

GIB = 2**30


@dataclass(frozen=True)
class Weight:
    """One parameter of the model.

    Attributes:
        shape: Of all of it, whatever share a rank holds.
        stored: Bytes as the host loads it: by its precision, or quantised with its constants.
        trains: The optimizer is made for it.
        block: Index of the transformer block it stands in; None outside of them.
        embedding: Of an embedding, whose optimizer state bitsandbytes keeps in float32.
        quantised: Has to be written out in full to compute with.
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


class Kind(Enum):
    ONE = "one process"
    DDP = "DDP"
    FSDP2 = "FSDP2"
    DEEPSPEED = "DeepSpeed ZeRO"


@dataclass(frozen=True)
class Engine:
    """How the model is spread over GPUs.

    Attributes:
        world: GPUs, one process each.
        replicas: FSDP2's `dp_replicate_size`: so many groups of GPUs hold all of the model each.
        stage: ZeRO's.
        compute: Bytes of an element where modules are computed with: 2 in bf16 and fp16, else 4.
        offload_optimizer, offload_weights: These rest in CPU memory.
        bucket: ZeRO's `reduce_bucket_size`, elements. buckets: 2 where communication overlaps.
        live: ZeRO-3's `stage3_max_live_parameters`, elements.
    """

    kind: Kind = Kind.ONE
    world: int = 1
    replicas: int = 1
    stage: int = 0
    compute: float = 2.0
    offload_optimizer: bool = False
    offload_weights: bool = False
    bucket: float = 5e8
    buckets: int = 1
    live: float = 1e9

    @property
    def weights_share(self) -> float:
        """Part of the weights that a rank holds between passes."""
        return self._share if self.kind is Kind.FSDP2 or self.stage >= 3 else 1.0

    @property
    def gradients_share(self) -> float:
        return self._share if self.kind is Kind.FSDP2 or self.stage >= 2 else 1.0

    @property
    def states_share(self) -> float:
        """Part of the optimizer states, and of DeepSpeed's float32 masters."""
        return self._share if self.kind is Kind.FSDP2 or self.stage >= 1 else 1.0

    @property
    def _share(self) -> float:
        return self.replicas / self.world

    def __str__(self) -> str:
        return f"{self.kind.value}-{self.stage}" if self.kind is Kind.DEEPSPEED else self.kind.value


@dataclass(frozen=True)
class Training:
    """What a run does with the weights.

    Attributes:
        optimizer: The host's name of it.
        float32: What trains is kept in float32 (the plugin's rule); False: as the host loads it.
        second_set: The inner parameters exist.
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

    def ever_trains(self, weight: Weight) -> bool:
        """Every block is drawn sooner or later; what is outside trains all the time or never."""
        return self.is_active(weight) or (weight.trains and weight.block is not None)

    def is_active(self, weight: Weight) -> bool:
        return weight.trains and (self.active is None or weight.name in self.active)


@dataclass(frozen=True)
class Bytes:
    """Bytes on one GPU, and in CPU memory for it."""

    gpu: float = 0.0
    cpu: float = 0.0

    def __add__(self, other: Bytes) -> Bytes:
        return Bytes(self.gpu + other.gpu, self.cpu + other.cpu)


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
