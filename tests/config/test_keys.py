"""A key that there is not, or a value that cannot be, is named together with what there is."""

from __future__ import annotations

from typing import Any

import pytest

from scalebio_plugin.config.block import settings_of


def problems(**block: Any) -> list[str]:
    with pytest.raises(ValueError, match="scalebio cannot run this config") as refused:
        settings_of({"scalebio": block})
    return str(refused.value).splitlines()[1:]


@pytest.mark.parametrize(
    ("block", "meant"),
    [
        ({"validation_dataset": []}, "scalebio.validation_datasets"),
        ({"penalti": 10}, "scalebio.penalty"),
        ({"learn": {"frction": 0.5}}, "scalebio.learn.fraction"),
        ({"fraction": 0.5}, "scalebio.learn.fraction"),
        ({"active_layers": 2}, "scalebio.lisa.active_layers"),
        ({"inner": {"devise": "cpu"}}, "scalebio.inner.device"),
        ({"prior": {"strenght": 0.1}}, "scalebio.prior.strength"),
        ({"LISA": {}}, None),
    ],
    ids=str,
)
def test_the_key_that_was_meant(block: dict[str, Any], meant: str | None) -> None:
    (problem,) = problems(**block)
    assert "there is no such key" in problem
    assert (f"did you mean {meant}? " in problem) is (meant is not None)


def test_the_keys_that_there_are_beside_it() -> None:
    (problem,) = problems(learn={"x": 1})
    assert (
        problem == "  - scalebio.learn.x: there is no such key; the keys of learn are fraction, steps, until, at_most"
    )
    (problem,) = problems(x=1)
    assert "the keys are validation_datasets, validation_batch_size, " in problem
    assert ", lisa, names, " in problem


def test_values_with_what_was_given_all_in_one() -> None:
    found = problems(penalty=-1, mixture_init="even", learn={"fraction": 0.5, "steps": 3}, bounds={"a": [0.1]}, x=1)
    assert len(found) == 5
    assert "  - scalebio.penalty: Input should be greater than 0, got -1" in found
    (init,) = [problem for problem in found if problem.startswith("  - scalebio.mixture_init")]
    assert init.endswith("or: Input should be a valid dictionary, got 'even'")
    assert "  - scalebio.learn: give one of learn.fraction, learn.steps; remove the others" in found


def test_a_block_that_is_none() -> None:
    with pytest.raises(ValueError, match="scalebio: Input should be a valid dictionary"):
        settings_of({"scalebio": 3})
