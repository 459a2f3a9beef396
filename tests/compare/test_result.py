"""What judged arms come to, against figures by hand and against drawn comparisons whose truth is known."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from scalebio_plugin.compare.result import JUDGED, Difference, Judged, difference, document_of, read_judged, table
from scalebio_plugin.report.comparison import sentences


def arm(*losses: list[float], tokens: float = 10.0, seconds: float = 1.0) -> dict[int, Judged]:
    """A seed for each list of row losses, nats a token."""
    return {
        seed: Judged(tokens * np.array(rows), np.full(len(rows), tokens), steps=5, seconds=seconds)
        for seed, rows in enumerate(losses)
    }


def test_difference_by_hand() -> None:
    found = difference(arm([1.0, 2.0, 3.0], [1.2, 2.4, 3.0]), arm([2.0, 2.0, 4.0], [2.0, 2.0, 4.0]))
    assert found.mean == pytest.approx((-2 / 3 - 1.4 / 3) / 2)
    assert found.seed_error == pytest.approx(np.std([-2 / 3, -1.4 / 3], ddof=1) / math.sqrt(2))
    assert found.row_error == pytest.approx(np.std([-0.9, 0.2, -1.0], ddof=1) / math.sqrt(3))
    # Student's quantiles of 1 and 2 degrees of freedom.
    assert found.half_width == pytest.approx(math.hypot(12.7062 * found.seed_error, 4.3027 * found.row_error), rel=1e-4)


def test_rows_of_many_tokens_count_for_as_many() -> None:
    tokens = np.array([1, 9])
    first, second = (Judged(np.array(rows), tokens, 5, 1.0) for rows in ([1.0, 9.0], [3.0, 0.0]))
    assert difference({0: first}, {0: second}).mean == pytest.approx((10 - 3) / 10)


def test_one_seed_says_that_it_is_one_seed() -> None:
    low, high = arm([1.0, 1.1, 0.9]), arm([5.0, 5.1, 4.9])
    found = difference(low, high)
    assert (found.verdict, found.seed_error) == ("better on one seed", None)
    assert found.mean == pytest.approx(-4.0)
    assert difference(high, low).verdict == "worse on one seed"
    assert difference(arm([1.0, 5.0, 3.0]), arm([5.0, 1.0, 3.1])).verdict == "cannot be told apart"


@pytest.mark.parametrize(
    ("mean", "verdict"),
    [(-0.3, "better"), (0.3, "worse"), (0.1, "cannot be told apart"), (float("nan"), "cannot be told apart")],
)
def test_verdict(mean: float, verdict: str) -> None:
    assert Difference(mean, 0.05, 0.05, 0.2, 0).verdict == verdict


def test_as_many_seeds_more_as_it_says_and_not_one_less_would_tell_the_arms_apart() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(3.0, 0.02, size=500)

    def seeds(offsets: np.ndarray) -> dict[int, Judged]:
        return arm(*(list(rows + offset) for offset in offsets))

    few = np.array([0.0, 0.02, 0.04, 0.06])
    found = difference(seeds(few), seeds(np.zeros(4) + 0.055))
    assert found.verdict == "cannot be told apart"
    assert found.more_seeds is not None
    assert found.more_seeds > 1
    for count, told in ((4 + found.more_seeds, True), (3 + found.more_seeds, False)):
        # Offsets of the same mean and deviation, count of them.
        spread = np.linspace(-1, 1, count)
        offsets = few.mean() + spread * few.std(ddof=1) / spread.std(ddof=1)
        again = difference(seeds(offsets), seeds(np.zeros(count) + 0.055))
        assert again.mean == pytest.approx(found.mean)
        assert (again.verdict != "cannot be told apart") == told


def test_where_the_test_rows_are_too_few_no_seed_would_help() -> None:
    rows = [1.0, 2.0, 6.0, 3.0]
    same = difference(arm(rows, rows), arm([3.0, 1.0, 2.0, 6.2], [3.0, 1.0, 2.0, 6.2]))
    assert same.more_seeds is None


def test_where_rows_differ_by_seed_more_seeds_help_as_much_as_they_then_do() -> None:
    """The rows of a seed are noise of its own, and its mean over them hardly differs: what is left falls with seeds."""
    noise = np.random.default_rng(3).normal(size=(64, 40))
    noise -= noise.mean(axis=1, keepdims=True)

    def of(count: int) -> Difference:
        return difference(arm(*(list(3.05 + rows) for rows in noise[:count])), arm(*([3.0] * 40 for _ in range(count))))

    few = of(4)
    assert few.verdict == "cannot be told apart"
    assert few.more_seeds is not None  # the error over rows alone would have said never
    assert abs(few.mean) < 1.96 * few.row_error
    assert of(4 + few.more_seeds // 2).verdict == "cannot be told apart"
    assert of(min(64, 4 + 2 * few.more_seeds)).verdict == "worse"


def test_a_single_test_row_tells_nothing() -> None:
    with pytest.raises(ValueError, match="1 test row; give more than one"):
        difference(arm([1.0], [1.1]), arm([2.0], [2.1]))
    blank = Judged(np.array([3.0, 0.0]), np.array([2, 0]), 5, 1.0)  # nor does a row without a target
    for seeds in (arm([1.0]), {0: blank}):
        document = document_of({"learned": seeds, "uniform": seeds}, "learned", None)
        assert "verdict" not in document["arms"]["uniform"]
        assert sentences(document)[0].startswith("one test row says nothing of others")
        assert "uniform" in table(document)


@pytest.mark.parametrize("rows", [2, 3, 60])
def test_interval_covers_the_truth(rows: int) -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(300):
        of_seeds, of_rows = rng.normal(0, 0.05, size=3), rng.normal(0, 0.5, size=rows)
        losses = [list(3 + 0.2 + of_rows + offset) for offset in of_seeds]
        found = difference(arm(*losses), arm(*([3.0] * rows for _ in range(3))))
        covered += abs(found.mean - 0.2) <= found.half_width
    assert 0.93 <= covered / 300 <= 1.0


def test_arms_judged_on_other_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="other test rows"):
        difference(arm([1.0, 2.0]), arm([1.0, 2.0, 3.0]))
    with pytest.raises(ValueError, match="no seed"):
        difference({0: arm([1.0])[0]}, {1: arm([1.0])[0]})


def test_the_learning_counts_for_what_applies_it() -> None:
    document = document_of(
        {
            "run": arm([1.0, 1.0], seconds=25.0),
            "learned": arm([2.0, 2.1], seconds=10.0),
            "uniform": arm([3.0, 3.0], seconds=10.0),
        },
        "learned",
        "run",
    )
    times = {name: (of["time"], of["time_with_learning"]) for name, of in document["arms"].items()}
    assert times == {"run": (2.5, 2.5), "learned": (1.0, 3.5), "uniform": (1.0, 1.0)}
    assert json.loads(json.dumps(document)) == document


def test_table_and_sentences_name_every_arm() -> None:
    arms = {"run": arm([1.0, 1.0], [1.0, 1.1]), "learned": arm([2.0, 2.1], [2.0, 2.1]), "odd": arm([9.0, 9], [9.0, 9])}
    document = document_of(arms, "learned", "run")
    lines = table(document).splitlines()
    assert [line.split()[0] for line in lines] == ["arm", "run", "learned", "odd"]  # best first
    told = sentences(document)
    assert len(told) == 2
    assert "better than odd: -6.95" in told[1]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_an_arm_that_diverged_is_the_last_and_compared_with_none(loss: float) -> None:
    arms = {
        "odd": arm([9.0, loss], [9.0, 9.0]),
        "learned": arm([2.0, 2.1], [2.0, 2.1]),
        "run": arm([1.0, 1.0], [1.0, 1.1]),
    }
    document = document_of(arms, "learned", "run")
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["arms"]["odd"]["losses"] == {"0": None, "1": 9.0}
    assert "verdict" not in document["arms"]["odd"]
    assert [line.split()[:2] for line in table(document).splitlines()[1:]] == [
        ["run", "1.0250"],
        ["learned", "2.0500"],
        ["odd", "diverged"],
    ]
    assert "odd diverged: its test loss is no finite number on seed 0" in sentences(document)


def test_where_the_reference_diverged_nothing_is_said_of_the_others() -> None:
    document = document_of({"learned": arm([math.nan, 1.0]), "odd": arm([9.0, 9.0])}, "learned", None)
    assert sentences(document) == ["learned diverged: its test loss is no finite number on seed 0"]


def test_judged_is_read_back(tmp_path: Path) -> None:
    assert read_judged(tmp_path) is None
    (tmp_path / JUDGED).write_text('{"losses": [1.5, 2.5], "tokens": [1, 3], "steps": 7, "seconds": 2.0}')
    read = read_judged(tmp_path)
    assert read is not None
    assert (read.loss, read.steps, read.seconds) == (1.0, 7, 2.0)
    (tmp_path / JUDGED).write_text('{"losses": [1.5, null], "tokens": [1, 3], "steps": 7, "seconds": 2.0}')
    read = read_judged(tmp_path)
    assert read is not None
    assert math.isnan(read.loss)
