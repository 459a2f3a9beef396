"""What is compared: a config, as plain values, for each arm.

    run               the config as it stands; its model has been pulled by the validation rows
    learned           an ordinary run on the mixture that `run` learned
    uniform           equal weights
    proportional      all rows alike: the run without scalebio
    validation        the same, the validation rows added to the training data as they are
    validation-drawn  and drawn as often as the pull of `run` saw them
    own               a mixture of the user's
    single-NAME       one source alone
    random-K          a mixture drawn at random

All have the base model, the seed, the optimizer steps and the batches of `run`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..config.block import settings_of, validation_rows
from ..config.names import listed, source_names
from ..config.raw import count
from ..report.next_config import OF_THE_RUN, applied_block

Config = dict[str, Any]

RUN, LEARNED, UNIFORM, PROPORTIONAL, OWN = "run", "learned", "uniform", "proportional", "own"
VALIDATION, VALIDATION_DRAWN = "validation", "validation-drawn"
SINGLE, RANDOM = "single-", "random-"
DEFAULT = (RUN, LEARNED, UNIFORM, PROPORTIONAL, VALIDATION, VALIDATION_DRAWN)
JUDGE = "scalebio_plugin.compare.judge.JudgePlugin"
UNBOUNDED = 1_000_000  # of max_repeats
# What would choose a model by the rows that judge it, or push one arm's model where the user's own belongs.
_DROPPED = (
    *("early_stopping_patience", "load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
    *("eval_steps", "evals_per_epoch", "do_bench_eval", "do_causal_lm_eval", "eval_table_size"),
    *("hub_model_id", "hub_strategy", "push_dataset_to_hub"),
)


def refuse_unfit(config: Mapping[str, Any]) -> None:
    """Raises a ValueError for a config that nothing can be compared with."""
    if not listed(config):
        raise ValueError("plugins: does not list scalebio, so that no mixture would be learned; add it")
    block = config.get("scalebio") or {}
    if block.get("apply"):
        raise ValueError("scalebio.apply: a run that learns is compared; give its config, and the file by --mixture")
    if block.get("on_leak") == "drop":
        raise ValueError(
            "scalebio.on_leak: drop: the arm without scalebio would train on the rows that the others drop; take them "
            "out of the files, and the line out of the config"
        )
    if config.get("lr_scheduler") == "reduce_lr_on_plateau":
        raise ValueError(
            "lr_scheduler: reduce_lr_on_plateau goes by evaluations on the way, and arms have none, as the rows that "
            "judge them may not steer them; take another, such as cosine"
        )
    if not block.get("validation_datasets") or not config.get("test_datasets"):
        raise ValueError(
            "arms are judged on rows that none of them was tuned for: list those to tune the mixture for under "
            "scalebio.validation_datasets, and others under test_datasets"
        )


def refuse_unknown(arms: Sequence[str]) -> None:
    """Raises a ValueError that names the arms that there are."""
    unknown = [arm for arm in arms if arm not in DEFAULT and not arm.startswith(SINGLE)]
    if unknown:
        raise ValueError(f"--arms: must be of {', '.join(DEFAULT)}, {SINGLE}NAME, got {', '.join(unknown)}")


def refuse_other_sources(config: Mapping[str, Any], arms: Sequence[str], own: Mapping[str, float] | None) -> None:
    """Raises a ValueError, before anything is trained, for an arm of a source that there is not.

    With `split_by` the sources are not known before the data are.
    """
    if not config["scalebio"].get("split_by"):
        for arm in arms:
            if arm == OWN or arm.startswith(SINGLE):
                weights_of(arm, _names(config), own)


def run_config(config: Mapping[str, Any], folder: Path, seed: int, steps: int | None = None) -> Config:
    """The config as it stands, in a folder of its own, judged at its end.

    Args:
        steps: Optimizer steps, where they are not to be those of the config.
    """
    by_metric = ("save_strategy",) if config.get("save_strategy") == "best" else ()
    dropped = (*_DROPPED, *OF_THE_RUN, *by_metric)
    plain = {key: copy.deepcopy(value) for key, value in config.items() if key not in dropped}
    # No arm evaluates on the way, and all are to train on the same rows.
    block = {key: value for key, value in plain["scalebio"].items() if key != "held_out_rows"}
    own = {
        "plugins": [*plain["plugins"], JUDGE],
        "scalebio": block,
        "output_dir": str(folder),
        "seed": seed,
        "eval_strategy": "no",
        "eval_sample_packing": False,  # a row is judged, not what shares a packed one with it
        "auto_resume_from_checkpoints": True,
    }
    return plain | own | ({} if steps is None else {"max_steps": steps})


def applied_config(config: Mapping[str, Any], mixture: Path, **block: Any) -> Config:
    """An ordinary run on that mixture. `config`: of `run_config`."""
    return {**config, "scalebio": {**applied_block(config["scalebio"], str(mixture)), **block}}


def plain_config(config: Mapping[str, Any], *, with_validation: bool = False) -> Config:
    """The run without scalebio, with the validation rows among the others or without them."""
    plain = {key: value for key, value in config.items() if key != "scalebio"}
    plain["plugins"] = [name for name in plain["plugins"] if name not in listed(config)]
    if with_validation:
        plain["datasets"] = [*plain["datasets"], *validation_entries(config)]
    return plain


def drawn_config(config: Mapping[str, Any], mixture: Path) -> Config:
    """An ordinary run on the mixture of `validation_drawn_weights`."""
    added = {**config, "datasets": [*config["datasets"], *validation_entries(config)]}
    return applied_config(added, mixture, names=[*_names(config), *validation_names(config)], max_repeats=UNBOUNDED)


def validation_entries(config: Mapping[str, Any]) -> list[Config]:
    entries = config["scalebio"]["validation_datasets"]
    return [{key: value for key, value in entry.items() if key != "weight"} for entry in entries]


def validation_names(config: Mapping[str, Any]) -> list[str]:
    return [f"validation: {name}" for name in source_names(config["scalebio"]["validation_datasets"])]


def _names(config: Mapping[str, Any]) -> list[str]:
    return source_names(config["datasets"], config["scalebio"].get("names"))


def validation_drawn_weights(config: Mapping[str, Any], document: Mapping[str, Any]) -> dict[str, float]:
    """The training data in proportion, and the validation rows as often as a step of `run` draws them.

    With packing, of `validation_rows` bins, which are as full as those of training; of sequences that were asked for by
    number it is as if no row shared a bin.

    Args:
        document: The mixture.json of `run`.
    """
    settings = settings_of(config)
    micro_batch, accumulation = (count(config, key, 1) for key in ("micro_batch_size", "gradient_accumulation_steps"))
    rows = settings.validation_batch_size or validation_rows(micro_batch, accumulation, 1)
    sources, sets = document["sources"].values(), document["validation"].values()
    if config.get("sample_packing") and settings.validation_batch_size is None:
        of_sources, pulled = 1.0, [rows * of["weight"] for of in sets]
    else:
        of_sources = sum(of["tokens"] for of in sources) / sum(of["examples"] for of in sources)
        pulled = [rows * of["weight"] * of["tokens"] / of["examples"] for of in sets]
    tokens = micro_batch * accumulation * of_sources + sum(pulled)
    ours = proportional(document)
    weights = {name: weight * (1 - sum(pulled) / tokens) for name, weight in ours.items()}
    return weights | dict(zip(validation_names(config), (of / tokens for of in pulled), strict=True))


def proportional(document: Mapping[str, Any]) -> dict[str, float]:
    """Shares of the target tokens."""
    tokens = {name: of["tokens"] for name, of in document["sources"].items()}
    return {name: count / sum(tokens.values()) for name, count in tokens.items()}


def weights_of(arm: str, names: Sequence[str], own: Mapping[str, float] | None) -> dict[str, float]:
    """The mixture of an arm that is told by its name.

    Raises:
        ValueError: `own` or a single source is not one of this run's.
    """
    if arm == UNIFORM:
        return dict.fromkeys(names, 1 / len(names))
    if arm == OWN:
        return _own(own or {}, names)
    if arm.startswith(RANDOM):
        drawn = np.random.default_rng([int(arm.removeprefix(RANDOM)), 0x5CA1EB10]).dirichlet(np.ones(len(names)))
        return dict(zip(sorted(names), drawn.tolist(), strict=True))  # the same whatever order a seed has learned
    chosen = arm.removeprefix(SINGLE)
    if chosen not in names:
        raise ValueError(f"{arm}: there is no source {chosen!r}; there are {', '.join(names)}")
    return {name: float(name == chosen) for name in names}


def _own(own: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    unknown = sorted(set(own) - set(names))
    total = sum(own.values())
    if unknown or not total > 0 or min(own.values()) < 0:
        raise ValueError(
            f"--mixture: must give sources of this run weights of at least 0, not all 0, got {dict(own)}; there are "
            f"{', '.join(names)}"
        )
    return {name: own.get(name, 0.0) / total for name in names}
