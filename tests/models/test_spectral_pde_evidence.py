"""Measurements, noise and unknown coefficients: against dense normal distributions and truth."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax.flatten_util import ravel_pytree
from numpyro.distributions import biject_to
from scipy import stats

import bayeskit as bk
from bayeskit.models import SpectralMixture, SpectralPDE
from bayeskit.models.spectral_pde import evidence, hyper, learning
from bayeskit.models.spectral_pde import problem as problems
from bayeskit.pde import PDE, Dirichlet, Neumann, Sensors, Unknown
from tests.registered import REGISTERED

UNKNOWN, CLASH = Unknown("k", dist.Normal()), Unknown("solution", dist.Normal())
STIFFNESS = 3.0
NOISE = 0.02


def solution(x):
    return np.sin(20 * x) + 0.5 * np.cos(7 * x)


def source(x):
    return -400 * np.sin(20 * x) - 24.5 * np.cos(7 * x) + STIFFNESS**2 * solution(x)


def oscillator(points=32, components=3, **options):
    """``u'' + k² u = f`` without conditions, ``k`` unknown: the research file's problem."""
    k = Unknown("k", dist.Normal(3.0, 1.0))
    pde = PDE(lambda u, x: u.d("x", 2) + k**2 * u - source(x), {"x": (0.0, 1.0)}, [])
    kernel = SpectralMixture(components)
    return SpectralPDE(pde, grid={"x": points}, kernel=kernel, **options)


def measured(seed=0, count=20):
    generator = np.random.default_rng(seed)
    points = generator.uniform(0.0, 1.0, count)
    return Sensors({"x": points}, solution(points) + NOISE * generator.normal(size=count))


@pytest.fixture(scope="module")
def posterior():
    return bk.infer(oscillator(), measured())


def _problem(dims, source=1.0):
    """A problem with noisy and exact conditions, sensors of a slope, and an unknown."""
    k = Unknown("k", dist.Normal(1.0, 1.0))

    def residual(u, *place):
        return sum(u.d(dim, 2) for dim in u.coordinates) + k * u - source

    box = dict.fromkeys(dims, (0.0, 2.0))
    conditions = [Dirichlet(dims[0], 0.0, 0.3, noise=0.05), Neumann(dims[0], 2.0, 0.1)]
    points = dict(
        zip(dims, np.random.default_rng(0).uniform(0.2, 1.8, (len(dims), 5)), strict=True)
    )
    operator = (lambda u, x: u.d("x")) if len(dims) == 1 else (lambda u, x, y: u.d("x") - 2 * u())
    sensors = Sensors(points, np.linspace(-1.0, 1.0, 5), operator=operator)
    model = SpectralPDE(
        PDE(residual, box, conditions), grid=dict.fromkeys(dims, 9), kernel=SpectralMixture(2)
    )
    prepared = model.prepare(sensors)
    return prepared.model, prepared.data


@pytest.mark.parametrize(
    ("dims", "source"),
    [(("x",), 1.0), (("x",), 0.0), pytest.param(("x", "y"), 1.0, marks=pytest.mark.full)],
)
def test_evidence_and_its_gradient_are_those_of_a_dense_normal_distribution(dims, source):
    """Where the equation has no source, of all else given the equation."""
    with jax.enable_x64(True):
        model, problem = _problem(dims, source)
        assert problem.stated.given == (source == 0.0)
        matrices = jax.jit(evidence.design)(problem)
        start = hyper.start(problem)
        flat, unravel = ravel_pytree(start)
        zero = jnp.zeros(matrices.value.shape[1])

        def dense(vector):
            given = unravel(vector)
            scales = jnp.exp(hyper.log_scales(model.kernel, problem, given))
            values = hyper.unknown_values(problem, given.unknowns)
            second = sum(
                matrices.nodes[k] for k, each in enumerate(problem.at_nodes.orders) if 2 in each
            )
            (own,) = (k for k, each in enumerate(problem.at_nodes.orders) if not any(each))
            equation = second + values["k"] * matrices.nodes[own]
            rows = jnp.concatenate([matrices.conditions, matrices.sensors, equation])
            right = jnp.concatenate(
                [
                    matrices.condition_values,
                    problem.measured.values,
                    jnp.full(equation.shape[0], source),
                ]
            )
            noise, sensor = hyper.deviations(problem, given)
            exact = matrices.condition_noise == 0
            size = jnp.max(jnp.abs(matrices.conditions), axis=1) * problem.units.field
            condition = jnp.where(exact, 1e-7 * size, matrices.condition_noise)
            spread = jnp.concatenate([condition, sensor, jnp.full(equation.shape[0], noise)])
            covariance = (rows * scales**2) @ rows.T + jnp.diag(spread**2)
            return rows, right, covariance

        @jax.jit
        def found(vector):
            return evidence.log_evidence(model.kernel, problem, matrices, unravel(vector), zero)

        _, right, covariance = (np.asarray(part) for part in jax.jit(dense)(flat))
        if source == 0.0:
            first = matrices.conditions.shape[0] + matrices.sensors.shape[0]
            cross = covariance[:first, first:]
            explained = cross @ np.linalg.solve(covariance[first:, first:], cross.T)
            right, covariance = right[:first], covariance[:first, :first] - explained
        expected = stats.multivariate_normal(cov=covariance, allow_singular=True)
        np.testing.assert_allclose(found(flat), expected.logpdf(right), rtol=1e-7)
        # A random direction each, by central differences.
        slope = jax.jit(jax.grad(found))(flat)
        for seed in range(3):
            direction = jnp.asarray(np.random.default_rng(seed).normal(size=flat.shape))
            step = 1e-5
            change = (found(flat + step * direction) - found(flat - step * direction)) / (2 * step)
            np.testing.assert_allclose(slope @ direction, change, rtol=1e-5)


def test_background_variances_add_up_to_the_power_of_the_kernel():
    with jax.enable_x64(True):
        model, problem = _problem(("x",))
        given = hyper.start(problem)._replace(
            log_weights=(jnp.log(jnp.asarray([1e-12, 0.8])),),
            frequencies=(jnp.asarray([0.0, 1.4]),),
            log_widths=(jnp.log(jnp.asarray([0.3, 0.05])),),
        )
        variances = jnp.exp(2 * hyper.log_scales(model.kernel, problem, given))
        waves = (variances.shape[0] - 4) // 2
        # Cosines and sines share the power: half of their sum.
        power = 0.5 * jnp.sum(variances[4 : 4 + 2 * waves]) / problem.units.field**2
        np.testing.assert_allclose(power, 0.8, rtol=0.02)


def test_an_unknown_coefficient_and_the_solution_are_within_their_intervals(posterior):
    assert posterior.convergence.converged
    error = posterior.mean["k"] - STIFFNESS
    deviation = np.sqrt(posterior.variance["k"])
    assert abs(error) < 3 * deviation
    assert 0.05 < deviation < 0.3  # 0.08 to 0.17 in the research file's and our repetitions
    assert 0.5 * NOISE < posterior.mean["sensor_noise"] < 2 * NOISE
    points = np.linspace(0.0, 1.0, 101)
    found = posterior.predict({"x": points})
    z = (found.mean - solution(points)) / np.sqrt(found.variance)
    assert np.mean(z**2) < 4.0
    assert np.max(np.abs(found.mean - solution(points))) < 0.1


@pytest.mark.parametrize(
    "prior",
    [
        dist.Normal(3.0, 1.0),
        dist.LogNormal(0.0, 0.5),
        dist.Uniform(0.0, 1.0),
        dist.HalfNormal(1.0),
        dist.Gamma(5.0, 1.0),
        dist.StudentT(5.0, 0.0, 2.0),
    ],
)
def test_what_nothing_is_known_of_keeps_its_prior(prior):
    """Density and volume of an unknown alone, by its log prior: Laplace's approximation of it."""
    with jax.enable_x64(True):
        pde = PDE(
            lambda u, x: u.d("x", 2) + 1e-12 * Unknown("k", prior) * u - 1.0, {"x": (0.0, 1.0)}, []
        )
        prepared = SpectralPDE(pde, grid={"x": 9}, kernel=SpectralMixture(1)).prepare(None)
        model, problem = prepared.model, prepared.data
        start = hyper.start(problem)

        def density(coordinate):
            moved = start._replace(unknowns={"k": coordinate})
            return hyper.log_prior(model, problem, moved)

        grid = jnp.linspace(-30.0, 30.0, 20001)
        logs = jax.vmap(density)(grid)
        values = jax.vmap(lambda c: hyper.unknown_values(problem, {"k": c})["k"])(grid)
        # Against the prior itself: probability and mean, by quadrature in the coordinate.
        rest = hyper.log_prior(model, problem, start) - _own(problem, 0.0)
        weights = jnp.exp(logs - rest) * (grid[1] - grid[0])
        np.testing.assert_allclose(jnp.sum(weights), 1.0, rtol=1e-4)
        np.testing.assert_allclose(jnp.sum(weights * values), prior.mean, rtol=1e-3, atol=1e-3)


def _own(problem, coordinate):
    """Log density of the unknown's coordinate, by NumPyro's transformed distribution."""
    prior = problem.unknowns["k"]
    centre, scale = problem.spans["k"]
    free = dist.TransformedDistribution(prior, biject_to(prior.support).inv)
    return free.log_prob(centre + scale * coordinate) + jnp.log(scale)


def _in_units(length):
    """Unknown, its deviation and noise, without units, of a problem in boxes of some length."""
    generator = np.random.default_rng(0)
    k = Unknown("k", dist.Normal(10.0 / length**2, 4.0 / length**2))
    pde = PDE(
        lambda u, x: u.d("x", 2) + k * u + 391 / length**2 * np.sin(20 * x / length),
        {"x": (0.0, length)},
        [Neumann("x", 0.0, 20.0 / length, noise=1.0 / length)],
    )
    places = generator.uniform(0.0, 1.0, 14)
    slopes = (20.0 * np.cos(20 * places) + 0.2 * generator.normal(size=14)) / length
    sensors = Sensors({"x": length * places}, slopes, operator=lambda u, x: u.d("x"))
    posterior = bk.infer(SpectralPDE(pde, grid={"x": 24}, kernel=SpectralMixture(2)), sensors)
    mean, deviation = posterior.mean["k"], np.sqrt(posterior.variance["k"])
    noise = posterior.mean["sensor_noise"]
    return np.array([mean * length**2, deviation * length**2, noise * length])


@pytest.mark.full
def test_units_of_the_box_do_not_matter():
    found = _in_units(1.0)
    assert abs(found[0] - 9.0) < 3 * found[1]
    np.testing.assert_allclose(_in_units(1e-3), found, rtol=0.02)
    np.testing.assert_allclose(_in_units(1e4), found, rtol=0.02)


@pytest.mark.full
def test_methods_agree_on_the_unknown(posterior):
    messages = bk.infer(
        posterior.model, posterior.data, bk.inference.MessagePassing(max_iterations=300)
    )
    deviation = np.sqrt(posterior.variance["k"])
    assert abs(messages.mean["k"] - posterior.mean["k"]) < 0.1 * deviation
    assert np.sqrt(messages.variance["k"]) == pytest.approx(deviation, rel=0.1)
    assert messages.plugged_in == ()
    assert messages.variance["sensor_noise"] > 0


@pytest.mark.full
def test_chains_agree_with_messages_on_the_unknown(posterior):
    method = bk.inference.MCMC(num_warmup=500, num_samples=1000, num_chains=2)
    chains = bk.infer(oscillator(), posterior.data, method, key=0, initial=posterior)
    deviation = np.sqrt(chains.variance["k"])
    assert abs(chains.mean["k"] - posterior.mean["k"]) < 0.5 * deviation
    assert 0.6 < np.sqrt(posterior.variance["k"]) / deviation < 1.3


@pytest.mark.full
def test_leave_one_out_is_a_refit_without_the_sensor(posterior):
    # Spectrum, noise and unknown stay: what is left out is the measurement alone.
    with jax.enable_x64(True):
        model, problem = posterior.prepared.model, posterior.prepared.data
        given = jax.tree.map(jnp.asarray, posterior.approximation.hyper)
        outside, _ = posterior.approximation.log_predictive(model, problem)
        _, noise = hyper.deviations(problem, given)
        for index in (0, 7):
            kept = np.arange(20) != index
            old = problem.measured
            fewer = problem._replace(
                measured=problems.Measured(
                    old.orders,
                    old.coefficients[:, kept],
                    tuple(each[kept] for each in old.points),
                    old.values[kept],
                    old.offset[kept],
                    noise[kept],
                )
            )
            given_fewer = given._replace(
                log_noise={name: v for name, v in given.log_noise.items() if name == "equation"}
            )
            zero = jnp.zeros_like(posterior.approximation.coefficients)
            refit = learning.solution(model, fewer, given_fewer, zero)
            row = evidence.sensor_rows(problem, problems.WIDEST)[index]
            spread = np.linalg.solve(np.asarray(refit.factor).T, np.asarray(row * refit.scales))
            variance = spread @ spread + noise[index] ** 2
            expected = stats.norm.logpdf(
                old.values[index], row @ refit.coefficients, np.sqrt(variance)
            )
            np.testing.assert_allclose(outside[index], expected, rtol=1e-5)


def test_simulated_measurements_and_the_tree_have_the_sensors(posterior, tmp_path):
    tree = posterior.to_datatree(num_draws=300, posterior_predictive=True)
    simulated = tree["posterior_predictive"]["sensors"]
    assert simulated.dims == ("chain", "draw", "sensor")
    np.testing.assert_array_equal(tree["observed_data"]["sensors"], posterior.data.values)
    np.testing.assert_array_equal(tree["constant_data"]["sensor_x"], posterior.data.points["x"])
    noisy = posterior.predict(include_noise=True)
    error = simulated.mean(("chain", "draw")) - noisy.mean
    assert np.all(np.abs(error) < 5 * np.sqrt(noisy.variance / 300))
    assert np.isfinite(posterior.loo().elpd)
    posterior.save(tmp_path / "posterior.nc")
    loaded = bk.load(tmp_path / "posterior.nc", posterior.model)
    np.testing.assert_array_equal(loaded.mean["k"], posterior.mean["k"])
    np.testing.assert_array_equal(loaded.sample(1, 3)["k"], posterior.sample(1, 3)["k"])


@pytest.mark.full
def test_sensors_taken_for_noise_are_reported_and_restarts_find_more():
    """Two unknowns far from their priors' middle: a local mode has the sensors as noise."""
    truth = lambda x: np.sin(9 * x) + 0.3 * np.cos(4 * x)  # noqa: E731
    slope = lambda x: 9 * np.cos(9 * x) - 1.2 * np.sin(4 * x)  # noqa: E731
    curvature = lambda x: -81 * np.sin(9 * x) - 4.8 * np.cos(4 * x)  # noqa: E731
    a, b = (Unknown(name, dist.LogNormal(0.0, 1.0)) for name in "ab")
    pde = PDE(
        lambda u, x: (
            u.d("x", 2) + a * u.d("x") + b * u - (curvature(x) + 5 * slope(x) + 30 * truth(x))
        ),
        {"x": (0.0, 1.0)},
        [],
    )
    model = SpectralPDE(pde, grid={"x": 32}, kernel=SpectralMixture(3))
    generator = np.random.default_rng(1)
    places = generator.uniform(0.0, 1.0, 20)
    sensors = Sensors({"x": places}, truth(places) + 0.01 * generator.normal(size=20))
    with pytest.warns(bk.ConditioningWarning, match="learned for the sensors: .* try restarts=4"):
        local = bk.infer(model, sensors)
    best = bk.infer(model, sensors, bk.inference.EM(max_iterations=300, restarts=4), key=0)
    assert best.log_evidence > local.log_evidence + 30
    assert abs(best.mean["a"] - 5) < 4 * np.sqrt(best.variance["a"])
    assert abs(best.mean["b"] - 30) < 4 * np.sqrt(best.variance["b"])


@pytest.mark.full
def test_an_unknown_amplitude_of_the_source_is_calibrated():
    """An equation whose source unknowns scale would be most probable if there were none."""
    amplitude = Unknown("amplitude", dist.LogNormal(0.0, 1.0))
    pde = PDE(
        lambda u, x: u.d("x", 2) + amplitude * 81.0 * np.sin(9 * x),
        {"x": (0.0, 1.0)},
        [Dirichlet("x", 0.0, 0.0)],
    )
    model = SpectralPDE(pde, grid={"x": 32}, kernel=SpectralMixture(3))
    generator = np.random.default_rng(0)
    places = generator.uniform(0.0, 1.0, 20)
    truth = 2 * np.sin(9 * places) + 0.7 * places
    readings = truth + 0.3 * generator.normal(size=(24, 20))
    with warnings.catch_warnings():
        # The noise is a fifth of what is measured.
        warnings.simplefilter("ignore", bk.ConditioningWarning)
        found = bk.infer_batch(model, Sensors({"x": places}, readings))
    z = (found.mean["amplitude"] - 2.0) / np.sqrt(found.variance["amplitude"])
    assert 0.4 < np.mean(z**2) < 2.0  # 24 squares of normal numbers: deviation 0.29
    assert 0.05 < np.mean(np.sqrt(found.variance["amplitude"])) < 0.2
    assert abs(np.mean(found.mean["sensor_noise"]) - 0.3) < 0.03


@pytest.mark.full
def test_a_grid_too_coarse_for_the_source_is_reported():
    """An inverse problem whose band is too narrow must not answer in silence."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        posterior = bk.infer(oscillator(points=9), measured())
    told = " ".join(str(each.message) for each in caught)
    assert "frequencies that the grid hardly resolves" in told
    assert "errors of" in told
    # Nothing is learned where nothing can be: the prior's deviation is one.
    assert abs(posterior.mean["k"] - STIFFNESS) < 2 * np.sqrt(posterior.variance["k"])
    assert posterior.variance["k"] > 0.5


@pytest.mark.full
@pytest.mark.parametrize("known", [True, False])
def test_two_dimensions_with_sensors_alone_are_the_harmonic_function(known):
    """Laplace's equation, no conditions: the real part of a cubic polynomial, or a wave that grows.

    Zero satisfies the equation, and has to be told from the field by the sensors alone.
    """

    def harmonic(x, y):
        return x**3 - 3 * x * y**2 + y if known else np.sin(2 * x) * np.exp(2 * y - 2)

    generator = np.random.default_rng(1)
    x, y = generator.uniform(-1.0, 1.0, (2, 40))
    readings = harmonic(x, y) + 0.01 * generator.normal(size=40)
    sensors = Sensors({"y": y, "x": x}, readings, noise=0.01 if known else None)
    pde = PDE(lambda u, x, y: u.d("x", 2) + u.d("y", 2), {"x": (-1.0, 1.0), "y": (-1.0, 1.0)}, [])
    model = SpectralPDE(pde, grid={"x": 12, "y": 11}, kernel=SpectralMixture(2))
    posterior = bk.infer(model, sensors)
    line = np.linspace(-0.8, 0.8, 9)
    found = posterior.predict({"x": line, "y": line})
    truth = harmonic(line[:, None], line[None, :])
    z = (found.mean - truth) / np.sqrt(found.variance)
    assert np.mean(z**2) < 4.0
    assert np.max(np.abs(found.mean - truth)) < 0.05
    if not known:
        assert 0.005 < posterior.mean["sensor_noise"] < 0.016


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (([0.1, 0.2], [1.0, 2.0]), TypeError, "points must be a mapping"),
        (({"x": [0.1, 0.2]}, [1.0]), ValueError, r"values must be \(2,\)"),
        (({"x": [0.1, np.nan]}, [1.0, 2.0]), ValueError, r"points\['x'\] has 1 non-finite"),
        (({"x": [0.1, 0.2]}, [1.0, np.inf]), ValueError, "values has 1 non-finite"),
        (({"x": [0.1, 0.2]}, [1.0, 2j]), TypeError, "values: got dtype complex128"),
        (({"x": [0.1], "y": [0.1, 0.2]}, [1.0]), ValueError, r"one length n > 0"),
        (({"x": []}, []), ValueError, r"one length n > 0"),
        (({0: [0.1]}, [1.0]), TypeError, r"names of dimensions as keys, got \[0\]"),
        (({"x": [0.1j]}, [1.0]), TypeError, r"points\['x'\]: got dtype complex128"),
        (({"x": [0.1]}, [1.0], None, lambda u, x: 0.0 * u), ValueError, "not depend on u: all its"),
        (({"x": [1, 2]}, [1, 1], None, lambda u, x: np.ones(3) * u), ValueError, "fixed shape"),
        (({"x": [0.1]}, [1.0], 0.0), ValueError, "noise must be positive"),
        (({"x": [0.1]}, [1.0], [0.1, 0.2]), ValueError, r"noise must be a number or \(1,\)"),
        (({"x": [0.1]}, [1.0], None, "u"), TypeError, "operator must be a function"),
        (({"x": [0.1]}, [1.0], None, lambda u, x: u**2), ValueError, "operator must be linear"),
        (({"x": [0.1]}, [1.0], None, lambda u, x: 1.0 + x), ValueError, "does not depend on u"),
        (({"x": [0.1]}, [1.0], None, lambda u, t: u), TypeError, "operator must take"),
    ],
)
def test_sensors_that_make_no_sense_are_refused(arguments, kind, message):
    if message == "operator must take":
        arguments = (*arguments[:3], lambda u: u)
    with pytest.raises(kind, match=message):
        Sensors(*arguments)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (("k", 3.0), TypeError, "prior must be a NumPyro distribution"),
        (("2k", dist.Normal()), TypeError, "name must be a name"),
        (("k", dist.Normal(np.zeros(2))), ValueError, "prior must be a scalar"),
        (("k", dist.Poisson(1.0)), ValueError, "prior must be continuous"),
        (("k", dist.ImproperUniform(dist.constraints.real, (), ())), ValueError, "drawn from"),
        (("k", dist.Uniform(0.0, 0.0, validate_args=False)), ValueError, "must spread over"),
    ],
)
def test_unknowns_that_make_no_sense_are_refused(arguments, kind, message):
    with pytest.raises(kind, match=message):
        Unknown(*arguments)


def _deterministic(residual, conditions):
    pde = PDE(residual, {"x": (0.0, 1.0)}, conditions)
    model = SpectralPDE(pde, grid={"x": 32}, kernel=SpectralMixture(3))
    return bk.infer(model, None, bk.inference.EM("evidence"))


def test_the_order_of_sensors_does_not_matter(posterior):
    sensors = measured()
    order = np.argsort(sensors.points["x"])
    again = bk.infer(
        oscillator(), Sensors({"x": sensors.points["x"][order]}, sensors.values[order])
    )
    np.testing.assert_allclose(again.mean["k"], posterior.mean["k"], atol=1e-5)
    np.testing.assert_allclose(again.variance["k"], posterior.variance["k"], rtol=1e-3)


def test_the_order_of_coordinates_does_not_matter():
    """Nor whether the sensors have been a tree of arrays in between, whose mappings are sorted."""
    along, across, values = np.random.default_rng(0).uniform(size=(3, 6))
    pde = PDE(lambda u, x, y: u.d("x", 2) + u.d("y", 2), dict.fromkeys("xy", (0.0, 1.0)), [])
    model = SpectralPDE(pde, grid={"y": 9, "x": 8}, kernel=SpectralMixture(2))
    usual = Sensors({"x": along, "y": across}, values, operator=lambda u, x, y: u.d("x") - y * u())
    turned = Sensors({"y": across, "x": along}, values, operator=lambda u, y, x: u.d("x") - y * u())
    expected = model.prepare(usual).data.measured
    assert set(expected.orders) == {(1, 0), (0, 0)}
    for sensors in (turned, jax.tree.map(lambda leaf: leaf, turned)):
        found = model.prepare(sensors).data.measured
        by_order = dict(zip(found.orders, found.coefficients, strict=True))
        for orders, coefficients in zip(expected.orders, expected.coefficients, strict=True):
            np.testing.assert_array_equal(by_order[orders], coefficients)
        np.testing.assert_array_equal(found.points, expected.points)


def test_sensors_at_one_point_may_contradict_each_other():
    places = np.tile(np.linspace(0.05, 0.95, 10), 2)
    values = solution(places) + np.repeat([1.0, -1.0], 10)
    with pytest.warns(bk.ConditioningWarning, match="unless they are that noisy"):
        posterior = bk.infer(oscillator(), Sensors({"x": places}, values))
    assert 0.7 < posterior.mean["sensor_noise"] < 1.4
    assert abs(posterior.mean["k"] - STIFFNESS) < 3 * np.sqrt(posterior.variance["k"])


def test_lines_have_no_noise_that_could_be_large():
    found = _deterministic(
        lambda u, x: u.d("x", 2), [Dirichlet("x", 0.0, -1.0), Dirichlet("x", 1.0, 3.0)]
    ).predict({"x": np.linspace(0.0, 1.0, 21)})
    np.testing.assert_allclose(found.mean, np.linspace(-1.0, 3.0, 21), atol=1e-9)


@pytest.mark.parametrize("source", [np.zeros_like, lambda x: np.cos(np.pi * x)])
def test_what_the_conditions_leave_open_is_reported(source):
    with pytest.warns(bk.ConditioningWarning, match="leave the solution open"):
        _deterministic(
            lambda u, x: u.d("x", 2) - source(x), [Neumann("x", 0.0, 0.0), Neumann("x", 1.0, 0.0)]
        )


def test_problems_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="3 points outside the domain"):
        bk.infer(oscillator(), Sensors({"x": [-1.0, 2.0, 3.0, 0.5]}, np.ones(4)))
    with pytest.raises(ValueError, match=r"sensors have points of \['t'\]"):
        bk.infer(oscillator(), Sensors({"t": [0.5]}, [1.0]))
    with pytest.raises(ValueError, match="takes no measurements, noise or unknown"):
        bk.infer(oscillator(), measured(), bk.inference.EM("residual"))
    with pytest.raises(ValueError, match=r"values must be \(n,\), one a point"):
        bk.infer(oscillator(), Sensors({"x": [0.1, 0.2]}, np.ones((3, 2))))
    with pytest.raises(ValueError, match="needs a proper prior: noise_prior is flat"):
        bk.infer(oscillator(noise_prior=None), measured(), bk.inference.MCMC(), key=0)
    with pytest.raises(ValueError, match=r"spectrum_prior has \['weight'\]"):
        oscillator(spectrum_prior={"weight": None})


def _prepared(residual, conditions=(), dims=("x",), points=9, **options):
    pde = PDE(residual, dict.fromkeys(dims, (0.0, 1.0)), conditions)
    return SpectralPDE(pde, grid=dict.fromkeys(dims, points), **options).prepare(None)


@pytest.mark.parametrize(
    ("residual", "options", "kind", "message"),
    [
        (
            lambda u, x: u.d("x"),
            {"conditions": [Dirichlet("x", 0.0, lambda x: UNKNOWN * x)]},
            ValueError,
            "only inside a residual",
        ),
        (lambda u, x: u.d("x", 2) + CLASH * u, {}, ValueError, "as a part of the model is"),
        (lambda u, x: u.d("x", 2) + jnp.sin(UNKNOWN) * u, {}, TypeError, r"write u\(\)"),
        (
            lambda u, x, y: u.d("x") + u.d("y"),
            {"dims": ("x", "y"), "points": 80, "equation_noise": 0.1},
            ValueError,
            r"needs \d+ waves",
        ),
        (
            lambda u, x: u.d("x", 2) + UNKNOWN * u + Unknown("k", dist.Normal()),
            {},
            ValueError,
            "two unknowns of the name 'k'",
        ),
    ],
)
def test_statements_that_make_no_sense_are_refused(residual, options, kind, message):
    with pytest.raises(kind, match=message):
        _prepared(residual, **options)


def test_registered_problem_is_of_this_family():
    assert any(isinstance(problem.model, SpectralPDE) for problem in REGISTERED)
