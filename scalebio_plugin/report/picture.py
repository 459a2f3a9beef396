"""The picture of a run: weights, training losses and validation loss over its optimiser steps.

Arrays have the mixture updates (N) along their rows and the sources (S) along their columns.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from .history import Floats, HistoryRecord, series
from .tables import shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Petroff (2021), arXiv:2107.02270: ten colours told apart under every colour vision; here its two greys come last.
PALETTE = ["#3f90da", "#ffa90e", "#bd1f01", "#832db6", "#e76300", "#92dadd", "#a96b59", "#b9ac70", "#717581", "#94a4a2"]
HIGHLIGHTED = 8  # sources drawn in colour once there are more of them than colours
BANDS = 3  # sources of largest weight whose intervals are drawn: bands of more lie on each other
INK, GREY = "#333333", "#b4b4b4"
COLOURS = 64  # of a picture in a page


def drawn_mixture(history: Sequence[HistoryRecord], names: Sequence[str]) -> bytes:
    """Weights, training losses and validation loss over the optimiser steps, as a PNG.

    Up to 10 sources are all in colour; of more, the 8 of largest final weight, the others thin and grey. The 3 largest
    have their 95% intervals as bands. Losses are running means over about a thirtieth of the updates. An empty history
    gives empty axes that say so.
    """
    from matplotlib.figure import Figure  # slow to import, and needed by one process at the end of a run

    figure = Figure(figsize=(6.5, 7.5), dpi=200)
    panels = figure.subplots(3, 1, sharex=True, gridspec_kw={"height_ratios": [3, 3, 1.5], "hspace": 0.1})
    for axes, label in zip(panels, ("mixture weight", "training loss", "validation loss"), strict=True):
        axes.set_ylabel(label, color=INK, fontsize=9)
        style(axes, grid="y")
    figure.align_ylabels(panels)
    panels[-1].set_xlabel("optimiser step", color=INK, fontsize=9)
    if history:
        _draw_panels(panels, history, names)
    else:
        for axes in panels:
            axes.set(xticks=[], yticks=[], xlim=(0, 1), ylim=(0, 1))
        panels[0].text(0.5, 0.5, "no mixture update yet", color=INK, ha="center", va="center")
    return png_of(figure)


def style(axes: Axes, *, grid: Literal["x", "y"]) -> None:
    """As all axes of ours are, with the grid lines of one axis."""
    axes.tick_params(labelsize=8, color=INK, labelcolor=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#ececec", linewidth=0.8)
    axes.set_axisbelow(True)


def png_of(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    return buffer.getvalue()


class _End(NamedTuple):
    """The label of a curve that ends at height `y`, in data units."""

    y: float
    text: str
    colour: str


def _draw_panels(panels: Sequence[Axes], history: Sequence[HistoryRecord], names: Sequence[str]) -> None:
    top, middle, bottom = panels
    steps = np.array([record["step"] for record in history], dtype=np.float64)
    weights = series(history, "weights", names)
    window = 2 * (len(history) // 60) + 1
    loss = running_mean(series(history, "loss", names), window)
    val_loss = np.array([[record["val_loss"]] for record in history], dtype=np.float64)
    colours = colours_of(weights[-1])

    bands = [interval_ends(history, names[i]) for i in list(colours)[:BANDS]]
    top.set_ylim(0, 1.05 * max(float(np.nanmax(drawn, initial=1 / len(names))) for drawn in (weights, *bands)))
    top.axhline(1 / len(names), color=INK, linestyle=":", linewidth=1, zorder=4)
    bottom.plot(steps, val_loss[:, 0], color=GREY, linewidth=0.6)
    bottom.set_xlim(min(steps[0], steps[-1] - 1), steps[-1])
    bottom.locator_params(axis="x", integer=True)
    if window > 1:
        middle.set_title(f"running mean of {window} updates", loc="right", fontsize=7, color=INK, y=1, pad=-6)
    uniform = _End(1 / len(names), f"uniform  1/{len(names)}", INK)
    _draw_intervals(top, steps, bands, colours)
    _label_ends(top, [uniform, *_curves(top, steps, weights, names, colours)])
    _label_ends(middle, _curves(middle, steps, loss, names, colours))
    _label_ends(bottom, _curves(bottom, steps, running_mean(val_loss, window), ["validation"], {0: INK}))


def _draw_intervals(axes: Axes, steps: Floats, bands: Sequence[Floats], colours: Mapping[int, str]) -> None:
    """The 95% intervals of the largest sources, as bands with edges, over the updates that say anything.

    Args:
        bands: (N, 2) each, in the order of `colours`.
    """
    if all(np.isnan(ends).all() for ends in bands):
        return
    hint = "dashed: 95% intervals of the largest weights, once there is evidence"
    axes.set_title(hint, loc="right", fontsize=7, color=INK, pad=4)
    for colour, ends in zip(colours.values(), bands, strict=False):
        low, high = ends.T
        axes.fill_between(steps, low, high, color=colour, alpha=0.09, linewidth=0, zorder=2)
        axes.plot(steps, np.stack([low, high], 1), color=colour, alpha=0.7, linewidth=0.7, linestyle="--", zorder=2)


def interval_ends(history: Sequence[HistoryRecord], name: str) -> Floats:  # (N, 2)
    """A source's interval after each update; NaN where it says nothing: nothing is evident yet, or anything may be."""
    ends = [(record.get("interval") or {name: [0.0, 1.0]})[name] for record in history]
    return np.array([pair if 0.0 < pair[1] - pair[0] < 1.0 else [np.nan, np.nan] for pair in ends])


def colours_of(weights: Floats) -> dict[int, str]:  # weights: (S,)
    """The colours of the sources to be told apart, by index, largest weight first; the others are grey."""
    count = len(weights) if len(weights) <= len(PALETTE) else HIGHLIGHTED
    return dict(zip(np.argsort(-weights, kind="stable").tolist(), PALETTE[:count], strict=False))


def _curves(axes: Axes, steps: Floats, values: Floats, names: Sequence[str], colours: Mapping[int, str]) -> list[_End]:
    """Draw each column over the updates that have a value, grey ones beneath, and say what to write at the ends."""
    ends, grey = [], []
    for i, name in enumerate(names):
        seen = np.isfinite(values[:, i])
        if not seen.any():
            continue
        x, y, last = steps[seen], values[seen, i], float(values[seen, i][-1])
        marker = "o" if len(x) == 1 else None
        if i in colours:
            axes.plot(x, y, color=colours[i], linewidth=1.6, zorder=3, marker=marker, markersize=5, clip_on=False)
            ends.append(_End(last, f"{shorten(name, 30)}  {last:.3f}", colours[i]))
        else:
            axes.plot(x, y, color=GREY, linewidth=0.6, marker=marker, markersize=3)
            grey.append(last)
    return [*ends, _End(float(np.median(grey)), f"{len(grey)} others", GREY)] if grey else ends


def running_mean(values: Floats, window: int) -> Floats:  # (N, S)
    """Centred, over the finite values alone; NaN where a window has none."""
    update = np.arange(len(values))
    start, stop = np.maximum(update - window // 2, 0), np.minimum(update + window // 2 + 1, len(values))
    seen = np.isfinite(values)
    cumulative = np.zeros((2, len(values) + 1, values.shape[1]))
    np.cumsum([seen, np.where(seen, values, 0.0)], axis=1, out=cumulative[:, 1:])
    count, total = cumulative[:, stop] - cumulative[:, start]
    smooth = np.full_like(values, np.nan)
    np.divide(total, count, out=smooth, where=count > 0)
    return smooth


def _label_ends(axes: Axes, ends: Sequence[_End]) -> None:
    """Write the labels right of the axes, moved apart vertically, each tied to its curve by a short line."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    points = axes.bbox.height * 72 / axes.figure.dpi
    heights = np.array([(end.y - low) / (high - low) for end in ends])
    frame = axes.transAxes
    for end, height, free in zip(ends, heights, _spread(heights, 9.5 / points), strict=True):
        axes.plot([1.005, 1.03, 1.045], [height, free, free], color=end.colour, lw=1, transform=frame, clip_on=False)
        axes.text(1.055, free, end.text, color=INK, fontsize=8, va="center", transform=frame, parse_math=False)


def _spread(heights: Floats, gap: float) -> Floats:
    """The positions at least `gap` apart, in the same order and inside [0, 1] if they fit, nearest in least squares.

    With position r lowered by r * gap the constraint is that they do not decrease: isotonic regression.
    """
    from scipy.optimize import isotonic_regression

    if not len(heights):
        return heights
    order = np.argsort(heights, kind="stable")
    ranks = gap * np.arange(len(heights))
    fitted = isotonic_regression(heights[order] - ranks).x
    spread = np.empty_like(heights)
    spread[order] = np.clip(fitted, 0, max(0.0, 1 - gap * (len(heights) - 1))) + ranks
    return spread


def embedded(png: bytes, about: str, kind: str = "") -> str:
    """A picture as an element of a page, in few colours: a fourth of the bytes.

    Args:
        about: What it shows, as markup. kind: Its class.
    """
    from PIL import Image  # as late as what draws it

    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        few = image.convert("RGB").quantize(COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    few.save(buffer, "PNG", optimize=True)
    source = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return f'<img class="{kind}" alt="{about}" src="{source}">'
