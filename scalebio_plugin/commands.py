"""What each subcommand does: from its arguments to what is printed, and the exit status."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import __version__


def quickstart(arguments: argparse.Namespace) -> int:
    from .quickstart.command import run

    return run(arguments.dir, steps=arguments.steps)


def estimate(arguments: argparse.Namespace) -> int:
    from .config.names import listed
    from .config.refusals import problems_of
    from .estimate.estimator import estimate as estimate_of
    from .estimate.lines import fits, lines_of

    found = estimate_of(arguments.config, arguments.gpus, arguments.model_config)
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


def check(arguments: argparse.Namespace) -> int:
    from .errors import texts_of
    from .estimate.checked import ignored_keys, refusal_of
    from .estimate.setting import read_config

    config = read_config(arguments.config)
    refusal = refusal_of(config)
    problems = [] if refusal is None else list(texts_of(refusal))
    ignored = ignored_keys(config)
    print("\n".join([*problems, *ignored]) or f"{arguments.config}: nothing is wrong with it")
    return 2 if problems else 1 if ignored else 0


def compare(arguments: argparse.Namespace) -> int:
    from .compare.arms import refuse_unknown
    from .compare.command import compare as compare_arms

    refuse_unknown(arguments.arms or [])
    return compare_arms(
        arguments.config,
        folder=arguments.dir,
        as_json=arguments.json,
        **{
            key: vars(arguments)[key]
            for key in ("arms", "seeds", "mixture", "single", "random", "steps", "launch", "keep")
        },
    )


def show(arguments: argparse.Namespace) -> int:
    from .report.mixture_file import goals_of, read_mixture, summaries_of
    from .report.tables import goals_table, weights_table

    document = read_mixture(mixture_at(arguments.path), needs=("sources",))
    print(weights_table(summaries_of(document), document.get("verdict")))
    helped = goals_table(goals_of(document))
    if helped is not None:
        print(f"\n{helped}")
    return 0


def report(arguments: argparse.Namespace) -> int:
    from .report.page import draw_again

    print(draw_again(mixture_at(arguments.path)))
    return 0


def report_bug(arguments: argparse.Namespace) -> int:
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


def mixture_at(path: Path) -> Path:
    mixture = path / "scalebio" / "mixture.json" if path.is_dir() else path
    if not mixture.is_file():
        raise FileNotFoundError(
            f"no file {mixture}; give a mixture.json, or the output_dir of a run that has saved one"
        )
    return mixture


def init(arguments: argparse.Namespace) -> int:
    from .edit.begin import begun
    from .edit.text import difference, read_text, write_text
    from .estimate.setting import read_config

    path, target = arguments.config, arguments.output or arguments.config
    config, text = read_config(path), read_text(path)
    if arguments.output is not None:
        refuse_existing(target)
    asked = {"validation": arguments.validation, "kind": arguments.type, "split_by": arguments.split_by}
    new = begun(text, config, **asked)
    print("\n".join(difference(text, new, str(path))))
    if not arguments.dry_run:
        write_text(target, new)
        print(f"\nwritten to {target}; what is still wrong with it: scalebio check {target}")
    return 0


def apply(arguments: argparse.Namespace) -> int:
    from .edit.apply import applied, as_weights, explained, refuse_unfit
    from .edit.text import read_text, write_text
    from .estimate.setting import read_config
    from .report.mixture_file import read_mixture

    path, mixture = arguments.config, mixture_at(arguments.mixture)
    target = arguments.output or path.with_name(f"{path.stem}.apply.yml")
    config, document = read_config(path), read_mixture(mixture)
    refuse_unfit(config, document, str(mixture))
    refuse_existing(target)
    text = read_text(path)
    new = as_weights(text, config, document) if arguments.as_weights else applied(text, config, str(mixture))
    write_text(target, new)
    print("\n".join(explained(document, config.get("scalebio") or {})))
    print(f"\nwritten to {target}; the run: axolotl train {target}")
    return 0


def refuse_existing(path: Path) -> None:
    if path.exists():
        raise FileExistsError(f"--output: {path} is there already; name another file, or remove it")
