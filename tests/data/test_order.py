"""What the host's orders of the rows do to the share of a source in a step, which equation (1) takes as unbiased."""

from __future__ import annotations

import gc
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from axolotl.core.trainers.base import AxolotlTrainer
from axolotl.core.training_args import AxolotlTrainingArguments
from datasets import Dataset

from scalebio_plugin.config.refusals import problems_of
from tests.config.test_refusals import config

# Two sources with equally many tokens: many short rows, few long ones.
LENGTHS, SOURCE = np.repeat([10, 30], [960, 320]), np.repeat([0, 1], [960, 320])


@pytest.fixture(scope="module", autouse=True)
def _fast() -> None:
    gc.collect()
    gc.freeze()  # as in tests/host.py: the host's sampler asks for a collection every time it packs


@cache
def merged_rows(seed: int | None) -> tuple[np.ndarray, Dataset]:
    """Shuffled by the seed, or one source after the other: what stands where, and the host's dataset of it."""
    merged = np.arange(len(LENGTHS))
    if seed is not None:
        merged = np.random.default_rng(seed).permutation(merged)
    return merged, Dataset.from_dict({"input_ids": [[0] * n for n in LENGTHS[merged]], "length": LENGTHS[merged]})


def batches(seed: int, keys: dict[str, Any]) -> list[np.ndarray]:
    """Rows of every batch of an epoch, as the host's trainer draws them."""
    torch.manual_seed(seed)
    merged, rows = merged_rows(seed if keys.get("shuffle_merged_datasets", True) else None)
    trainer = AxolotlTrainer.__new__(AxolotlTrainer)
    trainer.train_dataset, trainer.processing_class = rows, None
    packed = keys.get("sample_packing", False)
    names = ("curriculum_sampling", "sample_packing", "sample_packing_sequentially", "sample_packing_group_size")
    trainer.args = AxolotlTrainingArguments(
        output_dir="unused",
        use_cpu=True,
        report_to=[],
        per_device_train_batch_size=1 if packed else 32,
        max_seq_length=512,
        dataset_num_proc=1,
        train_sampling_strategy="group_by_length" if keys.get("group_by_length") else "random",
        **{name: keys[name] for name in names if name in keys},
    )
    trainer._train_batch_size = trainer.args.train_batch_size
    trainer.state = SimpleNamespace(train_batch_size=None)
    order = list(trainer._get_train_sampler(rows))
    if packed:
        return [merged[np.concatenate(batch)] for batch in order]
    return [merged[order[i : i + 32]] for i in range(0, len(order), 32)]


def share(keys: dict[str, Any]) -> tuple[float, float]:
    """Mean of n_0 / n over the steps of eight epochs, and over their first quarters."""
    parts = []
    for seed in range(8):
        tokens = [np.bincount(SOURCE[b], weights=LENGTHS[b], minlength=2) for b in batches(seed, keys)]
        parts.append([float(of[0] / of.sum()) for of in tokens])
    quarters = [part[: len(part) // 4] for part in parts]
    return float(np.mean(np.concatenate(parts))), float(np.mean(np.concatenate(quarters)))


PACKED = {"sample_packing": True}


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"shuffle_merged_datasets": False},
        {"curriculum_sampling": True},
        PACKED,
        pytest.param({**PACKED, "shuffle_merged_datasets": False}, marks=pytest.mark.slow),
        {**PACKED, "sample_packing_sequentially": True},
        pytest.param({**PACKED, "sample_packing_group_size": 100}, marks=pytest.mark.slow),
        pytest.param({**PACKED, "curriculum_sampling": True}, marks=pytest.mark.slow),
        {**PACKED, "curriculum_sampling": True, "sample_packing_sequentially": True},
        {**PACKED, "group_by_length": True},
    ],
    ids=str,
)
def test_an_order_that_is_accepted_gives_every_source_its_share_in_every_part_of_the_run(keys: dict[str, Any]) -> None:
    assert problems_of(config(keys)) == []
    for part in share(keys):
        assert part == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(
    "keys",
    [
        {"group_by_length": True},
        {"curriculum_sampling": True, "shuffle_merged_datasets": False},
        {**PACKED, "curriculum_sampling": True, "shuffle_merged_datasets": False},
    ],
    ids=str,
)
def test_an_order_that_is_refused_does_not(keys: dict[str, Any]) -> None:
    assert len(problems_of({**config(keys), "scalebio": {**config(keys)["scalebio"], "sampling": "host"}})) == 1
    assert problems_of(config(keys)) == []  # whose rows are drawn by source
    assert max(abs(part - 0.5) for part in share(keys)) > 0.1
