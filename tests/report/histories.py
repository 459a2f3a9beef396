"""Histories of runs that never were."""

from __future__ import annotations

import numpy as np

from scalebio_plugin.report.mixture_file import Provenance


def record(step, weights, gap=None, loss=None):
    zeros = dict.fromkeys(weights, 0.0)
    return {
        "step": step,
        "weights": weights,
        "loss": loss or zeros,
        "inner_loss": loss or zeros,
        "gap": gap or zeros,
        "units": dict.fromkeys(weights, 7),
        "train_loss": 2.0,
        "val_loss": 1.0 + 1.0 / step,
        "learning_rate": 1e-4,
    }


def facts(tokens, examples=None, **others):
    """Of a run on sources with that many tokens and examples (a hundredth as many, if not given)."""
    counts = {name: count // 100 for name, count in tokens.items()} if examples is None else examples
    known = {
        "penalty": 10.0,
        "estimator": "forward",
        "loss_unit": "token",
        "mixture_update": "adam",
        "steps": 100,
        "updates": 50,
        "seed": 42,
        "versions": {"axolotl": "0.1"},
        "fingerprint": {"base_model": "gpt2"},
    }
    return Provenance(**known | others, tokens=tokens, examples=counts)


def drifting_history(sources, updates, seed=0):
    """Weights that part from uniform, a source in three of four batches, falling losses."""
    random = np.random.default_rng(seed)
    names = [f"source-{i:02d}" for i in range(sources)]
    pull = random.normal(0, 0.02, sources)
    history = []
    for step in range(1, updates + 1):
        weights = np.exp(pull * step)
        weights /= weights.sum()
        loss = random.uniform(1, 2, sources) + 3 / step
        seen = random.random(sources) < 0.75
        history.append(
            record(
                step,
                dict(zip(names, weights.tolist(), strict=True)),
                gap=dict(zip(names, random.normal(0, 0.01, sources).tolist(), strict=True)),
                loss={name: float(x) if s else None for name, x, s in zip(names, loss, seen, strict=True)},
            )
        )
    return history, names
