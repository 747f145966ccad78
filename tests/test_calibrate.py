"""Calibration: exact posteriors are found right, wrong ones wrong; the statistics themselves."""

import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

import bayeskit as bk
from bayeskit.results import AbstractApproximation
from bayeskit.testing import calibrate
from bayeskit.testing.ranks import share_inside, uniformity_p_value
from tests.registered import kronecker_problem

# With the fixed keys below nothing is random; these are the limits that a right posterior and
# other keys would exceed with probability below one in ten thousand.
_STANDARD_ERRORS = 4.0
_P_VALUE = 1e-3

_DICTIONARIES, _ = kronecker_problem((3, 3), (3, 3))
_NEARLY_ONE = dist.InverseGamma(1e8, 1e8)


class Narrowed(AbstractApproximation):
    """Another approximation with its variances halved and its means kept."""

    inner: AbstractApproximation

    def moments(self, model, data):
        mean, variance = self.inner.moments(model, data)
        return mean, {site: value / 2 for site, value in variance.items()}

    def sample(self, key, model, data):
        mean, _ = self.inner.moments(model, data)
        draws = self.inner.sample(key, model, data)
        return {site: mean[site] + (draw - mean[site]) / np.sqrt(2) for site, draw in draws.items()}

    def plugged_in(self, model, data):
        return self.inner.plugged_in(model, data)

    def predict(self, inputs, include_noise, model, data):
        return self.inner.predict(inputs, include_noise, model, data)

    def log_predictive(self, model, data):
        return self.inner.log_predictive(model, data)


class OverconfidentSBL(bk.models.KroneckerSBL):
    """Half the variance of the right posterior."""

    def em_finish(self, data, parameters):
        approximation, *rest = super().em_finish(data, parameters)
        return Narrowed(approximation), *rest


def _known_scales(model_class=bk.models.KroneckerSBL, **changes):
    """Scales known to four digits and known noise: what EM gives is the exact posterior."""
    arguments = {"noise_variance": 0.1, "scale_prior": _NEARLY_ONE, **changes}
    return model_class(_DICTIONARIES, **arguments)


def _residual_power(parameters, data):
    """Minus the log-likelihood, up to constants."""
    left, right = _DICTIONARIES
    residual = np.sum((data - left @ parameters["coefficients"] @ right.T) ** 2)
    noise = parameters.get("noise_variance", 1.0)
    return residual / noise + data.size * np.log(noise)


_QUANTITIES = {"residual_power": _residual_power}


@pytest.fixture(scope="module")
def exact():
    return calibrate(
        _known_scales(), bk.inference.EM(), key=1, num_simulations=200, quantities=_QUANTITIES
    )


def _assert_calibrated(result):
    nominal = np.asarray(result.coverage.columns, float)
    errors = (result.coverage - nominal) / result.coverage_error
    assert np.all(np.abs(errors.to_numpy()) < _STANDARD_ERRORS), errors
    assert np.all(result.p_values.to_numpy() > _P_VALUE), result.p_values


def test_exact_posterior_is_calibrated(exact):
    _assert_calibrated(exact)
    # Normal entries: the mean of z² has a standard error of at most sqrt(2 / 200).
    assert abs(exact.mean_z2["coefficients"] - 1) < _STANDARD_ERRORS * 0.1
    assert exact.table().loc["scales_0", "note"] == "plugged in: no draws, not ranked"
    assert exact.ranks["coefficients"].shape == (200, 9)
    assert np.all(exact.converged)


def test_halved_variance_is_detected(exact):
    result = calibrate(
        _known_scales(OverconfidentSBL),
        bk.inference.EM(),
        key=1,
        num_simulations=200,
        quantities=_QUANTITIES,
        reference=exact,
    )
    # Central 90 % intervals are narrower by sqrt(2): they cover 2 Φ(1.645 / √2) - 1 = 0.755.
    shortfall = (0.9 - result.coverage.loc["coefficients", 0.9]) / result.coverage_error.loc[
        "coefficients", 0.9
    ]
    assert shortfall > 6
    assert result.coverage.loc["coefficients", 0.9] == pytest.approx(
        0.755, abs=_STANDARD_ERRORS * result.coverage_error.loc["coefficients", 0.9]
    )
    assert result.p_values.loc["coefficients", "ecdf"] < 0.01
    assert result.mean_z2["coefficients"] == pytest.approx(
        2 * exact.mean_z2["coefficients"], rel=1e-9
    )
    assert result.width_ratio["coefficients"] == pytest.approx(np.sqrt(0.5), rel=0.05)
    assert result.mean_z2["coefficients"] - 1 > 6 * result.mean_z2_error["coefficients"]


@pytest.mark.full
def test_sampler_is_calibrated():
    model = bk.models.KroneckerSBL(
        _DICTIONARIES,
        scale_prior=dist.InverseGamma(3.0, 2.0),
        noise_prior=dist.InverseGamma(3.0, 0.02),
    )
    method = bk.inference.MCMC(num_warmup=150, num_samples=200, num_chains=1)
    result = calibrate(model, method, key=0, num_simulations=60, quantities=_QUANTITIES)
    _assert_calibrated(result)
    sites = {"coefficients", "scales_0", "scales_1", "noise_variance"}
    assert set(result.ranks) == sites | {"residual_power"}
    assert result.plugged_in == ()
    assert result.table().attrs["not_converged"] == np.sum(~result.converged)


def test_same_key_same_result(exact):
    again = calibrate(
        _known_scales(), bk.inference.EM(), key=1, num_simulations=200, quantities=_QUANTITIES
    )
    assert all(np.array_equal(again.ranks[site], ranks) for site, ranks in exact.ranks.items())


def test_draws_of_different_simulations_are_independent(exact):
    # With common random numbers the standardised extremes of all simulations would coincide.
    assert np.unique(exact.widths["coefficients"][:, 0]).size == 200


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"scale_prior": None}, "scale_prior is flat"),
        ({"scale_prior": bk.models.ScaledByData(_NEARLY_ONE)}, "scale_prior depends on the data"),
        ({"noise_variance": None, "noise_prior": None}, "noise_prior is flat"),
        ({"noise_variance": None}, "noise_prior depends on the data"),
    ],
)
def test_improper_and_data_dependent_priors_are_refused(change, name):
    with pytest.raises(ValueError, match=name):
        calibrate(_known_scales(**change), bk.inference.EM(), key=0)


def test_what_cannot_be_ranked_is_refused(exact):
    model, method = _known_scales(), bk.inference.EM()
    with pytest.raises(ValueError, match="point estimate"):
        calibrate(model, method, key=0, num_simulations=200, sites=["scales_0"])
    with pytest.raises(ValueError, match=r"sites has \['x'\]; the sites are"):
        calibrate(model, method, key=0, num_simulations=200, sites=["x"])
    with pytest.raises(ValueError, match="other simulated data"):
        calibrate(model, method, key=2, num_simulations=200, reference=exact)
    with pytest.raises(ValueError, match="a site's name"):
        calibrate(
            model, method, key=0, num_simulations=200, quantities={"coefficients": _residual_power}
        )
    with pytest.raises(ValueError, match="num_simulations"):
        calibrate(model, method, key=0, num_simulations=1)
    with pytest.raises(TypeError, match="bayeskit model"):
        calibrate(None, method, key=0)
    with pytest.raises(TypeError, match="sequence of names"):
        calibrate(model, method, key=0, num_simulations=200, sites="coefficients")
    with pytest.raises(ValueError, match="sites is empty"):
        calibrate(model, method, key=0, num_simulations=200, sites=[])
    for quantity in (lambda parameters, data: np.nan, lambda parameters, data: data):
        with pytest.raises(ValueError, match=r"quantities\['power'\] must give one finite number"):
            calibrate(model, method, key=0, num_simulations=200, quantities={"power": quantity})
    for probability in (0.0, 2.0):
        with pytest.raises(ValueError, match="probability must be in"):
            exact.bands(probability)


def test_discrete_quantities_and_variances_that_do_not_exist(exact):
    sign = {"sign": lambda parameters, data: parameters["coefficients"][0, 0] > 0}
    result = calibrate(
        _known_scales(), bk.inference.EM(), key=1, num_simulations=200, quantities=sign
    )
    assert result.p_values.loc["sign", "ecdf"] > _P_VALUE
    # An inverse gamma of concentration 1 + 1/2 has no variance; its draws can be ranked.
    model = bk.models.KroneckerSBL(
        [kronecker_problem((5,), (4,))[0][0]],
        scale_prior=dist.InverseGamma(1.0, 1.0),
        noise_prior=dist.InverseGamma(3.0, 0.2),
    )
    result = calibrate(model, bk.inference.MessagePassing(), key=0, num_simulations=10)
    assert np.all(result.usable)
    assert np.isnan(result.mean_z2["scales_0"])
    assert np.isfinite(result.mean_z2["coefficients"])


@pytest.mark.filterwarnings("ignore:.*zero columns")
def test_entries_that_are_no_random_numbers_are_not_ranked():
    first = _DICTIONARIES[0].copy()
    first[:, 1] = 0.0
    model = bk.models.KroneckerSBL(
        (first, _DICTIONARIES[1]), noise_variance=0.1, scale_prior=_NEARLY_ONE
    )
    result = calibrate(model, bk.inference.EM(), key=1, num_simulations=200)
    assert result.ranks["coefficients"].shape == (200, 6)
    _assert_calibrated(result)


def test_unfinished_fits_are_kept_and_counted():
    # No step of EM changes nothing at all, so a tolerance of zero is never met.
    method = bk.inference.EM(tolerance=0.0)
    result = calibrate(_known_scales(), method, key=1, num_simulations=200)
    assert not np.any(result.converged)
    assert result.table().attrs["not_converged"] == 200
    assert result.ranks["coefficients"].shape == (200, 9)


def test_plot_and_tree(exact):
    tree = exact.to_datatree()
    pit = tree["prior_sbc"]["coefficients"]
    assert np.array_equal(np.floor(pit.values * 100).astype(int), exact.ranks["coefficients"])
    figure = exact.plot(["coefficients"])
    lines = figure.viz["ecdf_lines"]["coefficients"]
    assert lines.shape == (9,)
    with pytest.raises(ValueError, match="ranked sites are"):
        exact.plot(["nothing"])


@pytest.mark.parametrize("probability", [0.5, 0.8, 0.9, 0.95])
@pytest.mark.parametrize("num_draws", [7, 99, 250])
def test_uniform_ranks_are_covered_exactly(num_draws, probability):
    ranks = np.arange(num_draws + 1)
    assert share_inside(ranks, num_draws, probability).mean() == pytest.approx(
        probability, rel=1e-12
    )


def test_uniformity_p_values_are_uniform():
    generator = np.random.default_rng(0)
    p_values = [uniformity_p_value(generator.integers(0, 100, 80), 99) for _ in range(400)]
    # Discrete, hence conservative by at most a step or two.
    assert stats.kstest(p_values, "uniform", alternative="greater").pvalue > 1e-3
    for level in (0.05, 0.2, 0.5):
        share = np.mean(np.asarray(p_values) <= level)
        assert abs(share - level) < _STANDARD_ERRORS * np.sqrt(level * (1 - level) / 400)


@pytest.mark.parametrize("power", [0.5, 2.0])
def test_skewed_ranks_are_found(power):
    ranks = np.floor(100 * np.random.default_rng(0).uniform(size=200) ** power).astype(int)
    assert uniformity_p_value(ranks, 99) < 1e-3


def test_bands_hold_whole_curves(exact):
    points, lower, upper = exact.bands(0.9)
    generator = np.random.default_rng(1)
    ranks = generator.integers(0, exact.num_draws + 1, size=(500, exact.num_simulations))
    curves = np.stack([np.mean(ranks <= i, axis=1) for i in range(exact.num_draws)], axis=1)
    inside = np.all((curves >= lower - 1e-12) & (curves <= upper + 1e-12), axis=1).mean()
    # Bands on counts are conservative.
    assert 0.9 - _STANDARD_ERRORS * np.sqrt(0.09 / 500) < inside < 0.97
    assert np.all(lower <= points)
    assert np.all(points <= upper)


def test_latents_given_a_trained_decoder_are_calibrated():
    generator = np.random.default_rng(0)
    trained = {
        "loadings": generator.normal(size=(3, 1)),
        "offset": np.array([5.0, 0.0, -1.0]),
        "noise_variance": np.array(0.5),
    }
    model = bk.models.SingularDistribution(
        1, decoder="linear", perturbation=0.1, num_observations=12
    ).with_estimates(trained)
    method = bk.inference.MCMC(num_warmup=200, num_samples=600, num_chains=1)
    result = calibrate(model, method, key=0, num_simulations=60)
    _assert_calibrated(result)
    assert list(result.ranks) == ["latents"]
    assert set(result.plugged_in) == {"loadings", "offset", "noise_variance"}
    with pytest.raises(ValueError, match=r"give a trained model, posterior\.model"):
        model.with_estimates(None).sample_prior(0)
    with pytest.raises(ValueError, match="EM trains the decoder anew"):
        calibrate(model, bk.inference.EM(), key=0)
    unsized = bk.models.SingularDistribution(1, decoder="linear", perturbation=0.1)
    with pytest.raises(ValueError, match="num_observations is needed"):
        unsized.with_estimates(trained).sample_prior(0)
