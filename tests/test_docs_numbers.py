"""The numbers of README and docs/ are computed here, or stand in benchmarks/, or are constants of the code."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from scalebio_plugin.algorithm import evidence, mixture, moments
from scalebio_plugin.config import split
from scalebio_plugin.data.applied import resample
from scalebio_plugin.data.step_plan import FLOOR, learning_fractions
from scalebio_plugin.data.table import SourceTable

ROOT = Path(__file__).parents[1]


def page(name: str) -> str:
    return (ROOT if name == "README.md" else ROOT / "docs").joinpath(name).read_text("utf-8")


def table_rows(name: str) -> set[str]:
    return {line for line in page(name).splitlines() if line.startswith("| ")}


ROWS, TOKENS, NAMES = np.array([3000, 6000, 1000]), np.array([660_000, 240_000, 100_000]), ["code", "chat", "math"]
TABLE = SourceTable(NAMES, TOKENS, ROWS, "")
SOURCE = np.repeat(np.arange(3), ROWS)


def drawn_rows(weights: np.ndarray) -> np.ndarray:
    return np.bincount(SOURCE[resample(SOURCE, TABLE.sampling(weights), 4, seed=0, rows=10_000)], minlength=3)


def test_the_example_of_a_mixture_is_computed() -> None:
    weights = np.array([0.5, 0.2, 0.3])
    fractions, shares, drawn = TABLE.sampling(weights), TABLE.shares("token"), drawn_rows(weights)
    for i, name in enumerate(NAMES):
        assert (
            f"| {name} | {ROWS[i]:,} | {TOKENS[i] // ROWS[i]} | {shares[i]:.2f} | {weights[i]:.2f} | {drawn[i]:,} | "
            f"{fractions[i]:.3f} | {drawn[i] / ROWS[i]:.2f} |"
        ) in table_rows("weights.md")
    assert (drawn * TOKENS / ROWS / (drawn * TOKENS / ROWS).sum()).round(3).tolist() == weights.tolist()
    assert f"`math` at most {TABLE.most(4)[2]:.1f}" in page("weights.md")


def test_what_a_row_counts_for_is_computed() -> None:
    weights, mean = np.array([0.5, 0.2, 0.3]), TOKENS / ROWS
    q = learning_fractions(weights, mean)
    share = q * mean / (q * mean).sum()
    for i, name in enumerate(NAMES):
        counts, host = weights[i] / share[i], weights[i] / TABLE.shares("token")[i]
        assert f"| {name} | {share[i]:.3f} | {counts:.2f} | {host:.2f} |" in table_rows("weights.md")


def test_what_a_source_that_is_held_back_leaves_to_the_others_is_computed() -> None:
    weights = np.array([0.3, 0.1, 0.6])
    drawn, asked = drawn_rows(weights), 10_000 * TABLE.sampling(weights)
    tokens = drawn * TOKENS / ROWS
    for i, name in enumerate(NAMES):
        row = f"| {name} | {asked[i]:,.0f} | {drawn[i]:,} | {tokens[i] / tokens.sum():.3f} |"
        assert row in table_rows("weights.md")


def test_what_a_source_of_long_rows_is_held_to_is_computed() -> None:
    rows, length = np.array([200, 4000]), np.array([1000, 20])
    table, source = SourceTable(["long", "short"], rows * length, rows, ""), np.repeat([0, 1], rows)
    drawn = np.bincount(source[resample(source, table.sampling(np.array([0.99, 0.01])), 4, seed=0, rows=4200)])
    part = drawn * length / (drawn * length).sum()
    assert f"{drawn[0]} and {drawn[1]:,} rows, {part[0]:.3f} and {part[1]:.3f} of the tokens" in page("weights.md")
    assert table.most(4)[0] == 1.0


ARMS = {
    "**the learned mixture**": "new-applied",
    "the best single source, known only afterwards": "math",
    "the data as they are": "all-rows",
    "the data as they are, and the validation rows": "all-rows-and-validation",
    "*not an ordinary run:* the model that the learning run saves": "new",
}


@pytest.mark.parametrize(("arm", "measured"), ARMS.items())
def test_what_the_readme_claims_was_measured(arm: str, measured: str) -> None:
    benchmark = (ROOT / "benchmarks/small_model.md").read_text("utf-8").split("## Another target")[0]
    found = re.findall(rf"^\| (\d) \| {measured} \| [\d.]+ \| ([-+][\d.]+) ± [\d.]+ \|$", benchmark, re.M)
    assert [seed for seed, _ in found] == list("12345")
    differences = np.array([float(difference) for _, difference in found])
    error = differences.std(ddof=1) / len(differences) ** 0.5
    cells = [f"{differences.mean():+.2f} ± {error:.2f}", f"{differences.min():+.2f} to {differences.max():+.2f}"]
    cells = [cell.replace("-", "−") for cell in cells]
    assert f"| {arm} | {' | '.join(cells)} |" in table_rows("README.md")


# A figure of a page, and where it was measured.
FIGURES = [
    ("validation.md", ".4 to .7 of its deviation", "small_model.md", "−0.4 to −0.7 of its standard deviation"),
    ("validation.md", "standard errors of 0.009 to 0.043 nats", "small_model.md", "-1.4440 ± 0.0428"),
    ("validation.md", "were worth 0.53 nats more", "small_model.md", "0.533 ± 0.029 below what was learned"),
    ("validation.md", "128 tokens, 35 of them the answer's", "real_data.md", "128 tokens leave 35 of it on average"),
    ("report.md", "0.26 nats better than equal weights", "small_model.md", "by 0.257 ± 0.016 nats"),
    ("report.md", "after 88 to 135 steps of 200", "small_model.md", "109, 120, 135, 100 and 88 of 200 steps"),
    ("report.md", "half a deviation needs about 290", "evidence.md", "| 3 | 0.0 | 0.5 | 292 (1.12) |"),
    ("report.md", "of a whole deviation 150", "evidence.md", "| 3 | 0.0 | 1.0 | 150 (1.03) |"),
    ("report.md", "in one of 300 runs at most", "evidence.md", "at most one of 300 runs at ρ 0 and .5; at ρ .9 in 8"),
    ("README.md", "undecided, −0.02 ± 0.06 over five", "real_data.md", "mean −0.021 ± 0.056 over the seeds"),
    ("method.md", "undecided, −0.02 ± 0.06", "real_data.md", "mean −0.021 ± 0.056 over the seeds"),
    ("README.md", "0.03 to 0.06 better than the data as they are", "denoising.md", "by 0.056, 0.030 and 0.052 nats"),
    ("method.md", "three seeds of three, by 0.03 to 0.06 nats", "denoising.md", "by 0.056, 0.030 and 0.052 nats"),
    (
        "method.md",
        "gains 0.17 ± 0.04 on equal weights",
        "planted_sizes.md",
        "the old one gains (−0.17 ± 0.04 on uniform)",
    ),
    ("two-phases.md", "0.59 nats better", "small_model.md", "0.593 ± 0.024 below that"),
    ("memory.md", "LoRA 2.05 times, with QLoRA 1.98 times", "gpu.md", "in 2.05 times the plain host's step"),
    ("memory.md", "LISA at 1B 2.4 times", "gpu.md", "0.376 | 0.901 | 2.39"),
    ("memory.md", "5.7 GiB, then 3.9", "gpu.md", "4.14 | 3.89 | 0.94"),
    ("memory.md", "it was 3 to 6% low", "gpu.md", "It is 3 to 6% low"),
    ("method.md", "as good as the best single source", "small_model.md", "as good as `math` alone"),
    ("method.md", "in 94 to 99% of the runs", "evidence.md", "in 94 to 99% of the runs"),
    ("method.md", "At a vertex in 0.9 to 1.2 times", "ground_truth.md", "0.9 to 1.2 times the updates"),
    ("method.md", "0.7 to 1.4 times the updates in white noise", "evidence.md", "0.7 to 1.4 times the updates"),
]


@pytest.mark.parametrize(("name", "said", "benchmark", "measured"), FIGURES)
def test_a_figure_is_one_that_was_measured(name: str, said: str, benchmark: str, measured: str) -> None:
    """Measured anew, it is to be changed in both."""
    assert said in " ".join(page(name).split())
    assert measured in " ".join((ROOT / "benchmarks" / benchmark).read_text("utf-8").split())


def test_the_constants_of_the_method_are_those_of_the_code() -> None:
    text = " ".join(page("method.md").split())
    assert f"a = {evidence.LEVEL:g} / S, r = {evidence.BOUNDARY_START:g}" in text
    assert f"over {moments.LAGS} lags, AR(1), batch means), the first taken {moments.ERRORS_OF_SHARE:g}," in text
    assert f"caught up by at most {mixture.MOST:g} of the RMS in an update" in text
    assert f"it counts for no more than {evidence.OUTLIER:g} times that," in text
    assert (mixture.LEAST_OTHERS, moments.ERRORS_OF_FIRST, FLOOR, split.MOST) == (0.01, 2.0, 0.1, 200)  # in words


def test_what_the_plugin_adds_is_that_of_the_table() -> None:
    text = (ROOT / "benchmarks/memory.md").read_text("utf-8")

    def more(trains: str, gpus: str) -> tuple[float, str]:
        pattern = rf"\| Meta-Llama-3-8B \| {trains} \| {gpus} \| ([\d.]+) \| ([\d.]+) \| (\S+) \|"
        ordinary, ours, cpu = re.search(pattern, text).groups()
        return float(ours) - float(ordinary), cpu

    assert f"8B, r = 16: {more('LoRA r=16', '1')[0]:.1f} GiB" in page("memory.md")
    extra, cpu = more("LISA, 2 blocks", "1")
    assert f"8B, 2 blocks: {extra:.0f} GiB, and {cpu} in CPU memory" in page("memory.md")
    assert f"8B on 8 GPUs with FSDP2: {more('all parameters', '8 × FSDP2')[0]:.0f} GiB" in page("memory.md")


def test_the_table_of_memory_has_the_models_of_its_command() -> None:
    from benchmarks import memory_table

    text = (ROOT / "benchmarks/memory.md").read_text("utf-8")
    assert all(f"| {model.rsplit('/', 1)[-1]} | LoRA r=16 |" in text for model in memory_table.MODELS)
