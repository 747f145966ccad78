"""How expectation maximisation climbs: quadratics, fixed points of linear maps, starts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bayeskit as bk
from bayeskit.models.functional_tucker import ascent, sweep


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def test_a_badly_scaled_quadratic_is_climbed_in_few_steps_none_of_which_lowers_it():
    generator = np.random.default_rng(0)
    turn = np.linalg.qr(generator.normal(size=(6, 6)))[0]
    hessian = jnp.asarray((turn * np.logspace(-1, 3, 6)) @ turn.T)
    top = jnp.asarray(generator.normal(size=6))

    def value(point):
        apart = jnp.concatenate([point["a"], point["b"]]) - top
        return -0.5 * apart @ hessian @ apart

    def evaluate(point):
        return *jax.value_and_grad(value)(point), jnp.zeros(())

    point = {"a": jnp.zeros(2), "b": jnp.zeros(4)}
    climb, values = ascent.start_climb(point), []
    step = jax.jit(lambda climb, point: ascent.climbed(climb, evaluate, point)[:2])
    for _ in range(60):
        point, climb = step(climb, point)
        values.append(float(value(point)))
    assert np.all(np.diff(values) >= 0.0)
    # The gradient's own steps shrink by a factor of 1 - 1e-4 each.
    assert values[-1] > -1e-12
    np.testing.assert_allclose(np.concatenate([point["a"], point["b"]]), top, atol=1e-6)
    np.testing.assert_allclose(climb.curvature, np.linalg.inv(hessian), rtol=0.05, atol=0.01)


def test_a_step_that_is_not_finite_is_not_made():
    def evaluate(point):
        beyond = point > 0.01
        return jnp.where(beyond, jnp.nan, point), jnp.where(beyond, jnp.nan, 1.0), point

    climb = ascent.start_climb(jnp.zeros(()))
    for _ in range(5):
        point, climb, _ = ascent.climbed(climb, evaluate, jnp.zeros(()))
    assert 0.0 < point <= 0.01
    assert jnp.all(jnp.isfinite(climb.curvature))


def test_an_estimate_that_leads_downhill_is_given_up():
    """Single precision, where rounding of slopes takes the curvature's definiteness away."""
    generator = np.random.default_rng(0)
    roots = generator.normal(size=(200, 4, 4))
    hessians = jnp.asarray(roots @ np.swapaxes(roots, 1, 2) + 0.05 * np.eye(4), jnp.float32)
    slopes = jnp.asarray(generator.normal(size=(200, 4)) * [0, 1, 1, 1], jnp.float32)

    def climb_up(hessian, slope):
        def value(point):
            return slope @ point - 0.5 * point @ hessian @ point

        def step(_, carry):
            climb, point = carry
            point, climb, _ = ascent.climbed(
                climb, lambda p: (*jax.value_and_grad(value)(p), jnp.zeros(())), point
            )
            return climb, point

        start = jnp.zeros(4, jnp.float32)
        climb, point = jax.lax.fori_loop(0, 300, step, (ascent.start_climb(start), start))
        return value(jnp.linalg.solve(hessian, slope)) - value(point), climb.missed

    left, missed = jax.jit(jax.vmap(climb_up))(hessians, slopes)
    assert np.max(left) < 1e-3
    assert np.min(missed) >= 0.0


def test_leaps_do_not_lower_the_objective_of_components_that_exchange_parts():
    """Covariances that were extrapolated here would be indefinite, and the bound 3e9 nats."""
    generator = np.random.default_rng(0)
    places = [
        np.stack([generator.integers(0, 12, 60) / 12, generator.integers(0, 9, 60) / 9], axis=1)
        for _ in range(16)
    ]
    x, noise = places[9], 0.03 * generator.normal(size=(16, 60))[9]
    values = np.sin(5 * x[:, 0]) * np.cos(4 * x[:, 1]) + x[:, 0] * x[:, 1] + noise
    model = bk.models.FunctionalTucker(["x", "z"], ranks=3, core="cp")
    with pytest.warns(bk.ConvergenceWarning):
        posterior = bk.infer(model, (x, values), bk.inference.EM(tolerance=0.0, max_iterations=100))
    objective = posterior.convergence.objective
    assert np.min(np.diff(objective)) > -1e-9 * np.max(np.abs(objective))


def factors(mean, covariance, noise):
    """A mode of one function at points (n,), an offset that is known, and nothing else."""
    zero = jnp.zeros(())
    second = covariance[:, None, None] + mean[:, None, None] ** 2
    return sweep.FactorMessages(
        modes=(sweep.Moments(mean[:, None], second),),
        shifts=None,
        precisions=None,
        divergences=None,
        core=None,
        offset=sweep.Moments(zero, zero),
        noise_concentration=None,
        noise_rate=None,
        precision=jnp.asarray(noise),
        bound=zero,
        sketch=None,
    )


def test_a_leap_ends_at_the_fixed_point_of_steps_that_shrink_alike():
    """From x, f + 0.98 (x - f) and its image to f; what did not move stays to the last digit."""
    generator = np.random.default_rng(1)
    fixed, start = jnp.asarray(generator.normal(size=(2, 5)))
    spread = jnp.asarray(generator.uniform(1, 2, size=5))
    noise = 1.0 / 3.0
    paths = [factors(fixed + 0.98**n * (start - fixed), spread, noise) for n in range(3)]
    positions = [ascent.position(each, ()) for each in paths]
    leaps = ascent.start_leaps(positions[0])._replace(old=positions[1], turn=2, reach=1000.0)
    target, length = ascent.target_of(leaps, positions[2])
    np.testing.assert_allclose(length, 50.0)
    found = ascent.moved(paths[2], target)
    np.testing.assert_allclose(found.modes[0].mean[:, 0], fixed, rtol=1e-9)
    covariance = found.modes[0].covariance()[:, 0, 0]
    np.testing.assert_allclose(covariance, spread, rtol=1e-9)
    assert float(found.precision) == noise
    assert float(found.offset.mean) == 0.0
    # Taken back, the next leap is shorter; made in full, longer.
    shorter = ascent.after_step(leaps, positions[2], length, True, 1.0)
    assert float(shorter.reach) == pytest.approx(12.5)
    assert shorter.changes[0] == 0.0
    assert shorter.turn == 0
    full = ascent.after_step(leaps._replace(reach=50.0), positions[2], length, False, 1.0)
    assert float(full.reach) == pytest.approx(200.0)


@pytest.mark.full
def test_a_search_whose_starts_have_collapsed_goes_on():
    """The four starts that every search makes end at zero here, and so would the fit."""
    generator = np.random.default_rng(0)
    x = generator.uniform(size=(200, 4))
    clean = np.ones(200)
    for column in x.T:
        frequency, phase = generator.uniform(0.5, 1.5), generator.uniform(0, 6)
        clean = clean * np.sin(2 * np.pi * frequency * column + phase)
    values = clean / clean.std() + generator.normal(size=200)
    model = bk.models.FunctionalTucker([f"m{k}" for k in range(4)], ranks=1)
    posterior = bk.infer(model, (x, values))
    # Constant at the mean of the values: 1.
    error = posterior.predict().mean - clean / clean.std()
    assert np.sqrt(np.mean(error**2)) < 0.5
