"""The paper's algorithm written entry by entry has the loss of the structured one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bayeskit as bk
from bayeskit.models.spectral_pde import joint
from benchmarks.baselines.gp_hm import GPHM, adam
from benchmarks.spectral_pde.paper import as_parameters, as_unknowns

POINTS, COMPONENTS, LENGTH = 12, 5, 5.0


def cube(value):
    return value * (value**2 - 1)


def line(x):
    return np.sin(2 * x) + 0.3 * x


def plane(x, y):
    return np.sin(2 * x) * np.cos(y) + 0.3 * y


TRUTHS = {
    1: (line, lambda x: -4 * np.sin(2 * x)),
    2: (plane, lambda x, y: -5 * (plane(x, y) - 0.3 * y)),
}


def both(dims, family):
    """Our prepared problem, and the baseline's, of an Allen–Cahn equation on [0, 2 π]."""
    truth, laplacian = TRUTHS[dims]
    names = "xy"[:dims]

    def residual(u, *place):
        source = laplacian(*place) + cube(truth(*place))
        return sum(u.d(name, 2) for name in names) + cube(u()) - source

    conditions = [bk.pde.Dirichlet(name, end, truth) for name in names for end in (0.0, LENGTH)]
    pde = bk.pde.PDE(
        residual if dims == 2 else lambda u, x: residual(u, x) + 0.0,
        dict.fromkeys(names, (0.0, LENGTH)),
        conditions,
    )
    kernel = bk.models.SpectralMixture(COMPONENTS, family)
    model = bk.models.SpectralPDE(pde, grid=dict.fromkeys(names, POINTS), kernel=kernel)
    points = np.linspace(0.0, LENGTH, POINTS)
    mesh = np.meshgrid(*[points] * dims, indexing="ij")
    values = truth(*mesh)
    faces = tuple(np.take(values, end, axis=k) for k in range(dims) for end in (0, -1))
    source = laplacian(*mesh) + cube(values)
    return model.prepare(None), GPHM((points,) * dims, source, faces, family, cube)


def somewhere(start):
    """Parameters away from the start's symmetries."""
    generator = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf + 0.3 * generator.normal(size=np.shape(leaf))), start
    )


@pytest.mark.parametrize(
    ("dims", "family"),
    [
        (1, "gaussian"),
        (2, "student-t"),
        pytest.param(1, "student-t", marks=pytest.mark.full),
        pytest.param(2, "gaussian", marks=pytest.mark.full),
    ],
)
def test_loss_and_gradient_equal_the_structured_ones(dims, family):
    with jax.enable_x64(True):
        prepared, baseline = both(dims, family)
        parameters = somewhere(baseline.start(COMPONENTS, 0.5))
        box = (LENGTH,) * dims

        def structured(given):
            unknowns = as_unknowns(box, family, given)
            return -joint.log_joint(prepared.data, prepared.model.kernel, unknowns)

        ours = jax.jit(jax.value_and_grad(structured))
        expected, gradient = jax.jit(jax.value_and_grad(baseline.loss))(parameters)
        found, own = ours(parameters)
        np.testing.assert_allclose(found, expected, rtol=1e-9)
        for a, b in zip(jax.tree.leaves(own), jax.tree.leaves(gradient), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * np.max(np.abs(b)))
        back = as_parameters(box, family, as_unknowns(box, family, parameters))
        jax.tree.map(np.testing.assert_allclose, back, parameters)


def test_baseline_descends_and_predicts():
    with jax.enable_x64(True):
        _, baseline = both(1, "gaussian")
        init, step = adam(baseline.loss)
        parameters = jax.tree.map(jnp.asarray, baseline.start(COMPONENTS, 0.5))
        parameters["values"] = jnp.asarray(line(baseline.grids[0]))
        state, losses = init(parameters), []
        for _ in range(50):
            parameters, state, loss = step(parameters, state)
            losses.append(float(loss))
        assert losses[-1] < losses[0]
        points = np.linspace(0.0, LENGTH, 50)
        found = baseline.predict(parameters, (points,))
        assert np.linalg.norm(found - line(points)) < 0.1 * np.linalg.norm(line(points))
