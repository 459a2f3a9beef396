"""All that is wrong with a config, the plugin's rules and the host's, before anything is loaded."""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from difflib import get_close_matches
from inspect import signature
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ..config.names import listed
from ..config.raw import refuse_shapes
from ..config.refusals import refusal_of


@dataclass(frozen=True)
class Checked:
    """What would end the run, None if nothing would, and a line for each thing that the host would ignore."""

    refusal: ValueError | None
    ignored: list[str]


def checked(config: Mapping[str, Any]) -> Checked:
    """What the host's validation, of which ours is a part, makes of a config as it was written."""
    try:
        refuse_shapes(config)
    except ValueError as error:
        return Checked(error, [])  # nobody can look further
    with _quiet():
        wrong, missing = _load_plugins(config)
        refusal = refusal_of(wrong) if wrong else _refusal(config)
        return Checked(refusal, [*missing, *_ignored_keys(config)])


def _load_plugins(config: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Lines for those with which the host ends, and for those without which it goes on (before 0.21).

    Each is loaded under the name that the host files it under, and once.
    """
    from axolotl.integrations import base

    manager, wrong, missing = base.PluginManager.get_instance(), list[str](), list[str]()
    filed_under = getattr(base, "normalize_plugin_name", str)
    ending = {"required": True} if "required" in signature(manager.register).parameters else {}
    for name in config.get("plugins") or []:
        if filed_under(name) in manager.plugins:
            continue
        try:
            manager.register(filed_under(name), **ending)
        except Exception as error:
            wrong.append(f"plugins: {name} cannot be loaded ({error}); correct it, as `module.Class`")
        else:
            if filed_under(name) not in manager.plugins:
                missing.append(f"plugins: the host cannot import {name} and goes on without it; correct or install it")
    return wrong, missing


def _refusal(config: Mapping[str, Any]) -> ValueError | None:
    if not listed(config):
        return ValueError(
            "plugins: does not list scalebio, so that the run would be an ordinary one; add `plugins: [scalebio]`"
        )
    if not config.get("base_model"):
        return ValueError("base_model: must name a model, or its folder; add it")
    try:
        _validate(config)
    except ValueError as error:
        return error
    return None


def _validate(config: Mapping[str, Any]) -> None:
    from axolotl.cli.config import prepare_plugins
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault

    cfg = DictDefault(config)
    try:
        prepare_plugins(cfg)
        validate_config(cfg)
    except ValueError:
        raise
    except Exception as error:  # as it would end a run
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        what = f"{type(error).__name__}: {error}, in {frame.f_code.co_name}"
        raise ValueError(
            f"the host's validation ends in an error of its own ({what}); correct the key it is of"
        ) from error


def _ignored_keys(config: Mapping[str, Any]) -> Iterator[str]:
    """Once its plugins are loaded, which bring keys of their own."""
    from axolotl.integrations.config import merge_input_args

    model = merge_input_args()[0]
    yield from _unknown(config, [model])
    yield from _unknown_of_entries(config, _models_in(model.model_fields["datasets"].annotation))


def _unknown_of_entries(config: Mapping[str, Any], models: Sequence[type[BaseModel]]) -> Iterator[str]:
    block = config.get("scalebio") or {}
    lists = {key: config.get(key) for key in ("datasets", "test_datasets")}
    for key, entries in {**lists, "scalebio.validation_datasets": block.get("validation_datasets")}.items():
        for index, entry in enumerate(entries or []):
            ours = {"weight"} if key.startswith("scalebio") else set()
            given = {name: value for name, value in entry.items() if name not in ours}
            yield from _unknown(given, models, f"{key}[{index}].")


def _unknown(given: Mapping[str, Any], models: Sequence[type[BaseModel]], where: str = "") -> Iterator[str]:
    """A line for each key that none of the models has, in an entry also of the blocks inside."""
    fields: dict[str, list[FieldInfo]] = {}
    for model in models:
        for name, field in model.model_fields.items():
            for known in {name, field.alias or name}:
                fields.setdefault(known, []).append(field)
    for key, value in given.items():
        if key not in fields:
            meant = get_close_matches(str(key), fields, n=1, cutoff=0.75)
            hint = f"; did you mean {meant[0]}?" if meant else ""
            yield f"{where}{key}: the host knows no such key and ignores it{hint}"
        elif where and isinstance(value, Mapping):
            inside = [model for field in fields[key] for model in _models_in(field.annotation)]
            yield from _unknown(value, inside, f"{where}{key}.") if inside else ()


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


@contextmanager
def _quiet() -> Iterator[None]:
    """The host logs and prints as it validates."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            yield
    finally:
        logging.disable(before)
