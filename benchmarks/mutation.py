"""Small faults put into the code one at a time, and whether the tests notice.

    python -m benchmarks.mutation [--sample 60] [--seed 0] [--out mutation.jsonl]

A mutant is one change of one place: a comparison, an operator, a constant, `and` for `or`, a condition turned round, a
statement left out. Each is tried by the tests of its file alone (OF), in a fork of a process that has imported the host
and nothing of what is changed; the first test that fails has noticed it. A line a mutant goes to --out; those there are
not tried again. What was not noticed, and why: benchmarks/mutation.md.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import importlib.abc
import importlib.util
import json
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
OF = {  # file -> tests, the quick ones first
    "scalebio_plugin/training/checkpoint.py": ("tests/training/test_checkpoint.py", "tests/training/test_manifest.py"),
    "scalebio_plugin/training/manifest.py": ("tests/training/test_manifest.py", "tests/training/test_checkpoint.py"),
    "scalebio_plugin/training/state_file.py": ("tests/training/test_state_file.py",),
    "scalebio_plugin/algorithm/bilevel.py": ("tests/algorithm/test_bilevel.py", "tests/algorithm/test_closed_form.py"),
    "scalebio_plugin/algorithm/lisa.py": ("tests/algorithm/test_lisa.py",),
}
IMPORTED = ("pytest", "tests.conftest", "axolotl.train", "axolotl.common.datasets", "axolotl.core.builders")
SECONDS = 300  # a mutant that hangs is noticed
COMPARED = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In},
}
COMPUTED = {
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult},
    **{ast.Mod: ast.Mult, ast.Pow: ast.Mult},
}


def changes(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in the place of this node."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARED:
        yield ast.Compare(node.left, [COMPARED[type(node.ops[0])](), *node.ops[1:]], node.comparators)
    elif isinstance(node, ast.BinOp) and type(node.op) in COMPUTED:
        yield ast.BinOp(node.left, COMPUTED[type(node.op)](), node.right)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(ast.And() if isinstance(node.op, ast.Or) else ast.Or(), node.values)
    elif isinstance(node, ast.If):
        yield ast.If(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)
    elif isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
        yield ast.Constant(not node.value if isinstance(node.value, bool) else node.value + 1)
    elif isinstance(node, ast.AugAssign) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        yield ast.Pass()


def mutants_of(source: str) -> list[tuple[int, str, str]]:
    """Line, what stands there, and the whole source with the change."""
    tree, found = ast.parse(source), []
    for index, node in enumerate(ast.walk(tree)):
        for change in changes(node):
            other = copy.deepcopy(tree)
            target = next(each for number, each in enumerate(ast.walk(other)) if number == index)
            mutated = ast.fix_missing_locations(_Replace(target, ast.copy_location(change, node)).visit(other))
            said = f"{ast.unparse(node).splitlines()[0]} -> {ast.unparse(change).splitlines()[0]}"
            found.append((node.lineno, said, ast.unparse(mutated)))  # type: ignore[attr-defined]
    return found


class _Replace(ast.NodeTransformer):
    def __init__(self, target: ast.AST, change: ast.AST):
        self.target, self.change = target, change

    def visit(self, node: ast.AST) -> Any:
        return self.change if node is self.target else super().generic_visit(node)


class _Mutated(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives this module another source."""

    def __init__(self, name: str, source: str, path: Path):
        self.name, self.source, self.path = name, source, path

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        return importlib.util.spec_from_file_location(name, self.path, loader=self) if name == self.name else None

    def exec_module(self, module: Any) -> None:
        exec(compile(self.source, str(self.path), "exec"), module.__dict__)


def is_noticed(file: str, source: str, tests: tuple[str, ...]) -> bool:
    child = os.fork()
    if child == 0:
        status = 2
        try:
            import pytest

            signal.alarm(SECONDS)
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 1)
            os.dup2(silent, 2)
            sys.meta_path.insert(0, _Mutated(file.removesuffix(".py").replace("/", "."), source, ROOT / file))
            status = pytest.main(["-x", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", *tests])
        finally:
            os._exit(int(status))
    _, ended = os.waitpid(child, 0)
    return ended != 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("mutation.jsonl"))
    arguments = parser.parse_args()
    for name in IMPORTED:
        importlib.import_module(name)
    changed = [file.removesuffix(".py").replace("/", ".") for file in OF]
    assert not sys.modules.keys() & set(changed), "a mutant would not be imported"
    every = [(file, *mutant) for file in OF for mutant in mutants_of((ROOT / file).read_text("utf-8"))]
    sample = random.Random(arguments.seed).sample(every, min(arguments.sample, len(every)))
    found = [json.loads(line) for line in arguments.out.open()] if arguments.out.exists() else []
    for file, line, said, source in sample[len(found) :]:
        found.append({"file": file, "line": line, "change": said, "noticed": is_noticed(file, source, OF[file])})
        with arguments.out.open("a") as out:
            out.write(json.dumps(found[-1]) + "\n")
    counts, of = Counter(each["file"] for each in found), Counter(file for file, *_ in every)
    noticed = Counter(each["file"] for each in found if each["noticed"])
    print("| file | mutants | tried | noticed |\n|---|---|---|---|")
    for file in OF:
        print(f"| {file} | {of[file]} | {counts[file]} | {noticed[file]} |")
    for each in found:
        if not each["noticed"]:
            print(f"- {each['file']}:{each['line']}: `{each['change']}`")


if __name__ == "__main__":
    main()
