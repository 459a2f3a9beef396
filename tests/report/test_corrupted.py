"""Files that people send each other, spoilt: `show`, `report` and `apply` read them or say what is wrong."""

from __future__ import annotations

import copy
import itertools
import json
import math
import random
import unicodedata
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

from scalebio_plugin import cli
from scalebio_plugin.report.history import read_history
from scalebio_plugin.report.leaks import Leak, Leaks, LeakSet
from scalebio_plugin.report.mixture_file import mixture_document, read_mixture
from scalebio_plugin.report.summary import summarise, summarise_goals
from tests.report.histories import drifting_history, facts

ESCAPE = "\x1b[31m\x1b]0;title\x07\u202eevil\r\n"
VALUES: list[Any] = [
    *(None, True, -1, 0, 0.0, -0.5, 1e-320, 1e308, -1e308, 10**400, math.nan, math.inf, -math.inf),
    *("", "0.5", ESCAPE, "x" * 20_000, [], {}, [1.0], [1, 2, 3], {"a": 1.0}, {ESCAPE: 1.0}),
]
DEEP = "[" * 100_000 + "]" * 100_000
MIXTURES = HISTORIES = 250


def run_of(sources: int = 3) -> tuple[dict[str, Any], list[Any]]:
    """What a run with two validation sets and probes leaves."""
    history, names = drifting_history(sources, 9)
    for at, line in enumerate(history):
        line |= {"val_losses": {"x": 1.0, "y": 2.0}, "val_weights": {"x": 0.25, "y": 0.75}}
        line["goals"] = {name: {"x": 0.1 * at, "y": None} for name in names} if at % 2 else None
    known = facts(
        dict.fromkeys(names, 900),
        **{"steps": 9, "layer_steps": [3, 0], "drawn": dict.fromkeys(names, 7), "config": "a.yml", "output_dir": "out"},
        validation={name: {"weight": 0.5, "tokens": 70, "examples": 7} for name in ("x", "y")},
        leaks=Leaks("warn", {"validation: x": LeakSet(9, 8, {names[0]: Leak(2, 1, 2)})}),
        shared_rows={names[0]: {names[1]: 100}, names[1]: {names[0]: 200}},
        settings={"scalebio.bounds": {names[0]: [0.1, 0.5]}, "scalebio.max_repeats": 1, "sample_packing": True},
    )
    goals = summarise_goals(history, names)
    document = mixture_document(summarise(history, names), known, "converged", goals)
    return json.loads(json.dumps(document)), json.loads(json.dumps(history))


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) below a value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, of in list(inside):
        yield value, key
        yield from places(of)


def spoilt(document: Any, rng: random.Random) -> bytes:
    """The document as JSON, with one to three things wrong in it."""
    document, text = copy.deepcopy(document), ""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        found = list(places(document))
        if not found:
            break
        container, key = rng.choice(found)
        way = rng.choice(["delete", "replace", "replace", "replace", "nest", "huge name", "rename", "add"])
        if way == "delete":
            del container[key]
        elif way == "replace":
            container[key] = rng.choice(VALUES)
        elif way == "nest":
            container[key] = {"a": [container[key]]}
        elif isinstance(container, dict):
            name = {"huge name": "n" * 20_000, "rename": ESCAPE, "add": f"later {rng.random()}"}[way]
            container[name] = container[key] if way == "add" else container.pop(key)
    text = json.dumps(document, ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.15:
        at = rng.randrange(len(text))
        text = rng.choice([text[:at], text + text[at:], text[:at] + DEEP + text[at:], text[:at] + "\0" + text[at:]])
    if rng.random() < 0.15:
        text = text.replace('"weights":', '"weights": {"a": 2}, "weights":', 1)
    content = text.encode(errors="surrogatepass")
    return content[: rng.randrange(len(content))] + b"\xff\xfe" if rng.random() < 0.05 else content


def answer(arguments: list[str], capsys: pytest.CaptureFixture[str], file: Path) -> int:
    """The status of the command, which has printed what one can read, or one line that names the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        status = cli.main(arguments)
    out, err = capsys.readouterr()
    assert not any(unicodedata.category(one) in ("Cc", "Cf") for one in (out + err).replace("\n", ""))
    assert status in (0, 2)
    if status:
        assert out == ""
        assert err.startswith("scalebio: ")
        assert err.count("\n") == 1
        assert len(err) < 1500
        assert file.name in err
    return status


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One picture of 25 is laid out, in a few pixels: that is nearly all of their time."""
    save, pictures = Figure.savefig, itertools.count()

    def savefig(figure: Figure, file: Any, **others: Any) -> None:
        if next(pictures) % 25 == 0:
            save(figure, file, **{**others, "dpi": 8})
        else:
            Image.new("RGB", (1, 1)).save(file, "PNG")

    monkeypatch.setattr(Figure, "savefig", savefig)
    return tmp_path


def test_mixtures(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document, history = run_of()
    path = folder / "mixture.json"
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in history))
    rng, shown = random.Random(1), []
    for _ in range(MIXTURES):
        path.write_bytes(spoilt(document, rng))
        status = answer(["show", str(path)], capsys, path)
        shown.append(status)
        if status == 0:
            answer(["report", str(path)], capsys, path)
        try:
            weights = read_mixture(path)["weights"]
        except ValueError as error:
            assert str(error).startswith(str(path))  # noqa: PT017
            assert status == 2
        else:
            assert math.fsum(weights.values()) == pytest.approx(1, abs=1e-6)
            assert all(0 <= weight <= 1 + 1e-6 for weight in weights.values())
    assert 20 < sum(code == 0 for code in shown) < MIXTURES - 100  # some mistakes hurt no reader


def test_histories(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document, history = run_of()
    path = folder / "history.jsonl"
    (folder / "mixture.json").write_text(json.dumps(document))
    rng, drawn = random.Random(2), []
    for _ in range(HISTORIES):
        at = rng.choice([0, 1, len(history) - 1])
        lines = [json.dumps(line).encode() for line in history]
        lines[at] = spoilt(history[at], rng)
        path.write_bytes(b"\n".join(lines) + b"\n")
        drawn.append(answer(["report", str(folder / "mixture.json")], capsys, path))
    assert 10 < sum(code == 0 for code in drawn) < HISTORIES - 100


@pytest.mark.parametrize(
    ("place", "value", "key"),
    [
        (["sources", "source-01", "examples"], 0, "sources['source-01']['examples']"),
        (["sources", "source-01", "tokens"], 0, "sources['source-01']['tokens']"),
        (["sources", "source-01", "gap"], math.inf, "sources['source-01']['gap']"),
        (["sources", "source-01", "loss"], 1e308, "sources['source-01']['loss']"),
        (["sources", "source-01", "gap_se"], -0.1, "sources['source-01']['gap_se']"),
        (["sources", "source-01", "interval"], [0.5], "sources['source-01']['interval'][1]"),
        (["sources", "source-01", "weight"], 0.9, "sources"),
        (["sources", "source-01"], None, "sources['source-01']"),
        (["goals", "source-01"], {"x": {"mean": 0.1, "se": None, "probes": 1}}, "goals"),
        (["drawn"], {"source-00": 3}, "drawn"),
        (["penalty"], math.nan, "penalty"),
        (["penalty"], None, "penalty"),
        (["layer_steps"], [1, "2"], "layer_steps[1]"),
        (["versions"], {"axolotl": 0.19}, "versions['axolotl']"),
        (["config"], 3, "config"),
        (["output_dir"], "x" * 10_001, "output_dir"),
        (["settings"], [1], "settings"),
        (["validation", "x", "examples"], 0, "validation['x']['examples']"),
    ],
)
def test_the_key_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], place: list[str], value: Any, key: str
) -> None:
    document, history = run_of()
    within = document
    for part in place[:-1]:
        within = within[part]
    within[place[-1]] = value
    (folder / "mixture.json").write_text(json.dumps(document))
    (folder / "history.jsonl").write_text(json.dumps(history[0]))
    assert cli.main(["report", str(folder / "mixture.json")]) == 2
    assert f"mixture.json: {key} " in capsys.readouterr().err


@pytest.mark.parametrize("key", ["loss", "gap", "val_losses", "gap_se", "evidence"])
@pytest.mark.parametrize("value", [math.nan, -math.inf, 1e308, "1", [1]])
def test_numbers_of_a_history_are_finite(folder: Path, key: str, value: Any) -> None:
    _, history = run_of()
    history[1][key][next(iter(history[1][key]))] = value
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in history))
    with pytest.raises(ValueError, match=rf"history\.jsonl, line 2: {key}\['.*'\] must be .*, got "):
        read_history(folder / "history.jsonl")


@pytest.mark.parametrize("name", ["mixture.json", "history.jsonl"])
def test_a_file_that_is_no_text_is_named(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    document, history = run_of()
    (folder / "mixture.json").write_text(json.dumps(document))
    (folder / "history.jsonl").write_text(json.dumps(history[0]))
    for content in (b"", b"\x89PNG\r\n\x1a\n", DEEP.encode(), b"null", b"[]", b"1" * 5000):
        (folder / name).write_bytes(content or b"\n")
        assert answer(["report", str(folder / "mixture.json")], capsys, folder / name) == 2


def test_a_file_that_is_too_large_is_not_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "mixture.json"
    with path.open("wb") as file:
        file.truncate(257 * 2**20)  # takes no room on the disk
    assert answer(["show", str(path)], capsys, path) == 2


def test_what_a_newer_version_adds_is_left_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document, history = run_of()
    path = folder / "mixture.json"
    for where in (document, *document["sources"].values(), history[0]):
        where["later"] = {"any": [1, None]}
    document["verdict"] = "nearly there"
    path.write_text(json.dumps(document))
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in history))
    assert answer(["report", str(path)], capsys, path) == 0
    assert "Verdict: nearly there." in (folder / "report.html").read_text()
    assert cli.main(["show", str(path)]) == 0
    assert capsys.readouterr().out.split("verdict: ")[1].startswith("nearly there\n")


def test_a_name_with_escapes_is_spelt_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document, _ = run_of()
    text = json.dumps(document).replace("source-00", json.dumps("\x1b[2Ja\u202eb")[1:-1])
    (folder / "mixture.json").write_text(text)
    assert answer(["show", str(folder / "mixture.json")], capsys, folder / "mixture.json") == 0
    assert cli.main(["show", str(folder / "mixture.json")]) == 0
    assert r"\x1b[2Ja\u202eb" in capsys.readouterr().out
