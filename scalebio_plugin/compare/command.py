"""`scalebio compare`: from what was typed to a plan, and from its arms to a table, sentences and a picture."""

from __future__ import annotations

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
from .arms import DEFAULT, OWN, RANDOM
from .picture import draw
from .process import Ended
from .result import table
from .runs import Comparison, Plan, launch_of, written

_GOES_ON = "what is done stays, the same command goes on from there"


def compare(
    config: Path,
    *,
    folder: Path | None,
    arms: Sequence[str] | None,
    seeds: int,
    mixture: Sequence[str],
    single: bool,
    random: int,
    steps: int | None,
    launch: str | None,
    keep: bool,
    as_json: bool,
) -> int:
    """Run what is missing, print what came of it; returns the exit status.

    Args:
        folder: Of the arms; None: `<config>-compare` beside the working directory.
        seeds: How many, from the config's own on.
        mixture: A mixture.json or the folder of a run, or `name=weight` for each source, of the user's own.
        random: How many mixtures drawn at random.
    """
    read = read_config(config)
    own = weights_given(mixture)
    chosen = [*(arms or DEFAULT), *([OWN] if own else []), *(f"{RANDOM}{k}" for k in range(1, random + 1))]
    first = whole_number(read, "seed", 0)
    plan = Plan(
        config=read,
        folder=folder or Path(f"{config.stem}-compare"),
        arms=list(dict.fromkeys(chosen)),
        seeds=range(first, first + seeds),
        launch=launch_of(launch),
        own=own,
        steps=steps,
        single=single,
        keep=keep,
    )
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
        weights = {name: float(weight) for name, _, weight in pairs if name or _refuse(given)}
    except ValueError:
        _refuse(given)
        raise
    repeated = sorted(name for name, count in Counter(name for name, _, _ in pairs).items() if count > 1)
    if repeated:
        raise ValueError(
            f"--mixture: gives {', '.join(repeated)} more than once, got {' '.join(given)}; give each once"
        )
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights.values()):
        raise ValueError(f"--mixture: must give finite weights of at least 0, got {' '.join(given)}; correct them")
    return weights


def _refuse(given: Sequence[str]) -> bool:
    raise ValueError(
        f"--mixture: must be a mixture.json, the folder of a run, or name=weight for each source, got {' '.join(given)}"
    ) from None
