"""The `scalebio` command. Starts at once: what a subcommand needs is imported when it runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status. A wrong use of it is a line on stderr and status 2, not a traceback."""
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
        return status
    except (OSError, ValueError) as error:
        from .report.words import printable_lines

        print(f"scalebio: {printable_lines(str(error))}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scalebio", description="Learned data mixtures for Axolotl.")
    parser.add_argument("--version", action="version", version=f"scalebio {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    for add in (_add_quickstart, _add_show_and_report, _add_check, _add_compare, _add_bug, _add_estimate):
        add(commands)
    return parser


def _add_quickstart(commands: Any) -> None:
    quickstart = commands.add_parser(
        "quickstart",
        help="learn a planted mixture on this machine's CPU, in minutes",
        description="Makes a tiny model and three tiny datasets, trains with Axolotl, and prints the learned weights "
        "beside the true ones.",
    )
    quickstart.add_argument(
        "--dir", type=Path, default=Path("scalebio-quickstart"), help="where everything is put (default: %(default)s)"
    )
    quickstart.add_argument("--steps", type=_positive, help="optimiser steps (default: those of quickstart.yml)")
    quickstart.set_defaults(run=_quickstart)


def _add_show_and_report(commands: Any) -> None:
    show = commands.add_parser("show", help="print the mixture that a run learned")
    report = commands.add_parser(
        "report",
        help="draw the picture and the page of a run again",
        description="Writes mixture.png and report.html beside the mixture.json of a run, also of one that goes on or "
        "was stopped, as far as its last checkpoint.",
    )
    for of_a_run, run in ((show, _show), (report, _report)):
        of_a_run.add_argument("path", type=Path, metavar="PATH", help="a mixture.json, or the output_dir of a run")
        of_a_run.set_defaults(run=run)


def _add_check(commands: Any) -> None:
    check = commands.add_parser(
        "check",
        help="all that is wrong with a config, without a run",
        description="Says what the plugin and the host refuse in a config, and which keys the host would ignore. Exit "
        "status: 0 nothing is wrong, 1 keys are ignored, 2 the run would be refused.",
    )
    check.add_argument("config", type=Path, metavar="CONFIG", help="an Axolotl config")
    check.set_defaults(run=_check)


def _add_bug(commands: Any) -> None:
    bug = commands.add_parser(
        "report-bug",
        help="print what a bug report needs",
        description="Prints versions, the config and the end of a log as Markdown, without secrets, names of accounts "
        "and local paths.",
    )
    bug.add_argument("config", type=Path, metavar="CONFIG", nargs="?", help="the Axolotl config of the run")
    bug.add_argument("--log", type=Path, metavar="FILE", help="what the run printed")
    bug.set_defaults(run=_report_bug)


def _add_estimate(commands: Any) -> None:
    estimate = commands.add_parser(
        "estimate",
        help="memory and compute of a config, before anything is downloaded",
        description="Counts, from the model's config alone, what a run takes on each GPU and in CPU memory, beside the "
        "same run without scalebio. Exit status: 0 it fits, 1 it does not, 2 the config is wrong.",
    )
    estimate.add_argument("config", type=Path, metavar="CONFIG", help="an Axolotl config")
    estimate.add_argument("--gpus", type=_positive, default=1, metavar="N", help="GPUs (default: %(default)s)")
    estimate.add_argument(
        "--gpu-memory", type=_gibibytes, default=48.0, metavar="GIB", help="of each, in GiB (default: %(default)g)"
    )
    estimate.add_argument(
        "--model-config", type=Path, metavar="FILE", help="a config.json, if base_model's is not found"
    )
    estimate.set_defaults(run=_estimate)


def _add_compare(commands: Any) -> None:
    compare = commands.add_parser(
        "compare",
        help="the learned mixture beside uniform, proportional and other ones, on rows that none was tuned for",
        description="Trains the arms of a comparison one after the other, each for the steps of the config, and "
        "judges them on test_datasets. It can be stopped: the same command goes on with the arm that was running.",
        epilog="Arms: run (the config as it stands), learned (an ordinary run on what it learned), uniform, "
        "proportional (the run without scalebio), validation (the same, the validation rows added), "
        "validation-drawn (as often as the pull of run sees them). Example: scalebio compare config.yml --seeds 5 "
        "--mixture math=0.7 general=0.3 --launch 'accelerate launch --num_processes 4 -m axolotl.cli.train'",
    )
    compare.add_argument("config", type=Path, metavar="CONFIG", help="an Axolotl config that learns a mixture")
    compare.add_argument("--dir", type=Path, help="where the arms are put (default: CONFIG's name with -compare)")
    compare.add_argument(
        "--arms", nargs="+", metavar="ARM", help="of those below; run, which learns, is always there (default: all)"
    )
    compare.add_argument("--seeds", type=_positive, default=3, metavar="N", help="default: %(default)s")
    compare.add_argument(
        "--mixture", nargs="+", default=[], metavar="FILE|NAME=WEIGHT", help="your own, as a further arm"
    )
    compare.add_argument("--single", action="store_true", help="each source alone, too")
    compare.add_argument("--random", type=_positive, default=0, metavar="N", help="N mixtures at random, too")
    compare.add_argument("--steps", type=_positive, help="optimizer steps of every arm (default: the config's)")
    compare.add_argument("--launch", metavar="COMMAND", help="what trains a config (default: axolotl train)")
    compare.add_argument("--keep", action="store_true", help="models and checkpoints of judged arms")
    compare.add_argument("--json", action="store_true", help="print compare.json instead of a table")
    compare.set_defaults(run=_compare)


def _gibibytes(text: str) -> float:
    number = float(text)
    if not 0.0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return number


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def _quickstart(arguments: argparse.Namespace) -> int:
    from .quickstart.command import run

    return run(arguments.dir, steps=arguments.steps)


def _estimate(arguments: argparse.Namespace) -> int:
    from .config.names import listed
    from .config.refusals import problems_of
    from .estimate.estimator import estimate
    from .estimate.lines import fits, lines_of

    found = estimate(arguments.config, arguments.gpus, arguments.model_config)
    if not listed(found.setting.cfg):
        print(
            f"scalebio is off: plugins: in {arguments.config} does not list it, so its run is the column `ordinary`; "
            "`this run` is what it takes once you add `plugins: [scalebio]`\n"
        )
    print("\n".join(lines_of(found, arguments.gpu_memory)))
    refused = problems_of(found.setting.cfg)
    for problem in refused:
        print(f"scalebio: the run would be refused: {problem}", file=sys.stderr)
    return 2 if refused else 0 if fits(found, arguments.gpu_memory) else 1


def _check(arguments: argparse.Namespace) -> int:
    from .errors import texts_of
    from .estimate.checked import ignored_keys, refusal_of
    from .estimate.setting import read_config

    config = read_config(arguments.config)
    refusal = refusal_of(config)
    problems = [] if refusal is None else list(texts_of(refusal))
    ignored = ignored_keys(config)
    print("\n".join([*problems, *ignored]) or f"{arguments.config}: nothing is wrong with it")
    return 2 if problems else 1 if ignored else 0


def _compare(arguments: argparse.Namespace) -> int:
    from .compare.arms import refuse_unknown
    from .compare.command import compare

    refuse_unknown(arguments.arms or [])
    return compare(
        arguments.config,
        folder=arguments.dir,
        as_json=arguments.json,
        **{
            key: vars(arguments)[key]
            for key in ("arms", "seeds", "mixture", "single", "random", "steps", "launch", "keep")
        },
    )


def _show(arguments: argparse.Namespace) -> int:
    from .report.mixture_file import goals_of, read_mixture, summaries_of
    from .report.tables import goals_table, weights_table

    document = read_mixture(_mixture_at(arguments.path), needs=("sources",))
    print(weights_table(summaries_of(document), document.get("verdict")))
    helped = goals_table(goals_of(document))
    if helped is not None:
        print(f"\n{helped}")
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from .report.page import draw_again

    print(draw_again(_mixture_at(arguments.path)))
    return 0


def _report_bug(arguments: argparse.Namespace) -> int:
    from .report.bug import bug_report

    config, log = arguments.config, arguments.log
    if config is not None:
        from .estimate.setting import read_config

        config = read_config(config)
    if log is not None and not log.is_file():
        raise FileNotFoundError(f"no file {log}; give what a run printed")
    print(bug_report(__version__, config, log))
    print("scalebio: read it before you paste it; names of models and datasets are in it", file=sys.stderr)
    return 0


def _mixture_at(path: Path) -> Path:
    mixture = path / "scalebio" / "mixture.json" if path.is_dir() else path
    if not mixture.is_file():
        raise FileNotFoundError(
            f"no file {mixture}; give a mixture.json, or the output_dir of a run that has saved one"
        )
    return mixture
