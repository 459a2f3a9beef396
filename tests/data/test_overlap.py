"""Rows that hold the same text are found, whatever frames them; a template, a task or a short answer is no text."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from scalebio_plugin.data import overlap
from scalebio_plugin.data.overlap import Index, Texts, Vocabulary, letters

ALPACA = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n{}\n\n### Response:\n{}"
)
CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>\n"
PLAIN = "{} {}"
TEMPLATES = [ALPACA, CHAT, PLAIN]
WORDS = ["".join(pair) for pair in itertools.product(("ba", "ke", "li", "mo", "nu", "sta"), ("dor", "fi", "gent", "p"))]
WORDS += ["".join(pair) for pair in itertools.product(("tri", "wo", "ze", "ha", "cu"), ("ran", "ve", "lost", "mi"))]


class Tokens:
    """Cuts texts into tokens at random, so that the same text is other tokens each time."""

    def __init__(self, seed: int = 0):
        self.rng = random.Random(seed)
        self.pieces: dict[str, int] = {}
        self.vocabulary = Vocabulary(lambda token: list(self.pieces)[token])

    def texts(self, rows: Sequence[str]) -> Texts:
        cut = [[self.pieces.setdefault(piece, len(self.pieces)) for piece in self._cut(row)] for row in rows]
        starts = np.cumsum([0, *map(len, cut)])
        return self.vocabulary.texts(np.array(list(itertools.chain(*cut)), dtype=np.int64), starts)

    def _cut(self, text: str) -> list[str]:
        pieces = []
        while text:
            at = self.rng.randint(1, 5)
            pieces.append(text[:at])
            text = text[at:]
        return pieces


def sentence(rng: random.Random, words: int = 30) -> str:
    return " ".join(rng.choices(WORDS, k=words))


def row(rng: random.Random, words: int = 30) -> tuple[str, str]:
    return sentence(rng, words // 2), sentence(rng, words - words // 2)


def found(wanted: Sequence[str], rows: Sequence[str]) -> list[tuple[int, int, bool]]:
    """(row, row that was looked for, whether they are the same)."""
    tokens = Tokens()
    training = tokens.texts(rows)
    index = Index([tokens.texts(wanted)], [training])
    matches = index.matches(training)
    return list(zip(matches.row.tolist(), matches.wanted.tolist(), matches.same.tolist(), strict=True))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("The cat, sat!", "the CAT\n\nsat"),
        ("Ｆｕｌｌ　ｗｉｄｔｈ １２", "full width 12"),
        ("caf\u00e9 na\u00efve", "cafe\u0301 nai\u0308ve"),
        ("o\ufb03ce", "office"),
        ("Straße", "STRASSE"),
        ("x\u00b2 + \U0001d400", "x2 a"),
        ("한국어", "\u1112\u1161\u11ab\u1100\u116e\u11a8\u110b\u1165"),
    ],
)
def test_letters_know_no_case_marks_spaces_and_signs(one: str, other: str) -> None:
    assert letters(one) == letters(other) != ""


def test_letters_of_other_words_are_others() -> None:
    assert len({letters(text) for text in ("cat", "car", "c4t", "кот", "猫", "ca")}) == 6
    assert letters(" \n.,;!?()[]{}<>|#*_") == ""


@pytest.mark.parametrize(("theirs", "ours"), itertools.product(TEMPLATES, TEMPLATES))
def test_a_copy_is_found_in_every_template(theirs: str, ours: str) -> None:
    rng = random.Random(1)
    wanted, others = [row(rng) for _ in range(40)], [row(rng) for _ in range(60)]
    rows = [ours.format(*one) for one in others]
    rows[17], rows[44] = (ours.format(*wanted[of]).upper().replace(" ", ", ") for of in (3, 8))
    pairs = found([theirs.format(*one) for one in wanted], rows)
    assert [pair[:2] for pair in pairs] == [(17, 3), (44, 8)]
    assert theirs != ours or all(same for *_, same in pairs)


@pytest.mark.parametrize("template", TEMPLATES)
def test_of_rows_in_one_template_with_other_texts_none_is_found(template: str) -> None:
    rng = random.Random(2)
    short = [template.format(sentence(rng, 12), answer) for answer in ("Yes.", "No.", "True", "B") for _ in range(30)]
    rng.shuffle(short)
    long = [template.format(*row(rng)) for _ in range(80)]
    for wanted, rows in ((short[:60], short[60:]), (long[:40], long[40:]), (short, long), (long, short)):
        assert found(wanted, rows) == []


@pytest.mark.parametrize("template", [ALPACA, CHAT])
@pytest.mark.parametrize("wanted", [1, 2])
def test_so_few_rows_that_their_template_is_known_from_the_source(template: str, wanted: int) -> None:
    rng = random.Random(3)
    few = [row(rng, 16) for _ in range(wanted)]
    rows = [template.format(*row(rng, 16)) for _ in range(50)]
    rows[5] = template.format(*few[0])
    assert found([template.format(*one) for one in few], rows) == [(5, 0, True)]


def test_short_rows_are_not_compared() -> None:
    tokens, rng = Tokens(), random.Random(4)
    texts = tokens.texts(["Yes.", "What is 2 + 2? 4", "", sentence(rng, 20)])
    index = Index([texts], [])
    assert index.compared.tolist() == [False, False, False, True]
    assert index.matches(texts).row.tolist() == [3]


@pytest.mark.parametrize("at", range(24))
def test_a_row_with_a_word_changed_is_found_but_not_the_same(at: int) -> None:
    rng = random.Random(5)
    wanted = [sentence(rng, 24) for _ in range(20)]
    words = wanted[11].split()
    words[at] = "quux"
    rows = [sentence(rng, 24) for _ in range(30)] + [" ".join(words)]
    assert found(wanted, rows) == [(30, 11, False)]


def test_half_of_a_row_is_found_and_a_tenth_is_not() -> None:
    rng = random.Random(6)
    wanted = [sentence(rng, 60) for _ in range(20)]
    cut = [" ".join(wanted[7].split()[:number]) for number in (30, 6)]
    assert found(wanted, cut) == [(0, 7, False)]


def test_a_row_is_found_inside_a_long_text() -> None:
    rng = random.Random(7)
    wanted = [sentence(rng) for _ in range(20)]
    assert found(wanted, [sentence(rng, 300), f"{sentence(rng, 200)} {wanted[4]} {sentence(rng, 200)}"]) == [
        (1, 4, False)
    ]


def test_a_text_that_two_rows_share_out_is_found_in_neither() -> None:
    """Rows lie side by side in memory."""
    rng = random.Random(8)
    wanted = [sentence(rng, 40)]
    words = wanted[0].split()
    rows = [" ".join([sentence(rng, 40), *words[:19]]), " ".join([*words[19:], sentence(rng, 40)])]
    assert found(wanted, rows) == []


def test_a_phrase_that_tasks_of_one_kind_have_in_common_is_no_text() -> None:
    frame = "Translate the following sentence into French: {}. {}"
    rng = random.Random(9)
    wanted = [frame.format(sentence(rng, 5), sentence(rng, 5))]
    assert found(wanted, [frame.format(sentence(rng, 5), sentence(rng, 5)) for _ in range(3)]) == []


def test_half_characters_are_told_apart_by_their_tokens() -> None:
    pieces = ["\ufffd"] * 40
    vocabulary = Vocabulary(pieces.__getitem__)
    texts = vocabulary.texts(np.array([*range(20), *range(20, 40), *range(20)]), np.array([0, 20, 40, 60]))
    matches = Index([texts.of(np.array([0]))], []).matches(texts)
    assert matches.row.tolist() == [0, 2]


def test_templates_are_those_of_each_set_and_source() -> None:
    """A frame that all rows of one set have is none of its own in another, where it is one row's text."""
    rng = random.Random(10)
    frame = sentence(rng, 20)
    tokens = Tokens()
    one = tokens.texts([f"{frame} {sentence(rng, 20)}" for _ in range(30)])
    other = tokens.texts([sentence(rng, 40) for _ in range(30)])
    index = Index([one, other], [])
    assert index.compared.all()
    assert index.matches(tokens.texts([frame])).row.tolist() == []
    alone = Index([other, tokens.texts([f"{frame} {sentence(rng, 20)}"])], [])
    assert alone.matches(tokens.texts([frame])).wanted.tolist() == [30]


def test_no_rows_hold_nothing() -> None:
    tokens, rng = Tokens(), random.Random(11)
    nothing = tokens.texts([])
    assert len(nothing) == 0
    assert Index([tokens.texts([sentence(rng)])], [nothing]).matches(nothing).row.tolist() == []
    assert Index([nothing], []).matches(tokens.texts([sentence(rng), ""])).row.tolist() == []


# ---- the literal twin: windows as strings, every row against every other


def windows_in(text: str, templates: set[bytes] = frozenset()) -> set[bytes]:
    """Those that have no letter in common with one of `templates`."""
    flat, size = letters(text).encode(), overlap.WINDOW
    each = {at: flat[at : at + size] for at in range(len(flat) - size + 1)}
    of_templates = [at for at, window in each.items() if window in templates]
    return {window for at, window in each.items() if not any(abs(at - other) < size for other in of_templates)}


def templates_in(texts: Sequence[str]) -> set[bytes]:
    different = set(filter(None, map(frozenset, map(windows_in, texts))))
    times = Counter(itertools.chain(*different))
    return {one for one, count in times.items() if count >= max(overlap.SHARED_ROWS, overlap.SHARED * len(different))}


def literally(wanted: Sequence[str], rows: Sequence[str]) -> list[tuple[int, int, bool]]:
    templates = templates_in(wanted) | templates_in(rows)
    ours, theirs = ([windows_in(text, templates) for text in of] for of in (rows, wanted))
    pairs = []
    for (i, a), (j, b) in itertools.product(enumerate(ours), enumerate(theirs)):
        shorter, common = min(len(a), len(b)), len(a & b)
        enough = shorter >= overlap.LEAST and common >= shorter / 2 + overlap.PHRASE
        if enough and common >= overlap.PART * len(b):
            pairs.append((i, j, a == b))
    return pairs


@pytest.mark.parametrize("seed", range(6))
def test_what_is_found_is_what_the_twin_finds(seed: int) -> None:
    """Of rows that have parts in common, from nothing to everything."""
    rng = random.Random(seed)
    texts = [sentence(rng, rng.randint(0, 60)) for _ in range(60)]

    def cut() -> str:
        words = rng.choice(texts).split()
        begin, end = sorted(rng.choices(range(len(words) + 1), k=2))
        return " ".join([*words[begin:end], sentence(rng, rng.choice((0, 2, 20)))])

    wanted = [CHAT.format(text, "Yes.") for text in texts]
    rows = [CHAT.format(cut(), cut() if rng.random() < 0.5 else "Yes.") for _ in range(150)] + wanted[:10]
    expected = literally(wanted, rows)
    assert 30 < len(expected) < 120
    assert found(wanted, rows) == expected
