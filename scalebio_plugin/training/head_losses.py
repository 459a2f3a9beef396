"""From a pass of the model to the loss of each token: of its logits, or without them, inside its output head.

A config that asks for a fused loss has no room for logits, and its kernel gives one mean, from which no source can be
told. So for our passes, and for nothing else, the output head's own `forward` goes over the targets piece by piece
(`algorithm.pieces`) and keeps their losses. It is called where and as the model calls it, so that an engine's hooks
gather its weights, and adapters on it take part. The model gets zeros in place of the logits, one for each position;
through them the losses hang on the model's output, which engines watch to know when the backward pass begins.

What a model makes of its logits after the head is done to each piece; `look` finds out whether it is understood.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..algorithm.bilevel import token_losses
from ..algorithm.pieces import Pieces, losses_in_pieces
from .model_loss import refuse_unseen_additions

Outputs = Mapping[str, Any]
LossesOf = Callable[[Outputs], Tensor]
Loss = Callable[[Tensor], Tensor]
Again = Callable[[Callable[..., Tensor]], None]
Head = Callable[[Tensor], Tensor]

# Keys of a model's config that say what becomes of the logits after the head, in this order.
_TIMES = ("logit_scale", "lm_head_multiplier", "output_multiplier")
_OVER = ("logits_scaling",)
_CAPPED = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
_LOOKED_AT = 16  # positions of a row


@dataclass(frozen=True)
class FromLogits:
    """The ordinary way: the model gives logits."""

    reads_outputs: ClassVar[bool] = True  # of the model's own pass, in `check`

    @contextmanager
    def within(self, model: nn.Module, labels: Tensor, loss: Loss | None = None) -> Iterator[LossesOf]:
        """For one pass; gives a function of its outputs.

        Args:
            model: Unwrapped.
            labels: (B, T-1), as in `Targets`; so are the losses.
            loss: What the pass will make of the losses, linear in them: their derivatives round as those of logits do.
        """
        yield lambda outputs: token_losses(outputs["logits"], labels)

    def check(self, own: Tensor, outputs: Outputs, model: nn.Module, labels: Tensor, again: Again) -> None:
        """Refuse a model whose own loss our passes would cut, see `refuse_unseen_additions`.

        Args:
            own: Its loss of a batch, from the pass that gave `outputs`, with labels.
            model: Unwrapped.
            labels: (B, T-1), of the batch.
            again: Runs the forward pass of that batch once more, with another loss.
        """
        if outputs.get("logits") is not None:
            losses = token_losses(outputs["logits"], labels)
            refuse_unseen_additions(own, losses, labels, outputs, model, own.dtype)


@dataclass(frozen=True)
class InHead:
    """The way without logits of a whole batch.

    Attributes:
        key: Of the config, which asks for it.
        pieces: How the targets of a batch are cut.
    """

    reads_outputs: ClassVar[bool] = False

    key: str
    pieces: Pieces

    @contextmanager
    def within(self, model: nn.Module, labels: Tensor, loss: Loss | None = None) -> Iterator[LossesOf]:
        """As `FromLogits.within`."""
        found: list[Tensor] = []

        def forward(raw: Head, hidden: Tensor) -> Tensor:
            found.append(self._losses(raw, hidden, labels, model, loss))
            return functional.pad(0 * found[-1], (0, 1))[..., None]

        def losses_of(outputs: Outputs) -> Tensor:
            (losses,) = found
            return losses + 0 * outputs["logits"][:, :-1, 0]

        with _head_gives(forward, output_head(model, self.key)):
            yield losses_of

    @contextmanager
    def look(self, model: nn.Module, labels: Tensor) -> Iterator[Callable[[Outputs], tuple[Tensor, torch.dtype]]]:
        """As `within`, for one pass without gradients, in which the model sees logits of a few positions.

        Returns:
            A function of its outputs that compares them, and gives the losses and the dtype of their logits.

        Raises:
            ValueError: The losses of this model cannot be had from its head; the function raises it, too.
        """
        hiddens: list[Tensor] = []
        found: list[tuple[Tensor, Tensor]] = []

        def forward(raw: Head, hidden: Tensor) -> Tensor:
            hiddens.append(hidden)
            if hidden.shape[:-1] != (labels.shape[0], labels.shape[1] + 1):
                return raw(hidden)
            logits = raw(hidden[:1, :_LOOKED_AT])
            found.append((self._losses(raw, hidden, labels, model), adjusted(logits, model.config)))
            return logits

        def losses_of(outputs: Outputs) -> tuple[Tensor, torch.dtype]:
            if len(hiddens) != 1 or not found:
                shapes = [tuple(hidden.shape) for hidden in hiddens]
                raise _refusal(self.key, model, f"calls its output head with {shapes}, not once with every position")
            losses, expected = found[0]
            if not _agree(outputs["logits"], expected):
                known = ", ".join((*_TIMES, *_OVER, *_CAPPED))
                raise _refusal(self.key, model, f"makes of its logits what the plugin does not know (it knows {known})")
            return losses, expected.dtype

        with _head_gives(forward, output_head(model, self.key)):
            yield losses_of

    def check(self, own: Tensor, outputs: Outputs, model: nn.Module, labels: Tensor, again: Again) -> None:
        """As `FromLogits.check`, by another pass: where the loss is fused, the first one has no logits.

        Raises:
            ValueError: As `look`.
        """
        with self.look(model, labels) as losses_of:

            def compare(outputs: Outputs, *_: Any, **__: Any) -> Tensor:
                losses, dtype = losses_of(outputs)
                refuse_unseen_additions(own, losses, labels, outputs, model, dtype)
                return own

            again(compare)

    def _losses(self, raw: Head, hidden: Tensor, labels: Tensor, model: nn.Module, loss: Loss | None = None) -> Tensor:
        foreseen = None if loss is None else _derivative(loss, labels, torch.promote_types(hidden.dtype, torch.float32))
        return losses_in_pieces(lambda read: adjusted(raw(read), model.config), hidden, labels, self.pieces, foreseen)


def _derivative(loss: Loss, labels: Tensor, dtype: torch.dtype) -> Tensor:  # (B, T-1)
    """Of a linear function of the losses by each of them."""
    losses = torch.zeros(labels.shape, dtype=dtype, device=labels.device, requires_grad=True)
    with torch.enable_grad():
        return torch.autograd.grad(loss(losses), losses)[0]


def output_head(model: nn.Module, key: str) -> nn.Module:
    """What makes logits of hidden states, with the adapters on it.

    Raises:
        ValueError: There is none, which losses without logits (`key`) need.
    """
    head = cast(Any, model).get_output_embeddings()
    if not isinstance(head, nn.Module):
        raise _refusal(key, model, "has no output head (get_output_embeddings)")
    return head


def adjusted(logits: Tensor, config: Any) -> Tensor:
    """What a model of this config makes of its head's logits: scaled, and soft-capped."""
    text = config.get_text_config()
    for key in _TIMES:
        times = getattr(text, key, None)
        logits = logits if times is None else logits * times
    for key in _OVER:
        over = getattr(text, key, None)
        logits = logits if over is None else logits / over
    for key in _CAPPED:
        cap = getattr(text, key, None)
        logits = logits if cap is None else torch.tanh(logits / cap) * cap
    return logits


def _agree(given: Tensor | None, expected: Tensor) -> bool:
    """Up to the rounding of the logits' own dtype."""
    if given is None or given.shape != expected.shape:
        return False
    bound = 4 * torch.finfo(expected.dtype).eps * float(expected.abs().max())
    return bool(((given.float() - expected.float()).abs() <= bound).all())


def _refusal(key: str, model: nn.Module, what: str) -> ValueError:
    return ValueError(
        f"scalebio: {key} asks for losses without logits, but {type(model).__name__} {what}; remove {key} or scalebio"
    )


@contextmanager
def _head_gives(forward: Callable[[Head, Tensor], Tensor], head: nn.Module) -> Iterator[None]:
    """Inside, `forward(raw, hidden)` is the forward of `head`; `raw` is what it was."""
    raw, own = head.forward, head.__dict__.get("forward")
    head.forward = partial(forward, raw)
    try:
        yield
    finally:
        if own is None:
            del head.forward
        else:
            head.forward = own
