"""The last layer of a decoder beside dense regressions, and networks as functions of NumPyro's."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import SVI, RenyiELBO, Trace_ELBO
from scipy.stats import norm

import bayeskit as bk
from bayeskit.inference.variational import _weights
from bayeskit.models.singular import deep, last_layer
from bayeskit.models.singular.earlier import given
from bayeskit.precision import double_precision

SingularDistribution = bk.models.SingularDistribution
WIDTH, FEATURES = 16, 4
pytestmark = pytest.mark.filterwarnings("ignore::bayeskit.BayeskitWarning")


@pytest.fixture(scope="module")
def circle():
    return bk.datasets.shape(0, "circle", rows=200, features=FEATURES, noise=0.1)


@pytest.fixture(scope="module")
def trained(circle):
    model = SingularDistribution(2, decoder=(WIDTH, 2), perturbation=0.1)
    method = bk.inference.VariationalInference(max_iterations=3000, num_particles=5)
    return bk.infer(model, circle.observations, method, key=0)


def hidden(posterior, latents):
    """What the layers before the last make of latents, by NumPy alone, and a one."""
    flat, at = posterior.mean["decoder_weights"], 0
    found = latents
    for inputs in (latents.shape[1], WIDTH):
        weight = flat[at : at + WIDTH * inputs].reshape(WIDTH, inputs)
        bias = flat[at + WIDTH * inputs : at + WIDTH * inputs + WIDTH]
        at += WIDTH * inputs + WIDTH
        found = np.maximum(found @ weight.T + bias, 0.0)
    last = flat[at : at + FEATURES * WIDTH].reshape(FEATURES, WIDTH)
    weights = np.column_stack([last, flat[at + FEATURES * WIDTH :]])
    return np.column_stack([found, np.ones(len(found))]), weights


def test_given_latents_it_is_the_dense_regression(trained, circle):
    chains = bk.inference.MCMC(num_warmup=20, num_samples=4, num_chains=1)
    posterior = bk.infer(trained.model, circle.observations, chains, key=1)
    latents = np.asarray(posterior.approximation.sites["latents"])[0, 0]
    features, weights = hidden(trained, latents)
    center, unit = trained.mean["center"], trained.mean["unit"]
    rows = (circle.observations - center) / unit
    noise = trained.mean["noise_variance"] / unit**2
    precision = features.T @ features / noise + np.eye(WIDTH + 1) / np.mean(weights**2)
    covariance = np.linalg.inv(precision)
    expected = (covariance @ features.T @ rows / noise).T
    with double_precision():
        source, view = given(posterior.prepared.model, posterior.prepared.data)
        found = last_layer.given_latents(
            posterior.prepared.model, view, source.networks, jnp.asarray(latents), view.all_rows
        )
        white = jax.random.normal(jax.random.key(0), (4000, FEATURES, WIDTH + 1))
        drawn = np.asarray(jax.vmap(found.drawn)(white))
        at_rows = np.asarray(found.variance_at(jnp.asarray(features)))
        variances = np.asarray(found.variances())
    np.testing.assert_allclose(found.mean, expected, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(variances, np.tile(np.diag(covariance), (FEATURES, 1)), rtol=1e-7)
    of_rows = np.einsum("ij,jk,ik->i", features, covariance, features)
    np.testing.assert_allclose(at_rows, of_rows, rtol=1e-7)
    projected = (drawn - expected) @ features[:20].T
    assert np.abs(projected.var(axis=0) / of_rows[:20] - 1.0).max() < 6 * np.sqrt(2 / 4000)
    # Of all draws of the chain the last layer is drawn, and none is a trained one's.
    tree = posterior.to_datatree()
    assert tree["posterior"]["last_layer"].shape == (1, 4, FEATURES, WIDTH + 1)
    assert "last_layer" not in posterior.plugged_in
    assert "decoder_weights" in posterior.plugged_in

    # Other rows are decoded with it too: the mean over draws of the encoder's and their layers.
    with double_precision():
        encoded = trained.encode(circle.observations[:3])
    white = np.random.default_rng(0).normal(size=(100_000, 2))
    layer = posterior.mean["last_layer"]
    for row, mean, deviation in zip(
        posterior.predict(circle.observations[:3]).mean,
        encoded.mean,
        np.sqrt(encoded.variance),
        strict=True,
    ):
        features, _ = hidden(trained, mean + deviation * white)
        expected = center + unit * features.mean(axis=0) @ layer.T
        # Both are means over draws: 1024 of the result's.
        spread = unit * np.std(features @ layer.T, axis=0) / np.sqrt(1024)
        assert (np.abs(row - expected) < 5 * spread).all()


def test_trained_weights_are_what_the_regression_finds(trained, circle):
    # Training ends where the expected regression does, but for the prior: at the rows, in units
    # of the deviation that the last layer has there.
    _, weights = hidden(trained, np.zeros((1, 2)))
    np.testing.assert_allclose(trained.mean["last_layer"], weights, rtol=1e-6)
    chains = bk.inference.MCMC(num_warmup=300, num_samples=100, num_chains=2)
    posterior = bk.infer(trained.model, circle.observations, chains, key=1)
    clean = circle.draw(0, 200)
    features, weights = hidden(trained, trained.encode(clean).mean)
    found = features @ (posterior.mean["last_layer"] - weights).T
    with double_precision():
        deviation = np.sqrt(trained.approximation.last_layer.variance_at(jnp.asarray(features)))
    assert np.sqrt(np.mean((found / deviation[:, None]) ** 2)) < 1.5


def test_predictions_know_of_it(trained, circle):
    new = circle.draw(1, 30)
    found = trained.predict(new)
    bare = trained.approximation.__class__(
        trained.approximation.networks, None, *_kept(trained.approximation)
    )
    with double_precision():
        target = trained.target(new).inputs
        where = trained.prepared.model, trained.prepared.data
        mean, variance = map(np.asarray, bare.predict(target, False, *where))
    np.testing.assert_allclose(found.mean, mean)
    assert np.all(found.variance > variance)
    drawn = trained.to_datatree(num_draws=400, predictions=new)["predictions"]["x"].values[0]
    own = trained.noise_scale**2 - trained.perturbation**2
    # Simulated rows: the decoder is drawn, once a draw.
    ratio = drawn.var(axis=0) / (found.variance + own)
    assert np.abs(ratio.mean() - 1.0) < 0.1


def _kept(approximation):
    return approximation.tried, approximation.densities, approximation.errors


def test_other_decoders_have_none(circle):
    model = SingularDistribution(
        1, decoder=deep.eqx.nn.MLP(1, FEATURES, 8, 1, key=jax.random.key(0)), perturbation=0.1
    )
    method = bk.inference.VariationalInference(max_iterations=50, tolerance=0.0)
    posterior = bk.infer(model, circle.observations, method, key=0)
    assert "last_layer" not in posterior.mean


def test_on_a_grid_it_is_told_by_probabilities_of_nodes(circle):
    model = SingularDistribution(1, decoder=(WIDTH, 2), perturbation=0.1, fresh=False)
    posterior = bk.infer(model, circle.observations, bk.inference.EM(max_iterations=30))
    count = 256
    edges = norm.ppf(np.arange(1, count) / count)
    density = np.concatenate([[0.0], norm.pdf(edges), [0.0]])
    nodes = -count * np.diff(density)[:, None]
    features, weights = hidden(posterior, nodes)
    with double_precision():
        rows = np.asarray(deep.perturbed_once(posterior.prepared.model, posterior.prepared.data))
    noise = posterior.mean["noise_variance"] / posterior.mean["unit"] ** 2
    distance = ((rows[:, None] - features @ weights.T) ** 2).sum(axis=2)
    share = np.exp(-0.5 * (distance - distance.min(axis=1, keepdims=True)) / noise)
    share /= share.sum(axis=1, keepdims=True)
    gram = np.einsum("nm,mj,mk->jk", share, features, features)
    precision = gram / noise + np.eye(WIDTH + 1) / np.mean(weights**2)
    covariance = np.linalg.inv(precision)
    np.testing.assert_allclose(posterior.variance["last_layer"][0], np.diag(covariance), rtol=1e-5)
    new = circle.draw(3, 20)
    standard = (new - posterior.mean["center"]) / posterior.mean["unit"]
    joint = -0.5 * ((standard[:, None] - features @ weights.T) ** 2).sum(axis=2)
    share = np.exp((joint - joint.max(axis=1, keepdims=True)) / noise)
    share /= share.sum(axis=1, keepdims=True)
    # Eight latents in every cell.
    places = norm.ppf((np.arange(count * 8) + 0.5) / (count * 8))[:, None]
    inside, _ = hidden(posterior, places)
    of_rows = np.einsum("ij,jk,ik->i", inside, covariance, inside).reshape(count, 8).mean(axis=1)
    bare = posterior.approximation.__class__(posterior.approximation.networks)
    with double_precision():
        target = posterior.target(new).inputs
        where = posterior.prepared.model, posterior.prepared.data
        _, variance = bare.predict(target, False, *where)
        gained = posterior.predict(new).variance - np.asarray(variance)
    expected = posterior.mean["unit"] ** 2 * np.tile((share @ of_rows)[:, None], FEATURES)
    np.testing.assert_allclose(gained, expected, rtol=1e-5)


def test_levels_that_were_not_chosen_are_kept(circle):
    model = SingularDistribution(2, decoder=(WIDTH, 2), perturbation=(0.05, 0.4))
    method = bk.inference.VariationalInference(max_iterations=300, tolerance=0.0)
    posterior = bk.infer(model, circle.observations, method, key=0)
    table = posterior.selection
    for index in range(2):
        found = posterior.at_level(index)
        assert found.perturbation == pytest.approx(table["perturbation"][index], rel=1e-6)
        # The one that was chosen has been trained anew.
        assert not np.array_equal(found.mean["decoder_weights"], posterior.mean["decoder_weights"])
        assert found.selection["chosen"][index]
        assert found.model.estimates["perturbation"] == pytest.approx(found.perturbation)
    with pytest.raises(ValueError, match="index must be below 2"):
        posterior.at_level(2)
    with pytest.raises(TypeError, match="nothing was selected"):
        bk.infer(
            SingularDistribution(1, decoder="linear", perturbation=0.1), circle.observations
        ).at_level(0)


@pytest.mark.parametrize("objective", ["importance-weighted", "elbo"])
def test_the_bound_is_that_of_numpyro(circle, objective):
    particles, repetitions = 5, 200
    rows = circle.observations[:60]
    prior = dist.InverseGamma(30.0, 5.0)
    model = SingularDistribution(2, decoder=(WIDTH, 1), perturbation=0.2, noise_prior=prior)
    with double_precision():
        joint, guide = model.to_numpyro(rows, batch_size=15, key=3)
        loss = (
            RenyiELBO(alpha=0, num_particles=particles)
            if objective == "importance-weighted"
            else Trace_ELBO(num_particles=particles)
        )
        svi = SVI(joint, guide, optax.adam(1e-3), loss)
        parameters = svi.get_params(svi.init(jax.random.key(0), jax.random.key(1)))
        theirs = jax.vmap(
            lambda key: loss.loss(key, parameters, joint, guide, jax.random.fold_in(key, 1)) / 60
        )(jax.random.split(jax.random.key(2), repetitions))
        prepared = model.prepare(rows)
        start = deep.NetworkParameters(
            parameters["decoder$params"], parameters["encoder$params"], parameters["log_scale"]
        )
        level = prepared.data.perturbation

        def ours(key):
            first, second = jax.random.split(key)
            values = prepared.model.variational_rows(prepared.data, jnp.arange(60), level, first)
            weights, _ = _weights(
                prepared.model, prepared.data, start, level, values, particles, second
            )
            if objective == "elbo":
                return jnp.mean(weights)
            return jnp.mean(jax.scipy.special.logsumexp(weights, axis=0) - jnp.log(particles))

        found = jax.vmap(ours)(jax.random.split(jax.random.key(4), repetitions))
    found, theirs = np.asarray(found), np.asarray(theirs)
    difference = np.mean(found) + np.mean(theirs)
    error = np.sqrt((np.var(found) + np.var(theirs)) / repetitions)
    assert abs(difference) < 4 * error
    assert error < 0.01 * abs(np.mean(theirs))


def test_functions_of_numpyro_are_of_one_level(circle):
    with pytest.raises(ValueError, match="one perturbation"):
        SingularDistribution(2).to_numpyro(circle.observations)
    with pytest.raises(ValueError, match="closed forms"):
        SingularDistribution(2, decoder="linear", perturbation=0.1).to_numpyro(circle.observations)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        SingularDistribution(2, perturbation=0.1).to_numpyro(circle.observations, batch_size=0)


def test_numpyro_goes_on_from_a_trained_model(trained, circle):
    with double_precision():
        pair = trained.model.to_numpyro(circle.observations)
        svi = SVI(*pair, optax.adam(1e-3), Trace_ELBO())
        parameters = svi.get_params(svi.init(jax.random.key(0), jax.random.key(1)))
        flat = {
            name: jax.flatten_util.ravel_pytree(parameters[f"{name}$params"])[0]
            for name in ("decoder", "encoder")
        }
    for name, weights in flat.items():
        np.testing.assert_allclose(weights, trained.mean[f"{name}_weights"], rtol=1e-12)
    noise = np.exp(2 * np.asarray(parameters["log_scale"])) * trained.mean["unit"] ** 2
    own = trained.mean["noise_variance"] - trained.perturbation**2
    floor = (deep.FLOOR * trained.mean["unit"]) ** 2
    np.testing.assert_allclose(noise, own - floor, rtol=1e-6)


def test_rows_of_the_prior_are_decoded_and_perturbed(circle):
    model = SingularDistribution(2, decoder=(WIDTH, 2), perturbation=0.3, num_observations=4000)
    method = bk.inference.VariationalInference(max_iterations=500, num_particles=3)
    posterior = bk.infer(model, circle.observations, method, key=0)
    parameters, rows = posterior.model.sample_prior(1)
    features, weights = hidden(posterior, parameters["latents"])
    decoded = posterior.mean["center"] + posterior.mean["unit"] * features @ weights.T
    scores = (rows - decoded) / posterior.noise_scale
    assert abs(np.mean(scores)) < 5 / np.sqrt(scores.size)
    assert abs(np.mean(scores**2) - 1.0) < 5 * np.sqrt(2 / scores.size)
    assert np.abs(np.cov(parameters["latents"].T) - np.eye(2)).max() < 5 * np.sqrt(2 / 4000)
