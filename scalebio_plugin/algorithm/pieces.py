"""The losses of the tokens from what an output head reads, without the logits of a whole batch.

Logits are the largest tensor of a step by far: of 4,096 tokens and 128,000 words they take 2 GiB in float32, and their
gradient as much again. A loss of a token needs its own row of them alone. So the head goes over the targets piece by
piece. Positions that predict nothing never reach it.

It goes over them once more in the backward pass (`torch.utils.checkpoint`), where the gradients of a piece are taken
before the next one is computed. Not so where nothing in the head trains: the derivative of a token's loss by what the
head read of it is a row of H, so it is taken at once, from the piece's logits. What the loss is multiplied by later is
multiplied before the head's product where it can be foreseen, as with logits: products in another order round
otherwise, and where a gradient is all but nothing, Adam makes of that 5e-5 in ten steps.

The pieces are one graph: gradients of the head arrive once, as the engines of several processes want them.

Legend: B sequences (rows of a batch), T tokens, H size of a hidden state, V words of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from .bilevel import IGNORED

ENTRIES = 2**24  # of the logits that exist at a time: 64 MiB in float32


@dataclass(frozen=True)
class Pieces:
    """How targets are cut.

    Attributes:
        most: Targets of a piece at most.
        at_least: Number of pieces at least. Where each piece is a collective operation, ranks must agree in it: the
            number that the largest batch needs, which is then that of all.
    """

    most: int
    at_least: int = 1

    @classmethod
    def of(cls, vocabulary: int, tokens: int, *, alike: bool = False) -> Pieces:
        """Pieces whose logits have `ENTRIES` entries at most.

        Args:
            vocabulary: V.
            tokens: Of the largest batch.
            alike: Every batch is cut into equally many.
        """
        most = max(1, ENTRIES // vocabulary)
        return cls(most, -(-tokens // most) if alike else 1)

    def number(self, targets: int) -> int:
        """Pieces that so many targets are cut into."""
        return max(self.at_least, -(-targets // self.most))


def losses_in_pieces(
    head: Callable[[Tensor], Tensor],
    hidden: Tensor,
    labels: Tensor,
    pieces: Pieces,
    foreseen: Tensor | None = None,
) -> Tensor:
    """What `token_losses` gives of `head(hidden)`: (B, T, H), (B, T-1) -> (B, T-1), at least in float32.

    Args:
        head: (1, n, H) -> (1, n, V), position by position, with gradients to `hidden` and to what else it is made of.
            It may be called once more for every piece in the backward pass, with the same random numbers.
        hidden: (B, T, H). The last position of a row predicts nothing.
        labels: (B, T-1), IGNORED where there is no target.
        pieces: How the targets are cut.
        foreseen: (B, T-1), what the derivative by each loss will be in the backward pass. Another is right as well, but
            to rounding.
    """
    target = labels != IGNORED
    later = None if foreseen is None else foreseen[target]
    losses = losses_of_targets(head, hidden[:, :-1][target], labels[target], pieces, later)
    return losses.new_zeros(labels.shape).masked_scatter(target, losses)


def losses_of_targets(
    head: Callable[[Tensor], Tensor], read: Tensor, labels: Tensor, pieces: Pieces, foreseen: Tensor | None = None
) -> Tensor:
    """The same of targets alone: (n, H), (n,), (n,) -> (n,)."""
    number = pieces.number(len(labels))
    if _separable(head, read):
        later = torch.ones(len(labels), device=read.device) if foreseen is None else foreseen
        return _LossesAndDerivatives.apply(head, read, labels, later.where(later != 0, 1.0), number)  # type: ignore[no-untyped-call]
    cut = zip(read.tensor_split(number), labels.tensor_split(number), strict=True)
    losses_of = partial(checkpoint, _losses, head, use_reentrant=False)
    return torch.cat([losses_of(*piece) for piece in cut])


def _losses(head: Callable[[Tensor], Tensor], read: Tensor, labels: Tensor) -> Tensor:
    logits = head(read[None])[0]
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return functional.cross_entropy(precise, labels, reduction="none")


def _separable(head: Callable[[Tensor], Tensor], read: Tensor) -> bool:
    """Whether gradients go to what is read alone; not in float16, which needs the scale of the loss before it rounds.

    The head is asked for no position: whether what it gives has gradients is told by what it is made of.
    """
    device, wanted = read.device.type, torch.is_grad_enabled() and read.requires_grad
    precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else read.dtype
    return wanted and precision != torch.float16 and not head(read.detach()[None, :0]).requires_grad


class _LossesAndDerivatives(torch.autograd.Function):
    """The losses, (n,), each of which keeps its derivative by its own row of what was read, (n, H).

    Times what is `foreseen`, (n,), none of them 0: as the backward pass from logits would multiply.
    """

    @staticmethod
    def forward(
        ctx: Any, head: Callable[[Tensor], Tensor], read: Tensor, labels: Tensor, foreseen: Tensor, number: int
    ) -> Tensor:
        cut = zip(*(of.tensor_split(number) for of in (read, labels, foreseen)), strict=True)
        losses, derivatives = zip(*(_losses_and_derivatives(head, *piece) for piece in cut), strict=True)
        ctx.save_for_backward(foreseen, torch.cat(derivatives))
        return torch.cat(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_losses: Tensor) -> tuple[None, Tensor, None, None, None]:
        foreseen, derivatives = ctx.saved_tensors
        return None, ((by_losses / foreseen)[:, None] * derivatives).to(derivatives.dtype), None, None, None


def _losses_and_derivatives(
    head: Callable[[Tensor], Tensor], read: Tensor, labels: Tensor, foreseen: Tensor
) -> tuple[Tensor, Tensor]:  # (n,), (n, H)
    with torch.enable_grad():
        alone = read.detach().requires_grad_()
        losses = _losses(head, alone, labels)
    with torch.autocast(read.device.type, enabled=False):
        (derivatives,) = torch.autograd.grad(losses, alone, foreseen.to(losses.dtype))
    return losses.detach(), derivatives
