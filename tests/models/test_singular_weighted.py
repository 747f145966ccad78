"""Networks by expectation maximisation with weighted draws of three latents."""

import equinox as eqx
import jax
import numpy as np
import pytest
import scipy.stats

import bayeskit as bk

EM = bk.inference.EM
SingularDistribution = bk.models.SingularDistribution
ROWS, FEATURES, LATENTS = 200, 6, 3


@pytest.fixture(scope="module")
def rows():
    generator = np.random.default_rng(0)
    loadings = generator.normal(size=(FEATURES, LATENTS))
    clean = generator.normal(size=(ROWS, LATENTS)) @ loadings.T + 3.0
    return clean + 0.8 * generator.normal(size=clean.shape)


def affine_model():
    first, second = jax.random.split(jax.random.key(1))
    return SingularDistribution(
        LATENTS,
        decoder=eqx.nn.Linear(LATENTS, FEATURES, key=first),
        encoder=eqx.nn.Linear(FEATURES, 2 * LATENTS, key=second),
        perturbation=0.0,
    )


@pytest.fixture(scope="module")
def affine(rows):
    return bk.infer(affine_model(), rows, EM(max_iterations=200))


def test_the_bound_never_falls_and_ends_near_the_closed_form(affine, rows):
    objective = affine.convergence.objective
    assert affine.convergence.converged
    assert np.diff(objective).min() > -1e-9
    assert affine.log_evidence is None
    size = FEATURES * LATENTS
    weights, unit = affine.mean["decoder_weights"], affine.mean["unit"]
    loadings = unit * weights[:size].reshape(FEATURES, LATENTS)
    offset = affine.mean["center"] + unit * weights[size:]
    covariance = loadings @ loadings.T + affine.noise_scale**2 * np.eye(FEATURES)
    density = scipy.stats.multivariate_normal.logpdf(rows, offset, covariance).mean()
    closed = bk.infer(SingularDistribution(LATENTS, decoder="linear", perturbation=0.0), rows)
    best = closed.log_evidence / ROWS
    # Half a nat a weight of the decoder is what estimates lose by chance.
    assert best - 0.5 * len(weights) / ROWS < density < best
    # The numbers are known to the encoder.
    assert abs(objective[-1] / ROWS - density) < 0.3
    found = affine.log_likelihood(num_particles=2000).values.mean()
    assert found == pytest.approx(density, abs=0.02)


def test_it_goes_on_from_a_trained_model_and_tells_of_numbers_that_were_learnt(affine, rows):
    with pytest.warns(bk.ConvergenceWarning, match="max_iterations=1"):
        again = bk.infer(affine.model, rows, EM(max_iterations=1, tolerance=0.0), initial=affine)
    assert again.convergence.objective[0] == pytest.approx(
        affine.convergence.objective[-1], abs=2.0
    )
    learner = SingularDistribution(LATENTS, decoder=(32, 1), perturbation=0.0)
    with (
        pytest.warns(bk.ConditioningWarning, match="nats a row higher at the random numbers"),
        pytest.warns(bk.ConvergenceWarning),
    ):
        bk.infer(learner, rows[:25], EM(max_iterations=40, tolerance=0.0))
