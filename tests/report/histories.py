"""Histories of runs that never were."""

from __future__ import annotations

import numpy as np

from scalebio_plugin.report.mixture_file import Provenance

# What older versions did not write.
NEW_IN_A_RECORD = ("interval", "pull", "gap_mean", "gap_se", "evidence", "verdict", "goals")
NEW_IN_A_SOURCE = ("interval", "evidence")


def record(step, weights, gap=None, loss=None, gap_se=None, interval=None, evidence=None, verdict="still moving"):
    """An update whose batch says of the gaps what all of them do."""
    zeros = dict.fromkeys(weights, 0.0)
    return {
        "step": step,
        "weights": weights,
        "interval": interval,
        "loss": loss or zeros,
        "inner_loss": loss or zeros,
        "pull": {name: value + 1.0 for name, value in (gap or zeros).items()},
        "gap": gap or zeros,
        "gap_mean": gap or zeros,
        "gap_se": gap_se,
        "evidence": evidence or zeros,
        "verdict": verdict,
        "units": dict.fromkeys(weights, 7),
        "train_loss": 2.0,
        "val_loss": 1.0 + 1.0 / step,
        "val_losses": {"goal": 1.0 + 1.0 / step},
        "val_weights": {"goal": 1.0},
        "goals": None,
        "learning_rate": 1e-4,
    }


def old_record(step, weights, gap=None, loss=None):
    """The same update as an older version wrote it: its gap was what is called pull now."""
    known = record(step, weights, gap, loss)
    return {key: value for key, value in known.items() if key not in NEW_IN_A_RECORD}


def old_document(document):
    """A `mixture.json` without what older versions did not write."""
    sources = {
        name: {key: value for key, value in source.items() if key not in NEW_IN_A_SOURCE}
        for name, source in document["sources"].items()
    }
    return {key: value for key, value in document.items() if key not in ("verdict", "goals")} | {"sources": sources}


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
    """Weights that part from uniform, with intervals; a source in three of four batches, falling losses."""
    random = np.random.default_rng(seed)
    names = [f"source-{i:02d}" for i in range(sources)]
    pull = random.normal(0, 0.02, sources)
    history = []
    for step in range(1, updates + 1):
        weights = np.exp(pull * step)
        weights /= weights.sum()
        loss, width = random.uniform(1, 2, sources) + 3 / step, 0.3 * weights * (1 - weights)
        seen = random.random(sources) < 0.75
        history.append(
            record(
                step,
                dict(zip(names, weights.tolist(), strict=True)),
                gap=dict(zip(names, random.normal(0, 0.01, sources).tolist(), strict=True)),
                loss={name: float(x) if s else None for name, x, s in zip(names, loss, seen, strict=True)},
                gap_se=dict.fromkeys(names, 0.002),
                interval=dict(zip(names, np.stack([weights - width, weights + width], 1).tolist(), strict=True)),
                evidence=dict(zip(names, random.normal(0, 1, sources).tolist(), strict=True)),
            )
        )
    return history, names
