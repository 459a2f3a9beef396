"""What the verdict of a run rests on: the evidence of each source, and its gap with what noise may have made of it."""

from __future__ import annotations

from collections.abc import Mapping

from .markup import cell, shown, table
from .summary import SourceSummary
from .tables import decimals_of

NAMED = 5  # sources whose evidence is told in the sentence
ERRORS = 2.0  # standard errors that a whisker has on each side


def rests_on(summaries: Mapping[str, SourceSummary]) -> str:
    """As markup; nothing where neither evidence nor a standard error is known."""
    found = _sentence(summaries) + _gaps(summaries)
    return f"<h2>What the verdict rests on</h2>{found}" if found else ""


def _sentence(summaries: Mapping[str, SourceSummary]) -> str:
    """Nothing of what an older version learned, which had no evidence."""
    known = {name: of.evidence for name, of in summaries.items() if of.evidence is not None}
    if not known:
        return ""
    strongest = sorted(known, key=lambda name: -abs(known[name]))
    told = [name for name in strongest if abs(known[name]) > 1]
    each = ", ".join(f"{shown(name)} {known[name]:+.2f}" for name in (told or strongest)[:NAMED])
    more = f" and {len(told) - NAMED} more" if len(told) > NAMED else ""
    said = f"Evidence of {each}{more}" if told else f"No evidence yet, the most of it {each}"
    rule = "where its gaps, all updates together, are more than noise; above 0 a source loses weight"
    return f"<p>{said}; {len(told)} of {len(known)} sources are beyond ±1, {rule}.</p>"


def _gaps(summaries: Mapping[str, SourceSummary]) -> str:
    """A dot with whiskers for each source, largest gap first."""
    sure = {name: (of.gap, of.gap_se) for name, of in summaries.items() if of.gap_se is not None}
    most = max((abs(gap) + ERRORS * error for gap, error in sure.values()), default=0.0)
    if not most:
        return ""
    digits = decimals_of([most])
    lines = [
        [cell(shown(name), "text"), cell(_whisker(gap, error, most), "whisker"), cell(f"{gap:+.{digits}f}")]
        + [cell(f"± {ERRORS * error:.{digits}f}", "grey")]
        for name, (gap, error) in sorted(sure.items(), key=lambda item: -item[1][0])
    ]
    about = "The gaps of late, in nats, with two standard errors on each side. Right of the line a source loses weight."
    return f'<p>{about}</p><div class="gaps">{table(lines)}</div>'


def _whisker(gap: float, error: float, most: float) -> str:
    def place(value: float) -> float:
        return 50 + 48 * value / most

    low, high = place(gap - ERRORS * error), place(gap + ERRORS * error)
    side = "" if low <= 50 <= high else " loses" if gap > 0 else " gains"
    return (
        f'<div class="axis{side}"><i style="left: {low:.2f}%; width: {high - low:.2f}%"></i>'
        f'<b style="left: {place(gap):.2f}%"></b></div>'
    )
