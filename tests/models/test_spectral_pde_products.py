"""Solutions in two and three dimensions against closed forms."""

import re
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

import bayeskit as bk
from bayeskit.models import SpectralPDE
from bayeskit.pde import PDE, Dirichlet, Initial, Neumann, Periodic

POINTS = 40
TEST = np.linspace(0.0, 1.0, 41)
BOX = {"x": (0.0, 1.0), "y": (0.0, 1.0)}


def solve(residual, conditions, box=BOX, points=POINTS, **options):
    model = SpectralPDE(PDE(residual, box, conditions), grid=dict.fromkeys(box, points))
    return bk.infer(model, None, **options)


def relative_error(posterior, truth, dims=2, points=TEST, **options):
    names = "xyz"[:dims]
    found = posterior.predict(dict.fromkeys(names, points), **options).mean
    expected = truth(*np.meshgrid(*[points] * dims, indexing="ij"))
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def product(x, y):
    return np.sin(14 * x) * np.cos(11 * y) + x * y


def faces(truth, dims="xy"):
    return tuple(Dirichlet(dim, end, truth) for dim in dims for end in (0.0, 1.0))


def poisson(u, x, y):
    return u.d("x", 2) + u.d("y", 2) + 317.0 * (product(x, y) - x * y)


@pytest.fixture(scope="module")
def posterior():
    return solve(poisson, faces(product))


def test_poisson_equals_the_closed_form(posterior):
    error = relative_error(posterior, product)
    assert error < 1e-8
    assert error <= 30 * posterior.residual
    mixed = {"x": 1, "y": 1}
    truth = lambda x, y: -154 * np.cos(14 * x) * np.sin(11 * y) + 1.0  # noqa: E731
    assert relative_error(posterior, truth, derivative=mixed) < 1e-7
    found = posterior.predict({"x": TEST, "y": TEST[:5]})
    assert found.mean.shape == found.variance.shape == (41, 5)
    assert found.dims == ("x", "y")


def test_spectra_by_dimension():
    truth = lambda x, y: np.sin(40 * x) * np.cos(30 * y)  # noqa: E731
    found = solve(lambda u, x, y: u.d("x", 2) + u.d("y", 2) + 2500.0 * truth(x, y), faces(truth))
    for dim, frequency in (("x", 40.0), ("y", 30.0)):
        assert abs(found.spectrum(dim).peaks[0] - frequency / (2 * np.pi)) < 0.1


def test_draws_trees_and_files(posterior, tmp_path):
    draws = posterior.sample(0, 2000)["solution"]
    deviation = np.sqrt(posterior.variance["solution"])
    inside = np.abs(draws - posterior.mean["solution"]) < 5 * deviation + 1e-14
    assert inside.mean() > 0.999
    np.testing.assert_allclose(draws.std(axis=0), deviation, rtol=0.15, atol=1e-14)
    tree = posterior.to_datatree(num_draws=5, predictions={"x": [0.1], "y": [0.2, 0.7]})
    predicted = tree["predictions"]["solution"]
    assert predicted.dims == ("chain", "draw", "x", "y")
    expected = posterior.predict({"x": [0.1], "y": [0.2, 0.7]}).mean
    np.testing.assert_allclose(predicted[0, 0], expected, atol=1e-7)
    posterior.save(tmp_path / "posterior.nc")
    again = bk.load(tmp_path / "posterior.nc", posterior.model)
    np.testing.assert_array_equal(again.predict().mean, posterior.predict().mean)


def test_wave_equation_from_initial_data():
    truth = lambda x, t: np.sin(3 * np.pi * x) * np.cos(3 * np.pi * t)  # noqa: E731
    found = solve(
        lambda u, x, y: u.d("y", 2) - u.d("x", 2),
        [*faces(truth, "x"), Initial("y", truth), Initial("y", 0.0, order=1)],
    )
    assert relative_error(found, truth) < 1e-8


def test_advection_from_inflow():
    truth = lambda x, t: np.sin(x - 20 * t)  # noqa: E731
    found = solve(
        lambda u, x, y: 20.0 * u.d("x") + u.d("y"),
        [Dirichlet("x", 0.0, truth), Initial("y", truth)],
    )
    assert relative_error(found, truth) < 1e-8


@pytest.mark.full
def test_growth_beyond_all_numbers_is_not_an_answer():
    """The field of some bands grows to sizes whose squares are infinite: it explains anything."""
    truth = lambda x, t: np.sin(9 * x - 2 * t)  # noqa: E731
    source = lambda x, t: 7 * np.cos(9 * x - 2 * t) - 35 * truth(x, t)  # noqa: E731
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = solve(
            lambda u, x, y: u.d("y") + u.d("x") - 35 * u() - source(x, y),
            [Dirichlet("x", 0.0, truth), Initial("y", truth)],
            points=64,
            method=bk.inference.EM(max_iterations=20),
        )
    assert any("leave the solution open" in str(each.message) for each in caught)
    assert found.residual > 1


def test_nonlinear_equation_with_mixed_derivatives_and_varying_coefficients():
    def truth(x, y):
        return np.sin(2 * np.pi * x) * np.cos(5 * y)

    def source(x, y):
        value, slopes = truth(x, y), -10 * np.pi * np.cos(2 * np.pi * x) * np.sin(5 * y)
        diffusion = -(1 + y) * ((2 * np.pi) ** 2 + 25) * value
        return diffusion + 0.4 * slopes + np.sin(value)

    found = solve(
        lambda u, x, y: (
            (1 + y) * (u.d("x", 2) + u.d("y", 2))
            + 0.4 * u.d(x=1, y=1)
            + jnp.sin(u())
            - source(x, y)
        ),
        [
            Periodic("x"),
            Dirichlet("y", 0.0, truth),
            Neumann("y", 1.0, lambda x, y: -5 * np.sin(2 * np.pi * x) * np.sin(5 * y)),
        ],
    )
    error = relative_error(found, truth)
    assert found.convergence.converged
    assert error < 1e-8
    assert error <= 30 * found.residual


def test_three_dimensions():
    truth = lambda x, y, z: np.sin(4 * x) * np.cos(3 * y) * np.exp(z)  # noqa: E731
    found = solve(
        lambda u, x, y, z: u.d("x", 2) + u.d("y", 2) + u.d("z", 2) + 24.0 * truth(x, y, z),
        faces(truth, "xyz"),
        {**BOX, "z": (0.0, 1.0)},
        24,
    )
    assert relative_error(found, truth, 3, TEST[::8]) < 1e-7


@pytest.mark.parametrize("size", [1e-6, 1e6])
def test_units_of_the_box_do_not_matter(posterior, size):
    found = solve(
        lambda u, x, y: (
            u.d("x", 2)
            + u.d("y", 2)
            + 317.0 / size**2 * (product(x / size, y / size) - x * y / size**2)
        ),
        tuple(
            Dirichlet(dim, end, lambda x, y: product(x / size, y / size))
            for dim in "xy"
            for end in (0.0, size)
        ),
        dict.fromkeys("xy", (0.0, size)),
    )
    expected = posterior.predict({"x": TEST, "y": TEST}).mean
    found = found.predict({"x": size * TEST, "y": size * TEST}).mean
    np.testing.assert_allclose(found, expected, atol=1e-8)


def test_zero_and_lines_are_exact():
    for slope in (0.0, 3.0):
        line = lambda x, y, b=slope: b * (x - 2 * y + 1)  # noqa: E731
        found = solve(lambda u, x, y: u.d("x", 2) + u.d("y", 2), faces(line))
        x, y = np.meshgrid(TEST, TEST, indexing="ij")
        found = found.predict({"x": TEST, "y": TEST}).mean
        np.testing.assert_allclose(found, line(x, y), atol=1e-12)


def contradictory(x, y):
    return np.where(x == 0.0, 1.0, 0.0) + 0.0 * y


def bump(x, y):
    return np.sin(np.pi * x) * np.sin(np.pi * y)


def narrow(x, y):
    """A spike between the points at which the solver reads the source."""
    return bump(x, y) + 1e3 * np.exp(-(((x - 0.4935) ** 2 + (y - 0.4935) ** 2) / 2e-3**2))


FLAT = tuple(Neumann(dim, end, 0.0) for dim in "xy" for end in (0.0, 1.0))


def spike(x, y):
    """A bump on one face, narrower than the distance between nodes."""
    return x * (1 - x) + np.exp(-(((x - 0.5 - 1e-3) / 0.004) ** 2)) * (y == 0.0)


@pytest.mark.parametrize(
    ("residual", "conditions", "message"),
    [
        (poisson, faces(contradictory), "conditions are met to"),
        (lambda u, x, y: u.d("x", 2) + u.d("y", 2) + 2.0, faces(spike), "conditions are met to"),
        (poisson, faces(product)[:3], "1 conditions are missing"),
        (lambda u, x, y: u.d("x", 2) + u.d("y", 2) - np.sign(x - y), faces(product), "not smooth"),
        (lambda u, x, y: u.d("x", 2) + u.d("y", 2) - narrow(x, y), faces(0.0), "source is -"),
        *[
            (lambda u, x, y, f=f: u.d("x", 2) + u.d("y", 2) - f, FLAT, "leave the solution open")
            for f in (0.0, 1.0)
        ],
        *[
            (
                lambda u, x, y, f=f: u.d("x", 2) + u.d("y", 2) + 2 * np.pi**2 * u - f * bump(x, y),
                faces(0.0),
                "leave the solution open",
            )
            for f in (0.0, 1.0)
        ],
        *[
            (
                lambda u, x, y, w=w: (
                    u.d("x", 2) + u.d("y", 2) + (w**2 + 9) * np.sin(w * x) * np.sin(3 * y)
                ),
                faces(lambda x, y, w=w: np.sin(w * x) * np.sin(3 * y)),
                "hardly resolves|grid is too coarse",
            )
            for w in (110.0, 400.0)
        ],
    ],
)
def test_doubtful_answers_are_warned_about(residual, conditions, message):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        solve(residual, conditions)
    assert any(re.search(message, str(each.message)) for each in caught), [*map(str, caught)]


def test_conditions_stated_twice_are_refused():
    with pytest.raises(ValueError, match="along 'y' say the same twice"):
        solve(poisson, (*faces(product), Initial("y", 0.0)))


def test_an_equation_that_vanishes_on_average_is_reported():
    """Of mixed derivatives alone nothing is left for the solver to start from."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        solve(
            lambda u, x, y: u.d(x=1, y=1) - 1.0,
            [Dirichlet("x", 0.0, product), Dirichlet("y", 0.0, product)],
            method=bk.inference.EM(max_iterations=2),
        )
    assert any("coefficients of mean zero" in str(each.message) for each in caught)
