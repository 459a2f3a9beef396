"""The import arrows: who may import what, read from the source, and what an import really loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "scalebio_plugin"
MODULES = sorted(path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("*.py"))
HOST = {"accelerate", "axolotl", "datasets", "deepspeed", "peft", "transformers", "trl"}
# Who stands on whom: a folder imports from those of earlier floors, and within itself; also for types alone.
FLOORS = (
    {"algorithm", "config", "report"},
    {"hooks", "engines"},
    {"estimate"},
    {"data"},
    {"training"},
    {"quickstart", "compare", "edit"},
    {"plugin", "cli", "commands", "boot", "errors", "__init__"},
)
MAY_IMPORT_THE_HOST = {
    *("plugin", "estimate/model", "estimate/checked", "data/validation", "compare/judge"),
    *(f"data/{name}" for name in ("applied", "carried", "entries", "leaks", "loading", "merging")),
    *(f"data/{name}" for name in ("small_sets", "sources", "splits", "table", "tags", "validation_data")),
    *(
        f"training/{name}"
        for name in (
            "callbacks",
            "connect",
            "dashboards",
            "early",
            "prepare_model",
            "provenance",
            "random_state",
            "resumable",
            "same_run",
            "trainer",
        )
    ),
}
HEAVY = HOST | {"torch", "numpy", "pandas", "matplotlib", "pydantic", "yaml"}


@dataclass(frozen=True)
class Import:
    """`name` is the top package, or the module of this one with a leading dot; `lazy`: inside a function."""

    name: str
    lazy: bool
    types_only: bool


def imports_of(module: str) -> list[Import]:
    return list(_imports(ast.parse((PACKAGE / f"{module}.py").read_text("utf-8")), module, False, False))


def _imports(node: ast.AST, module: str, lazy: bool, types_only: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name.split(".")[0], lazy, types_only)
        elif isinstance(child, ast.ImportFrom):
            if child.level == 0:
                yield Import((child.module or "").split(".")[0], lazy, types_only)
            else:
                base = module.split("/")[: -child.level]
                parts = [*base, *(child.module or "").split(".")] if child.module else base
                targets = ["/".join(parts)] if child.module else ["/".join([*base, a.name]) for a in child.names]
                yield from (Import(f".{target}", lazy, types_only) for target in targets)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for part in child.body:
                yield from _imports(ast.Module([part], []), module, lazy, True)
            for part in child.orelse:
                yield from _imports(ast.Module([part], []), module, lazy, types_only)
        else:
            inside = lazy or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from _imports(child, module, inside, types_only)


def outside(module: str, *, types: bool = False, lazy: bool = True) -> set[str]:
    """Packages other than this one and the standard library."""
    return {
        found.name
        for found in imports_of(module)
        if not found.name.startswith(".")
        and found.name not in sys.stdlib_module_names
        and (types or not found.types_only)
        and (lazy or not found.lazy)
    }


def inside(module: str) -> set[str]:
    """Modules of this package."""
    return {found.name[1:] for found in imports_of(module) if found.name.startswith(".")}


def of(folder: str) -> list[str]:
    return [module for module in MODULES if module.startswith(f"{folder}/")]


# ---- the arrows


def floor_of(module: str) -> int:
    return next(number for number, folders in enumerate(FLOORS) if module.split("/")[0] in folders)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_from_its_own_folder_and_the_floors_below(module):
    imported = {"__init__" if name == "__version__" else name for name in inside(module)}
    others = {name for name in imported if name.split("/")[0] != module.split("/")[0]}
    assert all(floor_of(name) < floor_of(module) or floor_of(module) == len(FLOORS) - 1 for name in others)


@pytest.mark.parametrize("module", of("algorithm"))
def test_the_algorithm_imports_torch_alone(module):
    assert outside(module, types=True) <= {"torch"}


@pytest.mark.parametrize("module", of("config"))
def test_the_config_imports_pydantic_alone(module):
    assert outside(module, types=True) <= {"pydantic"}


@pytest.mark.parametrize("module", of("hooks"))
def test_the_hooks_import_pluggy_and_torch(module):
    assert outside(module, types=True) <= {"pluggy", "torch"}
    assert module in {"hooks/defaults", "hooks/manager"} or outside(module) <= {"pluggy"}


@pytest.mark.parametrize("module", [*of("report"), *of("edit"), "cli", "commands"])
def test_what_makes_reports_imports_no_torch_and_no_host(module):
    assert not outside(module) & ({"torch"} | HOST)


@pytest.mark.parametrize("module", [module for module in MODULES if module not in MAY_IMPORT_THE_HOST])
def test_the_host_is_imported_in_few_files_only(module):
    """The quickstart makes a model with the host's library, when it is asked to."""
    assert not outside(module, lazy=module not in {"quickstart/planted"}) & HOST


def test_the_boot_module_imports_the_standard_library_alone():
    assert outside("boot", types=True) == set()
    assert outside("__init__") == set()
    assert not any(not found.lazy and not found.types_only for found in imports_of("__init__"))


@pytest.mark.parametrize("module", MODULES)
def test_the_package_imports_itself_relatively(module):
    assert "scalebio_plugin" not in outside(module, types=True)


@pytest.mark.parametrize("module", ["training/mixture_run", "training/layer_sampling"])
def test_the_run_is_tested_without_the_host(module):
    assert outside(module, types=True) <= {"torch", "pluggy"}


def test_no_module_imports_in_a_circle():
    """Imports for types alone and inside functions are arrows, too."""
    graph = {module: inside(module) for module in MODULES}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path, module])
        if module in graph and module not in done:
            for target in graph[module]:
                visit(target, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


# ---- what is loaded


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("scalebio_plugin", set()),
        ("scalebio_plugin.config.block", {"pydantic"}),
        ("scalebio_plugin.config.raw", {"pydantic"}),
        ("scalebio_plugin.hooks.spec", set()),
        # torch imports numpy where it is installed
        ("scalebio_plugin.algorithm.bilevel, scalebio_plugin.algorithm.inner", {"torch", "numpy"}),
        ("scalebio_plugin.training.mixture_run", {"torch", "numpy", "pydantic"}),
        ("scalebio_plugin.report.folder, scalebio_plugin.report.summary", {"numpy", "pydantic"}),
        ("scalebio_plugin.report, scalebio_plugin.errors", set()),
        ("scalebio_plugin.cli", set()),
    ],
)
def test_an_import_loads_no_more_than_it_needs(module, allowed):
    program = f"import sys, {module}\nprint(*sorted(set(sys.modules) & {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= allowed
