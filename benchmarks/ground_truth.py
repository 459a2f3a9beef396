"""Problems whose best mixture is known, learned by the whole bilevel loop: `python -m benchmarks.ground_truth`

No host and no language model: w and u are vectors that descend on minibatches, λ moves by the functions that a run goes
through (`scalebio_plugin.algorithm`). Every seed is a problem of its own; all seeds of a problem go through the loop
together. The optimum is found beforehand from the exact objective. Minutes on one core. Results:
benchmarks/ground_truth.md.

Legend: R seeds, S sources, D parameters, N rows of a source in a step.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional

from scalebio_plugin import algorithm

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)

SEEDS, UPDATES, AT, LATE = 20, 1000, (100, 300, 1000), 300  # updates
PENALTY, ROWS, VALIDATION_ROWS = 10.0, 8, 8  # rows of each source in a step
Batch = tuple[Tensor, ...]
Descent = Callable[[Tensor, Tensor], Tensor]  # (parameters, gradient) -> parameters


# ---- problems


class Problem(Protocol):
    """Attributes: best (R, S), the optimal weights; size, D; descent, makes an optimizer of w or u."""

    best: Tensor
    size: int
    descent: Callable[[], Descent]

    def batch(self, generator: torch.Generator) -> Batch: ...

    def of_sources(self, at: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """(R, D) -> mean losses (R, S) and their gradients (R, S, D)."""

    def of_validation(self, at: Tensor, batch: Batch) -> Tensor:
        """(R, D) -> gradient of the validation loss (R, D)."""


class Quadratic:
    """½‖θ − c_i‖² and ½‖θ − t‖², from rows that scatter about c_i and t with a deviation of `noise` in each direction.

    θ*(p) = Σ p_i c_i, so the best weights are those of the point of the hull that is nearest to t: a quadratic program.
    """

    def __init__(self, sources: int, *, inside: bool, noise: float):
        self.size, self.noise, self.descent = 2 * sources, noise, lambda: sgd(0.1)
        centres, targets, best = [], [], []
        for seed in range(SEEDS):
            rng = np.random.default_rng(seed)
            centre = rng.normal(size=(sources, self.size))
            if inside:
                target = rng.dirichlet(np.full(sources, 3.0)) @ centre + 0.3 * rng.normal(size=self.size)
            else:
                target = centre[0] + 0.5 * (centre[0] - centre.mean(0))
            centres.append(centre)
            targets.append(target)
            best.append(nearest(centre, target))
        self.centre, self.target, self.best = (torch.from_numpy(np.stack(part)) for part in (centres, targets, best))

    def batch(self, generator: torch.Generator) -> Batch:
        def scattered(mean: Tensor, rows: int) -> Tensor:
            return mean + self.noise / math.sqrt(rows) * torch.randn(mean.shape, generator=generator)

        return scattered(self.centre, ROWS), scattered(self.target, VALIDATION_ROWS)

    def of_sources(self, at: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        away = at[:, None] - batch[0]
        within = self.noise**2 * self.size * (1 - 1 / ROWS)  # of the rows about their mean
        return 0.5 * (away.square().sum(-1) + within), away

    def of_validation(self, at: Tensor, batch: Batch) -> Tensor:
        return at - batch[1]


def nearest(points: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Weights (S,) of the point of the hull of `points` (S, D) that is nearest to `target` (D,)."""

    def distance(weights: np.ndarray) -> tuple[float, np.ndarray]:
        away = weights @ points - target
        return 0.5 * float(away @ away), points @ away

    return on_the_simplex(distance, len(points))


def on_the_simplex(function: Callable[[np.ndarray], Any], sources: int, jac: bool = True) -> np.ndarray:
    """Weights (S,) at which a function is least."""
    together = {"type": "eq", "fun": lambda weights: weights.sum() - 1}
    start, bounds = np.full(sources, 1 / sources), [(0.0, 1.0)] * sources
    options = {"ftol": 1e-12, "maxiter": 1000}
    found = minimize(function, start, jac=jac, method="SLSQP", bounds=bounds, constraints=together, options=options)
    if not found.success:
        raise RuntimeError(f"no optimum was found: {found.message}")
    weights: np.ndarray = np.clip(found.x, 0, None) / np.clip(found.x, 0, None).sum()
    return weights


class Logistic:
    """Binary labels of normal x: source i says yes with probability (1 − f_i) σ(θ_i x) + f_i σ(−θ_i x).

    Args:
        angles: (S,), between θ_i and θ_1, radians; lengths are 2.
        flips: (S,), f, the rate at which a label is flipped.
        goal: (S,), how much of the validation data is as each source.
    """

    size = 10

    def __init__(self, angles: tuple[float, ...], flips: tuple[float, ...], goal: tuple[float, ...]):
        self.descent = lambda: adam(0.02)
        self.flips, self.goal = torch.tensor(flips, dtype=torch.float64), torch.tensor(goal, dtype=torch.float64)
        truths = []
        for seed in range(SEEDS):
            rng = np.random.default_rng(seed)
            base = np.linalg.qr(rng.normal(size=(self.size, self.size)))[0]  # one direction for each further source
            truths.append([2 * (math.cos(a) * base[0] + math.sin(a) * base[i]) for i, a in enumerate(angles)])
        self.truth = torch.tensor(np.array(truths))  # (R, S, D)
        self.best = torch.from_numpy(np.stack([self._best(seed) for seed in range(SEEDS)]))

    def _chance(self, x: Tensor, truth: Tensor, flip: Tensor) -> Tensor:
        """Of a yes: (..., N, D), (..., D), (...) -> (..., N)."""
        yes = torch.sigmoid((x @ truth[..., None])[..., 0])
        return yes + flip[..., None] * (1 - 2 * yes)

    def _best(self, seed: int) -> np.ndarray:
        """On 4,000 x with exact chances; the inner problem by Newton's method."""
        x = torch.randn(4000, self.size, generator=torch.Generator().manual_seed(1000 + seed))
        chance = self._chance(x.expand(len(self.flips), -1, -1), self.truth[seed], self.flips)  # (S, N)
        goal = self.goal @ chance

        def loss(weights: np.ndarray) -> float:
            at, mixed = torch.zeros(self.size), torch.from_numpy(weights) @ chance
            for _ in range(20):
                said = torch.sigmoid(x @ at)
                curved = (x * (said * (1 - said))[:, None]).T @ x
                at = at - torch.linalg.solve(curved, x.T @ (said - mixed))
            return float(functional.binary_cross_entropy_with_logits(x @ at, goal))

        return on_the_simplex(loss, len(self.flips), jac=False)

    def batch(self, generator: torch.Generator) -> Batch:
        sources = len(self.flips)
        x = torch.randn(SEEDS, sources, ROWS, self.size, generator=generator)
        label = torch.bernoulli(self._chance(x, self.truth, self.flips.expand(SEEDS, -1)), generator=generator)
        held = torch.randn(SEEDS, sources, VALIDATION_ROWS, self.size, generator=generator)
        said = torch.bernoulli(self._chance(held, self.truth, self.flips.expand(SEEDS, -1)), generator=generator)
        which = torch.multinomial(self.goal.expand(SEEDS, -1), VALIDATION_ROWS, True, generator=generator)
        row = torch.arange(VALIDATION_ROWS)
        seed = torch.arange(SEEDS)[:, None]
        return x, label, held[seed, which, row], said[seed, which, row]

    def of_sources(self, at: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        x, label = batch[:2]
        logit = torch.einsum("rsnd,rd->rsn", x, at)
        loss = functional.binary_cross_entropy_with_logits(logit, label, reduction="none").mean(-1)
        return loss, torch.einsum("rsn,rsnd->rsd", torch.sigmoid(logit) - label, x) / ROWS

    def of_validation(self, at: Tensor, batch: Batch) -> Tensor:
        x, label = batch[2:]
        logit = torch.einsum("rnd,rd->rn", x, at)
        return torch.einsum("rn,rnd->rd", torch.sigmoid(logit) - label, x) / VALIDATION_ROWS


def sgd(rate: float) -> Descent:
    return lambda at, gradient: at - rate * gradient


def adam(rate: float) -> Descent:
    """Adam for w or u; its state goes on from call to call. The package's own function, which is elementwise."""
    state: algorithm.AdamState | None = None

    def step(at: Tensor, gradient: Tensor) -> Tensor:
        nonlocal state
        before = state or algorithm.AdamState(0, torch.zeros_like(at), torch.zeros_like(at))
        after, state = algorithm.adam(gradient, before, at, rate)
        return after

    return step


# ---- what moves λ


class Evident:
    """`mixture_update: evidence` at its default rate; all runs at once."""

    def __init__(self, sources: int):
        self.logits = torch.zeros(SEEDS, sources)
        self.known, self.state = algorithm.Evidence.zeros(SEEDS, sources), algorithm.EvidentState.zeros(SEEDS, sources)

    def step(self, gap: Tensor) -> Tensor:  # (R, S) -> (R, S) weights
        self.known, _ = self.known.plus(gap)
        self.logits, self.state = algorithm.move_on_evidence(self.known, self.state, self.logits, 0.05)
        return torch.softmax(self.logits, -1)


class Exponentiated:
    """`mixture_update: exponentiated_gradient` at its default rate, run by run."""

    def __init__(self, sources: int):
        self.logits, self.states = torch.zeros(SEEDS, sources), [algorithm.ExponentiatedState()] * SEEDS

    def step(self, gap: Tensor) -> Tensor:
        moved = [
            algorithm.exponentiated_gradient(one, algorithm.weights_of(logits), state, logits, 0.03)
            for one, logits, state in zip(gap, self.logits, self.states, strict=True)
        ]
        self.logits, self.states = torch.stack([logits for logits, _ in moved]), [state for _, state in moved]
        return torch.softmax(self.logits, -1)


class PaperAdam:
    """`mixture_update: adam` at its default rate, the paper's."""

    def __init__(self, sources: int):
        self.logits, self.step_of = torch.zeros(SEEDS, sources), adam(0.01)

    def step(self, gap: Tensor) -> Tensor:
        weights = torch.softmax(self.logits, -1)
        pairs = zip(gap, weights, strict=True)
        gradient = torch.stack([algorithm.mixture_gradient(one, p, PENALTY) for one, p in pairs])
        self.logits = self.step_of(self.logits, gradient)
        return torch.softmax(self.logits, -1)


Rule = PaperAdam | Exponentiated | Evident
RULES: dict[str, Callable[[int], Rule]] = {
    "adam 0.01 (paper)": PaperAdam,
    "exponentiated gradient 0.03": Exponentiated,
    "evidence 0.05 (default)": Evident,
}


def bilevel(problem: Problem, rule: Rule) -> Iterator[Tensor]:
    """Weights (R, S) after every update."""
    generator, sources = torch.Generator().manual_seed(7), problem.best.shape[1]
    model, inner = torch.zeros(SEEDS, problem.size), torch.zeros(SEEDS, problem.size)  # w, u
    step_model, step_inner = problem.descent(), problem.descent()
    weights = torch.full((SEEDS, sources), 1 / sources)
    share, units = torch.full((sources,), 1 / sources), torch.full((sources,), float(ROWS))
    baseline = algorithm.GapBaseline(torch.zeros(SEEDS, sources), torch.zeros(sources))
    while True:
        batch = problem.batch(generator)
        inner_loss, inner_gradient = problem.of_sources(inner, batch)
        model_loss, model_gradient = problem.of_sources(model, batch)
        pulled = _mixed(weights, model_gradient) + problem.of_validation(model, batch) / PENALTY
        inner, model = step_inner(inner, _mixed(weights, inner_gradient)), step_model(model, pulled)
        difference = (model_loss - inner_loss) * ROWS
        gap, baseline = algorithm.estimate_gap(difference, units, share, baseline)
        weights = rule.step(gap)
        yield weights


def _mixed(weights: Tensor, gradients: Tensor) -> Tensor:  # (R, S), (R, S, D) -> (R, D)
    return (weights[..., None] * gradients).sum(1)


def exp3(problem: Problem) -> Iterator[Tensor]:
    """A bandit on the training losses (Albalak et al., 2023, arXiv 2312.02406): no validation data, no u.

    A step trains on rows of one source, drawn by the weights; its loss is the reward.
    """
    generator, sources = torch.Generator().manual_seed(7), problem.best.shape[1]
    model, step_model = torch.zeros(SEEDS, problem.size), problem.descent()
    reward, explore = torch.zeros(SEEDS, sources), 1 / sources
    weights = torch.full((SEEDS, sources), 1 / sources)
    for step in range(1, UPDATES + 1):
        loss, gradient = problem.of_sources(model, problem.batch(generator))
        drawn = functional.one_hot(torch.multinomial(weights, 1, generator=generator)[:, 0], sources).to(loss.dtype)
        model = step_model(model, _mixed(drawn, gradient))
        reward = torch.where(drawn > 0, 0.9 * reward + 0.1 * loss / weights, reward)
        before, explore = explore, min(1 / sources, math.sqrt(math.log(sources) / (sources * step)))
        weights = (1 - sources * explore) * torch.softmax(before * reward, -1) + explore
        weights = weights / weights.sum(-1, keepdim=True)
        yield weights


# ---- tables


@dataclass(frozen=True)
class Found:
    """Total variation from the optimum, (R,): after each of AT, and the largest after LATE.

    until: (R,) updates until 95% of the way, inf: not reached. away: (R,) whether then farther than at first.
    """

    far: dict[int, Tensor]
    late: Tensor
    until: Tensor
    away: Tensor


def follow(problem: Problem, weights: Iterator[Tensor]) -> Found:
    start = total_variation(torch.full_like(problem.best, 1 / problem.best.shape[1]), problem.best)
    until, late, far = torch.full((SEEDS,), math.inf), torch.zeros(SEEDS), {}
    for update in range(1, UPDATES + 1):
        away = total_variation(next(weights), problem.best)
        until = torch.where((away <= 0.05 * start) & until.isinf(), float(update), until)
        if update in AT:
            far[update] = away
        if update > LATE:
            late = torch.maximum(late, away)
    return Found(far, late, until, late > start)


def total_variation(first: Tensor, second: Tensor) -> Tensor:  # (R,)
    return (first - second).abs().sum(-1) / 2


PROBLEMS: dict[str, Callable[[], Problem]] = {
    f"quadratic, S = {sources}, optimum {'inside' if inside else 'at a vertex'}, noise {noise:g}": (
        partial(Quadratic, sources, inside=inside, noise=noise)
    )
    for inside in (True, False)
    for sources in (3, 10)
    for noise in (1.0, 5.0)
}
PROBLEMS |= {
    "logistic, other parameters (0, 45, 90, 180°)": lambda: Logistic(
        (0, math.pi / 4, math.pi / 2, math.pi), (0,) * 4, (1, 0, 0, 0)
    ),
    "logistic, labels flipped in 0, 10, 25, 50%": lambda: Logistic((0,) * 4, (0, 0.1, 0.25, 0.5), (1, 0, 0, 0)),
    "logistic, 0, 60, 120°, validation 70% as the first, 30% as the second": lambda: Logistic(
        (0, math.pi / 3, 2 * math.pi / 3), (0,) * 3, (0.7, 0.3, 0)
    ),
}


def rows(name: str, problem: Problem) -> Iterator[str]:
    start = total_variation(torch.full_like(problem.best, 1 / problem.best.shape[1]), problem.best)
    ways = {rule: bilevel(problem, make(problem.best.shape[1])) for rule, make in RULES.items()}
    for rule, weights in {**ways, "EXP3 on training losses": exp3(problem)}.items():
        found = follow(problem, weights)
        cells = [f"{float(far.mean()):.3f} ± {float(far.std()) / math.sqrt(SEEDS):.3f}" for far in found.far.values()]
        median = float(found.until.quantile(0.5, interpolation="higher"))
        reached = int(found.until.isfinite().sum())
        cells += ["–" if math.isinf(median) else f"{median:.0f}", str(reached)]
        cells += [f"{float(found.late.mean()):.3f}, {float(found.late.max()):.2f}", str(int(found.away.sum()))]
        yield f"| {name} | {float(start.mean()):.2f} | {rule} | " + " | ".join(cells) + " |"


def averaged(name: str, problem: Problem) -> Iterator[str]:
    """Total variation from the optimum, mean of the seeds, of the weights and of their mean over the last third."""
    for rule, make in RULES.items():
        weights = bilevel(problem, make(problem.best.shape[1]))
        path = torch.stack([next(weights) for _ in range(UPDATES)])
        cells = []
        for update in AT:
            for late in (path[update - 1], path[update - update // 3 : update].mean(0)):
                cells.append(f"{float(total_variation(late, problem.best).mean()):.3f}")
        yield f"| {name} | {rule} | " + " | ".join(cells) + " |"


def held_back(sources: int = 10, good: int = 150, most: float = 0.4) -> Iterator[str]:
    """A source that is best by a deviation of its gaps for `good` updates, then as the others; bounded or not."""
    yield "| rule | largest weight | " + " | ".join(f"after {n}" for n in (100, 150, 200, 300, 400)) + " |"
    yield "|---|---|" + "---|" * 5
    for name in ("exponentiated gradient 0.03", "evidence 0.05 (default)"):
        for high in (1.0, most):
            generator, rule = torch.Generator().manual_seed(7), RULES[name](sources)
            bounds = algorithm.Bounds(torch.zeros(sources), torch.full((sources,), high))
            cells = []
            for update in range(1, 401):
                gap = torch.randn(SEEDS, sources, generator=generator)
                gap[:, 0] -= 1.0 if update <= good else 0.0
                weights = torch.stack([bounds.bounded(one) for one in rule.step(gap)])
                rule.logits = torch.stack([algorithm.logits_of(one) for one in weights])
                if update in (100, 150, 200, 300, 400):
                    best = weights[:, 0]
                    cells.append(f"{float(best.mean()):.3f} ± {float(best.std()) / math.sqrt(SEEDS):.3f}")
            yield f"| {name} | {high:g} | " + " | ".join(cells) + " |"


def caught_up(updates: int = 700) -> Iterator[str]:
    """The best of four sources at most 0.3, and a second good one, which is evident later: 0.3 and 0.7 are best."""
    yield "| rule | lowest weight of the best once it was at 0.3: mean, lowest | updates below 0.2, mean |"
    yield "|---|---|---|"
    high = torch.tensor([0.3, 1.0, 1.0, 1.0])
    bounds, gaps = algorithm.Bounds(torch.zeros(4), high), torch.tensor([-1.0, -0.4, 0.4, 0.4])
    for name in ("exponentiated gradient 0.03", "evidence 0.05 (default)"):
        generator, rule = torch.Generator().manual_seed(7), RULES[name](4)
        noise, path = torch.zeros(SEEDS, 4), []
        for _ in range(updates):
            noise = 0.5 * noise + math.sqrt(0.75) * torch.randn(SEEDS, 4, generator=generator)
            weights = torch.stack([bounds.bounded(one) for one in rule.step(gaps + noise)])
            rule.logits = torch.stack([algorithm.logits_of(one) for one in weights])
            path.append(weights[:, 0])
        best = torch.stack(path)
        since = (best > 0.299).cumsum(0) > 0
        lowest = torch.where(since, best, 1.0).amin(0)
        below = (since & (best < 0.2)).sum(0).to(best.dtype).mean()
        yield f"| {name} | {float(lowest.mean()):.3f}, {float(lowest.min()):.3f} | {float(below):.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="problems whose name holds this")
    parser.add_argument("--averaged", action="store_true", help="what the mean of the last weights would be worth")
    arguments = parser.parse_args()
    only = arguments.only
    if arguments.averaged:
        print("| problem | rule | " + " | ".join(f"after {n:,} | mean of the last third" for n in AT) + " |")
        print("|---" * (2 + 2 * len(AT)) + "|")
        for name, make in PROBLEMS.items():
            if only in name:
                print("\n".join(averaged(name, make())), flush=True)
        return
    heads = [f"after {n:,}" for n in AT]
    heads += [
        "95% of the way",
        f"reached, of {SEEDS}",
        f"farthest after {LATE}: mean, largest",
        "farther than at the start",
    ]
    print("| problem | at the start | rule | " + " | ".join(heads) + " |\n|---|---|---|" + "---|" * len(heads))
    for name, make in PROBLEMS.items():
        if only in name:
            for line in rows(name, make()):
                print(line, flush=True)
    print("\n" + "\n".join(held_back()) + "\n\n" + "\n".join(caught_up()))


if __name__ == "__main__":
    main()
