"""`next.yml`: the config of a run, turned into the ordinary run on the mixture it learned."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import yaml

# Of the block, what `apply` goes with.
KEPT = ("names", "split_by", "min_rows", "held_out_rows", "max_repeats", "extensions")
OF_THE_RUN = (
    *("axolotl_config_path", "resume_from_checkpoint", "wandb_run_id"),  # would point back to it
    *("debug", "debug_text_only", "debug_num_examples", "prompter", "shard"),  # the host's command puts them there
)
_LISA = """#
# The first run trained with LISA, layer by layer. This one trains all parameters at a time, which takes more memory;
# where that does not fit, learn and go on in one run instead (scalebio.learn), which keeps LISA.
"""


def next_config(config: Mapping[str, Any], output_dir: str) -> str:
    """YAML of the second phase.

    Args:
        config: Of the run that learns, as its user wrote it.
        output_dir: Of that run, as it reads in the config; the next one's is beside it.

    Raises:
        yaml.YAMLError: Something in the config has no form in YAML (it was made by a program).
    """
    applied = applied_config(config, os.path.join(output_dir, "scalebio", "mixture.json"), output_dir)
    text = yaml.safe_dump(applied, sort_keys=False, allow_unicode=True)
    comment = (
        f"# An ordinary Axolotl run on the mixture learned in {output_dir}: its config, without the bilevel step.\n"
    )
    return comment + (_LISA if (config.get("scalebio") or {}).get("lisa") else "") + "\n" + text


def applied_config(config: Mapping[str, Any], mixture: str, output_dir: str) -> dict[str, Any]:
    """The same as plain values, with the path of the mixture."""
    block = config.get("scalebio") or {}
    plain = {key: value for key, value in config.items() if key not in (*OF_THE_RUN, "scalebio")}
    plain["output_dir"] = f"{output_dir.rstrip(os.sep)}-applied"
    plain["scalebio"] = applied_block(block, mixture)
    return plain


def applied_block(block: Mapping[str, Any], mixture: str) -> dict[str, Any]:
    """That of a run on a mixture, from that of the run that learned it."""
    dropped = ("on_leak", "validation_datasets") if block.get("on_leak") == "drop" else ()
    return {"apply": mixture, **{key: block[key] for key in (*KEPT, *dropped) if block.get(key)}}
