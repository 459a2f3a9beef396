"""What sources share that are not told apart, one source at a time: nothing of the package."""

from __future__ import annotations

import numpy as np


def literally_shared(
    total: np.ndarray, gap: np.ndarray, error: np.ndarray, per_nat: np.ndarray, limit: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """See `algorithm.alike.shared`; each (S,)."""
    sources = range(len(total))
    mean, noise = total / per_nat, error / per_nat
    beyond = total / (limit * error)
    own = [evident(total[i], error[i], limit) for i in sources]
    sums, gaps, fractions, means = total.copy(), gap.copy(), np.array(own), mean.copy()
    for side in (-1, 1):
        members = [i for i in sources if side * beyond[i] > 1]
        if not members:
            continue
        belongs = np.clip((side * beyond - 1) / 0.2, 0, 1)
        contrary = np.clip((-side * beyond - 1) / 0.2, 0, 1)
        weight = {i: belongs[i] / noise[i] ** 2 for i in members}
        common = sum(weight[i] * mean[i] for i in members) / sum(weight.values())
        of_gap = sum(weight[i] * gap[i] / per_nat[i] for i in members) / sum(weight.values())
        speed = sum(weight[i] * per_nat[i] for i in members) / sum(weight.values())
        others = {i: (1 - belongs[i]) / noise[i] ** 2 for i in sources}
        rest = sum(others[i] * mean[i] for i in sources) / sum(others.values())
        for i in sources:
            joined = belongs[i]
            if side * (common - rest) > 0:
                part = (mean[i] - rest) / (common - rest)
                joined = max(joined, (1 - contrary[i]) * min(1.0, max(0.0, (part - 0.5) / 0.2)))
            away = evident(mean[i] - common, noise[i], limit)
            sums[i] += joined * (common * speed + away * (mean[i] - common) * per_nat[i] - total[i])
            gaps[i] += joined * (of_gap * speed + away * (gap[i] - of_gap * per_nat[i]) - gap[i])
            means[i] += joined * (common + away * (mean[i] - common) - mean[i])
            fractions[i] = max(fractions[i], joined * max(own[k] for k in members))
    return sums, gaps, fractions, means


def evident(total: float, error: float, limit: float) -> float:
    return 0.0 if abs(total) <= limit * error else 1 - (limit * error / abs(total)) ** 4
