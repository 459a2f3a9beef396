"""What the runs of benchmarks/gpu.py whose time does not count have to come out as."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

Found = dict[str, dict[str, Any]]


def verdicts(found: Found) -> list[dict[str, Any]]:
    """A record for each check whose runs ended."""
    return [*_no_pull(found), *_same(found), *_fp16(found)]


def _no_pull(found: Found) -> Iterator[dict[str, Any]]:
    for name in ("LoRA, no pull", "LISA, no pull", "LoRA, fused attention, no pull"):
        if name in found:
            gaps = [abs(gap) for entry in found[name]["history"] for gap in entry["gap"].values()]
            sets = found[name]["sets"]
            right = bool(gaps) and not any(gaps) and sets["apart"] == 0 and sets["inner_steps"] > 0
            check = f"{name}: all gaps exactly 0, u = w bit for bit"
            yield {"check": check, "right": right, "largest": max(gaps, default=None)}


def _same(found: Found) -> Iterator[dict[str, Any]]:
    pairs = {
        "LISA, u in CPU memory and on the GPU: the same bits": ("LISA, u in CPU memory", "LISA, u on the GPU"),
        "LoRA, fused attention, twice: the same bits": ("LoRA, once", "LoRA, again"),
    }
    for check, (one, other) in pairs.items():
        if one in found and other in found:
            a, b = found[one], found[other]
            bits = [[record["sets"][key] for key in ("model_bits", "inner_bits")] for record in (a, b)]
            moved = a["sets"]["apart"] > 0  # u and w differ, so that mixing them up would show
            apart = [abs(x["val_loss"] - y["val_loss"]) for x, y in zip(a["history"], b["history"], strict=False)]
            right = moved and a["history"] == b["history"] and bits[0] == bits[1]
            yield {"check": check, "right": right, "largest": max(apart, default=None)}


def _fp16(found: Found) -> Iterator[dict[str, Any]]:
    if "LoRA, fp16" in found:
        record = found["LoRA, fp16"]
        entries, sets = record["history"], record["sets"]
        seen = [*record["losses"], *(entry[key] for entry in entries for key in ("train_loss", "val_loss"))]
        finite = len(entries) == 8 and all(math.isfinite(loss) for loss in seen)
        stepped = sets["model_steps"] == sets["inner_steps"] > 0
        check = f"fp16: 8 finite losses, {sets['model_steps']} steps of w and {sets['inner_steps']} of u"
        yield {"check": check, "right": finite and stepped, "largest": max(seen, default=None)}
