"""What the algorithm and the hooks offer to others' code: listed, documented, typed, and enough for a loop."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re
import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from scalebio_plugin import algorithm, hooks
from scalebio_plugin.hooks import Observation
from scalebio_plugin.hooks.manager import build_manager

ROOT = Path(__file__).parents[2]
PUBLIC = [(package, name) for package in (algorithm, hooks) for name in package.__all__]
DEFINED = [(p, n) for p, n in PUBLIC if inspect.isclass(getattr(p, n)) or inspect.isfunction(getattr(p, n))]
EVERY = pytest.mark.parametrize(("package", "name"), DEFINED, ids=[name for _, name in DEFINED])


def functions_of(package: ModuleType, name: str) -> list[Any]:
    """The function, or the class's own methods that others call."""
    found = getattr(package, name)
    if inspect.isfunction(found):
        return [found]
    own = [inspect.unwrap(getattr(found, key)) for key in vars(found) if not key.startswith("_")]
    return [member for member in own if inspect.isroutine(member)]


@pytest.mark.parametrize("package", [algorithm, hooks], ids=["algorithm", "hooks"])
def test_the_index_lists_all_that_it_imports_once(package: ModuleType) -> None:
    modules = {name for name, value in vars(package).items() if inspect.ismodule(value)}
    imported = {name for name in vars(package) if not name.startswith("_")} - modules
    assert sorted(package.__all__) == sorted(imported)


@pytest.mark.parametrize("module", [module.name for module in pkgutil.iter_modules(algorithm.__path__)])
def test_state_is_a_value(module: str) -> None:
    """Nobody changes a record that somebody else holds."""
    classes = inspect.getmembers(importlib.import_module(f"{algorithm.__name__}.{module}"), dataclasses.is_dataclass)
    assert [name for name, each in classes if not each.__dataclass_params__.frozen] == []


@EVERY
def test_what_is_public_says_what_the_signature_cannot(package: ModuleType, name: str) -> None:
    described = inspect.getdoc(getattr(package, name))
    assert described
    assert not described.startswith(f"{name}(")  # what dataclasses write by themselves
    for function in functions_of(package, name):
        assert inspect.getdoc(function), function.__qualname__


@EVERY
def test_every_argument_is_typed_and_described_or_alone(package: ModuleType, name: str) -> None:
    found = getattr(package, name)
    if dataclasses.is_dataclass(found):
        for field in dataclasses.fields(found):
            assert field.name in inspect.getdoc(found), field.name
    for function in functions_of(package, name):
        arguments = [a for a in inspect.signature(function).parameters.values() if a.name not in ("self", "cls")]
        for argument in arguments:
            assert argument.annotation is not inspect.Parameter.empty, (function.__qualname__, argument.name)
            if len(arguments) > 2:
                assert f"{argument.name}: " in inspect.getdoc(function), (function.__qualname__, argument.name)


# ---- the examples


def test_the_loop_finds_the_planted_weights() -> None:
    loop = runpy.run_path(str(ROOT / "docs" / "bilevel_loop.py"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = loop["learn_weights"]()
    torch.testing.assert_close(weights, loop["WANTED_S"], rtol=0, atol=0.03)


def test_the_loop_is_short_and_uses_the_public_alone() -> None:
    loop = runpy.run_path(str(ROOT / "docs" / "bilevel_loop.py"))
    assert len(inspect.getsource(loop["learn_weights"]).splitlines()) <= 40
    program = (ROOT / "docs" / "bilevel_loop.py").read_text("utf-8")
    used = set(re.findall(r"\balgorithm\.(\w+)", program))
    assert {"InnerParameters", "estimate_gap", "exponentiated_gradient"} <= used <= set(algorithm.__all__)


def test_the_extension_in_the_documentation_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documentation = inspect.getdoc(hooks)
    (tmp_path / "my_rules.py").write_text(
        inspect.cleandoc(documentation.split("# my_rules.py")[1].split("and in the")[0])
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    logits, weights = torch.zeros(2, dtype=torch.float64), torch.full((2,), 0.5, dtype=torch.float64)
    gap, gradient = torch.tensor([-0.01, 0.01]), torch.tensor([-0.05, 0.05])
    none = algorithm.Evidence.zeros(2)
    seen = Observation(logits, weights, gap, gradient, learning_rate=0.1, step=1, evidence=none)
    try:
        update = build_manager(["my_rules"]).hook.scalebio_update_mixture
        moved, state = update(rule="sign", observation=seen, state=None)
        assert update(rule="another", observation=seen, state=None) is None
    finally:
        sys.modules.pop("my_rules", None)
        importlib.invalidate_caches()
    torch.testing.assert_close(moved, torch.tensor([0.1, -0.1], dtype=torch.float64))
    assert state == {}
