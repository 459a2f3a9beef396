"""LISA (Pan et al., NeurIPS 2024, arXiv 2403.17919): which transformer blocks train in which period.

A draw is a function of (seed, period) alone: the same on every rank, in both parameter sets and after a resume.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn


def find_blocks(module: nn.Module) -> tuple[str, nn.ModuleList]:
    """Path and list of the transformer blocks, found by structure: the list of alike modules that holds most weights.

    Works for any decoder whose blocks stand in one `nn.ModuleList` (Llama, Qwen, Gemma, Mistral, GPT-2, GPT-NeoX, Phi).

    Raises:
        ValueError: No list of at least two modules of one class.
    """
    candidates = [
        (sum(p.numel() for p in child.parameters()), name, child)
        for name, child in module.named_modules()
        if isinstance(child, nn.ModuleList) and len(child) > 1 and len({type(block) for block in child}) == 1
    ]
    if not candidates:
        raise ValueError(f"no list of transformer blocks found in {type(module).__name__}; remove the lisa: block")
    _, path, blocks = max(candidates, key=lambda candidate: candidate[0])
    return path, blocks


def block_of(name: str, path: str) -> int | None:
    """Index of the block, in the list at `path`, that a parameter stands in; None outside of them."""
    head, _, rest = name.partition(path + ".")
    return int(rest.split(".", 1)[0]) if head == "" and rest else None


def draw_layers(layers: int, active: int, seed: int, period: int) -> tuple[int, ...]:
    """Indices of the blocks that train in a period, ascending, drawn uniformly without replacement.

    Args:
        layers: Blocks of the model.
        active: How many train at a time; all if there are fewer.
        seed: Of the run.
        period: Number of the period, from 0.
    """
    digest = hashlib.sha256(f"lisa:{seed}:{period}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return tuple(sorted(torch.randperm(layers, generator=generator)[:active].tolist()))


@dataclass(frozen=True)
class LayerPlan:
    """Which trainable parameters belong to which block.

    Attributes:
        blocks: Names of the trainable parameters of each block.
        others: Names of the trainable parameters outside the blocks.
    """

    blocks: tuple[tuple[str, ...], ...]
    others: tuple[str, ...]

    @classmethod
    def of(cls, module: nn.Module, trainable: Iterable[str]) -> LayerPlan:
        """Sort the names of `trainable` parameters by the blocks of `module`.

        Raises:
            ValueError: `find_blocks` finds none.
        """
        path, blocks = find_blocks(module)
        members: list[list[str]] = [[] for _ in blocks]
        others: list[str] = []
        for name in trainable:
            index = block_of(name, path)
            (others if index is None else members[index]).append(name)
        return cls(tuple(tuple(names) for names in members), tuple(others))

    def active(self, layers: Iterable[int], *, train_others: bool) -> set[str]:
        """Names of the parameters that train while `layers` are active."""
        names = {name for layer in layers for name in self.blocks[layer]}
        return names | set(self.others) if train_others else names
