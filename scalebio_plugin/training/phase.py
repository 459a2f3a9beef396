"""The phases of a run."""

from __future__ import annotations

from enum import Enum


class Phase(Enum):
    """WARMUP: w alone on the mixture. LEARN: the bilevel step. AFTER: λ is final, an ordinary run on the mixture."""

    WARMUP = "warmup"
    LEARN = "learn"
    AFTER = "after"

    @property
    def in_words(self) -> str:
        return {
            Phase.WARMUP: "w trains alone",
            Phase.LEARN: "learning goes on",
            Phase.AFTER: "the mixture is learned, the model trains on it",
        }[self]
