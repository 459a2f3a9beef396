"""What each subcommand does: from its arguments to what is printed, and the exit status."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__
from .report.words import printable_lines

if TYPE_CHECKING:
    from .report.side_by_side import Learned


def quickstart(arguments: argparse.Namespace) -> int:
    from .quickstart.command import run

    return run(arguments.dir, steps=arguments.steps)


def estimate(arguments: argparse.Namespace) -> int:
    from .config.names import listed
    from .config.refusals import problems_of
    from .errors import problems_in
    from .estimate.estimator import estimate as estimate_of
    from .estimate.lines import facts_of, fits, lines_of

    try:
        found = estimate_of(arguments.config, arguments.gpus, arguments.model_config)
        facts = facts_of(found, arguments.gpu_memory)
    except (FileNotFoundError, ValueError) as error:
        if not arguments.json:
            raise
        print(json.dumps({"config": str(arguments.config), "refused": list(problems_in(error))}, indent=2))
        return 2
    # The block as a run's validation has it.
    cfg, block = found.setting.cfg, found.setting.block.model_dump(exclude_defaults=True)
    on, refused = bool(listed(cfg)), problems_of({**cfg, "scalebio": block} if cfg.get("scalebio") else cfg)
    if arguments.json:
        known = {"config": str(arguments.config), "scalebio_listed": on, "refused": refused}
        print(json.dumps(known | facts, indent=2))
    else:
        off = (
            f"scalebio is off: plugins: in {arguments.config} does not list it, so its run is the column `ordinary`; "
            "`this run` is what it takes once you add `plugins: [scalebio]`\n"
        )
        say([*([] if on else [off]), *lines_of(found, arguments.gpu_memory)])
        for problem in refused:
            print(printable_lines(f"scalebio: the run would be refused: {problem}"), file=sys.stderr)
    return 2 if refused else 0 if fits(found, arguments.gpu_memory) else 1


def check(arguments: argparse.Namespace) -> int:
    from .errors import problems_in
    from .estimate.checked import checked
    from .estimate.given import read_config

    config = read_config(arguments.config)
    found = checked(config)
    refused = [] if found.refusal is None else list(problems_in(found.refusal))
    if arguments.json:
        print(json.dumps({"config": str(arguments.config), "refused": refused, "ignored": found.ignored}, indent=2))
    else:
        say([*refused, *found.ignored] or [f"{arguments.config}: nothing is wrong with it"])
    return 2 if refused else 1 if found.ignored else 0


def compare(arguments: argparse.Namespace) -> int:
    from .compare.command import compare as compare_arms
    from .compare.command import plan_of

    return compare_arms(plan_of(arguments), as_json=arguments.json)


def show(arguments: argparse.Namespace) -> int:
    from .report.mixture_file import tables_of
    from .report.side_by_side import weights_beside

    runs = runs_of(arguments.path, with_history=False)
    if arguments.json:
        print(json.dumps({"runs": [shown(run) for run in runs]}, indent=2))
    elif len(runs) > 1:
        print(weights_beside(runs))
    else:
        print("\n\n".join(tables_of(runs[0].document)))
    return 0


def runs_of(paths: Sequence[Path], *, with_history: bool) -> list[Learned]:
    from .config.names import numbered
    from .report.mixture_file import mixture_at
    from .report.side_by_side import learned_at

    labels = numbered([str(path) for path in paths])
    return [
        learned_at(mixture_at(path), label, with_history=with_history)
        for path, label in zip(paths, labels, strict=True)
    ]


def shown(run: Learned) -> dict[str, Any]:
    document = run.document
    facts = {key: document.get(key) for key in ("config", "verdict", "steps", "weights", "goals")}
    return {"run": run.label, **facts, "sources": {name: asdict(of) for name, of in run.summaries.items()}}


def report(arguments: argparse.Namespace) -> int:
    from .report.mixture_file import mixture_at
    from .report.page import draw_again
    from .report.side_by_side import write_side_by_side

    if len(arguments.path) == 1:
        if arguments.output is not None:
            raise ValueError("--output: the page of a single run is written beside its mixture.json; leave it out")
        print(draw_again(mixture_at(arguments.path[0])))
    else:
        page = arguments.output or Path("side-by-side.html")
        refuse_no_folder(page)
        write_side_by_side(page, runs_of(arguments.path, with_history=True))
        print(page)
    return 0


def report_bug(arguments: argparse.Namespace) -> int:
    from .report.bug import bug_report

    config, log = arguments.config, arguments.log
    if config is not None:
        from .estimate.given import read_config

        config = read_config(config)
    if log is not None and not log.is_file():
        raise FileNotFoundError(f"no file {log}; give what a run printed")
    print(bug_report(__version__, config, log))
    print("scalebio: read it before you paste it; names of models and datasets are in it", file=sys.stderr)
    return 0


def init(arguments: argparse.Namespace) -> int:
    from .edit.begin import begun
    from .edit.text import difference, read_text, write_text
    from .estimate.given import read_config

    path, target = arguments.config, arguments.output or arguments.config
    config, text = read_config(path), read_text(path)
    if arguments.output is not None:
        refuse_existing(target)
        refuse_no_folder(target)
    asked = {"validation": arguments.validation, "kind": arguments.type, "split_by": arguments.split_by}
    new = begun(text, config, **asked)
    say(difference(text, new, str(path)))
    if not arguments.dry_run:
        write_text(target, new)
        say(["", f"written to {target}; what is still wrong with it: scalebio check {target}"])
    return 0


def apply(arguments: argparse.Namespace) -> int:
    from .edit.apply import applied, as_weights, explained, refuse_unfit
    from .edit.text import read_text, write_text
    from .estimate.given import read_config
    from .report.mixture_file import mixture_at, read_mixture

    path, mixture = arguments.config, mixture_at(arguments.mixture)
    target = arguments.output or path.with_name(f"{path.stem}.apply.yml")
    config, document = read_config(path), read_mixture(mixture)
    refuse_unfit(config, document, str(mixture))
    refuse_existing(target)
    refuse_no_folder(target)
    text = read_text(path)
    new = as_weights(text, config, document) if arguments.as_weights else applied(text, config, str(mixture))
    meaning = [*explained(document, config.get("scalebio") or {})]
    write_text(target, new)
    say([*meaning, "", f"written to {target}; the run: axolotl train {target}"])
    return 0


def say(lines: Iterable[str]) -> None:
    """Print what may hold names from elsewhere."""
    print(printable_lines("\n".join(lines)))


def refuse_existing(path: Path) -> None:
    if path.exists():
        raise FileExistsError(f"--output: {path} is there already; name another file, or remove it")


def refuse_no_folder(path: Path) -> None:
    if not path.parent.is_dir():
        raise FileNotFoundError(f"--output: there is no folder {path.parent}; make it, or name a file in another")
