"""`scalebio init`: the config of an ordinary run, as one that learns how much each of its datasets should count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ..config.names import listed
from ..config.raw import refuse_shapes
from ..config.refusals import problems_of, refuse
from .text import appended, dumped, entries, parses_to, with_plugin

_PLACES = (
    *("path", "name", "data_files", "split", "revision", "shards", "shards_idx", "preprocess_shards"),
    *("weight", "ds_type"),
)
_FILES = {".json", ".jsonl", ".parquet", ".csv", ".txt", ".arrow"}
_BLOCK = """\
scalebio:  # learns, while the model trains, how much each of datasets: should count
{validation}
  {split}learn: {{fraction: 1.0}}  # of the steps; 0.3 learns in the first 30%, then trains on what was learned
  # keep: inner           # save the set of parameters that has trained on none of the validation rows
  # max_repeats: 4        # how often one row may be drawn in an epoch
"""
_OWN = """\
  # What the mixture is tuned for: rows like those the model is wanted for, kept out of datasets:.
  validation_datasets:"""
_OF_THE_HOST = """\
  # {key} steers the mixture, and eval_loss is then no longer held out. To keep them apart:
  # validation_datasets:
  #   - {{path: my/validation.jsonl, type: alpaca}}"""


def begun(
    text: str,
    config: Mapping[str, Any],
    *,
    validation: Sequence[str] = (),
    kind: str | None = None,
    split_by: str | None = None,
) -> str:
    """The text of a config, with the plugin and a block for it.

    Args:
        config: What the text parses to.
        validation: Paths of what the mixture is to be tuned for.
        kind: Their `type`; None: as the entries of `datasets:` are.
        split_by: A column of the raw rows.

    Raises:
        FileNotFoundError: A local file of validation rows is not there.
        ValueError: It has a block already, lacks what nobody can guess, or could not be run; all in one message.
    """
    refuse_shapes(config)
    if "scalebio" in config:
        raise ValueError("there is a scalebio: block already; change that, `scalebio check` says what is wrong with it")
    block: dict[str, Any] = {"split_by": split_by} if split_by else {}
    if validation:
        block["validation_datasets"] = _entries(validation, config.get("datasets") or [], kind)
    block["learn"] = {"fraction": 1.0}
    plugins = list(config.get("plugins") or [])
    expected = {**config, "scalebio": block}
    if not listed(config):
        expected["plugins"] = [*plugins, "scalebio"]
    _refuse(expected)
    lines, new = _lines(config, block), text
    if entries(text):
        new = appended(text if listed(config) else with_plugin(text, plugins), lines)
    if not parses_to(new, expected):
        raise ValueError(
            "the file cannot be edited without a change to something else of it (its keys are not one below the other, "
            f"or plugins: is an alias); add scalebio to plugins: by hand, and\n\n{lines}"
        )
    return new


def _entries(paths: Sequence[str], datasets: Sequence[Mapping[str, Any]], kind: str | None) -> list[dict[str, Any]]:
    for path in paths:
        if PurePosixPath(path).suffix.lower() in _FILES and "://" not in path and not Path(path).is_file():
            raise FileNotFoundError(f"--validation: no file {path}; give its path from where the run is launched")
    form = {"type": kind} if kind else _form(datasets)
    return [{"path": path, **form} for path in paths]


def _form(datasets: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the entries of `datasets:` say of their rows, as far as all of them say the same."""
    forms = [{key: value for key, value in entry.items() if key not in _PLACES} for entry in datasets]
    if not forms or any(form != forms[0] for form in forms):
        raise ValueError("--validation: the entries of datasets: are of several forms; say which by --type")
    return forms[0]


def _refuse(config: Mapping[str, Any]) -> None:
    """What would be refused, and where an option of `init` mends it, which."""
    block, datasets = config["scalebio"], config.get("datasets") or []
    said, assumed = list[str](), dict(block)
    if len(datasets) == 1 and not block.get("split_by"):
        assumed["split_by"] = "?"
        said.append(
            "datasets: lists one entry, and a mixture needs two sources: add an entry, or give the column of its rows "
            "that says where each comes from, by --split-by COLUMN"
        )
    if not any((block.get("validation_datasets"), config.get("test_datasets"), config.get("val_set_size"))):
        assumed["validation_datasets"] = [{"path": "?"}]
        said.append(
            "there is no validation data to tune the mixture for (no test_datasets, no val_set_size): give rows like "
            "those the model is wanted for, some hundred, by --validation PATH [--type alpaca]"
        )
    refuse([*said, *problems_of({**config, "scalebio": assumed})])


def _lines(config: Mapping[str, Any], block: Mapping[str, Any]) -> str:
    if "validation_datasets" in block:
        validation = _OWN + "".join(f"\n    - {dumped(entry)}" for entry in block["validation_datasets"])
    else:
        validation = _OF_THE_HOST.format(key="test_datasets" if config.get("test_datasets") else "val_set_size")
    split = f"split_by: {dumped(block['split_by'])}\n  " if "split_by" in block else ""
    return _BLOCK.format(validation=validation, split=split)
