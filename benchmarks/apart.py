"""What the plugin must not do, for comparison: LISA with other layers in u than in w, as two runs draw them.

Used by benchmarks/denoising.py and tests/runs/test_learning.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from scalebio_plugin.algorithm.lisa import draw_layers


@contextmanager
def layers_drawn_apart() -> Iterator[None]:
    """Inside, u trains layers of its own draw (another seed), applied while it is in place.

    u holds all parameters of the blocks from the first step on, and each set keeps the optimizer state of its own
    layers alone; nothing else is changed.
    """
    from scalebio_plugin.training.trainer import ScaleBiOTrainer

    begin = ScaleBiOTrainer.begin_step

    def begin_step(self: Any) -> None:
        begin(self)
        learning, parameters = self.learning, self.trainable_parameters()
        learning.inner.follow(parameters)
        for name in set(parameters) - active_inner(self):
            learning.inner.states.pop(name, None)
            learning.inner.gradients[name] = None
        learning.inner.in_place = lambda **_: in_place(self, learning.inner)

    def active_inner(self: Any) -> set[str]:
        layers = self.learning.layers
        period = self.state.global_step // layers.settings.interval
        drawn = draw_layers(len(layers.plan.blocks), layers.settings.active_layers, layers.seed + 1000, period)
        return layers.plan.active(drawn, train_others=layers.settings.train_embeddings)

    @contextmanager
    def in_place(self: Any, inner: Any) -> Iterator[None]:
        mine, before = active_inner(self), {name: p.requires_grad for name, p in inner.parameters.items()}
        inner.exchange()
        try:
            for name, parameter in inner.parameters.items():
                parameter.requires_grad_(name in mine)
            yield
        finally:
            inner.exchange()
            for name, parameter in inner.parameters.items():
                parameter.requires_grad_(before[name])

    ScaleBiOTrainer.begin_step = begin_step
    try:
        yield
    finally:
        ScaleBiOTrainer.begin_step = begin
