"""This project's step as a solver of benchopt's bilevel benchmark (github.com/benchopt/benchmark_bilevel).

There the problem is: min over x of f(x, z*(x)) with z*(x) = argmin over z of g(x, z), both means over samples.

| there | here |
|---|---|
| f, g | L1, L2 |
| x, `outer_var` | λ |
| z, `inner_var` | w, the set that is kept |

In a step u descends g and w descends g + f / α, both from the same batch and by the same rate, and a rule of
`scalebio_plugin.algorithm` moves λ by ∂f/∂x + α (∂g/∂x(w) − ∂g/∂x(u)), taken where w and u stood before. In a mixture
the first term is 0 and the second one is `algorithm.mixture_gradient` of the gaps: automatic differentiation through
Σ p_i L2_i with p = softmax(λ) gives α p ⊙ (g − p·g). There is one pass over a batch of g for each set and one over f.

Legend: S outer variables. The driver is benchmarks/benchopt_table.py.
"""

from benchopt import safe_import_context

with safe_import_context() as import_ctx:
    import jax
    import jax.numpy as jnp
    import numpy as np
    import torch
    from benchmark_utils.stochastic_jax_solver import StochasticJaxSolver

    from scalebio_plugin import algorithm


class PaperAdam:
    """`mixture_update: adam`; asks nothing of what the outer variable is."""

    def __init__(self, size: int, learning_rate: float, penalty: float):
        self.learning_rate, self.state = learning_rate, algorithm.AdamState.zeros(size)

    def step(self, logits_S: torch.Tensor, gradient_S: torch.Tensor) -> torch.Tensor:  # (S,)
        moved, self.state = algorithm.adam(gradient_S, self.state, logits_S, self.learning_rate)
        return moved


class Evident:
    """`mixture_update: evidence`, of outer variables that are the logits of a mixture."""

    def __init__(self, size: int, learning_rate: float, penalty: float):
        self.learning_rate, self.penalty = learning_rate, penalty
        self.known, self.state = algorithm.Evidence.zeros(size), algorithm.EvidentState.zeros(size)

    def step(self, logits_S: torch.Tensor, gradient_S: torch.Tensor) -> torch.Tensor:  # (S,)
        gap_S = gradient_S / (self.penalty * algorithm.weights_of(logits_S))  # less their mean, which softmax ignores
        self.known, _ = self.known.plus(gap_S)
        moved, self.state = algorithm.move_on_evidence(self.known, self.state, logits_S, self.learning_rate)
        return moved


class Plain:
    """No rule of this project but what the other solvers do, to tell what the gradient is worth from what a rule is."""

    def __init__(self, size: int, learning_rate: float, penalty: float):
        self.learning_rate = learning_rate

    def step(self, logits_S: torch.Tensor, gradient_S: torch.Tensor) -> torch.Tensor:  # (S,)
        return logits_S - self.learning_rate * gradient_S


RULES = {"adam": PaperAdam, "evidence": Evident, "plain": Plain}


class Solver(StochasticJaxSolver):
    """ScaleBiO (Pan et al., ACL 2025, arXiv 2406.19976) with the rules for λ of scalebio_plugin."""

    name = "ScaleBiO"
    requirements = ["jax", "jaxlib", "torch"]
    parameters = {
        "step_size": [0.1],
        "rule": ["adam"],
        "learning_rate": [0.01],
        "penalty": [10.0],
        "batch_size": [64],
        **StochasticJaxSolver.parameters,
    }

    def init(self) -> dict:
        self.inner_var, self.outer_var = self.inner_var0, self.outer_var0  # what benchopt looks at first
        outer = np.asarray(self.outer_var0, dtype=np.float64)
        return {
            "inner_var": self.inner_var0,
            "lower_var": self.inner_var0,  # u
            "outer_var": self.outer_var0,
            "logits": torch.from_numpy(outer.copy()),
            "rule": RULES[self.rule](outer.size, self.learning_rate, self.penalty),
            "samplers": (self.state_inner_sampler, self.state_outer_sampler),
        }

    def get_step(self, inner_sampler, outer_sampler):
        descend = self.descent(inner_sampler, outer_sampler)

        def step(carry: dict) -> dict:
            parts = [carry[name] for name in ("inner_var", "lower_var", "outer_var", "samplers")]
            inner_var, lower_var, gradient, samplers = descend(*parts, self.step_size, self.penalty)
            gradient_S = torch.from_numpy(np.asarray(gradient, dtype=np.float64))
            logits_S = carry["rule"].step(carry["logits"], gradient_S)
            moved = {"inner_var": inner_var, "lower_var": lower_var, "samplers": samplers, "logits": logits_S}
            return {**carry, **moved, "outer_var": jnp.asarray(logits_S.numpy(), dtype=jnp.float32)}

        return step

    def descent(self, inner_sampler, outer_sampler):
        """(w, u, λ, samplers, step size, α) -> (w, u, gradient of λ, samplers), compiled."""
        inner_gradients = jax.grad(self.f_inner, argnums=(0, 1))
        outer_gradients = jax.grad(self.f_outer, argnums=(0, 1))

        @jax.jit
        def descend(inner_var, lower_var, outer_var, samplers, rate, penalty):
            start, *_, inner_state = inner_sampler(samplers[0])
            val_start, *_, outer_state = outer_sampler(samplers[1])
            at_model, of_model = inner_gradients(inner_var, outer_var, start)
            at_lower, of_lower = inner_gradients(lower_var, outer_var, start)
            pull, direct = outer_gradients(inner_var, outer_var, val_start)
            gradient = direct + penalty * (of_model - of_lower)
            inner_var = inner_var - rate * (at_model + pull / penalty)
            return inner_var, lower_var - rate * at_lower, gradient, (inner_state, outer_state)

        return descend

    def get_one_epoch_jitted(self, inner_sampler, outer_sampler):
        """A loop in Python, for the rules are torch; what it goes through is compiled."""
        step = self.get_step(inner_sampler, outer_sampler)

        def epoch(carry: dict, steps: int) -> dict:
            for _ in range(steps):
                carry = step(carry)
            return carry

        return epoch
