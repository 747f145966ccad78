"""Singular distributions with networks: linear ones against closed forms, and a circle."""

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

import bayeskit as bk
from bayeskit.inference.checkpoint import fingerprint
from bayeskit.inference.variational import _one_of_each_part, _others, _weights
from bayeskit.precision import double_precision
from bayeskit.testing.case import compilations
from tests.models.test_singular import FEATURES, LATENTS, simulated

EM, MCMC, VariationalInference = (
    bk.inference.EM,
    bk.inference.MCMC,
    bk.inference.VariationalInference,
)
SingularDistribution = bk.models.SingularDistribution


def affine_model(**arguments):
    """Networks without hidden layers: a linear decoder that training does not know to be one."""
    first, second = jax.random.split(jax.random.key(7))
    return SingularDistribution(
        LATENTS,
        decoder=eqx.nn.Linear(LATENTS, FEATURES, key=first),
        encoder=eqx.nn.Linear(FEATURES, 2 * LATENTS, key=second),
        **arguments,
    )


def affine_method(**arguments):
    given = {"max_iterations": 8000, "learning_rate": 1e-2, "num_particles": 5}
    return VariationalInference(**{**given, **arguments})


@pytest.fixture(scope="module")
def rows():
    return simulated(rows=1000)


@pytest.fixture(scope="module")
def affine(rows):
    """A fit of the linear networks, and their loadings and offset in the user's units."""
    posterior = bk.infer(affine_model(perturbation=0.2), rows, affine_method(), key=0)
    weights = posterior.mean["decoder_weights"]
    unit, center = posterior.mean["unit"], posterior.mean["center"]
    loadings = unit * weights[: FEATURES * LATENTS].reshape(FEATURES, LATENTS)
    return posterior, loadings, center + unit * weights[FEATURES * LATENTS :]


def test_linear_networks_find_the_closed_form(affine, rows):
    posterior, loadings, offset = affine
    assert posterior.convergence.converged
    closed = bk.infer(SingularDistribution(LATENTS, decoder="linear", perturbation=0.2), rows)
    expected = closed.mean["loadings"] @ closed.mean["loadings"].T
    # A tenth of the rows is held out, and steps are random.
    assert np.abs(loadings @ loadings.T - expected).max() < 0.05 * expected.max()
    assert np.abs(offset - closed.mean["offset"]).max() < 0.1
    assert posterior.noise_scale == pytest.approx(closed.noise_scale, rel=0.02)
    assert posterior.perturbation == pytest.approx(closed.perturbation, rel=1e-12)
    assert posterior.noise_scale > posterior.perturbation


@given(st.integers(1, 300), st.data(), st.integers(0, 2**30))
@settings(max_examples=25, deadline=None)
def test_rows_are_held_out_of_all_parts_and_all_others_are_trained_on(count, data, seed):
    parts = data.draw(st.integers(1, count))
    with jax.disable_jit():
        held = np.asarray(_one_of_each_part(jax.random.key(seed), count, parts))
        others = np.asarray(_others(jnp.asarray(held), jnp.arange(count - parts)))
    assert sorted([*held, *others]) == list(range(count))
    edges = np.arange(parts + 1) * count // parts
    assert ((edges[:-1] <= held) & (held < edges[1:])).all()


def test_the_level_that_is_chosen_is_trained_on_all_rows():
    rows = simulated(rows=60)
    closed = bk.infer(SingularDistribution(LATENTS, decoder="linear", perturbation=0.2), rows)
    expected = closed.mean["loadings"] @ closed.mean["loadings"].T
    posterior = bk.infer(affine_model(perturbation=(0.2, 0.25)), rows, affine_method(), key=0)
    chosen = int(np.argmax(posterior.selection["chosen"]))
    errors = []
    for each in (posterior, posterior.at_level(chosen)):
        loadings = each.mean["decoder_weights"][: FEATURES * LATENTS].reshape(FEATURES, LATENTS)
        found = each.mean["unit"] ** 2 * loadings @ loadings.T
        errors.append(np.abs(found - expected).max() / expected.max())
    # A fifth of the rows is twelve of them.
    assert errors[0] < 0.05
    assert errors[1] > 2 * errors[0]


def test_densities_by_importance_sampling_are_those_of_the_dense_gaussian(affine, rows):
    posterior, loadings, offset = affine
    covariance = loadings @ loadings.T + posterior.noise_scale**2 * np.eye(FEATURES)
    expected = scipy.stats.multivariate_normal.logpdf(rows[:50], offset, covariance)
    found = posterior.log_likelihood(rows[:50], num_particles=4000)
    np.testing.assert_allclose(found.values, expected, rtol=0, atol=0.1)
    assert abs(np.mean(found.values - expected)) < 0.01
    assert np.all(found.pareto_k < 0.7)
    few = posterior.log_likelihood(rows[:50], num_particles=40)
    assert np.std(few.values - expected) > 3 * np.std(found.values - expected)


def test_encoded_and_generated_rows_are_those_of_the_decoder(affine, rows):
    posterior, loadings, offset = affine
    noise = posterior.noise_scale**2
    gain = np.linalg.solve(loadings.T @ loadings + noise * np.eye(LATENTS), loadings.T)
    expected = (rows - offset) @ gain.T
    encoded = posterior.encode(rows).mean
    # The encoder is trained, not exact.
    assert np.sqrt(np.mean((encoded - expected) ** 2)) < 0.05
    count = 4000
    clean = posterior.generate(1, count)
    diagonal = np.diag(loadings @ loadings.T)
    error = np.sqrt(((loadings @ loadings.T) ** 2 + np.outer(diagonal, diagonal)) / count)
    assert np.abs((np.cov(clean.T) - loadings @ loadings.T) / error).max() < 5
    assert np.linalg.matrix_rank(clean - offset, tol=1e-6) == LATENTS
    noisy = posterior.generate(1, count, observation_noise=True)
    own = noise - posterior.perturbation**2
    spread = np.var((noisy - offset) - (noisy - offset) @ np.linalg.pinv(loadings).T @ loadings.T)
    assert spread == pytest.approx(own * (FEATURES - LATENTS) / FEATURES, rel=0.05)


def test_other_levels_and_rates_compile_nothing(affine, rows):
    with compilations() as programs:
        model = affine_model(perturbation=0.3)
        with pytest.warns(bk.ConvergenceWarning, match="max_iterations=60"):
            posterior = bk.infer(
                model, rows, affine_method(max_iterations=60, learning_rate=1e-3), key=1
            )
    assert not programs
    assert posterior.perturbation == pytest.approx(1.5 * affine[0].perturbation, rel=1e-12)


def test_units_of_the_data_change_nothing_but_the_units(rows):
    method = affine_method(max_iterations=60)
    found = {}
    for unit in (1.0, 1e-6, 1e6):
        with pytest.warns(bk.ConvergenceWarning, match="max_iterations=60"):
            found[unit] = bk.infer(affine_model(perturbation=0.2), unit * rows, method, key=1)
    for unit in (1e-6, 1e6):
        posterior, expected = found[unit], found[1.0]
        assert posterior.noise_scale / unit == pytest.approx(expected.noise_scale, rel=1e-6)
        generated = posterior.generate(0, 20) / unit
        np.testing.assert_allclose(generated, expected.generate(0, 20), rtol=1e-6, atol=1e-6)
        moved = posterior.log_likelihood(unit * rows[:9]).values + FEATURES * np.log(unit)
        np.testing.assert_allclose(moved, expected.log_likelihood(rows[:9]).values, rtol=1e-6)


def test_an_earlier_fit_is_where_training_starts(affine, rows):
    method = affine_method(max_iterations=60, learning_rate=1e-6)
    with pytest.warns(bk.ConvergenceWarning, match="max_iterations=60"):
        posterior = bk.infer(affine[0].model, rows, method, key=0, initial=affine[0])
    # Same key, same held-out rows.
    objective = posterior.convergence.objective
    assert objective[0] == pytest.approx(affine[0].convergence.objective[-1], abs=1e-6)
    assert posterior.noise_scale == pytest.approx(affine[0].noise_scale, rel=1e-4)
    with pytest.raises(ValueError, match="initial does not fit the model: decoder_weights"):
        bk.infer(SingularDistribution(LATENTS, perturbation=0.2), rows, key=0, initial=affine[0])


def test_modules_of_the_users_own_are_needed_to_read_what_was_saved(affine, tmp_path):
    posterior, _, _ = affine
    posterior.save(tmp_path / "posterior.nc")
    with pytest.raises(ValueError, match="functions of your own"):
        bk.load(tmp_path / "posterior.nc")
    loaded = bk.load(tmp_path / "posterior.nc", affine_model(perturbation=0.2))
    np.testing.assert_array_equal(loaded.generate(3, 5), posterior.generate(3, 5))
    np.testing.assert_array_equal(loaded.encode().mean, posterior.encode().mean)
    with pytest.raises(ValueError, match="perturbation"):
        bk.load(tmp_path / "posterior.nc", affine_model(perturbation=0.3))


class Fragile(eqx.Module):
    """A linear decoder with holes in its latent space."""

    linear: eqx.nn.Linear

    def __call__(self, latent):
        return jnp.where(jnp.any(jnp.abs(latent) > 6.0), jnp.nan, self.linear(latent))


@pytest.mark.filterwarnings("ignore:VariationalInference did not converge")
def test_training_goes_on_from_the_last_good_state_after_gradients_that_are_not_finite(rows):
    plain = affine_model()
    # Latents near their prior at the start: holes are met now and then.
    encoder = jax.tree.map(lambda leaf: 0.1 * leaf, plain.encoder)
    model = SingularDistribution(
        LATENTS, decoder=Fragile(plain.decoder), encoder=encoder, perturbation=0.2
    )
    with pytest.warns(bk.ConditioningWarning, match="gradients were not finite.*learning rate"):
        posterior = bk.infer(model, rows, affine_method(max_iterations=2000), key=0)
    objective = posterior.convergence.objective
    assert np.all(np.isfinite(objective))
    assert np.all(np.diff(objective) >= 0)
    closed = bk.infer(SingularDistribution(LATENTS, decoder="linear", perturbation=0.2), rows)
    assert posterior.noise_scale == pytest.approx(closed.noise_scale, rel=0.05)


@pytest.mark.filterwarnings("ignore:VariationalInference did not converge")
def test_steps_are_those_of_the_optimizer_that_is_given(rows, affine, tmp_path):
    model, short = affine_model(perturbation=0.2), {"max_iterations": 60}

    def weights(method):
        return bk.infer(model, rows, method, key=0).mean["decoder_weights"]

    def given(optimizer):
        return affine_method(learning_rate=None, optimizer=optimizer, **short)

    ours = weights(affine_method(**short))
    # Of two restarts the same; the sizes of Adam's steps do not depend on those of gradients.
    np.testing.assert_allclose(weights(given(optax.adam(1e-2))), ours, rtol=1e-9, atol=1e-12)
    start = jax.flatten_util.ravel_pytree(model.decoder)[0]
    with pytest.warns(bk.ConvergenceWarning):
        posterior = bk.infer(model, rows, given(optax.sgd(1e-3)), key=0)
    moved = np.abs(posterior.mean["decoder_weights"] - start).max()
    # Sixty steps along gradients of norms up to ten, of which an average is kept.
    assert 1e-4 < moved < 60 * 1e-3 * 10.0
    assert np.abs(ours - start).max() > 2 * moved
    posterior.save(tmp_path / "posterior.nc")
    loaded = bk.load(tmp_path / "posterior.nc", model)
    assert repr(loaded.method) == repr(posterior.method)
    with pytest.raises(ValueError, match=r"does not hold its optimizer .*optax"):
        bk.infer(model, rows, loaded.method, key=0)
    marks = [fingerprint(method=given(o)) for o in (optax.adam(1e-2), optax.adam(1e-2))]
    assert marks[0] == marks[1] != fingerprint(method=affine_method(**short))
    with pytest.raises(ValueError, match="learning_rate must be None beside an optimizer"):
        VariationalInference(learning_rate=1e-3, optimizer=optax.adam(1e-3))
    with pytest.raises(TypeError, match=r"optimizer must be an optax\.GradientTransformation"):
        VariationalInference(optimizer="adam")


def test_noise_starts_where_it_is_told_to(rows):
    method = affine_method(max_iterations=50, learning_rate=1e-12)
    for start in (0.003, 0.5):
        model = affine_model(perturbation=0.2, noise_start=start)
        with pytest.warns(bk.ConvergenceWarning, match="max_iterations=50"):
            posterior = bk.infer(model, rows, method, key=0)
        unit = float(posterior.mean["unit"])
        own = np.sqrt(posterior.noise_scale**2 - posterior.perturbation**2)
        # Beside its floor of a thousandth.
        assert own / unit == pytest.approx(np.hypot(start, 1e-3), rel=1e-6)
        assert f"noise_start={start}" in repr(model)


@pytest.mark.filterwarnings("ignore:MCMC did not converge")
def test_chains_on_new_rows_have_the_exact_latents_of_the_trained_networks(affine, rows):
    trained, loadings, offset = affine
    # Other rows in other units than those of training: of another mean and variance.
    new = 0.5 * rows[:30] + 0.5 * offset + [1.0, 0.0, 0.0, 0.0, 0.0]
    method = MCMC(num_warmup=200, num_samples=300, num_chains=2)
    posterior = bk.infer(trained.model, new, method, key=0)
    noise = trained.noise_scale**2
    precision = loadings.T @ loadings / noise + np.eye(LATENTS)
    covariance = np.linalg.inv(precision)
    mean = (new - offset) @ loadings @ covariance / noise
    deviation = np.sqrt(np.diag(covariance))
    error = deviation / np.sqrt(posterior.convergence.min_ess)
    assert np.abs((posterior.mean["latents"] - mean) / error).max() < 5
    ratio = posterior.variance["latents"] / np.diag(covariance)
    assert abs(np.log(ratio).mean()) < 0.15
    assert posterior.noise_scale == pytest.approx(trained.noise_scale, rel=1e-10)
    with pytest.raises(ValueError, match=r"VariationalInference\(\) first"):
        bk.infer(affine_model(), new, method, key=0)


@pytest.mark.parametrize(("restarts", "count"), [(3, 8), (1, 7), (8, 3), (1, 5), (1, 12)])
def test_fits_of_a_grid_are_those_of_each_alone(restarts, count):
    """However many are computed at a time."""
    method = VariationalInference(restarts=restarts)
    keys = jax.random.split(jax.random.key(0), restarts)
    settings = jnp.arange(float(count))
    fits = {"weights": jax.random.normal(jax.random.key(1), (restarts, count, 4))}

    def function(fit, setting, key):
        return fit["weights"] + setting * jax.random.normal(key, (4,)), setting

    moved, returned = method._of_fits(function, fits, settings, keys)
    for restart in range(restarts):
        for index in range(count):
            fit = {"weights": fits["weights"][restart, index]}
            expected, setting = function(fit, settings[index], keys[restart])
            np.testing.assert_allclose(moved[restart, index], expected, rtol=1e-6)
            assert returned[restart, index] == setting


@pytest.mark.parametrize("objective", ["importance-weighted", "elbo"])
def test_gradients_are_those_of_the_bound(objective):
    """In expectation; those of the bound itself are computed through the particles alone."""
    with double_precision():
        model = affine_model(perturbation=0.3)
        prepared = model.prepare(simulated(rows=30))
        data, model = prepared.data, prepared.model
        parameters = model.variational_init(data, jax.random.key(0), None)
        values, setting, particles = data.values[:4], data.levels[0], 3
        method = VariationalInference(objective, num_particles=particles)

        def plain(parameters, key):
            def bound(parameters):
                mean, log_deviation = model.variational_guide(data, parameters, values)
                noise = jax.random.normal(key, (particles, *mean.shape))
                latents = mean + jnp.exp(log_deviation) * noise
                guide = jnp.sum(
                    -0.5 * noise**2 - log_deviation - 0.5 * jnp.log(2 * jnp.pi), axis=-1
                )
                joint = model.variational_joint(data, parameters, setting, values, latents)
                weights = joint - guide
                if objective == "elbo":
                    return jnp.mean(weights)
                return jnp.mean(jax.scipy.special.logsumexp(weights, axis=0))

            return jax.grad(bound)(parameters)

        def ours(parameters, key):
            return method._gradient(model, data, parameters, setting, values, particles, key)

        def moments(function, keys):
            found = jax.lax.map(lambda key: function(parameters, key), keys, batch_size=500)
            flat = jnp.concatenate(
                [leaf.reshape(len(keys), -1) for leaf in jax.tree.leaves(found)], axis=1
            )
            return np.asarray(flat.mean(axis=0)), np.asarray(flat.std(axis=0))

        count = 20_000
        first, second = jax.random.split(jax.random.key(1))
        mean, deviation = moments(ours, jax.random.split(first, count))
        expected, spread = moments(plain, jax.random.split(second, count))
        weights, _ = _weights(
            model, data, parameters, setting, values, particles, jax.random.key(2)
        )
    error = np.sqrt((deviation**2 + spread**2) / count)
    assert np.abs((mean - expected) / error).max() < 5
    assert np.abs(expected / error).max() > 50
    assert weights.shape == (particles, 4)


# A circle


def circle(count, seed):
    generator = np.random.default_rng(seed)
    angle = generator.vonmises(0.0, 1.0, count)
    return np.column_stack([5.0 + np.cos(angle), np.sin(angle), np.zeros(count)])


def wasserstein(first, second):
    cost = cdist(first, second)
    return cost[linear_sum_assignment(cost)].mean()


@pytest.fixture(scope="module")
def on_circle():
    model = SingularDistribution(2, decoder=(24, 2), perturbation=(0.15, 2.0))
    method = VariationalInference(
        num_particles=5, max_iterations=800, learning_rate=5e-3, restarts=2
    )
    with pytest.warns(bk.BayeskitWarning):  # constant third column, and short training
        return bk.infer(model, circle(300, 0).astype(np.float32), method, key=0)


def test_generated_rows_are_nearer_to_the_circle_than_a_plane_can_be(on_circle):
    truth = circle(500, 1)
    generated = on_circle.generate(0, 500)
    off = np.abs(np.linalg.norm(generated - [5.0, 0.0, 0.0], axis=1) - 1.0)
    assert off.mean() < 0.1
    with pytest.warns(bk.ConditioningWarning, match="constant"):
        plane = bk.infer(
            SingularDistribution(2, decoder="linear", perturbation=0.15), circle(300, 0)
        )
    assert wasserstein(generated, truth) < 0.6 * wasserstein(plane.generate(0, 500), truth)


def test_the_level_chosen_is_the_smallest_that_is_best_but_for_its_error(on_circle):
    table = on_circle.selection
    assert list(table["level"]) == pytest.approx([0.15, 2.0])
    assert table["error"].min() == 0.0
    close = table["density"].max() - table["density"] <= table["error"]
    assert list(table["chosen"]) == list(table["level"] == table["level"][close].min())
    chosen = table[table["chosen"]].iloc[0]
    # Noise of twice the data's deviation hides the circle.
    assert chosen["level"] == pytest.approx(0.15)
    assert on_circle.perturbation == pytest.approx(chosen["perturbation"], rel=1e-6)
    # The perturbation is the floor of the noise.
    assert on_circle.noise_scale > on_circle.perturbation


def test_levels_that_broke_down_are_not_chosen_and_shrunken_noise_is_reported():
    with double_precision():
        model = affine_model(perturbation=(0.0, 0.1, 0.2))
        prepared = model.prepare(simulated(rows=60))
        data, model = prepared.data, prepared.model
        one = model.variational_init(data, jax.random.key(0), None)
        fits = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), one)
        broken = jax.tree.map(lambda leaf: leaf.at[1].set(jnp.nan), fits.decoder)
        shrunken = fits._replace(decoder=broken, log_scale=jnp.full(3, -20.0))
        rows = jnp.arange(12)
        found = {}
        for name, level in (("none", 0.0), ("some", 0.3)):
            levels = jnp.array([level, 0.1, 0.2])
            found[name] = model.variational_finish(data, shrunken, levels, rows, jax.random.key(1))
        found = jax.tree.map(np.asarray, found)
    for approximation, chosen, diagnosed in found.values():
        assert chosen != 1
        assert approximation.densities[1] == -np.inf
        assert not any(np.isnan(leaf).any() for leaf in jax.tree.leaves(approximation))
        assert bool(diagnosed.singular) == (approximation.networks.level == 0)
    # All three have the same networks: differences are within their errors, the smallest is taken.
    assert [int(chosen) for _, chosen, _ in found.values()] == [0, 2]
    (text,) = model.caveats(found["none"][2])
    assert "shrunk to its smallest" in text
    assert model.caveats(found["some"][2]) == ()


# Data and arguments


def test_fixed_perturbations_are_one_data_set_and_fresh_ones_many():
    with double_precision():
        chosen = jnp.array([3, 1, 3])
        drawn = {}
        for fresh in (True, False):
            model = affine_model(perturbation=0.4, fresh=fresh)
            prepared = model.prepare(simulated(rows=2000))
            data = prepared.data
            drawn[fresh] = [
                np.asarray(
                    prepared.model.variational_rows(data, chosen, data.levels[0], jax.random.key(i))
                )
                for i in range(2)
            ]
        everything = prepared.model.variational_rows(
            data, jnp.arange(2000), data.levels[0], jax.random.key(0)
        )
        noise = np.asarray(everything - data.values)
    assert not np.isclose(*drawn[True]).any()
    np.testing.assert_array_equal(*drawn[False])
    np.testing.assert_array_equal(drawn[False][0][0], drawn[False][0][2])
    assert noise.std() == pytest.approx(0.4, rel=0.03)
    assert np.abs(np.corrcoef(noise.T) - np.eye(FEATURES)).max() < 0.1


def test_wrong_arguments_and_data_are_named():
    rows = simulated(rows=60)
    for arguments, kind, message in (
        ({"decoder": "tree"}, TypeError, "decoder must be a pair of width and depth.*'linear'"),
        ({"decoder": (64, 0)}, TypeError, r"or an equinox module, got \(64, 0\)"),
        ({"encoder": "linear"}, TypeError, "encoder must be a pair of width and depth"),
        ({"decoder": "linear", "encoder": (8, 1)}, ValueError, "encoder must be None beside"),
        ({"noise_start": 0.0}, ValueError, "noise_start must be positive"),
        (
            {"noise_start": 0.1, "noise_scale": 1},
            ValueError,
            "noise_start must be None beside noise",
        ),
        ({"noise_start": 0.1, "decoder": "linear"}, ValueError, "must be None beside decoder="),
        ({"perturbation": "none"}, ValueError, "perturbation must be 'auto'"),
        ({"perturbation": []}, ValueError, "perturbation has no levels"),
        ({"perturbation": [0.1, 0.1]}, ValueError, "has a level twice"),
        ({"perturbation": [0.1, -0.1]}, ValueError, r"\[0.0, inf\), got -0.1"),
    ):
        with pytest.raises(kind, match=message):
            SingularDistribution(LATENTS, **arguments)
    with pytest.raises(ValueError, match="objective must be one of"):
        VariationalInference("rényi")
    deep = SingularDistribution(LATENTS, perturbation=0.1)
    plane = SingularDistribution(LATENTS, decoder="linear", perturbation=(0.1, 0.2))
    holes = rows.copy()
    holes[3, 1] = np.nan
    wrong_encoder = SingularDistribution(
        LATENTS, perturbation=0.1, encoder=eqx.nn.Linear(FEATURES, 3, key=jax.random.key(0))
    )
    wrong_decoder = SingularDistribution(
        LATENTS, perturbation=0.1, decoder=eqx.nn.Linear(3, FEATURES, key=jax.random.key(0))
    )
    for model, data, method, message in (
        (deep, rows, bk.inference.MessagePassing(), "MessagePassing.*needs decoder='linear'"),
        (plane, rows, EM(), "2 levels, which give the same linear decoder"),
        (plane, rows, VariationalInference(), "decoder='linear' has closed forms"),
        (deep, holes, None, r"1 missing values \(NaN\), the first at index \(3, 1\)"),
        (deep, rows[:12], None, "data has 12 rows; networks need 20"),
        (SingularDistribution(LATENTS), rows[:40], None, "40 rows; 50 are needed to choose"),
        (SingularDistribution(1), rows[:, :1], None, "latent_dim=1 must be below .* columns.*, 1"),
        (SingularDistribution(7), rows, None, "latent_dim=7 must be below .* columns.*, 5"),
        (wrong_encoder, rows, None, r"encoder must map .*\(5,\) to one of shape \(4,\), got"),
        (wrong_decoder, rows, None, r"decoder must map .*\(2,\) to one of shape \(5,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            bk.infer(model, data, method, key=0)
