"""The built-in behaviour, behind the same hooks as anybody's: this module is the extension that is asked last."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..algorithm import lisa, mixture
from ..algorithm.saved import restored
from .spec import Observation, hookimpl


def _evidence(seen: Observation, state: dict[str, Any]) -> tuple[Tensor, Any]:
    before = mixture.EvidentState.of(state) if state else mixture.EvidentState.zeros(len(seen.logits_S))
    return mixture.move_on_evidence(seen.evidence, before, seen.logits_S, seen.learning_rate)


def _exponentiated_gradient(seen: Observation, state: dict[str, Any]) -> tuple[Tensor, Any]:
    before = restored(mixture.ExponentiatedState, state) if state else mixture.ExponentiatedState()
    return mixture.exponentiated_gradient(seen.gap_S, seen.weights_S, before, seen.logits_S, seen.learning_rate)


def _adam(seen: Observation, state: dict[str, Any]) -> tuple[Tensor, Any]:
    before = restored(mixture.AdamState, state) if state else mixture.AdamState.zeros(len(seen.logits_S))
    return mixture.adam(seen.gradient_S, before, seen.logits_S, seen.learning_rate)


RULES = {"evidence": _evidence, "exponentiated_gradient": _exponentiated_gradient, "adam": _adam}


@hookimpl(trylast=True)
def scalebio_update_mixture(
    rule: str, observation: Observation, state: dict[str, Any] | None
) -> tuple[Tensor, dict[str, Any]] | None:
    if rule not in RULES:
        return None
    logits, after = RULES[rule](observation, state or {})
    return logits, vars(after)


@hookimpl(trylast=True)
def scalebio_draw_layers(layers: int, active: int, seed: int, period: int) -> tuple[int, ...]:
    return lisa.draw_layers(layers, active, seed, period)
