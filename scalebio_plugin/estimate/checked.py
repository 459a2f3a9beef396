"""All that is wrong with a config, the plugin's rules and the host's, before anything is loaded."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from difflib import get_close_matches
from typing import Any

from ..config.names import listed


def refusal_of(config: Mapping[str, Any]) -> ValueError | None:
    """What the host's validation, of which ours is a part, says of a config as it was written; None: nothing."""
    if not listed(config):
        return ValueError(
            "plugins: does not list scalebio, so that the run would be an ordinary one; add `plugins: [scalebio]`"
        )
    with _quiet():
        from axolotl.cli.config import prepare_plugins
        from axolotl.utils.config import validate_config
        from axolotl.utils.dict import DictDefault

        cfg = DictDefault(config)
        try:
            prepare_plugins(cfg)
            validate_config(cfg)
        except ValueError as error:
            return error
    return None


def ignored_keys(config: Mapping[str, Any]) -> list[str]:
    """A line for each key that the host does not know, and drops without a word."""
    with _quiet():
        from axolotl.integrations.config import merge_input_args

        fields = merge_input_args()[0].model_fields.items()
    known = [name for key, field in fields for name in (key, field.alias) if name]
    found = []
    for key in config:
        if key not in known:
            meant = get_close_matches(str(key), known, n=1, cutoff=0.75)
            hint = f"; did you mean {meant[0]}?" if meant else ""
            found.append(f"{key}: the host knows no such key and ignores it{hint}")
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """The host logs and prints as it validates."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            yield
    finally:
        logging.disable(before)
