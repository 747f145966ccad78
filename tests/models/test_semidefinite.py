"""Semidefinite programs of clustering: duality, brute force over partitions, known truth."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bayeskit as bk
from bayeskit.models.gaussian_mixture import lifted
from tests.models.test_gaussian_mixture import errors

SDP = bk.inference.SemidefiniteProgram
METHOD = SDP(max_iterations=4, solver_iterations=300)
PRIOR = bk.models.NormalInverseWishart([0.0, 0.0], 0.01, np.eye(2), 4.0)


def clusters(generator, separation, sizes=(8, 8, 8)):
    """Three clusters in the plane, whose covariances differ, with A matrices of their truth."""
    angles = np.linspace(0, 2 * np.pi, 4)[:-1]
    centers = separation * np.stack([np.cos(angles), np.sin(angles)], 1) / np.sqrt(3)
    covariances = np.array(
        [[[2.0, 0.9], [0.9, 0.6]], [[0.5, 0.0], [0.0, 0.5]], [[0.4, -0.3], [-0.3, 2.0]]]
    )
    truth = np.repeat(np.arange(3), sizes)
    roots = np.linalg.cholesky(covariances)
    noise = generator.normal(size=(len(truth), 2))
    rows = centers[truth] + np.einsum("nij,nj->ni", roots[truth], noise)
    white = np.stack([np.linalg.solve(root, rows.T).T for root in roots])
    logdet = 2 * np.log(np.diagonal(roots, axis1=1, axis2=2)).sum(axis=1)
    with jax.enable_x64(True):
        affinity = np.asarray(lifted.affinities(0.0, jnp.asarray(logdet), jnp.asarray(white)))
    return rows, truth, affinity, covariances


@jax.jit
def solved(affinity):
    return lifted.solve(affinity, 3, False, 20_000, 1e-10)


def test_affinities_are_the_classification_likelihood():
    rows, truth, affinity, covariances = clusters(np.random.default_rng(0), 4.0)
    share = np.eye(3)[truth]
    expected = 0.0
    for k, covariance in enumerate(covariances):
        own = rows[truth == k] - rows[truth == k].mean(axis=0)
        quadratic = np.einsum("ni,ij,nj->", own, np.linalg.inv(covariance), own)
        expected -= 0.5 * (len(own) * np.linalg.slogdet(covariance)[1] + quadratic)
    with jax.enable_x64(True):
        value = lifted.value_of(jnp.asarray(affinity), jnp.asarray(share))
    assert float(value) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("separation", [3.0, 14.0])
def test_solution_meets_the_dual_bound_and_recovers_what_is_separate(separation):
    _, truth, affinity, _ = clusters(np.random.default_rng(1), separation)
    with jax.enable_x64(True):
        affinity = jnp.asarray(affinity)
        solution = solved(affinity)
        z = np.asarray(solution.matrices)
        objective = float(jnp.sum(affinity * solution.matrices))
        share = lifted.rounded(affinity, solution, 3, False, jax.random.key(0))
        found = lifted.certificate(affinity, solution, share, 3, False)
        true_value = float(lifted.value_of(affinity, jnp.asarray(np.eye(3)[truth])))
    assert np.min(z) >= 0
    assert np.max(np.abs(z.sum(axis=(0, 2)) - 1)) < 1e-5
    assert np.max(np.abs(np.trace(z, axis1=1, axis2=2) - 1)) < 1e-5
    assert np.min(np.linalg.eigvalsh(z)) > -1e-5
    # Strong duality: nothing better exists, and nothing better was claimed.
    assert abs(float(found.dual_bound) - objective) < 1e-5 * abs(objective)
    assert float(found.dual_bound) >= max(float(found.primal), true_value)
    if separation > 10:
        assert errors(np.argmax(share, axis=1), truth) == 0
        assert float(found.gap) < 1e-6


@pytest.mark.parametrize("joint", [False, True])
def test_bound_holds_for_any_multipliers_and_any_partition(joint):
    generator = np.random.default_rng(2)
    affinity = generator.normal(size=(2, 7, 7))
    affinity = affinity + affinity.transpose(0, 2, 1)
    best = -np.inf
    for labels in itertools.product(range(2), repeat=7):
        member = np.eye(2)[list(labels)]
        sizes = member.sum(axis=0)
        if np.all(sizes > 0):
            each = np.einsum("ik,kij,jk->k", member, affinity, member) / sizes
            best = max(best, each.sum())
    with jax.enable_x64(True):
        for scale in (0.0, 1.0, 10.0):
            alpha = jnp.asarray(scale * generator.normal(size=7))
            slack = jnp.asarray(scale * generator.normal(size=(2, 7, 7)) ** 2)
            slack = slack + jnp.swapaxes(slack, 1, 2)
            assert float(lifted.dual_bound(jnp.asarray(affinity), alpha, slack, 2, joint)) >= best
        solution = lifted.solve(jnp.asarray(affinity), 2, joint, 500, 0.0)
        bound = lifted.dual_bound(jnp.asarray(affinity), solution.alpha, solution.slack, 2, joint)
    assert best <= float(bound) < best + 5.0


@pytest.fixture(scope="module")
def certified():
    rows, truth, _, _ = clusters(np.random.default_rng(3), 12.0)
    return rows, truth, bk.infer(bk.models.GaussianMixture(3, prior=PRIOR), rows, METHOD)


def test_clusterings_are_found_without_a_start_and_certified(certified):
    rows, truth, posterior = certified
    assert errors(posterior.labels, truth) == 0
    certificate = posterior.certificate
    assert certificate.dual_bound >= certificate.primal
    assert certificate.gap < 1e-2
    holes = rows.copy()
    holes[0, 0] = np.nan
    with pytest.raises(ValueError, match="complete rows"):
        bk.infer(posterior.model, holes, METHOD)
    with pytest.raises(ValueError, match="trace must be one of"):
        SDP(trace="sum")
    with pytest.raises(ValueError, match="finish must be one of"):
        SDP(finish="messages")


@pytest.mark.full
def test_a_bad_clustering_to_start_from_does_no_harm(certified):
    rows, truth, posterior = certified
    order = np.random.default_rng(4).permutation(len(rows))
    wrong = bk.infer(posterior.model, rows[order])
    again = bk.infer(posterior.model, rows, METHOD, initial=wrong)
    assert errors(again.labels, truth) == 0
    with pytest.raises(TypeError, match="only SemidefiniteProgram certifies, not EM"):
        _ = wrong.certificate
