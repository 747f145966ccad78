"""Semidefinite programs of clustering: duality, brute force over partitions, known truth."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import bayeskit as bk
from bayeskit.models.gaussian_mixture import lifted, lowrank
from bayeskit.models.gaussian_mixture.affinity import RowAffinity
from tests.models.test_gaussian_mixture import errors

SDP = bk.inference.SemidefiniteProgram
METHOD = SDP(max_iterations=4)
GROUP, JOINT, KMEANS = "group", "joint", "one matrix"
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
    return rows, truth, RowAffinity(-0.5 * logdet, white), covariances


def on_device(affinity):
    return jax.tree.map(jnp.asarray, affinity)


@eqx.filter_jit
def exact(affinity, joint):
    return lifted.solve(affinity.dense(), 3, joint, 20_000, 1e-9)


@eqx.filter_jit
def low_rank(affinity, joint):
    return lowrank.solve(affinity, 3, joint, 4000, 1e-6, jax.random.key(0))


@eqx.filter_jit
def certificate(affinity, share, joint):
    return lifted.certificate(affinity, share, 3, joint, METHOD, jax.random.key(0))


def test_affinities_are_the_classification_likelihood():
    rows, truth, affinity, covariances = clusters(np.random.default_rng(0), 4.0)
    share = np.eye(3)[truth]
    expected = 0.0
    for k, covariance in enumerate(covariances):
        own = rows[truth == k] - rows[truth == k].mean(axis=0)
        quadratic = np.einsum("ni,ij,nj->", own, np.linalg.inv(covariance), own)
        expected -= 0.5 * (len(own) * np.linalg.slogdet(covariance)[1] + quadratic)
    with jax.enable_x64(True):
        affinity = on_device(affinity)
        value = lifted.value_of(affinity, jnp.asarray(share))
        columns = jnp.asarray(np.random.default_rng(1).normal(size=(3, 24, 2)))
        implicit, formed = affinity.times(columns), affinity.dense() @ columns
    assert float(value) == pytest.approx(expected, rel=1e-10)
    np.testing.assert_allclose(implicit, formed, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("program", [GROUP, KMEANS, pytest.param(JOINT, marks=pytest.mark.full)])
def test_both_solvers_meet_the_dual_bound(program):
    _, truth, affinity, _ = clusters(np.random.default_rng(1), 3.0)
    if program == KMEANS:
        affinity = RowAffinity(np.zeros(1), affinity.white[1:2])
    joint = program != GROUP
    with jax.enable_x64(True):
        affinity = on_device(affinity)
        matrices = affinity.dense()
        state, alpha, slack = exact(affinity, joint)
        bound = float(lifted.dual_bound(matrices, alpha, slack, 3, joint))
        objective = float(jnp.sum(matrices * state.positive))
        found = low_rank(affinity, joint)
        product = np.einsum("gir,gjr->gij", found.factors, found.factors)
        reached = float(np.sum(np.asarray(matrices) * product))
        share = jnp.asarray(np.eye(3)[truth])
        certified, better = certificate(affinity, share, joint)
        principal = lifted.principal_bound(affinity, found.alpha, 3, joint, certified.primal)
        true_value = float(lifted.value_of(affinity, share))
    for z in (np.asarray(state.positive), product):
        assert np.min(z) >= 0
        assert np.max(np.abs(z.sum(axis=(0, 2)) - 1)) < 1e-4
        traces = np.trace(z, axis1=1, axis2=2)
        assert np.max(np.abs(traces - 1 if program == GROUP else traces.sum() - 3)) < 1e-4
        assert np.min(np.linalg.eigvalsh(z)) > -1e-5
    # Strong duality: nothing better exists, and nothing better was claimed.
    assert abs(bound - objective) < 1e-5 * abs(objective)
    assert abs(reached - objective) < 1e-2 * abs(objective)
    assert true_value <= float(certified.primal) <= float(certified.dual_bound)
    unit = max(1.0, abs(objective))
    assert -1e-6 <= (float(certified.dual_bound) - objective) / unit < 1e-3
    assert float(principal) >= bound - 1e-6
    assert np.all(np.asarray(better).sum(axis=0) > 0)


@pytest.mark.parametrize("program", [GROUP, JOINT, KMEANS])
def test_far_clusters_are_recovered_and_certified_to_rounding(program):
    _, truth, affinity, _ = clusters(np.random.default_rng(3), 14.0)
    if program == KMEANS:
        affinity = RowAffinity(np.zeros(1), affinity.white[1:2])
    wrong = np.eye(3)[np.roll(truth, 4)]
    with jax.enable_x64(True):
        found, share = certificate(on_device(affinity), jnp.asarray(wrong), program != GROUP)
    assert errors(np.argmax(share, axis=1), truth) == 0
    assert 0 <= float(found.gap) < 1e-9


@pytest.mark.parametrize("joint", [False, True])
def test_bound_holds_for_any_multipliers_and_any_partition(joint):
    generator = np.random.default_rng(2)
    rows = generator.normal(size=(2, 7, 2)) * [[[1.0, 2.0]], [[0.5, 1.0]]]
    affinity = RowAffinity(np.array([0.3, -0.2]), rows)
    best = -np.inf
    with jax.enable_x64(True):
        affinity = on_device(affinity)
        matrices = affinity.dense()
        for labels in itertools.product(range(2), repeat=7):
            member = np.eye(2)[list(labels)]
            sizes = member.sum(axis=0)
            if np.all(sizes > 0):
                each = np.einsum("ik,kij,jk->k", member, matrices, member) / sizes
                best = max(best, each.sum())
        for scale in (0.0, 1.0, 10.0):
            alpha = jnp.asarray(scale * generator.normal(size=7))
            slack = jnp.asarray(scale * generator.normal(size=(2, 7, 7)) ** 2)
            slack = slack + jnp.swapaxes(slack, 1, 2)
            assert float(lifted.dual_bound(matrices, alpha, slack, 2, joint)) >= best
            assert float(lifted.principal_bound(affinity, alpha, 2, joint, best)) >= best
            share = jnp.asarray(np.eye(2)[[0, 1, 0, 1, 1, 0, 0]])
            fitted = lifted.complementary(matrices, alpha, slack, share, 2, joint)
            assert float(lifted.dual_bound(matrices, *fitted, 2, joint)) >= best


@pytest.fixture(scope="module")
def certified():
    rows, truth, _, _ = clusters(np.random.default_rng(3), 12.0)
    return rows, truth, bk.infer(bk.models.GaussianMixture(3, prior=PRIOR), rows, METHOD)


def test_clusterings_are_found_without_a_start_and_certified(certified):
    _, truth, posterior = certified
    assert errors(posterior.labels, truth) == 0
    certificate = posterior.certificate
    assert certificate.dual_bound >= certificate.primal
    assert certificate.gap < 1e-9
    for arguments in ({"trace": "sum"}, {"finish": "messages"}, {"solver": "simplex"}):
        with pytest.raises(ValueError, match=f"{next(iter(arguments))} must be one of"):
            SDP(**arguments)


@pytest.mark.full
def test_certificates_of_single_precision_are_of_what_is_attained(certified):
    rows, truth, posterior = certified
    single = bk.infer(posterior.model, (80.0 * rows).astype(np.float32), METHOD)
    assert errors(single.labels, truth) == 0
    certificate = single.certificate
    # In single precision an objective of this size is not known to a millionth.
    assert certificate.dual_bound >= certificate.primal
    assert certificate.gap < 1e-8
    own = single.approximation.share.argmax(axis=1)
    np.testing.assert_array_equal(own, single.labels[single.approximation.rows])


@pytest.mark.full
def test_sketches_are_lifted_by_likelihood_to_incomplete_rows(certified):
    """A tight cluster inside a wide one: nearest centres would share the wide one out."""
    _, _, posterior = certified
    generator = np.random.default_rng(6)
    truth = np.repeat([0, 1, 2], [120, 80, 60])
    spread = np.array([[3.0, 3.0], [0.2, 0.2], [1.0, 0.2]])[truth]
    rows = np.array([[0.0, 0.0], [6.0, 0.0], [0.0, 14.0]])[truth] + spread * generator.normal(
        size=(260, 2)
    )
    holes = rows.copy()
    holes[::13, 1] = np.nan
    method = SDP(sketch_size=60, num_sketches=2, finish=None)
    found = bk.infer(posterior.model, holes, method)
    assert found.approximation.rows.shape == (60,)
    assert not np.isnan(holes[found.approximation.rows]).any()
    exact = stats.multivariate_normal
    density = np.stack(
        [
            np.log(np.mean(truth == k))
            + exact.logpdf(rows, rows[truth == k].mean(0), np.cov(rows[truth == k].T))
            for k in range(3)
        ]
    )
    seen = ~np.isnan(holes).any(axis=1)
    ideal = errors(np.argmax(density, axis=0)[seen], truth[seen])
    assert errors(found.labels[seen], truth[seen]) <= ideal + 5
    assert found.certificate.dual_bound >= found.certificate.primal
    again = bk.infer(posterior.model, holes, method)
    np.testing.assert_array_equal(again.approximation.rows, found.approximation.rows)


def test_what_has_no_program_is_refused_before_tracing(certified):
    rows, _, posterior = certified
    holes = rows.copy()
    holes[2:, 0] = np.nan
    with pytest.raises(ValueError, match="needs 3 complete rows, of 24 in data 2"):
        bk.infer(posterior.model, holes, METHOD)
    model = bk.models.GaussianMixture(5, prior=PRIOR)
    with pytest.raises(ValueError, match="sketch_size must be at least 5"):
        bk.infer(model, rows, SDP(sketch_size=4))


@pytest.mark.full
def test_a_bad_clustering_to_start_from_does_no_harm(certified):
    rows, truth, posterior = certified
    # Of another table, where two of the clusters are near and the third is cut in two.
    other, first = rows.copy(), np.flatnonzero(truth == 0)
    middle = rows[truth > 0].mean(axis=0)
    other[truth > 0] = middle + 0.3 * (rows[truth > 0] - middle)
    other[first] += np.where(rows[first, 1:] > np.median(rows[first, 1]), 1.0, -1.0) * [0.0, 4.0]
    wrong = bk.infer(posterior.model, other)
    stuck = bk.infer(posterior.model, rows, initial=wrong)
    assert errors(stuck.labels, truth) > 0
    again = bk.infer(posterior.model, rows, METHOD, initial=wrong)
    assert errors(again.labels, truth) == 0
    assert again.log_evidence > stuck.log_evidence + 1.0
    with pytest.raises(TypeError, match="only SemidefiniteProgram certifies, not EM"):
        _ = wrong.certificate


def test_matrices_are_clustered_as_well_as_all_partitions_allow():
    generator = np.random.default_rng(5)
    points = np.repeat([0.0, 4.0, 9.0], [4, 3, 3]) + generator.normal(size=10)
    distances = np.abs(points[:, None] - points) ** 1.5
    best = -np.inf
    for labels in itertools.product(range(3), repeat=9):
        member = np.eye(3)[[0, *labels]]
        sizes = member.sum(axis=0)
        if np.all(sizes > 0):
            value = np.sum(np.einsum("ik,ij,jk->k", member, distances, member) / sizes)
            best = max(best, -0.5 * value)
    found = bk.models.cluster_distances(distances, 3)
    assert found.certificate.primal == pytest.approx(best, rel=1e-10)
    assert best - 1e-9 <= found.certificate.dual_bound <= best + 1e-3 * max(1.0, abs(best))
    tiny = bk.models.cluster_distances(1e-8 * distances, 3).certificate
    assert tiny.gap == pytest.approx(found.certificate.gap, abs=1e-3)
    same = bk.models.cluster_affinity(-0.5 * distances, 3)
    np.testing.assert_array_equal(same.labels, found.labels)
    assert np.all(np.diff(np.bincount(found.labels)) <= 0)


def test_bad_matrices_are_refused_by_name():
    matrix = np.ones((4, 4))
    for wrong, message in (
        (matrix[:3], "affinity must have the shape"),
        (matrix + np.eye(4, k=1), "affinity must be symmetric"),
        (matrix * np.nan, "affinity has 16 non-finite values"),
    ):
        with pytest.raises(ValueError, match=message):
            bk.models.cluster_affinity(wrong, 2)
    with pytest.raises(ValueError, match="num_clusters must be at most 4"):
        bk.models.cluster_affinity(matrix, 5)
    with pytest.raises(ValueError, match="squared_distances must not be negative"):
        bk.models.cluster_distances(-matrix, 2)
