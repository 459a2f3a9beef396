"""Keys of a YAML text, edited in their places."""

from __future__ import annotations

import pytest
import yaml

from scalebio_plugin.edit.text import appended, end_of, with_value, with_weights, without_plugins

BLOCK = (
    "# mine\ndatasets:\n  - path: a # first\n    type: alpaca\n  - just/a/name\n  - {type: alpaca}\nseed: 1 # lucky\n"
)


@pytest.mark.parametrize(("text", "end"), [("", 0), ("a: 1\n", 5), ("a: 1\n...\nleft over\n", 5)], ids=repr)
def test_a_document_ends_at_its_dots_or_with_the_text(text: str, end: int) -> None:
    assert end_of(text) == end


@pytest.mark.parametrize(
    ("key", "value", "changed"),
    [
        ("seed", 2, BLOCK.replace("seed: 1", "seed: 2")),
        ("bf16", False, f"{BLOCK}\nbf16: false\n"),
        ("datasets", None, "# mine\ndatasets: null\nseed: 1 # lucky\n"),
    ],
    ids=["a scalar", "a new key", "a block"],
)
def test_a_key_gets_another_value_and_the_rest_stays(key: str, value: object, changed: str) -> None:
    assert with_value(BLOCK, key, value) == changed


def test_a_text_of_several_lines_gives_way_as_a_whole() -> None:
    assert with_value("a: |\n  one\n  two\nb: 1\n", "a", 3) == "a: 3\nb: 1\n"


@pytest.mark.parametrize(
    "last",
    ["x: |\n  one\n  two", "x: >\n  one", "x: |+\n  one\n\n", "x:\n  - {y: 1}\n  - z: |\n      one", "x: |-\n  one"],
)
@pytest.mark.parametrize("before", ["", "a: 1\n", "a: 1\n\n# of x\n"], ids=repr)
def test_a_text_at_the_end_keeps_its_last_line_where_keys_are_added(before: str, last: str) -> None:
    old = before + last
    new = appended(appended(old, "b: 2\n"), "c: 3\n")
    assert yaml.safe_load(new) == {**yaml.safe_load(old), "b": 2, "c": 3}
    assert new.startswith(before.partition("\n#")[0])
    assert last in new
    assert ("# of x\nx" in new) is ("# of x" in old)


def test_entries_without_a_path_get_no_weight() -> None:
    weighted = with_weights(BLOCK, [0.5, 0.25, 0.25])
    first, *others = yaml.safe_load(weighted)["datasets"]
    assert first == {"path": "a", "type": "alpaca", "weight": 0.5}
    assert others == ["just/a/name", {"type": "alpaca"}]
    assert with_weights("seed: 1\n", [1.0]) == "seed: 1\n"


@pytest.mark.parametrize("text", ["seed: 1\n", "plugins: scalebio\n"])
def test_where_no_plugins_are_listed_none_is_taken_out(text: str) -> None:
    assert without_plugins(text, ["scalebio"]) == text


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("plugins:\n  - a\n  - b # why\n  - c\n", "plugins:\n  - a\n  - c\n"),
        ("plugins: [a, b, c]\n", "plugins: [a, c]\n"),
    ],
)
def test_a_plugin_is_taken_out_of_its_list(text: str, left: str) -> None:
    assert without_plugins(text, ["b"]) == left
