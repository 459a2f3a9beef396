"""Batches after learning: an ordinary run whose sampling follows the weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate import skip_first_batches
from axolotl.utils.logging import get_logger
from torch.utils.data import SequentialSampler

from .sources import SourceTable, drawn_per_lap, resample

if TYPE_CHECKING:
    from ..training.mixture_run import MixtureRun
    from ..training.trainer import ScaleBiOTrainer

LOG = get_logger("axolotl.scalebio")


class RestStream:
    """Laps over resampled rows, through the host's own data loader (packing, workers, ranks).

    A lap holds as many rows as the training set has with a target; lap n is a function of (weights, seed, n), so that
    a resumed run goes on where it was with two numbers saved.

    Attributes:
        lap, batch: Position: the lap, and the micro-batches taken from it.
    """

    def __init__(self, table: SourceTable, drawable: np.ndarray, max_repeats: int, seed: int):
        self.table = table
        self.drawable = drawable
        self.max_repeats = max_repeats
        self.seed = seed
        self.lap = 0
        self.batch = 0
        self._iterator: Iterator[dict[str, Any]] | None = None

    def batches(self, trainer: ScaleBiOTrainer, run: MixtureRun) -> Iterator[dict[str, Any]]:
        """Endless micro-batches, from the position on. The same iterator on every call."""
        if self._iterator is None:
            self._iterator = self._laps(trainer, run)
        return self._iterator

    def _laps(self, trainer: ScaleBiOTrainer, run: MixtureRun) -> Iterator[dict[str, Any]]:
        fractions = self.table.sampling(run.weights_S.numpy())
        LOG.info(
            "scalebio: learning is over, λ rests; sequences are now drawn by these fractions: "
            + ", ".join(f"{name} {part:.3f}" for name, part in zip(run.names, fractions, strict=True))
        )
        while True:
            loader = self._loader(trainer, fractions)
            if self.batch:
                loader = skip_first_batches(loader, self.batch)
            for batch in loader:
                self.batch += 1
                yield batch
            if self.batch == 0:
                raise ValueError(
                    "scalebio: the sources that have a weight are too small for one batch after learning; raise "
                    "scalebio.max_repeats or lower micro_batch_size"
                )
            self.lap, self.batch = self.lap + 1, 0

    def _loader(self, trainer: ScaleBiOTrainer, fractions: np.ndarray) -> Any:
        dataset = trainer.train_dataset
        if len(dataset) != len(self.drawable):
            raise RuntimeError("scalebio: the training set was changed after it was counted; please report this bug")
        seed = self.seed + 1000003 * (self.lap + 1)
        rows = resample(self.drawable, fractions, drawn_per_lap(self.drawable), self.max_repeats, seed)

        def sampler(lap_rows: Any) -> Any:
            sequential = SequentialSampler(lap_rows)
            if trainer.args.sample_packing:
                return trainer._create_multipack_sampler(sequential, lap_rows)
            return sequential

        return trainer._get_dataloader(
            dataset=dataset.select(rows),
            description="Training",
            batch_size=trainer._train_batch_size,
            sampler_fn=sampler,
            is_training=True,
        )
