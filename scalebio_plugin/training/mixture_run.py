"""The mixture as a run learns it: λ, what it has seen, and in which phase the run is. No trainer in here.

Legend: S sources. All of it is float64 on the CPU, and the same on every rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pluggy
import torch
from torch import Tensor

from ..algorithm.bilevel import GapBaseline, estimate_gap, mixture_gradient
from ..algorithm.certainty import total_variation, verdict, weight_interval
from ..algorithm.evidence import Evidence
from ..algorithm.mixture import EvidentState, logits_of, weights_of
from ..algorithm.prior import drawn_beside_evidence, gap_of_prior
from ..algorithm.saved import refuse_missing, restored
from ..config.block import ScaleBiOSettings
from ..config.names import refuse_other_sources
from ..data.step_plan import SEGMENT
from ..hooks.manager import updated
from ..hooks.spec import Observation
from ..report.history import HistoryRecord
from .mixture_settings import bounds_of, initial_weights, prior_of
from .objective import Objective
from .phase import Phase
from .record import record_of
from .state_file import lost_in_a_file
from .step_losses import StepLosses


class MixtureRun:
    """λ and its history-free state; the trainer feeds it losses, it answers with coefficients.

    Args:
        settings: The `scalebio:` block.
        names: Of the sources.
        share_S: Part of each source in the units of the training set.
        manager: With the hooks that move λ.
        max_steps: Optimiser steps of the run.
        objective: The validation sets.
        most_S: The largest weight that each source can have by its size.
    """

    def __init__(
        self,
        settings: ScaleBiOSettings,
        names: Sequence[str],
        share_S: Tensor,
        manager: pluggy.PluginManager,
        max_steps: int,
        objective: Objective,
        most_S: Tensor,
    ):
        self.settings = settings
        self.names = list(names)
        self.share_S = share_S.to(torch.float64)
        self.manager = manager
        self.objective = objective
        self.last_step = settings.warmup_steps + settings.learn.last(max_steps - settings.warmup_steps)
        self.learn_until = self.last_step  # or earlier, with `learn.until`
        self.bounds = bounds_of(settings, self.names, most_S)
        self.logits_S = logits_of(self._bounded(initial_weights(settings, self.names, self.share_S)))
        self.proportional = settings.mixture_init == "proportional" and (
            self.bounds is None or self.bounds.hold(self.share_S)
        )
        self.rule_state: dict[str, Any] | None = None
        self.baseline = GapBaseline.zeros(len(self.names))
        self.pending_gap_S = torch.zeros(len(self.names), dtype=torch.float64)
        self.pending_steps = 0
        self.first_S = self.weights_S
        self.prior_S = self.first_S if settings.prior is None else prior_of(settings.prior, self.names, self.first_S)
        self.evidence = Evidence.zeros(len(self.names))
        self.alignment_SV: Tensor | None = None  # of a probe in this step
        self.recent_from_S = self.younger_from_S = self.first_S  # weights when evidence.recent and .younger began

    @property
    def weights_S(self) -> Tensor:
        return weights_of(self.logits_S)

    def coefficient_S(self, share_S: Tensor) -> Tensor:  # (S,), float64
        """p_i / share_i; 0 where a source is not drawn.

        In the host's order exactly 1 where the weights still are the shares of the training set that they started from.

        Args:
            share_S: Part of each source in the units that are drawn.
        """
        if self.proportional and self.settings.sampling == "host" and torch.equal(self.weights_S, self.first_S):
            return torch.ones_like(share_S)
        return torch.where(share_S > 0, self.weights_S / share_S, 0.0)

    @property
    def ranges(self) -> list[tuple[float, float]]:
        """The lowest and the highest weight that each source may have."""
        if self.bounds is None:
            return [(0.0, 1.0)] * len(self.names)
        return list(zip(self.bounds.low_S.tolist(), self.bounds.high_S.tolist(), strict=True))

    def phase(self, step: int) -> Phase:
        """Phase of the optimiser step that starts after `step` finished ones."""
        if step < self.settings.warmup_steps:
            return Phase.WARMUP
        return Phase.LEARN if step < self.learn_until else Phase.AFTER

    def observe(self, losses: StepLosses, step: int, learning_rate: float) -> HistoryRecord | None:
        """Take in one step's losses; every `update_interval` steps move λ and return the line for the history.

        Args:
            step: Optimiser step, from 1.
            learning_rate: Of w and u in this step, for the record.
        """
        goal_weights_V = self.objective.weights_V  # of this step
        self.objective.observe(losses.of_validation_sets())
        halved = 0.5 if self.settings.estimator == "symmetric" else 1.0
        difference = (losses.model_S - losses.inner_S) * halved
        gap, self.baseline = estimate_gap(difference, losses.units_S, losses.share_S, self.baseline, total=losses.total)
        self.pending_gap_S = self.pending_gap_S + gap
        self.pending_steps += 1
        if self.pending_steps < self.settings.update_interval:
            return None
        raw = self.pending_gap_S / self.pending_steps
        self.pending_gap_S, self.pending_steps = torch.zeros_like(raw), 0
        gap = self._learn_from(raw)
        self._move(raw, step)
        record = record_of(
            self,
            losses,
            raw_S=raw,
            gap_S=gap,
            goal_weights_V=goal_weights_V,
            step=step,
            learning_rate=learning_rate,
        )
        self.alignment_SV = None  # is told once
        self._end_early(step, record["verdict"])
        return record

    def _end_early(self, step: int, said: str) -> None:
        """With `learn.until`, learning ends with its segment: converged, or no signal can come any more."""
        if self.settings.learn.until is None or self.ends_early:
            return
        learned, most = step - self.settings.warmup_steps, self.last_step - self.settings.warmup_steps
        updates = most // self.settings.update_interval
        hopeless = learned >= most / 2 and not bool(self.evidence.may_become_evidence(updates))
        if said == "converged" or (said == "no signal" and hopeless):
            whole = -(-learned // SEGMENT) * SEGMENT
            self.learn_until = min(self.last_step, self.settings.warmup_steps + whole)

    @property
    def ends_early(self) -> bool:
        return self.learn_until < self.last_step

    def _learn_from(self, raw_S: Tensor) -> Tensor:  # (S,), gaps of this update
        self.evidence, gap = self.evidence.plus(raw_S)
        if self.evidence.younger.count == 0:
            self.recent_from_S, self.younger_from_S = self.younger_from_S, self.weights_S
        return gap

    def _move(self, gap_S: Tensor, step: int) -> None:
        rate, rule, weights = self.settings.rate, self.settings.mixture_update, self.weights_S
        if rate == 0.0:
            return
        by_evidence = rule == "evidence"  # its sums are told from noise, and a prior is none: it draws beside them
        if self.drawn_to is not None and not by_evidence:
            gap_S = gap_S + gap_of_prior(weights, *self.drawn_to, self.bounds)
        observation = Observation(
            logits_S=self.logits_S,
            weights_S=weights,
            gap_S=gap_S,
            gradient_S=mixture_gradient(gap_S, weights, self.settings.penalty),
            learning_rate=rate,
            step=step,
            evidence=self.evidence,
        )
        moved, self.rule_state = updated(self.manager, rule, observation, self.rule_state)
        _refuse_lost(self.rule_state, rule)
        if self.drawn_to is not None and by_evidence:
            prior_S, strength = self.drawn_to
            moved = drawn_beside_evidence(moved, self.logits_S, self.evidence, prior_S, rate * strength, self.bounds)
        self.logits_S = moved
        if self.bounds is not None and not self.bounds.hold(self.weights_S):
            self.logits_S = logits_of(self.bounds.bounded(self.weights_S))

    @property
    def drawn_to(self) -> tuple[Tensor, float] | None:
        """(S,) a prior's weights, and its strength in nats of gap, of which an infinite penalty leaves none."""
        prior, penalty = self.settings.prior, self.settings.penalty
        return None if prior is None or math.isinf(penalty) else (self.prior_S, prior.strength / penalty)

    def verdict(self, interval: tuple[Tensor, Tensor] | None) -> str:
        """See `algorithm.certainty.verdict`."""
        return verdict(
            self.evidence,
            self.logits_S,
            moved=total_variation(self.recent_from_S, self.weights_S),
            away=total_variation(self.first_S, self.weights_S),
            bounded=self._bounded,
            interval=interval,
            prior=self.drawn_to,
        )

    def interval(self) -> tuple[Tensor, Tensor] | None:
        """(S,) ends for each weight; None under a rule whose noise is not known."""
        rule, rate, state = self.settings.mixture_update, self.settings.rate, None
        if rule == "evidence":
            saved = self.rule_state or vars(EvidentState.zeros(len(self.names)))
            if not _is_of_evidence(saved):
                return None  # an extension's
            state = EvidentState.of(saved)
        elif rule != "exponentiated_gradient":
            return None
        return weight_interval(self.weights_S, self.evidence, rate, state)

    def _bounded(self, weights_S: Tensor) -> Tensor:
        return weights_S if self.bounds is None else self.bounds.bounded(weights_S)

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors: all that decides how λ goes on."""
        return {
            "names": self.names,
            "logits": self.logits_S,
            "sampling": self.settings.sampling,
            "rule": self.settings.mixture_update,
            "keep": self.settings.keep,
            "rule_state": self.rule_state,
            "baseline": vars(self.baseline),
            "pending_gap": self.pending_gap_S,
            "pending_steps": self.pending_steps,
            "evidence": asdict(self.evidence),
            "first": self.first_S,
            "recent_from": self.recent_from_S,
            "younger_from": self.younger_from_S,
            "objective": self.objective.state_dict(),
            "learn_until": self.learn_until if self.ends_early else None,
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: Its sources, its sampling, its update rule or the set that it keeps are others than this run's,
                or another version wrote it.
        """
        baseline, evidence = states_of(saved)
        refuse_other_sources(saved["names"], self.names, "the checkpoint")
        before = {"sampling": "host", "keep": "model", **saved}  # what there was before there were these options
        for key, name in (("sampling", "sampling"), ("mixture_update", "rule"), ("keep", "keep")):
            here = getattr(self.settings, key)
            if before[name] != here:
                raise ValueError(
                    f"scalebio: the checkpoint was learned with {key} {before[name]!r}, this run has {here!r}; set "
                    "it back, or start a new output_dir"
                )
        self.logits_S, self.rule_state = saved["logits"], saved["rule_state"]
        self.baseline = baseline
        self.pending_gap_S, self.pending_steps = saved["pending_gap"], saved["pending_steps"]
        if evidence is not None:
            self.evidence = evidence
            if self.rule_state and _is_of_evidence(self.rule_state):  # before sources shared, each moved by its own
                self.rule_state = vars(EvidentState.of({"shared_S": self.evidence.sums()[0], **self.rule_state}))
            self.first_S, self.recent_from_S = saved["first"], saved["recent_from"]
            self.younger_from_S = saved["younger_from"]
            self.objective.load_state_dict(saved["objective"])
            if self.settings.learn.until is not None:
                self.learn_until = min(saved["learn_until"] or self.last_step, self.last_step)


def states_of(saved: Mapping[str, Any]) -> tuple[GapBaseline, Evidence | None]:
    """What of `MixtureRun.state_dict` is not plain; no evidence in what an older version wrote.

    Raises:
        OtherFormat: Another version wrote it, and there is no reading it.
    """
    plain = ("names", "logits", "rule", "rule_state", "baseline", "pending_gap", "pending_steps")
    later = ("first", "recent_from", "younger_from", "objective", "learn_until") if "evidence" in saved else ()
    refuse_missing("the state of the mixture", saved, (*plain, *later))
    evidence = Evidence.of(saved["evidence"]) if "evidence" in saved else None
    return restored(GapBaseline, saved["baseline"]), evidence


def _is_of_evidence(state: Mapping[str, Any]) -> bool:
    """Whether the built-in rule left it, in this version or an earlier one."""
    return "moved_S" in state and state.keys() <= EvidentState.__dataclass_fields__.keys()


def _refuse_lost(state: dict[str, Any], rule: str) -> None:
    lost = list(lost_in_a_file(state))
    if lost:
        raise ValueError(
            f"scalebio.mixture_update: the state of rule {rule!r} holds {'; '.join(lost[:3])}, which no checkpoint "
            "restores; keep plain values and tensors in it"
        )
