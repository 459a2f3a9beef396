"""A mixture of sources as a problem of benchopt's bilevel benchmark: the handwritten digits that scikit-learn carries.

Eight sources of 128 rows tell digits below five from the others. In the s-th a part of the labels, FLIPPED[s], is
wrong; 512 other rows, with right labels, are the validation data. x are the logits of the sources' weights p, z is a
logistic regression:

    g(x, z) = Σ p_s (mean loss of source s at z) + ½ RIDGE ‖z‖²,      f(z) = mean loss of the validation rows at z

The rows of the sources take turns, so every batch holds equally many of each: then g of a batch is the mean over its
rows of S p_s · loss, and `algorithm.estimate_gap` leaves the gaps as they are. The value function, its gradient and its
least value are computed in float64 from all rows.

Legend: N rows, D features, S sources.
"""

from benchopt import BaseDataset, safe_import_context

with safe_import_context() as import_ctx:
    from functools import partial

    import jax
    import jax.numpy as jnp
    import numpy as np
    from scipy.optimize import minimize
    from scipy.special import expit, softmax
    from sklearn.datasets import load_digits

FLIPPED = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.5)
ROWS, VALIDATION_ROWS, RIDGE = 128, 512, 0.01
NEWTON_STEPS = 30


class Dataset(BaseDataset):
    """Weights for sources of known noise."""

    name = "sources"
    requirements = ["scikit-learn", "scipy"]
    parameters = {"random_state": [1]}

    def get_data(self) -> dict:
        train, validation = draw(np.random.default_rng(self.random_state))
        exact = Exact(train, validation)
        least = exact.least()

        def metrics(inner_var, outer_var) -> dict:
            value, gradient = exact.value_and_gradient(np.asarray(outer_var, dtype=np.float64))
            return {"value": value - least, "squared_gradient": float(gradient @ gradient), "loss": value}

        inner, outer = jax_losses(train, validation)
        sizes = len(FLIPPED) * ROWS, VALIDATION_ROWS
        return {
            "pb_inner": (inner, sizes[0], train[0].shape[1], partial(inner, batch_size=sizes[0])),
            "pb_outer": (outer, sizes[1], len(FLIPPED), partial(outer, batch_size=sizes[1])),
            "metrics": metrics,
        }


def draw(rng: np.random.Generator) -> tuple[tuple, tuple]:
    """(N, D) features and (N,) labels, ±1, of the training and of the validation rows."""
    digits = load_digits()
    order = rng.permutation(len(digits.target))[: len(FLIPPED) * ROWS + VALIDATION_ROWS]
    features = (digits.data - digits.data.mean(0)) / (digits.data.std(0) + 1e-9)
    features = np.c_[features / np.sqrt(features.shape[1]), np.ones(len(features))][order]  # rows of length about 1
    labels = np.where(digits.target[order] < 5, 1.0, -1.0)
    rows = len(FLIPPED) * ROWS
    wrong = rng.random(rows) < np.tile(FLIPPED, ROWS)
    return (features[:rows], np.where(wrong, -labels[:rows], labels[:rows])), (features[rows:], labels[rows:])


def jax_losses(train: tuple, validation: tuple) -> tuple:
    """g and f of a batch of rows from `start`, as the benchmark calls them."""
    (x, y), (x_val, y_val) = (tuple(map(partial(jnp.asarray, dtype=jnp.float32), part)) for part in (train, validation))
    source = jnp.arange(len(y)) % len(FLIPPED)

    def taken(rows, start, batch_size):
        return jax.lax.dynamic_slice_in_dim(rows, start, batch_size)

    @partial(jax.jit, static_argnames="batch_size")
    def inner(inner_var, outer_var, start=0, batch_size=1):
        features, labels, of = (taken(rows, start, batch_size) for rows in (x, y, source))
        weights = len(FLIPPED) * jax.nn.softmax(outer_var)[of]
        losses = jax.nn.softplus(-labels * (features @ inner_var))
        return jnp.mean(weights * losses) + RIDGE / 2 * inner_var @ inner_var

    @partial(jax.jit, static_argnames="batch_size")
    def outer(inner_var, outer_var, start=0, batch_size=1):
        features, labels = (taken(rows, start, batch_size) for rows in (x_val, y_val))
        return jnp.mean(jax.nn.softplus(-labels * (features @ inner_var)))

    return inner, outer


class Exact:
    """The value function h(x) = f(z*(x)), in float64 from all rows."""

    def __init__(self, train: tuple, validation: tuple):
        self.train, self.validation = train, validation
        self.source = np.arange(len(train[1])) % len(FLIPPED)

    def value_and_gradient(self, logits_S: np.ndarray) -> tuple[float, np.ndarray]:
        """h and ∂h/∂x (S,), by the implicit function theorem."""
        weights_S = softmax(logits_S)
        solution, hessian = self.solution(weights_S)
        x_val, y_val = self.validation
        margin = y_val * (x_val @ solution)
        pull = -(x_val * (y_val * expit(-margin))[:, None]).mean(0)
        influence = -self.row_gradients(solution) @ np.linalg.solve(hessian, pull)
        of_source = np.bincount(self.source, influence) / ROWS
        gradient = weights_S * (of_source - weights_S @ of_source)
        return float(np.logaddexp(0, -margin).mean()), gradient

    def solution(self, weights_S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """z* and the Hessian of g there, by Newton steps from 0."""
        x, y = self.train
        row_weights = weights_S[self.source] / ROWS
        solution = np.zeros(x.shape[1])
        for _ in range(NEWTON_STEPS):
            gradient = row_weights @ self.row_gradients(solution) + RIDGE * solution
            chance = expit(y * (x @ solution))
            hessian = (x * (row_weights * chance * (1 - chance))[:, None]).T @ x + RIDGE * np.eye(x.shape[1])
            if np.abs(gradient).max() < 1e-13:
                break
            solution = solution - np.linalg.solve(hessian, gradient)
        return solution, hessian

    def row_gradients(self, at: np.ndarray) -> np.ndarray:  # (N, D)
        x, y = self.train
        return -x * (y * expit(-y * (x @ at)))[:, None]

    def least(self) -> float:
        """The least h, by L-BFGS from equal weights; a weight is at most e^20 of another."""
        limits = [(-10, 10)] * len(FLIPPED)
        options = {"maxiter": 2000, "ftol": 1e-15, "gtol": 1e-10}
        found = minimize(self.value_and_gradient, np.zeros(len(FLIPPED)), jac=True, bounds=limits, options=options)
        return float(found.fun)
