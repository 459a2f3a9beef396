"""From the host's config and trainer to ours: what the plugin's short methods delegate to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pluggy
import torch
import yaml
from axolotl.utils.dict import DictDefault
from axolotl.utils.logging import get_logger
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, Trainer

from ..algorithm.bilevel import NO_SOURCE
from ..algorithm.lisa import LayerPlan
from ..config.block import ScaleBiOSettings
from ..data.resampled import RestStream
from ..data.sources import Prepared, SourceCollator, Validation, sequence_lengths
from ..data.validation import PackedValidationStream, Packing, ValidationStream, coefficients
from ..engines import engine_of
from ..engines.base import plain_name
from ..estimate.estimator import from_model
from ..estimate.layout import layout_of
from ..estimate.lines import summary_line
from ..hooks.defaults import BUILT_IN
from ..hooks.manager import build_manager
from ..hooks.spec import Observation
from ..report.next_config import next_config
from .layer_sampling import LayerSampling
from .learning import Learning
from .mixture_run import MixtureRun, unknown_rule

LOG = get_logger("axolotl.scalebio")


def settings_of(cfg: DictDefault) -> ScaleBiOSettings:
    """The validated block, parsed again into the frozen model."""
    block = cfg.scalebio
    return ScaleBiOSettings.model_validate(block.to_dict() if block is not None else {})


def build_manager_of(settings: ScaleBiOSettings) -> pluggy.PluginManager:
    """The run's hooks.

    Raises:
        ValueError: No one answers for `mixture_update`.
    """
    manager = build_manager(settings.extensions, BUILT_IN)
    zeros = torch.zeros(2, dtype=torch.float64)
    trial = Observation(zeros, zeros + 0.5, zeros, zeros, learning_rate=0.0, step=1)
    rule = settings.mixture_update
    if manager.hook.scalebio_update_mixture(rule=rule, observation=trial, state=None) is None:
        raise ValueError(unknown_rule(rule))
    return manager


def announce(prepared: Prepared, settings: ScaleBiOSettings) -> None:
    """What will be learned, on what; and that eval_loss is not held out where it is not."""
    table = prepared.table
    shares = table.shares("token")
    rows = [
        f"  {name}: {sequences} sequences, {tokens} target tokens ({share:.1%})"
        for name, sequences, tokens, share in zip(table.names, table.sequences, table.tokens, shares, strict=True)
    ]
    LOG.info("scalebio: learning the weights of\n" + "\n".join(rows))
    if prepared.validation is not None and not prepared.validation.held_out:
        LOG.warning(
            "scalebio: the mixture is tuned for the evaluation data, so eval_loss is no longer held out; give "
            "scalebio.validation_datasets to keep it apart"
        )
    if settings.penalty == float("inf"):
        LOG.warning("scalebio: penalty is infinite, the validation data is out of play: a control, nothing is learned")


def announce_applied(
    names: list[str], weights: np.ndarray, source: np.ndarray, drawn: np.ndarray, settings: ScaleBiOSettings
) -> None:
    """What the mixture came to: sequences drawn of each source, and where max_repeats held one back."""
    have, took = (np.bincount(of[of != NO_SOURCE], minlength=len(names)) for of in (source, source[drawn]))
    rows = [
        f"  {name}: weight {weight:.4f}, {b} of {len(drawn)} sequences, each {b / max(a, 1):.2f} times"
        + (" (held at max_repeats)" if b and b == a * settings.max_repeats else "")
        for name, weight, a, b in zip(names, weights, have, took, strict=True)
    ]
    LOG.info(f"scalebio: an ordinary run on the mixture of {settings.apply}\n" + "\n".join(rows))


def prepare_model(cfg: DictDefault, settings: ScaleBiOSettings, model: nn.Module) -> None:
    """Before the optimizer is made: something trains, and in float32; what LISA never trains does not.

    A half-precision parameter loses most of its updates to rounding at fine-tuning learning rates (84% of the weights
    stay as they were at 1e-5 in bf16), and the two sets would differ by their rounding. So what trains is kept in
    float32 in both sets; autocast still computes in the precision of the config.
    """
    if settings.lisa is not None and not settings.lisa.train_embeddings:
        freeze_outside_blocks(model)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError(
            "scalebio: no parameter trains (an adapter that was merged or frozen, or unfrozen_parameters that match "
            "nothing), so there is nothing to learn a mixture with; check adapter:, lora_target_modules: and "
            "unfrozen_parameters:"
        )
    if cfg.deepspeed:
        return  # ZeRO steps a copy in float32 itself
    halves = [parameter for parameter in trainable if parameter.dtype in (torch.bfloat16, torch.float16)]
    for parameter in halves:
        parameter.data = parameter.data.float()
    if halves:
        extra = sum(parameter.numel() for parameter in halves) * 2 / 2**30
        LOG.info(
            f"scalebio: {len(halves)} trainable tensors were loaded in half precision and are kept in float32 "
            f"({extra:.2f} GiB more), so that neither parameter set loses updates to rounding"
        )
    if settings.lisa is not None and cfg.gradient_checkpointing and isinstance(model, PreTrainedModel):
        model.enable_input_require_grads()  # checkpointed blocks need it where the embeddings are frozen


def freeze_outside_blocks(model: nn.Module) -> None:
    """LISA without embeddings: they would be kept in float32 and in the optimizer's groups for nothing."""
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    plan = LayerPlan.of(model, named)
    if any(plan.blocks):
        for name in plan.others:
            named[name].requires_grad_(False)


def connect(
    cfg: DictDefault, settings: ScaleBiOSettings, prepared: Prepared, trainer: Trainer, written: dict[str, Any]
) -> None:
    """Give the finished trainer its mixture, its validation batches and its tags. `written`: the user's config."""
    manager = build_manager_of(settings)
    if prepared.validation is None:
        raise RuntimeError("scalebio: learning without validation data; this is a bug, please report it")
    if trainer.args.max_steps <= settings.warmup_steps:
        raise ValueError(
            f"scalebio.warmup_steps must be below the steps of the run ({trainer.args.max_steps}), "
            f"got {settings.warmup_steps}; lower it or train longer"
        )
    share = torch.from_numpy(prepared.table.shares(settings.loss_unit))
    run = MixtureRun(settings, prepared.table.names, share, manager, trainer.args.max_steps)
    trainable = [plain_name(name) for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
    seed = int(cfg.seed or 0)
    trainer.data_collator = SourceCollator(trainer.data_collator, trainer.processing_class.padding_side)
    trainer.scalebio = Learning(
        run=run,
        engine=engine_of(trainer, switches_layers=settings.lisa is not None),
        validation=_validation_stream(cfg, settings, prepared.validation, trainer),
        layers=_layer_sampling(settings, trainer, trainable, manager, seed),
        trainable=trainable,
        rest=RestStream(prepared.table, prepared.drawable, settings.max_repeats, seed),
        inner_device=_inner_device(settings),
        folder=os.path.join(cfg.output_dir, "scalebio"),
        manager=manager,
        facts=_facts(cfg, settings, prepared),
        next_config=_next_config(written, cfg.output_dir),
    )
    _announce_memory(cfg, trainer, trainer.scalebio)


def _next_config(written: dict[str, Any], output_dir: str) -> str | None:
    try:
        return next_config(written, output_dir)
    except yaml.YAMLError as error:
        LOG.warning(f"scalebio: next.yml will not be written, the config has no form in YAML: {error}")
        return None


def _announce_memory(cfg: DictDefault, trainer: Trainer, learning: Learning) -> None:
    """What the run will hold, counted from its own parameters; activations are what `scalebio estimate` adds."""
    plain = cfg.to_dict()
    layout = layout_of(plain, Path(), learning.engine.world, 2.0 if cfg.bf16 or cfg.fp16 else 4.0)
    found = from_model(trainer.model, plain, layout=layout, inner_on_cpu=learning.inner_device is not None)
    learning.memory = found
    LOG.info("\n".join(summary_line(found, on_gpu=trainer.args.device.type != "cpu")))


def _facts(cfg: DictDefault, settings: ScaleBiOSettings, prepared: Prepared) -> dict[str, Any]:
    return {
        "seed": int(cfg.seed or 0),
        "tokens": dict(zip(prepared.table.names, prepared.table.tokens.tolist(), strict=True)),
        "examples": dict(zip(prepared.table.names, prepared.table.sequences.tolist(), strict=True)),
        "config": {
            "scalebio": settings.model_dump(),
            "datasets": [entry.to_dict() for entry in cfg.datasets],
            "base_model": cfg.base_model,
            "learning_rate": cfg.learning_rate,
        },
        "data": prepared.table.digest,
        "validation": prepared.validation.table.digest if prepared.validation else "",
    }


def _layer_sampling(
    settings: ScaleBiOSettings, trainer: Trainer, trainable: list[str], manager: pluggy.PluginManager, seed: int
) -> LayerSampling | None:
    if settings.lisa is None:
        return None
    plan = LayerPlan.of(trainer.model, trainable)
    return LayerSampling(settings.lisa, plan, manager, seed, type(trainer.model).__name__)


def _inner_device(settings: ScaleBiOSettings) -> torch.device | None:
    return torch.device("cpu") if settings.inner_rests_on_cpu(gpu=torch.cuda.is_available()) else None


def _validation_stream(
    cfg: DictDefault, settings: ScaleBiOSettings, validation: Validation, trainer: Trainer
) -> ValidationStream:
    """Validation batches that look like the training micro-batches: padded or packed, and no pass larger than one."""
    seed, accumulation = int(cfg.seed or 0), int(cfg.gradient_accumulation_steps)
    weights = coefficients(validation.weights, validation.table.shares("token"))
    ranks, collate = trainer.accelerator.num_processes, trainer.data_collator
    if not trainer.args.sample_packing:
        rows = trainer._remove_unused_columns(validation.rows, description="validation")
        per_pass = int(cfg.micro_batch_size)
        size = settings.validation_batch_size or settings.validation_rows(per_pass, accumulation, ranks)
        return ValidationStream(rows, collate, weights, size, min(per_pass, size), seed)
    rows, lengths = _packable(validation.rows, trainer)
    per_pass, capacity = _bins_of_a_pass(cfg, trainer)
    sequences = settings.validation_batch_size
    bins = min(settings.validation_rows(per_pass, accumulation, ranks), -(-int(lengths.sum()) // capacity))
    members = trainer.args.sample_packing_bin_size or capacity
    packing = Packing(capacity, members, None if sequences else bins, sequences)
    return PackedValidationStream(rows, lengths, packing, collate, weights, per_pass, seed)


def _packable(rows: Dataset, trainer: Trainer) -> tuple[Dataset, np.ndarray]:
    """The rows with the columns of the host's packed training rows, and the tokens of each."""
    lengths = sequence_lengths(rows)
    dropped = ["length"] + (["attention_mask"] if trainer.args.sample_packing_drop_attention_mask else [])
    rows = rows.remove_columns([name for name in dropped if name in rows.column_names])
    if "position_ids" not in rows.column_names:
        rows = rows.map(lambda row: {"position_ids": list(range(len(row["input_ids"])))})
    return rows, lengths


def _bins_of_a_pass(cfg: DictDefault, trainer: Trainer) -> tuple[int, int]:
    """Bins of a training micro-batch and the tokens of each: one long one where the attention keeps sequences apart."""
    if trainer.args.multipack_real_batches:
        return int(cfg.micro_batch_size), int(cfg.sequence_len)
    return 1, int(cfg.micro_batch_size) * int(cfg.sequence_len)
