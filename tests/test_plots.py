"""Pictures show the numbers that they are given."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest

import bayeskit as bk
from bayeskit import plots


@pytest.fixture(autouse=True)
def _close_figures():
    plt.switch_backend("Agg")
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def problem():
    return bk.datasets.kronecker_sparse(0, shape=(4, 5), atoms=(6, 7), nonzeros=(2, 2))


@pytest.fixture(scope="module")
def posterior(problem):
    model = bk.models.KroneckerSBL(problem.dictionaries)
    return bk.infer(model, problem.measurements, bk.inference.EM(max_iterations=800))


def test_image_posterior_shows_mean_deviation_and_errors(tmp_path):
    rng = np.random.default_rng(0)
    truth = rng.random((8, 6))
    mean, spread = truth + 0.1, np.full((8, 6), 0.2)
    figure = plots.plot_image_posterior(mean, spread, truth=truth, baseline=0 * truth, title="all")
    panels = [axis for axis in figure.axes if axis.get_title()]
    assert len(panels) == 6
    error = panels[4].images[0].get_array()
    np.testing.assert_allclose(error, 0.1)
    standardised = panels[5].images[0].get_array()
    np.testing.assert_allclose(standardised, 0.5)
    assert "100%" in panels[5].get_title()
    assert f"{bk.metrics.psnr(truth, mean, np.ptp(truth)):.1f} dB" in panels[2].get_title()
    figure.savefig(tmp_path / "image.png")
    assert (tmp_path / "image.png").stat().st_size > 0


def test_image_posterior_needs_no_truth_and_refuses_other_shapes():
    image = np.zeros((4, 4))
    figure = plots.plot_image_posterior(image, image)
    assert len([axis for axis in figure.axes if axis.get_title()]) == 2
    with pytest.raises(ValueError, match="truth: got shape"):
        plots.plot_image_posterior(image, image, truth=np.zeros((4, 5)))
    with pytest.raises(ValueError, match="expected an image"):
        plots.plot_image_posterior(np.zeros(4), np.zeros(4))


def test_support_shows_coefficients_and_a_factor_an_axis(posterior, tmp_path):
    figure = plots.plot_support(posterior, max_coefficients=10)
    top, *factors = figure.axes
    assert len(factors) == 2
    assert len(top.get_xticks()) == 10
    np.testing.assert_allclose(factors[0].lines[0].get_ydata(), posterior.mean["scales_0"])
    figure.savefig(tmp_path / "support.png")


def test_support_shows_intervals_of_scales_that_have_any():
    draws = np.random.default_rng(0).lognormal(size=(400, 3))
    sampled = SimpleNamespace(
        batch=None,
        mean={"coefficients": np.array([1.0, 0.0, 2.0j]), "scales_0": draws.mean(axis=0)},
        variance={"coefficients": np.full(3, 0.04)},
        plugged_in=(),
        sample=lambda key, count: {"scales_0": draws[:count]},
        support=lambda probability: np.array([True, False, True]),
        prepared=SimpleNamespace(labels=SimpleNamespace(dims={"scales_0": ("frequency",)})),
    )
    top, factor = plots.plot_support(sampled).axes
    assert top.get_ylabel() == "|coefficient|"
    np.testing.assert_allclose(factor.lines[0].get_ydata(), np.median(draws, axis=0))
    assert "95% interval" in factor.get_title()
    assert factor.get_xlabel() == "frequency"


def test_convergence_shows_objective_and_tolerance(posterior, tmp_path):
    figure = plots.plot_convergence(posterior)
    left = figure.axes[0]
    np.testing.assert_array_equal(left.lines[0].get_ydata(), posterior.convergence.objective)
    assert "EM converged" in figure.get_suptitle()
    figure.savefig(tmp_path / "convergence.png")


def test_batches_are_refused():
    batch = SimpleNamespace(batch=2)
    for function in (plots.plot_support, plots.plot_convergence):
        with pytest.raises(TypeError, match="one data set"):
            function(batch)
