"""Singular distributions with a linear decoder: closed forms, dense twins, simulated truth."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pandas as pd
import pytest
import scipy.stats
from scipy.special import logsumexp
from sklearn.decomposition import PCA

import bayeskit as bk
from bayeskit.precision import double_precision

EM, MessagePassing, MCMC = bk.inference.EM, bk.inference.MessagePassing, bk.inference.MCMC
SingularDistribution = partial(bk.models.SingularDistribution, decoder="linear")
ROWS, FEATURES, LATENTS = 60, 5, 2
OWN_NOISE = 0.3
LOADINGS = np.array([[2.0, 0.3], [-1.0, 1.0], [0.5, -1.5], [1.0, 0.4], [0.0, 0.8]])
OFFSET = np.array([3.0, -1.0, 0.0, 10.0, 2.0])


def simulated(seed=0, rows=ROWS, noise=OWN_NOISE):
    generator = np.random.default_rng(seed)
    clean = generator.normal(size=(rows, LATENTS)) @ LOADINGS.T + OFFSET
    return clean + noise * generator.normal(size=clean.shape)


def with_holes(rows, seed=1):
    rows = rows.copy()
    rows[np.random.default_rng(seed).uniform(size=rows.shape) < 0.2] = np.nan
    return rows


def covariance_of(posterior):
    loadings = posterior.mean["loadings"]
    noise = posterior.mean["noise_variance"]
    return loadings @ loadings.T + noise * np.eye(len(loadings))


def dense_density(row, mean, covariance):
    """Log density of the observed values of a row."""
    seen = ~np.isnan(row)
    inner = covariance[np.ix_(seen, seen)]
    return scipy.stats.multivariate_normal.logpdf(row[seen], mean[seen], inner)


def dense_objective(rows, mean, covariance, perturbation=0.0):
    """Log likelihood of all rows, expected over fresh noise."""
    total = 0.0
    for row in rows:
        seen = ~np.isnan(row)
        inner = covariance[np.ix_(seen, seen)]
        total += dense_density(row, mean, covariance)
        total -= 0.5 * perturbation**2 * np.trace(np.linalg.inv(inner))
    return total


@pytest.fixture(scope="module")
def rows():
    return simulated()


@pytest.fixture(scope="module")
def holes(rows):
    return with_holes(rows)


@pytest.fixture(scope="module")
def perturbed_with_holes(holes):
    model = SingularDistribution(LATENTS, perturbation=0.2)
    return bk.infer(model, holes, EM(max_iterations=5000, tolerance=1e-9))


# Closed form


def test_em_is_the_probabilistic_pca_of_tipping_and_bishop(rows):
    posterior = bk.infer(SingularDistribution(LATENTS), rows)
    reference = PCA(LATENTS, svd_solver="full").fit(rows)
    biased = (ROWS - 1) / ROWS  # which the maximum of the likelihood is
    np.testing.assert_allclose(
        covariance_of(posterior), biased * reference.get_covariance(), rtol=0, atol=1e-10
    )
    np.testing.assert_allclose(posterior.mean["offset"], rows.mean(axis=0), rtol=1e-12)
    expected = biased * reference.noise_variance_
    assert posterior.mean["noise_variance"] == pytest.approx(expected, rel=1e-10)
    lengths = np.linalg.norm(posterior.mean["loadings"], axis=0)
    directions = posterior.mean["loadings"] / lengths
    signs = np.sign(np.sum(directions * reference.components_.T, axis=0))
    np.testing.assert_allclose(directions * signs, reference.components_.T, atol=1e-10)
    assert lengths[0] > lengths[1]


def test_em_steps_climb_from_anywhere_to_the_closed_form(rows):
    model = SingularDistribution(LATENTS, perturbation=0.2)
    closed = bk.infer(model, rows)
    with double_precision():
        prepared = model.prepare(rows)
        start = prepared.model.em_init(
            prepared.data, jax.random.key(3), jnp.asarray(1), None, "exact"
        )

        def step(parameters, _):
            return prepared.model.em_step(prepared.data, parameters, "exact", 0.0)

        found, objective = jax.jit(lambda p: jax.lax.scan(step, p, length=3000))(start)
        found, _, _ = prepared.model.em_finish(prepared.data, found)
        sites = jax.tree.map(np.asarray, found.plugged_in(prepared.model, prepared.data))
    objective = np.asarray(objective)
    assert objective[0] < objective[-1] - 50
    assert np.diff(objective).min() > -1e-9 * np.abs(objective).max()
    assert objective[-1] == pytest.approx(closed.log_evidence, rel=1e-12)
    for site, value in sites.items():
        np.testing.assert_allclose(value, closed.mean[site], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("level", [0.1, 0.5])
def test_perturbation_keeps_the_loadings_and_adds_its_square_to_the_noise(rows, level):
    plain = bk.infer(SingularDistribution(LATENTS), rows)
    perturbed = bk.infer(SingularDistribution(LATENTS, perturbation=level), rows)
    unit = np.sqrt(rows.var(axis=0).mean())
    assert perturbed.perturbation == pytest.approx(level * unit, rel=1e-12)
    outer = [p.mean["loadings"] @ p.mean["loadings"].T for p in (plain, perturbed)]
    np.testing.assert_allclose(outer[1], outer[0], rtol=0, atol=1e-8)
    expected = plain.mean["noise_variance"] + (level * unit) ** 2
    assert perturbed.mean["noise_variance"] == pytest.approx(expected, rel=1e-10)
    assert perturbed.noise_scale == pytest.approx(np.sqrt(expected), rel=1e-10)


def test_perturbation_is_the_limit_of_many_noisy_copies(rows):
    level = 0.4
    posterior = bk.infer(SingularDistribution(LATENTS, perturbation=level), rows)
    generator = np.random.default_rng(5)
    copies = np.repeat(rows, 4000, axis=0)
    copies = copies + posterior.perturbation * generator.normal(size=copies.shape)
    reference = PCA(LATENTS, svd_solver="full").fit(copies).get_covariance()
    # Entries of the copies' covariance have errors of a thousandth of the largest.
    error = np.abs(covariance_of(posterior) - reference).max()
    assert error < 0.005 * reference.max()


def test_planes_without_noise_are_reported_as_singular():
    plane = simulated(noise=0.0)
    with pytest.warns(bk.ConditioningWarning, match="plane of dimension 2.*singular"):
        bk.infer(SingularDistribution(LATENTS), plane)
    # No warning, which would be an error.
    perturbed = bk.infer(SingularDistribution(LATENTS, perturbation=0.1), plane)
    assert perturbed.noise_scale == pytest.approx(perturbed.perturbation, rel=1e-8)
    distance = PCA(LATENTS).fit(plane)
    generated = perturbed.generate(0, 50, observation_noise=True)
    back = distance.inverse_transform(distance.transform(generated))
    np.testing.assert_allclose(back, generated, rtol=0, atol=1e-6)


def test_known_noise_is_taken_off_the_eigenvalues(rows):
    noise = 0.5
    posterior = bk.infer(SingularDistribution(LATENTS, noise_scale=noise), rows)
    values, vectors = np.linalg.eigh(np.cov(rows.T, bias=True))
    values, vectors = values[-LATENTS:], vectors[:, -LATENTS:]
    outer = vectors * (values - noise**2) @ vectors.T
    loadings = posterior.mean["loadings"]
    np.testing.assert_allclose(loadings @ loadings.T, outer, rtol=0, atol=1e-10)
    assert posterior.noise_scale == pytest.approx(noise, rel=1e-12)


def test_a_noise_prior_moves_the_noise_to_the_mode_of_its_logarithm(rows):
    concentration, rate = 8.0, 20.0
    prior = dist.InverseGamma(concentration, rate)
    posterior = bk.infer(SingularDistribution(LATENTS, noise_prior=prior), rows)
    # The profile over the noise of the likelihood at its best loadings.
    rest = np.linalg.eigvalsh(np.cov(rows.T, bias=True))[: FEATURES - LATENTS].sum()
    expected = (ROWS * rest + 2 * rate) / (ROWS * (FEATURES - LATENTS) + 2 * concentration)
    assert posterior.mean["noise_variance"] == pytest.approx(expected, rel=1e-9)
    density = dense_objective(rows, posterior.mean["offset"], covariance_of(posterior))
    log_noise = np.log(expected)
    density += scipy.stats.invgamma.logpdf(expected, concentration, scale=rate) + log_noise
    assert posterior.log_evidence == pytest.approx(density, rel=1e-10)


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_units_of_the_data_change_nothing_but_the_units(rows, unit):
    model = SingularDistribution(LATENTS, perturbation=0.2)
    first, other = bk.infer(model, rows), bk.infer(model, unit * rows)
    np.testing.assert_allclose(
        other.mean["loadings"] / unit, first.mean["loadings"], rtol=1e-9, atol=1e-9
    )
    np.testing.assert_allclose(other.mean["latents"], first.mean["latents"], rtol=0, atol=1e-9)
    moved = first.log_evidence - rows.size * np.log(unit)
    assert other.log_evidence == pytest.approx(moved, rel=1e-10)
    np.testing.assert_allclose(
        other.generate(1, 4) / unit, first.generate(1, 4), rtol=1e-9, atol=1e-9
    )


# Dense twins


def test_densities_and_evidence_are_those_of_the_dense_gaussian(perturbed_with_holes, holes):
    posterior = perturbed_with_holes
    offset, covariance = posterior.mean["offset"], covariance_of(posterior)
    expected = [dense_density(row, offset, covariance) for row in holes]
    density = posterior.log_likelihood()
    np.testing.assert_allclose(density.values, expected, rtol=1e-9, atol=1e-9)
    assert not density.pareto_k.any()
    np.testing.assert_allclose(posterior.loo().elpd_i.values, expected, rtol=1e-9, atol=1e-9)
    total = dense_objective(holes, offset, covariance, posterior.perturbation)
    assert posterior.log_evidence == pytest.approx(total, rel=1e-10)


def test_em_with_missing_values_ends_where_the_dense_likelihood_is_flat(
    perturbed_with_holes, holes
):
    posterior = perturbed_with_holes
    seen = ~np.isnan(holes)
    filled = np.where(seen, holes, 0.0)
    perturbation = posterior.perturbation

    def dense(loadings, offset, log_noise):
        covariance = loadings @ loadings.T + jnp.exp(log_noise) * jnp.eye(FEATURES)

        def one(row, mask):
            # Missing features become independent of all others, of variance one.
            keep = jnp.outer(mask, mask)
            inner = jnp.where(keep > 0, covariance, jnp.eye(FEATURES))
            residual = jnp.where(mask, row - offset, 0.0)
            inverse = jnp.linalg.inv(inner)
            noise = perturbation**2 * jnp.sum(jnp.where(mask, jnp.diag(inverse), 0.0))
            return -0.5 * (jnp.linalg.slogdet(inner)[1] + residual @ inverse @ residual + noise)

        return jnp.sum(jax.vmap(one)(filled, seen))

    with double_precision():
        mean = posterior.mean
        arguments = (mean["loadings"], mean["offset"], jnp.log(mean["noise_variance"]))
        gradients = jax.jit(jax.grad(dense, argnums=(0, 1, 2)))(*map(jnp.asarray, arguments))
    for gradient in gradients:
        assert np.abs(np.asarray(gradient)).max() < 1e-4


def test_latents_and_completed_rows_are_the_dense_conditionals(perturbed_with_holes):
    posterior = perturbed_with_holes
    loadings, offset = posterior.mean["loadings"], posterior.mean["offset"]
    row = np.array([4.0, np.nan, 1.0, np.nan, 2.5])
    seen = ~np.isnan(row)
    covariance = covariance_of(posterior)[np.ix_(seen, seen)]
    gain = np.linalg.solve(covariance, loadings[seen]).T
    mean = gain @ (row - offset)[seen]
    spread = np.eye(LATENTS) - gain @ loadings[seen]
    latents = posterior.encode(row[None])
    np.testing.assert_allclose(latents.mean[0], mean, rtol=1e-9)
    np.testing.assert_allclose(latents.variance[0], np.diag(spread), rtol=1e-9)
    prediction = posterior.predict(row[None])
    np.testing.assert_allclose(prediction.mean[0], offset + loadings @ mean, rtol=1e-9)
    expected = np.diag(loadings @ spread @ loadings.T)
    np.testing.assert_allclose(prediction.variance[0], expected, rtol=1e-9)
    own = posterior.noise_scale**2 - posterior.perturbation**2
    noisy = posterior.predict(row[None], include_noise=True)
    np.testing.assert_allclose(noisy.variance[0], expected + own, rtol=1e-9)


def test_generated_rows_have_the_covariance_of_the_loadings_alone(rows):
    posterior = bk.infer(SingularDistribution(LATENTS, perturbation=0.2), rows)
    loadings = posterior.mean["loadings"]
    own = posterior.noise_scale**2 - posterior.perturbation**2
    count = 20_000
    clean = posterior.generate(0, count)
    assert clean.dtype == np.float64
    assert np.linalg.matrix_rank(clean - posterior.mean["offset"]) == LATENTS
    for generated, noise in (
        (clean, 0.0),
        (posterior.generate(0, count, observation_noise=True), own),
    ):
        expected = loadings @ loadings.T + noise * np.eye(FEATURES)
        diagonal = np.diag(expected)
        error = np.sqrt((expected**2 + np.outer(diagonal, diagonal)) / count)
        assert np.abs((np.cov(generated.T) - expected) / error).max() < 5
        distance = generated.mean(axis=0) - posterior.mean["offset"]
        assert np.abs(distance / np.sqrt(diagonal / count)).max() < 5


# Messages


def test_the_bound_is_below_the_evidence_and_close_to_it():
    rows = with_holes(simulated(rows=25))
    prior = dist.InverseGamma(3.0, 0.5)
    model = SingularDistribution(1, noise_prior=prior)
    posterior = bk.infer(model, rows, MessagePassing(max_iterations=2000, tolerance=1e-7))
    count = 400
    draws = posterior.sample(0, count)
    unit = np.sqrt(np.nanvar(rows, axis=0).mean())
    center = np.nanmean(rows, axis=0)
    factors = posterior.approximation.factors
    covariance = np.linalg.inv(np.asarray(factors.precision))
    normals = [
        scipy.stats.multivariate_normal(mean, each)
        for mean, each in zip(np.asarray(factors.mean), covariance, strict=True)
    ]
    noise_factor = scipy.stats.invgamma(
        float(factors.noise_concentration), scale=float(factors.noise_rate)
    )
    weights = []
    for i in range(count):
        noise, offset = draws["noise_variance"][i], draws["offset"][i]
        loadings = draws["loadings"][i]
        dense = loadings @ loadings.T + noise * np.eye(FEATURES)
        whole = np.column_stack([loadings / unit, (offset - center) / unit])
        weight = sum(dense_density(row, offset, dense) for row in rows)
        weight += scipy.stats.norm.logpdf(whole).sum()
        weight -= sum(normal.logpdf(w) for normal, w in zip(normals, whole, strict=True))
        standard = noise / unit**2
        weight += scipy.stats.invgamma.logpdf(standard, 3.0, scale=0.5 / unit**2)
        weights.append(weight - noise_factor.logpdf(standard))
    weights = np.array(weights)
    evidence = logsumexp(weights) - np.log(count)
    error = weights.std() / np.sqrt(count)
    # With latents integrated out, decoders under their factors are below the evidence too.
    assert posterior.log_evidence < weights.mean() + 5 * error
    assert weights.mean() < evidence + 1e-9
    assert evidence - posterior.log_evidence < 5.0


def test_messages_are_the_maximum_of_the_likelihood_where_there_are_many_rows():
    rows = simulated(rows=4000)
    model = SingularDistribution(LATENTS, perturbation=0.3)
    mode = bk.infer(model, rows)
    posterior = bk.infer(model, rows, MessagePassing(tolerance=1e-6))
    np.testing.assert_allclose(covariance_of(posterior), covariance_of(mode), rtol=0, atol=0.02)
    assert posterior.noise_scale == pytest.approx(mode.noise_scale, rel=1e-3)
    assert posterior.log_evidence is None
    deviation = np.sqrt(posterior.variance["offset"])
    # Given latents: of the mean of 4000 rows of noise.
    np.testing.assert_allclose(deviation, mode.noise_scale / np.sqrt(4000), rtol=0.01)


def test_leave_one_out_of_messages_is_between_the_fit_and_refits():
    rows = simulated(rows=100)
    method = MessagePassing(max_iterations=3000, tolerance=1e-7)
    model = SingularDistribution(LATENTS, noise_prior=dist.InverseGamma(3.0, 0.5))
    posterior = bk.infer(model, rows, method)
    inside = posterior.log_likelihood().values
    left_out = posterior.loo().elpd_i.values
    assert np.all(left_out < inside)
    chosen = np.argsort(inside)[:4]
    refits = [
        bk.infer(model, np.delete(rows, i, axis=0), method)
        .log_likelihood(rows[i : i + 1])
        .values[0]
        for i in chosen
    ]
    # Latents of the other rows stay as all rows determined them.
    assert np.all(refits < left_out[chosen])
    optimism = inside[chosen] - refits
    assert np.sum(inside[chosen] - left_out[chosen]) > 0.6 * np.sum(optimism)


# Markov chains


def test_chains_sample_the_exact_latents_of_the_trained_decoder(holes, perturbed_with_holes):
    trained = perturbed_with_holes.model
    method = MCMC(num_warmup=300, num_samples=300, num_chains=2)
    with pytest.warns(bk.ConvergenceWarning, match="effective sample size"):
        posterior = bk.infer(trained, holes, method, key=0)
    exact = perturbed_with_holes
    assert set(posterior.plugged_in) == {"loadings", "offset", "noise_variance"}
    for site in posterior.plugged_in:
        np.testing.assert_allclose(posterior.mean[site], exact.mean[site], rtol=1e-12)
    assert posterior.convergence.max_rhat < 1.05
    # Chains are judged by norms of the latents, which are no site of the summary.
    assert "latent_norms" in posterior.trace["diagnostics"]["rhat"]
    assert set(posterior.summary(["offset"])["plugged_in"]) == {True}
    variance = exact.variance["latents"]
    error = np.sqrt(variance / posterior.convergence.min_ess)
    assert np.abs((posterior.mean["latents"] - exact.mean["latents"]) / error).max() < 5
    ratio = posterior.variance["latents"] / variance
    assert abs(np.log(ratio).mean()) < 0.1
    np.testing.assert_allclose(posterior.encode().mean, exact.encode().mean, rtol=1e-9)
    np.testing.assert_allclose(posterior.generate(0, 5), exact.generate(0, 5), rtol=1e-9)


def test_chains_need_a_trained_decoder(rows):
    with pytest.raises(ValueError, match=r"trained decoder.*EM\(\) first"):
        bk.infer(SingularDistribution(LATENTS), rows, MCMC(), key=0)
    trained = bk.infer(SingularDistribution(LATENTS), rows).model
    with pytest.raises(ValueError, match=r"4 columns; the trained model's loadings has .*\(5, 2\)"):
        bk.infer(trained, rows[:, :4], MCMC(), key=0)


# Data


def test_frames_keep_their_names_and_take_their_columns_in_any_order(rows):
    frame = pd.DataFrame(rows, columns=list("abcde"), index=[f"row {i}" for i in range(ROWS)])
    posterior = bk.infer(SingularDistribution(LATENTS), frame)
    tree = posterior.to_datatree(num_draws=3)
    assert list(tree["moments"]["loadings_mean"].coords["feature"].values) == list("abcde")
    assert tree["posterior"]["latents"].dims == ("chain", "draw", "observation", "latent")
    expected = posterior.encode(rows[:4])
    np.testing.assert_allclose(posterior.encode(frame[list("edcba")][:4]).mean, expected.mean)
    assert posterior.encode().coords["observation"][1] == "row 1"
    with pytest.raises(ValueError, match=r"no columns \['e'\]"):
        posterior.encode(frame[list("abcd")])
    with pytest.raises(ValueError, match="data's 5 columns, got 4"):
        posterior.log_likelihood(rows[:, :4])


def test_single_precision_stays_single(rows):
    single = bk.infer(
        SingularDistribution(LATENTS, perturbation=0.2), jnp.asarray(rows, jnp.float32)
    )
    double = bk.infer(SingularDistribution(LATENTS, perturbation=0.2), rows)
    for result in (single.generate(0, 4), single.encode().mean, single.log_likelihood().values):
        assert result.dtype == np.float32
    np.testing.assert_allclose(covariance_of(single), covariance_of(double), rtol=0, atol=1e-4)


def test_wrong_arguments_and_data_are_named(rows):
    for arguments, kind, message in (
        ({"latent_dim": 0}, ValueError, "latent_dim must be at least 1, got 0"),
        ({"latent_dim": 1.0}, TypeError, "latent_dim must be an integer"),
        ({"perturbation": -0.1}, ValueError, r"perturbation must be in \[0.0, inf\), got -0.1"),
        ({"perturbation": np.nan}, ValueError, "perturbation must be finite"),
        ({"noise_scale": 0.0}, ValueError, "noise_scale must be positive"),
        ({"noise_prior": dist.HalfNormal(1.0)}, ValueError, "noise_prior must be inverse-gamma"),
        ({"noise_prior": 1.0}, TypeError, "noise_prior must be a NumPyro distribution"),
    ):
        with pytest.raises(kind, match=message):
            SingularDistribution(**{"latent_dim": 2, **arguments})
    infinite = rows.copy()
    infinite[1, 2] = np.inf
    empty = rows.copy()
    empty[:, 3] = np.nan
    model = SingularDistribution(LATENTS)
    for data, kind, message in (
        (rows[:, :2], ValueError, "latent_dim=2 must be below the number of columns of data, 2"),
        (rows[:, :1], ValueError, "latent_dim=2 must be below the number of columns of data, 1"),
        (rows[:2], ValueError, "data has 2 rows; latent_dim=2 needs more"),
        (infinite, ValueError, r"1 infinite values, the first at index \(1, 2\)"),
        (empty, ValueError, r"columns without any value: \[3\]"),
        (1j * rows, TypeError, "real numbers, got complex128"),
        (rows[0], ValueError, r"shape \(n, d\), got \(5,\)"),
    ):
        with pytest.raises(kind, match=message):
            bk.infer(model, data)


def test_columns_that_never_change_are_warned_about(rows):
    constant = rows.copy()
    constant[:, 1] = 7.0
    with pytest.warns(bk.ConditioningWarning, match=r"constant columns, \[1\]"):
        posterior = bk.infer(SingularDistribution(LATENTS), constant)
    assert np.all(np.isfinite(posterior.mean["loadings"]))
    np.testing.assert_allclose(posterior.mean["loadings"][1], 0.0, atol=1e-10)
    with (
        pytest.warns(bk.ConditioningWarning, match="constant columns"),
        pytest.raises(ValueError, match="equal rows only"),
    ):
        bk.infer(SingularDistribution(LATENTS), np.ones((9, 4)))
