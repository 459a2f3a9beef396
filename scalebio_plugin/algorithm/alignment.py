"""Which source helps which goal: inner products of gradients, from sketches in the place of copies of them.

    A_ij = ⟨∇L2_i(w), ∇L1_j(w)⟩,    cos_ij = A_ij / ( |∇L2_i| |∇L1_j| )

for source i and validation set j: above 0 a small step down the gradient of source i lowers the loss of set j (the
influence that LESS selects data by, Xia et al., ICML 2024, arXiv 2402.04333). It is what −α g_i measures (see
`bilevel`) with the identity in the place of the Hessian: w − u ≈ −H⁻¹ ∇L1 / α, so that −α g_i ≈ ∇L2_i · H⁻¹ ∇L1, and
with H = 1 that is Σ_j q_j A_ij. Gaps see all sets at once, the A_ij each by itself. What they cannot say: nothing of
curvature, nothing of what an optimizer makes of a gradient, and the noise of batches draws a cosine towards 0, that of
a source with few rows most.

Legend: S sources, V validation sets, D buckets, R rows of D values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

ROWS_AT_A_TIME = 512  # of a gradient: with 8,192 buckets 0.1 GB beside it


@dataclass(frozen=True)
class CountSketch:
    """A linear map of the gradients of all parameters to D numbers that keeps inner products, in expectation.

    Every value is added to one bucket, with a sign (Charikar, Chen and Farach-Colton, ICALP 2002). Here a parameter is
    laid out in rows of D values: a row goes round by a random offset, and the sign is that of its row times that of
    its column. So no two values of a row meet, and any two of different rows by chance 1 / D. The standard error of an
    inner product is at most 2 |x| |y| / √D, and about √((1 + cos²) / D) |x| |y| where neither is in few rows.

    Attributes:
        seed: Of offsets and signs. Gradients that are to be multiplied need the same; another one errs independently.
        buckets: D, a power of two.
    """

    seed: int
    buckets: int = 8192

    def __post_init__(self) -> None:
        if self.buckets < 1 or self.buckets & (self.buckets - 1):
            raise ValueError(f"buckets must be a power of two, got {self.buckets}; take the next one")

    def of(self, values: Tensor, number: int, first: int = 0) -> Tensor:
        """(D,), float64, of a part of one parameter's gradient; the sum over all parts of all is that of the whole.

        Args:
            values: Of any shape, contiguous in the parameter's order.
            number: Of the parameter.
            first: Position of the first value in the flattened parameter.
        """
        sketch = torch.zeros(self.buckets, dtype=torch.float64, device=values.device)
        columns = torch.arange(self.buckets, device=values.device)
        sign_D = self._column_signs(values.device)
        every = -(-(first + values.numel()) // self.buckets)
        drawn = torch.randint(2 * self.buckets, (every,), generator=self._generator(number)).to(values.device)
        for row, rows in self._rows(values.detach().reshape(-1), first):
            of_rows = drawn[row : row + len(rows), None]
            met = (columns - of_rows // 2) & (self.buckets - 1)  # (R, D), the column that comes to each bucket
            signed = rows.to(torch.promote_types(rows.dtype, torch.float32)) * sign_D * _signs(of_rows % 2)
            sketch += signed.gather(1, met).sum(0, dtype=torch.float64)
        return sketch

    def _rows(self, flat: Tensor, first: int) -> Iterator[tuple[int, Tensor]]:
        """(number of the first row, (R, D)), padded by zeros at both ends."""
        before, step = first % self.buckets, ROWS_AT_A_TIME * self.buckets
        for begin in range(-before, len(flat), step):
            part = flat[max(begin, 0) : begin + step]
            missing = max(-begin, 0)
            padded = functional.pad(part, (missing, -(missing + len(part)) % self.buckets))
            yield (first + begin) // self.buckets, padded.view(-1, self.buckets)

    @lru_cache(maxsize=2)  # noqa: B019 - of a frozen value
    def _column_signs(self, device: torch.device) -> Tensor:  # (D,)
        return _signs(torch.randint(2, (self.buckets,), generator=self._generator(-1))).to(device)

    def _generator(self, number: int) -> torch.Generator:
        return torch.Generator().manual_seed((self.seed * 1_000_003 + number + 1) % (1 << 63))


def _signs(bits: Tensor) -> Tensor:
    return (2 * bits - 1).to(torch.float32)


def alignment(first_SD: Tensor, second_VD: Tensor) -> Tensor:  # (S, V)
    """Cosines of the sketched gradients; NaN where one of them is 0 or not finite (an overflow of fp16).

    Factors that a row of either was scaled by cancel.

    Args:
        first_SD: (S, D), of the sources.
        second_VD: (V, D), of the validation sets.
    """
    directions = [sketch / sketch.norm(dim=1, keepdim=True) for sketch in (first_SD, second_VD)]
    return directions[0] @ directions[1].T
