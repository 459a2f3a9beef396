"""A literal twin of the training step: two whole models, loops over sequences, the formulas as the papers write them.

It shares no code with the package but the draw of LISA's layers. A run of the host with
`tests.runs.twin.RecorderPlugin` in its `plugins:` is recorded: the model before the first step, and of every step the
batches, the learning rates and the state of the random generator. `Twin` then trains w and u anew from the recording.

Nothing that the package adds to a batch is used: where a sequence ends is read from the position ids, and its source is
the file that its text stands in. Without dropout no sequence is padded or packed: those of one length run at once.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scalebio_plugin.algorithm.lisa import draw_layers

IGNORED = -100
Batch = dict[str, Tensor]
Row = tuple[list[int], list[int]]


@dataclass
class RecordedStep:
    """What one optimiser step of the host saw. `rates` by group of the optimizer; `validation` is empty in a warmup."""

    batches: list[Batch]
    validation: list[Batch] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    random: Tensor | None = None


@dataclass
class Recording:
    """A run of the host.

    Attributes:
        model: Copy from before the first step.
        groups: Of the optimizer: its hyperparameters, and the names of its parameters.
        rows, validation_rows: (input_ids, labels) of the training set and of the validation data.
        shape: `capacity`: tokens of a packed row, or None.
    """

    model: nn.Module
    groups: list[dict[str, Any]]
    max_grad_norm: float
    rows: list[Row]
    validation_rows: list[Row]
    tokenizer: Any
    settings: Any
    seed: int
    shape: dict[str, Any]
    steps: list[RecordedStep] = field(default_factory=list)

    last: Recording | None = None  # of the class: where the plugin leaves it


@dataclass(frozen=True)
class Sequence:
    """One sequence at one parameter set: the losses of its targets, and its source."""

    losses: Tensor  # (targets,)
    source: int


def sources_by_text(files: list[Path]) -> dict[str, int]:
    """Text from the input on -> number of the file that it stands in."""
    texts: dict[str, int] = {}
    for number, file in enumerate(files):
        for row in map(json.loads, file.read_text().splitlines()):
            text = f"{row['input']}\n\n### Response:\n{row['output']}"
            assert texts.setdefault(text, number) == number, f"{text!r} stands in two files"
    return texts


def source_of(tokens: list[int], tokenizer: Any, files: dict[str, int]) -> int:
    """Number of the file that a sequence stands in."""
    return files[tokenizer.decode(tokens, skip_special_tokens=True).partition("### Input:\n")[2].strip()]


class Twin:
    """Trains w and u from a recording.

    Attributes:
        w, u: The two models; u is None until learning starts.
        logits: λ.
        gap, losses, inner_losses, units, train_loss: Of the last step.
        val_loss: Of the last step at w, the sets that its batch held weighted as they are.
    """

    def __init__(self, recording: Recording, sources: list[Path], validation: dict[Path, float | None], *, whole: bool):
        """
        Args:
            sources: The files of `datasets:`.
            validation: The files of `validation_datasets:` with their weights; None: every token counts the same.
            whole: Run batches as the host did and not sequence by sequence, for runs with dropout.
        """
        self.recording, self.settings, self.whole = recording, recording.settings, whole
        self.files, self.validation_files = sources_by_text(sources), sources_by_text(list(validation))
        self.w = copy.deepcopy(recording.model).train()
        self.w_optimizer = self.adamw(self.w)
        self.u: nn.Module | None = None
        self.u_optimizer: torch.optim.AdamW | None = None
        self.step_number = 0

        self.share = self.shares(recording.rows, self.files, self.settings.loss_unit)
        self.validation_share = self.shares(recording.validation_rows, self.validation_files, "token")
        weights = list(validation.values())
        self.validation_weight = self.validation_share if None in weights else [w / sum(weights) for w in weights]

        self.logits = [math.log(p) for p in self.initial_weights()]
        self.expected: float | None = None  # E[n], where rows are drawn by source
        self.draw: LiteralDraw | None = None
        if self.settings.sampling == "mixture":
            self.draw = LiteralDraw(recording, [self.source_of(row, self.files) for row, _ in recording.rows])
        sources_S = len(sources)
        self.expected_gap, self.expected_units = [0.0] * sources_S, [0.0] * sources_S
        self.pending: list[list[float]] = []
        self.mean_square, self.first, self.second, self.updates = 0.0, [0.0] * sources_S, [0.0] * sources_S, 0

    def adamw(self, model: nn.Module) -> torch.optim.AdamW:
        named = dict(model.named_parameters())
        groups = [{**group, "params": [named[name] for name in group["params"]]} for group in self.recording.groups]
        return torch.optim.AdamW(groups)

    def shares(self, rows: list[Row], files: dict[str, int], loss_unit: str) -> list[float]:
        """Part of each file in all targets, or in all sequences that have one."""
        counts = [0] * (1 + max(files.values()))
        for tokens, labels in rows:
            targets = sum(label != IGNORED for label in labels[1:])
            counts[self.source_of(tokens, files)] += targets if loss_unit == "token" else targets > 0
        return [count / sum(counts) for count in counts]

    def initial_weights(self) -> list[float]:
        return self.share if self.settings.mixture_init == "proportional" else [1 / len(self.share)] * len(self.share)

    # ---- data

    def source_of(self, tokens: list[int], files: dict[str, int]) -> int:
        return source_of(tokens, self.recording.tokenizer, files)

    def sequences(self, model: nn.Module, batches: list[Batch], files: dict[str, int]) -> list[Sequence]:
        """Every sequence of the batches that has a target, at `model`'s parameters."""
        texts, sources, in_batch = [], [], []
        for batch in batches:
            given = {key: value for key, value in batch.items() if key != "labels"}
            rows = model(**given).logits if self.whole else None
            for row, first, end in pieces(batch):
                tokens, labels = batch["input_ids"][row, first:end], batch["labels"][row, first:end]
                if (labels[1:] == IGNORED).all():
                    continue
                length = 1 + int((labels != IGNORED).nonzero().max())  # what follows the last target is padding
                texts.append((tokens[:length], labels[1:length]))
                sources.append(self.source_of(tokens.tolist(), files))
                in_batch.append(None if rows is None else rows[row, first : first + length])
        logits = in_batch if self.whole else logits_alone(model, [tokens for tokens, _ in texts])
        losses = [cross_entropy(given[:-1], labels) for given, (_, labels) in zip(logits, texts, strict=True)]
        return [Sequence(*of) for of in zip(losses, sources, strict=True)]

    # ---- losses

    def unit(self, sequence: Sequence) -> float:
        return 1.0 if self.settings.loss_unit == "token" else 1.0 / len(sequence.losses)

    def train_objective(self, model: nn.Module, step: RecordedStep) -> tuple[Tensor, list[float], list[float]]:
        """L2(λ, θ) by equation (1); Σ unit · loss and Σ unit of every source."""
        sequences = self.sequences(model, step.batches, self.files)
        weights = softmax(self.logits)
        sums, units = [0.0] * len(weights), [0.0] * len(weights)
        for sequence in sequences:
            sums[sequence.source] += self.unit(sequence) * float(sequence.losses.detach().sum())
            units[sequence.source] += self.unit(sequence) * len(sequence.losses)
        n = self.expected or sum(units)
        objective = 0.0
        for sequence in sequences:
            i = sequence.source
            objective = objective + weights[i] / self.share[i] * self.unit(sequence) * sequence.losses.sum() / n
        return objective, sums, units

    def shown(self) -> float:
        """Factor of a logged loss: a weighted mean over the units that came, where others were expected."""
        if self.expected is None:
            return 1.0
        weights = softmax(self.logits)
        return self.expected / sum(p / s * n for p, s, n in zip(weights, self.share, self.units, strict=True))

    def validation_loss(self, model: nn.Module, step: RecordedStep) -> Tensor:
        """L1: the mean over tokens, those of dataset j counting v_j / share_j."""
        sequences = self.sequences(model, step.validation, self.validation_files)
        n = sum(len(sequence.losses) for sequence in sequences)
        total, sums, tokens = 0.0, defaultdict(float), Counter()
        for sequence in sequences:
            j = sequence.source
            total = total + self.validation_weight[j] / self.validation_share[j] * sequence.losses.sum() / n
            sums[j] += float(sequence.losses.detach().sum())
            tokens[j] += len(sequence.losses)
        if model is self.w:
            seen = sum(self.validation_weight[j] for j in sums)
            self.val_loss = sum(self.validation_weight[j] * sums[j] / tokens[j] for j in sums) / seen
        return total

    # ---- the step

    def step(self, step: RecordedStep) -> None:
        learning = self.step_number >= self.settings.warmup_steps
        if learning and self.u is None:
            self.u = copy.deepcopy(self.w)
            self.u_optimizer = self.adamw(self.u)
            self.u_optimizer.load_state_dict(copy.deepcopy(self.w_optimizer.state_dict()))
        if self.settings.lisa is not None and self.step_number % self.settings.lisa.interval == 0:
            self.draw_layers()

        if self.draw is not None:
            self.share, self.expected = self.draw.step(self.step_number, softmax(self.logits), step)

        alpha = self.settings.penalty
        torch.set_rng_state(step.random)
        objective, self.losses, self.units = self.train_objective(self.w, step)
        self.train_loss = float(objective.detach()) * self.shown()
        if learning:
            pulled_from = torch.get_rng_state()
            objective = objective + self.validation_loss(self.w, step) / alpha
        self.descend(self.w, self.w_optimizer, objective, step)

        if learning:
            torch.set_rng_state(step.random)
            objective, self.inner_losses, _ = self.train_objective(self.u, step)
            if self.settings.estimator == "symmetric":
                torch.set_rng_state(pulled_from)
                objective = objective - self.validation_loss(self.u, step) / alpha
            self.descend(self.u, self.u_optimizer, objective, step)
            self.observe()
        self.step_number += 1

    def descend(self, model: nn.Module, optimizer: torch.optim.AdamW, objective: Tensor, step: RecordedStep) -> None:
        for group, rate in zip(optimizer.param_groups, step.rates, strict=True):
            group["lr"] = rate
        optimizer.zero_grad()
        objective.backward()
        if self.recording.max_grad_norm > 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), self.recording.max_grad_norm)
        optimizer.step()

    def draw_layers(self) -> None:
        """Freeze all blocks but those drawn, in both models, and drop the optimizer state of what is frozen."""
        lisa, trained = self.settings.lisa, {name for group in self.recording.groups for name in group["params"]}
        layers = 1 + max(int(block) for block in map(block_of, trained) if block is not None)
        drawn = draw_layers(layers, lisa.active_layers, self.recording.seed, self.step_number // lisa.interval)
        for model, optimizer in ((self.w, self.w_optimizer), (self.u, self.u_optimizer)):
            for name, parameter in model.named_parameters() if model is not None else ():
                if name not in trained:
                    continue
                block = block_of(name)
                active = lisa.train_embeddings if block is None else int(block) in drawn
                parameter.requires_grad_(active)
                if not active:
                    parameter.grad = None
                    optimizer.state.pop(parameter, None)

    # ---- λ

    @property
    def weights(self) -> list[float]:
        return softmax(self.logits)

    def observe(self) -> None:
        """The gap by the difference estimator; every `update_interval` steps a step of λ along its mean."""
        halved = 0.5 if self.settings.estimator == "symmetric" else 1.0
        n, gap = self.expected or sum(self.units), []
        for i, share in enumerate(self.share):
            difference = halved * (self.losses[i] - self.inner_losses[i])
            expected = self.expected_gap[i] / self.expected_units[i] if self.expected_units[i] else 0.0
            gap.append(expected + (difference - expected * self.units[i]) / (share * n))
            self.expected_gap[i] = 0.9 * self.expected_gap[i] + difference
            self.expected_units[i] = 0.9 * self.expected_units[i] + self.units[i]
        self.pending.append(gap)
        if len(self.pending) == self.settings.update_interval:
            self.gap = [sum(column) / len(self.pending) for column in zip(*self.pending, strict=True)]
            self.pending = []
            {"adam": self.adam, "exponentiated_gradient": self.exponentiate}[self.settings.mixture_update]()

    def centred(self) -> list[float]:
        weights = softmax(self.logits)
        mean = sum(p * g for p, g in zip(weights, self.gap, strict=True))
        return [g - mean for g in self.gap]

    def adam(self) -> None:
        """Kingma and Ba, algorithm 1, on λ, with the gradient α p ⊙ (g − p·g)."""
        self.updates += 1
        weights, rate = softmax(self.logits), self.settings.rate
        for i, centred in enumerate(self.centred()):
            gradient = self.settings.penalty * weights[i] * centred
            self.first[i] = 0.9 * self.first[i] + 0.1 * gradient
            self.second[i] = 0.999 * self.second[i] + 0.001 * gradient**2
            first = self.first[i] / (1 - 0.9**self.updates)
            second = self.second[i] / (1 - 0.999**self.updates)
            self.logits[i] -= rate * first / (math.sqrt(second) + 1e-8)

    def exponentiate(self) -> None:
        """p_i ← p_i exp(−η ĝ_i) / Z, ĝ the centred gap over its running root mean square."""
        self.updates += 1
        centred = self.centred()
        self.mean_square = 0.99 * self.mean_square + 0.01 * sum(c**2 for c in centred) / len(centred)
        rms = math.sqrt(self.mean_square / (1 - 0.99**self.updates))
        if rms > 0.0:
            weights = softmax(self.logits)
            factors = [math.exp(-self.settings.rate * c / rms) for c in centred]
            z = sum(p * factor for p, factor in zip(weights, factors, strict=True))
            self.logits = [math.log(p * factor / z) for p, factor in zip(weights, factors, strict=True)]


class LiteralDraw:
    """`sampling: mixture` without caps: which rows a step holds, their sources' shares, and the units to expect.

    Segments are of eight steps, from the first step and from the end of the warmup on. A padded step is one block of
    rows; a packed one takes the rows of blocks in turn, each into the first bin with room, until `waits` found none.
    """

    waits = 16

    def __init__(self, recording: Recording, sources: list[int]):
        self.rows, self.seed, self.settings = recording.rows, recording.seed, recording.settings
        self.shape, self.steps = recording.shape, recording.steps
        self.members = [[row for row, i in enumerate(sources) if i == source] for source in range(max(sources) + 1)]
        self.mean_units = [sum(self.units(row) for row in members) / len(members) for members in self.members]
        self.dealt = [0] * len(self.members)
        self.pending: list[tuple[int, list[float]]] = []  # rows, each with the fractions it was drawn by
        self.segment: list[tuple[list[float], float]] = []

    def units(self, row: int) -> int:
        targets = sum(label != IGNORED for label in self.rows[row][1][1:])
        return targets if self.settings.loss_unit == "token" else int(targets > 0)

    def step(self, number: int, weights: list[float], step: RecordedStep) -> tuple[list[float], float]:
        """Share of each source, and E[n]; checks that the step holds the rows that it should."""
        begun = number - self.settings.warmup_steps if number >= self.settings.warmup_steps else number
        if begun % 8 == 0:
            last = number + 8
            if number < self.settings.warmup_steps:
                last = min(last, self.settings.warmup_steps)
            self.plan(weights, self.steps[number:last])
        return self.segment.pop(0)

    def plan(self, weights: list[float], steps: list[RecordedStep]) -> None:
        tilted = [(0.9 * p + 0.1 / len(weights)) / m for p, m in zip(weights, self.mean_units, strict=True)]
        q = [value / sum(tilted) for value in tilted]
        if not self.shape["capacity"]:
            for step in steps:
                rows = self.block(q, sum(len(batch["input_ids"]) for batch in step.batches))
                self.check(step, [[row] for row in rows])
                expected = [len(rows) * part * m for part, m in zip(q, self.mean_units, strict=True)]
                self.segment.append(([e / sum(expected) for e in expected], sum(expected)))
            return
        expected = [0.0] * len(q)
        for step in steps:
            bins, used = self.fill(q, sum(len(batch["input_ids"]) for batch in step.batches))
            self.check(step, bins)
            for i, m in enumerate(self.mean_units):
                expected[i] += sum(of[i] for of in used) * m
        micro_batches = sum(len(step.batches) for step in steps)
        for step in steps:
            part = len(step.batches) / micro_batches
            self.segment.append(([e / sum(expected) for e in expected], sum(expected) * part))

    def block(self, q: list[float], rows: int) -> list[int]:
        """A systematic sample: one point in every stretch of 1 / rows of the line on which source i has length q_i."""
        rng = np.random.default_rng([self.seed, 0xB10C, sum(self.dealt)])
        u, drawn = rng.random(), []
        ends = [sum(q[: i + 1]) for i in range(len(q))]
        for k in range(rows):
            source = next(i for i, end in enumerate(ends) if (k + u) / rows < end or i == len(q) - 1)
            drawn.append((source, self.deal(source)))
        drawn.sort(key=lambda pair: pair[0])  # source by source, each in the order of its laps
        return rng.permutation([row for _, row in drawn]).tolist()

    def deal(self, source: int) -> int:
        lap, at = divmod(self.dealt[source], len(self.members[source]))
        self.dealt[source] += 1
        return int(np.random.default_rng([self.seed, 0xA14B, source, lap]).permutation(self.members[source])[at])

    def fill(self, q: list[float], number: int) -> tuple[list[list[int]], list[list[float]]]:
        capacity = self.shape["capacity"]
        bins: list[list[int]] = []
        used, waiting = [], []
        means = [sum(self.length(row) for row in members) / len(members) for members in self.members]
        while len(waiting) < self.waits:
            if not self.pending:
                rows = round(number * capacity / sum(part * mean for part, mean in zip(q, means, strict=True)))
                self.pending = [(row, q) for row in self.block(q, rows)]
            row, of = self.pending.pop(0)
            for members in bins:
                if sum(map(self.length, members)) + self.length(row) <= capacity:
                    members.append(row)
                    break
            else:
                if len(bins) == number:
                    waiting.append((row, of))
                    continue
                bins.append([row])
            used.append(of)
        self.pending = waiting + self.pending
        return bins, used

    def length(self, row: int) -> int:
        return len(self.rows[row][0])

    def check(self, step: RecordedStep, bins: list[list[int]]) -> None:
        shown = [tokens for batch in step.batches for tokens in batch["input_ids"].tolist()]
        assert len(shown) == len(bins)
        for tokens, members in zip(shown, bins, strict=True):
            expected = [token for row in members for token in self.rows[row][0]]
            assert tokens[: len(expected)] == expected, "other rows than the literal draw"


def pieces(batch: Batch) -> Iterator[tuple[int, int, int]]:
    """(row, first, end) of all that may be a sequence: a row, or what lies between two positions 0 of a packed one."""
    rows, length = batch["input_ids"].shape
    for row in range(rows):
        positions = batch["position_ids"][row].tolist() if "position_ids" in batch else list(range(length))
        starts = [t for t in range(length) if positions[t] == 0]
        for first, end in zip(starts, [*starts[1:], length], strict=True):
            yield row, first, end


def rows_of(dataset: Any) -> list[Row]:
    return list(zip(dataset["input_ids"], dataset["labels"], strict=True))


def logits_alone(model: nn.Module, texts: list[Tensor]) -> list[Tensor]:
    """Of every text, as if run by itself: those of one length side by side, so that none is padded or packed."""
    found: dict[int, Tensor] = {}
    for length in {len(tokens) for tokens in texts}:
        numbers = [number for number, tokens in enumerate(texts) if len(tokens) == length]
        logits = model(input_ids=torch.stack([texts[number] for number in numbers])).logits
        found.update(zip(numbers, logits, strict=True))
    return [found[number] for number in range(len(texts))]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Of the labels that are targets."""
    logits, labels = logits[labels != IGNORED], labels[labels != IGNORED]
    return torch.logsumexp(logits, 1) - logits[range(len(labels)), labels]


def softmax(logits: list[float]) -> list[float]:
    powers = [math.exp(logit) for logit in logits]
    return [power / sum(powers) for power in powers]


def block_of(name: str) -> str | None:
    """Number of the transformer block that a parameter stands in."""
    found = re.search(r"\.(?:layers|h)\.(\d+)\.", name)
    return found and found.group(1)


def _make_recorder_plugin() -> type:
    from axolotl.integrations.base import BasePlugin
    from transformers import TrainerCallback

    class Recorder(TrainerCallback):
        def __init__(self, trainer: Any, cfg: Any):
            self.trainer, self.cfg = trainer, cfg

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            trainer, optimizer = self.trainer, self.trainer.raw_optimizer()
            assert type(optimizer) is torch.optim.AdamW
            names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
            validation = trainer.learning.validation
            self.recording = Recording.last = Recording(
                model=copy.deepcopy(trainer.model),
                groups=[
                    {**group, "params": [names[id(p)] for p in group["params"]]} for group in optimizer.param_groups
                ],
                max_grad_norm=args.max_grad_norm,
                rows=rows_of(trainer.train_dataset),
                validation_rows=rows_of(validation.rows),
                tokenizer=trainer.processing_class,
                settings=trainer.learning.run.settings,
                seed=self.cfg.seed,
                shape={"capacity": self.cfg.sequence_len if self.cfg.sample_packing else None},
            )
            self.record_batches(trainer, validation)

        def record_batches(self, trainer: Any, validation: Any) -> None:
            get_batch_samples, validation_batches = trainer.get_batch_samples, validation.batches
            steps = self.recording.steps

            def get_and_record(*args: Any) -> Any:
                batches, items = get_batch_samples(*args)
                steps.append(RecordedStep([dict(batch) for batch in batches]))
                return batches, items

            def record_and_give(step: int, **ranks: int) -> Iterator[Batch]:
                chunks = list(validation_batches(step, **ranks))
                untagged = [{k: v for k, v in chunk.items() if not k.startswith("scalebio")} for chunk in chunks]
                steps[step].validation = untagged
                return iter(chunks)

            trainer.get_batch_samples, validation.batches = get_and_record, record_and_give

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            step = self.recording.steps[-1]
            step.rates = [group["lr"] for group in self.trainer.raw_optimizer().param_groups]
            step.random = torch.get_rng_state()

    class RecorderPlugin(BasePlugin):
        def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list:
            return [Recorder(trainer, cfg)]

    return RecorderPlugin


def __getattr__(name: str) -> Any:
    """`RecorderPlugin`, made when the host asks for it: importing this module imports no host."""
    if name == "RecorderPlugin":
        globals()[name] = _make_recorder_plugin()
        return globals()[name]
    raise AttributeError(name)
