"""Text from elsewhere says what it says, and does nothing to a terminal."""

from __future__ import annotations

import pytest

from scalebio_plugin.report.tables import shorten, weights_line
from scalebio_plugin.report.words import printable, printable_lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("a\rb\nc\x7f\x9b2J", r"a\rb\nc\x7f\x9b2J"),
        ("left\u202eright\u2066", r"left\u202eright\u2066"),
        ("one\u2028line\ufeff", r"one\u2028line\ufeff"),
        ("half \ud800", r"half \ud800"),
    ],
)
def test_what_moves_a_cursor_or_turns_a_line_is_spelt_out(text, shown):
    assert printable(text) == shown


@pytest.mark.parametrize("text", ["org/data", "数学", "naïve \u00a0 é", "क्\u200dष", "👩\u200d🔬", r"back\slash"])
def test_words_stay_as_they_are(text):
    assert printable(text) == text


def test_of_a_text_the_lines_stay():
    assert printable_lines("a\n\tb\x1b[2J") == "a\n\tb\\x1b[2J"


def test_every_name_of_a_table_is_printable():
    assert shorten("\x1b" * 3) == r"\x1b\x1b\x1b"
    assert weights_line({"a\x1b[1m": 0.75, "b\n": 0.25}) == r"a\x1b[1m 0.7500, b\n 0.2500"
    assert len(shorten("\x1b" * 100)) == 40
