"""Chains given Gaussian messages, against dense Gaussian processes and against cuthbert."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cuthbert.filtering import filter as run_filter
from cuthbert.gaussian import kalman
from cuthbert.smoothing import smoother as run_smoother
from gpjax.kernels import RBF, Matern12, Matern32, Matern52
from gpjax.state_space import TruncatedPeriodic

from bayeskit import statespace
from bayeskit.statespace import Constant, Independent, chain_of, form_of, log_normaliser, smooth

POINTS, RANK = 24, 2
LENGTHSCALES, VARIANCES, CONSTANTS = (
    np.array([0.2, 0.7]),
    np.array([1.0, 0.3]),
    np.array([0.5, 2.0]),
)


def correlation(kind, distance):
    """Matérn correlations, written down from the textbook."""
    if kind is Matern12:
        return np.exp(-distance)
    if kind is Matern32:
        return (1 + np.sqrt(3) * distance) * np.exp(-np.sqrt(3) * distance)
    return (1 + np.sqrt(5) * distance + 5 * distance**2 / 3) * np.exp(-np.sqrt(5) * distance)


def covariance(kind, points):
    """Dense prior covariance (n, R, n, R) of the functions with their constants."""
    dense = np.zeros((len(points), RANK, len(points), RANK))
    for r in range(RANK):
        distance = np.abs(points[:, None] - points) / LENGTHSCALES[r]
        dense[:, r, :, r] = VARIANCES[r] * correlation(kind, distance) + CONSTANTS[r]
    return dense.reshape(len(points) * RANK, -1)


@pytest.fixture(scope="module")
def problem():
    """Points, some of them equal, and messages of rank one, of full rank, and of no content."""
    generator = np.random.default_rng(0)
    points = np.sort(generator.uniform(size=POINTS))
    points[5] = points[4]
    roots = generator.normal(size=(POINTS, RANK, RANK)) * 3
    roots[::2, :, 1] = 0.0
    roots[::5] = 0.0
    precisions = roots @ np.swapaxes(roots, 1, 2)
    shifts = np.einsum("nij,nj->ni", precisions, generator.normal(size=(POINTS, RANK)))
    return points, shifts, precisions


def chain(kind, points, lengthscales=LENGTHSCALES):
    steps = jnp.asarray(np.diff(points, prepend=-np.inf))
    form, _ = form_of("kernel", kind())
    values = {"lengthscale": jnp.asarray(lengthscales), "variance": jnp.asarray(VARIANCES)}
    return chain_of(form, values, jnp.asarray(CONSTANTS), steps)


def dense_posterior(kind, points, shifts, precisions):
    """Mean, covariance and log normaliser by dense linear algebra."""
    prior = covariance(kind, points)
    precision = np.zeros((POINTS, RANK, POINTS, RANK))
    precision[np.arange(POINTS), :, np.arange(POINTS)] = precisions
    precision = precision.reshape(POINTS * RANK, -1)
    matrix = np.eye(POINTS * RANK) + prior @ precision
    posterior = np.linalg.solve(matrix, prior)
    shift = shifts.reshape(-1)
    value = 0.5 * shift @ posterior @ shift - 0.5 * np.linalg.slogdet(matrix)[1]
    blocks = posterior.reshape(POINTS, RANK, POINTS, RANK)[np.arange(POINTS), :, np.arange(POINTS)]
    return (posterior @ shift).reshape(POINTS, RANK), blocks, value


@pytest.mark.parametrize("kind", [Matern12, Matern32, Matern52])
def test_smoothing_equals_dense_gaussian_process(kind, problem):
    with jax.enable_x64(True):
        found = smooth(chain(kind, problem[0]), *map(jnp.asarray, problem[1:]))
        found = jax.tree.map(np.asarray, found)
    mean, blocks, value = dense_posterior(kind, *problem)
    spread = found.second - found.mean[:, :, None] * found.mean[:, None, :]
    np.testing.assert_allclose(found.mean, mean, rtol=0, atol=1e-8 * np.abs(mean).max())
    np.testing.assert_allclose(spread, blocks, rtol=0, atol=1e-8)
    np.testing.assert_allclose(found.log_normaliser, value, rtol=1e-8)


def test_shifts_outside_the_range_of_singular_precisions_tilt_the_prior(problem):
    points, _, precisions = problem
    shifts = 0.3 * np.random.default_rng(2).normal(size=(POINTS, RANK))
    with jax.enable_x64(True):
        found = smooth(chain(Matern32, points), jnp.asarray(shifts), jnp.asarray(precisions))
        found = jax.tree.map(np.asarray, found)
    mean, blocks, value = dense_posterior(Matern32, points, shifts, precisions)
    spread = found.second - found.mean[:, :, None] * found.mean[:, None, :]
    np.testing.assert_allclose(found.mean, mean, rtol=0, atol=1e-8 * np.abs(mean).max())
    np.testing.assert_allclose(spread, blocks, rtol=0, atol=1e-8)
    np.testing.assert_allclose(found.log_normaliser, value, rtol=1e-8)


def test_a_message_that_is_no_number_is_not_ignored(problem):
    points, shifts, precisions = problem
    with jax.enable_x64(True):
        broken = jnp.asarray(precisions).at[3, 0, 0].set(jnp.nan)
        found = smooth(chain(Matern32, points), jnp.asarray(shifts), broken)
    assert np.isnan(found.log_normaliser)


def test_sharp_and_nearly_collinear_messages_keep_what_they_say_least_of():
    """Single precision against double, errors in the messages' own units.

    ``(m − m₀)ᵀ Λ (m − m₀)`` and ``tr Λ (V − V₀)`` are what errors cost in nats: over six seeds at
    most 6e-4 and 0.28, the latter from rounding second moments. Systems I + S Λ lost 1e3 nats.
    """
    generator = np.random.default_rng(1)
    points = np.sort(generator.uniform(size=POINTS))
    directions = 1.0 + 1e-3 * generator.normal(size=(POINTS, 3, RANK))
    precisions = 1e5 * np.einsum("nki,nkj->nij", directions, directions)
    truth = np.linalg.cholesky(covariance(Matern32, points)) @ generator.normal(size=POINTS * RANK)
    shifts = np.einsum("nij,nj->ni", precisions, truth.reshape(POINTS, RANK))
    shifts, precisions = shifts.astype(np.float32), precisions.astype(np.float32)
    found = []
    for dtype in (np.float32, np.float64):
        with jax.enable_x64(True):
            prior = jax.tree.map(lambda leaf: leaf.astype(dtype), chain(Matern32, points))  # noqa: B023
            messages = jnp.asarray(shifts, dtype), jnp.asarray(precisions, dtype)
            smoothed = smooth(prior, *messages)
        found.append(jax.tree.map(lambda leaf: np.asarray(leaf, float), smoothed))
    gap = found[0].mean - found[1].mean
    assert np.einsum("ni,nij,nj->n", gap, precisions, gap).max() <= 1e-2
    spread, expected = (
        each.second - each.mean[:, :, None] * each.mean[:, None, :] for each in found
    )
    costs = np.einsum("nij,nji->n", precisions.astype(float), spread - expected)
    assert np.abs(costs).max() <= 1.0


@pytest.mark.parametrize("kind", [Matern12, Matern32])
def test_derivatives_equal_finite_differences_also_at_equal_points(kind, problem):
    points, shifts, precisions = problem
    with jax.enable_x64(True):

        def value(lengthscales):
            made = chain(kind, points, lengthscales)
            return log_normaliser(made, jnp.asarray(shifts), jnp.asarray(precisions))

        slope = np.asarray(jax.grad(value)(jnp.asarray(LENGTHSCALES)))
        step = 1e-6
        differences = [
            float(value(LENGTHSCALES + step * e) - value(LENGTHSCALES - step * e)) / (2 * step)
            for e in np.eye(RANK)
        ]
    np.testing.assert_allclose(slope, differences, rtol=1e-6)


@pytest.mark.parametrize("parallel", [False, pytest.param(True, marks=pytest.mark.full)])
def test_smoothing_equals_cuthbert(parallel, problem):
    """Its square-root filter, on whitened pseudo-observations, in sequence and in parallel."""
    points, shifts, precisions = problem
    with jax.enable_x64(True):
        made = chain(Matern32, points)
        ours = smooth(made, jnp.asarray(shifts), jnp.asarray(precisions))
        count, size = made.output.shape
        observe = np.kron(np.eye(count), np.ones((1, size))) * np.asarray(made.output).reshape(
            1, -1
        )
        values, vectors = np.linalg.eigh(precisions)
        there = values > 1e-12 * values.max()
        roots = np.sqrt(np.where(there, values, 0))[:, :, None] * np.swapaxes(vectors, 1, 2)
        inverse = np.where(there, 1 / np.sqrt(np.where(there, values, 1)), 0)[:, :, None]
        observed = np.einsum("nij,nj->ni", inverse * np.swapaxes(vectors, 1, 2), shifts)

        def blocks(array):
            dense = np.zeros((count * size, count * size))
            for r in range(count):
                dense[r * size : (r + 1) * size, r * size : (r + 1) * size] = array[r]
            return dense

        def root(array):
            w, v = np.linalg.eigh(array)
            return v * np.sqrt(np.maximum(w, 0))

        transition = np.stack([blocks(a) for a in np.asarray(made.transition)])
        noise = np.stack([root(blocks(q)) for q in np.asarray(made.noise)])
        transition[0], noise[0] = np.eye(count * size), 0.0
        inputs = jax.tree.map(jnp.asarray, (transition, noise, roots @ observe, observed))
        nothing = jnp.zeros(count * size)
        filtering = kalman.build_filter(
            nothing,
            jnp.asarray(root(blocks(np.asarray(made.initial)))),
            lambda i: (i[0], nothing, i[1]),
            lambda i: (i[2], jnp.zeros(count), jnp.eye(count), i[3]),
        )
        smoothing = kalman.build_smoother(lambda i: (i[0], nothing, i[1]))
        states = run_filter(filtering, inputs, filtering.init_prepare(), parallel=parallel)
        theirs = run_smoother(smoothing, states, inputs, parallel=parallel)
        mean = np.asarray(theirs.mean)[1:] @ observe.T
        factor = observe @ np.asarray(theirs.chol_cov)[1:]
        spread = np.asarray(ours.second) - ours.mean[:, :, None] * ours.mean[:, None, :]
    np.testing.assert_allclose(ours.mean, mean, rtol=0, atol=1e-8 * np.abs(mean).max())
    np.testing.assert_allclose(spread, factor @ np.swapaxes(factor, 1, 2), rtol=0, atol=1e-8)


def test_draws_have_the_smoothed_moments(problem):
    points, shifts, precisions = problem
    count = 4000
    with jax.enable_x64(True):
        made = chain(Matern32, points)
        shifts, precisions = jnp.asarray(shifts), jnp.asarray(precisions)
        keys = jax.random.split(jax.random.key(0), count)
        draws = jax.vmap(lambda k: statespace.sample(k, made, shifts, precisions))(keys)
        found = smooth(made, shifts, precisions)
        mean, second, draws = map(np.asarray, (found.mean, found.second, draws))
    spread = second - mean[:, :, None] * mean[:, None, :]
    deviation = np.sqrt(np.einsum("nii->ni", spread))
    # Six standard errors, over 48 means and 96 covariances.
    assert np.all(np.abs(draws.mean(0) - mean) < 6 * deviation / np.sqrt(count))
    centred = draws - draws.mean(0)
    sampled = np.einsum("sni,snj->nij", centred, centred) / count
    scale = deviation[:, :, None] * deviation[:, None, :]
    assert np.all(np.abs(sampled - spread) < 6 * np.sqrt(2 / count) * scale)


@pytest.mark.parametrize(
    "kernel",
    [
        TruncatedPeriodic(period=0.5, lengthscale=0.7, truncation_order=3),
        Matern12(lengthscale=0.2) + Matern32(lengthscale=0.5),
        TruncatedPeriodic(truncation_order=2) * Matern32(),
    ],
    ids=["periodic", "sum", "product"],
)
def test_composed_kernels_have_their_own_covariance(kernel):
    """Prior covariance between two points, from the messages of the identity at one of them."""
    distance = 0.3
    with jax.enable_x64(True):
        form, values = form_of("kernel", kernel)
        values = {name: jnp.asarray([value]) for name, value in values.items()}
        made = chain_of(form, values, jnp.asarray([1e-12]), jnp.asarray([jnp.inf, distance]))
        shifts = jnp.asarray([[0.0], [1.0]])
        cross = smooth(made, shifts, jnp.zeros((2, 1, 1))).mean
        expected = kernel(jnp.zeros(1), jnp.asarray([distance])), kernel(jnp.zeros(1), jnp.zeros(1))
    np.testing.assert_allclose(np.ravel(cross), np.ravel(expected), rtol=1e-6)


def test_constant_and_independent_functions():
    with jax.enable_x64(True):
        steps, shifts = jnp.asarray([jnp.inf, 1.0, 0.0]), jnp.asarray([[0.0], [1.0], [0.0]])
        found = {}
        for kernel in (Constant(2.0), Independent(2.0)):
            form, values = form_of("kernel", kernel)
            made = chain_of(
                form, {"variance": jnp.asarray([values["variance"]])}, jnp.asarray([0.5]), steps
            )
            found[form.kind] = np.ravel(smooth(made, shifts, jnp.zeros((3, 1, 1))).mean)
    np.testing.assert_allclose(found["Constant"], [2.5, 2.5, 2.5])
    np.testing.assert_allclose(found["Independent"], [0.5, 2.5, 2.5])


@pytest.mark.parametrize(
    ("kernel", "kind", "text"),
    [
        (Matern32, TypeError, "parentheses"),
        (RBF(), TypeError, "RBF"),
        (Matern32(lengthscale=-1.0), ValueError, "lengthscale"),
        (Matern32(lengthscale=[1.0, 2.0]), ValueError, "lengthscale"),
        ("Matern32", TypeError, "Matern52"),
    ],
)
def test_kernels_without_a_state_space_form_are_refused_by_name(kernel, kind, text):
    with pytest.raises(kind, match=text):
        form_of("kernel", kernel)


@pytest.mark.parametrize("variance", [0.0, -1.0, np.nan])
def test_variances_are_positive(variance):
    with pytest.raises(ValueError, match="variance must be a positive number"):
        Constant(variance)
