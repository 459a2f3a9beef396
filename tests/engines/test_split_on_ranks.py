"""Sources of a column, and quantisation-aware training, on shards: both sets as in one process, ranks agree on λ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import host
from tests.data.test_leaks import LONG, SOURCES, entry, write_leaky
from tests.engines.test_engines import LAYOUTS
from tests.engines.test_optimizers_on_ranks import assert_two_sets, run

KINDS = ("clean", "wrong", "offtopic")


def split_case(folder: Path) -> dict[str, Any]:
    """One dataset, whose rows say in a column of which kind they are."""
    made = host.make_inputs(folder)
    rows = [
        {**json.loads(line), "meta": {"kind": kind}}
        for kind in KINDS
        for line in (made / f"data/{kind}.jsonl").read_text().splitlines()
    ]
    (folder / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "datasets": [{"path": str(folder / "all.jsonl"), "type": "alpaca"}],
        "scalebio": {"split_by": "meta.kind", "min_rows": 1},
    }


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["fsdp2", "zero3"])
def test_the_values_of_a_column_are_sources_on_two_ranks(engine: str, tmp_path: Path) -> None:
    outcomes = run({"split": split_case(tmp_path / "rows")}, LAYOUTS[engine], tmp_path)
    assert_two_sets(outcomes, "split")
    assert all(len(weights) == len(KINDS) for weights in outcomes["split"][0].weights)


@pytest.mark.slow
def test_the_rows_that_leak_are_dropped_on_both_ranks(tmp_path: Path) -> None:
    rows = write_leaky(tmp_path)
    block = {
        "validation_datasets": [{**entry("validation"), "path": str(rows / "validation.jsonl")}],
        "on_leak": "drop",
    }
    case = {"datasets": [{**entry(name), "path": str(rows / f"{name}.jsonl")} for name in SOURCES], "scalebio": block}
    outcomes = run({"leaks": {**case, **LONG}}, LAYOUTS["fsdp2"], tmp_path)
    assert_two_sets(outcomes, "leaks")


@pytest.mark.slow
def test_both_sets_are_rounded_alike_on_two_ranks(tmp_path: Path) -> None:
    cases = {"qat": {"qat": {**host.QAT, "fake_quant_after_n_steps": 2}}, "plain": {}}
    outcomes = run(cases, LAYOUTS["fsdp2"], tmp_path)
    assert_two_sets(outcomes, "qat")
    rounded, plain = (outcomes[case][0].losses for case in cases)
    assert rounded[-1] != plain[-1], "nothing was rounded"
