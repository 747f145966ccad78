"""What is told of rows before networks are trained: ties, and parts that are not connected."""

import warnings

import jax
import numpy as np
import pandas as pd
import pytest

import bayeskit as bk
from bayeskit.models.singular.support import num_parts, ties
from bayeskit.precision import double_precision

ROWS = 400


def prepared(perturbation, rows, **arguments):
    model = bk.models.SingularDistribution(1, perturbation=perturbation, **arguments)
    with double_precision():
        return model.prepare(rows)


@pytest.fixture(scope="module")
def circle():
    return bk.datasets.shape(0, "circle", rows=ROWS, features=3).observations


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.random.default_rng(0).poisson(3.0, ROWS), (True, 1.0)),
        (np.random.default_rng(0).integers(0, 40, ROWS) / np.float32(255.0), (True, 1 / 255)),
        (np.random.default_rng(0).normal(size=ROWS).round(1) + 1e6, (True, 0.1)),
        (np.random.default_rng(0).choice([0.0, 1.0, np.e, 10.0], ROWS), (True, 0.0)),
        (np.random.default_rng(0).normal(size=ROWS), (False, 0.0)),
        (np.random.default_rng(0).integers(0, 100_000, ROWS), (False, 0.0)),
        (np.zeros(ROWS), (False, 0.0)),
    ],
    ids=["counts", "single precision", "rounded", "irregular", "continuous", "wide", "constant"],
)
def test_ties_and_their_spacing(values, expected):
    tied, spacing = ties(values)
    assert tied == expected[0]
    assert spacing == pytest.approx(expected[1], rel=1e-5)


def test_ties_get_uniform_noise_where_the_perturbation_does_not_hide_them(circle):
    rows = circle.copy()
    rows[:, 0] = np.round(5.0 * rows[:, 0])
    # Half the spacing is 0.5 of these: one level is below it, one is not.
    unit = np.sqrt(np.var(rows, axis=0).mean())
    levels = (0.05, 0.6 / unit)
    with pytest.warns(bk.ConditioningWarning, match=r"1 columns \(0\) with ties: .*uniform noise"):
        found = prepared(levels, rows)
    chosen, data = np.arange(ROWS), found.data
    for setting, added in zip(levels, (1.0, 0.0), strict=True):
        with double_precision():
            noise = np.concatenate(
                [
                    found.model.variational_rows(data, chosen, setting, jax.random.key(i))
                    - data.values
                    for i in range(50)
                ]
            )
        variance = setting**2 + np.array([added, 0.0, 0.0]) / unit**2 / 12.0
        # Of 20 000 draws: a standard error of a hundredth at most.
        np.testing.assert_allclose(noise.var(axis=0), variance, rtol=0.04)
        assert np.abs(noise.mean(axis=0)).max() < 5 * np.sqrt(variance.max() / len(noise))
    irregular = np.random.default_rng(0).choice([0.0, 1.0, np.e], (60, 2))
    with pytest.warns(bk.ConditioningWarning, match=r"\(a, b\) with ties: .*perturbation of 0.01"):
        prepared(0.0, pd.DataFrame(irregular, columns=["a", "b"]))


def test_nothing_is_told_of_ties_that_are_hidden_or_of_other_rows(circle):
    counts = np.random.default_rng(0).poisson(50.0, (100, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error", bk.BayeskitWarning)
        for level, rows in ((1.0, counts), (0.0, circle), (0.0, circle.round(4))):
            assert prepared(level, rows).data.spacing is None
        prepared(0.0, counts, decoder="linear")


def test_parts_that_are_not_connected_are_told_apart_and_others_are_not():
    generators = [np.random.default_rng(seed) for seed in range(25)]
    connected = [generator.normal(size=(200, 5)) for generator in generators]
    connected += [generator.standard_t(2, size=(200, 3)) for generator in generators]
    for name in ("circle", "sphere", "spiral", "swiss_roll"):
        connected += [bk.datasets.shape(s, name, rows=200).observations for s in range(25)]
    # One false alarm in a hundred is what the rule is made for: of 150, over 7 come once in 1000.
    assert sum(num_parts(rows) > 1 for rows in connected) <= 7
    moons = [bk.datasets.shape(seed, "moons", rows=500).observations for seed in range(6)]
    assert all(num_parts(rows) >= 2 for rows in moons)
    clusters = [
        generator.normal(size=(300, 5)) + 20.0 * generator.integers(0, 3, (300, 1))
        for generator in generators[:6]
    ]
    assert [num_parts(rows) for rows in clusters] == [3] * 6


def test_rows_with_gaps_are_warned_about_before_training(circle):
    moons = bk.datasets.shape(0, "moons", rows=500).observations
    with pytest.warns(bk.ConditioningWarning, match="2 parts .* bridges between them"):
        prepared(0.1, moons)
    # Integers are not taken for parts of their own.
    with pytest.warns(bk.ConditioningWarning, match="ties") as told:
        prepared(0.0, np.round(4.0 * circle))
    assert not any("parts" in str(warning.message) for warning in told)
