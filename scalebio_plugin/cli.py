"""The `scalebio` command. Starts at once: what a subcommand needs is imported when it runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from . import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status. A wrong use of it is a line on stderr and status 2, not a traceback."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command == "quickstart":
            return _quickstart(arguments.dir, arguments.steps)
        return _show(arguments.path)
    except (FileNotFoundError, ValueError) as error:
        print(f"scalebio: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scalebio", description="Learned data mixtures for Axolotl.")
    parser.add_argument("--version", action="version", version=f"scalebio {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

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

    show = commands.add_parser("show", help="print the mixture that a run learned")
    show.add_argument("path", type=Path, metavar="PATH", help="a mixture.json, or the output_dir of a run")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def _quickstart(directory: Path, steps: int | None) -> int:
    from .quickstart import run

    return run(directory, steps=steps)


def _show(path: Path) -> int:
    from .report import SourceSummary, read_mixture, weights_table

    mixture = path / "scalebio" / "mixture.json" if path.is_dir() else path
    if not mixture.is_file():
        raise FileNotFoundError(
            f"no file {mixture}; give a mixture.json, or the output_dir of a run that has saved one"
        )
    document = read_mixture(mixture)
    fields = SourceSummary.__dataclass_fields__
    summaries = {
        name: SourceSummary(**{key: source[key] for key in fields}) for name, source in document["sources"].items()
    }
    print(weights_table(summaries))
    return 0
