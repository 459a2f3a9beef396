"""The mixture as a run learns it: λ, what it has seen, and in which phase the run is. No trainer in here.

Legend: S sources. All of it is float64 on the CPU, and the same on every rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

import pluggy
import torch
from torch import Tensor

from ..algorithm.bilevel import GapBaseline, estimate_gap, mixture_gradient
from ..algorithm.certainty import total_variation, verdict, weight_interval
from ..algorithm.evidence import LEAST_UPDATES, Evidence, precision_weights
from ..algorithm.mixture import EvidentState, logits_of, pace_on_evidence, towards_prior, weights_of
from ..algorithm.saved import refuse_missing, restored
from ..config.block import ScaleBiOSettings
from ..config.names import refuse_other_sources
from ..data.step_plan import SEGMENT
from ..hooks.manager import updated
from ..hooks.spec import Observation
from ..report.history import HistoryRecord
from .mixture_settings import bounds_of, initial_weights, prior_of
from .objective import Objective, weighted_mean
from .state_file import lost_in_a_file


class Phase(Enum):
    """WARMUP: w alone on the mixture. LEARN: the bilevel step. AFTER: λ is final, an ordinary run on the mixture."""

    WARMUP = "warmup"
    LEARN = "learn"
    AFTER = "after"

    @property
    def in_words(self) -> str:
        return {
            Phase.WARMUP: "w trains alone",
            Phase.LEARN: "learning goes on",
            Phase.AFTER: "the mixture is learned, the model trains on it",
        }[self]


@dataclass(frozen=True)
class StepLosses:
    """Losses of one optimiser step, summed over its global accumulated batch.

    Attributes:
        model_S, inner_S: (S,), Σ unit · loss at w and at u.
        units_S: (S,), n_i.
        share_S: (S,), part of each source in the units that are drawn.
        total: (), N of equation (1) in `algorithm.bilevel`.
        train_loss: L2(λ, w) of the step.
        val_V, val_units_V: (V,), Σ loss of each validation set at w, and its targets.
    """

    model_S: Tensor
    inner_S: Tensor
    units_S: Tensor
    share_S: Tensor
    total: Tensor
    train_loss: float
    val_V: Tensor
    val_units_V: Tensor

    def of_validation_sets(self) -> list[float | None]:
        """The mean loss of each; None where the batch held none of it."""
        pairs = zip(self.val_V.tolist(), self.val_units_V.tolist(), strict=True)
        return [total / units if units > 0 else None for total, units in pairs]


class MixtureRun:
    """λ and its history-free state; the trainer feeds it losses, it answers with coefficients.

    Args:
        settings: The `scalebio:` block.
        names: Of the sources.
        share_S: Part of each source in the units of the training set.
        manager: With the hooks that move λ.
        max_steps: Optimiser steps of the run.
        objective: The validation sets.
        most_S: The largest weight that each source can have by its size; None: 1.
    """

    def __init__(
        self,
        settings: ScaleBiOSettings,
        names: Sequence[str],
        share_S: Tensor,
        manager: pluggy.PluginManager,
        max_steps: int,
        objective: Objective,
        most_S: Tensor | None = None,
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
    def ends(self) -> list[tuple[float, float]]:
        """The bounds of each weight by itself."""
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
        record = self._record(losses, goal_weights_V, raw, gap, step, learning_rate)
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
        rate = self.settings.rate
        if rate == 0.0:
            return
        weights = self.weights_S
        gap_S = gap_S + self._pull_of_prior()
        observation = Observation(
            logits_S=self.logits_S,
            weights_S=weights,
            gap_S=gap_S,
            gradient_S=mixture_gradient(gap_S, weights, self.settings.penalty),
            learning_rate=rate,
            step=step,
            evidence=self.evidence,
        )
        rule = self.settings.mixture_update
        moved, self.rule_state = updated(self.manager, rule, observation, self.rule_state)
        _refuse_lost(self.rule_state, rule)
        self.logits_S = self._drawn_to_prior(moved, self.logits_S, rate)
        if self.bounds is not None and not self.bounds.hold(self.weights_S):
            self.logits_S = logits_of(self.bounds.bounded(self.weights_S))

    def _pull_of_prior(self) -> Tensor:  # (S,), nats
        """What `prior` adds to the gaps: τ/α log(p / prior), its strength τ in nats of validation loss.

        Where a bound bars its way nothing, or one at 0 would outweigh all gaps in their root mean square. Not for the
        evidence rule: no part of it is noise that a sum of gaps would have to tell it from.
        """
        if self.drawn_to is None or self.settings.mixture_update == "evidence":
            return torch.zeros_like(self.logits_S)
        prior_S, strength = self.drawn_to
        distance_S = (self.weights_S / prior_S).log()
        return strength * (distance_S - self._centre(self.weights_S, distance_S, self.weights_S))

    def _centre(self, weights_S: Tensor, distance_S: Tensor, share_S: Tensor) -> Tensor:  # (S,)
        """The distance from a prior at which it draws nowhere: `share_S`'s mean, for softmax does not see it."""
        if self.bounds is None:
            return (share_S * distance_S).sum().expand_as(share_S)
        return self.bounds.centre(weights_S, distance_S, share_S)

    @property
    def drawn_to(self) -> tuple[Tensor, float] | None:
        """(S,) a prior's weights, and its strength in nats of gap, of which an infinite penalty leaves none."""
        prior, penalty = self.settings.prior, self.settings.penalty
        return None if prior is None or math.isinf(penalty) else (self.prior_S, prior.strength / penalty)

    def _drawn_to_prior(self, logits_S: Tensor, before_S: Tensor, rate: float) -> Tensor:  # (S,)
        """The same under the evidence rule, beside it, and as fast as it moves each source."""
        moving = float(self.evidence.scale_S.min()) > 0.0
        if self.drawn_to is None or self.settings.mixture_update != "evidence" or not moving:
            return logits_S
        prior_S, strength = self.drawn_to
        share_S = precision_weights(self.evidence.spread_S, self.evidence.updates)
        distance_S = before_S - prior_S.log()
        centre_S = self._centre(weights_of(before_S), distance_S, share_S)
        drawn_S = towards_prior(logits_S - centre_S, prior_S, rate * strength * pace_on_evidence(self.evidence))
        return drawn_S + (centre_S - centre_S.max())

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

    def _record(
        self,
        losses: StepLosses,
        goal_weights_V: Tensor,
        raw_S: Tensor,
        gap_S: Tensor,
        step: int,
        learning_rate: float,
    ) -> HistoryRecord:
        def means(sums_S: Tensor) -> dict[str, float | None]:
            pairs = zip(sums_S.tolist(), losses.units_S.tolist(), strict=True)
            return self._named([total / units if units > 0 else None for total, units in pairs])

        interval, recent = self.interval(), self.evidence.recent
        said, val_losses = self.verdict(interval), losses.of_validation_sets()
        return {
            "step": step,
            "weights": self._named(self.weights_S.tolist()),
            "interval": None
            if interval is None
            else self._named([list(ends) for ends in zip(*map(Tensor.tolist, interval), strict=True)]),
            "loss": means(losses.model_S),
            "inner_loss": means(losses.inner_S),
            "pull": self._named(raw_S.tolist()),
            "gap": self._named(gap_S.tolist()),
            "gap_mean": self._named(recent.mean().tolist()),
            "gap_se": self._named(recent.error().tolist()) if recent.count >= LEAST_UPDATES else None,
            "evidence": self._named(self.evidence.peak_S.tolist()),
            "verdict": said,
            "told_at": self._told_at(step) if said == "no signal" else None,
            "units": self._named([round(units) for units in losses.units_S.tolist()]),
            "train_loss": losses.train_loss,
            "val_loss": weighted_mean(val_losses, goal_weights_V),
            "val_losses": self.objective.named(val_losses),
            "val_weights": self.objective.named(goal_weights_V.tolist()),
            "goals": self._goals(),
            "learning_rate": learning_rate,
        }

    def _told_at(self, step: int) -> dict[str, int] | None:
        """The source that is nearest to being told from noise, and the optimiser step at which it would be."""
        updates, source = self.evidence.evident_after().min(0)
        if not math.isfinite(float(updates)):
            return None
        return {self.names[int(source)]: step + (int(updates) - self.evidence.updates) * self.settings.update_interval}

    def _goals(self) -> dict[str, dict[str, float | None]] | None:
        """Of the probe in this step, which is told once."""
        found, self.alignment_SV = self.alignment_SV, None
        if found is None:
            return None
        rows = [[value if math.isfinite(value) else None for value in row] for row in found.tolist()]
        return self._named([self.objective.named(row) for row in rows])

    def _named(self, values: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(self.names, values, strict=True))

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
        sampling = saved.get("sampling", "host")  # what there was before the option
        if sampling != self.settings.sampling:
            raise ValueError(
                f"scalebio: the checkpoint was learned with sampling {sampling!r}, this run has "
                f"{self.settings.sampling!r}: its batches cannot go on from there; set scalebio.sampling back, or "
                "start a new output_dir"
            )
        if saved["rule"] != self.settings.mixture_update:
            raise ValueError(
                f"scalebio: the checkpoint was learned with mixture_update {saved['rule']!r}, this run has "
                f"{self.settings.mixture_update!r}; set it back, or start a new output_dir"
            )
        kept = saved.get("keep", "model")  # 0.1.0 wrote none
        if kept != self.settings.keep:
            raise ValueError(
                f"scalebio: the checkpoint was written with keep: {kept}, this run has keep: {self.settings.keep}; set "
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
            self.learn_until = saved["learn_until"] or self.learn_until


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
