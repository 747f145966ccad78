"""Peers of the functional Tucker decomposition do what they are said to do."""

import functools

import jax
import numpy as np
import pytest
from gpjax.kernels import Matern12, Matern32
from threadpoolctl import threadpool_limits

import bayeskit as bk
from bayeskit.inference import MessagePassing
from benchmarks.baselines.conditional_ep import _design, conditional_ep
from benchmarks.baselines.tensor_peers import (
    gradient_boosting,
    masked_tensor,
    sparse_gaussian_process,
)

LENGTHSCALE, NOISE = 0.3, 0.1


def product_table(count, points=8, rows=60):
    """Rows of a product of functions, each index one of a few points."""
    generator = np.random.default_rng(0)
    places = np.sort(generator.uniform(size=(count, points)), axis=1)
    position = generator.integers(0, points, size=(rows, count))
    factors = [1.5 + np.sin(5 * place + k) for k, place in enumerate(places)]
    values = np.prod([f[i] for f, i in zip(factors, position.T, strict=True)], axis=0)
    indices = np.stack([p[i] for p, i in zip(places, position.T, strict=True)], axis=1)
    return indices, values + NOISE * generator.normal(size=rows)


def test_conditional_ep_rests_where_message_passing_does():
    """For a CP core of rank one and known noise both solve the same equations.

    A sweep from our solution changes it by no more than it is off: functions by 1e-4, because how
    they share their product's size settles last, and the product by less. Leaving out the variances
    of the other function changes it by far more.
    """
    data = product_table(2)
    settings = {"scale": 1.0, "offset": 0.0, "noise_variance": NOISE**2}
    modes = [
        bk.models.Mode("x", kernel=Matern12(lengthscale=LENGTHSCALE)),
        bk.models.Mode("z", kernel=Matern32(lengthscale=LENGTHSCALE)),
    ]
    model = bk.models.FunctionalTucker(modes, ranks=1, core="cp", **settings)
    method = MessagePassing(max_iterations=1000, tolerance=0.0)
    with pytest.warns(bk.ConvergenceWarning):
        ours = bk.infer(model, data, method, key=0)
    functions = [
        (ours.mean[site], ours.variance[site][:, :, None]) for site in ("mode_x", "mode_z")
    ]

    def sweep(initial):
        return conditional_ep(
            *data,
            rank=1,
            lengthscales=LENGTHSCALE,
            kernels=("matern12", "matern32"),
            constant=1.0,
            shrinkage=None,
            damping=0.0,
            noise_variance=NOISE**2,
            initial=initial,
            sweeps=1,
        )

    theirs = sweep(functions)
    for k, (mean, variance) in enumerate(functions):
        np.testing.assert_allclose(theirs.means[k], mean, rtol=1e-4)
        np.testing.assert_allclose(theirs.covariances[k], variance, rtol=1e-4)
    new = np.random.default_rng(1).uniform(-0.5, 1.5, size=(40, 2))
    mean, variance = theirs.predict(new)
    expected = ours.predict(new)
    np.testing.assert_allclose(mean, expected.mean, rtol=1e-4)
    np.testing.assert_allclose(variance, expected.variance, rtol=1e-4)
    other = sweep([(mean, 0 * variance) for mean, variance in functions])
    assert np.abs(other.predict(new)[0] - expected.mean).max() > 5e-4


def test_damped_conditional_ep_settles_where_the_undamped_one_does():
    data = product_table(2)
    settings = {"rank": 1, "lengthscales": LENGTHSCALE, "noise_variance": NOISE**2}
    runs = [
        conditional_ep(*data, **settings, damping=damping, sweeps=150) for damping in (0.0, 0.5)
    ]
    predictions = [run.predict(data[0])[0] for run in runs]
    # How size is shared between the functions settles slowly and hardly moves the product.
    np.testing.assert_allclose(*predictions, rtol=0, atol=0.05 * NOISE)


def test_core_of_the_baseline_lies_along_the_right_axes():
    generator = np.random.default_rng(0)
    ranks, rows = (2, 3, 4), 5
    core = generator.normal(size=ranks)
    means = [generator.normal(size=(rows, rank)) for rank in ranks]
    seconds = [mean[:, :, None] * mean[:, None, :] for mean in means]
    position = [np.arange(rows)] * 3
    expected = np.einsum("abc,na,nb,nc->n", core, *means)
    with jax.enable_x64(True):
        for k in range(3):
            first, second = _design(means, seconds, position, core, k)
            np.testing.assert_allclose(np.sum(first * means[k], axis=1), expected)
            np.testing.assert_allclose(np.sum(second * seconds[k], axis=(1, 2)), expected**2)


def test_conditional_ep_learns_core_and_noise():
    data = product_table(2, points=10, rows=200)
    found = conditional_ep(
        *data,
        rank=2,
        core="tucker",
        lengthscales=LENGTHSCALE,
        sweeps=60,
        damping=0.0,
        core_damping=0.0,
        noise_damping=0.0,
    )
    mean, variance = found.predict(data[0])
    assert np.sqrt(np.mean((mean - data[1]) ** 2)) < 2 * NOISE
    assert 0.25 * NOISE**2 < found.noise_variance < 4 * NOISE**2
    assert variance.min() > 0
    assert found.core.shape == (2, 2)
    assert found.core_covariance.shape == (4, 4)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"lengthscales": -1.0}, "lengthscales must be positive"),
        ({"kernels": "rbf"}, "kernels must be of"),
        ({"damping": 1.0}, "damping must be in"),
        ({"core": np.ones((2, 2))}, r"core must have the shape \(1, 1\)"),
        ({"rank": (1, 2)}, "equal ranks"),
    ],
)
def test_conditional_ep_refuses(settings, text):
    with pytest.raises(ValueError, match=text):
        conditional_ep(*product_table(2), **({"rank": 1, "lengthscales": 0.3} | settings))


PEERS = {
    "masked CP": functools.partial(masked_tensor, bins=(8, 8, None), rank=2),
    "masked Tucker": functools.partial(masked_tensor, bins=(8, 8, None), rank=2, core="tucker"),
    "boosting": functools.partial(gradient_boosting, iterations=30, folds=2),
    "boosting, exact": functools.partial(gradient_boosting, iterations=30, folds=2, exact=True),
    "boosted quantiles": functools.partial(
        gradient_boosting, iterations=30, folds=2, spread="quantiles"
    ),
    "sparse process": functools.partial(
        sparse_gaussian_process, categorical=(2,), inducing=20, steps=60
    ),
}


@pytest.mark.parametrize(
    "peer",
    [
        pytest.param(peer, id=name, marks=[pytest.mark.full] if name == "sparse process" else [])
        for name, peer in PEERS.items()
    ],
)
def test_peers_beat_the_mean(peer):
    if peer.func is masked_tensor:
        pytest.importorskip("tensorly")
    generator = np.random.default_rng(0)
    indices = np.column_stack([generator.uniform(size=(300, 2)), generator.integers(0, 3, 300)])
    values = np.sin(6 * indices[:, 0]) * np.cos(4 * indices[:, 1]) + indices[:, 2]
    values = values + NOISE * generator.normal(size=300)
    train, test = np.arange(300) < 200, np.arange(300) >= 200
    with threadpool_limits(1):
        found = peer(indices[train], values[train], indices[test])
    error = values[test] - found.mean
    assert np.mean(error**2) < 0.5 * np.var(values[test])
    if found.variance is not None:
        assert 0.2 < np.mean(error**2 / found.variance) < 4


@pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS)
def test_peers_refuse_what_is_not_finite(peer):
    if peer.func is masked_tensor:
        pytest.importorskip("tensorly")
    indices, values = product_table(3)
    indices[3, 0] = np.nan
    with pytest.raises(ValueError, match="indices has 1 entries that are not finite"):
        peer(indices, values, indices)
