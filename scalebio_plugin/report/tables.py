"""A mixture as text: the tables and lines of the log and of `scalebio show`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .history import HistoryRecord
from .summary import Cosine, Goals, SourceSummary, largest_first
from .words import counted, printable

MOST_ROWS = 20  # sources that the log shows of an update


def weights_table(
    summaries: Mapping[str, SourceSummary], verdict: str | None = None, told_at: Mapping[str, int] | None = None
) -> str:
    """The table at the end of a run. A star marks the sources whose gaps are not more than noise."""
    decimals = decimals_of(summary.gap for summary in summaries.values())
    rows, any_star = [("source", "weight", "95% interval", "gap", "s.e.", "loss")], False
    for name, summary in largest_first(summaries):
        star = summary.gap_se is not None and not summary.is_told_from_average
        any_star |= star
        error = _number(summary.gap_se, decimals)
        gap = f"{summary.gap:+.{decimals}f}"
        weight, loss = _number(summary.weight), _number(summary.loss)
        rows.append((shorten(name) + " *" * star, weight, interval_in_words(summary.interval), gap, error, loss))
    hint = (
        "\n* not told from the average of the sources by all updates together; gap and s.e. are of the late ones"
        if any_star
        else ""
    )
    forecast = told_at_in_words(told_at)
    return align(rows) + hint + (f"\nverdict: {verdict_in_words(verdict)}{forecast}" if verdict else "")


VERDICTS = {
    "no signal": "no gap is told from noise, so the weights stay about where they began",
    "still moving": "the weights have not settled; learn longer",
    "converged": "the weights have settled",
}


def verdict_in_words(verdict: str, before: str = " (", after: str = ")") -> str:
    """With what it means, where this version knows it."""
    return printable(verdict) + (f"{before}{VERDICTS[verdict]}{after}" if verdict in VERDICTS else "")


def told_at_in_words(told_at: Mapping[str, int] | None) -> str:
    """For a verdict without signal, how much longer a run would have to learn."""
    said = [
        f"; {shorten(name)} would be told from noise at about step {_rough(step)}"
        for name, step in (told_at or {}).items()
    ]
    return "".join(f"{one}, if its gap stays as it is" for one in said)


def _rough(count: int) -> str:
    """To two digits, as what is only estimated."""
    return f"{round(count, 2 - len(str(count))):,}"


def goals_table(goals: Goals | None) -> str | None:
    """Which source helps which validation set, the sources in the order given; None where there is nothing to tell."""
    if goals is None:
        return None
    sets = list(next(iter(goals.values())))
    head = ("helps", *(shorten(goal, 24) for goal in sets))
    rows = [(shorten(name), *(cosine_in_words(row[goal]) for goal in sets)) for name, row in goals.items()]
    return (
        align([head, *rows])
        + "\ncosines of gradients ± s.e.: above 0 a small step on the source lowers the loss of that validation set"
    )


def cosine_in_words(cosine: Cosine) -> str:
    if cosine.mean is None:
        return "-"
    return f"{cosine.mean:+.3f}" + ("" if cosine.se is None else f" ± {cosine.se:.3f}")


def interval_in_words(interval: tuple[float, float] | None) -> str:
    return "-" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def by_weight(weights: Mapping[str, float]) -> list[str]:
    """The names, largest weight first."""
    return sorted(weights, key=lambda name: -weights[name])


def weights_line(weights: Mapping[str, float]) -> str:
    """The weights in one line, largest first."""
    names = by_weight(weights)
    text = ", ".join(f"{shorten(name)} {_number(weights[name])}" for name in names[:MOST_ROWS])
    return text + (f", and {len(names) - MOST_ROWS} more" if len(names) > MOST_ROWS else "")


def layers_line(layer_steps: Sequence[int]) -> str:
    """Which blocks LISA trained, and for how long."""
    never = [str(layer) for layer, steps in enumerate(layer_steps) if steps == 0]
    trained = [steps for steps in layer_steps if steps]
    line = f"LISA moved {len(trained)} of {len(layer_steps)} blocks"
    if trained:
        span = f"{min(trained)} to {max(trained)}" if min(trained) < max(trained) else str(trained[0])
        line += f", each for {span} optimiser steps"
    return line + (f"; never drawn: {', '.join(never)}" if never else "")


def drawn_line(document: Mapping[str, Any]) -> str:
    """How often the rows of each source were drawn, from the content of `mixture.json`, largest weight first."""
    drawn, sources = document["drawn"], document["sources"]
    times = {name: drawn[name] / source["examples"] for name, source in sources.items()}
    each = [f"{shorten(name)} {drawn[name]} (each {often:.2f} times)" for name, often in times.items()]
    more = f", and {len(each) - MOST_ROWS} more" if len(each) > MOST_ROWS else ""
    return "rows drawn: " + ", ".join(each[:MOST_ROWS]) + more


def progress_table(record: HistoryRecord, left: str = "") -> str:
    """One update for the running console; losses are the batch's, gaps the recent mean.

    Args:
        left: How long learning goes on, in words.
    """
    names = by_weight(record["weights"])
    decimals = decimals_of(record["gap_mean"].values())
    rows = [("source", "weight", "95% interval", "loss", "gap", "evidence")]
    intervals = record["interval"] or {}
    for name in names[:MOST_ROWS]:
        loss, weight = _number(record["loss"][name]), _number(record["weights"][name])
        ends = intervals.get(name)
        interval = interval_in_words((ends[0], ends[1]) if ends else None)
        gap, evidence = f"{record['gap_mean'][name]:+.{decimals}f}", f"{record['evidence'][name]:+.2f}"
        rows.append((shorten(name), weight, interval, loss, gap, evidence))
    others = names[MOST_ROWS:]
    sum_of_others = sum(record["weights"][name] for name in others)
    more = f"\n... and {len(others)} more (sum of weights {sum_of_others:.4f})" if others else ""
    return f"{align(rows)}{more}\nso far: {'; '.join(filter(None, [record['verdict'], _leader(record), left]))}"


def _leader(record: HistoryRecord) -> str:
    """Which source has most, and how sure that any is told from the average."""
    weights, told = record["weights"], sum(abs(of) > 1 for of in record["evidence"].values())
    if not told:
        return "no source is told apart yet"
    name = max(weights, key=lambda name: weights[name])
    low, high = (record["interval"] or {}).get(name, (0.0, 1.0))
    ends = f" ({low:.3f} to {high:.3f})" if high - low < 1.0 else ""
    return f"{shorten(name)} leads with {weights[name]:.3f}{ends}, {told} of {len(weights)} sources are told apart"


def time_left(steps: int, seconds: float | None, most: str = "") -> str:
    """Of learning, in words; empty where there is none.

    Args:
        seconds: That the steps would take; None: not known yet.
        most: Follows the steps where they may be fewer.
    """
    if steps <= 0:
        return ""
    about = "" if seconds is None else f", about {time_in_words(seconds)}"
    return f"{counted(steps, 'learning step')} left{most}{about}"


def time_in_words(seconds: float) -> str:
    """In its two largest units: 40 s, 3 min, 2 h 05 min, 3 d 4 h."""
    minutes = round(seconds / 60)
    if seconds < 59.5:
        return f"{seconds:.0f} s" if seconds >= 0.95 else f"{seconds:.1f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // (24 * 60)} d {minutes % (24 * 60) // 60} h"


def align(rows: Sequence[tuple[str, ...]]) -> str:
    """The first column flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    layout = f"{{:<{widths[0]}}}" + "".join(f"  {{:>{width}}}" for width in widths[1:])
    return "\n".join(layout.format(*row) for row in rows)


def _number(value: float | None, decimals: int = 4) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"


def decimals_of(values: Iterable[float]) -> int:
    """Decimals that leave the largest of the values at least three significant digits."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    return min(12, max(2, 2 - math.floor(math.log10(largest)))) if largest else 2


def shorten(name: str, most: int = 40) -> str:
    """A name as it is printed: without control characters, in one line, cut in the middle."""
    name = printable(name)
    if len(name) <= most:
        return name
    head = (most - 3) // 2
    return name[:head] + "..." + name[-(most - 3 - head) :]
