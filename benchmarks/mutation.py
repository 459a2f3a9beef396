"""Small faults put into the code one at a time, and whether the tests notice.

    python -m benchmarks.mutation [file ...] [--sample 60] [--seed 0] [--only WORDS] [--out mutation.jsonl]

A mutant is one change of one place: a comparison, an operator, a constant, `and` for `or`, a condition turned round, a
statement left out. Each is tried by the tests of its file alone (OF), in a fork of a process that has imported the host
and nothing of what is changed; the first test that fails has noticed it, and so has a run of TIMES the time that the
tests take of the code as it is. A line a try goes to --out; what was noticed there is not tried again, so that a second
call shows what tests written since then notice, or those that the first one left out (--only, pytest's -k). What was
not noticed, and why: benchmarks/mutation.md.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import importlib.abc
import importlib.util
import json
import math
import os
import random
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ALGORITHM, TRAINING = "scalebio_plugin/algorithm", "scalebio_plugin/training"
TESTS_OF = "tests/algorithm/test_{}.py".format
FROZEN = f"{TESTS_OF('public')}::test_state_is_a_value"
TWIN = f"{TESTS_OF('evidence')}::test_the_rule_is_what_the_slow_twin_does"
RESUME = "tests/training/test_resume.py"
OF = {  # file -> tests, the quick ones first
    f"{TRAINING}/checkpoint.py": ("tests/training/test_checkpoint.py", "tests/training/test_manifest.py"),
    f"{TRAINING}/resume_from.py": ("tests/training/test_resume_from.py", "tests/training/test_manifest.py"),
    f"{TRAINING}/manifest.py": ("tests/training/test_manifest.py", "tests/training/test_checkpoint.py"),
    f"{TRAINING}/state_file.py": ("tests/training/test_state_file.py",),
    f"{ALGORITHM}/bilevel.py": (FROZEN, TESTS_OF("bilevel"), TESTS_OF("closed_form")),
    f"{ALGORITHM}/lisa.py": (FROZEN, TESTS_OF("lisa")),
    f"{ALGORITHM}/mixture.py": (FROZEN, TWIN, TESTS_OF("mixture"), TESTS_OF("evidence")),
    f"{ALGORITHM}/bounds.py": (TESTS_OF("mixture"), TESTS_OF("evidence")),
    f"{ALGORITHM}/prior.py": (FROZEN, TESTS_OF("prior"), TESTS_OF("mixture")),
    f"{ALGORITHM}/evidence.py": (FROZEN, TWIN, TESTS_OF("evidence"), TESTS_OF("certainty")),
    f"{ALGORITHM}/moments.py": (FROZEN, TWIN, TESTS_OF("evidence"), TESTS_OF("certainty")),
    f"{ALGORITHM}/certainty.py": (TESTS_OF("certainty"),),
    f"{ALGORITHM}/inner.py": (TESTS_OF("inner"), TESTS_OF("unscale"), "tests/engines/test_transfer.py"),
    f"{ALGORITHM}/arrivals.py": (TESTS_OF("inner"), "tests/engines/test_transfer.py"),
    f"{ALGORITHM}/pieces.py": (FROZEN, TESTS_OF("pieces")),
    f"{TRAINING}/resumable.py": (f"{RESUME}::test_resume_from_an_older_checkpoint_forgets_what_came_later", RESUME),
}
IMPORTED = (
    "pytest",
    "scipy.optimize",
    "torch._dynamo",
    "tests.conftest",
    "axolotl.train",
    "axolotl.common.datasets",
    "axolotl.core.builders",
)
TIMES = 10  # a mutant that takes so much longer hangs, which is noticed
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


def mutants_of(source: str) -> list[tuple[str, str, str]]:
    """Line and column, what stands there, and the whole source with the change."""
    tree, found = ast.parse(source), []
    for index, node in enumerate(ast.walk(tree)):
        for change in changes(node):
            other = copy.deepcopy(tree)
            target = next(each for number, each in enumerate(ast.walk(other)) if number == index)
            mutated = ast.fix_missing_locations(_Replace(target, ast.copy_location(change, node)).visit(other))
            said = f"{ast.unparse(node).splitlines()[0]} -> {ast.unparse(change).splitlines()[0]}"
            at = f"{node.lineno}:{node.col_offset}"  # type: ignore[attr-defined]
            found.append((at, said, ast.unparse(mutated)))
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


def is_noticed(file: str, source: str, only: str, seconds: float) -> bool:
    """Whether a test of the file fails, or all of them do not end in that time, with this source."""
    child = os.fork()
    if child == 0:
        status = 2
        try:
            import pytest

            signal.alarm(math.ceil(seconds))
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 1)
            os.dup2(silent, 2)
            sys.meta_path.insert(0, _Mutated(file.removesuffix(".py").replace("/", "."), source, ROOT / file))
            status = pytest.main(["-x", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "-k", only, *OF[file]])
        finally:
            os._exit(int(status))
    _, ended = os.waitpid(child, 0)
    return ended != 0


def seconds_of(file: str, only: str) -> float:
    """What the tests of a file take of it as it is."""
    begun = time.monotonic()
    source = (ROOT / file).read_text("utf-8")
    assert not is_noticed(file, source, only, 3600), f"the tests of {file} fail without a mutant"
    return time.monotonic() - begun


def tried(sample: list[tuple[str, str, str, str]], only: str, out: Path) -> dict[tuple[str, ...], list[bool]]:
    """Of each mutant, whether it was noticed, each time that it was tried."""
    found: dict[tuple[str, ...], list[bool]] = defaultdict(list)
    for line in out.open() if out.exists() else ():
        *mutant, noticed = json.loads(line)
        found[tuple(mutant)].append(noticed)
    seconds: dict[str, float] = {}
    for *mutant, source in sample:
        tries, file = found[tuple(mutant)], mutant[0]
        if not any(tries):
            if file not in seconds:
                seconds[file] = seconds_of(file, only)
            tries.append(is_noticed(file, source, only, TIMES * seconds[file]))
            with out.open("a") as lines:
                lines.write(json.dumps([*mutant, tries[-1]]) + "\n")
    return {tuple(mutant): found[tuple(mutant)] for *mutant, _ in sample}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", default=list(OF), metavar="file")
    parser.add_argument("--sample", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", metavar="WORDS")
    parser.add_argument("--out", type=Path, default=Path("mutation.jsonl"))
    arguments = parser.parse_args()
    for name in IMPORTED:
        importlib.import_module(name)
    changed = [file.removesuffix(".py").replace("/", ".") for file in OF]
    assert not sys.modules.keys() & set(changed), "a mutant would not be imported"
    every = [(file, *mutant) for file in arguments.files for mutant in mutants_of((ROOT / file).read_text("utf-8"))]
    sample = random.Random(arguments.seed).sample(every, min(arguments.sample, len(every)))
    found, of = tried(sample, arguments.only, arguments.out), Counter(file for file, *_ in every)
    print("| file | mutants | tried | noticed at first | noticed now |\n|---|---|---|---|---|")
    for file in arguments.files:
        tries = [each for mutant, each in found.items() if mutant[0] == file]
        print(f"| {file} | {of[file]} | {len(tries)} | {sum(t[0] for t in tries)} | {sum(t[-1] for t in tries)} |")
    for (file, at, said), tries in found.items():
        if not tries[0]:
            print(f"- {file}:{at}: `{said}`{' is noticed now' * tries[-1]}")


if __name__ == "__main__":
    main()
