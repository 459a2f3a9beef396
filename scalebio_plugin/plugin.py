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
from datasets import Dataset
from torch import nn
from transformers import Trainer, TrainerCallback, set_seed

from . import raw_config, wiring
from .args import ScaleBiOSettings
from .report import read_mixture
from .run import refuse_other_sources
from .sources import COLUMN, Prepared, prepare, resample
from .wiring import settings_of

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
        raw_config.validate_validation_datasets(cfg)

    def get_input_args(self) -> str:
        return "scalebio_plugin.args.ScaleBiOArgs"

    def load_datasets(self, cfg: DictDefault, preprocess: bool = False) -> TrainDatasetMeta:
        settings = settings_of(cfg)
        if settings.apply is not None:
            return self._apply(cfg, settings, preprocess)
        wiring.build_manager_of(settings)  # a rule or extension that does not exist is an error before any loading
        self.prepared = prepare(cfg, settings, preprocess)
        self.learning = not preprocess
        wiring.announce(self.prepared, settings)
        return self.prepared.meta

    def _apply(self, cfg: DictDefault, settings: ScaleBiOSettings, preprocess: bool) -> TrainDatasetMeta:
        """An ordinary run: the rows of the training set drawn by the weights, everything else the host's."""
        document = read_mixture(str(settings.apply))
        prepared = prepare(cfg, settings, preprocess)
        names = prepared.table.names
        refuse_other_sources(sorted(document["weights"]), sorted(names), str(settings.apply))
        weights = np.array([document["weights"][name] for name in names])
        rows: Dataset = prepared.meta.train_dataset
        source = np.asarray(rows[COLUMN])
        drawn = resample(source, prepared.table.sampling(weights), len(rows), settings.max_repeats, int(cfg.seed or 0))
        wiring.announce_applied(names, weights, source, drawn, settings)
        return wiring.ordinary_run(rows.select(drawn).remove_columns(COLUMN), prepared.meta, cfg, preprocess)

    def get_trainer_cls(self, cfg: DictDefault) -> type[Trainer] | None:
        if settings_of(cfg).apply is not None:
            return None
        from .trainer import ScaleBiOTrainer

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
        from .callbacks import ScaleBiOCallback

        return [ScaleBiOCallback(trainer)]

    def post_trainer_create(self, cfg: DictDefault, trainer: Trainer) -> None:
        if self.learning and self.prepared is not None:
            wiring.connect(cfg, settings_of(cfg), self.prepared, trainer, self.written)
