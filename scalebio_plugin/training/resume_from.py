"""From which checkpoint a run goes on: the one that was asked for, or the newest that is whole."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from .checkpoint import FOLDER, is_unchecked
from .manifest import NAME, faults_of


def problem_of(checkpoint: str) -> str | None:
    """What keeps a run from going on from there, in words that follow its name; None if nothing does.

    A checkpoint of a run without the plugin has no such problem, and one of an earlier version is not known to.
    """
    if not os.path.isdir(checkpoint):
        return "does not exist"
    if os.path.exists(os.path.join(checkpoint, NAME)):
        faults = faults_of(checkpoint)
        more = [f"and {len(faults) - 5} more"] if len(faults) > 5 else []
        return f"is damaged ({'; '.join(faults[:5] + more)})" if faults else None
    if is_unchecked(checkpoint):
        return None
    if _is_ours(checkpoint) or not os.path.exists(os.path.join(checkpoint, "trainer_state.json")):
        return f"was not written to its end (it has no {NAME}: the run was killed while it wrote it)"
    return None


def _is_ours(checkpoint: str) -> bool:
    """Whether a run that learned began it, as which files of ours, or none of any kind, tell."""
    ours = os.path.exists(os.path.join(checkpoint, FOLDER)) or any(Path(checkpoint).glob("scalebio_*"))
    return ours or not os.listdir(checkpoint)


def refuse_problem(checkpoint: str) -> None:
    """For one that was asked for by name.

    Raises:
        ValueError: It has a problem.
    """
    problem = problem_of(checkpoint)
    if problem is not None:
        raise ValueError(
            f"scalebio: {checkpoint} {problem}; resume from another checkpoint, or with auto_resume_from_checkpoints "
            "in place of resume_from_checkpoint, which takes the newest whole one"
        )


def newest_whole(output_dir: str) -> tuple[str | None, dict[str, str]]:
    """The newest checkpoint without a problem, and the problem of each newer one.

    None where there is none yet: those that there are were never written to their end.

    Raises:
        ValueError: There are damaged ones, and none is whole.
    """
    passed_over: dict[str, str] = {}
    for checkpoint in _newest_first(output_dir):
        problem = problem_of(checkpoint)
        if problem is None:
            return checkpoint, passed_over
        passed_over[checkpoint] = problem
    if any(problem.startswith("is damaged (") for problem in passed_over.values()):
        raise ValueError(
            "scalebio: there are checkpoints, but none is whole:\n  "
            + "\n  ".join(f"{checkpoint} {problem}" for checkpoint, problem in passed_over.items())
            + "\nBring the files back; or, to start anew and lose what was learned, move the checkpoints away or set "
            "another output_dir"
        )
    return None, passed_over


def is_newest(checkpoint: str, output_dir: str) -> bool:
    """Whether it is the one that the host takes by itself."""
    return any(os.path.abspath(newest) == os.path.abspath(checkpoint) for newest in _newest_first(output_dir)[:1])


def out_of_the_way(passed_over: Iterable[str]) -> Iterator[str]:
    """Once a newer one is whole, what a resume passed over would take a place of `save_total_limit`.

    What was never whole goes, what is damaged gets a name that the host does not count; each in a sentence for the log.
    """
    for checkpoint in passed_over:
        problem = problem_of(checkpoint) if os.path.isdir(checkpoint) else None
        if problem is None:  # written anew meanwhile
            continue
        if os.path.exists(os.path.join(checkpoint, NAME)):
            folder, name = os.path.split(checkpoint)
            aside = os.path.join(folder, f"damaged-{name}")
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(checkpoint, aside)
            yield f"{checkpoint} {problem}: it is {aside} now"
        elif _is_ours(checkpoint):
            shutil.rmtree(checkpoint)
            yield f"{checkpoint} {problem}: it is deleted"


def _newest_first(output_dir: str) -> list[str]:
    found = (str(path) for path in Path(output_dir).glob("checkpoint-*"))
    return sorted((path for path in found if re.search(r"checkpoint-\d+$", path)), key=_step_of, reverse=True)


def _step_of(checkpoint: str) -> int:
    return int(checkpoint.rsplit("-", 1)[1])
