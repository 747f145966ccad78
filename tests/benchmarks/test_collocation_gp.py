"""The plain Gaussian processes that the solver is compared with are what they say."""

import numpy as np
import pytest

from benchmarks.baselines.collocation_gp import KERNELS, Known, Prior, collocation_gp, condition
from benchmarks.spectral_pde.problems import allen_cahn, poisson


@pytest.mark.parametrize("name", KERNELS)
def test_derivatives_of_the_kernels(name):
    lags, step = np.array([-0.7, -0.2, 0.3, 1.1]), 1e-3
    stencil = np.array([1.0, -2.0, 1.0]) / step**2
    around = np.stack([KERNELS[name](lags + k * step, 0.6) for k in (-1, 0, 1)])
    value, second, fourth = KERNELS[name](lags, 0.6)
    np.testing.assert_allclose(stencil @ around[:, 0], second, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(stencil @ around[:, 1], fourth, rtol=1e-4, atol=1e-3)
    assert value.max() < KERNELS[name](0.0, 0.6)[0] == 1.0


def test_the_posterior_is_that_of_a_process_by_its_covariance():
    """Known values at faces alone: kriging with the kernel itself."""
    faces, places = np.array([[0.0, 0.0], [1.0, 0.5]]), np.array([[0.3, 0.2], [0.9, 0.4]])
    known = Known(faces, np.zeros((0, 2)), np.zeros(0), np.array([1.0, -2.0]))
    prior = Prior(KERNELS["squared-exponential"], np.array([0.5, 0.7]), 1e-12)
    fit = condition(prior, known)

    def covariance(first, second):
        scaled = (first[:, None] - second) / prior.scales
        return np.exp(-0.5 * np.sum(scaled**2, axis=2))

    inside = covariance(faces, faces)
    cross = covariance(places, faces)
    mean, variance = fit.predict(places)
    np.testing.assert_allclose(mean, cross @ np.linalg.solve(inside, known.values))
    scale = known.values @ np.linalg.solve(inside, known.values) / 2
    explained = np.sum(cross * np.linalg.solve(inside, cross.T).T, axis=1)
    np.testing.assert_allclose(variance, scale * (1.0 - explained))


@pytest.mark.parametrize("reaction", [None, allen_cahn])
def test_a_smooth_problem_is_solved(reaction):
    problem = poisson(lambda x: np.sin(4 * x), lambda x: -16 * np.sin(4 * x), (1.0,), 24, reaction)
    points = np.linspace(0.0, 1.0, 50)[:, None]
    mean, variance = collocation_gp("squared-exponential", problem, 24).predict(points)
    error = mean - np.sin(4 * points[:, 0])
    assert np.max(np.abs(error)) < 1e-5
    assert np.mean(error**2 / variance) < 2.0
