"""Solutions of differential equations against closed forms, and warnings where there is none."""

import re
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_bvp

import bayeskit as bk
from bayeskit.models import SpectralMixture, SpectralPDE
from bayeskit.models.spectral_pde.newton import share_of
from bayeskit.pde import PDE, Dirichlet, Initial, Neumann, Periodic, Robin

POINTS = 48  # one shape: one compilation of each kind of equation
FREQUENCY = 40.0
TEST = np.linspace(0.0, 1.0, 201)


def wave(x):
    return np.sin(FREQUENCY * x) + 0.3 * np.cos(3.0 * x) + x**2


def slope(x):
    return FREQUENCY * np.cos(FREQUENCY * x) - 0.9 * np.sin(3.0 * x) + 2.0 * x


def curvature(x):
    return -(FREQUENCY**2) * np.sin(FREQUENCY * x) - 2.7 * np.cos(3.0 * x) + 2.0


def poisson(u, x):
    return u.d("x", 2) - curvature(x)


ENDS = (Dirichlet("x", 0.0, wave), Dirichlet("x", 1.0, wave))


def solve(residual=poisson, conditions=ENDS, **options):
    model = SpectralPDE(PDE(residual, {"x": (0.0, 1.0)}, conditions), grid={"x": POINTS})
    return bk.infer(model, None, **options)


@pytest.fixture(scope="module")
def posterior():
    return solve()


def _renamed(function):
    """Another residual that has the same name."""

    def changed(u, x):
        return function(u, x) + 1.0

    changed.__qualname__, changed.__module__ = function.__qualname__, function.__module__
    return changed


def relative(found, truth):
    return np.linalg.norm(found - truth) / np.linalg.norm(truth)


def test_solution_and_derivatives_equal_the_closed_form(posterior):
    for order, truth in enumerate((wave, slope, curvature)):
        found = posterior.predict({"x": TEST}, derivative={"x": order})
        assert relative(found.mean, truth(TEST)) < 1e-8
        # Uncertainty is of the size of the error.
        z = (found.mean - truth(TEST)) / np.sqrt(found.variance)
        assert np.mean(z**2) < 4
    assert relative(posterior.predict({"x": TEST}).mean, wave(TEST)) <= 30 * posterior.residual
    assert posterior.residual < 1e-6


def test_spectrum_has_the_frequency_of_the_solution(posterior):
    spectrum = posterior.spectrum("x")
    assert abs(spectrum.peaks[spectrum.peaks > 2.0][0] - FREQUENCY / (2 * np.pi)) < 0.1
    np.testing.assert_allclose(spectrum.weights.sum(), 1.0)


@pytest.mark.parametrize(
    "conditions",
    [
        (Dirichlet("x", 0.0, wave), Neumann("x", 1.0, slope)),
        (Robin("x", 0.0, lambda x: 2 * wave(x) - slope(x), a=2, b=-1), Dirichlet("x", 1.0, wave)),
        (Initial("x", wave), Initial("x", slope, order=1)),
    ],
)
def test_conditions_of_every_kind(conditions):
    found = solve(conditions=conditions)
    error = relative(found.predict({"x": TEST}).mean, wave(TEST))
    assert error < 1e-7
    assert error <= 30 * found.residual


def test_periodic_conditions():
    truth = lambda x: np.sin(2 * np.pi * 6 * x)  # noqa: E731
    found = solve(
        lambda u, x: u.d("x", 2) - 9 * u + ((12 * np.pi) ** 2 + 9) * truth(x), [Periodic("x")]
    )
    assert relative(found.predict({"x": TEST}).mean, truth(TEST)) < 1e-8


def test_variable_coefficients():
    found = solve(
        lambda u, x: (
            bk.pde.divergence(lambda x: 1 + x**2, u) - (1 + x**2) * curvature(x) - 2 * x * slope(x)
        )
    )
    assert relative(found.predict({"x": TEST}).mean, wave(TEST)) < 1e-8


def test_deviations_know_what_an_unstable_equation_amplifies():
    # Exact solutions have exp(35 x) beside them, which bands of low frequencies do not hold.
    truth = np.sin(9.0 * TEST)
    found = solve(
        lambda u, x: u.d("x", 1) - 35.0 * (u() - np.sin(9.0 * x)) - 9.0 * np.cos(9.0 * x),
        [Dirichlet("x", 0.0, 0.0)],
    )
    predicted = found.predict({"x": TEST})
    # 3 here and less on other grids; 100 and more without them.
    assert np.mean((predicted.mean - truth) ** 2 / predicted.variance) < 6
    assert relative(predicted.mean, truth) < 1e-4
    assert np.sqrt(np.mean(predicted.variance)) < 1e-4
    assert relative(predicted.mean, truth) <= 30 * found.residual


def test_a_solution_that_grows_out_of_reach_is_said_to_be_open():
    with pytest.warns(bk.ConditioningWarning, match="leave the solution open"):
        found = solve(lambda u, x: u.d("x", 1) - 25.0 * u, [Dirichlet("x", 0.0, 1.0)])
    assert relative(found.predict({"x": TEST}).mean, np.exp(25.0 * TEST)) > 0.5
    assert found.residual > 0.5


@pytest.fixture(scope="module")
def allen_cahn():
    return solve(lambda u, x: u.d("x", 2) + u * (u**2 - 1) - curvature(x) - wave(x) ** 3 + wave(x))


def test_newton_solves_a_nonlinear_equation(allen_cahn):
    error = relative(allen_cahn.predict({"x": TEST}).mean, wave(TEST))
    assert allen_cahn.convergence.converged
    assert error < 1e-8
    assert error <= 30 * allen_cahn.residual


@pytest.mark.parametrize("size", [1e-6, 1e6])
def test_units_of_the_box_do_not_matter(posterior, size):
    pde = PDE(
        lambda u, x: u.d("x", 2) - curvature(x / size) / size**2,
        {"x": (0.0, size)},
        [Dirichlet("x", 0.0, 0.3), Dirichlet("x", size, wave(1.0))],
    )
    found = bk.infer(SpectralPDE(pde, grid={"x": POINTS}), None).predict({"x": size * TEST})
    expected = posterior.predict({"x": TEST})
    np.testing.assert_allclose(found.mean, expected.mean, atol=1e-7)
    np.testing.assert_allclose(found.variance, expected.variance, rtol=1e-2)


def test_draws_have_the_posterior_moments(posterior):
    draws = posterior.sample(0, 4000)["solution"]
    deviation = np.sqrt(posterior.variance["solution"])
    z = (draws.mean(axis=0) - posterior.mean["solution"]) / (deviation / np.sqrt(4000))
    assert np.max(np.abs(z)) < 5
    np.testing.assert_allclose(draws.std(axis=0), deviation, rtol=0.1)


def test_trees_and_files(posterior, tmp_path):
    tree = posterior.to_datatree(num_draws=10, predictions={"x": [0.2, 0.4]})
    assert tree["posterior"]["solution"].dims == ("chain", "draw", "x")
    assert tree["predictions"]["solution"].shape == (1, 10, 2)
    path = tmp_path / "posterior.nc"
    posterior.save(path)
    with pytest.raises(ValueError, match=r"functions of your own .*poisson"):
        bk.load(path)
    again = bk.load(path, posterior.model)
    for site, value in posterior.mean.items():
        np.testing.assert_array_equal(again.mean[site], value)
    points = {"x": TEST}
    np.testing.assert_array_equal(again.predict(points).mean, posterior.predict(points).mean)
    other = PDE(lambda u, x: u.d("x", 2) - 1.0, {"x": (0.0, 1.0)}, ENDS)
    same_name = PDE(_renamed(poisson), {"x": (0.0, 1.0)}, ENDS)
    for pde, message in ((other, "is the function"), (same_name, "give other values")):
        with pytest.raises(ValueError, match=f"model is not the one that was saved.*{message}"):
            bk.load(path, SpectralPDE(pde, grid={"x": POINTS}))
    with pytest.raises(TypeError, match="leave-one-out needs measurements"):
        posterior.loo()


@pytest.mark.parametrize("conditions", [ENDS, (Neumann("x", 0, 0), Neumann("x", 1, 0))])
def test_nothing_but_zero(conditions):
    zero = tuple(type(each)("x", each.at, 0.0) for each in conditions)
    found = solve(lambda u, x: u.d("x", 2) - u, zero)
    np.testing.assert_allclose(found.predict({"x": TEST}).mean, 0.0, atol=1e-12)


def test_constants_and_lines_are_exact():
    for offset, rate in ((3.0, 0.0), (-1.0, 2.0), (1e6, 0.0)):
        line = lambda x, a=offset, b=rate: a + b * x  # noqa: E731
        found = solve(
            lambda u, x: u.d("x", 2), [Dirichlet("x", 0.0, line), Dirichlet("x", 1.0, line)]
        )
        error = found.predict({"x": TEST}).mean - line(TEST)
        assert np.max(np.abs(error)) < 1e-10 * max(1.0, abs(offset))


@pytest.mark.parametrize("distance", [0.5, 1e-3, 1e-9])
def test_frequencies_that_are_nearly_equal(distance):
    rates = (40.0, 40.0 + distance)
    truth = lambda x: sum(np.sin(rate * x) for rate in rates)  # noqa: E731
    found = solve(
        lambda u, x: u.d("x", 2) + sum(rate**2 * np.sin(rate * x) for rate in rates),
        [Dirichlet("x", 0.0, truth), Dirichlet("x", 1.0, truth)],
    )
    assert relative(found.predict({"x": TEST}).mean, truth(TEST)) < 1e-8


@pytest.mark.parametrize("components", [1, 2 * POINTS])
def test_one_component_or_more_than_points(components):
    model = SpectralPDE(
        PDE(poisson, {"x": (0.0, 1.0)}, ENDS),
        grid={"x": POINTS},
        kernel=SpectralMixture(components),
    )
    found = bk.infer(model, None).predict({"x": TEST})
    assert relative(found.mean, wave(TEST)) < 1e-8


def test_coefficients_that_vanish_on_average():
    truth = lambda x: (2 * x - 1) ** 4  # noqa: E731
    found = solve(
        lambda u, x: (2 * x - 1) * (u.d("x", 2) - 48 * (2 * x - 1) ** 2),
        [Dirichlet("x", 0.0, 1.0), Dirichlet("x", 1.0, 1.0)],
    )
    assert relative(found.predict({"x": TEST}).mean, truth(TEST)) < 1e-8


def test_points_of_predictions_in_any_order(posterior):
    points = np.array([0.7, 0.1, 1.0, 0.1])
    found, sorted_ = (posterior.predict({"x": each}).mean for each in (points, np.sort(points)))
    np.testing.assert_allclose(np.sort(found), np.sort(sorted_), rtol=1e-12)
    np.testing.assert_allclose(found, wave(points), atol=1e-8)


def test_answers_are_in_double_precision_whatever_the_default_is(posterior):
    found = posterior.predict({"x": jnp.asarray(TEST, jnp.float32)})
    assert {each.dtype for each in (found.mean, found.variance)} == {np.dtype(np.float64)}
    with pytest.warns(bk.PrecisionWarning, match="condition at x = 0 is float32"):
        solve(conditions=(Dirichlet("x", 0.0, lambda x: wave(x).astype(np.float32)), ENDS[1]))


ZERO = Dirichlet("x", 0.0, 0.0)


def test_conditions_stated_twice_are_refused():
    with pytest.raises(ValueError, match="along 'x' say the same twice"):
        solve(conditions=(*ENDS, Dirichlet("x", 1.0, 7.0)))


def test_draws_between_the_nodes_follow_the_solution():
    truth = lambda x: np.sin(2 * np.pi * 12.0 * x)  # noqa: E731
    ends = (Dirichlet("x", 0.0, truth), Dirichlet("x", 1.0, truth))
    found = solve(lambda u, x: u.d("x", 2) + (24 * np.pi) ** 2 * truth(x), ends)
    tree = found.to_datatree(num_draws=3, predictions={"x": TEST})
    np.testing.assert_allclose(tree["predictions"]["solution"][0, 0], truth(TEST), atol=1e-3)


def test_equations_singular_at_an_end():
    # Radial Poisson: u'' + u' / x = -4, u = 1 - x².
    found = solve(
        lambda u, x: u.d("x", 2) + u.d("x") / x + 4.0,
        (Neumann("x", 0.0, 0.0), Dirichlet("x", 1.0, 0.0)),
    )
    np.testing.assert_allclose(found.predict({"x": TEST}).mean, 1 - TEST**2, atol=1e-7)


def test_equations_undefined_for_zero_start_from_the_conditions():
    found = solve(
        lambda u, x: u.d("x", 2) - jnp.log(u() - 0.5),
        (Dirichlet("x", 0.0, 1.2), Dirichlet("x", 1.0, 2.0)),
    )
    negative = solve(
        lambda u, x: u.d("x", 2) + 20.0 * jnp.sqrt(-u()),
        (Dirichlet("x", 0.0, -1.0), Dirichlet("x", 1.0, -2.0)),
    )
    for each, force, ends in (
        (found, lambda u: np.log(u - 0.5), (1.2, 2.0)),
        (negative, lambda u: -20.0 * np.sqrt(np.maximum(-u, 0.0)), (-1.0, -2.0)),
    ):
        reference = solve_bvp(
            lambda x, u, force=force: np.stack([u[1], force(u[0])]),
            lambda left, right, ends=ends: np.array([left[0] - ends[0], right[0] - ends[1]]),
            np.linspace(0.0, 1.0, 50),
            np.full((2, 50), np.mean(ends)),
            tol=1e-9,
        )
        expected = reference.sol(TEST)[0]
        np.testing.assert_allclose(each.predict({"x": TEST}).mean, expected, atol=1e-8)


def test_what_cannot_be_evaluated_is_no_answer():
    with pytest.raises(FloatingPointError, match="broke down"):
        solve(
            lambda u, x: u.d("x", 2) - jnp.log(u() - 0.5),
            (Dirichlet("x", 0.0, 0.2), Dirichlet("x", 1.0, 0.2)),
        )


NODE = 0.5 * (np.polynomial.legendre.leggauss(POINTS)[0][20] + 1.0)
NOTHING = (Dirichlet("x", 0.0, 0.0), Dirichlet("x", 1.0, 0.0))


def narrow(x):
    """A spike between the points at which the solver reads the source."""
    return 1e4 * np.exp(-(((x - NODE + 0.25 * 0.033) / 3e-4) ** 2))


def fast(x):
    return np.sin(2 * np.pi * 23.0 * x)


@pytest.mark.parametrize(
    ("residual", "conditions", "message"),
    [
        (
            lambda u, x: u.d("x", 2) + (46 * np.pi) ** 2 * fast(x),
            (Dirichlet("x", 0.0, fast), Dirichlet("x", 1.0, fast)),
            "hardly resolves, or has been folded",
        ),
        (lambda u, x: u.d("x", 2) - np.sign(x - 0.4), ENDS, "not smooth"),
        (lambda u, x: u.d("x", 2) - 1e3 * (x == NODE), ENDS, "not smooth"),
        (
            lambda u, x: u.d("x", 2) - narrow(x) - 100.0,
            ENDS,
            r"source is -1.\d+e\+04 at x = 0.3",
        ),
        (lambda u, x: 1e-6 * u.d("x", 2) - u.d("x") - 1, ENDS, "not smooth|conditions are met"),
        (poisson, (*ENDS, Neumann("x", 1.0, 7.0)), "contradict each other"),
        (poisson, (Neumann("x", 0.0, 0.0), Neumann("x", 1.0, 0.0)), "contradict"),
        (poisson, ENDS[:1], "1 conditions are missing"),
        (poisson, (), "2 conditions are missing"),
        (poisson, (Neumann("x", 0.0, slope), Neumann("x", 1.0, slope)), "leave the solution open"),
        (poisson, [Periodic("x")], "conditions are met|leave the solution open"),
        (lambda u, x: u.d("x"), (ENDS[0], Dirichlet("x", 1.0, 5.0)), "contradict each other"),
        *[
            (lambda u, x, f=f: u.d("x", 2) + np.pi**2 * (u - f * np.sin(np.pi * x)), NOTHING, text)
            for f, text in ((0.0, "the solution open"), (1.0, "the solution open"))
        ],
        (
            lambda u, x: u.d("x", 2) + np.pi**2 * u,
            (Dirichlet("x", 0.0, 0.0), Neumann("x", 0.0, np.pi), Dirichlet("x", 1.0, 0.0)),
            None,
        ),
        (
            lambda u, x: u.d("x", 2) + (2 * np.pi) ** 2 * u - np.sin(9 * x),
            (Dirichlet("x", 0.0, 0.0), Periodic("x")),
            "leave the solution open",
        ),
    ],
)
def test_doubtful_answers_are_warned_about(residual, conditions, message):
    if message is None:
        found = solve(residual, conditions)
        assert relative(found.predict({"x": TEST}).mean, np.sin(np.pi * TEST)) < 1e-8
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        solve(residual, conditions)
    assert any(re.search(message, str(each.message)) for each in caught), [*map(str, caught)]


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"grid": 48}, TypeError, "grid must be a mapping"),
        ({"grid": {"t": 48}}, ValueError, r"grid names \['t'\]"),
        ({"grid": {"x": 7}}, ValueError, r"grid\['x'\] must be at least 8"),
        ({"grid": {"x": 48.0}}, TypeError, "must be an integer"),
        ({"grid": {"x": 48}, "kernel": "gaussian"}, TypeError, "kernel must be a SpectralMixture"),
    ],
)
def test_impossible_models_are_refused(arguments, kind, message):
    with pytest.raises(kind, match=message):
        SpectralPDE(PDE(poisson, {"x": (0.0, 1.0)}, ENDS), **arguments)


def test_data_of_another_kind_are_refused(posterior):
    with pytest.raises(TypeError, match=r"data must be .*Sensors or None, got ndarray"):
        bk.infer(posterior.model, np.ones(3))
    with pytest.raises(ValueError, match=r"a batch needs Sensors with values \(batch, n\)"):
        bk.infer_batch(posterior.model, None)


@pytest.mark.parametrize(
    ("inputs", "options", "kind", "message"),
    [
        ([0.5], {}, TypeError, "inputs must be a mapping"),
        ({"t": [0.5]}, {}, ValueError, r"inputs names \['t'\]"),
        ({"x": [0.5, 1.5]}, {}, ValueError, r"1 points outside the domain \[0, 1\], the first 1.5"),
        ({"x": [np.nan]}, {}, ValueError, "non-finite"),
        ({"x": [[0.5]]}, {}, ValueError, r"must be \(points,\)"),
        ({"x": [0.5]}, {"derivative": {"t": 1}}, ValueError, "derivative by"),
        ({"x": [0.5]}, {"derivative": 1}, TypeError, "derivative must be a mapping"),
        ({"x": [0.5]}, {"include_noise": True}, ValueError, "leave inputs out"),
    ],
)
def test_impossible_predictions_are_refused(posterior, inputs, options, kind, message):
    with pytest.raises(kind, match=message):
        posterior.predict(inputs, **options)


def test_kernels():
    with pytest.raises(ValueError, match="family must be one of"):
        SpectralMixture(family="matern")
    with pytest.raises(ValueError, match="num_components must be at least 1"):
        SpectralMixture(0)


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (lambda x: np.nan * x, ValueError, "at x = 1 has 1 non-finite"),
        (lambda x: np.ones(3), ValueError, r"at x = 1 must be one number .* shape \(3,\)"),
        (lambda x: 1j * x, TypeError, "at x = 1: got dtype complex128"),
        (lambda x: None, TypeError, "at x = 1 must be real"),
    ],
)
def test_conditions_that_are_no_numbers_are_refused(value, kind, message):
    with pytest.raises(kind, match=message):
        solve(conditions=(ENDS[0], Dirichlet("x", 1.0, value)))


def test_zero_that_may_be_any_constant_has_a_large_residual():
    with pytest.warns(bk.ConditioningWarning, match="leave the solution open"):
        found = solve(lambda u, x: u.d("x", 2), (Neumann("x", 0.0, 0.0), Neumann("x", 1.0, 0.0)))
    np.testing.assert_array_equal(found.predict({"x": TEST}).mean, 0.0)
    assert found.residual > 0.1


def test_an_equation_without_solution_is_no_success():
    """Bratu's, beyond the largest parameter that has one, 3.51."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = solve(
            lambda u, x: u.d("x", 2) + 10.0 * jnp.exp(u()),
            NOTHING,
            method=bk.inference.EM(max_iterations=12),
        )
    told = " ".join(str(each.message) for each in caught)
    assert "did not converge" in told
    assert "the equation holds to" in told
    assert not found.convergence.converged


def test_sizes_that_cannot_be_squared():
    """A field that is too large satisfies everything relative to itself."""
    np.testing.assert_array_equal(
        share_of(1.0, jnp.array([jnp.inf, jnp.nan, 0.0])), [np.inf, np.inf, 0]
    )
    for size in (1e-140, 1e140):
        with pytest.raises(
            ValueError, match=r"conditions: the largest value is .* take other units"
        ):
            solve(lambda u, x: u.d("x", 2), (Dirichlet("x", 0.0, 0.0), Dirichlet("x", 1.0, size)))
        with pytest.raises(ValueError, match=r"residual: its source is .* take other units"):
            solve(lambda u, x, s=size: u.d("x", 2) - s * np.cos(x), NOTHING)
    line = solve(lambda u, x: u.d("x", 2), (Dirichlet("x", 0.0, 0.0), Dirichlet("x", 1.0, 1e120)))
    np.testing.assert_allclose(line.predict({"x": TEST}).mean, 1e120 * TEST, atol=1e110)
    assert 0 < line.residual < 1e-9


def test_budget_exhausted_is_reported():
    with pytest.warns(bk.ConvergenceWarning, match="did not converge"):
        found = solve(method=bk.inference.EM(max_iterations=4))
    assert not found.convergence.converged


def test_zero_stays_a_solution_of_a_nonlinear_equation():
    with pytest.warns(bk.ConditioningWarning, match="several solutions: from another start"):
        found = solve(lambda u, x: u.d("x", 2) - 100.0 * (u**3 - u), (ZERO, Neumann("x", 1.0, 0.0)))
    np.testing.assert_allclose(found.predict({"x": TEST}).mean, 0.0, atol=1e-8)
