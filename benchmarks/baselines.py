"""Other ways to choose a mixture, at the compute of ours: do they find a better one?

    python -m benchmarks.baselines --data DIR --work WORK [--target gpteacher] [--seeds 1 2] [--ways bandit ...]

The problem, the model and the rows of benchmarks/small_model.py, whose `--work` this goes on with. Each way chooses a
mixture with as many passes over 16 rows as a run of 200 learning steps takes (two over training rows and one over
validation rows, of half as many, a step: 500), and an ordinary run of the host is trained on it, tested on the rows
that no run has seen. The ways, each in a loop of its own here, as small as it can be:

- bandit: on the loss, as online data mixing has it (Albalak et al. 2023): EXP3 over sources, a step's 16 rows from one
  of them, its reward the loss of these rows. The mixture is the mean of the policy over the second half.
- alignment: exponentiated gradient on how far a source's gradient points along that of the validation rows (Fan et al.
  2024, dynamic gradient alignment; ours with H = I), renewed every five steps of training on the mixture.
- swarm: short runs on random mixtures, a regression of their validation loss on the weights, the mean of the hundred
  best of ten thousand mixtures by it (Liu et al. 2024, RegMix, with a linear regression: there are nine runs).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import small_model
from benchmarks.arms import Problem, losses_of, padded, paired_difference, run, token_mean, tokenised, train
from benchmarks.small_model import SOURCES
from scalebio_plugin.report.mixture_file import SCHEMA, write_mixture

BATCH = small_model.CONFIG["micro_batch_size"] * small_model.CONFIG["gradient_accumulation_steps"]
PASSES = round(2.5 * small_model.CONFIG["max_steps"])  # over BATCH rows
RENEWED = 5  # steps of `alignment` to a look at gradients
ALIGNMENT_STEP = 0.15  # in logits, of a source whose alignment is its running RMS: to a vertex in about forty
RUNS = 9  # of `swarm`
CANDIDATES, BEST = 10_000, 100

Rows = Sequence[dict[str, Any]]


@dataclass
class Trainee:
    """The pretrained model, trained as an ordinary run of small_model.py trains it.

    Attributes:
        passes: Forward and backward over BATCH rows, so far.
    """

    base: Path
    passes: float = 0.0
    model: Any = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, weight_decay=0.0)

    def loss_of(self, rows: Rows) -> torch.Tensor:  # mean over target tokens, nats
        ids, mask, labels = padded(rows)
        logits = self.model(input_ids=ids, attention_mask=mask).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels[:, 1:])

    def gradient(self, rows: Rows) -> torch.Tensor:  # (parameters,)
        self.passes += len(rows) / BATCH
        gradients = torch.autograd.grad(self.loss_of(rows), list(self.model.parameters()))
        return torch.cat([gradient.flatten() for gradient in gradients])

    def step(self, rows: Rows) -> float:
        """Returns the loss before the step."""
        self.passes += len(rows) / BATCH
        loss = self.loss_of(rows)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return float(loss.detach())

    @torch.no_grad()
    def loss_on(self, rows: Rows) -> float:
        """Mean over the target tokens of all; a forward counts as a third of a pass."""
        self.passes += len(rows) / BATCH / 3
        losses, tokens = 0.0, 0
        for start in range(0, len(rows), BATCH):
            part = rows[start : start + BATCH]
            number = targets_in(part)
            losses, tokens = losses + float(self.loss_of(part)) * number, tokens + number
        return losses / tokens


@dataclass
class Data:
    """Tokenised rows by source, those to tune for, and draws from them."""

    base: Path
    rows: dict[str, Rows]
    validation: Rows
    rng: np.random.Generator

    def __post_init__(self) -> None:
        self.laps: dict[str, list[int]] = {name: [] for name in self.rows}
        tokens = [targets_in(rows) for rows in self.rows.values()]
        self.shares = np.array(tokens) / sum(tokens)  # (S,)
        self.mean_tokens = np.array(tokens) / [len(rows) for rows in self.rows.values()]  # (S,)

    def of_source(self, name: str, number: int) -> Rows:
        drawn = []
        for _ in range(number):
            lap = self.laps[name]
            if not lap:
                lap += self.rng.permutation(len(self.rows[name])).tolist()
            drawn.append(self.rows[name][lap.pop()])
        return drawn

    def batch(self, weights_S: np.ndarray) -> Rows:
        """BATCH rows whose target tokens are from each source in these parts, on average."""
        rows_S = weights_S / self.mean_tokens
        counts = self.rng.multinomial(BATCH, rows_S / rows_S.sum())
        return [row for name, count in zip(self.rows, counts, strict=True) for row in self.of_source(name, int(count))]

    def of_validation(self, number: int) -> Rows:
        return [self.validation[index] for index in self.rng.choice(len(self.validation), number, replace=False)]


def targets_in(rows: Rows) -> int:
    return sum(label != -100 for row in rows for label in row["labels"][1:])


# ---- ways: (data) -> (S,) weights, and passes


def bandit(data: Data) -> tuple[np.ndarray, float]:
    trainee, names, number = Trainee(data.base), list(data.rows), len(data.rows)
    reward_S, policies = np.zeros(number), []
    before = 1 / number
    for step in range(1, PASSES + 1):
        explore = min(1 / number, math.sqrt(math.log(number) / (number * step)))
        scores_S = np.exp(before * (reward_S - reward_S.max()))
        policy_S = (1 - number * explore) * scores_S / scores_S.sum() + explore
        before = explore
        arm = int(data.rng.choice(number, p=policy_S))
        loss = trainee.step(data.of_source(names[arm], BATCH))
        reward_S[arm] = 0.9 * reward_S[arm] + 0.1 * loss / policy_S[arm]
        policies.append(policy_S)
    return np.mean(policies[PASSES // 2 :], axis=0), trainee.passes


def alignment(data: Data) -> tuple[np.ndarray, float]:
    trainee = Trainee(data.base)
    logits_S, square, step = np.log(data.shares), 0.0, 0
    while trainee.passes < PASSES:
        if step % RENEWED == 0:
            wanted = trainee.gradient(data.of_validation(BATCH // 2))
            along_S = np.array([float(trainee.gradient(data.of_source(name, BATCH)) @ wanted) for name in data.rows])
            along_S -= along_S.mean()
            square += (float((along_S**2).mean()) - square) / (step // RENEWED + 1)
            logits_S = logits_S + ALIGNMENT_STEP * along_S / math.sqrt(square)
        trainee.step(data.batch(softmax(logits_S)))
        step += 1
    return softmax(logits_S), trainee.passes


def swarm(data: Data) -> tuple[np.ndarray, float]:
    number, passes = len(data.rows), 0.0
    tried, losses = data.rng.dirichlet(np.ones(number), RUNS), []
    for weights_S in tried:
        trainee = Trainee(data.base)
        judged = len(data.validation) / BATCH / 3
        while trainee.passes + 1 + judged <= PASSES / RUNS:
            trainee.step(data.batch(weights_S))
        losses.append(trainee.loss_on(data.validation))
        passes += trainee.passes
    slope_S = np.linalg.lstsq(tried, np.array(losses), rcond=None)[0]
    candidates = data.rng.dirichlet(np.ones(number), CANDIDATES)
    return candidates[np.argsort(candidates @ slope_S)[:BEST]].mean(axis=0), passes


def softmax(logits_S: np.ndarray) -> np.ndarray:
    scores_S = np.exp(logits_S - logits_S.max())
    weights_S: np.ndarray = scores_S / scores_S.sum()
    return weights_S


WAYS: dict[str, Callable[[Data], tuple[np.ndarray, float]]] = {
    "bandit": bandit,
    "alignment": alignment,
    "swarm": swarm,
}


# ---- runs


def main() -> None:
    parser = small_model.parser_of(__doc__)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    arguments = parser.parse_args()
    problem = small_model.problem_of(arguments.work, arguments.target)
    if not arguments.table:
        small_model.prepare(arguments.data, problem, arguments.target)
        for name in (*SOURCES, "validation"):
            tokenised(problem, name)
        for seed in arguments.seeds:
            for way in arguments.ways:
                run_way(problem, way, seed)
    print("\n".join(table(problem.work, arguments.seeds)))


def run_way(problem: Problem, way: str, seed: int) -> None:
    folder = problem.work / f"{way}-{seed}"
    if not (folder / "test.json").exists():
        run(choose, folder, {}, problem, way, seed)
        run(train, folder, problem.applied(folder / "mixture.json", seed))
        print(f"{way}-{seed} {token_mean(losses_of(folder)):.4f}", flush=True)


def choose(folder: Path, problem: Problem, way: str, seed: int) -> None:
    """In a process of its own: mixture.json, and way.json with the passes that it took."""
    torch.manual_seed(seed)
    rows = {name: tokenised(problem, name) for name in SOURCES}
    data = Data(problem.work / "base", rows, tokenised(problem, "validation"), np.random.default_rng(seed))
    weights_S, passes = WAYS[way](data)
    Path("way.json").write_text(json.dumps({"passes": passes}))
    write_mixture("mixture.json", {"schema": SCHEMA, "weights": dict(zip(rows, weights_S.tolist(), strict=True))})


def table(work: Path, seeds: Sequence[int]) -> Iterator[str]:
    yield f"| way | seed | {' | '.join(SOURCES)} | passes to choose | test loss | less ours (`new-applied`) |"
    yield "|---" * (len(SOURCES) + 5) + "|"
    for way in WAYS:
        for seed in seeds:
            folder, ours = work / f"{way}-{seed}", work / f"new-applied-{seed}"
            if (folder / "test.json").exists() and (ours / "test.json").exists():
                weights = json.loads((folder / "mixture.json").read_text())["weights"]
                passes = json.loads((folder / "way.json").read_text())["passes"]
                difference, error = paired_difference(losses_of(folder), losses_of(ours))
                cells = [f"{weights[name]:.3f}" for name in SOURCES]
                cells += [f"{passes:.0f}", f"{token_mean(losses_of(folder)):.4f}", f"{difference:+.3f} ± {error:.3f}"]
                yield f"| {way} | {seed} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
