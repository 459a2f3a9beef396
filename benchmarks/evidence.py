"""What the rules for λ make of noise and of signal, simulated: `python -m benchmarks.evidence [false_moves power ...]`.

Thousands of runs at a time go through the functions that a run goes through (`scalebio_plugin.algorithm`), on gaps
that are drawn instead of measured: a true gap for each source, in standard deviations of the noise, and noise of one
deviation with a given lag-1 autocorrelation ρ. Minutes on one core. Results: benchmarks/evidence.md.

Legend: R runs, S sources, N updates.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from unittest.mock import patch

import torch
from torch import Tensor

from scalebio_plugin.algorithm import certainty, evidence, mixture, moments
from scalebio_plugin.algorithm.bilevel import mixture_gradient
from scalebio_plugin.algorithm.moments import Moments

torch.set_num_threads(1)

STRETCH = 16  # updates of a recorded run that stay together when it is shuffled


class Evident:
    """`mixture_update: evidence`."""

    rate = 0.05

    def __init__(self, runs: int, sources: int, start: Tensor | None = None):
        self.first = torch.zeros(runs, sources, dtype=torch.float64) if start is None else start.expand(runs, -1).log()
        self.logits = self.first
        self.state = mixture.EvidentState.zeros(runs, sources)
        self.ever = torch.zeros(runs, dtype=torch.bool)
        self.known = evidence.Evidence.zeros(runs, sources)

    def step(self, gap: Tensor) -> Tensor:  # (R, S) -> (R, S) weights
        self.known, _ = self.known.plus(gap)
        self.logits, self.state = mixture.move_on_evidence(self.known, self.state, self.logits, self.rate)
        self.ever |= (self.known.ratio().abs() > 1).any(-1)
        return torch.softmax(self.logits, -1)


class Exponentiated:
    """`mixture_update: exponentiated_gradient`, over runs."""

    rate = 0.03

    def __init__(self, runs: int, sources: int, start: Tensor | None = None):
        self.first = torch.zeros(runs, sources, dtype=torch.float64) if start is None else start.expand(runs, -1).log()
        self.logits, self.square, self.updates = self.first, torch.zeros(runs, 1, dtype=torch.float64), 0

    def step(self, gap: Tensor) -> Tensor:
        weights = torch.softmax(self.logits, -1)
        centred = gap - (weights * gap).sum(-1, keepdim=True)
        self.updates += 1
        self.square = 0.99 * self.square + 0.01 * (centred**2).mean(-1, keepdim=True)
        scale = (self.square / (1 - 0.99**self.updates)).sqrt()
        self.logits = self.logits - self.rate * torch.where(scale > 0, centred / scale, 0.0)
        return torch.softmax(self.logits, -1)


class Adam:
    """`mixture_update: adam`, over runs."""

    rate = 0.01

    def __init__(self, runs: int, sources: int, start: Tensor | None = None):
        self.first = torch.zeros(runs, sources, dtype=torch.float64) if start is None else start.expand(runs, -1).log()
        self.logits, self.state = self.first, mixture.AdamState(0, torch.zeros_like(self.first), self.first * 0)

    def step(self, gap: Tensor) -> Tensor:
        weights = torch.softmax(self.logits, -1)
        gradient = 10 * weights * (gap - (weights * gap).sum(-1, keepdim=True))
        self.logits, self.state = mixture.adam(gradient, self.state, self.logits, self.rate)
        return torch.softmax(self.logits, -1)


RULES = {"evidence": Evident, "exponentiated gradient": Exponentiated, "adam (the paper's)": Adam}
Rule = Evident | Exponentiated | Adam


class Noise:
    """One standard deviation of it, an update at a time: AR(1), or of another kind."""

    def __init__(self, kind: str, rho: float, runs: int, sources: int, seed: int):
        self.kind, self.rho, self.shape = kind, rho, (runs, sources)
        self.generator = torch.Generator().manual_seed(seed)
        self.state, self.updates = self._white(), 0

    def _white(self) -> Tensor:
        return torch.randn(self.shape, generator=self.generator, dtype=torch.float64)

    def step(self) -> Tensor:  # (R, S)
        self.updates += 1
        rho = 0.97 if self.kind == "slow" else self.rho
        self.state = rho * self.state + math.sqrt(1 - rho**2) * self._white()
        if self.kind == "slow":  # AR(.97) of half the deviation under white noise
            return (self._white() + 0.5 * self.state) / math.sqrt(1.25)
        if self.kind == "heavy":  # Student's t with three degrees of freedom
            chi = torch.stack([self._white() ** 2 for _ in range(3)]).mean(0)
            return self._white() / chi.sqrt() / math.sqrt(3)
        if self.kind == "shrinking":  # tenfold over a thousand updates
            return self.state * 10 ** (-self.updates / 1000)
        if self.kind == "one loud":
            return torch.cat([self.state[:, :-1], 10 * self.state[:, -1:]], -1)
        return self.state


def total_variation(first: Tensor, second: Tensor) -> Tensor:  # (R,)
    return (first - second).abs().sum(-1) / 2


def false_moves(runs: int) -> Iterator[str]:
    """Pure noise: how far the mixture walks."""
    yield "Total variation from the start on pure noise, 90th percentile after 100 / 300 / 1,000 updates, and the part"
    yield f"of the runs in which something was beyond the boundary until then ({runs} runs):\n"
    yield "| S | noise | " + " | ".join(RULES) + " | beyond the boundary |"
    yield "|---|---|" + "---|" * (len(RULES) + 1)
    kinds = [("AR(1)", 0.0), ("AR(1)", 0.5), ("AR(1)", 0.9), ("slow", 0.0), ("heavy", 0.0), ("shrinking", 0.5)]
    for sources in (3, 10, 40):
        for kind, rho in [*kinds, ("one loud", 0.5)]:
            cells, beyond = [], []
            for rule in RULES.values():
                noise, run, far = Noise(kind, rho, runs, sources, seed=1), rule(runs, sources), []
                start = torch.softmax(run.first, -1)
                for update in range(1, 1001):
                    weights = run.step(noise.step())
                    if update in (100, 300, 1000):
                        far.append(float(total_variation(weights, start).quantile(0.9)))
                        if isinstance(run, Evident):
                            beyond.append(float(run.ever.double().mean()))
                cells.append(" ".join(f"{value:.2f}" for value in far))
            yield (
                f"| {sources} | {kind} {f'ρ {rho}' if kind == 'AR(1)' else ''} | "
                + " | ".join(cells)
                + (" | " + " ".join(f"{part:.1%}" for part in beyond) + " |")
            )


def updates_until(rule: type[Rule], runs: int, sources: int, signal: float, rho: float, part: float = 0.95) -> Tensor:
    """(R,) updates until the one good source is `part` of the way from the start to all of the weight."""
    noise, run, most = Noise("AR(1)", rho, runs, sources, seed=2), rule(runs, sources), 4000
    true = torch.zeros(sources, dtype=torch.float64)
    true[0] = -signal
    target = 1 / sources + part * (1 - 1 / sources)
    when = torch.full((runs,), most, dtype=torch.float64)
    for update in range(1, most):
        reached = run.step(true + noise.step())[:, 0] >= target
        when = torch.where(reached & (when == most), torch.tensor(float(update)).double(), when)
        if bool((when < most).all()):
            break
    return when


def inflation_of(rho: float) -> float:
    """F of AR(1)."""
    return (1 + rho) / (1 - rho)


def told(rho: float) -> AbstractContextManager[object]:
    """The evidence rule knows how correlated the noise is, and need not find out."""

    def inflation(moments: Moments, doubted: bool = False) -> Tensor:
        return torch.full_like(moments.sum_S[..., :1], inflation_of(rho))

    return patch.object(Moments, "inflation", inflation)


def fewest(sources: int, signal: float, rho: float, moves: float = 0.1) -> float:
    """Updates below which no rule can have found the source in half of the runs and another, on noise, in `moves`.

    By Neyman and Pearson, for a rule that knows the signal, the noise and when it will be asked. On noise each source
    is taken equally often. A common shift of all gaps is not seen, which leaves 1 − 1/S of the information.
    """
    return inflation_of(rho) * (NormalDist().inv_cdf(1 - moves / sources) / signal) ** 2 / (1 - 1 / sources)


def power(runs: int) -> Iterator[str]:
    """One good source: how soon it has the weight."""
    yield f"Updates until one good source of S is 95% of the way to all of the weight, median of {runs} runs; in"
    yield "brackets the evidence rule's over the exponentiated gradient's. Told: the evidence rule, if it knew ρ."
    yield "Fewest: what any rule needs that does so on noise in a tenth of the runs:\n"
    yield "| S | ρ | signal (deviations) | " + " | ".join(RULES) + " | told | fewest |"
    yield "|---|---|---|" + "---|" * (len(RULES) + 2)
    for sources in (3, 10, 40):
        for rho in (0.0, 0.5, 0.9):
            for signal in (0.2, 0.5, 1.0):
                arms = [*((rule, nullcontext()) for rule in RULES.values()), (Evident, told(rho))]
                found = [_median_until(rule, within, runs, sources, signal, rho) for rule, within in arms]
                cells = [f"{value:.0f}" for value in [*found, fewest(sources, signal, rho)]]
                if len(RULES) > 1:
                    cells[0] += f" ({found[0] / found[1]:.2f})"
                yield f"| {sources} | {rho} | {signal} | " + " | ".join(cells) + " |"


def _median_until(rule: type[Rule], within: AbstractContextManager[object], runs: int, *case: float) -> float:
    with within:
        return float(updates_until(rule, runs, int(case[0]), *case[1:]).median())


def turning(runs: int) -> Iterator[str]:
    """The best source turns worst: how soon it is below its start again."""
    yield "A best source that turns worst after so many updates: updates until it is below its start again:\n"
    yield "| S | signal | turns after | " + " | ".join(RULES) + " |"
    yield "|---|---|---|" + "---|" * len(RULES)
    for sources, signal, turn in ((3, 0.5, 300), (3, 1.0, 300), (10, 0.5, 300), (3, 0.5, 1000), (10, 1.0, 1000)):
        cells = []
        for rule in RULES.values():
            noise, run = Noise("AR(1)", 0.0, runs, sources, seed=3), rule(runs, sources)
            true = torch.zeros(sources, dtype=torch.float64)
            true[0] = -signal
            when = torch.full((runs,), 6000.0, dtype=torch.float64)
            for update in range(1, turn + 3000):
                weights = run.step((true if update <= turn else -true) + noise.step())
                below = (weights[:, 0] < 1 / sources) & (when == 6000.0)
                if update > turn:
                    when = torch.where(below, torch.tensor(float(update - turn)).double(), when)
                    if bool((when < 6000).all()):
                        break
            cells.append(f"{float(when.median()):.0f}")
        yield f"| {sources} | {signal} | {turn} | " + " | ".join(cells) + " |"


def interior(runs: int) -> Iterator[str]:
    """An optimum inside the simplex: how near to it, and what the verdict and the intervals say there."""
    yield "An optimum at .6 .3 .1, gaps κ (log p − log p*) deviations: total variation from it, mean of the runs after"
    yield "300 / 1,000 / 3,000 updates (the start is .27 away):\n"
    yield "| κ | ρ | " + " | ".join(RULES) + " |"
    yield "|---|---|" + "---|" * len(RULES)
    best = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    for kappa, rho in ((2.0, 0.0), (0.5, 0.0), (0.5, 0.9), (0.1, 0.0)):
        cells = []
        for rule in RULES.values():
            noise, run, far = Noise("AR(1)", rho, runs, 3, seed=4), rule(runs, 3), []
            weights = torch.softmax(run.logits, -1)
            for update in range(1, 3001):
                weights = run.step(kappa * (weights.log() - best.log()) + noise.step())
                if update in (300, 1000, 3000):
                    far.append(float(total_variation(weights, best).mean()))
            cells.append(" ".join(f"{value:.2f}" for value in far))
        yield f"| {kappa} | {rho} | " + " | ".join(cells) + " |"


def coverage(runs: int) -> Iterator[str]:
    """How often the 95% intervals cover."""
    yield f"Coverage of the 95% intervals, {runs} runs: of a source's mean gap (its true mean within 1.96 standard"
    yield "errors), and of a weight: of what the rule makes of the expected sums in the place of the sums; κ: gaps that"
    yield "answer to the weights, of the optimum:\n"
    yield "| S | signal | ρ | gap, after 50 / 100 / 300 / 600 updates | weight |"
    yield "|---|---|---|---|---|"
    cases = [(3, signal, rho) for signal in ("0", "0.2", "0.5", "κ 0.5") for rho in (0.0, 0.5, 0.9)]
    for sources, signal, rho in [*cases, (10, "0.2", 0.0), (10, "0.5", 0.5), (40, "0.5", 0.0)]:
        of_gaps, of_weights = _covered(sources, signal, rho, runs)
        cells = (" ".join(f"{part:.1%}" for part in parts) or "–" for parts in (of_gaps, of_weights))
        yield f"| {sources} | {signal} | {rho} | " + " | ".join(cells) + " |"


def _covered(sources: int, signal: str, rho: float, runs: int) -> tuple[list[float], list[float]]:
    noise, run, expected = Noise("AR(1)", rho, runs, sources, seed=5), Evident(runs, sources), Expected(runs, sources)
    best = torch.linspace(1, 2, sources).double().softmax(-1)
    true = torch.zeros(sources, dtype=torch.float64)
    true[0] = 0.0 if signal.startswith("κ") else -float(signal)
    weights, of_gaps, of_weights = torch.softmax(run.logits, -1), [], []
    for update in range(1, 601):
        gap = 0.5 * (weights.log() - best.log()) if signal.startswith("κ") else true
        share = evidence.precision_weights(run.known.spread_S, update - 1)
        centred = gap - (share * gap).sum(-1, keepdim=True)
        weights = run.step(gap + noise.step())
        without = best if signal.startswith("κ") else expected.step(run.known, centred)
        if update in (50, 100, 300, 600):
            low, high = certainty.weight_interval(weights, run.known, run.rate, run.state)
            of_weights.append(float(((without >= low - 1e-9) & (without <= high + 1e-9)).double().mean()))
            if not signal.startswith("κ"):
                recent = run.known.recent
                of_gaps.append(float(((recent.mean() - centred).abs() <= 1.96 * recent.error()).double().mean()))
    return of_gaps, of_weights


class Expected:
    """The evidence rule on what a run's sums would be without noise, with the run's own errors and scale."""

    def __init__(self, runs: int, sources: int):
        self.total = self.logits = torch.zeros(runs, sources, dtype=torch.float64)
        self.state = mixture.EvidentState.zeros(runs, sources)

    def step(self, known: evidence.Evidence, gap: Tensor) -> Tensor:
        expected = gap / known.scale_S
        self.total = self.total + expected
        sums = _Sums(known, self.total, replace(known.standard, lately_LS=expected[None]))
        self.logits, self.state = mixture.move_on_evidence(sums, self.state, self.logits, 0.05)  # type: ignore[arg-type]
        return torch.softmax(self.logits, -1)


class _Sums:
    def __init__(self, known: evidence.Evidence, total: Tensor, standard: Moments):
        self.known, self.total, self.updates, self.standard = known, total, known.updates, standard
        self.per_nat_S = known.per_nat_S

    def sums(self) -> tuple[Tensor, Tensor]:
        return self.total, self.known.sums()[1]


def verdicts(runs: int) -> Iterator[str]:
    """How often each verdict is given."""
    yield f"Verdicts after 100 / 300 / 1,000 updates, part of {runs} runs (no signal, still moving, converged):\n"
    yield "| S | gaps | ρ | 100 | 300 | 1,000 |"
    yield "|---|---|---|---|---|---|"
    cases = [(3, "none"), (10, "none"), (3, "one source by .2"), (3, "one source by .5"), (10, "one source by .5")]
    for sources, kind in [*cases, (3, "optimum inside, κ 0.5"), (3, "optimum inside, κ 2")]:
        for rho in (0.0, 0.5, 0.9):
            cells = _verdicts(sources, kind, rho, runs)
            yield f"| {sources} | {kind} | {rho} | " + " | ".join(cells) + " |"
    for sources in (3, 10):
        yield f"| {sources} | none | slow | " + " | ".join(_verdicts(sources, "none", 0.0, runs, "slow")) + " |"


class Watched:
    """Runs of the evidence rule, and what is said of each."""

    def __init__(self, runs: int, sources: int, rho: float, seed: int, noise: str = "AR(1)"):
        self.noise, self.run = Noise(noise, rho, runs, sources, seed), Evident(runs, sources)
        self.weights = self.first = self._recent = self._younger = torch.softmax(self.run.first, -1)

    def step(self, gap: Tensor) -> Tensor:  # (R, S) -> (R, S) weights
        before, self.weights = self.weights, self.run.step(gap + self.noise.step())
        if self.run.known.younger.count == 0:
            self._recent, self._younger = self._younger, before
        return self.weights

    def words(self, which: Sequence[int]) -> list[str]:
        """The verdicts on these runs."""
        low, high = certainty.weight_interval(self.weights, self.run.known, self.run.rate, self.run.state)
        return [self._word(run, (low[run], high[run])) for run in which]

    def _word(self, run: int, interval: tuple[Tensor, Tensor]) -> str:
        moved, away = (float(total_variation(start[run], self.weights[run])) for start in (self._recent, self.first))
        how = {"moved": moved, "away": away, "interval": interval}
        return certainty.verdict(_one(self.run.known, run), self.run.logits[run], bounded=lambda p: p, **how)


INSIDE = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)


def _gap_of(kind: str, weights: Tensor) -> Tensor:
    """(S,) or (R, S) true gaps: "none", "one source by .5", "optimum inside, κ 2"."""
    if "inside" in kind:
        return float(kind.split()[-1]) * (weights.log() - INSIDE.log())
    true = torch.zeros(weights.shape[-1], dtype=torch.float64)
    true[0] = -float(kind.split()[-1]) if kind.startswith("one") else 0.0
    return true


def _verdicts(sources: int, kind: str, rho: float, runs: int, noise: str = "AR(1)") -> list[str]:
    watched, cells = Watched(runs, sources, rho, 6, noise), []
    for update in range(1, 1001):
        watched.step(_gap_of(kind, watched.weights))
        if update in (100, 300, 1000):
            found = watched.words(range(runs))
            parts = [found.count(name) / runs for name in ("no signal", "still moving", "converged")]
            cells.append(" ".join(f"{part:.1%}" for part in parts))
    return cells


def settling(runs: int) -> Iterator[str]:
    """The first `converged`, and whether it was right."""
    yield f"Looked at every 16 updates up to 600, part of {runs} runs that is called converged, in brackets too early"
    yield "(less than 0.9; inside, more than .15 from the optimum):\n"
    yield "| S | gaps | ρ | converged |"
    yield "|---|---|---|---|"
    cases = [(3, f"optimum inside, κ {size}", rho) for size in (0.5, 2) for rho in (0.0, 0.5)]
    cases += [(3, "one source by 1", 0.0), (3, "one source by 1", 0.5)]
    for sources, kind, rho in [*cases, (3, "one source by .5", 0.5), (10, "one source by .5", 0.5)]:
        ended = settled(sources, kind, rho, runs)
        yield f"| {sources} | {kind} | {rho} | {len(ended) / runs:.0%} ({sum(ended.values()) / runs:.0%}) |"


def settled(sources: int, kind: str, rho: float, runs: int) -> dict[int, bool]:
    """Of each run that was called converged, whether that was too early."""
    watched, ended = Watched(runs, sources, rho, seed=11), dict[int, bool]()
    for update in range(1, 601):
        weights = watched.step(_gap_of(kind, watched.weights))
        if update % 16 == 0:
            far = total_variation(weights, INSIDE) > 0.15 if "inside" in kind else weights[:, 0] < 0.9
            open_runs = [run for run in range(runs) if run not in ended]
            said = zip(open_runs, watched.words(open_runs), strict=True)
            ended |= {run: bool(far[run]) for run, word in said if word == "converged"}
    return ended


def early(runs: int) -> Iterator[str]:
    """What a short run finds."""
    within = (80, 110, 150, 200)
    yield f"A gap of half a deviation in white noise: part of {runs} runs in which the mixture has moved by 0.02 within"
    yield "so many updates:\n"
    yield f"| S | {' | '.join(map(str, within))} |"
    yield "|---" * (1 + len(within)) + "|"
    for sources in (3, 10, 40):
        watched, moved, cells = Watched(runs, sources, 0.0, seed=3), torch.zeros(runs, dtype=torch.bool), []
        for update in range(1, within[-1] + 1):
            watched.step(_gap_of("one source by .5", watched.weights))
            moved |= total_variation(watched.weights, watched.first) > 0.02
            if update in within:
                cells.append(f"{float(moved.double().mean()):.0%}")
        yield f"| {sources} | {' | '.join(cells)} |"


ENDING, LOOKS = 250, 10  # updates at most; between two looks at the verdict


def ending(runs: int) -> Iterator[str]:
    """`learn: {until: converged}` with `at_most` of ENDING updates: what it gives up, and what it calls converged."""
    yield f"Runs that may end before {ENDING} updates, part of {runs}: that move by 0.02 if they go on; that give up"
    yield "before they would have; time after which those end that never move, mean part of all; that end as converged,"
    yield "and before the good source has 0.9 (on noise: at all):\n"
    yield "| S | ρ | signal | move | given up before | end of those that never move | converged | too early |"
    yield "|---|---|---|---|---|---|---|---|"
    for sources in (3, 10, 40):
        for rho in (0.0, 0.5, 0.9):
            for signal in (0.0, 0.2, 0.5):
                cells = (f"{value:.0%}" for value in _ending(sources, signal, rho, runs))
                yield f"| {sources} | {rho} | {signal} | " + " | ".join(cells) + " |"


def _ending(sources: int, signal: float, rho: float, runs: int) -> list[float]:
    watched = Watched(runs, sources, rho, seed=11)
    true = torch.zeros(sources, dtype=torch.float64)
    true[0] = -signal
    end, converged, early, moved = torch.full((runs,), float(ENDING)), *torch.zeros(3, runs, dtype=torch.bool)
    lost = torch.zeros(runs, dtype=torch.bool)
    for update in range(1, ENDING + 1):
        weights, known = watched.step(true), watched.run.known
        moved |= total_variation(weights, watched.first) > certainty.LITTLE
        lost |= moved & (end < update) & ~converged
        open_now = end == ENDING
        if update >= ENDING / 2:
            quiet = ~moved & ~(known.ratio().abs() > 1).any(-1)
            end[open_now & quiet & ~known.may_become_evidence(ENDING)] = update
        if update % LOOKS == 0:
            which = torch.nonzero(open_now & moved).flatten().tolist()
            for i, word in zip(which, watched.words(which), strict=True):
                if word == "converged":
                    end[i], converged[i], early[i] = update, True, signal == 0.0 or float(weights[i, 0]) < 0.9
    still = end[~moved].mean() / ENDING if bool((~moved).any()) else torch.tensor(1.0)
    return [float(part.double().mean()) for part in (moved, lost, still, converged, early)]


FORECAST_AT, FORECAST_UNTIL = (100, 200), 4000


def forecast(runs: int) -> Iterator[str]:
    """`told_at`: how long until the nearest gap is evident, of runs in which none is so far."""
    yield f"Of {runs} runs, those in which nothing is evident yet; of these, the updates after which something would"
    yield f"be, by the forecast and in truth (medians; {FORECAST_UNTIL:,}: later), and the part in which truth is"
    yield "within a factor of two of the forecast (or both are later), sooner, and later:\n"
    yield "| S | ρ | signal | after | nothing evident | forecast | truth | within a factor of two | sooner | later |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for sources in (3, 10):
        for rho in (0.0, 0.5):
            for signal in (0.0, 0.2, 0.5):
                for cells in _forecast(sources, rho, signal, runs):
                    yield f"| {sources} | {rho} | {signal} | " + " | ".join(cells) + " |"


def _forecast(sources: int, rho: float, signal: float, runs: int) -> Iterator[list[str]]:
    known, noise = evidence.Evidence.zeros(runs, sources), Noise("AR(1)", rho, runs, sources, seed=13)
    true = torch.zeros(sources, dtype=torch.float64)
    true[0] = -signal
    truth, found = torch.full((runs,), float(FORECAST_UNTIL), dtype=torch.float64), {}
    for update in range(1, FORECAST_UNTIL + 1):
        known, _ = known.plus(true + noise.step())
        if update in FORECAST_AT:
            found[update] = known.evident_after().amin(-1).clamp(max=FORECAST_UNTIL)
        first = (known.ratio().abs() > 1).any(-1) & (truth == FORECAST_UNTIL)
        truth = torch.where(first, float(update), truth)
    for update, all_said in found.items():
        quiet = truth > update
        said, came = all_said[quiet], truth[quiet]
        odds = came / said
        parts = [((odds >= 0.5) & (odds <= 2)), odds < 0.5, odds > 2]
        medians = [f"{float(of.median()):.0f}" for of in (said, came)]
        yield [str(update), f"{float(quiet.double().mean()):.0%}", *medians] + [
            f"{float(part.double().mean()):.0%}" for part in parts
        ]


def _one(known: evidence.Evidence, run: int) -> evidence.Evidence:
    """The evidence of one of the runs."""

    def of(moments: Moments) -> Moments:
        picked = {key: value[..., run, :] for key, value in vars(moments).items() if key != "count"}
        return Moments(count=moments.count, **picked)

    values = vars(known).items()
    return evidence.Evidence(**{k: of(v) if isinstance(v, Moments) else v[run] for k, v in values})


def cost(runs: int) -> Iterator[str]:
    """Milliseconds of an update, everything included that a run does for it but the passes."""
    yield "CPU milliseconds of one update, median of 200 (evidence, the rule, interval and verdict):\n"
    yield "| S | ms |"
    yield "|---|---|"
    for sources in (3, 10, 100):
        known, logits = evidence.Evidence.zeros(sources), torch.zeros(sources, dtype=torch.float64)
        state, took = mixture.EvidentState.zeros(sources), []
        for _ in range(200):
            gap = torch.randn(sources, dtype=torch.float64)
            gap[0] -= 0.5
            began = time.process_time()
            known, _ = known.plus(gap)
            logits, state = mixture.move_on_evidence(known, state, logits, 0.05)
            weights = mixture.weights_of(logits)
            certainty.weight_interval(weights, known, 0.05, state)
            mixture_gradient(gap, weights, 10.0)
            certainty.verdict(known, logits, moved=0.0, away=1.0, bounded=lambda p: p)
            took.append(time.process_time() - began)
        yield f"| {sources} | {sorted(took)[100] * 1e3:.2f} |"


def _recorded_by(path: Path) -> tuple[Tensor, Tensor]:  # (S,), (N, S)
    """The first weights of a history, and its gaps."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    key = "pull" if "pull" in lines[0] else "gap"
    first, *_ = (list(line["weights"].values()) for line in lines)
    gaps = [list(line[key].values()) for line in lines]
    return torch.tensor(first, dtype=torch.float64), torch.tensor(gaps, dtype=torch.float64)


def recorded(histories: Sequence[Path]) -> Iterator[str]:
    """Gaps of real runs in the place of simulated ones: each source's own, shuffled in signs, stretch by stretch.

    What the sources have in common comes off first: it is no gap, and with other signs for each source it would be.
    """
    yield "Recorded gaps, less the mean over the sources and that over the updates, against the rules (90th percentile"
    yield "of the total variation at the end, and in brackets the part of 500 runs with something beyond the boundary;"
    yield f"in each run the stretches of {STRETCH} updates of every source in another order and with other signs):\n"
    yield "| history | S | updates | " + " | ".join(RULES) + " |"
    yield "|---|---|---|" + "---|" * len(RULES)
    for path in histories:
        series, cells = _shuffled(_recorded_by(path)[1], runs=500), []
        for rule in RULES.values():
            walker = rule(series.shape[1], series.shape[2])
            for gap in series:
                weights = walker.step(gap)
            moved = total_variation(weights, torch.softmax(walker.first, -1))
            beyond = f" ({walker.ever.double().mean():.1%})" if isinstance(walker, Evident) else ""
            cells.append(f"{float(moved.quantile(0.9)):.2f}{beyond}")
        yield f"| {'/'.join(path.parts[-4:-2])} | {series.shape[2]} | {len(series)} | " + " | ".join(cells) + " |"


def _shuffled(gaps: Tensor, runs: int) -> Tensor:  # (N, S) -> (N, R, S)
    gaps = gaps - gaps.mean(-1, keepdim=True)
    gaps = gaps - gaps.mean(0)
    count, sources = len(gaps) // STRETCH, gaps.shape[1]
    stretches = gaps[: count * STRETCH].reshape(count, STRETCH, sources)
    generator = torch.Generator().manual_seed(0)
    order = torch.rand(count, runs, sources, generator=generator).argsort(0)
    sign = torch.randint(0, 2, (count, 1, runs, sources), generator=generator) * 2.0 - 1.0
    by_stretch = stretches.transpose(0, 1)[:, :, None, :].expand(-1, -1, runs, -1)  # (STRETCH, count, R, S)
    moved = by_stretch.gather(1, order[None].expand(STRETCH, -1, -1, -1)).transpose(0, 1) * sign
    return moved.reshape(count * STRETCH, runs, sources)


def replayed(histories: Sequence[Path]) -> Iterator[str]:
    """What the rules would have made of a run's gaps; only roughly, as gaps answer to weights."""
    yield "Recorded gaps, put through the rules again: updates until the mixture has moved by 0.02, and until the"
    yield "source that the rule favours has half and 0.9 of the weight (-: not in that run):\n"
    yield "| history | S | updates | " + " | ".join(RULES) + " |"
    yield "|---|---|---|" + "---|" * len(RULES)
    for path in histories:
        start, gaps = _recorded_by(path)
        first = start[None]
        paths = {}
        for name, rule in RULES.items():
            walker = rule(1, gaps.shape[1], first)
            paths[name] = torch.cat([walker.step(gap[None]) for gap in gaps])
        cells = []
        for weights in paths.values():
            favoured = int((weights[-1] - first[0]).argmax())
            passed = [total_variation(weights, first) > 0.02, weights[:, favoured] > 0.5, weights[:, favoured] > 0.9]
            cells.append(" ".join(str(int(of.to(torch.int8).argmax()) + 1) if of.any() else "-" for of in passed))
        yield f"| {'/'.join(path.parts[-4:-2])} | {gaps.shape[1]} | {len(gaps)} | " + " | ".join(cells) + " |"
    yield "\nAt its end: the mean of each source's gaps over its standard error, were the noise white; the boundary;"
    yield "the factor by which the rule takes the variance larger; and the updates after which each would be told:\n"
    for path in histories:
        gaps = _recorded_by(path)[1]
        known = evidence.Evidence.zeros(gaps.shape[1])
        for gap in gaps:
            known, _ = known.plus(gap)
        factor = float(known.standard.inflation(doubted=True))
        white = " ".join(f"{z:+.2f}" for z in known.standard.mean() / known.standard.error(doubted=True) * factor**0.5)
        after = " ".join(f"{count:.0f}" for count in known.evident_after())
        limit = evidence.boundary(known.updates, gaps.shape[1])
        yield f"{'/'.join(path.parts[-4:-2])}: {white}; {limit:.2f}; {factor:.1f}; {after}"


TABLES: dict[str, Callable[[int], Iterator[str]]] = {
    "false_moves": false_moves,
    "power": power,
    "turning": turning,
    "interior": interior,
    "coverage": coverage,
    "verdicts": verdicts,
    "settling": settling,
    "ending": ending,
    "forecast": forecast,
    "early": early,
    "cost": cost,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", choices=[*TABLES, []], help="default: all")
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--rules", nargs="*", choices=RULES, default=list(RULES))
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="constants of the rule to try")
    parser.add_argument("--replay", nargs="*", type=Path, default=[], help="history.jsonl of real runs")
    parser.add_argument("--recorded", nargs="*", type=Path, default=[], help="history.jsonl of real runs")
    arguments = parser.parse_args()
    for name, value in (given.split("=") for given in arguments.set):
        modules = [of for of in (evidence, moments, mixture, certainty) if name in vars(of)]
        if not modules:
            parser.error(f"--set: the rule has no constant {name}")
        for module in modules:
            setattr(module, name, type(getattr(module, name))(float(value)))
    for rule in set(RULES) - set(arguments.rules):
        del RULES[rule]
    of_runs = {"recorded": (recorded, arguments.recorded), "replay": (replayed, arguments.replay)}
    tables = arguments.tables or ([] if any(paths for _, paths in of_runs.values()) else TABLES)
    for name in tables:
        print(f"\n## {name}\n")
        for line in TABLES[name](arguments.runs):
            print(line, flush=True)
    for name, (lines_of, paths) in of_runs.items():
        if paths:
            print(f"\n## {name}\n")
            for line in lines_of(paths):
                print(line, flush=True)


if __name__ == "__main__":
    main()
