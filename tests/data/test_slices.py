"""What context parallelism would take of the tags: cut as the host cuts a batch, targets keep their sources."""

from __future__ import annotations

from dataclasses import fields
from importlib import metadata

import pytest
import torch
from torch import Tensor

from scalebio_plugin.algorithm.bilevel import IGNORED, NO_SOURCE, Targets, sum_by_source, targets_of, token_losses

if not metadata.version("axolotl").startswith("0.19."):
    pytest.skip("in Axolotl 0.21 another library cuts", allow_module_level=True)
from axolotl.utils.ctx_managers import sequence_parallel as host  # noqa: E402

ROWS, LENGTH, VOCABULARY, SOURCES = 2, 13, 7, 3


def batch() -> tuple[Tensor, Targets]:
    """Logits, and targets of two packed sequences a row and padding."""
    torch.manual_seed(1)
    labels = torch.randint(VOCABULARY, (ROWS, LENGTH))
    labels[:, :2] = labels[:, 7:9] = IGNORED
    source, sequence = torch.full((ROWS, LENGTH), 2), torch.ones(ROWS, LENGTH, dtype=torch.long)
    source[0, :7], source[1, :7], source[:, 12:] = 0, 1, NO_SOURCE
    sequence[:, :7] = 0
    return torch.randn(ROWS, LENGTH, VOCABULARY), targets_of(labels, source, sequence, per_sequence=True)


def sliced(logits: Tensor, targets: Targets, rank: int, ranks: int) -> tuple[Tensor, Targets]:
    """Of one rank, by the host's own function; targets are shifted before they are cut."""
    shifted = {field.name: getattr(targets, field.name) for field in fields(targets)}
    padded = {"labels": IGNORED, "units": 0, "source": 0}
    whole = {name: torch.nn.functional.pad(shifted[name], (0, 1), value=padded[name]) for name in shifted}
    given = {"input_ids": torch.ones(ROWS, LENGTH, dtype=torch.long), "logits": logits, **whole}
    cut, _, _ = host.apply_sequence_parallelism(given, rank, ranks, 1, None)
    return cut["logits"], Targets(**{name: cut[name] for name in shifted})


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_losses_and_units_of_every_source_are_summed_over_the_slices(ranks: int) -> None:
    logits, targets = batch()
    units = targets.counts(SOURCES)
    losses = sum_by_source(targets.units * token_losses(logits, targets.labels), targets.source, SOURCES)
    assert (units > 0).all()
    for rank in range(ranks):
        part, of = sliced(logits, targets, rank, ranks)
        every = torch.nn.functional.cross_entropy(part.flatten(0, 1), of.labels.flatten(), reduction="none")
        losses = losses - sum_by_source(of.units * every.view_as(of.labels), of.source, SOURCES)
        units = units - of.counts(SOURCES)
    torch.testing.assert_close(units, torch.zeros_like(units), atol=1e-12, rtol=0)
    torch.testing.assert_close(losses, torch.zeros_like(losses), atol=1e-6, rtol=0)
