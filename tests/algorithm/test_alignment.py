"""Sketches keep inner products, and what is made of them are the cosines of the gradients themselves."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from scalebio_plugin.algorithm import CountSketch, alignment
from scalebio_plugin.algorithm.bilevel import sum_by_source, targets_of, token_losses, weighted_loss

D = 256


def vectors(kind: str, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Pairs that a hash could stumble over: structured as gradients of matrices are, or concentrated."""
    drawn = torch.randn(2, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if kind == "random":
        return drawn[0], drawn[0] + drawn[1]
    if kind == "orthogonal":
        return drawn[0], drawn[1]
    if kind == "constant":
        return torch.ones(size, dtype=torch.float64), torch.ones(size, dtype=torch.float64)
    if kind == "one column":  # of a matrix as wide as a row of the sketch, or a part of it
        column = torch.arange(size) % (D // 2) == 3
        return drawn[0] * column, drawn[1] * column
    if kind == "rank one":
        wide = D // 2
        rows, columns = drawn[:, : size // wide], drawn[:, -wide:]
        first, second = (torch.outer(row, columns[0]).flatten() for row in rows)
        return first, second
    few = torch.zeros(size, dtype=torch.float64)
    few[[5, size // 2, size - 1]] = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    return few, few.roll(1) + few


KINDS = ("random", "orthogonal", "constant", "one column", "rank one", "few values")


class TestSketch:
    @pytest.mark.parametrize("kind", KINDS)
    def test_inner_products_are_kept_on_average_and_to_their_error(self, kind):
        x, y = vectors(kind, 40 * D)
        scale = float(x.norm() * y.norm())
        found = torch.tensor(
            [float(CountSketch(seed, D).of(x, 0) @ CountSketch(seed, D).of(y, 0)) for seed in range(400)]
        )
        off = (found - float(x @ y)) / scale
        bound = 2 / math.sqrt(D)
        assert float(off.std()) <= bound
        assert abs(float(off.mean())) <= 4 * bound / math.sqrt(len(off))

    @pytest.mark.parametrize("seed", range(3))
    def test_the_error_is_that_of_a_count_sketch_where_values_are_spread(self, seed):
        x, y = vectors("orthogonal", 40 * D, seed)
        found = [float(CountSketch(of, D).of(x, 0) @ CountSketch(of, D).of(y, 0)) for of in range(400)]
        assert float(torch.tensor(found).std() / (x.norm() * y.norm())) == pytest.approx(1 / math.sqrt(D), rel=0.15)

    def test_values_in_one_row_are_kept_exactly(self):
        x, y = vectors("random", D)
        sketch = CountSketch(1, D)
        assert float(sketch.of(x, 0) @ sketch.of(y, 0)) == pytest.approx(float(x @ y), rel=1e-12)

    def test_it_is_linear(self):
        x, y = vectors("random", 3 * D + 7)
        sketch = CountSketch(2, D)
        torch.testing.assert_close(sketch.of(2 * x - y, 4), 2 * sketch.of(x, 4) - sketch.of(y, 4))

    @pytest.mark.parametrize("cuts", [[0, 40], [0, 1, 17, 40], [0, 20, 20, 40]])
    def test_parts_at_their_positions_make_the_whole(self, cuts):
        """In units of D / 8: within rows and across them, an empty part too."""
        x, _ = vectors("random", 5 * D + 3)
        ends = [*(cut * D // 8 for cut in cuts[:-1]), len(x)]
        sketch = CountSketch(3, D)
        parts = [sketch.of(x[a:b], 1, a) for a, b in zip(ends, ends[1:], strict=False)]
        torch.testing.assert_close(sum(parts), sketch.of(x, 1))

    def test_more_rows_than_are_taken_at_a_time(self):
        x, _ = vectors("random", 1100 * 8 + 5)
        sketch = CountSketch(3, 8)
        torch.testing.assert_close(sketch.of(x[:3], 0) + sketch.of(x[3:], 0, 3), sketch.of(x, 0))

    def test_other_parameters_and_seeds_are_hashed_otherwise_the_same_ones_alike(self):
        x, _ = vectors("random", 4 * D)
        first = CountSketch(5, D).of(x, 0)
        assert torch.equal(first, CountSketch(5, D).of(x, 0))
        assert not torch.equal(first, CountSketch(5, D).of(x, 1))
        assert not torch.equal(first, CountSketch(6, D).of(x, 0))

    def test_half_precision_is_summed_in_more(self):
        x = torch.ones(3 * D, dtype=torch.bfloat16) / 3
        torch.testing.assert_close(CountSketch(0, D).of(x, 0), CountSketch(0, D).of(x.double(), 0))

    @pytest.mark.parametrize("buckets", [0, -8, 1000])
    def test_another_number_of_buckets_than_a_power_of_two_is_refused(self, buckets):
        with pytest.raises(ValueError, match=f"power of two, got {buckets}"):
            CountSketch(0, buckets)

    def test_the_global_generator_is_left_alone(self):
        before = torch.get_rng_state()
        CountSketch(0, D).of(torch.ones(9), 0)
        assert torch.equal(before, torch.get_rng_state())


class TestAlignment:
    def test_cosines(self):
        first = torch.tensor([[1.0, 0.0], [3.0, 4.0]], dtype=torch.float64)
        second = torch.tensor([[0.0, 2.0], [-5.0, 0.0], [6.0, 8.0]], dtype=torch.float64)
        expected = torch.tensor([[0.0, -1.0, 0.6], [0.8, -0.6, 1.0]], dtype=torch.float64)
        torch.testing.assert_close(alignment(first, second), expected)

    @pytest.mark.parametrize("broken", [0.0, math.inf, math.nan])
    def test_nothing_is_said_of_what_has_no_direction(self, broken):
        first = torch.tensor([[1.0, 1.0], [broken, broken]], dtype=torch.float64)
        found = alignment(first, torch.tensor([[1.0, 0.0]], dtype=torch.float64))
        assert found.isnan().tolist() == [[False], [True]]

    def test_a_loss_scale_cancels(self):
        first = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
        second = torch.tensor([[-3.0, 1.0]], dtype=torch.float64)
        torch.testing.assert_close(alignment(65536.0 * first, 65536.0 * second), alignment(first, second))

    def test_it_is_that_of_the_gradients_of_each_source_alone(self):
        """The slow twin: the rows of each source, one by one, their gradients as they are."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(11, 16), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 11))
        tokens, source = torch.randint(11, (6, 9)), torch.tensor([0, 1, 2, 1, 0, 1])
        column = source[:, None].expand(-1, 9)
        targets = targets_of(tokens, column, torch.arange(6)[:, None].expand(-1, 9), per_sequence=False)

        def gradient_of(loss: Tensor) -> list[Tensor]:
            return list(torch.autograd.grad(loss, list(model.parameters())))

        sketch, exact = CountSketch(0), []
        sketches = torch.zeros(3, sketch.buckets, dtype=torch.float64)
        for i in range(3):
            losses = token_losses(model(tokens), targets.labels)
            units = sum_by_source(targets.units, targets.source, 3)[i]
            masked = torch.nn.functional.one_hot(torch.tensor(i), 3).double()
            for number, gradient in enumerate(gradient_of(weighted_loss(losses, targets, masked, units))):
                sketches[i] += sketch.of(gradient, number)
            rows = [nn.functional.cross_entropy(model(row)[:-1], row[1:]) for row in tokens[source == i]]
            exact.append(torch.cat([g.flatten() for g in gradient_of(torch.stack(rows).mean())]).double())
        for i in range(3):
            for j in range(3):
                expected = float(exact[i] @ exact[j] / (exact[i].norm() * exact[j].norm()))
                assert float(alignment(sketches, sketches)[i, j]) == pytest.approx(expected, abs=0.03)
                assert float(sketches[i] @ sketches[j]) == pytest.approx(
                    float(exact[i] @ exact[j]), abs=0.03 * float(exact[i].norm() * exact[j].norm())
                )
