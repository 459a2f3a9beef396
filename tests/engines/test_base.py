"""DDP with layers that switch: gradients are averaged here, whichever parameters each rank's batches reached."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import distributed, nn

from scalebio_plugin.engines.base import Engine
from tests.engines.launch import launch


def average(folder: str) -> None:
    """On every rank: `reached` by both, `expert` by the second alone, `idle` by none, `frozen` not to be trained."""
    distributed.init_process_group("gloo")
    rank, world = distributed.get_rank(), distributed.get_world_size()
    named = {name: nn.Parameter(torch.ones(2)) for name in ("expert", "reached", "idle", "frozen")}
    named["frozen"].requires_grad_(False)
    named["reached"].grad = torch.full((2,), float(rank))
    if rank == 1:
        named["expert"].grad = torch.full((2,), 4.0)
    trainer: Any = SimpleNamespace(accelerator=SimpleNamespace(num_processes=world, process_index=rank, device="cpu"))
    Engine(trainer, switches_layers=True).average_gradients(named)
    torch.save({name: parameter.grad for name, parameter in named.items()}, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_a_parameter_that_one_rank_alone_has_reached_is_averaged_on_all(tmp_path: Path) -> None:
    """An expert of a mixture, whose tokens the other rank has none of: it got the gradient of another parameter."""
    launch(average, str(tmp_path), log=tmp_path / "log.txt")
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found["reached"].tolist() == [0.5, 0.5]
        assert found["expert"].tolist() == [2.0, 2.0]
        assert (found["idle"], found["frozen"]) == (None, None)
