"""From the host's config and its finished trainer to the parts of a run that learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from axolotl.utils.dict import DictDefault
from axolotl.utils.logging import get_logger
from pluggy import PluginManager

from ..algorithm.lisa import LayerPlan
from ..algorithm.pieces import Pieces
from ..config.block import ScaleBiOSettings
from ..config.fused_loss import fused_loss_of
from ..data.after_learning import ResampledStream
from ..data.packing import MicroBatches
from ..data.planned_stream import PlannedStream
from ..data.sources import Prepared
from ..data.step_plan import Draw
from ..data.table import SourceTable, sequence_lengths
from ..data.tags import SourceCollator
from ..data.validation import ValidationStream, stream_of
from ..data.validation_data import Validation
from ..engines import engine_of
from ..engines.base import Engine, plain_name
from ..estimate.estimator import from_model
from ..estimate.layout import layout_of
from ..estimate.lines import summary_line
from ..hooks.spec import RunFacts
from ..report.folder import RunFolder
from .callbacks import KeptCallback, ScaleBiOCallback
from .early import refuse_too_few_steps
from .head_losses import FromLogits, InHead, output_head
from .layer_sampling import LayerSampling
from .learning import Learning
from .mixture_run import MixtureRun
from .objective import Objective
from .probe_plan import ProbePlan
from .provenance import next_config_of, provenance_of
from .same_run import identity_of
from .trainer import ScaleBiOTrainer
from .watch import Watch

LOG = get_logger("axolotl.scalebio")


def connect(
    cfg: DictDefault,
    settings: ScaleBiOSettings,
    prepared: Prepared,
    trainer: ScaleBiOTrainer,
    manager: PluginManager,
    written: Mapping[str, Any],
    version: str,
) -> None:
    """Give the finished trainer its mixture, its validation batches and its tags.

    Args:
        written: The config as its user wrote it.
        version: Of the plugin.
    """
    table, steps, seed = prepared.table, int(trainer.args.max_steps), int(cfg.seed or 0)
    refuse_too_few_steps(settings, steps)
    if prepared.validation is None:
        raise RuntimeError("scalebio: learning without validation data; this is a bug, please report it")
    trainable = [plain_name(name) for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
    layers = _layer_sampling(settings, trainer, trainable, manager, seed)
    trainer.data_collator = SourceCollator(trainer.data_collator, trainer.processing_class.padding_side)
    run, like = _mixture_run(settings, table, prepared.validation, manager, steps), _micro_batches(trainer, cfg)
    counts = tuple(table.tokens.tolist()), tuple(table.sequences.tolist())
    facts = RunFacts(tuple(table.names), *counts, settings.model_dump(), steps, seed)
    trainer.test_sets = prepared.test_sets
    identity = identity_of(cfg, settings, prepared, prepared.validation, trainer, run.last_step, like)
    engine = engine_of(trainer, switches_layers=layers is not None)
    learning = trainer.learning = Learning(
        run=run,
        engine=engine,
        losses=_losses(cfg, trainer, engine),
        validation=_validation_stream(settings, prepared.validation, trainer, like, seed),
        rows=len(prepared.drawable),
        stream=_stream(run, prepared, trainer, like, seed, steps),
        layers=layers,
        trainable=trainable,
        inner_device=torch.device("cpu") if settings.inner_rests_on_cpu(gpu=torch.cuda.is_available()) else None,
        manager=manager,
        facts=facts,
        folder=RunFolder(
            path=Path(cfg.output_dir) / "scalebio",
            names=table.names,
            provenance=provenance_of(cfg, settings, prepared, prepared.validation, facts, identity, written, version),
            next_config=next_config_of(written, cfg.output_dir),
        ),
        probes=_probes(
            settings, trainer, run, seed, shared_rows=like.capacity is not None or bool(cfg.batch_flattening)
        ),
        watch=Watch(run.names, run.ranges),
        identity=identity,
    )
    trainer.add_callback(ScaleBiOCallback(trainer, learning))
    trainer.callback_handler.callbacks.insert(0, KeptCallback(trainer, learning))  # others may save the model
    _announce_memory(cfg, trainer, learning)


def _mixture_run(
    settings: ScaleBiOSettings, table: SourceTable, validation: Validation, manager: PluginManager, steps: int
) -> MixtureRun:
    weights = torch.from_numpy(validation.weights)
    objective = Objective(validation.table.names, weights, worst=settings.objective == "worst")
    share, most = (torch.from_numpy(of) for of in (table.shares(settings.loss_unit), table.most(settings.max_repeats)))
    return MixtureRun(settings, table.names, share, manager, steps, objective, most)


def _micro_batches(trainer: ScaleBiOTrainer, cfg: DictDefault) -> MicroBatches:
    args = trainer.args
    rows, length = int(cfg.micro_batch_size), int(cfg.sequence_len)
    accumulation, ranks = int(cfg.gradient_accumulation_steps), int(trainer.accelerator.num_processes)
    if not args.sample_packing:
        return MicroBatches(rows, accumulation, ranks)
    if not args.multipack_real_batches:  # one long row, where the attention keeps sequences apart
        rows, length = 1, rows * length
    members = args.sample_packing_bin_size or length
    masked = not args.sample_packing_drop_attention_mask
    return MicroBatches(rows, accumulation, ranks, capacity=length, members=members, masked=masked)


def _losses(cfg: DictDefault, trainer: ScaleBiOTrainer, engine: Engine) -> FromLogits | InHead:
    key = fused_loss_of(cfg)
    if key is None:
        return FromLogits()
    head = output_head(trainer.model, key)
    engine.before_passes_in(head)
    vocabulary = int(trainer.model.config.get_text_config().vocab_size)
    tokens = int(cfg.micro_batch_size) * int(cfg.sequence_len)
    return InHead(key, Pieces.of(vocabulary, tokens, alike=engine.sharded and any(True for _ in head.children())))


def _validation_stream(
    settings: ScaleBiOSettings, validation: Validation, trainer: ScaleBiOTrainer, like: MicroBatches, seed: int
) -> ValidationStream:
    if like.capacity is None:
        kept = trainer._remove_unused_columns(validation.rows, description="validation")
        validation = replace(validation, rows=kept)
    return stream_of(validation, settings, like, trainer.data_collator, seed)


def _layer_sampling(
    settings: ScaleBiOSettings, trainer: ScaleBiOTrainer, trainable: Sequence[str], manager: PluginManager, seed: int
) -> LayerSampling | None:
    if settings.lisa is None:
        return None
    plan = LayerPlan.of(trainer.model, trainable)
    return LayerSampling(settings.lisa, plan, manager, seed, type(trainer.model).__name__)


def _stream(
    run: MixtureRun, prepared: Prepared, trainer: ScaleBiOTrainer, like: MicroBatches, seed: int, steps: int
) -> PlannedStream | ResampledStream:
    """Rows drawn by the weights: from the start, or in the host's order until learning is over."""
    table, settings = prepared.table, run.settings
    if settings.sampling == "host":
        size = like.rows * like.ranks
        return ResampledStream(table, prepared.drawable, settings.max_repeats, seed, trainer.loader_over, size)
    mean_units = table.units(settings.loss_unit) / table.sequences
    lengths = None if like.capacity is None else sequence_lengths(prepared.rows)
    draw = Draw(prepared.drawable, mean_units, settings.max_repeats, seed, like, lengths)

    def ends() -> tuple[int, int, int]:
        return settings.warmup_steps, run.learn_until, steps

    return PlannedStream(draw, table, ends, trainer.micro_batches, trainer.loader_of)


def _probes(
    settings: ScaleBiOSettings, trainer: ScaleBiOTrainer, run: MixtureRun, seed: int, *, shared_rows: bool
) -> ProbePlan:
    sources, sets = len(run.names), len(run.objective.names)
    if trainer.is_deepspeed_enabled:
        if sets > 1 and settings.probe_interval is None:
            LOG.info(
                "scalebio: which source helps which validation set is not measured: DeepSpeed ZeRO keeps gradients to "
                "itself"
            )
        return ProbePlan(0, settings.warmup_steps, settings.update_interval, seed, False)
    compiled = bool(trainer.args.torch_compile)
    return ProbePlan.of(settings, seed, sources=sources, sets=sets, shared_rows=shared_rows, compiled=compiled)


def _announce_memory(cfg: DictDefault, trainer: ScaleBiOTrainer, learning: Learning) -> None:
    """What the run will hold, counted from its own parameters; activations are what `scalebio estimate` adds."""
    plain = cfg.to_dict()
    compute = 2.0 if cfg.bf16 or cfg.bfloat16 or cfg.fp16 else 4.0
    layout = layout_of(plain, learning.engine.world, compute)
    found = from_model(trainer.model, plain, layout=layout, inner_on_cpu=learning.inner_device is not None)
    LOG.info("\n".join(summary_line(found, on_gpu=trainer.args.device.type != "cpu")))
