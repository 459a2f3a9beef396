"""What a run says of its own cost."""

from __future__ import annotations

from pathlib import Path

import pytest

from scalebio_plugin.report.cost import Cost, PhaseCost, cost_lines, read_cost, write_cost

SPENT = Cost({"warmup": PhaseCost(1, 2.0), "learn": PhaseCost(40, 118.0), "after": PhaseCost(60, 60.0)}, 9 * 2**29)


def test_it_is_written_and_read(tmp_path: Path) -> None:
    assert read_cost(tmp_path) == Cost()
    write_cost(tmp_path, SPENT)
    assert read_cost(tmp_path) == SPENT


def test_what_it_says() -> None:
    assert dict(cost_lines(SPENT)) == {
        "time of the steps": "3 min: 1 warmup step 1% (2 s each), 40 learning steps 66% (2.95 s each), "
        "60 ordinary steps 33% (1 s each)",
        "a learning step": "took 3.0 times as long as an ordinary one of this run",
        "peak memory": "4.5 GiB of tensors on the device of the main process",
    }


@pytest.mark.parametrize("cost", [Cost(), Cost({"learn": PhaseCost(0, 0.0)})])
def test_of_nothing_it_says_nothing(cost: Cost) -> None:
    assert list(cost_lines(cost)) == []


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{", "must be JSON"),
        ('{"phases": {"learn": {"steps": -1, "seconds": 1.0}}}', r"phases\['learn'\]\['steps'\]"),
        ('{"phases": {"learn": {"steps": 1, "seconds": NaN}}}', r"phases\['learn'\]\['seconds'\]"),
        ('{"phases": {"<b>": {"steps": 1, "seconds": 1.0}}}', "phases"),
        ('{"phases": {}, "peak_bytes": "many"}', "peak_bytes"),
    ],
)
def test_a_file_that_is_none_is_named_with_its_key(tmp_path: Path, content: str, named: str) -> None:
    (tmp_path / "cost.json").write_text(content)
    with pytest.raises(ValueError, match=rf"cost\.json:? ?{named}.*; delete it"):
        read_cost(tmp_path)


def test_what_a_newer_version_adds_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "cost.json").write_text('{"phases": {}, "peak_bytes": null, "later": 1}')
    assert read_cost(tmp_path) == Cost()
