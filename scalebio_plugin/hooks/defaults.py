"""The built-in behaviour, behind the same hooks as anybody's."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..algorithm import lisa, mixture
from .spec import Observation, hookimpl


class AdamOnLogits:
    """`mixture_update: adam`, the paper's."""

    @hookimpl(trylast=True)
    def scalebio_update_mixture(
        self, rule: str, observation: Observation, state: dict[str, Any] | None
    ) -> tuple[Tensor, dict[str, Any]] | None:
        if rule != "adam":
            return None
        before = mixture.AdamState(**state) if state else mixture.AdamState.zeros(len(observation.logits_S))
        logits, after = mixture.adam(observation.gradient_S, before, observation.logits_S, observation.learning_rate)
        return logits, vars(after)


class MoveOnEvidence:
    """`mixture_update: evidence`, the default."""

    @hookimpl(trylast=True)
    def scalebio_update_mixture(
        self, rule: str, observation: Observation, state: dict[str, Any] | None
    ) -> tuple[Tensor, dict[str, Any]] | None:
        if rule != "evidence":
            return None
        before = mixture.EvidentState.of(state) if state else mixture.EvidentState.zeros(len(observation.logits_S))
        logits, after = mixture.move_on_evidence(
            observation.evidence, before, observation.logits_S, observation.learning_rate
        )
        return logits, vars(after)


class ExponentiatedGradient:
    """`mixture_update: exponentiated_gradient`."""

    @hookimpl(trylast=True)
    def scalebio_update_mixture(
        self, rule: str, observation: Observation, state: dict[str, Any] | None
    ) -> tuple[Tensor, dict[str, Any]] | None:
        if rule != "exponentiated_gradient":
            return None
        before = mixture.ExponentiatedState(**state or {})
        logits, after = mixture.exponentiated_gradient(
            observation.gap_S, observation.weights_S, before, observation.logits_S, observation.learning_rate
        )
        return logits, vars(after)


class UniformLayers:
    """LISA's draw: uniform, without replacement."""

    @hookimpl(trylast=True)
    def scalebio_draw_layers(self, layers: int, active: int, seed: int, period: int) -> tuple[int, ...]:
        return lisa.draw_layers(layers, active, seed, period)


RULES = ("evidence", "exponentiated_gradient", "adam")
BUILT_IN = (AdamOnLogits(), MoveOnEvidence(), ExponentiatedGradient(), UniformLayers())
