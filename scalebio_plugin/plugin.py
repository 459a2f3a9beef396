"""The host's plugin socket: short methods that delegate."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pluggy
import torch
from axolotl.common.datasets import TrainDatasetMeta
from axolotl.integrations.base import BasePlugin, PluginManager
from axolotl.utils.dict import DictDefault
from axolotl.utils.logging import get_logger
from torch import nn
from transformers import Trainer, set_seed

from . import __version__, errors
from .config import raw
from .config.block import ScaleBiOSettings, settings_of
from .data.applied import applied_rows, refuse_other_data
from .data.entries import validate_validation_datasets
from .data.sources import Prepared, announce, meta_of, prepare
from .hooks.manager import manager_of, refuse_unanswered
from .report.mixture_file import read_mixture

LOG = get_logger("axolotl.scalebio")


class ScaleBiOPlugin(BasePlugin):
    """Learns how much each of `datasets:` counts, in the run that the config describes."""

    def __init__(self) -> None:
        super().__init__()
        self.prepared: Prepared | None = None  # of a run that learns
        self.manager: pluggy.PluginManager | None = None  # of the same
        self.written: dict[str, Any] = {}  # the config as its user wrote it

    def register(self, cfg: dict[str, Any]) -> None:
        errors.install()  # where no path file is read
        self.written = copy.deepcopy(cfg.to_dict() if isinstance(cfg, DictDefault) else dict(cfg))
        raw.refuse_shapes(cfg)
        raw.refuse_two_names(cfg)
        raw.refuse_lost_arguments(cfg, sys.argv[1:])
        for changed in (raw.take_over_lisa_keys(cfg), raw.give_seed(cfg)):
            if changed is not None:
                LOG.info(changed)
        validate_validation_datasets(cfg)

    def get_input_args(self) -> str:
        return "scalebio_plugin.config.block.ScaleBiOArgs"

    def load_datasets(self, cfg: DictDefault, preprocess: bool = False) -> TrainDatasetMeta:
        from .training import early, same_run

        settings = _settings(cfg)
        if settings.apply is not None:  # an ordinary run, on rows drawn by the weights
            learned = _learned(settings.apply)
            prepared = prepare(cfg, settings)
            refuse_other_data(prepared, learned, settings, str(cfg.base_model))
            rows = applied_rows(prepared, learned["weights"], settings, int(cfg.seed or 0))
        else:
            self._refuse_other_trainers(cfg)
            self.manager = manager_of(settings.mixture_update, settings.extensions)  # before any loading
            taken = None if preprocess else early.checkpoint_to_go_on_from(cfg)
            early.refuse_more_layers_than_there_are(cfg, settings)
            prepared = self.prepared = prepare(cfg, settings)
            if taken is not None and prepared.validation is not None:
                here = same_run.identity_before_the_model(cfg, settings, prepared, prepared.validation)
                same_run.refuse_another_run(taken, here, settings.on_mismatch, aloud=False)
            refuse_unanswered(self.manager, settings.mixture_update, len(prepared.table.names))
            announce(prepared, settings)
            rows = prepared.rows
        meta = meta_of(cfg, rows, prepared.evaluation, preprocess)
        if settings.apply is None and not preprocess:
            early.refuse_too_few_steps(settings, int(cfg.max_steps or meta.total_num_steps))
        return meta

    def _refuse_other_trainers(self, cfg: DictDefault) -> None:
        """Of the trainers that plugins bring the host takes the first."""
        for name, plugin in PluginManager.get_instance().plugins.items():
            trainer = None if isinstance(plugin, ScaleBiOPlugin) else plugin.get_trainer_cls(cfg)
            if trainer is not None:
                raise ValueError(
                    f"scalebio: plugins: {name} gives the run a trainer of its own ({trainer.__name__}), and the host "
                    f"takes one; remove {name} or scalebio"
                )

    def get_trainer_cls(self, cfg: DictDefault) -> type[Trainer] | None:
        if _settings(cfg).apply is not None:
            return None
        from .training.trainer import ScaleBiOTrainer

        return ScaleBiOTrainer

    def get_training_args(self, cfg: DictDefault) -> dict[str, Any]:
        """bf16 on a machine without accelerator: the host asks to say so."""
        return {"use_cpu": True} if (cfg.bf16 or cfg.bfloat16) and not torch.cuda.is_available() else {}

    def pre_model_load(self, cfg: DictDefault) -> None:
        """The host seeds in its trainer, after an adapter has started at random: the same seed gave other runs."""
        set_seed(int(cfg.seed or 0))

    def post_model_load(self, cfg: DictDefault, model: nn.Module) -> None:
        from .training.prepare_model import prepare_model

        if _settings(cfg).apply is None:
            prepare_model(cfg, _settings(cfg), model)

    def post_trainer_create(self, cfg: DictDefault, trainer: Trainer) -> None:
        if self.prepared is not None and self.manager is not None:
            from .training.connect import connect

            connect(cfg, _settings(cfg), self.prepared, trainer, self.manager, self.written, __version__)


def _learned(path: str) -> dict[str, Any]:
    try:
        return read_mixture(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"scalebio.apply: {error}") from error


def _settings(cfg: DictDefault) -> ScaleBiOSettings:
    return settings_of(cfg.to_dict())
