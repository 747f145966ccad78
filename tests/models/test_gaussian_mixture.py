"""Gaussian mixtures: closed forms against dense computations, scikit-learn and known truth."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from numpyro.infer.util import log_density
from scipy import special, stats
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.optimize import linear_sum_assignment
from sklearn.datasets import load_iris, load_wine
from sklearn.mixture import BayesianGaussianMixture
from sklearn.mixture import GaussianMixture as PeerMixture

import bayeskit as bk
from bayeskit.models.gaussian_mixture import conjugate, sampling, starts
from bayeskit.models.gaussian_mixture.approximation import KnownComponents
from bayeskit.models.gaussian_mixture.blocks import Blocks
from bayeskit.precision import double_precision

GaussianMixture = bk.models.GaussianMixture
PRIOR = bk.models.NormalInverseWishart([1.0, -1.0], 0.3, [[3.0, 0.5], [0.5, 2.0]], 5.0)
TIGHT = {"tolerance": 1e-10, "max_iterations": 3000}


@pytest.fixture(scope="module")
def table():
    generator = np.random.default_rng(1)
    first = generator.multivariate_normal([0.0, 0.0], [[1.0, 0.6], [0.6, 1.0]], 35)
    second = generator.multivariate_normal([5.0, 1.0], [[1.0, -0.5], [-0.5, 2.0]], 25)
    return np.concatenate([first, second])


@pytest.fixture(scope="module")
def fitted(table):
    return bk.infer(GaussianMixture(2, prior=PRIOR), table, bk.inference.EM(**TIGHT))


@pytest.fixture(scope="module")
def single(table):
    return bk.infer(GaussianMixture(1, prior=PRIOR), table)


@pytest.mark.parametrize("covariance", ["full", "diagonal", "tied", "spherical"])
def test_chains_are_judged_alike_in_all_units(table, covariance):
    """By log-determinants: of a sum of entries, the feature in the smallest unit were all."""
    model = GaussianMixture(2, covariance=covariance)
    generator = np.random.default_rng(0)
    found = []
    with double_precision():
        for units in ([1.0, 1.0], [1.0, 1e4]):
            prepared = model.prepare(table * units)
            blocks = prepared.model.blocks(2)
            factor = generator.normal(size=(blocks.groups, blocks.parts, blocks.size, 4))
            matrices = np.einsum("...ij,...kj->...ik", factor, factor)
            known = KnownComponents(
                jnp.asarray([0.3, 0.7]), jnp.zeros((2, 2)), jnp.asarray(matrices)
            )
            judged = known.judged(prepared.model, prepared.data)
            expected = np.sum(np.linalg.slogdet(matrices)[1], axis=-1)
            np.testing.assert_allclose(judged["log_determinants"], expected, rtol=1e-12)
            found.append(judged["log_determinants"])
            generator = np.random.default_rng(0)
    np.testing.assert_array_equal(*found)


def errors(labels, truth):
    count = max(labels.max(), truth.max()) + 1
    table = np.zeros((count, count), int)
    np.add.at(table, (labels, truth), 1)
    rows, columns = linear_sum_assignment(-table)
    return len(truth) - table[rows, columns].sum()


def predictive(prior, rows, at):
    """Density of a row given others under a normal–inverse-Wishart prior: Student, dense."""
    d, n = len(at), len(rows)
    mean = rows.mean(axis=0) if n else np.zeros(d)
    strength, freedom = prior.location_strength + n, prior.degrees_of_freedom + n
    location = (prior.location_strength * prior.location + n * mean) / strength
    away = mean - prior.location
    scale = prior.scale + (rows - mean).T @ (rows - mean)
    scale = scale + prior.location_strength * n / strength * np.outer(away, away)
    degrees = freedom - d + 1
    shape = scale * (strength + 1) / (strength * degrees)
    return stats.multivariate_t(location, shape, degrees).logpdf(at)


@pytest.mark.parametrize(
    "structure",
    ["full", *(pytest.param(s, marks=pytest.mark.full) for s in ("tied", "diagonal", "spherical"))],
)
def test_flat_prior_gives_the_maximum_of_the_likelihood(table, structure):
    model = GaussianMixture(2, covariance=structure, prior=None, weights_concentration=1e-12)
    posterior = bk.infer(model, table, bk.inference.EM(**TIGHT))
    kind = {"diagonal": "diag"}.get(structure, structure)
    peer = PeerMixture(2, covariance_type=kind, reg_covar=0.0, tol=1e-14, max_iter=5000, n_init=5)
    peer.fit(table)
    order = np.argsort(-peer.weights_)
    np.testing.assert_allclose(posterior.mean["weights"], peer.weights_[order], rtol=1e-6)
    np.testing.assert_allclose(posterior.mean["locations"], peer.means_[order], atol=1e-6)
    likelihood = posterior.convergence.objective[-1]
    dirichlet = np.sum(np.log(peer.weights_)) * 1e-12 + np.log(1e-12 / 2)
    assert likelihood == pytest.approx(60 * peer.score(table) + dirichlet, rel=1e-8)
    assert posterior.log_evidence is None
    assert posterior.prior is None


def test_messages_have_the_fixed_point_of_an_independent_implementation(table):
    method = bk.inference.MessagePassing(**TIGHT)
    posterior = bk.infer(GaussianMixture(2, prior=PRIOR), table, method)
    peer = BayesianGaussianMixture(
        n_components=2,
        weight_concentration_prior_type="dirichlet_distribution",
        weight_concentration_prior=1.0,
        mean_prior=PRIOR.location,
        mean_precision_prior=PRIOR.location_strength,
        covariance_prior=PRIOR.scale,
        degrees_of_freedom_prior=PRIOR.degrees_of_freedom,
        reg_covar=0.0,
        tol=1e-14,
        max_iter=5000,
        random_state=0,
    ).fit(table)
    order = np.argsort(-peer.weight_concentration_)
    freedom = peer.degrees_of_freedom_[order]
    expected = peer.covariances_[order] * (freedom / (freedom - 3))[:, None, None]
    np.testing.assert_allclose(posterior.mean["covariances"], expected, rtol=1e-6)
    np.testing.assert_allclose(posterior.mean["locations"], peer.means_[order], atol=1e-6)
    assert errors(posterior.labels, np.repeat([0, 1], [35, 25])) <= 1


def test_evidence_and_leave_one_out_of_one_component_are_exact(table, single):
    chain = [predictive(PRIOR, table[:i], row) for i, row in enumerate(table)]
    assert single.log_evidence == pytest.approx(np.sum(chain), rel=1e-10)
    left = [predictive(PRIOR, np.delete(table, i, axis=0), row) for i, row in enumerate(table)]
    np.testing.assert_allclose(single.loo().elpd_i, left, rtol=1e-9)
    new = np.array([[2.0, 1.0], [9.0, -3.0]])
    expected = [predictive(PRIOR, table, row) for row in new]
    np.testing.assert_allclose(single.predict(new).log_density, expected, rtol=1e-9)


def test_evidence_bound_is_below_the_evidence(table, fitted):
    """Ten rows have 2¹⁰ partitions, which can be summed."""
    rows = np.concatenate([table[:6], table[40:44]])
    with jax.enable_x64(True):
        prepared = fitted.model.prepare(rows)
        model, data = prepared.model, prepared.data
        components = jax.jit(
            lambda c: jax.lax.fori_loop(
                0, 200, lambda _, c: model.messages_sweep(data, c, 0.0)[0], c
            )
        )(fitted.approximation.components)
        bound = float(model.messages_bound(data, components))
    total = []
    for code in range(2 ** len(rows)):
        member = (code >> np.arange(len(rows))) & 1
        # Under uniform weights all sizes are equally probable, and all partitions of a size.
        value = -np.log(11 * special.comb(10, np.sum(member)))
        for k in (0, 1):
            own = rows[member == k]
            value += sum(predictive(PRIOR, own[:i], row) for i, row in enumerate(own))
        total.append(value)
    evidence = np.logaddexp.reduce(total)
    assert evidence - 1.5 < bound < evidence


@pytest.mark.parametrize("structure", ["full", "tied", "diagonal", "spherical"])
def test_incomplete_rows_have_their_marginal_and_conditional_distributions(structure):
    generator = np.random.default_rng(2)
    blocks = Blocks(structure, 2, 3)
    root = generator.normal(size=(blocks.groups, 3, 3))
    dense = root @ root.transpose(0, 2, 1) + 0.3 * np.eye(3)
    if not blocks.dense:
        dense = np.stack([np.diag(np.diag(each)) for each in dense])
    if structure == "spherical":
        dense = np.stack([each[0, 0] * np.eye(3) for each in dense])
    location, rows = generator.normal(size=(2, 3)), generator.normal(size=(5, 3))
    observed = np.array([[1, 0, 1], [0, 0, 1], [1, 1, 1], [0, 0, 0], [0, 1, 1]], float)
    with jax.enable_x64(True):
        spread = dense if blocks.dense else np.diagonal(dense, axis1=1, axis2=2)
        found = conjugate.measure(
            blocks, *(jnp.asarray(a) for a in (rows * observed, observed, location, spread))
        )
        density = np.asarray(conjugate.log_gaussian(found))
    for i, seen in enumerate(observed.astype(bool)):
        for k in range(2):
            covariance = dense[k % blocks.groups]
            inner = covariance[np.ix_(seen, seen)]
            away = rows[i, seen] - location[k, seen]
            expected = stats.multivariate_normal.logpdf(away, cov=inner) if seen.any() else 0.0
            np.testing.assert_allclose(density[i, k], expected, atol=1e-12)
            cross = covariance[np.ix_(~seen, seen)] @ np.linalg.inv(inner)
            got = np.asarray(found.deviations)[i, k]
            np.testing.assert_allclose(got[~seen], cross @ away, atol=1e-12)
            rest = covariance[np.ix_(~seen, ~seen)] - cross @ covariance[np.ix_(seen, ~seen)]
            residual = np.asarray(found.residual)[
                min(i, len(found.residual) - 1), k % blocks.groups
            ]
            residual = residual if blocks.dense else np.diag(residual)
            np.testing.assert_allclose(residual[np.ix_(~seen, ~seen)], rest, atol=1e-12)


def test_missing_values_end_at_a_mode_of_the_posterior_and_are_completed(table):
    generator = np.random.default_rng(3)
    rows = table.copy()
    rows[generator.uniform(size=rows.shape) < 0.2] = np.nan
    rows[7] = np.nan  # a row of nothing tells nothing
    posterior = bk.infer(GaussianMixture(2, prior=PRIOR), rows, bk.inference.EM(**TIGHT))
    assert np.min(np.diff(posterior.convergence.objective)) > -1e-8
    model, data = posterior.prepared.model, posterior.prepared.data
    blocks = model.blocks(2)
    with jax.enable_x64(True):
        components = posterior.approximation.components

        def density(logits, location, precision):
            """Log joint density of log-odds, locations and precisions, by the definitions."""
            covariance = jnp.linalg.inv(precision)[:, None]
            drawn = (jax.nn.softmax(logits), location, covariance)
            total = sampling.log_likelihood_of(blocks, data, drawn)
            away = location - data.prior.location
            total += jnp.sum(jax.nn.log_softmax(logits))
            scale = data.prior.scale[0, 0]
            for k in range(2):
                total += 0.5 * (data.prior.freedom - 2) * jnp.linalg.slogdet(precision[k])[1]
                total -= 0.5 * jnp.trace(scale @ precision[k])
                total -= 0.5 * data.prior.strength * away[k] @ precision[k] @ away[k]
            return total

        logits = jnp.log(components.concentration)
        divisor = (components.freedom - 2)[..., None]
        precision = jnp.linalg.inv((components.scale / divisor[..., None])[:, 0])
        slopes = jax.grad(density, (0, 1, 2))(logits, components.location, precision)
        assert max(float(jnp.max(jnp.abs(slope))) for slope in slopes) < 1e-5

    np.testing.assert_allclose(posterior.responsibilities()[7], posterior.mean["weights"])
    assert errors(np.delete(posterior.labels, 7), np.repeat([0, 1], [34, 25])) <= 3
    completed = posterior.predict(rows, include_noise=True)
    seen = ~np.isnan(rows)
    np.testing.assert_array_equal(completed.mean[seen], rows[seen])
    assert np.all(completed.variance[seen] == 0)
    z = (completed.mean - table)[~seen] / np.sqrt(completed.variance[~seen])
    assert 0.4 < np.mean(z**2) < 1.8


def test_responsibilities_predictions_and_coclustering(table, fitted):
    shares = fitted.responsibilities()
    np.testing.assert_allclose(shares.sum(axis=1), 1.0)
    np.testing.assert_allclose(fitted.responsibilities(table), shares, atol=1e-12)
    prediction = fitted.predict(table[:3])
    np.testing.assert_array_equal(prediction.labels, fitted.labels[:3])
    assert isinstance(prediction, bk.Prediction)
    together = fitted.coclustering()
    np.testing.assert_array_equal(np.diag(together), 1.0)
    off = shares @ shares.T
    np.testing.assert_allclose(together - np.diag(np.diag(together)), off - np.diag(np.diag(off)))
    # A density: its integral over a wide grid is one.
    axis = np.linspace(-15, 20, 60)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    mass = np.exp(fitted.predict(grid).log_density).sum() * (axis[1] - axis[0]) ** 2
    assert mass == pytest.approx(1.0, abs=5e-3)


def test_moves_dissolve_one_component_and_halve_another(fitted):
    with jax.enable_x64(True):
        data, parts = fitted.prepared.data, fitted.approximation.components
        share = np.asarray(starts.moved_share(Blocks("full", 2, 2), data, parts, 0, 1))
        rows = np.asarray(data.flat(data.rows.values))
    # With no third component, all rows go to the other one: it is cut across its longest axis.
    axis = np.linalg.svd(rows - rows.mean(axis=0))[2][0]
    sides = (rows - rows.mean(axis=0)) @ axis > 0
    labels = np.argmax(share, axis=1)
    np.testing.assert_allclose(np.sum(share, axis=1), 1.0, rtol=1e-12)
    assert np.all(sides == (labels == 0)) or np.all(sides == (labels == 1))


@pytest.mark.parametrize("parts", [30, 7])
def test_centres_are_merged_as_ward_does(table, parts):
    rows = table[:30]
    with jax.enable_x64(True):
        values, key = jnp.asarray(rows), jax.random.key(0)
        share = np.asarray(starts.merged_labels(values, 4, jnp.asarray(parts), 30, key))
        _, *found = starts._kmeans(values, jnp.asarray(parts), 30, key)
        centers, counts = map(np.asarray, found)
    # SciPy merges rows: a centre of m rows is there m times.
    copies = np.repeat(centers, counts.astype(int), axis=0)
    labels = fcluster(linkage(copies, "ward"), 4, "maxclust")
    assert np.sum(counts > 0) == parts
    nearest = np.argmin(np.linalg.norm(rows[:, None] - copies, axis=-1), axis=1)
    assert bk.metrics.clustering_error(labels[nearest], share.argmax(axis=1)) == 0
    np.testing.assert_array_equal(share.sum(axis=1), 1.0)
    assert np.all(share.sum(axis=0) > 0)


def test_restarts_do_without_the_posterior_that_the_first_one_starts_from(table):
    model = GaussianMixture(2)
    cold = bk.infer(model, table)
    away = np.arange(len(table))[:, None] % 2 * [40.0, 0.0]
    wrong = bk.infer(model, table + away)
    method = bk.inference.EM(restarts=2, tolerance=1e-5, max_iterations=2000)
    again = bk.infer(model, table, method, key=0, initial=wrong)
    assert again.log_evidence == pytest.approx(cold.log_evidence, abs=1e-3)


def test_order_of_rows_units_and_columns_do_not_matter(table):
    base = bk.infer(GaussianMixture(2), table)
    order = np.random.default_rng(0).permutation(len(table))
    moved = bk.infer(GaussianMixture(2), table[order] * [1e6, 1e-3] + [3e7, 0.0])
    np.testing.assert_array_equal(moved.labels, base.labels[order])
    np.testing.assert_allclose(moved.mean["weights"], base.mean["weights"], atol=1e-3)
    shift = len(table) * np.log(1e3)
    assert moved.log_evidence == pytest.approx(base.log_evidence - shift, abs=0.1)
    swapped = bk.infer(GaussianMixture(2), table[:, ::-1])
    np.testing.assert_array_equal(swapped.labels, base.labels)
    assert swapped.log_evidence == pytest.approx(base.log_evidence, abs=0.1)


@pytest.mark.parametrize("rows", [600, pytest.param(4095, marks=pytest.mark.full)])
def test_rows_of_two_kinds_in_turn_are_all_searched(rows):
    """Every other row is of another pair of components: evenly spaced rows would be of one pair."""
    generator = np.random.default_rng(0)
    first, second = generator.integers(0, 2, rows), 2 + generator.integers(0, 2, rows)
    truth = np.where(np.arange(rows) % 2 == 0, first, second)
    places = np.array([[0.0, 0.0], [3.0, 0.0], [20.0, 0.0], [23.0, 0.0]])
    data = places[truth] + 0.5 * generator.normal(size=(rows, 2))
    # The nearest true location is wrong for 0.13 % of the rows.
    assert errors(bk.infer(GaussianMixture(4), data).labels, truth) <= 0.005 * rows


@pytest.mark.full
def test_real_data_under_one_setting():
    for load in (load_iris, load_wine):
        rows, truth = load(return_X_y=True)
        rows = (rows - rows.mean(axis=0)) / rows.std(axis=0)
        assert errors(bk.infer(GaussianMixture(3), rows).labels, truth) <= 6


@pytest.mark.full
def test_strength_of_the_empirical_prior_follows_the_data():
    generator = np.random.default_rng(4)
    noise, place = generator.normal(size=(60, 2)), np.repeat([[0.0, 0.0], [12.0, 0.0]], 30, axis=0)
    equal = bk.infer(GaussianMixture(2), place + noise)
    different = np.where(place[:, :1] > 0, noise * [0.2, 3.0], noise * [2.0, 0.3])
    other = bk.infer(GaussianMixture(2), place + different)
    # Rows that the prior is worth, beyond the least of d + 1: what only two components say of it
    # leaves a factor of ten.
    worth = [each.prior.degrees_of_freedom - 3.0 for each in (equal, other)]
    assert worth[0] > 10 * worth[1]
    # One component alone has nothing to learn a prior from: one row's worth beyond the least.
    one = bk.infer(GaussianMixture(1), noise)
    assert one.prior.degrees_of_freedom == 4.0


def test_names_reach_the_tree(table):
    frame = pd.DataFrame(table, columns=["width", "height"])
    posterior = bk.infer(GaussianMixture(2), frame)
    tree = posterior.to_datatree(num_draws=8)
    assert list(tree["posterior"]["feature"].values) == ["width", "height"]
    assert tree["posterior"]["covariances"].dims[2:] == ("component", "feature", "feature_other")
    swapped = posterior.predict(frame[["height", "width"]])
    np.testing.assert_array_equal(swapped.labels, posterior.labels)
    array = xr.DataArray(table, dims=("flower", "part_of_it"))
    labels = bk.infer(GaussianMixture(2), array).names
    assert labels.dims["locations"] == ("component", "part_of_it")


def test_bad_input_is_refused_by_name(table):
    broken = table.copy()
    broken[3, 1] = np.inf
    frame = pd.DataFrame({"a": [1.0, 2.0, 3.0], "kind": ["x", "y", "z"]})
    cases = [
        (GaussianMixture(61), table, ValueError, "60 rows; num_components=61"),
        (GaussianMixture(2), broken, ValueError, r"infinite.*\(3, 1\)"),
        (GaussianMixture(2), frame, TypeError, "kind"),
        (GaussianMixture(2), frame[["a", "a"]], ValueError, r"several columns \['a'\]"),
        (GaussianMixture(2), table[0], ValueError, r"\(n, d\)"),
        (GaussianMixture(2), np.full((5, 2), np.nan), ValueError, "NaN everywhere"),
        (GaussianMixture(2), np.c_[table, np.full(60, np.nan)], ValueError, r"without any.*\[2\]"),
        (GaussianMixture(2, prior=PRIOR), np.c_[table, table], ValueError, "prior is of 2"),
        (GaussianMixture(2), table * 1j, TypeError, "real numbers"),
    ]
    for model, data, kind, message in cases:
        with pytest.raises(kind, match=message):
            bk.infer(model, data)
    with pytest.raises(ValueError, match=r"MessagePassing .* proper prior"):
        bk.infer(GaussianMixture(2, prior=None), table, bk.inference.MessagePassing())
    for arguments, kind, message in (
        ({"covariance": "round"}, ValueError, "covariance must be one of"),
        ({"prior": "jeffreys"}, ValueError, "'empirical'"),
        ({"prior": 3}, TypeError, "NormalInverseWishart"),
        ({"weights_concentration": 0.0}, ValueError, "weights_concentration"),
    ):
        with pytest.raises(kind, match=message):
            GaussianMixture(2, **arguments)
    for arguments, message in (
        (([0.0], 1.0, np.eye(2), 4.0), "scale must have the shape"),
        (([0.0, 0.0], 1.0, -np.eye(2), 4.0), "positive definite"),
        (([0.0, 0.0], 1.0, [[1.0, 0.2], [0.0, 1.0]], 4.0), "symmetric"),
        (([0.0, 0.0], 1.0, np.eye(2), 1.0), "above 1"),
    ):
        with pytest.raises(ValueError, match=message):
            bk.models.NormalInverseWishart(*arguments)


def test_tables_with_few_different_rows_have_finite_answers(table, fitted):
    doubled = np.repeat(table[::6], 6, axis=0)
    posterior = bk.infer(GaussianMixture(2), doubled)
    assert all(np.all(np.isfinite(value)) for value in posterior.mean.values())
    with pytest.raises(ValueError, match="2 columns, got 3"):
        fitted.predict(np.c_[table, table[:, 0]])


def test_variances_of_unequal_features_are_found_with_a_prior_by_the_evidence():
    """Components that overlap but for their variances, three of them in two dimensions."""
    generator = np.random.default_rng(5)
    deviations = np.repeat([[1.0, 0.1], [0.1, 1.0], [0.3, 0.3]], 100, axis=0)
    centers = np.repeat([[0.0, 3.0], [3.0, 0.0], [0.0, 0.0]], 100, axis=0)
    rows = [50.0, 0.02] * (centers + deviations * generator.normal(size=(300, 2)))
    posterior = bk.infer(GaussianMixture(3, covariance="diagonal"), rows)
    assert bk.metrics.clustering_error(np.repeat(np.arange(3), 100), posterior.labels) < 0.02
    found = np.sqrt(posterior.mean["covariances"]) / [50.0, 0.02]
    order = [int(np.argmin(np.abs(found - each).sum(axis=1))) for each in deviations[::100]]
    # Of 100 rows: a standard deviation of 7 %, and the prior's share.
    np.testing.assert_allclose(found[order], deviations[::100], rtol=0.3)


@pytest.mark.filterwarnings("ignore:component")
def test_an_outlier_however_far_leaves_the_clusters_apart():
    generator = np.random.default_rng(0)
    clusters = generator.normal(size=(60, 2)) * np.repeat(
        [[1.0, 1.0], [0.5, 2.0]], [40, 20], axis=0
    )
    clusters[40:, 0] += 6.0
    for far in (1e4, 1e8):
        found = bk.infer(GaussianMixture(3), np.concatenate([clusters, [[far, far]]])).labels
        assert errors(found, np.repeat([0, 1, 2], [40, 20, 1])) == 0


@pytest.mark.parametrize("covariance", ["full", pytest.param("tied", marks=pytest.mark.full)])
def test_clusters_a_million_deviations_apart_keep_their_covariances(covariance):
    generator = np.random.default_rng(0)
    clusters, truth = generator.normal(size=(60, 2)) * [1.0, 3.0], np.repeat([0, 1], 30)
    near, far = (
        bk.infer(GaussianMixture(2, covariance=covariance), clusters + truth[:, None] * distance)
        for distance in (20.0, 1e6)
    )
    assert errors(far.labels, truth) == 0
    order = [0, 1] if far.labels[0] == near.labels[0] else [1, 0]
    found = far.mean["covariances"] if covariance == "tied" else far.mean["covariances"][order]
    # What differs is the share of the prior, which is worth some rows of thirty.
    np.testing.assert_allclose(found, near.mean["covariances"], rtol=0.02, atol=0.02)


@pytest.mark.full
def test_a_flat_prior_allows_components_to_be_dropped(table):
    method = bk.inference.EM(prune=0.3, tolerance=1e-8, max_iterations=5000)
    posterior = bk.infer(GaussianMixture(3, prior=None), table, method)
    kept = posterior.mean["weights"] > 0
    assert kept.sum() == 2
    fewer = GaussianMixture(2, prior=None)
    peer = bk.infer(fewer, table, bk.inference.EM(tolerance=1e-8, max_iterations=5000))
    densities = [each.predict(table).log_density.sum() for each in (posterior, peer)]
    assert densities[0] == pytest.approx(densities[1], abs=1.0)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:3 of 4 components")
def test_priors_without_a_mode_or_moments(table):
    """Fewer degrees of freedom than features: a component of few rows has no mean, nor a mode."""
    prior = bk.models.NormalInverseWishart([0, 0], 0.01, np.eye(2), 1.2)
    rows = table[[0, 1, 2, 3, 4, 45, 46, 47]]
    for method in (bk.inference.EM(), bk.inference.SemidefiniteProgram()):
        with pytest.raises(ValueError, match="degrees_of_freedom above 2"):
            bk.infer(GaussianMixture(4, prior=prior), rows, method)
    posterior = bk.infer(GaussianMixture(4, prior=prior), rows, bk.inference.MessagePassing())
    freedom = np.asarray(posterior.approximation.components.freedom)[:, 0]
    finite = np.isfinite(posterior.mean["covariances"]).all(axis=(1, 2))
    np.testing.assert_array_equal(finite, freedom > 3.0)
    assert not finite.all()
    assert np.all(posterior.predict(None, include_noise=True).variance == np.inf)
    with pytest.raises(ValueError, match="initial has covariances without a mean"):
        bk.infer(
            GaussianMixture(4, prior=prior), rows, bk.inference.MCMC(), key=0, initial=posterior
        )
    # Chains start where there is no mode either.
    with double_precision():
        prepared = GaussianMixture(4, prior=prior).prepare(rows)
        start = prepared.model.mcmc_init(prepared.data, jax.random.key(0), None)
    assert all(np.all(np.isfinite(value)) for value in start.values())


def test_predictions_go_by_names_and_can_be_copied(table):
    array = xr.DataArray(table, dims=("row", "side"), coords={"side": ["left", "right"]})
    posterior = bk.infer(GaussianMixture(2), array)
    expected = posterior.predict(table[:4])
    for same in (array[:4], array[:4].isel(side=[1, 0]), array[:4].T):
        np.testing.assert_array_equal(posterior.predict(same).log_density, expected.log_density)
    with pytest.raises(ValueError, match=r"no features \['left'\]"):
        posterior.predict(array[:4].assign_coords(side=["top", "right"]))
    with pytest.raises(ValueError, match="beyond 1e"):
        posterior.predict([[1e200, 1.0]])
    for copied in (copy.copy(expected), pickle.loads(pickle.dumps(expected))):
        np.testing.assert_array_equal(copied.probabilities, expected.probabilities)
    changed = expected._replace(mean=0, log_density=1)
    assert (changed.mean, changed.log_density) == (0, 1)
    np.testing.assert_array_equal(changed.labels, expected.labels)
    with pytest.raises(ValueError, match="unexpected field"):
        expected._replace(medium=0)


def test_integers_are_numbers_and_an_exhausted_budget_is_told(table):
    whole = np.round(3 * table).astype(int)
    ours, theirs = (bk.infer(GaussianMixture(2), each) for each in (whole, whole.astype(float)))
    np.testing.assert_array_equal(ours.mean["locations"], theirs.mean["locations"])
    brief = bk.inference.EM(max_iterations=1, tolerance=1e-12)
    with pytest.warns(bk.ConvergenceWarning, match="max_iterations=1"):
        posterior = bk.infer(GaussianMixture(2), table, brief)
    assert not posterior.convergence.converged
    assert np.isfinite(posterior.log_evidence)


@pytest.mark.full
def test_rows_without_any_value_have_the_weights_for_probabilities(table):
    lost = table.copy()
    lost[[4, 40]] = np.nan
    posterior = bk.infer(GaussianMixture(2, prior=PRIOR), lost, bk.inference.EM(**TIGHT))
    weights = posterior.mean["weights"]
    np.testing.assert_allclose(posterior.responsibilities()[[4, 40]], [weights] * 2, rtol=1e-8)
    kept = bk.infer(
        GaussianMixture(2, prior=PRIOR), np.delete(table, [4, 40], 0), bk.inference.EM(**TIGHT)
    )
    np.testing.assert_allclose(posterior.mean["locations"], kept.mean["locations"], atol=0.02)
    completed = posterior.predict(lost).mean
    np.testing.assert_allclose(completed[4], weights @ posterior.mean["locations"], rtol=1e-8)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::bayeskit.BayeskitWarning")
def test_difficult_tables_have_finite_answers(table, fitted):
    constant = np.c_[table, np.ones(60)]
    with pytest.warns(bk.ConditioningWarning, match="constant columns"):
        posterior = bk.infer(GaussianMixture(2), constant)
    assert errors(posterior.labels, fitted.labels) <= 1
    generator = np.random.default_rng(5)
    wide = generator.normal(size=(12, 20)) + 4.0 * np.repeat([[0.0], [1.0]], 6, axis=0)
    outlier = np.concatenate([table, [[1e8, 1e8]]])
    uneven = np.concatenate([generator.normal(size=(95, 2)), 8.0 + generator.normal(size=(5, 2))])
    middle = generator.normal(size=(200, 2)) * np.repeat([[0.2], [3.0]], 100, axis=0)
    for count, data in (
        (4, table[:4]),
        (2, wide),
        (3, outlier),
        (2, uneven),
        (2, middle),
        (6, table),
    ):
        posterior = bk.infer(GaussianMixture(count), data)
        assert all(np.all(np.isfinite(value)) for value in posterior.mean.values())
        assert np.isfinite(posterior.log_evidence)
        if data is middle:
            # Equal locations: the narrow component wins where its density is larger.
            inside = np.sum(data**2, axis=1) < 4 * np.log(15.0) / (0.2**-2 - 3.0**-2)
            assert np.mean(posterior.labels == posterior.labels[0]) == pytest.approx(0.5, abs=0.05)
            narrow = posterior.labels[np.argmin(np.sum(data**2, axis=1))]
            assert np.mean((posterior.labels == narrow) == inside) > 0.95
        if data is wide or data is uneven:
            truth = np.repeat([0, 1], [6, 6] if data is wide else [95, 5])
            assert errors(posterior.labels, truth) == 0
    single = bk.infer(GaussianMixture(2), table.astype(np.float32))
    assert single.mean["locations"].dtype == np.float32
    assert errors(single.labels, fitted.labels) <= 1


@pytest.mark.full
@pytest.mark.parametrize("method", [bk.inference.EM, bk.inference.MessagePassing])
def test_components_that_are_not_needed_are_dropped_on_request(table, method):
    model = GaussianMixture(5, prior=PRIOR, weights_concentration=0.05)
    posterior = bk.infer(model, table, method(prune=0.1, max_iterations=3000, tolerance=1e-6))
    weights = posterior.mean["weights"]
    dropped = weights == 0
    assert dropped.any()
    assert weights.sum() == pytest.approx(1.0)
    assert np.all(posterior.sample(0, 5)["weights"][:, dropped] == 0)
    if method is bk.inference.MessagePassing:  # the mode may keep a component more
        assert np.sum(~dropped) == 2
        assert errors(posterior.labels, np.repeat([0, 1], [35, 25])) <= 1
    sbl = bk.models.KroneckerSBL((np.eye(2),))
    with pytest.raises(ValueError, match="no parts to drop"):
        bk.infer(sbl, np.ones(2), bk.inference.MessagePassing(prune=0.1))


@pytest.mark.full
def test_batch_may_hold_missing_values(table):
    holes = table.copy()
    holes[::9, 0] = np.nan
    model = GaussianMixture(2, prior=PRIOR)
    batch = bk.infer_batch(model, np.stack([table, holes]))
    single = bk.infer(model, holes)
    np.testing.assert_allclose(batch.mean["locations"][1], single.mean["locations"], rtol=1e-9)
    assert batch.labels.shape == (2, 60)


def test_density_of_the_numpyro_model_is_the_definitions(table):
    """At a draw that chains may start from; densities of precisions by change of variables."""
    rows = table[:5]
    with jax.enable_x64(True):
        prepared = GaussianMixture(2, prior=PRIOR, weights_concentration=2.0).prepare(rows)
        model, data = prepared.model, prepared.data
        blocks, unit = model.blocks(2), np.asarray(data.unit)
        components = sampling.prior_components(blocks, data.prior, model.weights_concentration)
        drawn = sampling.draw_components(jax.random.key(1), blocks, components)
        sites = sampling.chain_start(model, data, jax.random.key(1), components)
        for got, expected in zip(sampling.given_sites(model, data, sites), drawn, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-12)
        found = float(log_density(model.numpyro_model, (data,), {}, sites)[0])
        prior = jax.tree.map(np.asarray, data.prior)
    weights, location, covariance = (np.asarray(part) for part in drawn)
    standard = (rows - np.asarray(data.center)) / unit
    lower, total, each = np.linalg.cholesky(prior.scale[0, 0]), 0.0, []
    for k in range(2):
        own = covariance[k, 0]
        precision = np.linalg.inv(own)
        root = np.diag(np.linalg.cholesky(lower.T @ precision @ lower))
        # From the precision to the factor of its whitened form, and to squares on the diagonal.
        jacobian = 4 * root[0] ** 2 * root[1] / np.linalg.det(lower) ** 3 / np.prod(2 * root)
        wishart = stats.wishart(float(prior.freedom), np.linalg.inv(prior.scale[0, 0]))
        total += wishart.logpdf(precision) + np.log(jacobian)
        total += stats.multivariate_normal(prior.location, own / prior.strength).logpdf(location[k])
        rest = stats.multivariate_normal(location[k], own).logpdf(standard)
        each.append(np.log(weights[k]) + rest)
    total += stats.dirichlet.logpdf(weights, [2.0, 2.0])
    total += np.sum(np.logaddexp(*each)) - 5 * np.log(unit).sum()
    assert found == pytest.approx(total, rel=1e-10)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:MCMC did not converge")  # R-hat below 1.05 is enough here
def test_chains_agree_with_the_exact_posterior_and_are_aligned(table, single):
    method = bk.inference.MCMC(num_warmup=200, num_samples=400, num_chains=2)
    chains = bk.infer(GaussianMixture(1, prior=PRIOR), table, method, key=0)
    for site, exact in single.mean.items():
        deviation = np.sqrt(single.variance[site])
        distance = np.abs(chains.mean[site] - exact)
        assert np.all(distance <= 0.25 * deviation + 1e-12)
        if site != "weights":
            np.testing.assert_allclose(np.sqrt(chains.variance[site]), deviation, rtol=0.25)
    holes = table.copy()
    holes[::9, 0] = np.nan
    two = bk.infer(GaussianMixture(2, prior=PRIOR), holes, method, key=1)
    assert two.convergence.max_rhat < 1.05
    em = bk.infer(GaussianMixture(2, prior=PRIOR), holes)
    assert errors(two.labels, em.labels) <= 1
    distance = np.abs(two.mean["locations"] - em.mean["locations"])
    assert np.all(distance < 0.5 * np.sqrt(two.variance["locations"]))
    draws = two.to_datatree(sites=["locations"])["posterior"]["locations"].values
    assert np.all(draws[..., 0, 0] < draws[..., 1, 0])


@pytest.mark.full
def test_draws_of_chains_are_put_in_order(table):
    with jax.enable_x64(True):
        prepared = GaussianMixture(3, prior=PRIOR).prepare(table)
        model, data = prepared.model, prepared.data
        start = model.mcmc_init(data, jax.random.key(0), None)
        sites = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (1, 6, *leaf.shape)), start)
        orders = jnp.array([[0, 1, 2], [2, 1, 0], [1, 0, 2], [2, 0, 1], [1, 2, 0], [0, 2, 1]])
        mixed = {
            name: jnp.stack([value[0, i][order] for i, order in enumerate(orders)])[None]
            for name, value in sites.items()
        }
        aligned = sampling.aligned(model, data, mixed, jnp.zeros((1, 6)))
    for value in aligned.values():
        np.testing.assert_allclose(value, np.broadcast_to(value[:, :1], value.shape))


@pytest.mark.full
def test_data_sets_of_a_batch_are_checked_as_one_alone_is(table):
    model = GaussianMixture(2, prior=PRIOR)
    holes, nothing, constant = table.copy(), np.full_like(table, np.nan), table.copy()
    holes[3, 0] = np.nan
    constant[:, 1] = 4.0
    for first in (table, holes):
        with pytest.warns(bk.ConvergenceWarning):
            posterior = bk.infer_batch(model, np.stack([first, nothing]))
        assert np.isfinite(posterior.log_evidence[0])
        assert np.isnan(posterior.log_evidence[1])
    with pytest.warns(bk.ConditioningWarning, match=r"constant columns, \[1\]"):
        bk.infer_batch(model, np.stack([table, constant]))
    holes[:, 1] = np.nan
    with pytest.raises(ValueError, match=r"columns without any value: \[1\]"):
        bk.infer_batch(model, np.stack([table, holes]))
    with pytest.raises(ValueError, match="data has values beyond 1e"):
        bk.infer(model, 1e200 * table)
