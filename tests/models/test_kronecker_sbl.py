"""Kronecker-structured sparse Bayesian learning through the public interface."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import xarray as xr
from numpyro.infer.util import log_density

import bayeskit as bk
from tests.models.dense import DenseModel, kron
from tests.registered import kronecker_problem

EM, MessagePassing, MCMC = bk.inference.EM, bk.inference.MessagePassing, bk.inference.MCMC
ROWS, COLUMNS = (4, 5, 6), (6, 6, 7)
# Where a test looks at the path, the budget may end before the criterion.
any_ending = pytest.mark.filterwarnings("ignore:.*did not converge")


@pytest.fixture(scope="module")
def problem():
    return bk.datasets.kronecker_sparse(1, shape=ROWS, atoms=COLUMNS, nonzeros=(2, 2, 2))


@pytest.fixture(scope="module")
def fit(problem):
    return bk.infer(bk.models.KroneckerSBL(problem.dictionaries), problem.measurements)


def dense_twin(problem, posterior, noise_variance=None):
    scales = kron([posterior.mean[f"scales_{g}"].ravel() for g in range(3)])
    noise = posterior.mean["noise_variance"] if noise_variance is None else noise_variance
    return DenseModel(kron(problem.dictionaries), scales, noise, problem.measurements.ravel())


def test_posterior_equals_dense_posterior_at_its_estimates(problem, fit):
    dense = dense_twin(problem, fit)
    np.testing.assert_allclose(
        fit.mean["coefficients"].ravel(), dense.mean, atol=1e-10 * np.abs(dense.mean).max()
    )
    assert abs(fit.log_evidence - dense.log_evidence) < 1e-10 * abs(dense.log_evidence)
    prediction = fit.predict(include_noise=True)
    np.testing.assert_allclose(prediction.mean.ravel(), dense.dictionary @ dense.mean, rtol=1e-8)
    np.testing.assert_allclose(
        fit.predict(problem.dictionaries).variance + fit.mean["noise_variance"],
        prediction.variance,
        rtol=1e-8,
    )


def test_leave_one_out_equals_brute_force_refits(problem, fit):
    loo = fit.loo()
    expected = dense_twin(problem, fit).log_leave_one_out()
    np.testing.assert_allclose(loo.elpd_i.values.ravel(), expected, rtol=1e-9, atol=1e-9)
    assert loo.elpd == pytest.approx(expected.sum(), rel=1e-10)


@any_ending
@pytest.mark.parametrize("m_step", ["mackay", "convex", "alternating"])
def test_objective_never_falls(problem, m_step):
    model = bk.models.KroneckerSBL(problem.dictionaries)
    posterior = bk.infer(model, problem.measurements, EM(m_step, max_iterations=200))
    objective = posterior.convergence.objective
    assert np.diff(objective).min() >= -1e-9 * np.abs(objective).max()
    assert objective[-1] > objective[0] + 1


def test_bound_never_falls_and_stays_below_the_evidence_of_a_grid():
    # One coefficient, known noise: the evidence is a one-dimensional integral over its scale.
    prior = dist.InverseGamma(2.0, 1.5)
    dictionary, measurements, noise = np.array([[1.0], [0.5]]), np.array([0.8, -0.3]), 0.3
    model = bk.models.KroneckerSBL((dictionary,), noise_variance=noise, scale_prior=prior)
    posterior = bk.infer(model, measurements, MessagePassing(tolerance=1e-10))
    objective = posterior.convergence.objective
    assert np.diff(objective).min() >= -1e-12
    logs = np.linspace(-8, 12, 20_001)
    density = [
        DenseModel(dictionary, np.array([scale]), noise, measurements).log_evidence
        for scale in np.exp(logs)
    ]
    log_prior = np.asarray(prior.log_prob(jnp.exp(logs)), float) + logs
    evidence = np.log(np.trapezoid(np.exp(np.array(density) + log_prior), logs))
    assert evidence - 0.1 < posterior.log_evidence < evidence


def test_sampling_equals_integration_over_the_scale():
    prior = dist.InverseGamma(2.0, 1.5)
    dictionary, measurements, noise = np.array([[1.0], [0.5]]), np.array([0.8, -0.3]), 0.3
    model = bk.models.KroneckerSBL((dictionary,), noise_variance=noise, scale_prior=prior)
    method = MCMC(num_warmup=300, num_samples=1000, num_chains=4)
    posterior = bk.infer(model, measurements, method, key=0)
    logs = np.linspace(-8, 12, 4001)
    twins = [DenseModel(dictionary, np.array([s]), noise, measurements) for s in np.exp(logs)]
    weights = np.exp([t.log_evidence for t in twins] + np.asarray(prior.log_prob(jnp.exp(logs))))
    weights = weights * np.exp(logs) / np.sum(weights * np.exp(logs))
    means = np.array([t.mean[0] for t in twins])
    variances = np.array([t.posterior_covariance[0, 0] for t in twins])
    mean = np.sum(weights * means)
    variance = np.sum(weights * (variances + (means - mean) ** 2))
    # The Rao-Blackwellised mean varies by the spread of the conditional means over ~1000 draws.
    spread = np.sqrt(np.sum(weights * (means - mean) ** 2))
    assert abs(posterior.mean["coefficients"][0] - mean) < 5 * spread / np.sqrt(800)
    assert posterior.variance["coefficients"][0] == pytest.approx(variance, rel=0.05)
    draws = posterior.to_datatree().posterior["coefficients"].values
    assert draws.shape == (4, 1000, 1)
    assert draws.var() == pytest.approx(variance, rel=0.15)
    assert posterior.convergence.max_rhat < 1.01


def test_fixed_points_of_the_steps_agree(problem):
    model = bk.models.KroneckerSBL(problem.dictionaries)
    fits = [
        bk.infer(model, problem.measurements, method)
        for method in (
            EM("mackay", tolerance=1e-6, max_iterations=5000),
            EM("convex", tolerance=1e-6, max_iterations=5000),
            MessagePassing(tolerance=1e-6, max_iterations=5000),
        )
    ]
    reference = fits[0].mean["coefficients"]
    for other in fits[1:]:
        error = np.linalg.norm(other.mean["coefficients"] - reference)
        assert error < 1e-3 * np.linalg.norm(reference)


@pytest.mark.parametrize("exponent", [-100, -3, 8, 100])
def test_results_do_not_depend_on_units(problem, fit, exponent):
    factor = 10.0**exponent
    half = 10.0 ** (exponent / 2)
    first, *others = problem.dictionaries
    scaled = bk.infer(
        bk.models.KroneckerSBL((first * half, *others)), problem.measurements * factor
    )
    unit = factor / half
    for ours, theirs in (
        (scaled.mean["coefficients"] / unit, fit.mean["coefficients"]),
        (scaled.variance["coefficients"] / unit / unit, fit.variance["coefficients"]),
        (scaled.mean["noise_variance"] / factor / factor, fit.mean["noise_variance"]),
        (scaled.mean["scales_2"] / unit / unit, fit.mean["scales_2"]),
    ):
        assert np.max(np.abs(ours - theirs)) <= 1e-8 * np.max(np.abs(theirs))


def test_grouped_axes_equal_one_axis_with_the_dense_dictionary(problem):
    grouped = bk.infer(
        bk.models.KroneckerSBL(problem.dictionaries, scales=((0, 2), (1,))), problem.measurements
    )
    first, second, third = problem.dictionaries
    joined = np.moveaxis(problem.measurements, 2, 1).reshape(24, 5)
    dense = bk.infer(bk.models.KroneckerSBL((np.kron(first, third), second)), joined)
    expected = np.moveaxis(dense.mean["coefficients"].reshape(6, 7, 6), 1, 2)
    np.testing.assert_allclose(grouped.mean["coefficients"], expected, atol=1e-10)
    assert grouped.mean["scales_0"].shape == (6, 7)


@pytest.mark.parametrize(
    ("scales", "single"),
    [(((0, 2), (1,)), False), (((0, 2), (1,)), True), ("unstructured", False)],
)
def test_complex_dictionaries_in_groups_equal_the_dense_posterior(scales, single):
    kind, columns = np.complex64 if single else np.complex128, (4, 3, 3)
    dictionaries, measurements = kronecker_problem((3, 4, 2), columns, complex_data=True)
    posterior = bk.infer(
        bk.models.KroneckerSBL([d.astype(kind) for d in dictionaries], scales=scales),
        measurements.astype(kind),
    )
    groups = [posterior.mean[name] for name in posterior.mean if name.startswith("scales")]
    order = (0, 1, 2) if isinstance(scales, str) else (0, 2, 1)
    total = kron([scale.ravel() for scale in groups]).reshape([columns[i] for i in order])
    twin = DenseModel(
        kron(dictionaries),
        total.transpose(np.argsort(order)).ravel().astype(float),
        float(posterior.mean["noise_variance"]),
        measurements.ravel(),
    )
    tolerance = 1e-3 if single else 1e-9
    error = np.abs(posterior.mean["coefficients"].ravel() - twin.mean).max()
    assert error < tolerance * np.abs(twin.mean).max()
    assert posterior.log_evidence == pytest.approx(twin.log_evidence, rel=tolerance)
    again = posterior.predict([d.astype(kind) for d in dictionaries])
    assert again.mean.dtype == kind
    np.testing.assert_allclose(again.mean, posterior.predict().mean, atol=tolerance)
    residual = np.linalg.norm(again.mean - measurements) / np.linalg.norm(measurements)
    assert residual < 0.3


def test_mean_field_moments_are_those_of_inverse_gamma_variables(problem):
    priors = {
        "scale_prior": dist.InverseGamma(4.0, 1.0),
        "noise_prior": dist.InverseGamma(0.5, 0.1),
    }
    model = bk.models.KroneckerSBL(problem.dictionaries, **priors)
    posterior = bk.infer(model, problem.measurements, MessagePassing())
    count = 5000
    draws = posterior.sample(0, count)
    for site in ("scales_0", "scales_2", "noise_variance"):
        mean, variance = posterior.mean[site], posterior.variance[site]
        error = (draws[site].mean(0) - mean) / np.sqrt(variance / count)
        # scales_0 rests on 4096 draws of its own.
        assert np.max(np.abs(error)) < 5 * np.sqrt(1 + count / 4096 * (site == "scales_0"))
        np.testing.assert_allclose(draws[site].var(0), variance, rtol=0.15)
    # A new measurement has E σ² around its mean, and inverse-gamma variables tell it from
    # 1 / E[1 / σ²] by the factor a / (a - 1).
    noisy, clean = posterior.predict(include_noise=True), posterior.predict()
    np.testing.assert_allclose(
        noisy.variance - clean.variance, posterior.mean["noise_variance"], rtol=1e-10
    )
    concentration = 0.5 + problem.measurements.size / 2
    effective = float(posterior.approximation.messages.noise_variance)
    unit = np.mean(problem.measurements**2)
    assert posterior.mean["noise_variance"] == pytest.approx(
        effective * unit * concentration / (concentration - 1), rel=1e-10
    )


def test_variances_that_do_not_exist_are_infinite():
    # One coefficient a scale: an inverse-gamma factor of concentration 1 + 1/2.
    dictionaries, measurements = kronecker_problem((9,), (12,))
    posterior = bk.infer(bk.models.KroneckerSBL(dictionaries), measurements, MessagePassing())
    assert np.all(np.isfinite(posterior.mean["scales_0"]))
    assert np.all(np.isposinf(posterior.variance["scales_0"]))
    assert np.all(np.isfinite(posterior.variance["coefficients"]))


@any_ending
def test_a_coupled_fit_goes_on_from_where_it_ended(problem):
    model = bk.models.KroneckerSBL(problem.dictionaries, coupling=(0.4, 0.0, 0.3))
    method = EM(max_iterations=2000, tolerance=1e-6)
    fit = bk.infer(model, problem.measurements, method)
    start = np.float64(fit.convergence.objective[0])
    end = np.float64(fit.convergence.objective[-1])
    once_more = bk.infer(model, problem.measurements, EM(max_iterations=1), initial=fit)
    # What coupling twice would cost is nearly all of the way from the first start to the end.
    assert once_more.convergence.objective[0] > end - 0.05 * (end - start)
    np.testing.assert_allclose(once_more.mean["coefficients"], fit.mean["coefficients"], atol=0.02)


def test_snapshots_share_scales_and_keep_their_own_coefficients(problem):
    generator = np.random.default_rng(0)
    amplitudes = generator.standard_normal((3, 1, 1, 1)) * problem.coefficients
    clean = np.einsum("ai,bj,ck,sijk->sabc", *problem.dictionaries, amplitudes)
    noise = np.sqrt(problem.noise_variance) * generator.standard_normal(clean.shape)
    posterior = bk.infer(bk.models.KroneckerSBL(problem.dictionaries), clean + noise)
    twin = DenseModel(
        kron(problem.dictionaries),
        kron([posterior.mean[f"scales_{g}"] for g in range(3)]),
        posterior.mean["noise_variance"],
        (clean + noise)[1].ravel(),
    )
    np.testing.assert_allclose(posterior.mean["coefficients"][1].ravel(), twin.mean, atol=1e-9)
    assert posterior.to_datatree(num_draws=5).posterior["coefficients"].dims[2] == "snapshot"


@any_ending
def test_coupling_never_lowers_the_objective_and_fills_blocks():
    channel = bk.datasets.irs_mimo(3)
    model = bk.models.KroneckerSBL(
        channel.dictionaries, noise_variance=channel.noise_variance, coupling=(0.8, 0.0, 0.8)
    )
    for m_step in ("convex", "mackay", "alternating"):
        posterior = bk.infer(
            model, channel.measurements, EM(m_step, max_iterations=60, tolerance=0.0)
        )
        objective = posterior.convergence.objective
        assert np.diff(objective).min() >= -1e-9 * np.abs(objective).max()


@any_ending
def test_pruning_keeps_the_largest_scale_and_zeroes_the_rest(problem):
    model = bk.models.KroneckerSBL(problem.dictionaries)
    posterior = bk.infer(model, problem.measurements, EM("alternating", prune=0.05))
    for g in range(3):
        scales = posterior.mean[f"scales_{g}"]
        assert np.any(scales == 0)
        assert scales.max() > 0
    assert np.all(np.isfinite(posterior.variance["coefficients"]))


def test_support_is_the_planted_one(problem, fit):
    planted = problem.coefficients != 0
    large = np.abs(problem.coefficients) > 10 * np.sqrt(fit.variance["coefficients"])
    support = fit.support(0.999)
    assert np.all(support[planted & large])
    assert np.mean(support[~planted]) < 0.05


def test_restarts_keep_the_best_objective(problem):
    model = bk.models.KroneckerSBL(problem.dictionaries)
    one = bk.infer(model, problem.measurements)
    several = bk.infer(model, problem.measurements, EM(restarts=4), key=0)
    assert several.convergence.objective[-1] >= one.convergence.objective[-1] - 1e-6


def test_names_and_coordinates_reach_the_tree(problem):
    first = xr.DataArray(
        problem.dictionaries[0],
        dims=("antenna", "angle"),
        coords={"angle": np.linspace(-1, 1, COLUMNS[0])},
    )
    measurements = xr.DataArray(
        problem.measurements, dims=("antenna", "measurements_1", "time"), coords={"time": range(6)}
    )
    model = bk.models.KroneckerSBL((first, *problem.dictionaries[1:]))
    tree = bk.infer(model, measurements).to_datatree(num_draws=3)
    assert tree.posterior["coefficients"].dims == ("chain", "draw", "angle", "atoms_1", "atoms_2")
    np.testing.assert_array_equal(tree.posterior["angle"], np.linspace(-1, 1, COLUMNS[0]))
    assert tree.observed_data["y"].dims == ("antenna", "measurements_1", "time")


def test_prior_draws_have_the_stated_distribution(problem):
    model = bk.models.KroneckerSBL(
        problem.dictionaries[:2],
        scale_prior=dist.InverseGamma(5.0, 4.0),
        noise_prior=dist.InverseGamma(6.0, 1.0),
    )
    parameters = [model.sample_prior(key)[0] for key in range(400)]
    noise = np.array([draw["noise_variance"] for draw in parameters])
    # Mean b / (a - 1) = 0.2, variance b² / ((a - 1)² (a - 2)) = 0.01: five standard errors.
    assert noise.mean() == pytest.approx(0.2, abs=5 * 0.1 / 20)
    power = np.array([np.mean(draw["coefficients"] ** 2) for draw in parameters])
    # Independent scales of mean one each.
    assert power.mean() == pytest.approx(1.0, abs=5 * power.std() / 20)


def test_batch_equals_single_fits_and_survives_a_broken_item(problem, fit):
    stacked = np.stack([problem.measurements, np.nan * problem.measurements, problem.measurements])
    model = bk.models.KroneckerSBL(problem.dictionaries)
    with pytest.warns(bk.ConvergenceWarning, match="1 of 3 data sets did not converge: 1"):
        batch = bk.infer_batch(model, stacked)
    np.testing.assert_array_equal(batch.convergence.converged, [True, False, True])
    for item in (0, 2):
        np.testing.assert_allclose(
            batch.mean["coefficients"][item], fit.mean["coefficients"], atol=1e-12
        )
    with pytest.warns(bk.ConvergenceWarning, match=r"items \[1\] of the batch"):
        np.testing.assert_array_equal(batch.support()[2], fit.support())
    assert batch.log_evidence[2] == pytest.approx(fit.log_evidence, rel=1e-12)


@any_ending
def test_batch_names_the_items_that_interpolate(problem):
    model = bk.models.KroneckerSBL(problem.dictionaries, noise_variance=1e-3)
    stacked = np.stack([problem.measurements, 1e6 * problem.measurements])
    with pytest.warns(bk.ConditioningWarning, match=r"1 of 2 data sets \(1\): the fit interp"):
        bk.infer_batch(model, stacked)


def test_one_compilation_serves_other_numbers_of_the_same_shapes(problem):
    model = bk.models.KroneckerSBL(problem.dictionaries)
    _ = bk.infer(model, problem.measurements, EM("convex", tolerance=1e-2)).mean
    other = bk.datasets.kronecker_sparse(7, shape=ROWS, atoms=COLUMNS, nonzeros=(2, 2, 2))
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
    )
    try:
        model = bk.models.KroneckerSBL(other.dictionaries)
        method = EM("convex", tolerance=3e-3, max_iterations=77)
        _ = bk.infer(model, 5 * other.measurements, method).mean
    finally:
        jax.monitoring.clear_event_listeners()
    assert compiled == []


def test_draws_agree_with_moments(fit):
    draws = fit.sample(0, 2000)["coefficients"]
    error = (draws.mean(0) - fit.mean["coefficients"]) / np.sqrt(
        fit.variance["coefficients"] / 2000
    )
    assert np.max(np.abs(error)) < 5.5
    ratio = draws.var(0) / fit.variance["coefficients"]
    assert np.max(np.abs(ratio - 1)) < 6 * np.sqrt(2 / 2000)


def test_simulated_data_have_the_predictive_moments(problem, fit):
    generator = np.random.default_rng(3)
    elsewhere = tuple(generator.standard_normal((3, size)) for size in COLUMNS)
    tree = fit.to_datatree(
        num_draws=3000, key=1, sites=(), posterior_predictive=True, predictions=elsewhere
    )
    for group, inputs in (("posterior_predictive", None), ("predictions", elsewhere)):
        expected = fit.predict(inputs, include_noise=True)
        draws = tree[group]["y"]
        assert draws.dims == ("chain", "draw", *expected.dims)
        values = draws.values[0]
        error = (values.mean(0) - expected.mean) / np.sqrt(expected.variance / 3000)
        # 120 Gaussian entries and 27: 5 deviations are passed once in 10⁴ runs.
        assert np.max(np.abs(error)) < 5
        np.testing.assert_allclose(values.var(0), expected.variance, rtol=6 * np.sqrt(2 / 3000))
    assert "coefficients" not in tree.children.get("posterior", {})
    with pytest.raises(ValueError, match=r"GB.*lower num_draws"):
        fit.to_datatree(num_draws=3000, sites=(), posterior_predictive=True, max_bytes=1e6)


def test_simulated_data_of_a_batch_are_those_of_its_items(problem, fit):
    model = bk.models.KroneckerSBL(problem.dictionaries)
    batch = bk.infer_batch(model, np.stack([problem.measurements, 2 * problem.measurements]))
    tree = batch.to_datatree(num_draws=2000, key=0, sites=(), posterior_predictive=True)
    draws = tree["posterior_predictive"]["y"].values[:, 0]
    expected = fit.predict(include_noise=True)
    for item, unit in enumerate((1.0, 2.0)):
        error = (draws[item].mean(0) / unit - expected.mean) / np.sqrt(expected.variance / 2000)
        assert np.max(np.abs(error)) < 5
    # Items have draws of their own.
    assert np.abs(np.corrcoef(draws[0, :, 0, 0, 0], draws[1, :, 0, 0, 0])[0, 1]) < 0.15


def test_large_tree_is_refused_with_its_size(fit):
    with pytest.raises(ValueError, match=r"GB.*lower num_draws"):
        fit.to_datatree(num_draws=10_000, max_bytes=1e6)
    with pytest.raises(ValueError, match="random sites"):
        fit.to_datatree(sites=["nothing"])


def test_unused_warnings_do_not_escape(problem):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bk.infer(bk.models.KroneckerSBL(problem.dictionaries), problem.measurements)


def test_zero_columns_take_no_part_in_priors_or_chains(problem):
    first = problem.dictionaries[0].copy()
    first[:, 2] = 0.0
    model = bk.models.KroneckerSBL(
        (first, problem.dictionaries[1]),
        coupling=(0.7, 0.0),
        scale_prior=dist.InverseGamma(3.0, 2.0),
        noise_prior=dist.InverseGamma(3.0, 0.1),
    )
    parameters, measurements = model.sample_prior(0)
    for site in ("scales_0", "coefficients"):
        np.testing.assert_array_equal(np.flatnonzero(parameters[site].reshape(6, -1)[:, 0] == 0), 2)
    with jax.enable_x64(True):
        with pytest.warns(bk.ConditioningWarning, match="1 zero columns"):
            prepared = model.prepare(measurements)

        def likelihood(weight):
            weights = jnp.ones(6).at[2].set(weight)
            sites = {"scales_0": weights, "scales_1": jnp.ones(6), "noise_variance": jnp.array(0.1)}
            value = log_density(prepared.model.numpyro_model, (prepared.data,), {}, sites)[0]
            return value - dist.InverseGamma(3.0, 2.0).log_prob(weights).sum()

        np.testing.assert_allclose(likelihood(1.0), likelihood(50.0), rtol=1e-12)
        assert jax.grad(likelihood)(1.0) == pytest.approx(0.0, abs=1e-12)
