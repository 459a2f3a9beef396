"""Losses per source and the estimates made of them: what is counted, and what comes out on average over batches.

A *sequence* below is (source, labels, logits); the same sequences are laid out padded on either side or packed.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from scalebio_plugin.algorithm.bilevel import (
    IGNORED,
    NO_SOURCE,
    GapBaseline,
    Targets,
    estimate_gap,
    mixture_gradient,
    sum_by_source,
    targets_of,
    token_losses,
    weighted_loss,
)

VOCABULARY = 11
UNITS = pytest.mark.parametrize("per_sequence", [False, True], ids=["token", "sequence"])


@dataclass(frozen=True)
class Sequence:
    """`labels` (L,) and the `logits` (L, V) that a model gives whatever stands around it."""

    source: int
    labels: Tensor
    logits: Tensor

    @classmethod
    def random(cls, source: int, length: int, prompt: int, generator: torch.Generator) -> Sequence:
        labels = torch.randint(VOCABULARY, (length,), generator=generator)
        labels[:prompt] = IGNORED
        return cls(source, labels, torch.randn(length, VOCABULARY, generator=generator, dtype=torch.float64))

    def target_losses(self) -> list[float]:
        """−log softmax, by hand: position t predicts t + 1."""
        return [
            -float(self.logits[t].log_softmax(0)[self.labels[t + 1]])
            for t in range(len(self.labels) - 1)
            if self.labels[t + 1] != IGNORED
        ]


@dataclass(frozen=True)
class Batch:
    """(B, T) tensors, and (B, T, V) logits."""

    labels: Tensor
    source: Tensor
    sequence: Tensor
    logits: Tensor

    @classmethod
    def empty(cls, rows: int, length: int, padding_label: int = IGNORED) -> Batch:
        generator = torch.Generator().manual_seed(99)
        garbage = torch.randn(rows, length, VOCABULARY, generator=generator, dtype=torch.float64)
        return cls(
            torch.full((rows, length), padding_label),
            torch.full((rows, length), NO_SOURCE),
            torch.full((rows, length), -1),
            garbage,
        )

    def put(self, sequence: Sequence, number: int, row: int, at: int) -> None:
        place = (row, slice(at, at + len(sequence.labels)))
        self.labels[place], self.source[place] = sequence.labels, sequence.source
        self.sequence[place], self.logits[place] = number, sequence.logits

    def targets(self, *, per_sequence: bool) -> Targets:
        return targets_of(self.labels, self.source, self.sequence, per_sequence=per_sequence)


def padded(sequences: list[Sequence], side: str = "right", padding_label: int = IGNORED) -> Batch:
    longest = max(len(sequence.labels) for sequence in sequences) + 2
    batch = Batch.empty(len(sequences), longest, padding_label)
    for row, sequence in enumerate(sequences):
        batch.put(sequence, row, row, 0 if side == "right" else longest - len(sequence.labels))
    return batch


def packed(sequences: list[Sequence], rows: int = 2) -> Batch:
    members = [sequences[row::rows] for row in range(rows)]
    batch = Batch.empty(rows, max(sum(len(s.labels) for s in row) for row in members) + 3)
    number = 0
    for row, line in enumerate(members):
        at = 0
        for sequence in line:
            batch.put(sequence, number, row, at)
            at, number = at + len(sequence.labels), number + 1
    return batch


LAYOUTS = {
    "padded right": padded,
    "padded left": lambda sequences: padded(sequences, "left"),
    "padding with labels": lambda sequences: padded(sequences, padding_label=3),
    "packed in one row": lambda sequences: packed(sequences, 1),
    "packed in two rows": packed,
    "packed in three rows": lambda sequences: packed(sequences, 3),
}
LAYOUT = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())


@pytest.fixture
def sequences() -> list[Sequence]:
    """Three sources; prompts of several lengths, one sequence without an answer, one of a single token."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(0, 7, 3), (1, 4, 0), (2, 9, 1), (0, 5, 5), (1, 1, 0), (1, 2, 1), (2, 6, 4), (0, 3, 0), (2, 8, 7)]
    return [Sequence.random(*shape, generator) for shape in shapes]


def literal_sums(sequences: list[Sequence], sources: int, *, per_sequence: bool) -> tuple[Tensor, Tensor]:
    """Σ unit · loss and Σ unit of each source, from the definition."""
    sums, units = torch.zeros(2, sources, dtype=torch.float64)
    for sequence in sequences:
        losses = sequence.target_losses()
        if losses:
            unit = 1 / len(losses) if per_sequence else 1.0
            sums[sequence.source] += unit * sum(losses)
            units[sequence.source] += unit * len(losses)
    return sums, units


# ---- targets


def test_the_label_of_no_target_is_torchs():
    assert torch.nn.CrossEntropyLoss().ignore_index == IGNORED


@UNITS
@LAYOUT
def test_counts_and_losses_are_those_of_the_definition_in_every_layout(sequences, layout, per_sequence):
    batch = layout(sequences)
    targets = batch.targets(per_sequence=per_sequence)
    losses = token_losses(batch.logits, targets.labels)
    sums, units = literal_sums(sequences, 3, per_sequence=per_sequence)
    torch.testing.assert_close(targets.counts(3), units, rtol=0, atol=1e-12)
    torch.testing.assert_close(sum_by_source(losses * targets.units, targets.source, 3), sums, rtol=0, atol=1e-12)


@LAYOUT
@pytest.mark.parametrize(("per_sequence", "expected"), [(False, [6, 4, 11]), (True, [2, 2, 3])])
def test_a_token_counts_one_and_a_sequence_that_has_an_answer_too(sequences, layout, per_sequence, expected):
    counts = layout(sequences).targets(per_sequence=per_sequence).counts(3)
    torch.testing.assert_close(counts, torch.tensor(expected).double(), rtol=0, atol=1e-12 if per_sequence else 0)


@UNITS
@LAYOUT
def test_what_is_no_target_has_no_unit_no_label_and_a_valid_source(sequences, layout, per_sequence):
    targets = layout(sequences).targets(per_sequence=per_sequence)
    assert torch.equal(targets.labels == IGNORED, targets.units == 0)
    assert targets.source.min() >= 0
    assert targets.units.dtype == torch.float64


@UNITS
def test_a_batch_without_targets_counts_nothing(per_sequence):
    batch = padded([Sequence.random(1, 5, 5, torch.Generator().manual_seed(0))])
    targets = batch.targets(per_sequence=per_sequence)
    assert targets.counts(2).tolist() == [0.0, 0.0]
    loss = weighted_loss(token_losses(batch.logits, targets.labels), targets, torch.ones(2), torch.tensor(1.0))
    assert float(loss) == 0.0


def test_inputs_are_left_as_they_are(sequences):
    batch, same = packed(sequences), packed(sequences)
    batch.targets(per_sequence=True)
    for name in ("labels", "source", "sequence"):
        assert torch.equal(getattr(batch, name), getattr(same, name))


# ---- losses


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_losses_are_minus_log_softmax_computed_in_float32_or_better(dtype):
    logits = (5 * torch.randn(3, 6, VOCABULARY, generator=torch.Generator().manual_seed(0))).to(dtype)
    labels = torch.randint(VOCABULARY, (3, 5), generator=torch.Generator().manual_seed(1))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    expected = -logits[:, :-1].to(wide).log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    losses = token_losses(logits, labels)
    assert losses.dtype == wide
    torch.testing.assert_close(losses, expected)


def test_no_loss_and_no_gradient_where_nothing_is_predicted():
    logits = torch.randn(2, 5, VOCABULARY, requires_grad=True)
    labels = torch.tensor([[1, IGNORED, 2, IGNORED], [IGNORED] * 4])
    losses = token_losses(logits, labels)
    assert (losses[labels == IGNORED] == 0).all()
    losses.sum().backward()
    assert (logits.grad[:, :-1][labels == IGNORED] == 0).all()
    assert (logits.grad[:, -1] == 0).all()


def test_sum_by_source_is_in_float64_and_without_gradient():
    values = torch.full((1, 10_001), 0.1, requires_grad=True)
    total = sum_by_source(values, torch.zeros(1, 10_001, dtype=torch.long), 2)
    assert total.dtype == torch.float64
    assert not total.requires_grad
    assert total.tolist() == pytest.approx([10_001 * float(values[0, 0].detach()), 0.0], rel=1e-12)


# ---- the weighted loss


def loss_of(batch: Batch, coefficient: Tensor, total: Tensor | None = None, *, per_sequence: bool) -> Tensor:
    targets = batch.targets(per_sequence=per_sequence)
    total = targets.units.sum() if total is None else total
    return weighted_loss(token_losses(batch.logits, targets.labels), targets, coefficient, total)


@LAYOUT
def test_at_the_shares_it_is_the_hosts_mean_over_targets(sequences, layout):
    batch = layout(sequences)
    labels = batch.targets(per_sequence=False).labels
    host = functional.cross_entropy(batch.logits[:, :-1].flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
    ours = loss_of(batch, torch.ones(3, dtype=torch.float64), per_sequence=False)
    assert float(ours) == pytest.approx(float(host), rel=1e-12)


@UNITS
@LAYOUT
def test_with_the_batchs_own_shares_it_is_the_mixture_of_the_sources_means(sequences, layout, per_sequence):
    weights = torch.tensor([0.7, 0.1, 0.2], dtype=torch.float64)
    sums, units = literal_sums(sequences, 3, per_sequence=per_sequence)
    loss = loss_of(layout(sequences), weights / (units / units.sum()), per_sequence=per_sequence)
    assert float(loss) == pytest.approx(float((weights * sums / units).sum()), rel=1e-12)


@UNITS
@pytest.mark.parametrize("cuts", [(3, 6), (1, 2, 3, 4, 5, 6, 7, 8), (5,)], ids=str)
@pytest.mark.parametrize("layout", [padded, packed], ids=["padded", "packed"])
def test_accumulated_micro_batches_are_one_large_batch(sequences, layout, cuts, per_sequence):
    """Loss and gradient: the units are those of the whole step, counted before the first backward."""
    coefficient = torch.tensor([0.3, 2.0, 1.1], dtype=torch.float64)
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)  # stands for the model's parameters
    edges = (0, *cuts, len(sequences))
    parts = [layout(sequences[a:b]) for a, b in zip(edges, edges[1:], strict=False)]

    def loss_at(batch: Batch, total: Tensor | None) -> Tensor:
        scaled = Batch(batch.labels, batch.source, batch.sequence, batch.logits * scale)
        return loss_of(scaled, coefficient, total, per_sequence=per_sequence)

    whole = loss_at(layout(sequences), None)
    total = torch.stack([part.targets(per_sequence=per_sequence).counts(3).sum() for part in parts]).sum()
    losses = [loss_at(part, total) for part in parts]
    assert float(sum(losses).detach()) == pytest.approx(float(whole.detach()), rel=1e-12)
    (expected,) = torch.autograd.grad(whole, scale)
    for loss in losses:
        loss.backward()
    assert float(scale.grad) == pytest.approx(float(expected), rel=1e-12)


def pool(lengths: tuple[tuple[int, int], ...], seed: int = 0) -> list[Sequence]:
    """A small training set: (source, length) of each sequence, all of whose tokens but the first are targets."""
    generator = torch.Generator().manual_seed(seed)
    return [Sequence.random(source, length, 0, generator) for source, length in lengths]


EQUAL = tuple((source, 5) for source in (0, 0, 0, 0, 0, 1, 1, 2))  # the third source is in 3 of 8 batches
UNEQUAL = tuple(zip((0, 0, 0, 0, 0, 1, 1, 2), (3, 9, 4, 4, 7, 3, 5, 12), strict=True))


@pytest.mark.parametrize(
    ("lengths", "per_sequence"), [(EQUAL, False), (EQUAL, True), (UNEQUAL, True)], ids=["token", "sequence", "unequal"]
)
@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_mean_over_all_batches_is_the_weighted_sum_of_the_sources_losses(lengths, per_sequence, size):
    """Every batch of the size, so exactly: E = Σ p_i L2_i, though most batches lack the third source."""
    training_set = pool(lengths)
    weights = torch.tensor([0.1, 0.3, 0.6], dtype=torch.float64)
    sums, units = literal_sums(training_set, 3, per_sequence=per_sequence)
    coefficient = weights / (units / units.sum())
    batches = list(combinations(training_set, size))
    mean = sum(float(loss_of(padded(list(b)), coefficient, per_sequence=per_sequence)) for b in batches) / len(batches)
    assert mean == pytest.approx(float((weights * sums / units).sum()), rel=1e-12)


def test_with_unequal_lengths_the_token_estimate_is_a_ratio_whose_bias_falls_with_the_batch():
    """n varies with the batch then, as it does for the host's own token mean."""
    training_set = pool(UNEQUAL)
    weights = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    sums, units = literal_sums(training_set, 3, per_sequence=False)
    coefficient, exact = weights / (units / units.sum()), float((weights * sums / units).sum())

    def bias(size: int) -> float:
        batches = list(combinations(training_set, size))
        losses = [float(loss_of(packed(list(b), 1), coefficient, per_sequence=False)) for b in batches]
        return abs(sum(losses) / len(losses) / exact - 1)

    single, pair, half, whole = (bias(size) for size in (1, 2, 4, 8))
    assert single > 2 * half
    assert single > pair > half > whole
    assert whole < 1e-12


# ---- the gap of a source that is rare


SOURCES, BATCH = 4, 64


@dataclass(frozen=True)
class Examples:
    """A finite training set of one unit each: `source` (N,), `gap` (N,) of every example, `share` (S,)."""

    source: Tensor
    gap: Tensor
    share: Tensor

    @classmethod
    def with_a_rare_source(cls) -> Examples:
        counts = torch.tensor([500, 300, 190, 10])
        generator = torch.Generator().manual_seed(5)
        centre = torch.tensor([0.30, 0.25, 0.40, 0.35], dtype=torch.float64)
        source = torch.repeat_interleave(torch.arange(SOURCES), counts)
        noise = 0.1 * torch.randn(len(source), generator=generator, dtype=torch.float64)
        return cls(source, centre[source] + noise, counts.to(torch.float64) / counts.sum())

    @property
    def true_gap(self) -> Tensor:  # (S,)
        count = torch.bincount(self.source, minlength=SOURCES)
        return torch.zeros(SOURCES, dtype=torch.float64).scatter_add_(0, self.source, self.gap) / count

    def batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Σ gap and number of examples of each source, of a batch drawn without replacement."""
        drawn = torch.randperm(len(self.source), generator=generator)[:BATCH]
        zeros = torch.zeros(SOURCES, dtype=torch.float64)
        sums = zeros.scatter_add(0, self.source[drawn], self.gap[drawn])
        return sums, zeros.scatter_add(0, self.source[drawn], torch.ones(BATCH, dtype=torch.float64))


@pytest.fixture(scope="module")
def examples() -> Examples:
    return Examples.with_a_rare_source()


@pytest.fixture(scope="module")
def draws(examples) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [examples.batch(generator) for _ in range(8000)]


def baseline_of(mean: Tensor) -> GapBaseline:
    return GapBaseline(100.0 * mean, torch.full_like(mean, 100.0))


def estimates(draws: list[tuple[Tensor, Tensor]], share: Tensor, baseline: GapBaseline) -> Tensor:  # (draws, S)
    return torch.stack([estimate_gap(sums, units, share, baseline)[0] for sums, units in draws])


BASELINES = {
    "zeros": lambda true: GapBaseline.zeros(SOURCES),
    "half": lambda true: baseline_of(true / 2),
    "exact": baseline_of,
    "far off": lambda true: baseline_of(true + torch.tensor([5.0, -3.0, 2.0, -4.0], dtype=torch.float64)),
}


@pytest.mark.parametrize("make", BASELINES.values(), ids=BASELINES.keys())
def test_the_gap_is_unbiased_whatever_the_baseline(examples, draws, make):
    found = estimates(draws, examples.share, make(examples.true_gap))
    assert sum(units[3] == 0 for _, units in draws) > 0.4 * len(draws)  # the rare source is absent half of the time
    assert ((found.mean(0) - examples.true_gap).abs() < 4 * found.std(0) / len(draws) ** 0.5).all()


def test_counting_an_absent_source_as_gap_zero_is_biased(examples, draws):
    """The mean within the batch, 0 where there is none: 48% too low for the source of 1%."""
    naive = torch.stack([torch.where(units > 0, sums / units.clamp(min=1), 0.0) for sums, units in draws])
    missed = (naive.mean(0) - examples.true_gap)[3]
    assert missed < -0.4 * examples.true_gap[3]
    assert missed.abs() > 20 * naive.std(0)[3] / len(draws) ** 0.5


def test_a_good_baseline_takes_out_the_noise_of_the_counts(examples, draws):
    zeros, half, exact = (
        estimates(draws[:2000], examples.share, BASELINES[name](examples.true_gap)).std(0)
        for name in ("zeros", "half", "exact")
    )
    assert ((exact < half) & (half < zeros)).all()
    assert exact[3] < 0.4 * zeros[3]


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_the_gap_is_exact_on_average_over_all_batches(size):
    """Every batch of a tiny set, the full one at last, so without Monte Carlo error, with an arbitrary baseline."""
    source = torch.tensor([0, 0, 0, 0, 0, 1, 1, 2])
    gap = torch.tensor([0.1, -0.2, 0.4, 0.3, 0.9, -1.0, 0.2, 0.7], dtype=torch.float64)
    share = torch.bincount(source).to(torch.float64) / len(source)
    baseline = baseline_of(torch.tensor([0.3, -2.0, 1.0], dtype=torch.float64))
    found = []
    for members in map(list, combinations(range(len(source)), size)):
        zeros = torch.zeros(3, dtype=torch.float64)
        sums = zeros.scatter_add(0, source[members], gap[members])
        found.append(estimate_gap(sums, torch.bincount(source[members], minlength=3).double(), share, baseline)[0])
    truth = torch.stack([gap[source == i].mean() for i in range(3)])
    torch.testing.assert_close(torch.stack(found).mean(0), truth, rtol=0, atol=1e-12)


def test_a_gap_divided_by_what_was_expected():
    """g = m + (d − m n) / (share N): two units came of the four that were expected."""
    baseline = baseline_of(torch.tensor([0.5, 0.1], dtype=torch.float64))
    sums, units, share = torch.tensor([[1.8, 0.0], [2.0, 0.0], [0.75, 0.25]], dtype=torch.float64)
    gap, _ = estimate_gap(sums, units, share, baseline, total=torch.tensor(4.0, dtype=torch.float64))
    assert gap.tolist() == pytest.approx([0.5 + (1.8 - 0.5 * 2) / 3, 0.1])


def test_a_source_that_is_not_drawn_keeps_its_baseline():
    baseline = baseline_of(torch.tensor([0.4, 0.9], dtype=torch.float64))
    sums, units, share = torch.tensor([[2.0, 0.0], [4.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    assert estimate_gap(sums, units, share, baseline)[0].tolist() == pytest.approx([0.5, 0.9])


def test_a_batch_without_any_target_changes_nothing():
    baseline = baseline_of(torch.tensor([0.4, 0.9], dtype=torch.float64))
    zeros = torch.zeros(2, dtype=torch.float64)
    gap, after = estimate_gap(zeros, zeros, torch.tensor([0.5, 0.5]).double(), baseline)
    assert torch.equal(gap, baseline.mean())
    assert torch.equal(after.gap_S, baseline.gap_S)
    assert torch.equal(after.units_S, baseline.units_S)


def test_sets_that_agree_have_gap_exactly_zero_for_ever():
    baseline, zeros = GapBaseline.zeros(3), torch.zeros(3, dtype=torch.float64)
    share = torch.tensor([0.7, 0.29, 0.01], dtype=torch.float64)
    for units in torch.tensor([[6, 3, 0], [7, 0, 1], [0, 0, 0], [5, 4, 0]], dtype=torch.float64):
        gap, baseline = estimate_gap(zeros, units, share, baseline)
        assert torch.equal(gap, zeros)
    assert torch.equal(mixture_gradient(gap, share, 1000.0), zeros)


def test_the_baseline_follows_the_gap_and_forgets():
    share, baseline = torch.tensor([0.5, 0.5], dtype=torch.float64), GapBaseline.zeros(2)
    for gap in [1.0] * 200 + [-1.0] * 200:
        _, baseline = estimate_gap(4 * gap * torch.ones(2).double(), torch.full((2,), 4.0).double(), share, baseline)
    torch.testing.assert_close(baseline.mean(), torch.full((2,), -1.0).double(), rtol=0, atol=1e-6)


def test_a_source_long_unseen_keeps_its_baseline_which_is_its_gap():
    """Weeks of steps without it: the discounted sums vanish together, their quotient does not."""
    sums, units, share = torch.tensor([[3.0, 0.0], [10.0, 0.0], [0.5, 0.5]], dtype=torch.float64)
    baseline = baseline_of(torch.tensor([0.3, 0.8], dtype=torch.float64))
    for _ in range(6000):
        gap, baseline = estimate_gap(sums, units, share, baseline)
    assert float(gap[1]) == pytest.approx(0.8, rel=1e-10)
    assert float(baseline.mean()[1]) == pytest.approx(0.8, rel=1e-10)


def test_a_source_never_seen_has_gap_zero_not_nan():
    assert GapBaseline.zeros(4).mean().tolist() == [0.0] * 4


def test_a_source_that_is_long_absent_keeps_its_gap() -> None:
    seen = torch.tensor([2.0, 3.0], dtype=torch.float64)
    share, baseline = torch.tensor([0.5, 0.5], dtype=torch.float64), GapBaseline.zeros(2)
    _, baseline = estimate_gap(0.2 * seen, seen, share, baseline)
    for _ in range(8_000):
        gap, baseline = estimate_gap(torch.tensor([0.4, 0.0]), torch.tensor([2.0, 0.0]), share, baseline)
    torch.testing.assert_close(gap[1], torch.tensor(0.2, dtype=torch.float64))
