"""`batch_flattening`: the host lays the rows of a micro-batch on end in one, and every token still knows its source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from axolotl.integrations.base import BasePlugin
from transformers import DataCollatorWithFlattening

from scalebio_plugin.data.tags import COLUMN, SEQUENCE, SourceCollator
from tests import host
from tests.runs.test_inert import OUT_OF_PLAY, STOCK


class FlatteningPlugin(BasePlugin):
    """Turns it on where the host would not: it wants a varlen attention, which needs CUDA; sdpa reads the positions."""

    def pre_model_load(self, cfg: Any) -> None:
        cfg.batch_flattening = True


WITH_IT = "tests.data.test_flattening.FlatteningPlugin"


@pytest.mark.parametrize("side", ["right", "left"])
def test_every_token_of_the_one_row_knows_its_source(side: str) -> None:
    features = [
        {"input_ids": [token] * length, "labels": [token] * length, COLUMN: source}
        for token, length, source in [(5, 3, 2), (6, 1, 0), (7, 4, 1)]
    ]
    batch = SourceCollator(DataCollatorWithFlattening(return_tensors="pt"), side)(features)
    assert batch["input_ids"].tolist() == [[5, 5, 5, 6, 7, 7, 7, 7]]
    assert batch[COLUMN].tolist() == [[2, 2, 2, 0, 1, 1, 1, 1]]
    assert batch[SEQUENCE].tolist() == [[0, 0, 0, 1, 2, 2, 2, 2]]


def test_it_is_the_host_where_the_mixture_is_out_of_play(inputs: Path, tmp_path: Path) -> None:
    shapes = []

    def look(trainer: Any, batch: dict[str, Any]) -> None:
        shapes.append((batch["input_ids"].shape[0], "position_ids" in batch, len(batch["labels"].unique()) > 2))

    stock, run = (
        host.train(
            inputs,
            output_dir=str(tmp_path / str(len(plugins))),
            plugins=[*plugins, WITH_IT],
            train_on_inputs=True,
            parameters=True,
            on_batch=look,
            **more,
        )
        for plugins, more in [(STOCK["plugins"], {}), (host.BASE["plugins"], {"scalebio": OUT_OF_PLAY})]
    )
    assert set(shapes) == {(1, True, True)}
    assert len(run.losses) == 6
    assert run.losses == stock.losses
    for ours, theirs in zip(run.model, stock.model, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("sampling", [pytest.param("host", marks=pytest.mark.slow), "mixture"])
def test_it_learns_what_padding_learns(inputs: Path, tmp_path: Path, sampling: str) -> None:
    padded, flat = (
        host.train(
            inputs,
            output_dir=str(tmp_path / str(len(more))),
            plugins=[*host.BASE["plugins"], *more],
            scalebio={"learn": {"steps": 4}, "mixture_learning_rate": 0.1, "sampling": sampling},
            float64=True,
        )
        for more in ([], [WITH_IT])
    )
    assert (padded.weights[3] - 1 / 3).abs().max() > 0.05
    for one, other in zip(padded.weights, flat.weights, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-9)
    assert flat.losses == pytest.approx(padded.losses, rel=1e-9)
