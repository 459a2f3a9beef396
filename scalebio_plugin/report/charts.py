"""The charts of a page: what they draw, as JSON, and uPlot, which draws it, so that the page needs no network.

Arrays have the mixture updates (N) along their rows and the sources or sets (S) along their columns.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from .history import Floats, HistoryRecord, series, spread
from .picture import PALETTE, colours_of, interval_ends, running_mean
from .tables import by_weight, decimals_of
from .words import printable

MOST_POINTS = 500  # of a curve
MOST_NUMBERS = 30_000  # of all curves together: some 200 kB
_WEB = files(__package__) / "web"  # of a zipped package, too


@cache
def style() -> str:
    return "".join((_WEB / name).read_text(encoding="utf-8") for name in ("uPlot.min.css", "charts.css"))


@cache
def script() -> str:
    """uPlot, under its licence, and what has it draw."""
    licence, library, ours = (
        (_WEB / name).read_text(encoding="utf-8").strip()
        for name in ("uPlot.LICENSE", "uPlot.iife.min.js", "charts.js")
    )
    return f"\n/*\n{licence}\n*/\n{library}\n{ours}\n"


@cache
def policy() -> str:
    """What a browser lets a page do: run this script and no other, and fetch nothing."""
    digest = base64.b64encode(hashlib.sha256(script().encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def charts(history: Sequence[HistoryRecord]) -> str:
    """Weights, gaps and losses over the steps, and the script of a page, as markup."""
    data = json.dumps(
        _data(history) if history else {"steps": [], "charts": []}, allow_nan=False, separators=(",", ":")
    )
    for one in "<>&":  # ASCII by now: nothing in a name ends a line or the element
        data = data.replace(one, f"\\u{ord(one):04x}")
    place = '<div id="charts"></div>' if history else ""
    return f'{place}\n<script type="application/json" id="history">{data}</script>\n<script>{script()}</script>'


def _data(history: Sequence[HistoryRecord]) -> dict[str, Any]:
    """Sources in the order of their last weights, which is that of their colours."""
    last = history[-1]["weights"]
    names = by_weight(last)
    colours = colours_of(np.array([last[name] for name in names]))
    at = positions(len(history), len(names) * 4 + len(colours) * 4)
    kept, window = [history[i] for i in at], 2 * (len(history) // 60) + 1

    def smooth(key: str, columns: Sequence[str]) -> Floats:
        return running_mean(series(history, key, columns), window)[at]

    how = f"running mean of {window} updates" if window > 1 else "by update"
    sets, of_sets = _validation(history)
    weights = series(kept, "weights", names)
    intervals = np.stack([interval_ends(kept, name) for name in names], axis=1)  # (N, S, 2)
    losses = [smooth("loss", names), smooth("inner_loss", names)]
    found = [
        _chart("Weights", "with the 95% intervals of the largest", names, [weights], colours, intervals),
        *_gaps(kept, names, colours),
        _chart("Training loss", f"of w, dashed: of u; {how}", names, losses, colours),
        _chart("Validation loss", f"of w; {how}", sets, [running_mean(of_sets, window)[at]], dict(enumerate(PALETTE))),
    ]
    return {"steps": [record["step"] for record in kept], "charts": found}


def positions(count: int, columns: int) -> list[int]:
    """Of the updates that are drawn.

    Args:
        columns: Numbers that each of them takes.
    """
    return spread(count, min(MOST_POINTS, max(2, MOST_NUMBERS // columns)))


def _gaps(kept: Sequence[HistoryRecord], names: Sequence[str], colours: Mapping[int, str]) -> Iterator[dict[str, Any]]:
    """Recent means; older versions wrote none."""
    if any("gap_mean" not in record for record in kept):
        return
    nothing = dict.fromkeys(names)
    errors: list[dict[str, Any]] = [record.get("gap_se") or nothing for record in kept]
    mean = series(kept, "gap_mean", names)
    error = np.array([[of[name] for name in names] for of in errors], dtype=np.float64)
    band = np.stack([mean - 2 * error, mean + 2 * error], axis=2)
    yield _chart("Gaps", "recent means ± 2 s.e.; above 0 a source loses weight", names, [mean], colours, band)


def _validation(history: Sequence[HistoryRecord]) -> tuple[list[str], Floats]:  # names, (N, V)
    """The loss of each set, where there are several."""
    sets = list(history[-1].get("val_losses") or {})
    if len(sets) > 1 and all("val_losses" in record for record in history):
        return sets, series(history, "val_losses", sets)
    return ["validation"], np.array([[record["val_loss"]] for record in history])


def _chart(
    title: str,
    about: str,
    names: Sequence[str],
    lines: Sequence[Floats],
    colours: Mapping[int, str],
    band: Floats | None = None,
) -> dict[str, Any]:
    """
    Args:
        lines: (N, S) each; of those after the first the lines are dashed.
        colours: By column; the others are grey, and without a band.
        band: (N, S, 2), its ends.
    """
    digits = max(3, decimals_of(lines[0][np.isfinite(lines[0])].tolist()))
    scale = 10 ** min(8, digits + 1)
    return {
        "title": title,
        "about": about,
        "digits": digits,
        "scale": scale,
        "zero": title == "Weights",
        "series": [
            {
                "name": printable(name),
                "colour": colours.get(i),
                "lines": [_numbers(line[:, i] * scale) for line in lines],
                "band": None if band is None or i not in colours else [_numbers(of * scale) for of in band[:, i].T],
            }
            for i, name in enumerate(names)
        ],
    }


def _numbers(values: Floats) -> list[int | None]:
    """Whole ones, which are short."""
    return [round(value) if math.isfinite(value) else None for value in values.tolist()]
