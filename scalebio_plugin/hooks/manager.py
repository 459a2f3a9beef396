"""The pluggy manager of a run: built once, passed on, never a global."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import pluggy

from . import spec

ENTRY_POINTS = "scalebio"


def build_manager(extensions: Sequence[str] = (), built_in: Sequence[object] = ()) -> pluggy.PluginManager:
    """Manager with the built-ins, the installed entry points of group `scalebio`, and the config's extensions.

    Args:
        extensions: `module` or `module:attribute`, from `scalebio.extensions`.
        built_in: Implementations that come first in registration and last in calls.

    Raises:
        ValueError: An extension cannot be found, or implements a hook that does not exist.
    """
    manager = pluggy.PluginManager(spec.PROJECT)
    manager.add_hookspecs(spec)
    for plugin in built_in:
        manager.register(plugin, name=type(plugin).__name__)
    try:
        manager.load_setuptools_entrypoints(ENTRY_POINTS)
        for path in extensions:
            manager.register(_load(path), name=path)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise ValueError(f"scalebio extension: {error}; the hooks are listed in scalebio_plugin.hooks.spec") from error
    return manager


def _load(path: str) -> object:
    module, _, attribute = path.partition(":")
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"scalebio.extensions: no module {module!r} ({error}); install it or correct the name"
        ) from error
    if not attribute:
        return loaded
    if not hasattr(loaded, attribute):
        raise ValueError(f"scalebio.extensions: module {module!r} has no {attribute!r}; correct the name")
    found = getattr(loaded, attribute)
    return found() if isinstance(found, type) else found
