"""Text from elsewhere, before it reaches a terminal or a log: names of sources come with data and files."""

from __future__ import annotations

import unicodedata

_MOVING = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # controls, escapes, bidi marks, half characters, other ends of lines
_JOINERS = "\u200c\u200d"  # part of words in some scripts


def printable(text: str, keep: str = "") -> str:
    r"""What moves a cursor, colours or turns the direction of a line is spelt out, as `\x1b`, but what to `keep`."""
    return "".join(
        one if unicodedata.category(one) not in _MOVING or one in _JOINERS + keep else ascii(one)[1:-1] for one in text
    )


def printable_lines(text: str) -> str:
    return printable(text, keep="\n\t")


def counted(count: int, what: str) -> str:
    """A number of things: 1 row, 2 rows."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
