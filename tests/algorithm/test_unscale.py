"""fp16: u's step under the host's loss scaler."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scalebio_plugin.algorithm.inner import InnerParameters


def step(w_gradient: float, u_gradient: float) -> tuple[float, float, float]:
    """(w, u, loss scale) after a step of SGD at rate 1 from (1, 1), scale 1024, of gradients that are still scaled."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.zeros(()))  # the scale exists from the first use on
    inner = InnerParameters(dict(model.named_parameters()), optimizer)
    inner.follow(["weight"])
    model.weight.grad = torch.full((1, 1), w_gradient)
    with inner.in_place():
        model.weight.grad = torch.full((1, 1), u_gradient)
        if inner.unscale(scaler.get_scale()):
            optimizer.step()
            model.weight.grad = None
    scaler.step(optimizer)
    scaler.update()
    return model.weight.item(), inner.values["weight"].item(), scaler.get_scale()


def test_both_step_by_their_unscaled_gradients() -> None:
    assert step(1024.0 * 0.25, 1024.0 * 0.5) == (0.75, 0.5, 1024.0)


@pytest.mark.parametrize("gradients", [(float("inf"), 1.0), (1.0, float("inf")), (1.0, float("nan"))])
def test_an_overflow_in_either_set_skips_both_steps_and_lowers_the_scale(gradients: tuple[float, float]) -> None:
    assert step(*gradients) == (1.0, 1.0, 512.0)
