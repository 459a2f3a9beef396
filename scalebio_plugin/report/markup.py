"""What the page is made of: tables that fold into cards on a narrow screen, in light, dark and on paper."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from .words import printable

STYLE = """
:root { color-scheme: light dark; --ink: #222; --paper: #fff; --line: #e5e5e5; --faint: #6b6b6b; --block: #f4f4f4 }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #ddd; --paper: #16181b; --line: #363a40; --faint: #9a9fa6; --block: #22262b }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 74rem;
       margin: 2rem auto; padding: 0 1rem }
p { max-width: 62rem } h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem; break-after: avoid }
h1, p, code { overflow-wrap: anywhere }
table { border-collapse: collapse; font-variant-numeric: tabular-nums } .many table { font-size: .9rem }
th, td { padding: .3rem .7rem .3rem 0; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line) }
th { vertical-align: bottom }
.many td { white-space: nowrap }
th:first-child, td:first-child, td.text, th.text { text-align: left }
.many td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 9.5rem; max-width: 20rem }
.pairs td:first-child { color: var(--faint); min-width: 6rem } .pairs td { overflow-wrap: anywhere }
@media (min-width: 40rem) { .pairs td:first-child { min-width: 9rem } }
td.bar { width: 6rem; min-width: 3rem } td.bar div { height: .8rem; margin-top: .35rem; background: #3f90da;
  print-color-adjust: exact; -webkit-print-color-adjust: exact }
.wide { overflow-x: auto }
.goals td { white-space: nowrap; padding-left: .8rem; print-color-adjust: exact }
.goals td.text { white-space: normal; overflow-wrap: anywhere; min-width: 7rem; max-width: 20rem; padding-left: 0 }
.goals th { overflow-wrap: break-word; max-width: 10rem; padding-left: .8rem } .goals th:first-child { padding-left: 0 }
.gaps table { width: 100%; max-width: 62rem; font-size: .9rem } .gaps td { white-space: nowrap }
.gaps td:first-child { white-space: normal; overflow-wrap: anywhere; max-width: 16rem } .gaps td.whisker { width: 60% }
.axis { position: relative; height: 1.3rem; color: var(--faint); print-color-adjust: exact;
  background: linear-gradient(var(--faint), var(--faint)) 50% 50% / 1px 100% no-repeat }
.axis.gains { color: #3f90da } .axis.loses { color: #e76300 }
.axis i { position: absolute; top: .6rem; height: 2px; background: currentcolor }
.axis b { position: absolute; top: .4rem; width: .5rem; height: .5rem; margin-left: -.25rem; border-radius: 50%;
          background: currentcolor }
pre { background: var(--block); padding: .5rem .7rem; margin: .2rem 0; white-space: pre-wrap; user-select: all }
.grey { color: var(--faint) } img { max-width: 100%; width: 44rem; background: #fff }
@media screen and (max-width: 40rem) {
  .gaps tr { display: grid; grid-template-columns: 1fr auto auto; border-bottom: 1px solid var(--line) }
  .gaps td { border: 0 } .gaps td.whisker { width: auto }
  .gaps td:first-child { grid-column: 1 / -1; max-width: none; padding-bottom: 0 }
}
@media screen and (max-width: 58rem) {
  .many .wide { overflow: visible } .many table, .many tbody { display: block } .many tr:first-child { display: none }
  .many tr { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); column-gap: 1rem;
             padding: .6rem 0; border-bottom: 1px solid var(--line) }
  .many td { border: 0; padding: .1rem 0; text-align: left; white-space: normal }
  .many td:first-child, .many td.bar { grid-column: 1 / -1; max-width: none; width: auto }
  .many td:first-child { font-weight: 600 } .many td.bar div { margin: .1rem 0 .3rem }
  .many td[data-label]::before { content: attr(data-label) " "; color: var(--faint) }
}
@media print {
  body { font-size: 10pt; margin: 0; max-width: none } .many table { font-size: 7pt } .wide { overflow: visible }
  th, td { padding-right: .35rem } .many td:first-child { min-width: 5rem } td.bar { width: 2.5rem; min-width: 2.5rem }
  tr, img, pre { break-inside: avoid }
}
"""


def page(title: str, parts: Iterable[str], *, style: str = "", head: str = "") -> str:
    """All of it, which needs no other file.

    Args:
        parts: Of its body.
        style: Beside STYLE. head: Beside what every page has there.
    """
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>{head}'
    head, body = f"<head>{head}\n<style>{STYLE}{style}</style></head>", "\n".join(parts)
    return f'<!doctype html>\n<html lang="en">\n{head}\n<body>\n{body}\n</body>\n</html>\n'


def shown(text: str) -> str:
    """Text from elsewhere, which nothing of is taken for markup, nor turns a line."""
    return escape(printable(text))


def table(lines: Iterable[Iterable[str]], head: Iterable[str] = ()) -> str:
    rows = ["".join(f"<th>{name}</th>" for name in head), *("".join(cells) for cells in lines)]
    return '<div class="wide"><table>\n' + "\n".join(f"<tr>{row}</tr>" for row in rows if row) + "\n</table></div>"


def many(lines: Iterable[Iterable[str]], head: Sequence[str]) -> str:
    """A table of many columns: on a narrow screen each line is a card, in which a cell has its column's name."""
    labelled = [[_labelled(one, name) for one, name in zip(line, ["", *head[1:]], strict=True)] for line in lines]
    return f'<div class="many">{table(labelled, head)}</div>'


def _labelled(one: str, name: str) -> str:
    return one.replace("<td", f'<td data-label="{name}"', 1) if name else one


def pairs(facts: Iterable[tuple[str, str]]) -> str:
    """A name and what there is to say of it, which is markup, in each line."""
    return f'<div class="pairs">{table([[cell(shown(name)), cell(fact, "text")] for name, fact in facts])}</div>'


def cell(content: str, kind: str = "") -> str:
    return f'<td class="{kind}">{content}</td>' if kind else f"<td>{content}</td>"
