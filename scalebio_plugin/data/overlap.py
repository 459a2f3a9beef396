"""Rows of tokens that hold the same text, whatever template, case, spaces or signs they write it with.

A row is its letters: those and the digits of its tokens, without case, marks, spaces and signs, in UTF-8. A window is
WINDOW bytes of them on end, some three words. Windows that a set, or a source, has in many different rows are a
template's: they do not count, nor does one that has a letter in common with them. Two rows hold the same text where
more than half of the windows of the shorter one stand in the other and PHRASE more: so much, a phrase of their own, do
rows of one kind of task have in common.

Legend: R rows, N windows, V rows that are looked for.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

WINDOW = 16  # bytes: 16 Latin letters, 5 Chinese ones
LEAST = 24  # windows of its own that a row must have to be compared: some eight words
PHRASE = 8
PART = 0.25  # of a row that is looked for, at least, stands in one that holds its text
SHARED = 0.05  # of the different rows of a set that have a window which does not count,
SHARED_ROWS = 4  # and no fewer than these
FRAMED = 512  # rows of a set, evenly spaced, by which its templates are known
_FEWEST = LEAST // 2 + PHRASE  # windows that rows with the same text have in common, at least
_ODD = [np.uint64(odd) for odd in (0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93, 0xFF51AFD7ED558CCD)]
_HALF = np.uint64(32)


def letters(text: str) -> str:
    """The letters and digits of a text: equal for texts whose NFKC forms differ in case, marks, spaces and signs."""
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return "".join(one for one in plain if one.isalnum())


@dataclass(frozen=True)
class Texts:
    """The letters of rows.

    Attributes:
        flat: Of all rows on end, uint8.
        starts: (R + 1,), where each row begins in it, and where the last one ends.
    """

    flat: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def spaced(self, most: int, size: int) -> Texts:
        """Evenly spaced ones, about `most` of the `size` that all have together."""
        return self.of(np.arange(0, len(self), max(1, -(-size // most))))

    def of(self, rows: np.ndarray) -> Texts:
        """Those rows."""
        lengths = np.diff(self.starts)[rows]
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        return Texts(self.flat[_spans(self.starts[rows], lengths)], starts)


class Vocabulary:
    """What the tokens of a tokenizer hold of letters, each decoded when it is first met.

    Args:
        decode: The text of one token, empty where it is none of a row's own. What is half a character decodes to
            U+FFFD: it counts as a word that is its number.
    """

    def __init__(self, decode: Callable[[int], str]):
        self.decode = decode
        self._known = pa.array([], pa.large_binary())
        self._place = np.zeros(0, dtype=np.int32)  # of each token in it; -1: not yet

    def texts(self, tokens: np.ndarray, starts: np.ndarray) -> Texts:
        """Of rows of tokens, given as `Texts` gives letters."""
        self._learn(tokens)
        _, offsets, data = self._known.take(pa.array(self._place[tokens])).buffers()
        ends = np.frombuffer(offsets, np.int64)[: len(tokens) + 1]
        return Texts(np.frombuffer(data or b"", np.uint8)[: ends[-1]], ends[starts])

    def _learn(self, tokens: np.ndarray) -> None:
        more = int(tokens.max(initial=-1)) + 1 - len(self._place)
        self._place = np.concatenate([self._place, np.full(max(0, more), -1, np.int32)])
        new = np.unique(tokens[self._place[tokens] < 0])
        if len(new):
            self._place[new] = np.arange(len(self._known), len(self._known) + len(new))
            held = [self._letters(token).encode() for token in new.tolist()]
            self._known = pa.concat_arrays([self._known, pa.array(held, pa.large_binary())])

    def _letters(self, token: int) -> str:
        text = self.decode(token)
        return f"x{token}x" if "\ufffd" in text else letters(text)


def _hashes(flat: np.ndarray) -> np.ndarray:  # (bytes - WINDOW + 1,), uint64
    """Of the window that begins at each byte, over the ends of rows too."""
    if len(flat) < WINDOW:
        return np.zeros(0, dtype=np.uint64)
    eight: np.ndarray = np.ndarray((len(flat) - 7,), np.uint64, np.ascontiguousarray(flat), strides=(1,)) * _ODD[0]
    eight ^= eight >> _HALF
    hashed: np.ndarray = eight[: 8 - WINDOW] * _ODD[1]
    hashed += eight[WINDOW - 8 :]
    hashed ^= hashed >> _HALF
    hashed *= _ODD[2]
    return hashed


@dataclass(frozen=True)
class Windows:
    """The different windows of each of `rows` rows: (N,) hashes in order, (N,) the row of each."""

    hashes: np.ndarray
    row: np.ndarray
    rows: int


def windows_of(texts: Texts, templates: np.ndarray | None = None) -> Windows:
    """
    Args:
        templates: Hashes, in order; windows that have a letter in common with one of these do not count.
    """
    counts = np.maximum(np.diff(texts.starts) - WINDOW + 1, 0)
    at, row = _spans(texts.starts[:-1], counts), np.repeat(np.arange(len(counts)), counts)
    hashed = _hashes(texts.flat)[at]
    if templates is not None:
        own = _clear_of(at[_found(templates, hashed)[0]], len(texts.flat))[at]
        hashed, row = hashed[own], row[own]
    order = np.argsort(hashed, kind="stable")  # a row's equal ones side by side
    hashed, row = hashed[order], row[order]
    first = _changes(hashed) | _changes(row)
    return Windows(hashed[first], row[first], len(counts))


def _clear_of(windows: np.ndarray, length: int) -> np.ndarray:
    """Of each place whether the window that begins there has no letter in common with those that begin at `windows`."""
    open_ = np.zeros(length + WINDOW, dtype=np.int32)
    open_[windows] += 1
    open_[windows + WINDOW] -= 1
    covered = np.concatenate([[0], np.cumsum(np.cumsum(open_) > 0)])
    clear: np.ndarray = covered[WINDOW:] == covered[:-WINDOW]
    return clear


def _spans(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The places from each start on, as many as its count, on end."""
    return np.arange(counts.sum()) + np.repeat(starts - np.cumsum(counts) + counts, counts)


def _changes(of: np.ndarray) -> np.ndarray:
    """Whether each is another than the one before."""
    return np.concatenate([[True], of[1:] != of[:-1]])[: len(of)]


def shared_windows(windows: Windows) -> np.ndarray:
    """Hashes of the windows that many different rows have; rows that have the same ones are one."""
    sums = np.zeros(windows.rows, dtype=np.uint64)
    np.add.at(sums, windows.row, windows.hashes)
    _, different = np.unique(sums, return_index=True)
    found, times = np.unique(windows.hashes[np.isin(windows.row, different)], return_counts=True)
    return found[times >= max(SHARED_ROWS, SHARED * len(different))]


@dataclass(frozen=True)
class Matches:
    """Pairs of rows that hold the same text, (P,) each.

    Attributes:
        row: That was looked through.
        wanted: That was looked for.
        same: Whether all windows of both that count are the same: what differs is case, spaces and signs (or templates,
            but for parts of them that are shorter than a window).
    """

    row: np.ndarray
    wanted: np.ndarray
    same: np.ndarray


class Index:
    """The windows of V rows that are looked for.

    Args:
        wanted: Of each set, whose rows are numbered on end.
        samples: Rows of what will be looked through, for the windows that many of them share.
    """

    def __init__(self, wanted: Sequence[Texts], samples: Iterable[Texts]):
        framed = (windows_of(one.spaced(FRAMED, len(one))) for one in (*wanted, *samples))
        self.shared = np.unique(np.concatenate([*map(shared_windows, framed)]))
        windows = [windows_of(one, self.shared) for one in wanted]
        bases = np.cumsum([0, *map(len, wanted)])
        row = np.concatenate([one.row + base for one, base in zip(windows, bases[:-1], strict=True)])
        hashed = np.concatenate([one.hashes for one in windows])
        order = np.argsort(hashed, kind="stable")
        self.row, hashed = row[order], hashed[order]
        self.size = np.bincount(self.row, minlength=bases[-1])  # (V,), windows that count
        self._first = np.flatnonzero(_changes(hashed))
        self._times = np.diff(self._first, append=len(hashed))
        self._hashes = hashed[self._first]
        bits = max(16, min(27, (16 * len(self._hashes)).bit_length()))
        self._sieve = np.zeros(1 << bits, dtype=bool)
        self._shift = np.uint64(64 - bits)
        for places in self._places(self._hashes):
            self._sieve[places] = True

    @property
    def compared(self) -> np.ndarray:  # (V,), bool
        """Whether a row has enough windows of its own."""
        return self.size >= LEAST

    def matches(self, texts: Texts) -> Matches:
        """Among these rows, row by row."""
        promising = self._promising(texts)
        windows = windows_of(texts.of(promising), self.shared)
        size = np.bincount(windows.row, minlength=windows.rows)
        row, wanted, common = self._pairs(windows.hashes, windows.row)
        of_row, of_wanted = size[row], self.size[wanted]
        shorter = np.minimum(of_row, of_wanted)
        held = (shorter >= LEAST) & (common >= shorter / 2 + PHRASE) & (common >= PART * of_wanted)
        same = (common == of_row) & (common == of_wanted)
        return Matches(promising[row[held]], wanted[held], same[held])

    def begins(self, texts: Texts) -> int:
        """The byte of these texts at which the first window begins that is looked for."""
        at, _ = _found(self._hashes, _hashes(texts.flat))
        return int(at[0])

    def _promising(self, texts: Texts) -> np.ndarray:
        """Rows that may have windows enough in common with one that is looked for: all that have, and few others."""
        hashed = _hashes(texts.flat)
        first, second = self._places(hashed)
        at = np.flatnonzero(self._sieve[first])
        at = at[self._sieve[second[at]]]
        row = np.searchsorted(texts.starts, at, side="right") - 1
        inside = at + WINDOW <= texts.starts[row + 1]
        inside &= (np.bincount(row[inside], minlength=len(texts)) >= _FEWEST)[row]
        row, _, common = self._pairs(hashed[at[inside]], row[inside])
        return np.unique(row[common >= _FEWEST])

    def _pairs(self, hashed: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of these windows and their rows: each row, each that is looked for, how many they have in common."""
        known, at = _found(self._hashes, hashed)
        times = self._times[at]
        wanted = self.row[_spans(self._first[at], times)]
        pairs, common = np.unique(np.repeat(row[known], times) * len(self.size) + wanted, return_counts=True)
        row, wanted = np.divmod(pairs, max(1, len(self.size)))
        return row, wanted, common

    def _places(self, hashed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Two of the sieve for each hash."""
        return hashed >> self._shift, (hashed << np.uint64(24)) >> self._shift


def _found(known: np.ndarray, hashed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which hashes are among those `known`, which are in order, and where they stand there."""
    if not len(known):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    at = np.minimum(np.searchsorted(known, hashed), len(known) - 1)
    found = np.flatnonzero(known[at] == hashed)
    return found, at[found]
