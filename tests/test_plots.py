"""Pictures show the numbers that they are given."""

import doctest
import inspect
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.stats

import bayeskit as bk
from bayeskit import plots


@pytest.fixture(autouse=True)
def _close_figures():
    plt.switch_backend("Agg")
    yield
    plt.close("all")


def pretended(**members):
    """A posterior with these members only."""
    kind = type("Pretended", (bk.models.KroneckerSBLPosterior,), members)
    return object.__new__(kind)


def test_documented_examples_run():
    results = doctest.testmod(plots)
    assert results.attempted > 0
    assert results.failed == 0


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
    for empty in (np.zeros(4), np.zeros((0, 4))):
        with pytest.raises(ValueError, match=r"mean: got shape .* expected an image"):
            plots.plot_image_posterior(empty, empty)


def test_pixels_without_spread_are_inside_only_where_they_are_right():
    truth = np.zeros((2, 2))
    mean, spread = np.array([[0.0, 1.0], [-1.0, 0.5]]), np.array([[0.0, 0.0], [0.0, 1.0]])
    panel = plots.plot_image_posterior(mean, spread, truth=truth).axes[4]
    assert "50% of pixels" in panel.get_title()
    np.testing.assert_array_equal(panel.images[0].get_array(), [[0.0, 1e6], [-1e6, 0.5]])


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"mean": 1j * np.eye(2)}, TypeError, "mean: got dtype complex128; expected real"),
        ({"mean": np.full((2, 2), np.nan)}, ValueError, "mean has 4 non-finite values"),
        ({"standard_deviation": -np.eye(2)}, ValueError, "standard_deviation must .* got -1"),
        ({"truth": [["a", "b"]] * 2}, TypeError, "truth: got dtype"),
        ({"truth": np.ma.masked_less(np.eye(2), 1)}, ValueError, "truth has 2 masked entries"),
        ({"baseline": np.full((2, 2), np.inf)}, ValueError, "baseline has 4 non-finite values"),
        ({"data_range": 0.0}, ValueError, "data_range must be positive, got 0.0"),
        ({"data_range": -1.0}, ValueError, "data_range must .* got -1.0"),
    ],
)
def test_image_posterior_names_what_it_cannot_show(wrong, error, message):
    arguments = {"mean": np.eye(2), "standard_deviation": np.eye(2)} | wrong
    with pytest.raises(error, match=message):
        plots.plot_image_posterior(**arguments)


def test_support_shows_coefficients_and_a_factor_an_axis(posterior, tmp_path):
    figure = plots.plot_support(posterior, max_coefficients=10)
    top, *factors = figure.axes
    assert len(factors) == 2
    assert len(top.get_xticks()) == 10
    np.testing.assert_allclose(factors[0].lines[0].get_ydata(), posterior.mean["scales_0"])
    figure.savefig(tmp_path / "support.png")


def test_support_shows_intervals_of_scales_that_have_any():
    draws = np.random.default_rng(0).lognormal(size=(400, 3))
    sampled = pretended(
        batch=None,
        mean={"coefficients": np.array([1.0, 0.0, 2.0j]), "scales_0": draws.mean(axis=0)},
        variance={"coefficients": np.full(3, 0.04)},
        plugged_in=(),
        sample=lambda self, key, count: {"scales_0": draws[:count]},
        support=lambda self, probability: np.array([True, False, True]),
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


def test_changes_of_zero_lie_along_the_bottom_of_the_logarithmic_axis(posterior):
    trace = {"objective": np.arange(4.0), "change": np.array([1.0, 0.0, 0.1, 0.0])}
    members = {"convergence": posterior.convergence, "method": posterior.method, "batch": None}
    figure = plots.plot_convergence(pretended(trace={"optimization": trace}, **members))
    right = figure.axes[1]
    changes, zeros = right.lines[:2]
    np.testing.assert_array_equal(changes.get_ydata(), [1.0, np.nan, 0.1, np.nan])
    np.testing.assert_array_equal(zeros.get_xdata(), [2, 4])
    figure.canvas.draw()
    bottom = right.transAxes.transform([(0.0, 0.0)])[0, 1]
    drawn = zeros.get_transform().transform(zeros.get_xydata())
    np.testing.assert_allclose(drawn[:, 1], bottom)


def test_only_fitting_posteriors_of_one_data_set_are_shown(posterior):
    functions = (plots.plot_support, plots.plot_convergence, plots.plot_mode_functions)
    for function in functions:
        with pytest.raises(TypeError, match=r"got NoneType; expected .*Posterior"):
            function(None)
    for function in functions[:2]:
        with pytest.raises(TypeError, match="one data set"):
            function(pretended(batch=2))
    with pytest.raises(
        TypeError, match="got KroneckerSBLPosterior; expected FunctionalTuckerPosterior"
    ):
        plots.plot_mode_functions(posterior)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_coefficients": -1}, ValueError, "max_coefficients must be at least 1, got -1"),
        ({"max_coefficients": 0}, ValueError, "max_coefficients must be at least 1, got 0"),
        ({"max_coefficients": 2.5}, TypeError, "max_coefficients must be an integer, got 2.5"),
        ({"probability": 1.0}, ValueError, "probability must .* got 1.0"),
    ],
)
def test_support_names_options_out_of_range(posterior, options, error, message):
    with pytest.raises(error, match=message):
        # Without the tests' own checks of annotations.
        inspect.unwrap(plots.plot_support)(posterior, **options)


def test_clusters_show_components_at_their_probability_and_unsure_rows():
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(90, 3)) + np.repeat([[0.0, 0, 0], [3.0, 1, 0]], [60, 30], axis=0)
    prior = bk.models.NormalInverseWishart(np.zeros(3), 0.1, 3.0 * np.eye(3), 6.0)
    for covariance in ("tied", "diagonal"):
        model = bk.models.GaussianMixture(2, covariance=covariance, prior=prior)
        posterior = bk.infer(model, rows)
        left, right = plots.plot_clusters(posterior, [2, 0]).axes
        shares = posterior.responsibilities()
        own = rows[shares.argmax(axis=1) == 0][:, [2, 0]]
        np.testing.assert_array_equal(left.lines[0].get_xydata(), own)
        ringed = next(line for line in left.lines if line.get_label().startswith("below"))
        unsure = shares.max(axis=1) < 0.95
        np.testing.assert_array_equal(ringed.get_xydata(), rows[unsure][:, [2, 0]])
        np.testing.assert_allclose(
            right.collections[0].get_offsets()[:, 1], np.sort(shares.max(axis=1))
        )
        # The second ellipse of the first component is where the density's 95 % end.
        turn = np.linspace(0.0, 6.0, 9)
        circle = np.stack([np.cos(turn), np.sin(turn)], axis=1)
        edge = left.patches[1].get_patch_transform().transform(circle)
        edge = edge - posterior.mean["locations"][0, [2, 0]]
        found = np.asarray(posterior.mean["covariances"])
        first = found if covariance == "tied" else found[0]
        spread = (first * np.eye(3) if first.ndim < 2 else first)[np.ix_([2, 0], [2, 0])]
        squares = np.sum(edge * np.linalg.solve(spread, edge.T).T, axis=1)
        np.testing.assert_allclose(squares, scipy.stats.chi2.ppf(0.95, 2))
    with pytest.raises(ValueError, match="features: got"):
        plots.plot_clusters(posterior, [0, 0])
