"""Statements of PDE problems: what residuals may do, what they are, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bayeskit as bk
from bayeskit.pde import Dirichlet, Initial, Neumann, Periodic, Robin, residual

POINTS = np.linspace(0.1, 0.9, 7)


def traced(function, dims=("x",)):
    """The traced residual of a problem without conditions, in double precision."""
    pde = bk.pde.PDE(function, {dim: (0.0, 1.0) for dim in dims}, [])
    coordinates = dict.fromkeys(dims, POINTS)
    with jax.enable_x64(True):
        symbols = residual.symbols_of(pde.residual, coordinates)
        return residual.trace(pde.residual, coordinates, symbols)


def test_linear_residuals_become_coefficients_and_source():
    found = traced(lambda u, x: np.sin(x) * u + 3 * u.d("x") - 2 * u.d("x", 2) + 1 / (1 + x))
    assert isinstance(found, residual.Affine)
    assert found.orders == ((0,), (1,), (2,))
    expected = [np.sin(POINTS), np.full(7, 3.0), np.full(7, -2.0)]
    np.testing.assert_allclose(found.coefficients, expected, rtol=1e-15)
    np.testing.assert_allclose(found.source, 1 / (1 + POINTS), rtol=1e-15)


def test_divergence_is_the_derivative_of_the_flux():
    found = traced(lambda u, x: bk.pde.divergence(lambda x: 1 + x**2, u))
    assert isinstance(found, residual.Affine)
    assert found.orders == ((1,), (2,))
    np.testing.assert_allclose(found.coefficients, [2 * POINTS, 1 + POINTS**2], rtol=1e-15)


def test_mixed_derivatives_are_asked_for_by_name():
    found = traced(lambda u, x, t: u.d(x=1, t=1) - 2 * u.d(t=2), ("x", "t"))
    assert found.orders == ((1, 1), (0, 2))


@pytest.mark.parametrize(
    ("function", "derivative"),
    [
        (lambda u, x: u.d("x", 2) + u * (u**2 - 1) - x, lambda v: 3 * v**2 - 1),
        (lambda u, x: u.d("x", 2) + jnp.sin(u()), np.cos),
        (lambda u, x: u.d("x", 2) - 2.0 / (1.0 + u) + (-u), lambda v: 2 / (1 + v) ** 2 - 1),
        (lambda u, x: u.d("x", 2) + x**u, lambda v: np.log(POINTS) * POINTS**v),
    ],
)
def test_linearisation_of_nonlinear_residuals_is_their_derivative(function, derivative):
    found = traced(function)
    assert isinstance(found, residual.Traced)
    values = np.random.default_rng(0).uniform(0.5, 1.5, (2, 7))
    with jax.enable_x64(True):
        _, by_value = found.linearised(jnp.asarray(values))
    np.testing.assert_allclose(by_value[found.orders.index((2,))], 1.0)
    own = values[found.orders.index((0,))]
    np.testing.assert_allclose(by_value[found.orders.index((0,))], derivative(own), rtol=1e-13)


def test_residuals_need_not_be_finite_for_every_field():
    found = traced(lambda u, x: u.d("x", 2) - jnp.log(u() - 0.5))
    assert isinstance(found, residual.Traced)


@pytest.mark.parametrize(
    "function",
    [
        lambda u, x: u.d("x", 2) + jnp.where(u() > 0.5, 100.0, 0.0),
        lambda u, x: u.d("x", 2) + 10 * jnp.sign(u()),
        lambda u, x: u.d("x", 2) + jax.lax.stop_gradient(u() ** 2),
        lambda u, x: u.d("x", 2) + geometric_series(u()),
    ],
)
def test_steps_and_loops_are_not_taken_for_linear(function):
    assert isinstance(traced(function), residual.Traced)


def geometric_series(value):
    start = (jnp.ones_like(value), jnp.zeros_like(value))
    return jax.lax.fori_loop(0, 4, lambda _, c: (c[0] * value, c[1] + c[0]), start)[1]


def test_masks_of_the_user_stay_masks():
    found = traced(lambda u, x: u.d("x", 2) + jnp.where(x > 0.5, u() ** 3, u()))
    with jax.enable_x64(True):
        value = found.value(jnp.full((2, 7), 2.0))
    np.testing.assert_array_equal(value, 2.0 + np.where(POINTS > 0.5, 8.0, 2.0))


def test_constants_inside_compiled_functions_tell_programs_apart():
    def state(constant):
        inner = jax.jit(lambda value: jnp.full(1, constant) * value**3 + np.array([constant]))
        return traced(lambda u, x: u.d("x", 2) - inner(u()))

    first, second = state(1.0), state(50.0)
    assert first.code != second.code or str(first.constants) != str(second.constants)


def test_same_statement_is_the_same_program():
    def state(source):
        return traced(lambda u, x: u.d("x", 2) + u**3 - source(x))

    first, second = state(np.sin), state(np.cos)
    assert first.code == second.code
    assert hash(first.code) == hash(second.code)
    assert first.code != traced(lambda u, x: u.d("x", 2) + u**2 - np.sin(x)).code


@pytest.mark.parametrize(
    ("function", "kind", "message"),
    [
        (lambda u, x: jnp.sin(u), TypeError, r"write u\(\) for its value"),
        (lambda u, x: np.sin(u), TypeError, r"write u\(\) for its value"),
        (lambda u, x: u - np.sin(u()), TypeError, r"jax.numpy, for example jnp.sin\(u\(\)\)"),
        (lambda u, x: bk.pde.divergence(lambda x: np.exp(x), u), TypeError, "with jax.numpy"),
        (lambda u, x: u if u()[0] > 0 else -u, TypeError, "use jnp.where"),
        (lambda u, x: 1j * u, TypeError, "complex fields are not supported"),
        (lambda u, x: u - np.exp(1j * x), TypeError, "complex fields are not supported"),
        (lambda u, x: u - np.ones(3), ValueError, r"fixed shape in it cannot: .* were \(7,\)"),
        (lambda u, x: x - np.ones(3) + u, ValueError, r"fixed shape in it cannot: .* were \(7,\)"),
        (lambda u, x: None, TypeError, r"must give an array \(points,\), got None"),
        (lambda u, x: jnp.stack([u(), u()]), ValueError, "Systems of equations"),
        (lambda u, x: jnp.sum(u()) + u, ValueError, "mixes points"),
        (lambda u, x: x, ValueError, "does not depend on u"),
        (lambda u, x: u.d("y"), ValueError, r"derivative by \['y'\]"),
        (lambda u, x: jnp.where(u == 0, 1.0, u()), TypeError, r"write u\(\) for its value"),
        (lambda u, x: u.d("x", -1), ValueError, "must be at least 0"),
        (lambda u, x: u.d("x", x=1), TypeError, "orders by name"),
        (lambda u, x: u / (x - POINTS[2]), ValueError, "not finite at 1 of 7 points.* x = 0.36"),
    ],
)
def test_impossible_residuals_are_refused(function, kind, message):
    with pytest.raises(kind, match=message):
        traced(function)


def test_single_precision_constants_are_warned_about():
    source = jnp.ones(7, jnp.float32)
    with pytest.warns(bk.PrecisionWarning, match="float32 of shape"):
        traced(lambda u, x: u.d("x", 2) - source)


ZERO = Dirichlet("x", 0.0, 0.0)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((None, {"x": (0, 1)}, []), TypeError, "residual must be a function"),
        ((lambda u: u, {"x": (0, 1)}, []), TypeError, r"residual must take \(u, x\)"),
        ((lambda u, x: u, {}, []), TypeError, "domain must be a mapping"),
        ((lambda u, x: u, {"x": (1, 0)}, []), ValueError, r"must be \(lower, upper\), got \(1"),
        ((lambda u, x: u, {"x": (0, np.inf)}, []), ValueError, "upper end of x must be finite"),
        ((lambda u, x: u, {"x": 1.0}, []), TypeError, r"must be \(lower, upper\)"),
        ((lambda u, x: u, {"x": (0, 1)}, ZERO), TypeError, "sequence of conditions"),
        ((lambda u, x: u, {"x": (0, 1)}, [Dirichlet]), TypeError, "forget its arguments"),
        ((lambda u, t: u, {"t": (0, 1)}, [ZERO]), ValueError, "is of 'x'"),
        ((lambda u, x: u, {"x": (1, 2)}, [ZERO]), ValueError, "expected an end of the domain"),
        ((lambda u, t, x: u, {"x": (0, 1), "t": (0, 1)}, []), ValueError, "takes t, x; coord"),
        (
            (lambda u, x: u, {"x": (0, 1)}, [Dirichlet("x", 0.0, lambda x, y: x)]),
            TypeError,
            r"value of conditions\[0\] must take \(x\)",
        ),
        ((lambda u, *x: u, dict.fromkeys("abcd", (0, 1)), []), ValueError, "at most 3"),
    ],
)
def test_impossible_problems_are_refused(arguments, kind, message):
    with pytest.raises(kind, match=message):
        bk.pde.PDE(*arguments)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (lambda: Dirichlet(0, 0.0, 0.0), "dim must be the name"),
        (lambda: Dirichlet("x", np.nan, 0.0), "at must be finite"),
        (lambda: Neumann("x", 0.0, "one"), "value must be a number"),
        (lambda: Dirichlet("x", 0.0, 1j), "value must be a number, got 1j"),
        (lambda: Dirichlet("x", 0.0, np.ones(3)), "value must be a number"),
        (lambda: Dirichlet("x", 0.0, np.nan), "value must be finite"),
        (lambda: Dirichlet("x", 0.0, 0.0, noise=-1.0), "noise must be positive"),
        (lambda: Robin("x", 0.0, 0.0, a=0.0, b=0.0), "must not both be zero"),
        (lambda: Initial("t", 0.0, order=2), r"order must be 0 \(value\) or 1"),
        (lambda: Periodic(None), "dim must be the name"),
    ],
)
def test_impossible_conditions_are_refused(condition, message):
    with pytest.raises((TypeError, ValueError), match=message):
        condition()


@pytest.mark.parametrize("batch", [2, 3])
def test_sensors_stacked_by_a_tree_are_taken_apart(batch):
    """Also as many data sets as sensors, where a number a data set looks like one a sensor."""
    points, values = {"x": [0.1, 0.5, 0.9]}, np.arange(3.0)
    each = [bk.pde.Sensors(points, values + i, noise=0.1 * (i + 1)) for i in range(batch)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *each)
    for i, item in enumerate(stacked.items()):
        np.testing.assert_array_equal(item.points["x"], points["x"])
        np.testing.assert_array_equal(item.values, values + i)
        np.testing.assert_array_equal(item.noise, 0.1 * (i + 1))
    # Values alone: the noise is each sensor's.
    noise = np.array([0.1, 0.2, 0.3])
    shared = bk.pde.Sensors(points, np.stack([values, values + 1, values + 2]), noise=noise)
    for item in shared.items():
        np.testing.assert_array_equal(item.noise, noise)


def test_boxes_far_from_zero_are_warned_about_and_exact_at_their_ends():
    lower = 1.7e9
    pde = bk.pde.PDE(lambda u, x: u.d("x"), {"x": (lower, lower + 1)}, [Dirichlet("x", lower, 0.0)])
    model = bk.models.SpectralPDE(pde, grid={"x": 16})
    with jax.enable_x64(True):
        with pytest.warns(bk.PrecisionWarning, match=r"rounded to 3.8e-07 of the domain"):
            prepared = model.prepare(None)
        ends = prepared.model.prediction_target({"x": [lower, lower + 1]}, prepared.labels)
        np.testing.assert_array_equal(ends.inputs.points[0], [0.0, 1.0])
