"""`report.html`: a learned mixture on one page that a colleague can open, with nothing beside it."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from .files import StrPath, replace_file
from .history import Floats, HistoryRecord, series
from .mixture_file import goals_of, summaries_of
from .picture import draw_mixture
from .summary import Cosine, Goals, SourceSummary
from .tables import cosine_in_words, interval_in_words, layers_line, verdict_in_words

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 62rem; margin: 2rem auto;
       padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .8rem .3rem 0; text-align: right; vertical-align: top; border-bottom: 1px solid #e5e5e5 }
th:first-child, td:first-child, td.text, th.text { text-align: left; overflow-wrap: anywhere }
td.bar { width: 9rem; padding-right: 1rem } td.bar div { height: .8rem; margin-top: .35rem; background: #3f90da }
.wide { overflow-x: auto } td.text { min-width: 5.5rem }
.goals td { white-space: nowrap; padding-left: .8rem } .goals td.text { white-space: normal; padding-left: 0 }
.grey { color: #777 } img { max-width: 100%; width: 44rem }
"""
_HOW_TO_READ = """
<p>The <b>weights</b> p are those of the training loss &Sigma; p<sub>i</sub> L<sub>i</sub>, where L<sub>i</sub> is a
source's mean loss: they are not fractions of rows. <b>Rows</b> says which fraction of the sequences of an ordinary run
that mixture comes to.</p>
<p>The <b>gap</b> is what pulling the model towards the validation data costs a source beyond the average of the
sources (mean of the last third to two thirds of the updates, with its standard error, s.e.). Above 0 a source loses
weight, below 0 it gains. <b>Gains</b> and <b>loses</b> stand where all gaps of the run together are more than noise:
noise alone would come to that, at any update, in one run of twenty. The <b>95% interval</b> says what the noise of the
gaps may have made of a weight, under this rule and this data; another model or other validation data are not in it. One
of no width: no evidence has moved the weight.</p>
"""
_HOW_GOALS_READ = """
<p>The cosine of a source's gradient and a validation set's, at the model, mean over the run's probes &plusmn; its
standard error. Above 0 (blue) a small step on that source lowers the loss of that set, below 0 (orange) it raises it;
grey is what is within two standard errors of 0, or has none yet. It is what the gaps would see of each set alone if the
Hessian were the identity: it says nothing of curvature, nor of what the optimizer makes of a gradient. The noise of
batches draws it towards 0, that of a source with few rows in them most: compare along a line rather than down a
column.</p>
"""

_FACTS = ("estimator", "loss_unit", "mixture_update", "penalty", "steps", "updates", "seed")
NEEDED = ("sources", "versions", "fingerprint", *_FACTS)  # of the document


def write_report(folder: StrPath, document: Mapping[str, Any], history: Sequence[HistoryRecord]) -> Path:
    """Draw `mixture.png`, write `report.html`, which takes the picture in, and return the path of the page.

    Args:
        folder: Where both go.
        document: The content of `mixture.json`.
        history: Of the run; what is younger than the document is left out.

    Raises:
        ValueError: They are of other sources.
    """
    if history and history[0]["weights"].keys() != document["weights"].keys():
        raise ValueError("mixture.json and history.jsonl have other sources; put the files of one run together")
    picture, page = Path(folder) / "mixture.png", Path(folder) / "report.html"
    until_then = [record for record in history if record["step"] <= document["steps"]]
    draw_mixture(until_then, picture, list(document["weights"]))
    replace_file(page, _page(document, picture.read_bytes(), until_then).encode())
    return page


def _page(document: Mapping[str, Any], picture: bytes, history: Sequence[HistoryRecord]) -> str:
    image = base64.b64encode(picture).decode()
    title = f"Learned mixture of {len(document['weights'])} sources"
    parts = [
        f"<h1>{title}</h1>",
        f"<p>{_in_a_sentence(document)} {_kept(document)}</p>",
        _weights(document),
        f'<img alt="Weights, training losses and validation loss over the run" src="data:image/png;base64,{image}">',
        _validation_sets(history),
        _goals(goals_of(document)),
        "<h2>How to read this</h2>" + _HOW_TO_READ,
        "<h2>How it was learned</h2>" + _facts(document),
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    body = "\n".join(parts)
    head = f"<head>{head}\n<style>{_STYLE}</style></head>"
    return f'<!doctype html>\n<html lang="en">\n{head}\n<body>\n{body}\n</body>\n</html>\n'


def _in_a_sentence(document: Mapping[str, Any]) -> str:
    summaries = summaries_of(document)
    told = [name for name, summary in summaries.items() if summary.is_told_from_average]
    of = f"{document['updates']} updates of the weights in {document['steps']} optimiser steps, penalty"
    sure = f"{len(told)} of {len(summaries)} sources are told from the average of the sources"
    verdict = document.get("verdict")
    said = f" Verdict: {verdict_in_words(verdict, ', ', '')}." if verdict else ""
    return escape(f"{of} {document['penalty']:g}. {sure}.{said}")


def _kept(document: Mapping[str, Any]) -> str:
    """Which set the run saves, and whether it has trained on the validation rows."""
    if document.get("keep", "model") == "inner":  # 0.1.0 wrote none
        return "The model saved is u (keep: inner): it has trained on none of the validation rows."
    if math.isinf(document["penalty"]):
        return "The model saved is w (keep: model): without a pull it has trained on none of the validation rows."
    return (
        "The model saved is w (keep: model): it has trained on the validation rows too, so its loss on them does not "
        "tell what the mixture is worth."
    )


def _weights(document: Mapping[str, Any]) -> str:
    sources = document["sources"]
    summaries = summaries_of(document)
    # What `apply` samples by: p over the mean target tokens of a sequence.
    rows_of = {name: summaries[name].weight * source["examples"] / source["tokens"] for name, source in sources.items()}
    most, all_rows = max(document["weights"].values()), sum(rows_of.values())
    drawn = document.get("drawn")  # a run in the host's order has none, nor has an older document
    head = ["source", "", "weight", "95% interval", "rows", "gap", "s.e.", "", "loss", "target tokens", "sequences"]
    head += [] if drawn is None else ["each drawn"]
    lines = [
        [
            _cell(escape(name), "text"),
            _cell(f'<div style="width: {summary.weight / most:.1%}"></div>', "bar"),
            _cell(f"{summary.weight:.4f}"),
            _cell(interval_in_words(summary.interval).replace("-", "–")),
            _cell(f"{rows_of[name] / all_rows:.1%}"),
            _cell(f"{summary.gap:+.2g}"),
            _cell("–" if summary.gap_se is None else f"{summary.gap_se:.1g}"),
            _cell(_verdict(summary), "text grey"),
            _cell("–" if summary.loss is None else f"{summary.loss:.3f}"),
            _cell(f"{sources[name]['tokens']:,}"),
            _cell(f"{sources[name]['examples']:,}"),
            *([] if drawn is None else [_cell(f"{drawn[name] / sources[name]['examples']:.2f} times")]),
        ]
        for name, summary in summaries.items()
    ]
    return _table(lines, head)


def _verdict(summary: SourceSummary) -> str:
    if not summary.is_told_from_average:
        return "as the average" if summary.gap_se is not None else "too few updates"
    pushed = summary.gap if summary.evidence is None else summary.evidence
    return "loses" if pushed > 0 else "gains"


def _validation_sets(history: Sequence[HistoryRecord]) -> str:
    """The loss of each of several validation sets, first and last quarter of the updates, and its weight."""
    names = list(history[-1].get("val_losses", {})) if history else []
    if len(names) < 2:
        return ""
    losses = series([record for record in history if "val_losses" in record], "val_losses", names)
    quarter = -(-len(losses) // 4)
    weights = history[-1]["val_weights"]
    lines = [
        [_cell(escape(name), "text"), _cell(_mean(losses[:quarter, i])), _cell(_mean(losses[-quarter:, i]))]
        + [_cell(f"{weights[name]:.3f}")]
        for i, name in enumerate(names)
    ]
    head = ("validation set", "loss, first quarter", "last quarter", "weight in the validation loss")
    return "<h2>Validation sets</h2>" + _table(lines, head)


def _goals(goals: Goals | None) -> str:
    """Which source helps which validation set, shaded by the cosine."""
    if goals is None:
        return ""
    sets = list(next(iter(goals.values())))
    lines = [[_cell(escape(name), "text"), *(_shaded(row[goal]) for goal in sets)] for name, row in goals.items()]
    table = _table(lines, ["source", *(f"{escape(goal)}" for goal in sets)])
    return f'<h2>Which source helps which validation set</h2><div class="goals">{table}</div>' + _HOW_GOALS_READ


def _shaded(cosine: Cosine) -> str:
    """Blue above 0, orange below, the stronger the farther; a cosine within two standard errors of 0 is grey."""
    if cosine.mean is None:
        return _cell("–", "grey")
    clear = cosine.se is not None and abs(cosine.mean) > 2 * cosine.se
    colour = "63, 144, 218" if cosine.mean > 0 else "255, 143, 0"
    shade = f' style="background: rgba({colour}, {0.6 * min(1.0, abs(cosine.mean)):.2f})"' if clear else ' class="grey"'
    return f"<td{shade}>{cosine_in_words(cosine).replace('-', '−')}</td>"


def _mean(losses: Floats) -> str:
    """Of the batches that held the set."""
    seen = losses[np.isfinite(losses)]
    return f"{seen.mean():.3f}" if len(seen) else "–"


def _facts(document: Mapping[str, Any]) -> str:
    facts = {name: document[name] for name in _FACTS} | {"keep": document.get("keep", "model")}
    facts |= {f"version of {name}": version for name, version in document["versions"].items()}
    facts |= {f"fingerprint of the {name}": digest for name, digest in document["fingerprint"].items()}
    layers = document.get("layer_steps")
    moved = "" if layers is None else f"<p>{escape(layers_line(layers))}.</p>\n"
    return moved + _table([[_cell(escape(name)), _cell(escape(str(fact)), "text")] for name, fact in facts.items()])


def _table(lines: Iterable[Iterable[str]], head: Iterable[str] = ()) -> str:
    rows = ["".join(f"<th>{name}</th>" for name in head), *("".join(cells) for cells in lines)]
    return '<div class="wide"><table>\n' + "\n".join(f"<tr>{row}</tr>" for row in rows if row) + "\n</table></div>"


def _cell(content: str, kind: str = "") -> str:
    return f'<td class="{kind}">{content}</td>' if kind else f"<td>{content}</td>"
