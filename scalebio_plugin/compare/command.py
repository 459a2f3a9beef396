"""`scalebio compare`: from what was typed to a plan, and from its arms to a table, sentences and a picture."""

from __future__ import annotations

import argparse
import math
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..config.raw import whole_number
from ..estimate.given import read_config
from ..report.comparison import sentences
from ..report.mixture_file import mixture_at, read_mixture
from ..report.page import draw_again
from ..report.words import printable_lines
from .arms import DEFAULT, OWN, RANDOM, refuse_unknown
from .picture import draw
from .process import Ended
from .result import table
from .runs import Comparison, Plan, launch_of, written

_GOES_ON = "what is done stays, the same command goes on from there"


def plan_of(arguments: argparse.Namespace) -> Plan:
    """What was asked for.

    Raises:
        FileNotFoundError, ValueError: There is no such arm, mixture or config.
    """
    refuse_unknown(arguments.arms or [])
    config, own = read_config(arguments.config), weights_given(arguments.mixture)
    random = [f"{RANDOM}{number}" for number in range(1, arguments.random + 1)]
    first = whole_number(config, "seed", 0)
    return Plan(
        config=config,
        folder=arguments.dir or Path(f"{arguments.config.stem}-compare"),
        arms=list(dict.fromkeys([*(arguments.arms or DEFAULT), *([OWN] if own else []), *random])),
        seeds=range(first, first + arguments.seeds),
        launch=launch_of(arguments.launch),
        own=own,
        steps=arguments.steps,
        single=arguments.single,
        keep=arguments.keep,
    )


def compare(plan: Plan, *, as_json: bool) -> int:
    """Run what is missing, print what came of it; returns the exit status."""
    try:
        document = Comparison(plan).run()
    except RuntimeError as error:
        print(printable_lines(f"scalebio: {error}; {_GOES_ON}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt as stopped:
        print(f"\nscalebio: stopped; {_GOES_ON}", file=sys.stderr)
        return 128 + (stopped.number if isinstance(stopped, Ended) else signal.SIGINT)  # as a shell has it
    if as_json:
        print(written(document))
    else:
        print("\n".join([table(document), "", *sentences(document), "", f"{plan.folder}/compare.json, compare.png"]))
    draw(document, plan.folder / "compare.png")
    for history in plan.folder.glob("run-*/scalebio/history.jsonl"):
        draw_again(history.with_name("mixture.json"))  # with the comparison that its run could not know
    return 0


def weights_given(given: Sequence[str]) -> dict[str, float] | None:
    """From a file or a run's folder, or from `name=weight` each; None where nothing was given.

    Raises:
        ValueError: Neither.
    """
    if not given:
        return None
    if len(given) == 1 and ("=" not in given[0] or Path(given[0]).exists()):
        read: dict[str, float] = read_mixture(mixture_at(given[0]))["weights"]
        return read
    pairs = [text.rpartition("=") for text in given]
    try:
        weights = {name: float(weight) for name, _, weight in pairs}
    except ValueError:
        weights = {}
    if not weights or "" in weights:
        raise ValueError(
            "--mixture: must be a mixture.json, the folder of a run, or name=weight for each source, got "
            f"{' '.join(given)}"
        )
    repeated = sorted(name for name, count in Counter(name for name, _, _ in pairs).items() if count > 1)
    if repeated:
        raise ValueError(
            f"--mixture: gives {', '.join(repeated)} more than once, got {' '.join(given)}; give each once"
        )
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights.values()):
        raise ValueError(f"--mixture: must give finite weights of at least 0, got {' '.join(given)}; correct them")
    return weights
