"""Hook specifications, prefix `scalebio_`. Implement one with `from scalebio_plugin.hooks import hookimpl`.

The training step, drawn once. One optimiser step of k accumulated micro-batches and one validation batch:

    every `lisa.interval` steps:
        layers = scalebio_draw_layers(...)           # the same in both sets; state of the others is dropped
    every `probe_interval` updates:
        backward  L2_i(w), L1_j(w)                   # one by one; cosines are kept, gradients are not
    with u in place of w:                            # first, so that its gradients are gone before w's come
        for each micro-batch:
            backward  L2(λ, u)
        clip, step u with the host's optimizer
    for each micro-batch:                            # w: the model; the same dropout masks
        backward  L2(λ, w)
    backward  L1(w) / α                              # the validation batch
    every `update_interval` steps:
        λ, state = scalebio_update_mixture(...)      # from the two vectors of losses, no autograd
        scalebio_mixture_updated(record)
    clip, step w, step the schedule                  # the host

after the last learning step the model is w or, with `keep: inner`, u; the other set is dropped.
before the first step: scalebio_run_started(run); after the last: scalebio_run_ended(document).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from torch import Tensor

    from ..algorithm.evidence import Evidence

PROJECT = "scalebio"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@dataclass(frozen=True)
class Observation:
    """What one update of λ sees.

    Attributes:
        logits_S, weights_S: (S,), float64 on the CPU, before the update.
        gap_S: (S,), estimate of g_i = L2_i(w) − L2_i(u), in nats; the mean over the steps since the last update. With
            `prior`, what that adds to it, except under `evidence`, which is drawn to the prior afterwards.
        gradient_S: (S,), α p ⊙ (g − p·g).
        learning_rate: `mixture_learning_rate`, or its default for the rule.
        step: Optimiser step, from 1.
        evidence: What all gaps so far say, this update's included.
    """

    logits_S: Tensor
    weights_S: Tensor
    gap_S: Tensor
    gradient_S: Tensor
    learning_rate: float
    step: int
    evidence: Evidence


@dataclass(frozen=True)
class RunFacts:
    """A run, as known before its first step.

    Attributes:
        sources: Names, in the order of `datasets:`.
        tokens, sequences: Target tokens, and sequences, of each source in the training set.
        settings: The `scalebio:` block with its defaults.
        steps: Optimiser steps of the whole run.
        seed: The host's.
    """

    sources: tuple[str, ...]
    tokens: tuple[int, ...]
    sequences: tuple[int, ...]
    settings: Mapping[str, Any]
    steps: int
    seed: int


@hookspec(firstresult=True)
def scalebio_update_mixture(
    rule: str, observation: Observation, state: dict[str, Any] | None
) -> tuple[Tensor, dict[str, Any]] | None:
    """Move λ. Called every `update_interval` steps on every rank, with the same arguments everywhere.

    And once before the model loads, for a rule that is not built in: at gaps of 0, to see whether anyone answers.

    Args:
        rule: `mixture_update` of the config. Return None if it is not yours.
        observation: See there.
        state: What the last call returned, None at first. Plain values and tensors: it goes into checkpoints.

    Returns:
        The new logits (S,), finite, and the new state. Bounds are applied afterwards.
    """


@hookspec(firstresult=True)
def scalebio_draw_layers(layers: int, active: int, seed: int, period: int) -> tuple[int, ...] | None:
    """Choose the blocks that train in a period. A function of its arguments alone: ranks and resumes must agree.

    Args:
        layers: Transformer blocks of the model.
        active: `lisa.active_layers`.
        seed: The host's.
        period: Number of the period, from 0.

    Returns:
        Indices of the blocks, ascending, `active` of them.
    """


@hookspec
def scalebio_run_started(run: RunFacts) -> None:
    """Called once on every rank before the first step, also of a resumed run."""


@hookspec
def scalebio_mixture_updated(record: Mapping[str, Any]) -> None:
    """Called on the main process after every update of λ, with the line that goes into history.jsonl."""


@hookspec
def scalebio_run_ended(document: Mapping[str, Any]) -> None:
    """Called on the main process after the last step, with what was written to mixture.json.

    The model is saved only afterwards: an error in here is logged and does not end the run.
    """
