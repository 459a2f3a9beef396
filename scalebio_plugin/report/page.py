"""`report.html`: a learned mixture on one page that a colleague can open, with nothing beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from .about_run import about
from .charts import charts, policy, style
from .comparison import compared, comparison_beside, head_of, sentences
from .evidence_seen import rests_on
from .files import StrPath, replace_file
from .history import Floats, HistoryRecord, read_history, series
from .leaks import leaks_section
from .markup import cell, many, page, pairs, shown, table
from .mixture_file import fractions_of_rows, goals_of, read_mixture, rows_of_an_epoch, summaries_of, times_drawn
from .picture import drawn_mixture, embedded
from .shared_rows import shared_rows_section
from .summary import Cosine, Goals, SourceSummary
from .tables import cosine_in_words, interval_in_words, layers_line, told_at_in_words, verdict_in_words
from .words import counted

_HOW_TO_READ = """
<p>The <b>weights</b> p are those of the training loss &Sigma; p<sub>i</sub> L<sub>i</sub>, where L<sub>i</sub> is a
source's mean loss: they are not fractions of rows. <b>Rows</b> says which fraction of the sequences of an ordinary run
that mixture comes to, and <b>epochs asked</b> how often that has each row of a source drawn, of as many rows as {rows}.
What a source is asked for beyond max_repeats in an epoch goes to the others.</p>
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
    """Draw `mixture.png`, write `report.html`, which takes the picture in for paper, and return the path of the page.

    Args:
        folder: Where both go.
        document: The content of `mixture.json`.
        history: Of the run; what is younger than the document is left out.

    Raises:
        ValueError: They are of other sources.
    """
    until_then = _until(document, history)
    picture = drawn_mixture(until_then, list(document["weights"]))
    replace_file(Path(folder) / "mixture.png", picture)
    shows = "Weights, training losses and validation loss over the run"
    return _write(folder, document, until_then, embedded(picture, shows, "picture"))


def write_page(folder: StrPath, document: Mapping[str, Any], history: Sequence[HistoryRecord]) -> Path:
    """`report.html` without the picture, which takes long to draw: while a run goes on. See `write_report`."""
    return _write(folder, document, _until(document, history), "")


def _until(document: Mapping[str, Any], history: Sequence[HistoryRecord]) -> list[HistoryRecord]:
    if history and history[0]["weights"].keys() != document["weights"].keys():
        raise ValueError("mixture.json and history.jsonl have other sources; put the files of one run together")
    return [record for record in history if record["step"] <= document["steps"]]


def _write(folder: StrPath, document: Mapping[str, Any], history: Sequence[HistoryRecord], picture: str) -> Path:
    path = Path(folder) / "report.html"
    replace_file(path, _page(folder, document, history, picture).encode())
    return path


def draw_again(mixture: Path) -> Path:
    """The page of a mixture.json and the history beside it, and its path.

    Raises:
        FileNotFoundError: There is no history.
    """
    history = mixture.with_name("history.jsonl")
    if not history.is_file():
        raise FileNotFoundError(f"no file {history}; give the folder as the run left it (`scalebio show` needs none)")
    return write_report(mixture.parent, read_mixture(mixture, NEEDED), read_history(history, cut_off=True))


def _page(folder: StrPath, document: Mapping[str, Any], history: Sequence[HistoryRecord], picture: str) -> str:
    title = f"Learned mixture of {len(document['weights'])} sources"
    parts = [
        f"<h1>{title}</h1>",
        f"<p>{_in_a_sentence(document)} {_kept(document)}</p>",
        about(folder, document, history),
        "<h2>Weights</h2>" + _weights(document) + _held(document),
        picture,
        charts(history),
        rests_on(summaries_of(document)),
        _comparison(comparison_beside(folder)),
        _validation_sets(document, history),
        leaks_section(document),
        shared_rows_section(document),
        _goals(goals_of(document)),
        "<h2>How to read this</h2>" + _HOW_TO_READ.format(rows=_rows_in_words(document)),
        "<h2>How it was learned</h2>" + _facts(document),
    ]
    safe = f'<meta http-equiv="Content-Security-Policy" content="{policy()}">'
    return page(title, parts, style=style(), head=safe)


def _in_a_sentence(document: Mapping[str, Any]) -> str:
    summaries = summaries_of(document)
    told = [name for name, summary in summaries.items() if summary.is_told_from_average]
    of = f"{document['updates']} updates of the weights in {document['steps']} optimiser steps, penalty"
    sure = f"{len(told)} of {len(summaries)} sources are told from the average of the sources"
    verdict = document.get("verdict")
    said = (
        f" Verdict: {verdict_in_words(verdict, ', ', '')}{told_at_in_words(document.get('told_at'))}."
        if verdict
        else ""
    )
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
    fractions, most = fractions_of_rows(document), max(document["weights"].values())
    asked = times_drawn(document, _rows(document))
    drawn = document.get("drawn")  # a run in the host's order has none, nor has an older document
    head = ["source", "", "weight", "95% interval", "rows", "gap", "s.e.", "", "loss of w / u", "target tokens"]
    head += ["sequences"] + (["epochs asked"] if drawn is None else ["epochs asked", "each drawn"])
    lines = [
        [
            cell(shown(name), "text"),
            cell(f'<div style="width: {summary.weight / most:.1%}"></div>', "bar"),
            cell(f"{summary.weight:.4f}"),
            cell(interval_in_words(summary.interval).replace("-", "–")),
            cell(f"{fractions[name]:.1%}"),
            cell(f"{summary.gap:+.2g}"),
            cell("–" if summary.gap_se is None else f"{summary.gap_se:.1g}"),
            cell(_verdict(summary), "text grey"),
            cell(" / ".join("–" if loss is None else f"{loss:.3f}" for loss in (summary.loss, summary.inner_loss))),
            cell(f"{sources[name]['tokens']:,}"),
            cell(f"{sources[name]['examples']:,}"),
            cell(f"{asked[name]:.2f}"),
            *([] if drawn is None else [cell(f"{drawn[name] / sources[name]['examples']:.2f} times")]),
        ]
        for name, summary in summaries.items()
    ]
    return many(lines, head)


def _rows(document: Mapping[str, Any]) -> int:
    """That the run drew, where it drew them by source; else those of an epoch."""
    drawn = document.get("drawn")
    return sum(drawn.values()) if drawn is not None else rows_of_an_epoch(document)


def _rows_in_words(document: Mapping[str, Any]) -> str:
    return f"{'an epoch has' if document.get('drawn') is None else 'this run drew'} ({_rows(document):,})"


def _held(document: Mapping[str, Any]) -> str:
    """The sources of which the mixture asks more in an epoch than it may have."""
    most = (document.get("settings") or {}).get("scalebio.max_repeats")
    if not isinstance(most, int):
        return ""
    asked = times_drawn(document, rows_of_an_epoch(document))
    held = [f"{shown(name)} ({often:.1f})" for name, often in asked.items() if often > most]
    most_often = f"In an epoch each row is drawn {most} times at most (max_repeats)"
    return f"<p>{most_often}; the mixture asks for more of {', '.join(held)}.</p>" if held else ""


def _verdict(summary: SourceSummary) -> str:
    if not summary.is_told_from_average:
        return "as the average" if summary.gap_se is not None else "too few updates"
    pushed = summary.gap if summary.evidence is None else summary.evidence
    return "loses" if pushed > 0 else "gains"


def _validation_sets(document: Mapping[str, Any], history: Sequence[HistoryRecord]) -> str:
    """What each validation set holds, its loss in the first and last quarter of the updates, and its weight.

    Of a single one only where it is known what it holds: its loss is said above.
    """
    sets = document.get("validation") or {}
    names = list(history[-1].get("val_losses", {})) if history else []
    if not names or (len(names) < 2 and not sets):
        return ""
    losses = series([record for record in history if "val_losses" in record], "val_losses", names)
    quarter = -(-len(losses) // 4)
    weights = history[-1]["val_weights"]
    lines = [
        [cell(shown(name), "text"), cell(_mean(losses[:quarter, i])), cell(_mean(losses[-quarter:, i]))]
        + [cell(f"{weights[name]:.3f}")]
        + ([cell(f"{sets[name][key]:,}" if name in sets else "–") for key in ("examples", "tokens")] if sets else [])
        for i, name in enumerate(names)
    ]
    head = ["validation set", "loss, first quarter", "last quarter", "weight in the validation loss"]
    head += ["sequences", "target tokens"] if sets else []
    return f"<h2>Validation {'sets' if len(names) > 1 else 'data'}</h2>" + many(lines, head)


def _comparison(document: Mapping[str, Any] | None) -> str:
    """Of the run that this is with others on the same test rows; nothing where it was compared with none."""
    if document is None:
        return ""
    reference = shown(document["reference"])
    lines = [
        [cell(shown(name), "text"), *map(cell, numbers), cell(shown(verdict), "text grey"), cell(time)]
        for name, *numbers, verdict, time in compared(document)
    ]
    arms = many(lines, [shown(name) for name in head_of(document)])
    said = "".join(f"<li>{shown(line)}.</li>" for line in sentences(document))
    seeds = max((len(arm["losses"]) for arm in document["arms"].values()), default=0)
    unit = "that of an ordinary arm is 1"
    if all(arm["time"] is None for arm in document["arms"].values()):
        unit = f"not told, as no ordinary arm beside {reference} is there to count it in"
    return (
        f"<h2>Beside other mixtures</h2><ul>{said}</ul>{arms}<p>By scalebio compare, {counted(seeds, 'seed')}: losses "
        f"of the test rows, nats a token. Of a difference below 0 {reference} is the better one; its 95% interval has "
        f"what seeds and test rows may have made of it. Time: {unit}.</p>"
    )


def _goals(goals: Goals | None) -> str:
    """Which source helps which validation set, shaded by the cosine."""
    if goals is None:
        return ""
    sets = list(next(iter(goals.values())))
    lines = [[cell(shown(name), "text"), *(_shaded(row[goal]) for goal in sets)] for name, row in goals.items()]
    shaded = table(lines, ["source", *(f"{shown(goal)}" for goal in sets)])
    return f'<h2>Which source helps which validation set</h2><div class="goals">{shaded}</div>' + _HOW_GOALS_READ


def _shaded(cosine: Cosine) -> str:
    """Blue above 0, orange below, the stronger the farther; a cosine within two standard errors of 0 is grey."""
    if cosine.mean is None:
        return cell("–", "grey")
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
    settings = document.get("settings") or {}
    facts |= {name: _in_words(value) for name, value in settings.items() if value is not None}
    facts |= {f"version of {name}": version for name, version in document["versions"].items()}
    facts |= {f"fingerprint of the {name}": digest for name, digest in document["fingerprint"].items()}
    layers = document.get("layer_steps")
    moved = "" if layers is None else f"<p>{shown(layers_line(layers))}.</p>\n"
    return moved + pairs((name, shown(str(fact))) for name, fact in facts.items())


def _in_words(value: Any) -> str:
    """A setting, without the quotes and brackets of its JSON."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_in_words(of)}" for name, of in value.items()) or "none"
    if isinstance(value, list):
        return f"[{', '.join(map(_in_words, value))}]"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "default" if value is None else str(value)
