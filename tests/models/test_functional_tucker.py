"""Functional Tucker decompositions: exact cases, planted truths, data in any form, bad input."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pandas as pd
import pytest
import xarray as xr
from gpjax.kernels import RBF, Matern32

import bayeskit as bk
from bayeskit.inference import EM, MCMC, MessagePassing
from bayeskit.models import FunctionalTucker, Mode
from bayeskit.models.functional_tucker.approximation import principal_parts

LENGTHSCALE, NOISE = 0.3, 0.05


def matern32(one, other, lengthscale=LENGTHSCALE):
    distance = np.sqrt(3) * np.abs(np.subtract.outer(one, other)) / lengthscale
    return (1 + distance) * np.exp(-distance)


@pytest.fixture(scope="module")
def line():
    """A function of one index, unsorted, with points repeated, also but for rounding."""
    generator = np.random.default_rng(0)
    points = generator.uniform(size=25)
    points[3] = points[7]
    points[8] = points[17] + 1e-12
    return points, np.sin(5 * points) + NOISE**0.5 * generator.normal(size=25)


@pytest.fixture(scope="module")
def line_posterior(line):
    mode = Mode("x", kernel=Matern32(lengthscale=LENGTHSCALE))
    model = FunctionalTucker(
        [mode], ranks=1, core="cp", noise_variance=NOISE, offset=0.0, scale=1.0
    )
    return bk.infer(model, (line[0][:, None], line[1]), MessagePassing())


def test_one_mode_is_gaussian_process_regression(line, line_posterior):
    """Mean, variance and evidence by dense algebra, inside and outside of the data."""
    points, values = line
    new = np.array([-2.0, 0.1, points[3], 0.55, 3.0, 1e200])
    prior = matern32(points, points) + 1.0
    gram = prior + NOISE * np.eye(len(points))
    cross = matern32(new, points) + 1.0
    mean = cross @ np.linalg.solve(gram, values)
    variance = 2.0 - np.einsum("ij,ji->i", cross, np.linalg.solve(gram, cross.T))
    evidence = -0.5 * (
        values @ np.linalg.solve(gram, values) + np.linalg.slogdet(2 * np.pi * gram)[1]
    )
    found = line_posterior.predict(new[:, None])
    # Kernels of gpjax hold their parameters in single precision outside its own 64-bit mode.
    np.testing.assert_allclose(found.mean, mean, atol=1e-6)
    np.testing.assert_allclose(found.variance, variance, atol=1e-6)
    np.testing.assert_allclose(line_posterior.log_evidence, evidence, rtol=1e-6)
    noisy = line_posterior.predict(new[:, None], include_noise=True)
    np.testing.assert_allclose(noisy.variance - found.variance, NOISE, rtol=1e-9)


def test_leave_one_out_equals_refits_where_the_model_is_gaussian(line, line_posterior):
    points, values = line
    gram = matern32(points, points) + 1.0 + NOISE * np.eye(len(points))
    inverse = np.linalg.inv(gram)
    variance = 1 / np.diag(inverse)
    mean = values - inverse @ values * variance
    expected = -0.5 * (np.log(2 * np.pi * variance) + (values - mean) ** 2 / variance)
    np.testing.assert_allclose(line_posterior.loo().elpd_i.values, expected, atol=1e-5)


def test_simulated_predictions_have_the_predictive_moments(line, line_posterior):
    new = np.array([[0.2], [0.21], [1.5]])
    tree = line_posterior.to_datatree(num_draws=4000, key=0, predictions=new)
    draws = tree["predictions"]["value"].values[0]
    expected = line_posterior.predict(new, include_noise=True)
    deviation = np.sqrt(expected.variance)
    assert np.all(np.abs(draws.mean(0) - expected.mean) < 5 * deviation / np.sqrt(4000))
    np.testing.assert_allclose(draws.var(0), expected.variance, rtol=5 * np.sqrt(2 / 4000))
    # Near points move together, as the joint posterior by dense algebra says.
    points = line[0]
    cross = matern32(new[:, 0], points) + 1.0
    gram = matern32(points, points) + 1.0 + NOISE * np.eye(len(points))
    joint = matern32(new[:, 0], new[:, 0]) + 1.0 - cross @ np.linalg.solve(gram, cross.T)
    covariance = np.cov(draws.T)
    allowed = 5 * np.sqrt(2 / 4000) * np.outer(deviation, deviation)
    assert np.all(np.abs(covariance - joint - NOISE * np.eye(3)) < allowed)


def planted(seed, ranks=(2, 3, 2), rows=1500, noise=0.05):
    """Smooth functions and a core without symmetry; values of unit power, and their noise."""
    generator = np.random.default_rng(seed)
    places = generator.uniform(size=(rows, len(ranks)))
    core = generator.normal(size=ranks)
    functions = []
    for k, rank in enumerate(ranks):
        speed, phase = generator.uniform(1, 6, rank), generator.uniform(0, 6, rank)
        functions.append(np.cos(places[:, k, None] * speed + phase))
    clean = np.einsum("abc,na,nb,nc->n", core, *functions)
    unit = clean.std()
    return places, clean / unit, clean / unit + noise * generator.normal(size=rows)


@pytest.fixture(scope="module")
def planted_posterior():
    places, clean, noisy = planted(0)
    model = FunctionalTucker(["a", "b", "c"], ranks=(2, 3, 2))
    train = np.arange(len(clean)) < 1200
    posterior = bk.infer(model, (places[train], noisy[train]), EM(tolerance=1e-3))
    return posterior, places[~train], clean[~train], noisy[~train]


def test_planted_core_is_recovered_with_calibrated_intervals(planted_posterior):
    """Held out: the error is below the noise, and the intervals cover the truth."""
    posterior, places, clean, noisy = planted_posterior
    prediction = posterior.predict(places)
    error = prediction.mean - clean
    assert np.sqrt(np.mean(error**2)) < 0.025  # 0.0126 to 0.0162 with three seeds
    z2 = np.mean(error**2 / prediction.variance)
    assert 0.3 < z2 < 2.0  # 0.6 to 0.95 with three seeds
    noise = np.sqrt(posterior.mean["noise_variance"])
    np.testing.assert_allclose(noise, 0.05, rtol=0.1)
    predictive = posterior.predict(places, include_noise=True)
    inside = np.abs(noisy - predictive.mean) < 1.96 * np.sqrt(predictive.variance)
    # Binomial with 300 trials: 0.95 within four standard errors.
    assert abs(inside.mean() - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 300)
    assert posterior.effective_ranks["a"] == 2
    assert posterior.effective_ranks["b"] <= 3


def test_functions_are_aligned_whatever_the_start(planted_posterior):
    """Principal axes of the mean functions: orthogonal, ordered, with positive mean."""
    posterior, *_ = planted_posterior
    found = posterior.mode_function("b")
    gram = found.mean.T @ found.mean
    np.testing.assert_allclose(gram - np.diag(np.diag(gram)), 0, atol=1e-8 * gram.max())
    assert np.all(np.diff(np.diag(gram)) <= 0)
    assert np.all(found.mean.sum(axis=0) >= 0)
    at = posterior.names.coords["b"][[4, 100]]
    elsewhere = posterior.mode_function("b", at)
    np.testing.assert_allclose(elsewhere.mean, found.mean[[4, 100]], atol=1e-8)
    np.testing.assert_allclose(elsewhere.variance, found.variance[[4, 100]], atol=1e-8)
    with pytest.raises(ValueError, match=r"mode must be one of \['a', 'b', 'c'\], got 'd'"):
        posterior.mode_function("d")


def test_effective_ranks_are_principal_parts_of_the_fitted_table(planted_posterior):
    """By a dense singular value decomposition, also where components are collinear."""
    generator = np.random.default_rng(0)
    places = generator.integers(0, 6, (150, 2)) / 5
    values = np.sin(5 * places[:, 0]) * (1 + places[:, 1]) + 0.05 * generator.normal(size=150)
    method = MessagePassing(max_iterations=30, tolerance=0.0)
    collinear = fit_quietly(
        FunctionalTucker(["a", "b"], ranks=3, core="cp"), (places, values), method
    )
    for posterior in (collinear, planted_posterior[0]):
        model, mean = posterior.prepared.model, posterior.mean
        roots = [
            np.sqrt(np.bincount(at) / len(at))[:, None] * mean[f"mode_{mode.name}"]
            for mode, at in zip(
                model.modes, map(np.asarray, model.positions(posterior.prepared.data)), strict=True
            )
        ]
        # Functions weighted by how often a point was seen; orthogonal factors change no rank.
        small = [np.linalg.qr(root)[1] for root in roots]
        if model.core == "cp":
            table = np.einsum("ar,br->ab", *small)
        else:
            table = np.einsum("ijk,ai,bj,ck->abc", mean["core"], *small)
        for k, mode in enumerate(model.modes):
            power = np.linalg.svd(np.moveaxis(table, k, 0).reshape(table.shape[k], -1))[1] ** 2
            expected = np.sum(power > 1e-3 * power.sum())
            assert posterior.effective_ranks[mode.name] == expected
    assert collinear.effective_ranks == {"a": 1, "b": 1}
    nothing = [np.zeros((2, 2)), np.ones((2, 2))]  # of functions that vanish
    np.testing.assert_array_equal(principal_parts(nothing, None, 0), [0.0, 0.0])


@pytest.fixture(scope="module")
def line_chains(line):
    model = FunctionalTucker(
        [Mode("x", kernel=Matern32(lengthscale=LENGTHSCALE))],
        ranks=1,
        core="cp",
        noise_variance=NOISE,
        offset=0.0,
        scale=1.0,
        kernel_priors={
            name: dist.LogNormal(0.0 if "variance" in name else np.log(LENGTHSCALE), 0.01)
            for name in ("lengthscale", "variance", "constant_variance")
        },
    )
    data = (line[0][:, None], line[1])
    return bk.infer(model, data, MCMC(num_warmup=300, num_samples=1000, num_chains=2), key=0)


@pytest.mark.full
def test_functions_of_chains_are_known_anywhere(line_chains, line_posterior):
    """One mode without a core: the function is the Gaussian process, up to its sign."""
    points = np.array([-2.0, 0.1, 0.55, 3.0])
    found, expected = (
        line_chains.mode_function("x", points),
        line_posterior.predict(points[:, None]),
    )
    sign = np.sign(expected.mean.sum())
    mean, deviation = sign * found.mean[:, 0], np.sqrt(expected.variance)
    assert np.all(np.abs(mean - expected.mean) < 0.2 * deviation)
    np.testing.assert_allclose(found.variance[:, 0], expected.variance, rtol=0.3)
    at = line_chains.names.coords["x"]
    np.testing.assert_allclose(
        line_chains.mode_function("x", at).mean, line_chains.mode_function("x").mean, rtol=1e-6
    )
    assert line_chains.effective_ranks == {"x": 1}


@pytest.mark.full
def test_unneeded_components_vanish_and_unneeded_modes_become_constant():
    generator = np.random.default_rng(1)
    places = generator.uniform(size=(400, 2))
    values = np.sin(5 * places[:, 0]) + 0.05 * generator.normal(size=400)
    model = FunctionalTucker(["used", "unused"], ranks=2, core="cp")
    posterior = bk.infer(model, (places, values), EM(max_iterations=150, tolerance=1e-4))
    grid = np.stack([np.full(20, 0.4), np.linspace(0, 1, 20)], axis=1)
    assert np.ptp(posterior.predict(grid).mean) < 0.03
    error = posterior.predict(places).mean - np.sin(5 * places[:, 0])
    assert (
        np.sqrt(np.mean(error**2)) < 0.02
    )  # 0.05 × sqrt(about 15 degrees of freedom / 400) = 0.01


FRAME = pd.DataFrame(
    {
        "day": pd.to_datetime("2020-01-01") + pd.to_timedelta(np.tile([3, 1, 2, 5], 3), "D"),
        "station": np.repeat(["north", "south", "west"], 4),
        "value": np.sin(np.arange(12.0)),
    }
)


def table_model():
    return FunctionalTucker(
        [Mode("day", kernel=Matern32(lengthscale=2.0)), Mode("station", categorical=True)],
        ranks=1,
        core="cp",
    )


def fit_quietly(model, data, method=None, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bk.BayeskitWarning)
        return bk.infer(model, data, method or MessagePassing(max_iterations=30), **options)


def test_tables_arrays_and_row_order_give_the_same():
    frame = fit_quietly(table_model(), FRAME)
    shuffled = fit_quietly(table_model(), FRAME.sample(frac=1, random_state=0))
    array = FRAME.set_index(["day", "station"])["value"].to_xarray()
    from_array = fit_quietly(table_model(), array)
    pair = fit_quietly(
        table_model(), ((FRAME["day"].to_numpy(), FRAME["station"].to_numpy()), FRAME["value"])
    )
    for other in (shuffled, from_array, pair):
        np.testing.assert_allclose(other.log_evidence, frame.log_evidence, rtol=1e-8)
    new = pd.DataFrame({"station": ["north", "east"], "day": pd.to_datetime(["2020-01-04"] * 2)})
    known, unseen = frame.predict(new).variance
    assert unseen > known
    tree = frame.to_datatree(sites=())
    assert list(tree["moments"].coords["station"].values) == ["north", "south", "west"]
    assert tree["moments"].coords["day"].dtype.kind == "M"
    assert "day" in repr(frame.model)


def test_dates_in_every_form_are_the_same_points():
    plain = fit_quietly(table_model(), FRAME)
    zone = FRAME["day"].dt.tz_localize("UTC").dt.tz_convert("Asia/Tokyo")
    for days in (zone, FRAME["day"].dt.date, FRAME["day"].dt.to_pydatetime()):
        posterior = fit_quietly(table_model(), FRAME.assign(day=np.asarray(days, object)))
        np.testing.assert_array_equal(posterior.names.coords["day"], plain.names.coords["day"])
    fit_zone = fit_quietly(table_model(), FRAME.assign(day=zone))
    assert fit_zone.log_evidence == plain.log_evidence
    one = plain.mode_function("day", pd.Timestamp("2020-01-03"))
    np.testing.assert_array_equal(one.mean, plain.mode_function("day").mean[1:2])
    early = FRAME.assign(day=np.datetime64("1600-01-01", "s") + np.arange(12) * 86400)
    with pytest.raises(ValueError, match=r"dates outside 1677.* first is 1600-01-01"):
        bk.infer(table_model(), early)
    with pytest.raises(ValueError, match=r"first is 2300-01-01"):
        plain.predict(FRAME[:1].assign(day=np.array(["2300-01-01"], "datetime64[s]")))
    mixed = [pd.Timestamp("2020-01-03"), pd.Timestamp("2020-01-03", tz="UTC")]
    with pytest.raises(ValueError, match="with a time zone and dates without"):
        plain.mode_function("day", mixed)


def test_numbers_as_categories_are_the_same_in_every_type():
    frame = FRAME.assign(station=np.repeat([1, 2, 4], 4), day=np.tile([3.0, 1.0, 2.0, 5.0], 3))
    posterior = fit_quietly(table_model(), frame)
    expected = posterior.predict(frame[["day", "station"]]).mean
    rows = frame[["day", "station"]].to_numpy(float)
    for inputs in (
        rows,
        rows.tolist(),
        tuple(map(tuple, rows)),
        frame.astype({"station": "uint8"}),
    ):
        np.testing.assert_array_equal(posterior.predict(inputs).mean, expected)
    # Two rows of two modes are rows, as nested sequences of numbers always are.
    np.testing.assert_array_equal(posterior.predict(((3, 1), (1, 1))).mean, expected[:2])
    assert posterior.predict(pd.DataFrame({"day": [], "station": []})).mean.shape == (0,)
    assert posterior.mode_function("station", []).mean.shape == (0, 1)
    boxed = posterior.predict(frame[["day", "station"]].astype({"station": object})).mean
    np.testing.assert_array_equal(boxed, expected)
    levels = posterior.mode_function("station", [1, 2]).mean
    for points in (range(1, 3), jnp.array([1, 2]), xr.DataArray([1, 2]), (1, 2)):
        np.testing.assert_array_equal(posterior.mode_function("station", points).mean, levels)
    mixed = frame.assign(station=np.array([1, "1", 2, "2"] * 3, object))
    with pytest.raises(ValueError, match="differ and read the same"):
        bk.infer(table_model(), mixed)


def test_unseen_categories_have_what_all_share_also_once_they_are_seen():
    """Levels of variance one around a common one of variance one, by dense algebra."""
    names = np.array(["b", "a", "a", "c", "b", "d", "d"])
    values = np.array([1.0, 2.0, 2.3, -0.5, 1.2, 5.0, 5.1])
    model = FunctionalTucker(
        [Mode("s", categorical=True)],
        ranks=1,
        core="cp",
        noise_variance=NOISE,
        offset=0.0,
        scale=1.0,
    )
    asked = np.array(["c", "d", "e"])

    def dense(count):
        known = names[:count]
        gram = 1.0 + np.equal.outer(known, known) + NOISE * np.eye(count)
        cross = 1.0 + np.equal.outer(asked, known)
        mean = cross @ np.linalg.solve(gram, values[:count])
        return mean, 2.0 - np.einsum("ij,ji->i", cross, np.linalg.solve(gram, cross.T))

    five = bk.infer(model, ((names[:5],), values[:5]), MessagePassing())
    seven = bk.update(five, ((names[5:],), values[5:]))
    for posterior, count in ((five, 5), (seven, 7)):
        found, expected = posterior.predict((asked,)), dense(count)
        np.testing.assert_allclose(found.mean, expected[0], atol=1e-6)
        np.testing.assert_allclose(found.variance, expected[1], atol=1e-6)


def test_missing_entries_of_an_array_are_left_out():
    array = FRAME.set_index(["day", "station"])["value"].to_xarray()
    holes = array.where(array > -0.9)
    posterior = fit_quietly(table_model(), holes)
    assert posterior.to_datatree(sites=())["observed_data"].sizes["observation"] == int(
        (array > -0.9).sum()
    )


def test_one_mode_in_single_precision_is_the_same_function(line):
    points, values = line
    model = FunctionalTucker(["x"], ranks=1)
    method = MessagePassing(max_iterations=30)
    one, other = (
        fit_quietly(model, (points[:, None], values.astype(dtype)), method)
        for dtype in (np.float64, np.float32)
    )
    assert other.predict().mean.dtype == np.float32
    np.testing.assert_allclose(other.predict().mean, one.predict().mean, atol=1e-3)
    # With as good as no noise the covariance of the core has no digits in single precision.
    faint = (0.3 + np.sin(5 * points)).astype(np.float32)
    drawn = fit_quietly(model, (points[:, None], faint), method).sample(0, 20)
    assert all(np.isfinite(draws).all() for draws in drawn.values())


def test_integer_values_are_numbers(line):
    points, values = line
    model = FunctionalTucker(["x"], ranks=1)
    method = MessagePassing(max_iterations=30)
    whole = np.round(3.0 * values).astype(int)
    found = {
        fit_quietly(model, (points[:, None], array), method).log_evidence
        for array in (whole, whole.astype(np.int8), whole.astype(float), list(map(int, whole)))
    }
    assert len(found) == 1


@pytest.mark.parametrize("factor", [1e-8, pytest.param(1e8, marks=pytest.mark.full)])
def test_units_of_values_and_indices_do_not_matter(factor):
    places, _, noisy = planted(2, rows=120)
    model = FunctionalTucker(["a", "b", "c"], ranks=1)
    one = fit_quietly(model, (places, noisy))
    other = fit_quietly(model, (places * factor, noisy * factor))
    expected = one.predict(places[:5] + 0.01)
    found = other.predict((places[:5] + 0.01) * factor)
    np.testing.assert_allclose(found.mean, factor * expected.mean, rtol=1e-5)
    np.testing.assert_allclose(found.variance, factor**2 * expected.variance, rtol=1e-5)
    # Values that are small beside a scale that is stated are signal all the same.
    small = FunctionalTucker(["a", "b", "c"], ranks=1, scale=1e4 * np.std(noisy))
    apart = fit_quietly(small, (places, noisy)).predict().mean - one.predict().mean
    assert np.mean(apart**2) < 0.05 * np.var(noisy)


def one_slice(places):
    places = places.copy()
    places[:, 0] = 0.5
    return places


# Places of observations, from 60 random ones.
ODD = {
    "one point": np.ones_like,
    "two rows": lambda places: places[:2],
    "constant": lambda places: places,
    "integers": lambda places: np.round(places * 3).astype(int),
    "repeats": lambda places: np.repeat(places[:20], 3, axis=0),
    "a far point": lambda places: np.concatenate([places, places[:1] + 1e6]),
    "one slice": one_slice,
    "ranks above points": lambda places: np.round(places),
    "gaps near zero": lambda places: np.concatenate([places, places + 1e-12]),
}
# Shares of the variance that fits may leave: all of it where there is nothing to learn from.
UNEXPLAINED = dict.fromkeys(ODD, 0.1) | dict.fromkeys(("one point", "two rows", "constant"), 1.05)


@pytest.mark.full
@pytest.mark.parametrize("name", ODD)
def test_odd_but_valid_data_are_explained_and_nothing_else(name):
    generator = np.random.default_rng(3)
    indices = ODD[name](generator.uniform(size=(60, 3)))
    first, second, third = np.minimum(indices, 3.0).T
    values = np.sin(2 * first) * (1 + second) * np.cos(third)
    values = values + 0.1 * np.std(values) * generator.normal(size=len(values))
    if name == "one point":
        values = generator.normal(size=len(values))
    if name == "constant":
        values = np.full(len(values), 1e9 / 3)
    model = FunctionalTucker(["a", "b", "c"], ranks=3 if name == "ranks above points" else 2)
    posterior = fit_quietly(model, (indices, values), EM(max_iterations=50))
    spread = max(np.std(values), 1e-3)
    for predicted in (posterior.predict(), posterior.predict([[-9.0, 0.5, 9.0]])):
        assert np.all(np.isfinite(predicted.mean))
        assert np.all(predicted.variance >= 0)
        # Never beyond what was seen by more than the data's own range.
        assert np.all(np.abs(predicted.mean - np.mean(values)) <= 3 * np.ptp(values) + spread)
    # Residuals are those of the best function of the points, or smaller by as much as is noise.
    _, point = np.unique(np.round(np.asarray(indices, float), 9), axis=0, return_inverse=True)
    within = (np.bincount(point, values) / np.bincount(point))[point]
    floor = np.mean((values - within) ** 2)
    error = np.mean((values - posterior.predict().mean) ** 2)
    assert floor * (1 - 1e-6) <= error <= floor + UNEXPLAINED[name] * np.var(values) + 1e-6
    if name in ("one point", "constant"):
        np.testing.assert_allclose(posterior.predict().mean, np.mean(values), atol=0.2 * spread)


@pytest.mark.full
@pytest.mark.parametrize("name", ["constant", "repeats", "one slice"])
def test_chains_of_odd_but_valid_data_stay_within_them(name):
    generator = np.random.default_rng(4)
    indices = ODD[name](generator.uniform(size=(60, 3)))[:, :2]
    values = np.sin(4 * indices[:, 1]) + 0.1 * generator.normal(size=len(indices))
    if name == "constant":
        values = np.full(len(values), 3.0)
    model = FunctionalTucker(["a", "b"], ranks=1, core="cp")
    method = MCMC(num_warmup=200, num_samples=100, num_chains=1)
    found = fit_quietly(model, (indices, values), method, key=0).predict()
    assert np.all(found.variance >= 0)
    error = np.mean((found.mean - values) ** 2)
    assert error <= 0.1 * np.var(values) + 1e-3


@pytest.mark.full
def test_more_ranks_than_noiseless_data_have_do_no_harm():
    """Messages are as sharp as the numbers allow, and components nearly collinear."""
    places = np.random.default_rng(0).uniform(size=(150, 2)).round(1)
    values = np.sin(5 * places[:, 0]) * np.exp(-places[:, 1])
    posterior = fit_quietly(
        FunctionalTucker(["a", "b"], ranks=2), (places[:100], values[:100]), EM(max_iterations=60)
    )
    error = posterior.predict(places[100:]).mean - values[100:]
    assert np.sqrt(np.mean(error**2)) <= 1e-3 * values.std()
    assert np.sqrt(posterior.mean["noise_variance"]) <= 1e-4 * values.std()


@pytest.mark.full
def test_four_modes_recover_what_was_planted():
    generator = np.random.default_rng(0)
    places = generator.uniform(size=(500, 4))
    clean = np.cos(3 * places[:, 0]) * (1 + places[:, 1]) * np.exp(-places[:, 2]) + places[:, 3]
    noisy = clean + 0.05 * clean.std() * generator.normal(size=500)
    model = FunctionalTucker(list("abcd"), ranks=2, core="cp")
    posterior = fit_quietly(model, (places[:400], noisy[:400]), EM(max_iterations=100))
    error = posterior.predict(places[400:]).mean - clean[400:]
    assert np.sqrt(np.mean(error**2)) <= 0.05 * clean.std()


WITH_NA = pd.DataFrame({"x": [0.0, 1.0], "z": [0.0, 1.0], "value": [0.0, 1.0]})
PLACES, VALUES = np.random.default_rng(0).uniform(size=(6, 2)), np.arange(6.0)


def changed(array, index, value):
    array = array.copy()
    array[index] = value
    return array


@pytest.mark.parametrize(
    ("data", "kind", "text"),
    [
        ((PLACES, changed(VALUES, 2, np.nan)), ValueError, r"values has 1 .* \(2,\)"),
        ((PLACES, changed(VALUES, 2, np.inf)), ValueError, r"values has 1 .* \(2,\)"),
        ((changed(PLACES, (3, 0), np.nan), VALUES), ValueError, r"'x' has 1 missing .* \(3,\)"),
        ((changed(PLACES, (3, 1), np.inf), VALUES), ValueError, r"'z' has 1 .* \(3,\)"),
        ((PLACES[:, :1], VALUES), ValueError, r"\(N, 2\)"),
        ((PLACES, VALUES[:5]), ValueError, r"\(6,\), values \(5,\)"),
        ((PLACES, VALUES[:, None]), ValueError, r"values must have the shape \(N,\)"),
        ((PLACES[:0], VALUES[:0]), ValueError, "empty"),
        ((PLACES, VALUES + 1j), TypeError, "real numbers"),
        (pd.DataFrame({"x": VALUES, "value": VALUES}), ValueError, r"no column \['z'\]"),
        (xr.DataArray(PLACES, dims=("x", "y")), ValueError, "dims"),
        (xr.DataArray([["a"]], dims=("x", "z")), TypeError, "values must be real numbers"),
        (
            pd.DataFrame(np.zeros((2, 3)), columns=["x", "x", "value"]).assign(z=0),
            ValueError,
            r"several columns \['x'\]",
        ),
        ((PLACES, (1e-11 * VALUES).astype(np.float32)), ValueError, "float32 does not hold"),
        ((changed(changed(PLACES, 0, 1e308), 1, -1e308), VALUES), ValueError, "range beyond"),
        (VALUES, TypeError, "pair"),
        ((PLACES, 1e200 * VALUES), ValueError, "fourth power"),
        (((np.array(["a"] * 6), VALUES), VALUES), TypeError, "categorical=True"),
        (((np.array(["1"] * 6, object), VALUES), VALUES), TypeError, "categorical=True"),
        (((VALUES > 2, VALUES), VALUES), TypeError, "categorical=True"),
        (((2**60 + np.arange(6), VALUES), VALUES), ValueError, r"beyond 2\^53"),
        ((PLACES, VALUES > 2), TypeError, "values must be real numbers"),
        (xr.DataArray(np.full((2, 2), np.nan), dims=("x", "z")), ValueError, "empty"),
        (WITH_NA.assign(x=pd.array([1, pd.NA], "Int64")), ValueError, r"'x' has 1 missing"),
        (WITH_NA.assign(x=pd.to_datetime(["2020", None])), ValueError, r"'x' has 1 missing"),
        (
            WITH_NA.assign(value=pd.array([1, pd.NA], "Int64")),
            ValueError,
            r"values has 1 .* \(1,\)",
        ),
        ((PLACES, np.array(["1"] * 6, object)), TypeError, "values must be real numbers"),
        ((PLACES, np.array([True] * 6, object)), TypeError, "values must be real numbers"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_bad_data_are_refused_by_name(data, kind, text):
    for method in (None, MessagePassing(), MCMC()):
        with pytest.raises(kind, match=text):
            bk.infer(FunctionalTucker(["x", "z"], ranks=1), data, method, key=0)


def test_texts_that_numpy_made_of_missing_entries_are_refused():
    stations = np.array([["a"], [np.nan], ["b"]])[:, 0]
    with pytest.raises(ValueError, match="entries 'nan'"):
        bk.infer(FunctionalTucker([Mode("s", categorical=True)], ranks=1), ((stations,), [1, 2, 3]))


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        ({"modes": "x", "ranks": 1}, TypeError, "list or tuple"),
        ({"modes": [], "ranks": 1}, TypeError, "list or tuple"),
        ({"modes": ["x", "x"], "ranks": 1}, ValueError, "different names"),
        ({"modes": None, "ranks": 1}, TypeError, "list or tuple"),
        ({"modes": ["x", "rank_x"], "ranks": 1}, ValueError, r"called \['rank_x'\]"),
        ({"modes": ["x", "observation"], "ranks": 1}, ValueError, "result's own"),
        ({"modes": ["x", "a/b"], "ranks": 1}, ValueError, "names with '/'"),
        ({"modes": ["x"], "ranks": 1, "value": "core"}, ValueError, r"called \['core'\]"),
        ({"modes": ["x", "z"], "ranks": 2.0}, TypeError, "positive integer, or one a mode"),
        ({"modes": ["x", "z"], "ranks": 0}, ValueError, "positive integers"),
        ({"modes": ["x", "z"], "ranks": (1, 2, 3)}, ValueError, "one a mode"),
        ({"modes": ["x", "z"], "ranks": (1, 2), "core": "cp"}, ValueError, "equal ranks"),
        ({"modes": ["x", "z"], "ranks": 1, "core": "tree"}, ValueError, "'tucker' or 'cp'"),
        ({"modes": ["x", "value"], "ranks": 1}, ValueError, "other than the modes'"),
        ({"modes": ["x"], "ranks": 1, "noise_variance": -1.0}, ValueError, "positive"),
        ({"modes": ["x"], "ranks": 1, "kernel_priors": {"length": None}}, ValueError, "length"),
    ],
)
def test_bad_models_are_refused_by_name(arguments, kind, text):
    with pytest.raises(kind, match=text):
        FunctionalTucker(**arguments)


def test_bad_modes_are_refused_by_name():
    with pytest.raises(TypeError, match="RBF"):
        Mode("x", kernel=RBF())
    with pytest.raises(ValueError, match="lengthscale"):
        Mode("x", kernel=Matern32(lengthscale=-1.0))
    with pytest.raises(ValueError, match="categorical and has a kernel"):
        Mode("x", kernel=Matern32(), categorical=True)


def test_predictions_at_wrong_places_are_refused(line_posterior):
    with pytest.raises(ValueError, match=r"\(N, 1\)"):
        line_posterior.predict([[0.0, 1.0]])
    with pytest.raises(ValueError, match=r"'x' has 1 missing"):
        line_posterior.predict([[np.nan]])
    with pytest.raises(ValueError, match=r"'x' has 1 non-finite"):
        line_posterior.predict([[np.inf]])
    with pytest.raises(TypeError, match=r"'x' has datetime64.* was fitted to float64"):
        line_posterior.predict(pd.DataFrame({"x": pd.to_datetime(["2020-01-01"])}))
    with pytest.raises(ValueError, match=r"no column \['x'\]"):
        line_posterior.predict(pd.DataFrame({"y": [0.0]}))
    with pytest.raises(ValueError, match=r"several columns \['x'\]"):
        line_posterior.predict(pd.DataFrame([[0.0, 1.0]], columns=["x", "x"]))
    assert line_posterior.predict(np.zeros((0, 1))).mean.shape == (0,)


def test_noise_below_rounding_is_warned_about():
    places, _, noisy = planted(3, rows=60)
    model = FunctionalTucker(["a", "b", "c"], ranks=1, noise_variance=1e-16 * np.var(noisy))
    warned = pytest.warns(bk.PrecisionWarning, match="below what rounding leaves")
    with jax.enable_x64(True), warned:
        model.prepare((places, noisy))


def test_methods_refuse_what_they_cannot_do():
    data = (PLACES, VALUES)
    with pytest.raises(ValueError, match="prune"):
        bk.infer(FunctionalTucker(["x", "z"], ranks=1), data, EM(prune=0.1))
    with pytest.raises(ValueError, match="noise_prior"):
        bk.infer(FunctionalTucker(["x", "z"], ranks=1, noise_prior=None), data, MCMC(), key=0)
    with pytest.raises(ValueError, match="points"):
        FunctionalTucker(["x", "z"], ranks=1).sample_prior(0)
