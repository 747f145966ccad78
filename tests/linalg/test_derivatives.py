"""Derivatives of spectral functions equal finite differences, at repeated eigenvalues too."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayeskit import linalg
from bayeskit.linalg import KroneckerProduct, KroneckerSum, ShiftedKronecker, SumOfKroneckers

OPERATORS = {
    "product": lambda p: KroneckerProduct(*p["factors"]),
    "sum": lambda p: KroneckerSum(*p["factors"]),
    "shifted": lambda p: ShiftedKronecker(p["factors"], p["shift"]),
    "two terms": lambda p: SumOfKroneckers([p["factors"], p["others"]]),
    "Toeplitz": lambda p: linalg.SymmetricToeplitz(p["column"]),
}
WEIGHTS = jnp.asarray(np.linspace(-1, 2, 6))
FUNCTIONS = {
    "solve": lambda operator: WEIGHTS @ jnp.abs(linalg.solve(operator, WEIGHTS + 3.0)) ** 2,
    "logdet": linalg.logdet,
    "diagonal_of_inverse": lambda operator: WEIGHTS @ linalg.diagonal_of_inverse(operator).real,
    "sample": lambda operator: WEIGHTS @ jnp.abs(linalg.sample(operator, jax.random.key(0))) ** 2,
}


def values(operator, parameters):
    made = OPERATORS[operator](parameters)
    return jnp.stack([function(made) for function in FUNCTIONS.values()])


@functools.cache
def compiled(operator, complex):
    """Value and gradient of one of the functions, chosen by its weight, in one compilation."""
    del complex  # of another compilation
    return jax.jit(jax.value_and_grad(lambda p, weight: weight @ values(operator, p)))


def parameters(draw, repeated):
    """Positive definite factors: random, or identities, whose eigenvalues are all the same."""
    sizes = (2, 3)
    definite = [np.eye(n) if repeated else draw.definite(n, 4.0) for n in sizes]
    dtype = complex if draw.complex else float
    column = np.eye(6)[0] if repeated else 2.0 * 0.5 ** np.arange(6)
    return {
        "factors": [jnp.asarray(matrix, dtype) for matrix in definite],
        "others": [
            jnp.asarray(1.5 * np.eye(n) + 0.1 * matrix, dtype)
            for n, matrix in zip(sizes, definite, strict=True)
        ],
        "shift": jnp.asarray(0.3),
        "column": jnp.asarray(column),
    }


def direction(draw):
    return {
        "factors": [jnp.asarray(draw.hermitian(size)) for size in (2, 3)],
        "others": [jnp.asarray(draw.hermitian(size)) for size in (2, 3)],
        "shift": jnp.asarray(0.7),
        "column": jnp.asarray(draw.generator.normal(size=6)),
    }


def finite_difference(function, at, along, step=2e-3):
    """Six-point central difference, of sixth order."""

    def value(multiple):
        return function(jax.tree.map(lambda p, d: p + multiple * step * d, at, along))

    weights = {1: 45, 2: -9, 3: 1}
    total = sum(w * (value(float(m)) - value(-float(m))) for m, w in weights.items())
    return total / (60 * step)


CASES = [
    ("product", True),
    ("sum", True),
    ("shifted", True),
    ("two terms", True),
    ("Toeplitz", False),
]


@pytest.mark.parametrize("repeated", [False, True], ids=["distinct", "repeated"])
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(("operator", "complex"), CASES)
def test_gradients_equal_finite_differences(matrices, operator, complex, function, repeated):
    draw = matrices(0, complex)
    at, along = parameters(draw, repeated), direction(draw)
    weight = jnp.array([float(name == function) for name in FUNCTIONS])
    value_and_gradient = compiled(operator, complex)

    expected = finite_difference(lambda p: value_and_gradient(p, weight)[0], at, along)
    gradient = jax.tree.leaves(value_and_gradient(at, weight)[1])
    assert all(np.isfinite(leaf).all() for leaf in gradient)
    inner = sum(
        float(jnp.sum(g * d).real) for g, d in zip(gradient, jax.tree.leaves(along), strict=True)
    )
    assert inner == pytest.approx(float(expected), rel=1e-6, abs=1e-7)


def test_forward_derivatives_equal_finite_differences(matrices):
    draw = matrices(0, complex=True)
    at, along = parameters(draw, repeated=True), direction(draw)
    value = jax.jit(functools.partial(values, "two terms"))
    forward = jax.jit(lambda p, d: jax.jvp(value, (p,), (d,))[1])(at, along)
    np.testing.assert_allclose(forward, finite_difference(value, at, along), rtol=1e-6)


def test_gradient_of_logdet_is_the_inverse(matrices):
    matrix = jnp.asarray(matrices(1).definite(3, 4.0))
    gradient = jax.grad(lambda m: linalg.logdet(ShiftedKronecker([m], 0.1)))(matrix)
    np.testing.assert_allclose(gradient, np.linalg.inv(matrix + 0.1 * np.eye(3)), rtol=1e-10)


def test_solve_has_second_derivatives_at_repeated_eigenvalues():
    def entry(scale):
        matrix = jnp.eye(2) + scale * jnp.array([[0.0, 1.0], [1.0, 0.0]])
        return linalg.solve(ShiftedKronecker([matrix], 1.0), jnp.array([1.0, 0.0]))[0]

    # (2 I + s X)⁻¹ has the first entry 2 / (4 - s²).
    assert float(jax.grad(jax.grad(entry))(0.0)) == pytest.approx(0.25, rel=1e-12)


def test_batched_gradients_equal_single_ones(matrices):
    batch = jnp.stack([jnp.asarray(matrices(seed).definite(3, 4.0)) for seed in (2, 3)])

    def value(matrix):
        operator = ShiftedKronecker([matrix, jnp.eye(2)], 0.3)
        return FUNCTIONS["diagonal_of_inverse"](operator) + FUNCTIONS["sample"](operator)

    together = jax.jit(jax.vmap(jax.grad(value)))(batch)
    single = jax.jit(jax.grad(value))
    np.testing.assert_allclose(together, [single(matrix) for matrix in batch], rtol=1e-10)


@pytest.mark.parametrize(
    "function",
    [
        lambda matrix: linalg.eigh(KroneckerProduct(matrix)).eigenvectors.as_matrix(),
        lambda matrix: linalg.eigh(ShiftedKronecker([matrix], 1.0)).eigenvectors.as_matrix(),
        lambda matrix: linalg.svd(KroneckerProduct(matrix)).u.as_matrix(),
        lambda matrix: linalg.safe.eigh(matrix)[1],
        lambda matrix: linalg.safe.svd(matrix)[0],
    ],
)
def test_asking_for_a_gradient_of_eigenvectors_raises(function):
    with pytest.raises(TypeError, match="have no derivative where values repeat"):
        jax.grad(lambda matrix: function(matrix).sum())(jnp.eye(2))


def test_second_derivative_of_a_spectral_function_raises_and_is_not_silently_wrong():
    value = jax.grad(lambda s: linalg.logdet(ShiftedKronecker([s * jnp.eye(2)], 1.0)))
    with pytest.raises(TypeError, match="eigenvectors have no derivative"):
        jax.grad(value)(1.0)
