"""Losses from what a head reads, piece by piece: those of the logits, and never the logits of a batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from scalebio_plugin.algorithm.bilevel import IGNORED, token_losses
from scalebio_plugin.algorithm.pieces import ENTRIES, Pieces, losses_in_pieces

ROWS, LENGTH, HIDDEN, VOCABULARY = 3, 9, 5, 11


class Head(nn.Module):
    """Notes how many positions it is asked for."""

    def __init__(self, dtype: torch.dtype = torch.float64, dropout: float = 0.0):
        super().__init__()
        self.linear, self.dropout = nn.Linear(HIDDEN, VOCABULARY, dtype=dtype), nn.Dropout(dropout)
        self.asked: list[int] = []

    def forward(self, hidden: Tensor) -> Tensor:
        self.asked.append(hidden.shape[:-1].numel())
        return self.linear(self.dropout(hidden))


def batch(dtype: torch.dtype = torch.float64, part: float = 0.6) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, labels of which a part is targets, and a weight for each loss."""
    torch.manual_seed(1)
    hidden = torch.randn(ROWS, LENGTH, HIDDEN, dtype=dtype, requires_grad=True)
    labels = torch.randint(VOCABULARY, (ROWS, LENGTH - 1))
    return hidden, labels.masked_fill(torch.rand(labels.shape) >= part, IGNORED), torch.randn(labels.shape)


def gradients(losses: Tensor, weight: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad((losses * weight.to(losses.dtype)).sum(), of)


@pytest.mark.parametrize("pieces", [Pieces(1), Pieces(4), Pieces(1000), Pieces(1000, 7), Pieces(1000, 40)], ids=str)
def test_losses_and_gradients_are_those_of_the_logits(pieces: Pieces) -> None:
    head, (hidden, labels, weight) = Head(), batch()
    whole, cut = token_losses(head(hidden), labels), losses_in_pieces(head, hidden, labels, pieces)
    torch.testing.assert_close(cut, whole, rtol=1e-12, atol=0)
    for ours, theirs in zip(*(gradients(of, weight, hidden, *head.parameters()) for of in (cut, whole)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_the_head_is_asked_for_targets_alone_and_a_piece_at_a_time() -> None:
    head, (hidden, labels, weight) = Head(), batch()
    targets = int((labels != IGNORED).sum())
    losses = losses_in_pieces(head, hidden, labels, Pieces(4))
    assert max(head.asked) <= 4
    assert sum(head.asked) == targets
    gradients(losses, weight, hidden)
    assert sum(head.asked) == 2 * targets, "each piece once more, backward"


@pytest.mark.parametrize("pieces", [Pieces(1), Pieces(4), Pieces(1000, 40)], ids=str)
def test_a_head_that_does_not_train_is_asked_once(pieces: Pieces) -> None:
    head, (hidden, labels, weight) = Head().requires_grad_(False), batch()
    losses = losses_in_pieces(head, hidden, labels, pieces)
    ours, theirs = (gradients(of, weight, hidden) for of in (losses, token_losses(head(hidden), labels)))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    assert sum(head.asked) == int((labels != IGNORED).sum()) + ROWS * LENGTH, "of the pieces, and of the whole"


@pytest.mark.parametrize(("dtype", "times"), [(torch.bfloat16, 1), (torch.float32, 1), (torch.float16, 2)])
def test_in_float16_it_is_asked_twice(dtype: torch.dtype, times: int) -> None:
    head, (hidden, labels, weight) = Head(dtype).requires_grad_(False), batch(dtype)
    gradients(losses_in_pieces(head, hidden, labels, Pieces(4)), weight, hidden)
    assert sum(head.asked) == times * int((labels != IGNORED).sum())


def test_asked_once_and_foreseen_its_gradients_have_the_bits_of_those_that_are_taken_backward() -> None:
    """Not where another derivative comes than was foreseen: that it rounds otherwise shows what is foreseen counts."""
    head, (hidden, labels, _) = Head(torch.float32), batch(torch.float32)
    weight = torch.rand(labels.shape) / 7
    weight[0] = 0.0  # of a source without weight
    (wanted,) = gradients(losses_in_pieces(head, hidden, labels, Pieces(4)), weight, hidden)
    head.requires_grad_(False)
    seen, other = (losses_in_pieces(head, hidden, labels, Pieces(4), of) for of in (weight, weight.flip(0) + 1))
    assert torch.equal(gradients(seen, weight, hidden)[0], wanted)
    (given,) = gradients(other, weight, hidden)
    assert not torch.equal(given, wanted)
    torch.testing.assert_close(given, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("trains", ["weight", "bias", "something that is no parameter of the head"])
def test_whatever_trains_in_a_head_has_its_gradients(trains: str) -> None:
    head, (hidden, labels, weight) = Head().requires_grad_(False), batch()
    added = nn.Parameter(torch.zeros(VOCABULARY, dtype=torch.float64))
    parameter = getattr(head.linear, trains).requires_grad_() if hasattr(head.linear, trains) else added
    losses = losses_in_pieces(lambda read: head(read) + added, hidden, labels, Pieces(4))
    (ours,), (theirs,) = (
        gradients(of, weight, parameter) for of in (losses, token_losses(head(hidden) + added, labels))
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_gradients_are_those_of_the_logits(dtype: torch.dtype, trains: bool) -> None:
    head, (hidden, labels, weight) = Head(torch.float32).requires_grad_(trains), batch(torch.float32)
    with torch.autocast("cpu", dtype):
        losses = [losses_in_pieces(head, hidden, labels, Pieces(4)), token_losses(head(hidden), labels)]
    (ours,), (theirs,) = (gradients(of, weight, hidden) for of in losses)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=4 * torch.finfo(dtype).eps * float(theirs.abs().max()))


def test_with_a_scale_as_float16_needs_it_no_gradient_underflows() -> None:
    head, (hidden, labels, weight) = Head(torch.float16).requires_grad_(False), batch(torch.float16)
    head.linear.weight.data *= 1e-3
    head.linear.bias.data[:] = torch.linspace(-16, 0, VOCABULARY)
    scaled = weight.sign() * 2.0**13
    with torch.no_grad():
        exact = Head().requires_grad_(False)
        exact.load_state_dict({name: value.double() for name, value in head.state_dict().items()})
    (ours,) = gradients(losses_in_pieces(head, hidden, labels, Pieces(4)), scaled, hidden)
    precise = hidden.detach().double().requires_grad_()
    (theirs,) = gradients(token_losses(exact(precise), labels), scaled, precise)
    torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=0.01 * float(theirs.abs().max()))


def test_without_gradients_none_are_taken() -> None:
    head, (hidden, labels, _) = Head().requires_grad_(False), batch()
    with torch.no_grad():
        losses = losses_in_pieces(head, hidden, labels, Pieces(4))
    assert not losses.requires_grad
    assert not losses_in_pieces(head, hidden.detach(), labels, Pieces(4)).requires_grad


@pytest.mark.parametrize("part", [0.0, 1.0], ids=["no targets", "targets alone"])
def test_a_batch_of_no_targets_or_of_nothing_else(part: float) -> None:
    head, (hidden, labels, weight) = Head(), batch(part=part)
    losses = losses_in_pieces(head, hidden, labels, Pieces(4, 3))
    torch.testing.assert_close(losses, token_losses(head(hidden), labels), rtol=1e-12, atol=0)
    (gradient,) = gradients(losses, weight, hidden)
    assert bool(gradient.any()) == (part > 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_are_in_float32_at_least(dtype: torch.dtype) -> None:
    head, (hidden, labels, _) = Head(dtype), batch(dtype)
    losses = losses_in_pieces(head, hidden, labels, Pieces(4))
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, token_losses(head(hidden), labels), rtol=1e-2, atol=1e-2)


def test_dropout_in_the_head_is_the_same_backward() -> None:
    head, (hidden, labels, weight) = Head(dropout=0.5), batch()
    losses = losses_in_pieces(head, hidden, labels, Pieces(4))
    masks: list[Tensor] = []
    head.dropout.register_forward_hook(lambda module, given, out: masks.append(out != 0))
    (gradient,) = gradients(losses, weight, hidden)
    seen = torch.cat([mask[0] for mask in reversed(masks)])  # the last piece comes first
    reached = gradient[:, :-1][labels != IGNORED] != 0
    assert torch.equal(reached, seen)


def test_pieces_bound_the_logits_and_are_equally_many_where_ranks_must_agree() -> None:
    vocabulary, tokens = 128_256, 2 * 4096
    free, alike = Pieces.of(vocabulary, tokens), Pieces.of(vocabulary, tokens, alike=True)
    assert ENTRIES / 2 < free.most * vocabulary <= ENTRIES
    assert free.most * vocabulary * 4 <= 128 * 2**20, "bytes in float32"
    assert free.number(10) == Pieces(10).number(10) == 1
    assert alike.number(10) == alike.number(tokens) == free.number(tokens)
    assert Pieces.of(2 * ENTRIES, tokens).most == 1
