"""A training loop of your own that learns how much each source should count. It runs: `python docs/bilevel_loop.py`

Three sources of lines of numbers: the first counts up by 1, the second by 2, the third says anything. Of the validation
lines 70% count by 1 and 30% by 2: the weights to be found are 0.7, 0.3 and 0. The symbols (w, u, λ, α, L1, L2) are
those of `scalebio_plugin.algorithm`; a suffix _S marks one value for each source.
"""

import torch
from torch import Tensor, nn

from scalebio_plugin import algorithm

NUMBERS, LENGTH, LINES, STEPS, PENALTY = 10, 9, 64, 400, 10.0
SHARE_S = torch.full((3,), 1 / 3, dtype=torch.float64)  # of each source in the targets of the training data
WANTED_S = torch.tensor([0.7, 0.3, 0.0], dtype=torch.float64)


def draw(mixture_S: Tensor) -> tuple[Tensor, Tensor]:  # (B, T) tokens and their sources
    source = torch.multinomial(mixture_S, LINES, replacement=True)[:, None].expand(LINES, LENGTH)
    increments = torch.where(source == 2, torch.randint(NUMBERS, (LINES, LENGTH)), source + 1)
    return (increments.cumsum(1) + torch.randint(NUMBERS, (LINES, 1))) % NUMBERS, source


def training_loss(
    model: nn.Module, tokens: Tensor, targets: algorithm.Targets, coefficient_S: Tensor
) -> tuple[Tensor, Tensor]:
    """L2 at the parameters that the model has now, and for each source the sum of its losses."""
    losses = algorithm.token_losses(model(tokens), targets.labels)
    loss = algorithm.weighted_loss(losses, targets, coefficient_S, total=targets.units.sum())
    return loss, algorithm.sum_by_source(losses * targets.units, targets.source, 3)


def learn_weights() -> Tensor:  # (S,)
    model = nn.Embedding(NUMBERS, NUMBERS)  # w: a number's row holds the logits of the one that follows
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    inner = algorithm.InnerParameters(dict(model.named_parameters()), optimizer)
    inner.follow(inner.parameters)  # u starts as the copy of w
    weights_S, logits_S = SHARE_S, algorithm.logits_of(SHARE_S)  # p = softmax(λ)
    baseline, rule = algorithm.GapBaseline.zeros(3), algorithm.ExponentiatedState()
    line = torch.arange(LINES)[:, None].expand(LINES, LENGTH)
    history = []
    for _ in range(STEPS):
        (tokens, source), (validation, _) = draw(SHARE_S), draw(WANTED_S)
        targets = algorithm.targets_of(tokens, source, line, per_sequence=False)

        with inner.in_place():  # the model is u, and descends L2
            loss, inner_S = training_loss(model, tokens, targets, weights_S / SHARE_S)
            loss.backward()
            inner.step()
        loss, model_S = training_loss(model, tokens, targets, weights_S / SHARE_S)
        val_loss = algorithm.token_losses(model(validation), validation[:, 1:]).mean()
        (loss + val_loss / PENALTY).backward()  # the model is w again, and descends L2 + L1 / α
        optimizer.step()
        optimizer.zero_grad()

        # λ: a source gains weight where the pull of the validation data lowers its loss, and loses it elsewhere.
        gap_S, baseline = algorithm.estimate_gap(model_S - inner_S, targets.counts(3), SHARE_S, baseline)
        logits_S, rule = algorithm.exponentiated_gradient(gap_S, weights_S, rule, logits_S, learning_rate=0.01)
        weights_S = algorithm.weights_of(logits_S)
        history.append(weights_S)
    return torch.stack(history[STEPS // 2 :]).mean(0)  # the last ones move about their mean


if __name__ == "__main__":
    torch.manual_seed(0)
    print(*(f"{weight:.3f}" for weight in learn_weights().tolist()))
