"""The pluggy manager of a run: built once, passed on, never a global."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import pluggy
import torch
from torch import Tensor

from ..algorithm.evidence import Evidence
from . import spec
from .defaults import BUILT_IN

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


def manager_of(rule: str, extensions: Sequence[str]) -> pluggy.PluginManager:
    """The manager of a run that moves λ by `rule`.

    Raises:
        ValueError: As `build_manager`, or no one answers for `rule`.
    """
    manager = build_manager(extensions, BUILT_IN)
    zeros, none = torch.zeros(2, dtype=torch.float64), Evidence.zeros(2)
    nothing = spec.Observation(zeros, zeros + 0.5, zeros, zeros, learning_rate=0.0, step=1, evidence=none)
    updated(manager, rule, nothing, None)
    return manager


def updated(
    manager: pluggy.PluginManager, rule: str, observation: spec.Observation, state: dict[str, Any] | None
) -> tuple[Tensor, dict[str, Any]]:
    """λ and the rule's state after one update.

    Raises:
        ValueError: No one answers for `rule`.
    """
    answer: tuple[Tensor, dict[str, Any]] | None = manager.hook.scalebio_update_mixture(
        rule=rule, observation=observation, state=state
    )
    if answer is None:
        raise ValueError(
            f"scalebio.mixture_update: no rule {rule!r}; the built-in ones are evidence, exponentiated_gradient and "
            "adam, others come from scalebio.extensions"
        )
    return answer


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
