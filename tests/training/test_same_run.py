"""A checkpoint of another run is refused by what differs, row by row of the table in docs/resume.md."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scalebio_plugin.config.block import ScaleBiOSettings
from scalebio_plugin.report import identity
from scalebio_plugin.report.identity import KEYS, RULES, Part, RunIdentity, differences, read_identity, write_identity
from scalebio_plugin.training.same_run import refuse_another_run

A, B, GOAL = Part(100, "aa"), Part(50, "bb"), Part(20, "cc")
RUN = RunIdentity({"a": A, "b": B}, {"goal": GOAL}, "order", dict.fromkeys(KEYS, 10))
OTHERS: dict[str, list[tuple[RunIdentity, str]]] = {
    "sources": [
        (replace(RUN, sources={"a": A}), "'b' is missing; put them back, as datasets: and scalebio.split_by had them"),
        (replace(RUN, sources={"a": A, "b": B, "c": GOAL}), "'c' is new; put them back"),
        (replace(RUN, sources={"a": A, "c": B}), "'b' is called 'c' here; put them back, or give scalebio.names"),
        (
            replace(RUN, sources={"x": Part(70, "x1"), "y": Part(80, "y1")}),  # split by another column
            "'y' is new; put them back, as datasets: and scalebio.split_by had them",
        ),
        (replace(RUN, sources={"b": B, "a": A}), "put the entries back in that order"),
    ],
    "rows": [
        (replace(RUN, sources={"a": A, "b": Part(51, "b1")}), "source 'b' had 50 rows and has 51: rows were added"),
        (replace(RUN, sources={"a": Part(9, "a"), "b": B}), "source 'a' had 100 rows and has 9: rows were taken away"),
    ],
    "texts": [
        (replace(RUN, sources={"a": A, "b": Part(50, "b1")}), "source 'b' has 50 rows as before, but edited ones")
    ],
    "order": [(replace(RUN, order="another"), "the same rows come in another order")],
    "validation sets": [(replace(RUN, validation={"goal": GOAL, "more": A}), "'more' is new; put them back")],
    "validation rows": [
        (replace(RUN, validation={"goal": Part(20, "c1")}), "validation set 'goal' has 20 rows as before, but edited"),
        (replace(RUN, validation={"goal": Part(21, "c1")}), "validation set 'goal' had 20 rows and has 21"),
    ],
    **{key: [(replace(RUN, keys={**RUN.keys, key: 9}), RULES[key].what)] for key in KEYS},
}
EACH = [pytest.param(key, *of, id=f"{key}{i}") for key in OTHERS for i, of in enumerate(OTHERS[key])]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    write_identity(tmp_path, RUN)
    return tmp_path


@pytest.fixture
def said() -> Iterator[list[str]]:
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("axolotl.scalebio")
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


def test_the_table_is_in_the_docs() -> None:
    page = (Path(__file__).parents[2] / "docs/resume.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ") and "differs" not in line]
    assert [(row[0].removeprefix("| "), row[1], row[2].removesuffix(" |")) for row in rows] == [
        (key, rule.what, "goes on" if rule.may_go_on else "is refused") for key, rule in RULES.items()
    ]
    assert OTHERS.keys() == RULES.keys()


def test_of_each_key_of_the_block_it_is_decided() -> None:
    """What is not compared is compared as data, or may change."""
    free = {"probe_interval", "inner", "apply", "extensions", "on_mismatch", "on_divergence"}
    data = {"validation_datasets", "names", "split_by", "min_rows", "held_out_rows"}
    compared = {key.removeprefix("scalebio.") for key in KEYS}
    assert set(ScaleBiOSettings.model_fields) - compared == free | data


def test_what_is_written_is_read_back(checkpoint: Path) -> None:
    assert read_identity(checkpoint) == RUN
    assert differences(RUN, RUN) == []
    refuse_another_run(str(checkpoint), RUN, "error")


@pytest.mark.parametrize(("key", "here", "text"), EACH)
def test_each_difference_is_refused_by_its_name(checkpoint: Path, key: str, here: RunIdentity, text: str) -> None:
    (found,) = differences(RUN, here)
    assert found.key == key
    with pytest.raises(ValueError, match=r"scalebio: .* is of another run:") as refused:
        refuse_another_run(str(checkpoint), here, "error")
    _, line, end = str(refused.value).splitlines()
    assert line.startswith(f"  - {key}: ")
    assert text in line
    assert "back" in line
    assert ("on_mismatch: warn" in end) == RULES[key].may_go_on
    assert "start a new output_dir" in end


@pytest.mark.parametrize(("key", "here", "text"), EACH)
def test_with_warn_it_goes_on_where_that_can_be_right(
    checkpoint: Path, said: list[str], key: str, here: RunIdentity, text: str
) -> None:
    if RULES[key].may_go_on:
        refuse_another_run(str(checkpoint), here, "warn")
        (line,) = said
        assert line.startswith(f"scalebio: goes on from another run: {key}: ")
        assert text in line
    else:
        with pytest.raises(ValueError, match=f"  - {key}: "):
            refuse_another_run(str(checkpoint), here, "warn")
        assert said == []


def test_all_that_differs_is_said_at_once_and_with_warn_what_stays_an_error(checkpoint: Path) -> None:
    here = replace(RUN, order="x", keys={**RUN.keys, "scalebio.penalty": 20, "scalebio.keep": "inner"})
    with pytest.raises(ValueError, match="another run") as refused:
        refuse_another_run(str(checkpoint), here, "error")
    assert [line.split(": ")[0] for line in str(refused.value).splitlines()[1:-1]] == [
        *("  - order", "  - scalebio.penalty", "  - scalebio.keep")
    ]
    assert "this run has 20 and it had 10" in str(refused.value)
    with pytest.raises(ValueError, match="another run") as refused:
        refuse_another_run(str(checkpoint), here, "warn")
    assert [line.split(": ")[0] for line in str(refused.value).splitlines()[1:-1]] == ["  - scalebio.keep"]


def test_learning_may_end_later() -> None:
    assert differences(RUN, replace(RUN, keys={**RUN.keys, "scalebio.learn": 11})) == []


def test_a_key_that_an_older_version_did_not_write_is_not_compared() -> None:
    older = replace(RUN, keys={key: value for key, value in RUN.keys.items() if key != "scalebio.objective"})
    assert differences(older, RUN) == []


def test_the_rows_of_a_validation_batch_that_an_earlier_version_left_to_the_default_are_not_compared() -> None:
    older = replace(RUN, keys={**RUN.keys, "scalebio.validation_batch_size": None})
    assert differences(older, RUN) == []


def changed(change: Callable[[dict[str, Any]], Any], folder: Path) -> None:
    content = json.loads((folder / identity.FILE).read_text())
    change(content)
    (folder / identity.FILE).write_text(json.dumps(content))


def test_a_newer_format_and_a_broken_file_are_refused_and_newer_keys_left_out(checkpoint: Path) -> None:
    changed(lambda content: content.update(later=1), checkpoint)
    changed(lambda content: content["keys"].update(later=1), checkpoint)
    refuse_another_run(str(checkpoint), RUN, "error")
    changed(lambda content: [content.update(schema=2), content.pop("sources")], checkpoint)
    with pytest.raises(ValueError, match=r"scalebio: .*run\.json: schema 2 is newer than .*; update scalebio"):
        refuse_another_run(str(checkpoint), RUN, "error")
    (checkpoint / identity.FILE).write_text('{"sources": 3}')
    with pytest.raises(ValueError, match=r"scalebio: .*run\.json: sources must be .*, got 3"):
        refuse_another_run(str(checkpoint), RUN, "error")


def test_an_older_checkpoint_is_taken_and_the_log_says_so(tmp_path: Path, said: list[str]) -> None:
    refuse_another_run(str(tmp_path), RUN, "error")
    (line,) = said
    assert "does not say what its run was" in line
