"""States back from the plain values of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

State = TypeVar("State")


class OtherFormat(ValueError):
    """What was saved has other fields than this version reads.

    Args:
        what: Whose fields they are.
        strange: Those that it has and this version does not know.
        missing: Those that it lacks.
    """

    def __init__(self, what: str, strange: Iterable[str] = (), missing: Iterable[str] = ()):
        found = {"has": sorted(strange), "lacks": sorted(missing)}
        said = " and ".join(f"{verb} {', '.join(names)}" for verb, names in found.items() if names)
        super().__init__(
            f"{what} {said}, so another version of the plugin wrote it; resume with the version that wrote it, or "
            "start a new output_dir"
        )


def restored(kind: type[State], saved: Mapping[str, Any]) -> State:
    """A dataclass back from the values of its fields, by name.

    Raises:
        OtherFormat: They are the fields of another version.
    """
    fields = kind.__dataclass_fields__.keys()  # type: ignore[attr-defined]
    if saved.keys() != fields:
        raise OtherFormat(kind.__name__, saved.keys() - fields, fields - saved.keys())
    return kind(**saved)


def refuse_missing(what: str, saved: Mapping[str, Any], keys: Iterable[str]) -> None:
    """The same of plain values that are no dataclass, and may hold more.

    Raises:
        OtherFormat: One of the keys is not there.
    """
    missing = [key for key in keys if key not in saved]
    if missing:
        raise OtherFormat(what, missing=missing)
