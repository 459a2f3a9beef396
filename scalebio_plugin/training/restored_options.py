"""Options of the optimizer that a resumed run does not follow: the host restores a checkpoint's with all of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

OPTIONS = {"initial_lr": "learning_rate", "weight_decay": "weight_decay", "betas": "betas", "eps": "eps"}


def options_of(optimizer: Any) -> list[dict[str, Any]]:
    """Of each group of parameters, by the name that they have there."""
    return [
        {key: _plain(group[key]) for key in OPTIONS if group.get(key) is not None} for group in optimizer.param_groups
    ]


def not_followed(asked: Sequence[Mapping[str, Any]], restored: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Each option that is another one now, in a sentence for the log.

    Args:
        asked, restored: `options_of` the optimizer before and after a checkpoint was loaded.
    """
    for key, name in OPTIONS.items():
        values = [_values(groups, key) for groups in (asked, restored)]
        if values[0] != values[1] and all(values):
            yield (
                f"{name} remains {' and '.join(values[1])}, as in the checkpoint, whose optimizer the host goes on "
                f"with; this config has {' and '.join(values[0])}"
            )


def _values(groups: Sequence[Mapping[str, Any]], key: str) -> list[str]:
    return sorted({str(group[key]) for group in groups if key in group})


def _plain(value: Any) -> Any:
    return [float(one) for one in value] if isinstance(value, (list, tuple)) else float(value)
