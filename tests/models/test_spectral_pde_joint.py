"""Joint modes of differential equations: densities against dense ones, Laplace, guards."""

import copy
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bayeskit as bk
from bayeskit.inference import MaximumAPosteriori
from bayeskit.models import SpectralMixture, SpectralPDE
from bayeskit.models.spectral_pde import joint
from bayeskit.models.spectral_pde.spectrum import FAMILIES, Components, covariance
from bayeskit.pde import PDE, Dirichlet, Neumann, Robin

POINTS, COMPONENTS = 24, 4
TEST = np.linspace(0.0, 1.0, 101)
LENGTHS = (1.5, 0.7)
SMALL = (8, 9)


def wave(x):
    return np.sin(9 * x)


def slope(x):
    return 9 * np.cos(9 * x)


def poisson(u, x):
    return u.d("x", 2) + 81 * wave(x)


ENDS = (Dirichlet("x", 0.0, wave), Dirichlet("x", 1.0, wave))


def model_of(residual=poisson, conditions=ENDS, family="gaussian"):
    kernel = SpectralMixture(COMPONENTS, family)
    return SpectralPDE(
        PDE(residual, {"x": (0.0, 1.0)}, conditions), grid={"x": POINTS}, kernel=kernel
    )


@pytest.fixture(scope="module")
def posterior():
    return bk.infer(model_of(), None, MaximumAPosteriori(tolerance=1e-5))


def kernel_value(family, components, delta):
    """Of one dimension, in boxes, by the definition."""
    distance = jnp.abs(delta)
    if family == "gaussian":
        envelope = jnp.exp(-2 * (jnp.pi * components.widths * distance) ** 2)
    else:
        scaled = jnp.sqrt(5.0) * 2 * jnp.pi * components.widths * distance
        envelope = (1 + scaled + scaled**2 / 3) * jnp.exp(-scaled)
    cosine = jnp.cos(2 * jnp.pi * components.frequencies * distance)
    return jnp.sum(jnp.exp(components.log_weights) * envelope * cosine)


def derivative_of(family, components, order):
    function = functools.partial(kernel_value, family, components)
    for _ in range(order):
        function = jax.grad(function)
    return function


@pytest.mark.parametrize("family", FAMILIES)
def test_derivatives_of_kernels_equal_nested_gradients(family):
    with jax.enable_x64(True):
        components = Components(
            jnp.log(jnp.array([0.7, 0.2])), jnp.array([0.3, 2.0]), jnp.array([0.4, 0.9])
        )
        lags = jnp.array([-0.8, -0.1, 0.3, 0.9])
        for order in range(5):
            found = covariance(SpectralMixture(2, family), components, lags, order)
            expected = jax.vmap(derivative_of(family, components, order))(lags)
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
        # At zero a Matérn kernel's derivatives by |δ| are one-sided; odd ones vanish.
        at_zero = [
            float(covariance(SpectralMixture(2, family), components, jnp.zeros(1), order)[0])
            for order in (1, 3)
        ]
        np.testing.assert_allclose(at_zero, 0.0, atol=1e-9)


def small_problem(family):
    """Mixed derivatives, a nonlinear term and every kind of condition, in a box of two lengths."""

    def residual(u, x, y):
        return u.d("x", 2) + 0.5 * u.d(x=1, y=1) + u() * u.d("y") - jnp.sin(x + y)

    conditions = [
        Dirichlet("x", 0.0, lambda x, y: y),
        Robin("x", LENGTHS[0], 0.3, a=2.0, b=-1.0),
        Neumann("y", 0.0, lambda x, y: x**2),
    ]
    box = {"x": (0.0, LENGTHS[0]), "y": (0.0, LENGTHS[1])}
    grid = dict(zip("xy", SMALL, strict=True))
    model = SpectralPDE(
        PDE(residual, box, conditions), grid=grid, kernel=SpectralMixture(COMPONENTS, family)
    )
    prepared = model.prepare(None)
    unknowns = prepared.model.map_init(prepared.data, jax.random.key(0), jnp.asarray(0), None)
    generator = np.random.default_rng(0)
    moved = jax.tree.map(lambda leaf: leaf + 0.3 * generator.normal(size=leaf.shape), unknowns)
    return prepared, moved


def dense_errors(kernel, spectra, values):
    """Matrices, and everything that equation and conditions leave, all formed."""
    matrices, maps, ends = [], [], []
    for count, length, each in zip(SMALL, LENGTHS, spectra, strict=True):
        components = joint.components_of(kernel, each)
        points = jnp.linspace(0.0, 1.0, count)
        lags = points[:, None] - points
        matrix = [
            jax.vmap(jax.vmap(derivative_of(kernel.family, components, order)))(lags)
            / length**order
            for order in range(3)
        ]
        matrix[0] = matrix[0] + joint.JITTER * jnp.eye(count)
        matrices.append(matrix[0])
        maps.append([each @ jnp.linalg.inv(matrix[0]) for each in matrix])
        ends.append(points)
    dx, dy = maps
    x = LENGTHS[0] * ends[0][:, None]
    y = LENGTHS[1] * ends[1][None, :]
    left = dx[2] @ values + 0.5 * dx[1] @ values @ dy[1].T + values * (values @ dy[1].T)
    left = left - jnp.sin(x + y)
    misfits = [
        values[0] - y[0],
        2.0 * values[-1] - (dx[1] @ values)[-1] - 0.3,
        (values @ dy[1].T)[:, 0] - x[:, 0] ** 2,
    ]
    return matrices, left.reshape(-1), jnp.concatenate(misfits)


def dense_log_joint(kernel, unknowns):
    matrices, left, misfit = dense_errors(kernel, unknowns.spectra, unknowns.values)
    full = jnp.kron(*matrices)
    flat = unknowns.values.reshape(-1)
    total = -0.5 * jnp.linalg.slogdet(full)[1] - 0.5 * flat @ jnp.linalg.solve(full, flat)
    for weight, log_precision, error in (
        (1.0, unknowns.log_equation, left),
        (joint.CONDITION_WEIGHT, unknowns.log_condition, misfit),
    ):
        total += (
            weight * 0.5 * (error.size * log_precision - jnp.exp(log_precision) * error @ error)
        )
    return total


@pytest.mark.parametrize("family", FAMILIES)
def test_density_and_gradient_equal_the_dense_ones(family):
    with jax.enable_x64(True):
        prepared, unknowns = small_problem(family)
        kernel = prepared.model.kernel
        structured = jax.jit(
            jax.value_and_grad(lambda u: joint.log_joint(prepared.data, kernel, u))
        )
        dense = jax.jit(jax.value_and_grad(functools.partial(dense_log_joint, kernel)))
        found, gradient = structured(unknowns)
        expected, other = dense(unknowns)
        np.testing.assert_allclose(found, expected, rtol=1e-8)
        for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * np.max(np.abs(b)))


def test_laplace_equals_the_dense_one_and_draws_have_its_variance(monkeypatch):
    with jax.enable_x64(True):
        prepared, unknowns = small_problem("gaussian")
        kernel = prepared.model.kernel

        def error(flat):
            _, left, misfit = dense_errors(kernel, unknowns.spectra, flat.reshape(SMALL))
            weights = (
                jnp.exp(0.5 * unknowns.log_equation),
                jnp.sqrt(joint.CONDITION_WEIGHT * jnp.exp(unknowns.log_condition)),
            )
            return jnp.concatenate([weights[0] * left, weights[1] * misfit])

        flat = unknowns.values.reshape(-1)
        matrices, _, _ = jax.jit(functools.partial(dense_errors, kernel))(
            unknowns.spectra, unknowns.values
        )
        inverse = jnp.linalg.inv(jnp.kron(*matrices))
        jacobian = jax.jit(jax.jacobian(error))(flat)
        hessian = inverse + jacobian.T @ jacobian
        expected = np.diag(np.linalg.inv(hessian)).reshape(SMALL)
        step = -np.linalg.solve(hessian, jacobian.T @ error(flat) + inverse @ flat).reshape(SMALL)

        def approximated():
            return jax.jit(lambda u: joint.laplace(prepared.data, kernel, u, jax.random.key(0)))(
                unknowns
            )

        exact = approximated()
        np.testing.assert_allclose(jnp.sum(exact.deviations**2, axis=0), expected, rtol=1e-5)
        np.testing.assert_allclose(exact.values, unknowns.values + step, atol=1e-5)
        monkeypatch.setattr(joint, "_EXACT", 0)
        monkeypatch.setattr(joint, "_DRAWS", 800)
        drawn = approximated()
        np.testing.assert_allclose(jnp.sum(drawn.deviations**2, axis=0), expected, rtol=0.3)
        np.testing.assert_allclose(drawn.values, exact.values, atol=1e-3)


def test_precisions_are_bounded():
    """With nothing left of the equation the paper's density grows without bound, ours does not."""
    zero = (Dirichlet("x", 0.0, 0.0), Dirichlet("x", 1.0, 0.0))
    prepared = model_of(lambda u, x: u.d("x", 2), zero).prepare(None)
    with jax.enable_x64(True):
        start = joint.start(prepared.data, prepared.model.kernel, jnp.zeros(POINTS))
        for density, rises in ((joint.log_joint, True), (joint.objective, False)):
            compiled = jax.jit(functools.partial(density, prepared.data, prepared.model.kernel))
            for name in ("log_equation", "log_condition"):
                low, high = (
                    compiled(start._replace(**{name: level}))
                    for level in (jnp.asarray(40.0), jnp.asarray(60.0))
                )
                assert bool(high > low) is rises


def test_mode_is_near_the_true_solution_and_surer_than_it_is_wrong(posterior):
    assert posterior.convergence.converged
    assert posterior.log_evidence is None
    for order, truth in enumerate((wave, slope)):
        found = posterior.predict({"x": TEST}, derivative={"x": order})
        error = found.mean - truth(TEST)
        assert np.linalg.norm(error) < 1e-2 * np.linalg.norm(truth(TEST))
        assert np.mean(error**2 / found.variance) < 4
    weights, frequencies = posterior.mean["weights_x"], posterior.mean["frequencies_x"]
    assert abs(abs(frequencies[np.argmax(weights)]) - 9 / (2 * np.pi)) < 0.1


def test_draws_trees_and_files(posterior, tmp_path):
    draws = posterior.sample(0, 2000)["solution"]
    deviation = np.sqrt(posterior.variance["solution"])
    z = (draws.mean(axis=0) - posterior.mean["solution"]) / (deviation / np.sqrt(2000))
    assert np.max(np.abs(z)) < 5
    np.testing.assert_allclose(draws.std(axis=0), deviation, rtol=0.1)
    tree = posterior.to_datatree(num_draws=5, predictions={"x": [0.2, 0.4]})
    assert tree["predictions"]["solution"].shape == (1, 5, 2)
    assert abs(posterior.spectrum("x").peaks[0] - 9 / (2 * np.pi)) < 0.5
    posterior.save(tmp_path / "posterior.nc")
    again = bk.load(tmp_path / "posterior.nc", posterior.model)
    points = {"x": TEST}
    np.testing.assert_array_equal(again.predict(points).mean, posterior.predict(points).mean)
    np.testing.assert_array_equal(
        again.sample(0, 3)["solution"], posterior.sample(0, 3)["solution"]
    )


def test_budget_exhausted_is_reported_and_other_posteriors_are_starts(posterior):
    model = model_of()
    with pytest.warns(bk.BayeskitWarning):
        short = bk.infer(model, None, MaximumAPosteriori(max_iterations=20, restarts=2), key=0)
    assert not short.convergence.converged
    assert "after max_iterations=20" in short.convergence.reason
    exact = bk.infer(model, None)
    with pytest.warns(bk.BayeskitWarning):
        near = bk.infer(model, None, MaximumAPosteriori(max_iterations=20), initial=exact)
    assert near.convergence.objective[0] > short.convergence.objective[0]
    again = bk.infer(model, None, initial=posterior)
    np.testing.assert_allclose(again.mean["solution"], exact.mean["solution"], atol=1e-8)


def test_steps_into_nowhere_are_taken_back():
    with pytest.warns(bk.BayeskitWarning):
        found = bk.infer(
            model_of(), None, MaximumAPosteriori(max_iterations=100, learning_rate=1e3)
        )
    assert np.all(np.isnan(found.convergence.objective) <= 1)
    assert all(np.all(np.isfinite(value)) for value in found.mean.values())


@pytest.mark.parametrize(
    ("residual", "family", "message"),
    [
        (lambda u, x: u.d("x", 2) + u.d("x") / x, "gaussian", "these have no value: use EM"),
        (lambda u, x: u.d("x", 4), "student-t", "has order 4; under a student-t spectrum"),
    ],
)
def test_what_has_no_joint_mode_is_refused(residual, family, message):
    with pytest.raises(ValueError, match=message):
        bk.infer(model_of(residual, family=family), None, MaximumAPosteriori())


def test_derivatives_that_rough_fields_have_not_are_refused(posterior):
    kernel = SpectralMixture(COMPONENTS, "student-t")
    solution = dataclasses.replace(posterior.approximation, kernel=kernel)
    rough = copy.copy(posterior)
    rough.approximation = solution
    with pytest.raises(ValueError, match=r"two derivatives only, got \{'x': 3\}"):
        rough.predict({"x": TEST}, derivative={"x": 3})
    assert np.all(np.isfinite(posterior.predict({"x": TEST}, derivative={"x": 3}).variance))


def test_a_start_without_density_is_an_error():
    ends = (Dirichlet("x", 0.0, 0.2), Dirichlet("x", 1.0, 0.2))
    with pytest.raises(FloatingPointError, match="broke down"):
        bk.infer(
            model_of(lambda u, x: u.d("x", 2) - jnp.log(u() - 0.5), ends),
            None,
            MaximumAPosteriori(max_iterations=50),
        )
