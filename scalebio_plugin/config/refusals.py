"""What ScaleBiO cannot do right, found in the raw config before a model is loaded.

Every rule is one line: rule, value, remedy. `problems_of` returns all of them, so that a user mends a config once.
Standard library only: it runs inside the host's validation, for every command that reads the config.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from typing import Any

from .deepspeed import problems_of_deepspeed
from .fused_loss import fused_loss_of
from .optimizers import problems_of_optimizer, problems_on_engine
from .sources import problems_of_names

# Keys that train something else than a causal language model on text, or change what the training step computes.
_KEYS = {
    "rl": "learns from preferences or rewards, not from a training loss per source",
    "reward_model": "is not next-token training",
    "process_reward_model": "is not next-token training",
    "streaming": "has no fixed set of examples to count per source; use a prepared dataset",
    "pretraining_dataset": "has no fixed set of examples to count per source; use `datasets:` with type completion",
    "processor_type": "means multimodal training, whose batches carry no source; use text datasets",
    "is_multimodal": "means multimodal training, whose batches carry no source; use text datasets",
    "skip_prepare_dataset": "leaves the rows untokenised, so that sources cannot be counted",
    "trainer_cls": "replaces the trainer that the bilevel step extends",
    "relora": "merges and resets the adapter during the run, which the inner parameters would not follow",
    "relora_steps": "merges and resets the adapter during the run, which the inner parameters would not follow",
    "orpo_alpha": "changes the training loss",
    "use_eaft": "changes the training loss",
    "use_dft": "changes the training loss",
    "balance_labels": "changes the training loss and refuses a wrapped collator",
    "label_smoothing_factor": "changes the training loss",
    "deepcompile": "reduces gradients outside ZeRO's optimizer",
    "auto_find_batch_size": "restarts the training loop in mid-run",
    "fp8": "keeps scaling state in the layers, which both parameter sets would share",
    "liger_use_token_scaling": "changes the training loss",
    "unsloth_cross_entropy_loss": "computes the loss inside the model, without the losses of the single tokens",
    "context_parallel_size": "splits sequences over ranks",
    "sequence_parallel_degree": "splits sequences over ranks",
    "tensor_parallel_size": "splits layers over ranks",
    "expert_parallel_size": "splits layers over ranks",
}
_ONE_IS_FINE = {"context_parallel_size", "sequence_parallel_degree", "tensor_parallel_size", "expert_parallel_size"}
_PLUGINS = ("kd.", "diffusion", "mixlora", "hatchery", "grokfast", "spectrum_offload", "llm_compressor")


def refusal_of(problems: Iterable[str]) -> ValueError:
    return ValueError("scalebio cannot run this config:\n" + "\n".join(f"  - {problem}" for problem in problems))


def refuse(problems: list[str]) -> None:
    """Raise a ValueError that says all of them, if there are any."""
    if problems:
        raise refusal_of(problems)


def problems_of(config: Mapping[str, Any]) -> list[str]:
    """All reasons why this raw config (before the host's validation) cannot be run, each with its remedy."""
    block = config.get("scalebio") or {}
    checks = [
        _datasets(config, block),
        _unsupported(config, block),
        problems_of_names(config.get("datasets") or [], block),
    ]
    if block.get("apply"):
        checks.append(_apply(block))
    else:
        checks += [
            _engine(config),
            _order(config, block),
            problems_of_deepspeed(config, block),
            _validation_data(config, block),
            _numbers(block),
            _layer_sampling(config, block),
            _fused_loss(config, block),
            _inner_kept(config, block),
            _probes(config, block),
        ]
    return [problem for check in checks for problem in check]


def _datasets(config: Mapping[str, Any], block: Mapping[str, Any]) -> Iterator[str]:
    entries = config.get("datasets") or []
    if len(entries) < 2 and not (entries and block.get("split_by")):
        yield (
            f"datasets: must list at least two sources to weigh against each other, got {len(entries)}; add one, "
            "or remove scalebio from plugins:. A single dataset whose rows say in a column where they come from is "
            "split by `scalebio.split_by: <column>`"
        )


def _unsupported(config: Mapping[str, Any], block: Mapping[str, Any]) -> Iterator[str]:
    for key, reason in _KEYS.items():
        value = config.get(key)
        if not value or (key in _ONE_IS_FINE and value == 1):
            continue
        yield f"{key}: {value!r} {reason}; remove {key} or scalebio"
    lisa = block.get("lisa") is not None
    yield from problems_of_optimizer(str(config.get("optimizer") or ""), lisa=lisa)
    for plugin in config.get("plugins") or []:
        if any(part in str(plugin).split("integrations.")[-1] for part in _PLUGINS):
            yield (
                f"plugins: {plugin} replaces the training step or the loss, or writes to w alone; remove it or scalebio"
            )
    for key in ("layer_offloading", "activation_offloading"):
        if config.get(key) and lisa:
            yield f"{key}: {config[key]!r} moves layers that LISA freezes; remove {key} or scalebio.lisa"


def _engine(config: Mapping[str, Any]) -> Iterator[str]:
    several = int(os.environ.get("WORLD_SIZE") or 1) > 1
    sharded = "deepspeed" if config.get("deepspeed") else "fsdp" if config.get("fsdp_config") else None
    if sharded or several:
        yield from problems_on_engine(str(config.get("optimizer") or ""), sharded or "ddp")
    if config.get("torch_compile") and (several or sharded or config.get("fsdp")):
        yield "torch_compile: hides the engine of several processes, which u's passes steer; remove torch_compile"
    if config.get("float16") and sharded:
        yield "float16: has no loss scaler, and was not tried with sharded parameters; use bf16: true"
    if not config.get("fsdp_config") and not config.get("fsdp"):
        return
    block = inside(config, "fsdp_config")
    version = config.get("fsdp_version") or block.get("fsdp_version") or block.get("version") or 1
    if host_is_0_19() and str(version) != "2":
        yield "fsdp: version 1 flattens parameters, which the two sets cannot exchange; use fsdp_version: 2"
    elif host_is_0_19() and config.get("fsdp"):
        yield "fsdp: is the form of version 1, which this host then runs; remove it, fsdp_config is enough"
    if config.get("fp16"):
        yield "fp16: with FSDP2 an overflow on one rank alone would part the two sets; use bf16: true"
    if config.get("deepspeed"):
        yield "deepspeed and fsdp_config are both set; remove one"


def _order(config: Mapping[str, Any], block: Mapping[str, Any]) -> Iterator[str]:
    """Equation (1) of `algorithm.bilevel` needs batches whose rows are drawn at random from all sources."""
    host = block.get("sampling", "mixture") == "host"
    if host and config.get("group_by_length") and not config.get("sample_packing"):
        yield (
            "group_by_length: fills batches with rows of one length, so that the sources of short rows count for more "
            "than their weights; remove it, or use sample_packing: true or scalebio.sampling: mixture"
        )
    shuffled = config.get("shuffle_merged_datasets", True)
    own = block.get("validation_datasets")
    if config.get("val_set_size") and own is None and not shuffled:
        yield (
            "val_set_size: with shuffle_merged_datasets: false it splits off the last rows of the last source, for "
            "which alone the mixture would be tuned; add scalebio.validation_datasets, or shuffle"
        )
    if host and config.get("curriculum_sampling") and not shuffled:
        yield (
            "curriculum_sampling: with shuffle_merged_datasets: false a step sees one source alone, and not what the "
            "mixture makes of all; remove one of the two, or use scalebio.sampling: mixture"
        )


def _fused_loss(config: Mapping[str, Any], block: Mapping[str, Any]) -> Iterator[str]:
    key = fused_loss_of(config)
    if key is not None and config.get("torch_compile"):
        yield f"torch_compile: would compile the output head, which {key} has give losses; remove one of the two"
    whole = (block.get("learn") or {"fraction": 1.0}) == {"fraction": 1.0}
    half = any(config.get(way) for way in ("adapter", "deepspeed", "fsdp_config", "fsdp"))
    if key == "cut_cross_entropy" and not whole and not half:
        yield (
            "cut_cross_entropy: its kernel trains in half precision alone, and here what trains is kept in float32, "
            "which after learning only other losses can do; remove scalebio.learn, or use "
            "liger_fused_linear_cross_entropy, an adapter or fsdp_config"
        )


def inside(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A block of the host's, which says itself what is none."""
    block = config.get(key)
    if not isinstance(block, Mapping):
        return {}
    return {_unprefixed(name): value for name, value in block.items()} if key == "fsdp_config" else block


def _unprefixed(name: Any) -> str:
    """As the host has a key of `fsdp_config`, once it has validated it."""
    return str(name) if name == "fsdp_version" else str(name).removeprefix("fsdp_")


def host_is_0_19() -> bool:
    """From 0.20 on it has FSDP2 alone, runs as such what names no version, and refuses the rest itself."""
    return metadata.version("axolotl").startswith("0.19.")


def _validation_data(config: Mapping[str, Any], block: Mapping[str, Any]) -> Iterator[str]:
    own = block.get("validation_datasets")
    if own is not None and len(own) == 0:
        yield "scalebio.validation_datasets is empty; list at least one dataset, or remove the key"
    if own is None and not config.get("test_datasets") and not config.get("val_set_size"):
        yield (
            "no validation data to tune the mixture for: add scalebio.validation_datasets (entries as in datasets:), "
            "or test_datasets, or val_set_size"
        )
    if block.get("held_out_rows") and not config.get("test_datasets") and not config.get("val_set_size"):
        yield (
            f"scalebio.held_out_rows: {block['held_out_rows']} are measured where the host evaluates, which it does "
            "not without test_datasets or val_set_size; add one of them, or remove held_out_rows"
        )
    if block.get("objective") == "worst" and len(own or []) < 2:
        yield "scalebio.objective: worst needs several scalebio.validation_datasets; list them, or remove objective"
    for entry in own or []:
        if not _positive(entry.get("weight", 1.0)):
            yield f"scalebio.validation_datasets: weight must be above 0, got {entry['weight']!r}"


def _positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and value > 0


def _numbers(block: Mapping[str, Any]) -> Iterator[str]:
    penalty = block.get("penalty", 10.0)
    if block.get("estimator") == "symmetric" and isinstance(penalty, (int, float)) and penalty < 3.0:
        yield (
            "scalebio.penalty must be at least 3 with estimator symmetric, so that L2 − L1/α stays bounded, got "
            f"{penalty}; raise it"
        )


def _layer_sampling(config: Mapping[str, Any], block: Mapping[str, Any]) -> Iterator[str]:
    lisa = block.get("lisa") is not None
    host_keys = [key for key in ("lisa_n_layers", "lisa_step_interval") if config.get(key)]
    if lisa and host_keys:
        yield f"{', '.join(host_keys)} and scalebio.lisa both ask for LISA; keep scalebio.lisa"
    if lisa and config.get("unfrozen_parameters"):
        yield "scalebio.lisa and unfrozen_parameters both choose what trains; keep one"


def _inner_kept(config: Mapping[str, Any], block: Mapping[str, Any]) -> Iterator[str]:
    if block.get("keep") != "inner":
        return
    best = [key for key in ("load_best_model_at_end", "early_stopping_patience") if config.get(key)]
    best += ["save_strategy: best"] if config.get("save_strategy") == "best" else []
    if best:
        yield (
            f"{', '.join(best)}: the host's best checkpoint is chosen by the loss of u and holds w as long as the run "
            f"learns; remove {' and '.join(best)}, or scalebio.keep: inner"
        )
    if block.get("estimator") == "symmetric":
        yield (
            "scalebio.keep: inner with estimator symmetric would keep parameters that were pushed away from the "
            "validation data; use estimator forward, or keep: model"
        )
    fsdp = inside(config, "fsdp_config")
    saved_as = fsdp.get("final_state_dict_type") or fsdp.get("state_dict_type")
    if fsdp and not config.get("adapter") and saved_as != "FULL_STATE_DICT":
        yield (
            f"fsdp_config: with {saved_as or 'no state_dict_type'} the host makes the final model of the last "
            "checkpoint, which holds w as long as the run learns; set final_state_dict_type: FULL_STATE_DICT, or "
            "remove scalebio.keep: inner"
        )


def _probes(config: Mapping[str, Any], block: Mapping[str, Any]) -> Iterator[str]:
    if config.get("deepspeed") and block.get("probe_interval"):
        yield (
            f"scalebio.probe_interval: {block['probe_interval']} needs the gradients of single passes, which DeepSpeed "
            "ZeRO keeps to itself; set it to 0, or use FSDP2 or DDP"
        )


def _apply(block: Mapping[str, Any]) -> Iterator[str]:
    fine = {"apply", "max_repeats", "names", "split_by", "min_rows", "held_out_rows", "on_mismatch", "extensions"}
    looks = {"on_leak", "validation_datasets"} if block.get("on_leak") in ("drop", "error") else {"on_leak"}
    idle = sorted(set(block) - fine - looks)
    if idle:
        yield f"scalebio.apply runs without learning, {idle} would do nothing; remove them"
    if not os.path.isfile(str(block["apply"])):
        yield f"scalebio.apply: no file {block['apply']}; give the path of a mixture.json"
