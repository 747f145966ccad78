"""The paper's algorithm as it states it: every entry of every matrix by automatic derivatives.

S. Fang, M. Cooley, D. Long, S. Li, R. Kirby, S. Zhe, "Solving high frequency and multi-scale PDEs
with Gaussian processes", ICLR 2024: kernel matrices and their second derivatives by nested
gradients mapped over all pairs of points, solves and determinants by LU decompositions of their
own, Adam on everything, in double precision. Compiled; no structure is used but the product of the
dimensions, as in the paper.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

JITTER = 1e-6
CONDITION_WEIGHT = 200.0
LEARNING_RATE = 1e-2


def gaussian(x, y, kernel):
    """Squared-exponential times cosine."""
    distance = jnp.abs(x - y)
    envelope = jnp.exp(-(distance**2) * jnp.exp(kernel["log_scales"]))
    cosine = jnp.cos(2 * jnp.pi * kernel["frequencies"] * distance)
    return jnp.sum(jnp.exp(kernel["log_weights"]) * envelope * cosine)


def student(x, y, kernel):
    """Matérn 5/2 times cosine."""
    distance = jnp.abs(x - y)
    scaled = jnp.sqrt(5.0) * distance * jnp.exp(kernel["log_scales"])
    envelope = (1 + scaled + scaled**2 / 3) * jnp.exp(-scaled)
    cosine = jnp.cos(2 * jnp.pi * kernel["frequencies"] * distance)
    return jnp.sum(jnp.exp(kernel["log_weights"]) * envelope * cosine)


KERNELS = {"gaussian": gaussian, "student-t": student}


class GPHM(NamedTuple):
    """``Δu [+ reaction(u)] = source`` on a box, values of ``u`` given on all faces.

    Attributes
    ----------
    grids : tuple of arrays (N_i,)
        One or two.
    source : array (N_1, …)
    faces : tuple of arrays
        Values at the lower and the upper face of each dimension in turn.
    family : "gaussian" or "student-t"
    reaction : callable, optional
    """

    grids: tuple[Any, ...]
    source: Any
    faces: tuple[Any, ...]
    family: str
    reaction: Callable | None = None

    def start(self, components, highest):
        """Zero field, equal weights, frequencies evenly spaced up to a highest one."""
        kernel = {
            "log_weights": np.full(components, np.log(1 / components)),
            "log_scales": np.zeros(components),
            "frequencies": np.linspace(0.0, 1.0, components) * highest,
        }
        return {
            "values": np.zeros(self.source.shape),
            "kernels": tuple(dict(kernel) for _ in self.grids),
            "log_equation": 0.0,
            "log_condition": 0.0,
        }

    def loss(self, parameters):
        """Minus the log joint density."""
        values = parameters["values"]
        kernel = KERNELS[self.family]
        second = jax.grad(jax.grad(kernel))
        matrices, solved, laplacian = [], [], 0.0
        for k, (points, given) in enumerate(zip(self.grids, parameters["kernels"], strict=True)):
            count = points.size
            matrix = _pairs(kernel, points, points, given) + JITTER * jnp.eye(count)
            inverse = jnp.linalg.solve(matrix, jnp.moveaxis(values, k, 0))
            curvature = _pairs(second, points, points, given) @ inverse
            matrices.append(matrix)
            solved.append(jnp.moveaxis(inverse, 0, k))
            laplacian = laplacian + jnp.moveaxis(curvature, 0, k)
        log_prior = sum(
            -0.5 * values.size / matrix.shape[0] * jnp.linalg.slogdet(matrix)[1]
            for matrix in matrices
        ) - 0.5 * jnp.sum(solved[0] * (values if len(solved) == 1 else solved[1]))
        left = laplacian - self.source
        if self.reaction is not None:
            left = left + self.reaction(values)
        ends = [jnp.take(values, end, axis=k) for k in range(values.ndim) for end in (0, -1)]
        gaps = jnp.concatenate(
            [(end - face).reshape(-1) for end, face in zip(ends, self.faces, strict=True)]
        )
        return -(
            log_prior
            + _log_likelihood(parameters["log_equation"], left)
            + CONDITION_WEIGHT * _log_likelihood(parameters["log_condition"], gaps)
        )

    def predict(self, parameters, points):
        """The conditional mean on a grid, one array a dimension."""
        kernel = KERNELS[self.family]
        found = parameters["values"]
        for k, (own, new) in enumerate(zip(self.grids, points, strict=True)):
            given = parameters["kernels"][k]
            matrix = _pairs(kernel, own, own, given) + JITTER * jnp.eye(own.size)
            inverse = jnp.linalg.solve(matrix, jnp.moveaxis(found, k, 0))
            found = jnp.moveaxis(_pairs(kernel, new, own, given) @ inverse, 0, k)
        return found


def _pairs(function, first, second, kernel):
    """A function of two points for all pairs, (first, second)."""
    left, right = jnp.meshgrid(first, second, indexing="ij")
    mapped = jax.vmap(function, (0, 0, None))
    return mapped(left.reshape(-1), right.reshape(-1), kernel).reshape(left.shape)


def _log_likelihood(log_precision, error):
    return 0.5 * error.size * log_precision - 0.5 * jnp.exp(log_precision) * jnp.sum(error**2)


def adam(loss):
    """``init`` of an optimiser's state, and a compiled ``step(parameters, state)``.

    A step gives new parameters, the state and the loss before it.
    """
    optimiser = optax.adam(LEARNING_RATE)

    @jax.jit
    def step(parameters, state):
        value, gradient = jax.value_and_grad(loss)(parameters)
        updates, state = optimiser.update(gradient, state, parameters)
        return optax.apply_updates(parameters, updates), state, value

    return optimiser.init, step
