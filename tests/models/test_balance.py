"""Moving along what the data do not see: energies by dense algebra, optima by their equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gpjax.kernels import Matern32

import bayeskit as bk
from bayeskit import statespace
from bayeskit.models.functional_tucker import balance, sweep

POINTS, RANK = 7, 2


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def positive_definite(generator, size):
    factor = generator.normal(size=(size, 2 * size))
    return jnp.asarray(factor @ factor.T / size)


def test_energy_equals_the_dense_one():
    generator = np.random.default_rng(0)
    places = np.sort(generator.uniform(0, 3, POINTS))
    form, values = statespace.form_of("kernel", Matern32(lengthscale=0.7))
    values = {name: jnp.full(RANK, value) for name, value in values.items()}
    steps = jnp.asarray(np.diff(places, prepend=-np.inf))
    chain = statespace.chain_of(form, values, jnp.full(RANK, 0.5), steps)
    shifts = jnp.asarray(generator.normal(size=(POINTS, RANK)))
    precisions = jnp.stack([positive_definite(generator, RANK) for _ in range(POINTS)])
    found = statespace.smooth(chain, shifts, precisions)
    moments = sweep.Moments(found.mean, found.second)
    ours, resolved = balance.energy(moments, shifts, precisions, POINTS)
    assert resolved
    # Sharp messages leave nothing but rounding of it.
    sharp = 1e14 * shifts, 1e14 * precisions
    found = statespace.smooth(chain, *sharp)
    moments = sweep.Moments(found.mean, found.second)
    assert not balance.energy(moments, *sharp, POINTS)[1]

    distance = np.sqrt(3) * np.abs(np.subtract.outer(places, places)) / 0.7
    kernel = (1 + distance) * np.exp(-distance) + 0.5
    prior = np.kron(np.linalg.inv(kernel), np.eye(RANK))
    precision = prior.copy()
    for i in range(POINTS):
        block = slice(i * RANK, (i + 1) * RANK)
        precision[block, block] += np.asarray(precisions[i])
    covariance = np.linalg.inv(precision)
    mean = covariance @ np.ravel(shifts)
    second = (covariance + np.outer(mean, mean)).reshape(POINTS, RANK, POINTS, RANK)
    expected = np.einsum("ij,jbia->ab", np.linalg.inv(kernel), second)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


@pytest.mark.parametrize("excess", [-3.0, 0.0, 11.0])
def test_best_mixing_solves_its_equation(excess):
    generator = np.random.default_rng(1)
    own, other = positive_definite(generator, 3), positive_definite(generator, 3)
    matrix, inverse = balance.best_mixing(own, other, excess, True)
    np.testing.assert_allclose(matrix @ inverse, np.eye(3), atol=1e-10)
    square = matrix.T @ matrix
    np.testing.assert_allclose(square @ own @ square - excess * square, other, atol=1e-9)
    scales, _ = balance.best_mixing(own, other, excess, False)
    squares = np.diag(scales) ** 2
    np.testing.assert_allclose(
        np.diag(own) * squares**2 - excess * squares, np.diag(other), rtol=1e-10
    )


def test_best_scales_have_product_one_and_no_better_neighbour():
    generator = np.random.default_rng(2)
    energies = [jnp.asarray(generator.uniform(1, 50, 4)) for _ in range(3)]
    points = [jnp.asarray(float(n)) for n in (5, 40, 12)]
    scales = balance.best_scales(energies, points)
    np.testing.assert_allclose(np.prod(scales, axis=0), 1.0, rtol=1e-10)

    def gain(scales):
        return sum(
            n * np.log(a) - s * a**2 / 2 for n, s, a in zip(points, energies, scales, strict=True)
        )

    best = gain(np.asarray(scales))
    for _ in range(20):
        moved = np.asarray(scales) * np.exp(0.05 * generator.normal(size=(3, 4)))
        moved = moved / np.prod(moved, axis=0) ** (1 / 3)
        assert np.all(gain(moved) < best)


@pytest.mark.parametrize("core", ["tucker", "cp"])
def test_fitted_values_stay_and_few_sweeps_are_needed(core):
    generator = np.random.default_rng(0)
    time, group = generator.uniform(0, 10, 300), generator.integers(0, 5, 300)
    loadings = generator.normal(size=(5, 2))
    values = np.sin(time) * loadings[group, 0] + np.cos(1.7 * time) * loadings[group, 1]
    values = values + 0.1 * generator.normal(size=300)
    modes = [
        bk.models.Mode("time", kernel=Matern32(lengthscale=2.0)),
        bk.models.Mode("group", categorical=True),
    ]
    model = bk.models.FunctionalTucker(modes, ranks=2, core=core)
    method = bk.inference.MessagePassing(tolerance=1e-7, max_iterations=400)
    posterior = bk.infer(model, ((time, group), values), method)
    # Without the mixing this takes thousands of sweeps.
    assert posterior.convergence.iterations < 300
    messages = posterior.approximation.messages
    state = messages.shifts, messages.precisions, messages.core, [jnp.asarray(300.0), 5.0]
    modes, moved = balance.balanced(messages.modes, *state, True)
    index = posterior.prepared.model.positions(posterior.prepared.data)
    for before, after in zip(
        sweep.fitted(messages.modes, messages.core)(index),
        sweep.fitted(modes, moved)(index),
        strict=True,
    ):
        np.testing.assert_allclose(after, before, atol=1e-8)
