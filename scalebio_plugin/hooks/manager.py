"""The pluggy manager of a run: built once, passed on, never a global."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import pluggy
import torch
from torch import Tensor

from ..algorithm.evidence import Evidence
from . import defaults, spec
from .defaults import RULES

ENTRY_POINTS = "scalebio"


def build_manager(extensions: Sequence[str] = ()) -> pluggy.PluginManager:
    """Manager with the built-ins, the installed entry points of group `scalebio`, and the config's extensions.

    Args:
        extensions: `module` or `module:attribute`, from `scalebio.extensions`.

    Raises:
        ValueError: An extension cannot be found, or implements a hook that does not exist.
    """
    manager = pluggy.PluginManager(spec.PROJECT)
    manager.add_hookspecs(spec)
    manager.register(defaults)
    try:
        manager.load_setuptools_entrypoints(ENTRY_POINTS)
        for path in extensions:
            _register(manager, path)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise ValueError(f"scalebio extension: {error}; the hooks are listed in scalebio_plugin.hooks.spec") from error
    return manager


def manager_of(rule: str, extensions: Sequence[str]) -> pluggy.PluginManager:
    """The manager of a run that moves λ by `rule`.

    Raises:
        ValueError: As `build_manager`, or `rule` is none of the built-in ones and no extension has any.
    """
    manager = build_manager(extensions)
    if rule not in RULES and not _has_rules(manager):
        raise _no_rule(rule)
    return manager


def refuse_unanswered(manager: pluggy.PluginManager, rule: str, sources: int) -> None:
    """Where extensions have rules, they are asked: at gaps of 0, once, and what they return is thrown away.

    Raises:
        ValueError: No one answers for `rule`.
    """
    if rule in RULES:
        return
    zeros = torch.zeros(sources, dtype=torch.float64)
    nothing = spec.Observation(zeros, zeros + 1 / sources, zeros, zeros, 0.0, 1, Evidence.zeros(sources))
    try:
        answer = manager.hook.scalebio_update_mixture(rule=rule, observation=nothing, state=None)
    except Exception:
        return  # somebody did, who makes nothing of no gaps
    if answer is None:
        raise _no_rule(rule)


def updated(
    manager: pluggy.PluginManager, rule: str, observation: spec.Observation, state: dict[str, Any] | None
) -> tuple[Tensor, dict[str, Any]]:
    """λ and the rule's state after one update.

    Raises:
        ValueError: No one answers for `rule`, or with something else.
    """
    answer = manager.hook.scalebio_update_mixture(rule=rule, observation=observation, state=state)
    if answer is None:
        raise _no_rule(rule)
    must = (
        f"scalebio.mixture_update: rule {rule!r} must return a tensor of {len(observation.logits_S)} finite logits and "
        "its state, a dict"
    )
    match answer:
        case [Tensor() as logits, dict() as after]:
            pass
        case _:
            raise ValueError(f"{must}; it returned {answer!r:.200}")
    logits_S = logits.detach().to(observation.logits_S)
    if logits_S.shape != observation.logits_S.shape or not bool(logits_S.isfinite().all()):
        raise ValueError(f"{must}; in step {observation.step} it returned {logits_S.tolist()!r:.200}")
    return logits_S, after


def _has_rules(manager: pluggy.PluginManager) -> bool:
    """Of extensions."""
    answering = manager.hook.scalebio_update_mixture.get_hookimpls()
    return any(implementation.plugin is not defaults for implementation in answering)


def _no_rule(rule: str) -> ValueError:
    return ValueError(
        f"scalebio.mixture_update: no rule {rule!r}; the built-in ones are evidence, exponentiated_gradient and adam, "
        "others come from scalebio.extensions"
    )


def _register(manager: pluggy.PluginManager, path: str) -> None:
    if manager.has_plugin(path):
        raise ValueError(f"scalebio.extensions has {path} twice; keep one")
    extension = _load(path)
    if not manager.is_registered(extension):  # a module that is installed, too
        manager.register(extension, name=path)


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
