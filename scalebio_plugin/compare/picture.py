"""The picture of a comparison: the test loss of each arm, seed by seed and in the mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..report.comparison import best_first, is_finite
from ..report.files import StrPath, replace_file
from ..report.picture import GREY, INK, PALETTE, png_of, style
from ..report.tables import shorten


def draw(document: Mapping[str, Any], path: StrPath) -> None:
    """Arms from the best down; a dot for each seed, a bar for the mean if none diverged, the reference in colour."""
    from matplotlib.figure import Figure

    arms = [(name, document["arms"][name]) for name in reversed(best_first(document))]
    figure = Figure(figsize=(6.5, 0.9 + 0.34 * len(arms)), dpi=200)
    axes = figure.subplots()
    for height, (name, arm) in enumerate(arms):
        colour = PALETTE[0] if name == document["reference"] else INK
        losses = list(filter(is_finite, arm["losses"].values()))
        axes.plot(losses, [height] * len(losses), "o", color=GREY, markersize=4, zorder=2)
        if not is_finite(arm["loss"]):
            axes.annotate("diverged", (0.5, height), xycoords=("axes fraction", "data"), ha="center", fontsize=7)
            continue
        axes.plot([arm["loss"]], [height], "|", color=colour, markersize=14, markeredgewidth=2.5, zorder=3)
        axes.annotate(
            f"{arm['loss']:.3f}", (arm["loss"], height), (0, 8), textcoords="offset points", ha="center", fontsize=7
        )
    axes.set_yticks(range(len(arms)), [shorten(name, 28) for name, _ in arms], fontsize=8, parse_math=False)
    axes.set_ylim(-0.6, len(arms) - 0.2)
    axes.set_xlabel("test loss, nats a token (a dot for each seed, a bar for their mean)", color=INK, fontsize=8)
    style(axes, grid="x")
    axes.margins(x=0.08)
    replace_file(path, png_of(figure))
