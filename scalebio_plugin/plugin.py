"""The host's plugin socket: short methods that delegate."""

from __future__ import annotations

import copy
import sys
from typing import Any

import numpy as np
import torch
from axolotl.common.datasets import TrainDatasetMeta
from axolotl.integrations.base import BasePlugin
from axolotl.utils.dict import DictDefault
from axolotl.utils.logging import get_logger
from torch import nn
from transformers import Trainer, TrainerCallback, set_seed

from .config import raw as raw_config
from .config.block import ScaleBiOSettings
from .data.sources import COLUMN, Prepared, drawn_per_lap, meta_of, prepare, resample
from .report.summary import read_mixture
from .training import connect as wiring
from .training.connect import settings_of
from .training.mixture_run import refuse_other_sources

LOG = get_logger("axolotl.scalebio")


class ScaleBiOPlugin(BasePlugin):
    """Learns how much each of `datasets:` counts, in the run that the config describes."""

    def __init__(self) -> None:
        super().__init__()
        self.prepared: Prepared | None = None
        self.learning = False
        self.written: dict[str, Any] = {}  # the config as its user wrote it

    def register(self, cfg: dict[str, Any]) -> None:
        self.written = copy.deepcopy(cfg.to_dict() if isinstance(cfg, DictDefault) else dict(cfg))
        raw_config.refuse_two_names(cfg)
        raw_config.refuse_lost_arguments(cfg, sys.argv[1:])
        raw_config.take_over_lisa_keys(cfg)
        raw_config.give_seed(cfg)
        raw_config.validate_validation_datasets(cfg)

    def get_input_args(self) -> str:
        return "scalebio_plugin.config.block.ScaleBiOArgs"

    def load_datasets(self, cfg: DictDefault, preprocess: bool = False) -> TrainDatasetMeta:
        settings = settings_of(cfg)
        if settings.apply is not None:
            return self._apply(cfg, settings, preprocess)
        wiring.build_manager_of(settings)  # a rule or extension that does not exist is an error before any loading
        self.prepared = prepare(cfg, settings)
        self.learning = not preprocess
        wiring.announce(self.prepared, settings)
        return meta_of(cfg, self.prepared.rows, self.prepared.evaluation, preprocess)

    def _apply(self, cfg: DictDefault, settings: ScaleBiOSettings, preprocess: bool) -> TrainDatasetMeta:
        """An ordinary run: the rows of the training set drawn by the weights, everything else the host's."""
        document = read_mixture(str(settings.apply))
        prepared = prepare(cfg, settings)
        names, source = prepared.table.names, prepared.drawable
        refuse_other_sources(sorted(document["weights"]), sorted(names), str(settings.apply))
        weights = np.array([document["weights"][name] for name in names])
        fractions = prepared.table.sampling(weights)
        drawn = resample(source, fractions, drawn_per_lap(source), settings.max_repeats, int(cfg.seed or 0))
        wiring.announce_applied(names, weights, source, drawn, settings)
        # The host counts on the plain column, so the indices are written out.
        rows = prepared.rows.select(drawn).remove_columns(COLUMN).flatten_indices()
        return meta_of(cfg, rows, prepared.evaluation, preprocess)

    def get_trainer_cls(self, cfg: DictDefault) -> type[Trainer] | None:
        if settings_of(cfg).apply is not None:
            return None
        from .training.trainer import ScaleBiOTrainer

        return ScaleBiOTrainer

    def get_training_args(self, cfg: DictDefault) -> dict[str, Any]:
        """bf16 on a machine without accelerator: the host asks to say so."""
        return {"use_cpu": True} if cfg.bf16 and not torch.cuda.is_available() else {}

    def pre_model_load(self, cfg: DictDefault) -> None:
        """The host seeds in its trainer, after an adapter has started at random: the same seed gave other runs."""
        set_seed(int(cfg.seed or 0))

    def post_model_load(self, cfg: DictDefault, model: nn.Module) -> None:
        if settings_of(cfg).apply is None:
            wiring.prepare_model(cfg, settings_of(cfg), model)

    def add_callbacks_post_trainer(self, cfg: DictDefault, trainer: Trainer) -> list[TrainerCallback]:
        if not self.learning:
            return []
        from .training.callbacks import ScaleBiOCallback

        return [ScaleBiOCallback(trainer)]

    def post_trainer_create(self, cfg: DictDefault, trainer: Trainer) -> None:
        if self.learning and self.prepared is not None:
            wiring.connect(cfg, settings_of(cfg), self.prepared, trainer, self.written)
