"""`<output_dir>/scalebio/`: the files that a run leaves."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .cost import Cost, read_cost, write_cost
from .files import StrPath, replace_file
from .history import HistoryRecord, append_history, read_history, readable_lines
from .mixture_file import Provenance, mixture_document, write_mixture
from .page import write_page, write_report
from .summary import summarise, summarise_goals

FILES = ("history.jsonl", "mixture.json", "next.yml", "report.html", "mixture.png", "cost.json")


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run, written by its main process alone.

    Attributes:
        path: Of the folder; made with the first file.
        names: Of the sources.
        provenance: What `mixture.json` says of the run; what grows with it is filled in as it is written.
        next_config: Content of `next.yml`; None where the config has no form in YAML.
    """

    path: Path
    names: Sequence[str]
    provenance: Provenance
    next_config: str | None

    @property
    def history(self) -> Path:
        return self.path / "history.jsonl"

    def begin(self) -> Path | None:
        """A run starts anew: what an earlier one left is put into `earlier/`, in the place of what is there.

        Returns:
            That folder; None where nothing was to be kept: a run that was stopped before its first mixture left these.
        """
        left = [path for name in FILES if (path := self.path / name).exists()]
        if {path.name for path in left} <= {"history.jsonl", "cost.json"}:
            for path in left:
                path.unlink()
            return None
        earlier = self.path / "earlier"
        shutil.rmtree(earlier, ignore_errors=True)
        earlier.mkdir()
        for path in left:
            path.replace(earlier / path.name)
        return earlier

    def add(self, record: HistoryRecord) -> None:
        """The line of one update."""
        self.path.mkdir(parents=True, exist_ok=True)
        append_history(self.history, record)

    def read_history(self) -> list[HistoryRecord]:
        """So far; none before the first update of λ."""
        return read_history(self.history) if self.history.exists() else []

    def save_history(self, copy: StrPath) -> None:
        """The history so far, for a checkpoint."""
        if self.history.exists():
            Path(copy).parent.mkdir(parents=True, exist_ok=True)
            replace_file(copy, self.history.read_bytes())

    def restore_history(self, copy: StrPath | None) -> bool:
        """The history as a checkpoint has it, or none: what a killed run wrote later is learned again.

        Returns:
            Whether lines of the copy are left out as they cannot be read, so that the end of the run can.
        """
        if copy is None or not os.path.exists(copy):
            self.history.unlink(missing_ok=True)
            return False
        self.path.mkdir(parents=True, exist_ok=True)
        content = Path(copy).read_bytes()
        readable = readable_lines(content)
        replace_file(self.history, readable)
        return readable != content

    def write_mixture(
        self,
        history: Sequence[HistoryRecord],
        steps: int,
        layer_steps: list[int] | None,
        drawn: dict[str, int] | None = None,
    ) -> dict[str, Any] | None:
        """Write `mixture.json` from the history so far and return its content; None before the first update of λ.

        Args:
            steps: Optimiser steps so far.
            layer_steps: For how many of them each transformer block trained, under LISA.
            drawn: Rows drawn of each source, where they are drawn by source.
        """
        if not history:
            return None
        known = replace(self.provenance, steps=steps, updates=len(history), layer_steps=layer_steps, drawn=drawn)
        verdict, goals = history[-1].get("verdict"), summarise_goals(history, self.names)
        told_at = history[-1].get("told_at")
        document = mixture_document(summarise(history, self.names), known, verdict, goals, told_at)
        write_mixture(self.path / "mixture.json", document)
        return document

    def draw(self, document: dict[str, Any], history: Sequence[HistoryRecord]) -> None:
        """`mixture.png` and `report.html`, from what `write_mixture` returned."""
        write_report(self.path, document, history)

    def read_cost(self) -> Cost:
        return read_cost(self.path)

    def write_cost(self, cost: Cost) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        write_cost(self.path, cost)

    def write_page(self, document: dict[str, Any], history: Sequence[HistoryRecord]) -> None:
        """`report.html` as `draw` writes it, but for the picture: in a tenth of the time, while the run goes on."""
        write_page(self.path, document, history)

    def write_next_config(self) -> None:
        if self.next_config is not None:
            replace_file(self.path / "next.yml", self.next_config.encode())

    def listing(self) -> str:
        return f"in {self.path}: {', '.join(sorted(os.listdir(self.path)))}"


def fingerprint(value: Any) -> str:
    """Digest of plain values, the same wherever they are equal."""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
