"""The `scalebio` command. Starts at once: what a subcommand needs is imported when it runs (`commands`)."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status. A wrong use of it is a line on stderr and status 2, not a traceback."""
    arguments = parser().parse_args(argv)
    from . import commands

    run: Callable[[argparse.Namespace], int] = getattr(commands, arguments.command.replace("-", "_"))
    try:
        status = run(arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # what reads it, as `head`, has enough; Python would say so as it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, ValueError) as error:
        from .report.words import printable_lines

        said = printable_lines(str(error))
        print(said if said.startswith("scalebio") else f"scalebio: {said}", file=sys.stderr)
        return 2


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(prog="scalebio", description="Learned data mixtures for Axolotl.")
    whole.add_argument("--version", action="version", version=f"scalebio {__version__}")
    whole.add_argument(
        "--print-completion",
        action=_Completion,
        choices=("bash", "zsh", "fish", "tcsh"),
        help='print what completes this command in a shell: eval "$(scalebio --print-completion bash)"',
    )
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (
        *(_add_quickstart, _add_init, _add_check, _add_estimate),
        *(_add_show, _add_report, _add_apply, _add_compare, _add_bug),
    ):
        add(commands)
    return whole


class _Completion(argparse.Action):
    """Prints a shell's script, in which what is a path is completed as one, and ends."""

    def __call__(self, parser: argparse.ArgumentParser, *given: Any, **named: Any) -> None:
        import shtab

        [commands] = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        for command in commands.choices.values():
            for action in command._actions:
                if action.type is Path:
                    action.complete = shtab.FILE
        print(shtab.complete(parser, given[1]))
        parser.exit()


def _command(
    commands: Commands, name: str, help: str, description: str, *examples: str, then: str = ""
) -> argparse.ArgumentParser:
    """A subcommand whose --help ends in examples, each a line that can be typed."""
    paragraphs = [textwrap.fill(text, 80) for text in (description, then) if text]
    return commands.add_parser(
        name,
        help=help,
        description="\n\n".join(paragraphs),
        epilog="\n".join(["examples:", *(f"  {example}" for example in examples)]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_quickstart(commands: Commands) -> None:
    quickstart = _command(
        commands,
        "quickstart",
        "learn a planted mixture on this machine's CPU, in minutes",
        "Makes a tiny model and three tiny datasets, trains with Axolotl, and prints the learned weights beside the "
        "true ones.",
        "scalebio quickstart",
        "scalebio quickstart --dir /tmp/planted --steps 60",
    )
    quickstart.add_argument(
        "--dir", type=Path, default=Path("scalebio-quickstart"), help="where everything is put (default: %(default)s)"
    )
    quickstart.add_argument("--steps", type=_positive, help="optimiser steps (default: those of quickstart.yml)")


def _add_init(commands: Commands) -> None:
    init = _command(
        commands,
        "init",
        "turn an Axolotl config into one that learns a mixture",
        "Adds scalebio to plugins: and a short scalebio: block to a config, in place, and prints the difference. All "
        "else stays as it is, comments and line ends too. Where the config has neither test_datasets nor val_set_size, "
        "the rows to tune the mixture for are asked for; where it lists one dataset, the column to split it by.",
        "scalebio init config.yml --dry-run",
        "scalebio init config.yml --validation my/validation.jsonl --type alpaca",
        "scalebio init config.yml --split-by source --output learn.yml",
    )
    _add_config(init)
    init.add_argument(
        "--validation",
        action="append",
        default=[],
        metavar="PATH",
        help="rows like those the model is wanted for: a file or a dataset of the Hub; may be given again",
    )
    init.add_argument("--type", help="prompt type of the validation rows (default: as datasets: has it)")
    init.add_argument("--split-by", metavar="COLUMN", help="each value of this column of the rows is a source")
    written = init.add_mutually_exclusive_group()
    written.add_argument("--dry-run", action="store_true", help="print the difference alone")
    written.add_argument("--output", type=Path, metavar="FILE", help="leave the config alone and write this new file")


def _add_show(commands: Commands) -> None:
    show = _command(
        commands,
        "show",
        "print the mixture that a run learned, or those of several side by side",
        "Prints the weights of a run, how sure they are, and the verdict; of several runs a table with a column each.",
        "scalebio show outputs/first-run",
        "scalebio show outputs/*/scalebio/mixture.json",
        "scalebio show outputs/first-run --json | jq '.runs[0].weights'",
        then="--json prints {runs: [{run, config, verdict, steps, weights, goals, sources}]}, the sources with "
        "weight, interval, gap, gap_se, evidence, loss, inner_loss and weight_average each, as in mixture.json.",
    )
    _add_runs(show)
    _add_json(show)


def _add_report(commands: Commands) -> None:
    report = _command(
        commands,
        "report",
        "draw the picture and the page of a run again, or one page of several runs",
        "Writes mixture.png and report.html beside the mixture.json of a run, also of one that goes on or was stopped, "
        "as far as its last checkpoint. Of several runs it writes one page, with their weights, verdicts, validation "
        "losses and pictures.",
        "scalebio report outputs/first-run",
        "scalebio report outputs/first-run outputs/second-run --output both.html",
    )
    _add_runs(report)
    report.add_argument("--output", type=Path, metavar="FILE", help="of several runs (default: side-by-side.html)")


def _add_apply(commands: Commands) -> None:
    apply = _command(
        commands,
        "apply",
        "turn a config into the ordinary run on a learned mixture",
        "Writes a config beside another, for a run that draws its rows by the weights of a mixture, and prints what "
        "the numbers of that mixture mean. Comments stay; output_dir gets -applied, what would learn or point back to "
        "the run that learned is left out. The sources of both must have the same names.",
        "scalebio apply config.yml outputs/first-run",
        "scalebio apply other.yml mixture.json --output next.yml",
        "scalebio apply config.yml outputs/first-run --as-weights",
        then="With --as-weights the run needs no scalebio: each entry of datasets: has as its weight: the part of its "
        "rows to keep, as Axolotl reads it from 0.20 on.",
    )
    _add_config(apply)
    apply.add_argument("mixture", type=Path, metavar="MIXTURE", help="a mixture.json, or the output_dir of a run")
    apply.add_argument(
        "--output", type=Path, metavar="FILE", help="a new file (default: CONFIG's name with .apply.yml)"
    )
    apply.add_argument("--as-weights", action="store_true", help="by the host's datasets[].weight, without scalebio")


def _add_check(commands: Commands) -> None:
    check = _command(
        commands,
        "check",
        "all that is wrong with a config, without a run",
        "Says what the plugin and the host refuse in a config, and which keys and plugins the host would ignore, "
        "also in entries of datasets. Exit status: 0 nothing is wrong, 1 something is ignored, 2 the run would be "
        "refused.",
        "scalebio check config.yml",
        "scalebio check config.yml --json",
        then="--json prints {config, refused: [problem], ignored: [key or plugin and what is wrong with it]}.",
    )
    _add_config(check)
    _add_json(check)


def _add_bug(commands: Commands) -> None:
    bug = _command(
        commands,
        "report-bug",
        "print what a bug report needs",
        "Prints versions, the config and the end of a log as Markdown, without secrets, names of accounts and local "
        "paths.",
        "scalebio report-bug config.yml --log train.log",
    )
    bug.add_argument("config", type=Path, metavar="CONFIG", nargs="?", help="the Axolotl config of the run")
    bug.add_argument("--log", type=Path, metavar="FILE", help="what the run printed")


def _add_estimate(commands: Commands) -> None:
    estimate = _command(
        commands,
        "estimate",
        "memory and compute of a config, before anything is downloaded",
        "Counts, from the model's config alone, what a run takes on each GPU and in CPU memory, beside the same run "
        "without scalebio. Exit status: 0 it fits, 1 it does not, 2 the config is wrong.",
        "scalebio estimate config.yml",
        "scalebio estimate config.yml --gpus 8 --gpu-memory 80",
        "scalebio estimate config.yml --json | jq .bytes_per_gpu.this_run.peak",
        then="--json prints {config, scalebio_listed, refused, model, parameters: {total, trained, at_a_time}, engine, "
        "gpus, bytes_per_gpu: {this_run, ordinary, lisa_alone where there is LISA: {peak and the other rows}}, passes: "
        "{while_learning, whole_run (with learn.until at most)} in those of an ordinary step, notes, gpu_memory_gib, "
        "fits}; of a config that cannot be estimated {config, refused}.",
    )
    _add_config(estimate)
    _add_json(estimate)
    estimate.add_argument("--gpus", type=_positive, default=1, metavar="N", help="GPUs (default: %(default)s)")
    estimate.add_argument(
        "--gpu-memory", type=_gibibytes, default=48.0, metavar="GIB", help="of each, in GiB (default: %(default)g)"
    )
    estimate.add_argument(
        "--model-config", type=Path, metavar="FILE", help="a config.json, if base_model's is not found"
    )


def _add_compare(commands: Commands) -> None:
    compare = _command(
        commands,
        "compare",
        "the learned mixture beside uniform, proportional and other ones, on rows that none was tuned for",
        "Trains the arms of a comparison one after the other, each for the steps of the config, and judges them on "
        "test_datasets. It can be stopped: the same command goes on with the arm that was running.",
        "scalebio compare config.yml",
        "scalebio compare config.yml --seeds 5 --mixture math=0.7 general=0.3",
        "scalebio compare config.yml --launch 'accelerate launch --num_processes 4 -m axolotl.cli.train'",
        then="Arms: run (the config as it stands), learned (an ordinary run on what it learned), uniform, proportional "
        "(the run without scalebio), validation (the same, the validation rows added), validation-drawn (as often as "
        "the pull of run sees them).",
    )
    compare.add_argument("config", type=Path, metavar="CONFIG", help="an Axolotl config that learns a mixture")
    compare.add_argument("--dir", type=Path, help="where the arms are put (default: CONFIG's name with -compare)")
    compare.add_argument(
        "--arms", nargs="+", metavar="ARM", help="of those above; run, which learns, is always there (default: all)"
    )
    compare.add_argument("--seeds", type=_positive, default=3, metavar="N", help="default: %(default)s")
    compare.add_argument(
        "--mixture", nargs="+", default=[], metavar="FILE|RUN|NAME=WEIGHT", help="your own, as a further arm"
    )
    compare.add_argument("--single", action="store_true", help="each source alone, too")
    compare.add_argument("--random", type=_positive, default=0, metavar="N", help="N mixtures at random, too")
    compare.add_argument("--steps", type=_positive, help="optimizer steps of every arm (default: the config's)")
    compare.add_argument("--launch", metavar="COMMAND", help="what trains a config (default: axolotl train)")
    compare.add_argument("--keep", action="store_true", help="models and checkpoints of judged arms")
    compare.add_argument("--json", action="store_true", help="print compare.json instead of a table")


def _add_config(command: argparse.ArgumentParser) -> None:
    command.add_argument("config", type=Path, metavar="CONFIG", help="an Axolotl config")


def _add_runs(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "path", type=Path, nargs="+", metavar="PATH", help="a mixture.json, or the output_dir of a run"
    )


def _add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print it for a program to read")


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
