"""Numbers watched while a mixture is learned: what is seen in them before it is too late, and said in words."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from ..report.tables import shorten

RECENT = 32  # steps that a sign is judged by
SPIKE = 2.0  # times the recent losses, and SPREADS of their spread above them
SPREADS = 10.0
APART = 0.5  # of the loss, by which the two sets differ
NEAR = 1e-6  # a bound
QUIET = 100  # steps before a sign is told again


def what_is_not_finite(norm: Any, inner_norm: Any) -> str | None:
    """Of the gradients of w and of u in a step, by their norms; None where both are numbers, or there are none."""
    norms = {"the gradient of the model": norm, "the gradient of the inner parameters": inner_norm}
    bad = [what for what, of in norms.items() if of is not None and not math.isfinite(_number(of))]
    return " and ".join(bad) or None


def _number(norm: Any) -> float:
    """Of a norm that FSDP2 may have left sharded."""
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)


def stopped(what: str, step: int) -> str:
    """Why a run ends, in an error, before an optimiser step (from 1) is taken."""
    return (
        f"scalebio: {what} is NaN or infinite in optimiser step {step}, so the run stops before that step is taken; "
        "the checkpoints written so far are untouched. Lower learning_rate, look at that data, or resume from the last "
        "checkpoint"
    )


class Watch:
    """Signs that learning goes wrong, from losses and weights that are there anyway, the same on every rank.

    Of the last RECENT steps of this process: a resume begins anew.

    Args:
        names: Of the sources.
        bounds: (low, high) of each weight.
    """

    def __init__(self, names: Sequence[str], bounds: Sequence[tuple[float, float]]):
        self.bounds = dict(zip(names, bounds, strict=True))
        self.losses: deque[float] = deque(maxlen=RECENT)
        self.apart: deque[float] = deque(maxlen=RECENT)
        self.held = dict.fromkeys(names, 0)  # steps in a row at a bound
        self.told: dict[str, int] = {}

    def signs(self, step: int, loss: float, inner_loss: float) -> list[str]:
        """What is wrong in a step, from 1; each sign once in QUIET steps.

        Args:
            loss, inner_loss: Training losses of w and of u.
        """
        found = [self._spike(loss), self._apart(loss - inner_loss)]
        self.losses.append(loss)
        return self._new(step, {sign: said for sign, said in zip(("spike", "apart"), found, strict=True) if said})

    def pinned(self, step: int, weights: Mapping[str, float]) -> list[str]:
        """Weights that have stayed at a bound which is not both of theirs, nor 0."""
        found = {}
        for name, (low, high) in self.bounds.items():
            ends = [end for end in (low, high) if end > 0.0 and abs(weights[name] - end) < NEAR]
            self.held[name] = self.held[name] + 1 if ends and low < high else 0
            if self.held[name] >= RECENT:
                found[name] = (
                    f"the weight of {shorten(name)} has been at its bound, {ends[0]:.4g}, for {self.held[name]} steps: "
                    "its gaps ask for more than bounds and max_repeats allow"
                )
        return self._new(step, found)

    def _new(self, step: int, found: Mapping[str, str]) -> list[str]:
        new = {sign: said for sign, said in found.items() if step - self.told.get(sign, -QUIET) >= QUIET}
        self.told |= dict.fromkeys(new, step)
        return list(new.values())

    def _spike(self, loss: float) -> str | None:
        if len(self.losses) < RECENT // 2:
            return None
        usual = median(self.losses)
        spread = median(abs(value - usual) for value in self.losses)
        if loss <= max(SPIKE * usual, usual + SPREADS * spread):
            return None
        return f"the training loss is {loss:.3g}, and was about {usual:.3g}; lower learning_rate, or look at that data"

    def _apart(self, difference: float) -> str | None:
        self.apart.append(difference)
        mean = fmean(self.apart)
        if len(self.apart) < RECENT or not abs(mean) > APART * fmean(self.losses):
            return None
        return (
            f"the losses of the model and of the inner parameters differ by {mean:+.3g} on average, more than half of "
            "the loss: the two sets part; raise penalty, or lower learning_rate"
        )
