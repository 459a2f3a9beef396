"""The figures of benchmarks/gpu.py as Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

GIB = 2**30
Found = dict[str, dict[str, Any]]
PAIRS = ("8B QLoRA", "8B LoRA", "8B LISA", "1B LoRA", "1B LISA", "1B QLoRA", "1B LoRA with Liger")
PAIRS += ("1B LoRA, all tokens", "1B LoRA, all tokens, chunked", "1B LoRA, all tokens, Liger's fused loss")
BESIDE = ("1B LISA, bilevel", "1B LISA, bilevel, on the GPU")


def table(found: Found, estimates: Found) -> str:
    return "\n".join([*_checks(found), "", *_memory(found, estimates), "", *_time(found), "", *_exchange(found)]) + "\n"


def _checks(found: Found) -> Iterator[str]:
    yield "| check | | largest |"
    yield "|---|---|---|"
    for record in found.values():
        if "check" in record:
            yield f"| {record['check']} | {'yes' if record['right'] else 'NO'} | {record['largest']} |"


def _pairs(found: Found) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    for name in PAIRS:
        plain, bilevel = found.get(f"{name}, plain", {}), found.get(f"{name}, bilevel", {})
        if plain or bilevel:
            yield name, plain, bilevel


def _gib(record: dict[str, Any], what: str) -> float | None:
    amount = record.get("memory", {}).get(what)
    return None if amount is None else amount / GIB


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above and below else None


def _cell(number: float | None, digits: int = 2) -> str:
    return "–" if number is None else f"{number:.{digits}f}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"


def _memory(found: Found, estimates: Found) -> Iterator[str]:
    """Allocated is held against the estimate without its allowance; used, with the CUDA context, against all of it."""
    yield "| GiB | plain | bilevel | bilevel / plain | used | estimate | allocated / estimate | used / estimate |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, plain, bilevel in _pairs(found):
        estimate = estimates.get(f"{name}, bilevel", {})
        peak, allocated, used = estimate.get("run"), _gib(bilevel, "allocated"), _gib(bilevel, "used")
        bare = peak - estimate["allowance"] if peak else None
        cells = [_cell(number) for number in (_gib(plain, "allocated"), allocated)]
        cells += [_cell(_ratio(allocated, _gib(plain, "allocated")), 3), _cell(used), _cell(peak)]
        cells += [_percent(_ratio(allocated, bare)), _percent(_ratio(used, peak))]
        yield f"| {name} | {' | '.join(cells)} |"


def _time(found: Found) -> Iterator[str]:
    """Medians from the end of a step to the end of the next."""
    yield "| seconds a step | plain | bilevel | bilevel / plain | positions / plain's | time / passes |"
    yield "|---|---|---|---|---|---|"
    for name, plain, bilevel in _pairs(found):
        seconds = [record.get("from_end_to_end") for record in (plain, bilevel)]
        ratio = _ratio(seconds[1], seconds[0])
        passes = _ratio(bilevel.get("positions"), plain.get("positions"))
        cells = [_cell(number, 3) for number in (*seconds, ratio, passes, _ratio(ratio, passes))]
        yield f"| {name} | {' | '.join(cells)} |"


def _exchange(found: Found) -> Iterator[str]:
    yield "| LISA, 1B: u rests | seconds a step, median | mean | allocated GiB |"
    yield "|---|---|---|---|"
    for name, where in zip(BESIDE, ("in CPU memory", "on the GPU"), strict=True):
        record = found.get(name, {})
        times = [_cell(record.get(kind), 3) for kind in ("from_end_to_end", "mean_from_end_to_end")]
        yield f"| {where} | {' | '.join(times)} | {_cell(_gib(record, 'allocated'))} |"
