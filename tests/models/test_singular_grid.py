"""Networks by expectation maximisation on a grid of latents: dense twins and closed forms."""

import equinox as eqx
import jax
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.special import logsumexp, softmax
from scipy.stats import invgamma, norm, truncnorm

import bayeskit as bk
from tests.models.test_singular import FEATURES, LOADINGS, OFFSET

EM, MCMC = bk.inference.EM, bk.inference.MCMC
SingularDistribution = bk.models.SingularDistribution
WIDTH, NOISE = 12, 0.1
EDGES = norm.ppf(np.arange(257) / 256)


@pytest.fixture(scope="module")
def rows():
    return bk.datasets.shape(0, "circle", rows=80, features=3, noise=NOISE).observations + 5.0


@pytest.fixture(scope="module")
def circle(rows):
    model = SingularDistribution(1, decoder=(WIDTH, 1), perturbation=0.0)
    with pytest.warns(bk.ConvergenceWarning, match="max_iterations=150"):
        return bk.infer(model, rows, EM(max_iterations=150, tolerance=0.0))


def decoded_by(posterior, latents):
    """What latents (*, 1) are decoded to, in NumPy and the user's units."""
    parts = np.split(posterior.mean["decoder_weights"], np.cumsum([WIDTH, WIDTH, 3 * WIDTH]))
    hidden = np.maximum(latents * parts[0] + parts[1], 0.0)
    rows = hidden @ parts[2].reshape(3, WIDTH).T + parts[3]
    return posterior.mean["center"] + posterior.mean["unit"] * rows


def dense(posterior, rows):
    """Nodes, and log joint densities of rows and them, in NumPy."""
    nodes = -256 * np.diff(norm.pdf(EDGES))
    decoded = decoded_by(posterior, nodes[:, None])
    joint = norm.logpdf(rows[:, None], decoded, posterior.noise_scale).sum(axis=2) - np.log(256)
    return nodes, joint


def test_the_likelihood_never_falls_and_is_that_of_the_mixture_of_nodes(circle, rows):
    objective = circle.convergence.objective
    # Sums of 80 logarithms of a few nats: rounding is below 1e-11.
    assert np.diff(objective).min() > -1e-10
    assert objective[-1] - objective[0] > 100.0
    _, joint = dense(circle, rows)
    density = logsumexp(joint, axis=1)
    np.testing.assert_allclose(circle.log_likelihood().values, density, rtol=1e-9, atol=1e-9)
    assert circle.log_evidence == pytest.approx(density.sum(), rel=1e-10)
    assert not circle.log_likelihood().pareto_k.any()
    # In three dimensions, of which a curve explains one; fitted to 80 rows, so a little small.
    assert 0.6 * NOISE < circle.noise_scale < 1.2 * NOISE


def test_latents_and_rows_are_averages_over_the_nodes(circle, rows):
    nodes, joint = dense(circle, rows)
    shares = softmax(joint, axis=1)
    encoded, predicted = circle.encode(rows), circle.predict(rows, include_noise=True)
    mean = shares @ nodes
    np.testing.assert_allclose(encoded.mean[:, 0], mean, rtol=0, atol=1e-9)
    second = shares @ (nodes**2 + truncnorm.var(EDGES[:-1], EDGES[1:]))
    np.testing.assert_allclose(encoded.variance[:, 0], second - mean**2, rtol=1e-5, atol=1e-9)
    # Eight latents in every cell.
    places = norm.ppf((np.arange(256 * 8) + 0.5) / (256 * 8))
    decoded, each = decoded_by(circle, places[:, None]), np.repeat(shares / 8, 8, axis=1)
    mean = each @ decoded
    np.testing.assert_allclose(predicted.mean, mean, rtol=1e-9)
    spread = each @ (decoded - 5.0) ** 2 - (mean - 5.0) ** 2 + circle.noise_scale**2
    layer = circle.variance["last_layer"][0]
    of_decoder = predicted.variance - spread
    # That of the last layer, which is the same for all columns.
    np.testing.assert_allclose(of_decoder, of_decoder[:, :1].repeat(3, axis=1), atol=1e-9)
    assert np.all(of_decoder > 0)
    assert of_decoder.max() < circle.mean["unit"] ** 2 * layer.sum()
    count = 2000
    draws = circle.sample(0, count)["latents"][:, :, 0]
    error = np.sqrt(encoded.variance[:, 0] / count)
    assert np.abs((draws.mean(axis=0) - encoded.mean[:, 0]) / error).max() < 5
    generated = circle.generate(0, count)
    error = decoded.std(axis=0) / np.sqrt(count)
    assert np.abs((generated.mean(axis=0) - decoded.mean(axis=0)) / error).max() < 5
    ratio = generated.std(axis=0) / decoded.std(axis=0)
    # Of 2000 draws: five standard errors.
    assert np.abs(ratio - 1.0).max() < 5 / np.sqrt(2 * count)


@pytest.fixture(scope="module")
def line():
    """Rows near a line, and EM of a linear network that does not know to be one."""
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(200, 1)) @ LOADINGS[:, :1].T + OFFSET
    rows = rows + 0.5 * generator.normal(size=rows.shape)
    decoder = eqx.nn.Linear(1, FEATURES, key=jax.random.key(0))
    model = SingularDistribution(1, decoder=decoder, perturbation=0.0)
    return rows, bk.infer(model, rows, EM(max_iterations=2000, tolerance=1e-8))


def test_a_linear_network_finds_the_closed_form(line):
    rows, posterior = line
    assert posterior.convergence.converged
    closed = bk.infer(SingularDistribution(1, decoder="linear"), rows)
    loadings = posterior.mean["unit"] * posterior.mean["decoder_weights"][:FEATURES]
    expected = np.abs(closed.mean["loadings"][:, 0])
    # Latents have another prior: within half a standard error.
    error = expected.max() / np.sqrt(2.0 * len(rows))
    np.testing.assert_allclose(np.abs(loadings), expected, rtol=0, atol=0.5 * error)
    assert posterior.noise_scale == pytest.approx(closed.noise_scale, rel=2e-3)
    assert posterior.log_evidence == pytest.approx(closed.log_evidence, abs=1.0)


@pytest.mark.filterwarnings("ignore:MCMC did not converge")
@pytest.mark.filterwarnings("ignore:VariationalInference did not converge")
def test_other_methods_go_on_from_it(line):
    rows, posterior = line
    chains = bk.infer(posterior.model, rows[:30], MCMC(num_warmup=200, num_samples=300), key=0)
    encoded = posterior.encode(rows[:30])
    error = np.sqrt(encoded.variance / chains.convergence.min_ess)
    assert np.abs((chains.mean["latents"] - encoded.mean) / error).max() < 5
    assert abs(np.log(chains.variance["latents"] / encoded.variance).mean()) < 0.15
    method = bk.inference.VariationalInference(max_iterations=50, learning_rate=1e-9)
    trained = bk.infer(posterior.model, rows, method, key=0, initial=posterior)
    weights = posterior.mean["decoder_weights"]
    np.testing.assert_allclose(trained.mean["decoder_weights"], weights, rtol=0, atol=1e-6)
    assert trained.noise_scale == pytest.approx(posterior.noise_scale, rel=1e-6)


def test_perturbed_rows_are_drawn_once_and_in_two_dimensions_too(rows):
    model = SingularDistribution(2, decoder=(6, 1), perturbation=0.3, fresh=False)
    method = EM(max_iterations=15, tolerance=0.0, restarts=2)
    with pytest.warns(bk.ConvergenceWarning):
        posterior = bk.infer(model, rows, method, key=0)
    assert np.diff(posterior.convergence.objective).min() > -1e-10
    assert posterior.noise_scale > posterior.perturbation
    assert posterior.perturbation == pytest.approx(0.3 * posterior.mean["unit"], rel=1e-12)
    assert posterior.encode().mean.shape == (80, 2)


@pytest.mark.filterwarnings("ignore::bayeskit.BayeskitWarning")
def test_a_noise_prior_of_networks(rows):
    concentration, rate = 200.0, 5.0
    prior = dist.InverseGamma(concentration, rate)
    settings = {"decoder": (WIDTH, 1), "perturbation": 0.0, "noise_prior": prior}
    method = EM(max_iterations=150, tolerance=0.0)
    posterior = bk.infer(SingularDistribution(1, **settings), rows, method)
    assert np.diff(posterior.convergence.objective).min() > -1e-10
    noise = posterior.mean["noise_variance"]
    nodes, joint = dense(posterior, rows)
    log_prior = invgamma.logpdf(noise, concentration, scale=rate) + np.log(noise)
    density = logsumexp(joint, axis=1).sum() + log_prior
    assert posterior.log_evidence == pytest.approx(density, rel=1e-10)
    # A fixed point of the update: sums of squares and twice the rate, by their weights.
    distances = ((rows[:, None] - decoded_by(posterior, nodes[:, None])) ** 2).sum(axis=2)
    squares = (softmax(joint, axis=1) * distances).sum()
    expected = (squares + 2 * rate) / (rows.size + 2 * concentration)
    assert noise == pytest.approx(expected, rel=1e-3)
    assert noise > 1.5 * squares / rows.size


@pytest.mark.parametrize(
    ("latents", "method"),
    [
        (3, EM(max_iterations=30)),
        (2, bk.inference.VariationalInference(max_iterations=1500, tolerance=0.0, num_particles=3)),
    ],
)
@pytest.mark.filterwarnings("ignore::bayeskit.BayeskitWarning")
def test_a_noise_prior_counts_as_much_as_it_should(latents, method):
    rows = bk.datasets.shape(0, "circle", rows=80, features=4, noise=NOISE).observations
    # Ten times as much as the rows.
    concentration = 5.0 * rows.size
    prior = dist.InverseGamma(concentration, concentration * 0.2**2)
    model = SingularDistribution(latents, decoder=(8, 1), perturbation=0.0, noise_prior=prior)
    posterior = bk.infer(model, rows, method, key=0)
    # Squares of the rows themselves are from nothing to twice those of the noise.
    smallest, largest = ((10 * 0.2**2 + squares) / 11 for squares in (0.0, 2 * NOISE**2))
    assert smallest < posterior.mean["noise_variance"] < largest


def test_what_is_no_fixed_function_is_told(rows):
    for arguments, message in (
        ({}, "for one perturbation, such as perturbation=0.1, got 'auto'"),
        ({"perturbation": (0.1, 0.2)}, r"got \(0.1, 0.2\)"),
        ({"perturbation": 0.1}, "state fresh=False"),
    ):
        with pytest.raises(ValueError, match=message):
            bk.infer(SingularDistribution(**{"latent_dim": 1, **arguments}), rows, EM())
