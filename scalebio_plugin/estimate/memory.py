"""Bytes per GPU of everything but activations: weights, gradients, optimizer states, the inner set. Standard library.

One process and DDP hold all of it; FSDP2 and DeepSpeed hold a share, and gather what they compute with. w and u have
their passes one after the other, u first, and u's gradients are freed before w's passes, so one set of gradients is
held. An exchange of the two sets needs one tensor's room at a time where values are copied on the GPU, a few buffers
where u rests in CPU memory, and nothing where pointers move.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from .optimizers import state_of, temporary_of
from .records import Bytes, Engine, Kind, StateBytes, Training, Weight

FLOAT32 = 4.0
EXCHANGE_BUFFERS = 4.0 * 2**25  # bytes on the GPU through which u is exchanged with CPU memory
ZERO_CHUNK = 1 << 25  # elements that an exchange puts aside at a time under DeepSpeed


def state_bytes(weights: Sequence[Weight], engine: Engine, training: Training) -> StateBytes:
    """Bytes per GPU and in CPU memory for it, at the fullest moment of a run."""
    frozen = [weight for weight in weights if not training.ever_trains(weight)]
    trained = [weight for weight in weights if training.ever_trains(weight)]
    active = [weight for weight in trained if training.is_active(weight)]
    return StateBytes(
        frozen=_placed(sum(w.stored for w in frozen) * engine.weights_share, on_cpu=engine.offload_weights),
        trained=_values(trained, engine, training),
        gradients=_gradients(active, engine, training),
        optimizer=_optimizer(active, engine, training),
        inner_values=_inner_values(trained, engine, training),
        inner_optimizer=_inner_optimizer(active, engine, training),
        buckets=Bytes(_buckets(active, engine, training)),
        gathered=Bytes(_gathered(weights, engine, training)),
        exchange=Bytes(_exchange(active, engine, training)),
        step=Bytes(_step(active, engine, training)),
    )


def _placed(amount: float, *, on_cpu: bool) -> Bytes:
    return Bytes(cpu=amount) if on_cpu else Bytes(gpu=amount)


def _elements(weights: Iterable[Weight]) -> int:
    return sum(weight.elements for weight in weights)


def _element(weight: Weight, engine: Engine, training: Training) -> float:
    """Bytes of an element of a trained weight's value, and of its gradient, without DeepSpeed.

    accelerate's FSDP2 keeps what trains in float32 whoever asks, where the run computes in half precision.
    """
    kept = training.float32 or engine.kind is Kind.FSDP2
    return FLOAT32 if kept else weight.stored / max(1, weight.elements)


def _values(trained: list[Weight], engine: Engine, training: Training) -> Bytes:
    if engine.kind is not Kind.DEEPSPEED:
        value = sum(_element(w, engine, training) * w.elements for w in trained) * engine.weights_share
        return _placed(value, on_cpu=engine.offload_weights)
    return _deepspeed_values(_elements(trained), engine)


def _deepspeed_values(elements: int, engine: Engine) -> Bytes:
    """The module's copy in the precision of the run, and the float32 masters."""
    copy = _placed(elements * engine.compute * engine.weights_share, on_cpu=engine.offload_weights)
    return copy + _placed(elements * FLOAT32 * engine.states_share, on_cpu=engine.offload_optimizer)


def _gradients(active: list[Weight], engine: Engine, training: Training) -> Bytes:
    if engine.kind is not Kind.DEEPSPEED:
        gradient = sum(_element(w, engine, training) * w.elements for w in active) * engine.gradients_share
        sets = 2 if training.both_gradients and training.second_set else 1
        return _placed(gradient * sets, on_cpu=engine.offload_weights)
    if engine.offload_optimizer and engine.stage >= 2:
        return Bytes(cpu=_elements(active) * FLOAT32 * engine.gradients_share)
    return Bytes(_elements(active) * engine.compute * engine.gradients_share)


def _optimizer(active: list[Weight], engine: Engine, training: Training) -> Bytes:
    """States in float32 (or the optimizer's 8 bits) for w or for u; the host's own bf16 training keeps them in bf16."""
    kind, momentum = training.optimizer, training.momentum
    if engine.kind is Kind.DEEPSPEED:  # one flat tensor
        states = state_of(kind, (round(_elements(active) * engine.states_share),), momentum=momentum)
    else:
        states = engine.states_share * sum(
            state_of(kind, w.shape, momentum=momentum, embedding=w.embedding, in_block=w.block is not None)
            * _narrowing(w, engine, training)
            for w in active
        )
    return _placed(states, on_cpu=engine.offload_optimizer or engine.offload_weights)


def _narrowing(weight: Weight, engine: Engine, training: Training) -> float:
    """torch's optimizers keep states in the parameter's precision: half of float32's bytes for a bf16 parameter."""
    own = any(part in training.optimizer for part in ("8bit", "32bit", "adafactor"))
    if own:
        return 1.0
    return _element(weight, engine, training) / FLOAT32


def _inner_values(trained: list[Weight], engine: Engine, training: Training) -> Bytes:
    if not training.second_set:
        return Bytes()
    if engine.kind is Kind.DEEPSPEED:
        values = _deepspeed_values(_elements(trained), engine)
        return Bytes(cpu=values.gpu + values.cpu) if training.inner_on_cpu else values
    amount = _elements(trained) * FLOAT32 * engine.weights_share
    return _placed(amount, on_cpu=training.inner_on_cpu or engine.offload_weights)


def _inner_optimizer(active: list[Weight], engine: Engine, training: Training) -> Bytes:
    """As w's; DeepSpeed's rest beside the values."""
    if not training.second_set:
        return Bytes()
    states = _optimizer(active, engine, training)
    rests = engine.kind is Kind.DEEPSPEED and training.inner_on_cpu
    return Bytes(cpu=states.gpu + states.cpu) if rests else states


def _buckets(active: list[Weight], engine: Engine, training: Training) -> float:
    """DDP reduces a copy of the gradients (with LISA the plugin reduces them itself); ZeRO fills a bucket or two."""
    crosses = training.second_set and training.inner_on_cpu and not _shards_on_cpu(engine)
    exchange = EXCHANGE_BUFFERS if crosses else 0.0
    if engine.kind is Kind.DDP and training.active is None:
        return exchange + sum(_element(w, engine, training) * w.elements for w in active)
    if engine.kind is Kind.DEEPSPEED and engine.stage >= 1:
        return exchange + min(engine.bucket, _elements(active)) * engine.compute * engine.buckets
    return exchange


def _shards_on_cpu(engine: Engine) -> bool:
    """FSDP2 with `offload_params`: both sets are in CPU memory."""
    return engine.kind is Kind.FSDP2 and engine.offload_weights


def _gathered(weights: Sequence[Weight], engine: Engine, training: Training) -> float:
    """What a pass holds whole besides the shares."""
    if engine.kind is Kind.FSDP2:
        return _gathered_units(weights, engine, training)
    written_out = max((w.elements * engine.compute for w in weights if w.quantised), default=0.0)
    if engine.stage >= 3:
        return written_out + min(engine.live, _elements(weights)) * engine.compute
    return written_out


def _gathered_units(weights: Sequence[Weight], engine: Engine, training: Training) -> float:
    """FSDP2: two blocks (one is prefetched), what stands outside of the blocks, and gradients not yet scattered.

    Outside the blocks is one unit, whole from the head's backward to the end of the pass. A unit's gradients exist
    whole until they are scattered: after its backward, or, where several passes accumulate, after the last of them (the
    host's `no_sync`), in the precision of the run; for the largest unit once more, as the buffer that is reduced.
    """

    def largest_block(of: Callable[[Weight], float]) -> float:
        sizes: dict[int, float] = {}
        for weight in weights:
            if weight.block is not None:
                sizes[weight.block] = sizes.get(weight.block, 0.0) + of(weight)
        return max(sizes.values(), default=0.0)

    def root(of: Callable[[Weight], float]) -> float:
        return sum(of(weight) for weight in weights if weight.block is None)

    def whole(weight: Weight) -> float:
        full = weight.elements * engine.compute
        return full if weight.trains else min(full, weight.stored)

    def gradient(weight: Weight) -> float:
        return weight.elements * engine.compute if training.is_active(weight) else 0.0

    written_out = max((w.elements * engine.compute for w in weights if w.quantised), default=0.0)
    waiting = sum(map(gradient, weights)) if training.accumulates else root(gradient) + largest_block(gradient)
    gradients = waiting + max(root(gradient), largest_block(gradient))
    return 2 * largest_block(whole) + root(whole) + gradients + written_out


def _exchange(active: list[Weight], engine: Engine, training: Training) -> float:
    """One tensor at a time, where values are copied and not only pointed to; with CPU memory it has its own buffers."""
    copied = engine.kind in (Kind.FSDP2, Kind.DEEPSPEED) and not training.inner_on_cpu
    if not training.second_set or not copied or _shards_on_cpu(engine):
        return 0.0
    if engine.kind is Kind.DEEPSPEED:
        return FLOAT32 * min(ZERO_CHUNK, _elements(active))
    return max((w.elements * FLOAT32 * engine.weights_share for w in active), default=0.0)


def _step(active: list[Weight], engine: Engine, training: Training) -> float:
    """The optimizer's temporaries; ZeRO also turns its share of the gradients into float32."""
    if engine.offload_optimizer or engine.offload_weights:
        return 0.0
    if engine.kind is Kind.DEEPSPEED:
        temporary = sum(temporary_of(training.optimizer, w.shape) for w in active)
        return (temporary + _elements(active) * FLOAT32) * engine.states_share
    temporaries = (temporary_of(training.optimizer, w.shape, element=_element(w, engine, training)) for w in active)
    return sum(temporaries) * engine.states_share
