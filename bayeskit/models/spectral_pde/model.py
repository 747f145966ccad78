r"""Solutions of partial differential equations as Gaussian processes with a learned spectrum.

.. math::
    u \sim GP(0, \kappa_\theta), \qquad
    0 = R[u](x_n) + \epsilon_n, \qquad
    g_c = B_c[u] + \epsilon_c, \qquad \epsilon \sim N(0, \sigma^2)

with a spectral-mixture kernel :math:`\kappa_\theta`, equation :math:`R` at collocation points
:math:`x_n` and conditions :math:`B_c`. S. Fang, M. Cooley, D. Long, S. Li, R. Kirby, S. Zhe,
"Solving high frequency and multi-scale PDEs with Gaussian processes", ICLR 2024.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from bayeskit.models.base import Prepared, SupportsEM, key_of_lane
from bayeskit.models.spectral_pde import frame, solve
from bayeskit.models.spectral_pde.approximation import (
    GaussianSolution,
    Places,
    SpectralPDEPosterior,
)
from bayeskit.models.spectral_pde.spectrum import SpectralMixture, band
from bayeskit.pde import residual as residuals
from bayeskit.pde.problem import PDE
from bayeskit.results import Labels, PredictionTarget
from bayeskit.validation import REAL, check_integer, double_array

# Bands that compete, as shares of the highest frequency that the points resolve.
_BANDS = (0.1, 0.2, 0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65)
_FEWEST_POINTS = 8
_LARGE_RESIDUAL, _LARGE_MISFIT, _LARGE_DEVIATION, _LARGE_SHARE = 1e-3, 1e-6, 0.1, 0.01
_COMPONENTS = ("weights", "frequencies", "widths")
_NEAR_NYQUIST = 0.8  # of Nyquist's frequency


class Diagnostics(NamedTuple):
    """What the caveats are read from."""

    residual: Any
    misfit: Any
    deviation: Any
    near_nyquist: Any


class SpectralPDE(SupportsEM):
    """Solution of a differential equation under a spectral-mixture Gaussian process.

    Parameters
    ----------
    pde : PDE
        In one dimension so far.
    grid : mapping
        Number of collocation points by dimension, at least 8: Gauss–Legendre points. The highest
        frequency of the solution should stay below two thirds of ``(points - 1) / 2`` cycles a
        length of the domain.
    kernel : SpectralMixture, optional
        Prior of the solution.

    Raises
    ------
    TypeError, ValueError
        If ``grid`` does not name the dimensions of ``pde``, or its numbers are too small.

    Notes
    -----
    There are no measurements so far: ``bk.infer(model, None)``. Sites: ``solution`` (points,),
    ``coefficients`` of the waves, ``equation_noise`` and, for a dimension ``x``, ``weights_x``,
    ``frequencies_x``, ``widths_x`` (components,), in cycles per unit of ``x``.

    EM's step ``"residual"`` tries nine bands of frequencies and keeps the one with the smallest
    residual between the collocation points, which needs no true solution; nonlinear equations are
    solved by Newton's iteration under each. One solve of a linear equation costs O(N³) for N
    points. Always in double precision.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import numpy as np
    >>> import bayeskit as bk
    >>> solution = lambda x: np.sin(20 * x)
    >>> pde = bk.pde.PDE(
    ...     residual=lambda u, x: u.d("x", 2) + 400 * solution(x),
    ...     domain={"x": (0.0, 1.0)},
    ...     conditions=[bk.pde.Dirichlet("x", 0.0, solution), bk.pde.Dirichlet("x", 1.0, solution)],
    ... )
    >>> posterior = bk.infer(bk.models.SpectralPDE(pde, grid={"x": 50}), None)
    >>> points = np.linspace(0, 1, 101)
    >>> error = posterior.predict({"x": points}).mean - solution(points)
    >>> bool(np.max(np.abs(error)) < 1e-8)
    True
    """

    pde: PDE | None
    dims: tuple[str, ...] = eqx.field(static=True)
    points: tuple[int, ...] = eqx.field(static=True)
    kernel: SpectralMixture
    estimates: Any

    def __init__(self, pde, *, grid, kernel=None):
        if not isinstance(pde, PDE):
            raise TypeError(f"pde must be a bayeskit.pde.PDE, got {type(pde).__name__}")
        if len(pde.dims) > 1:
            raise ValueError(
                f"pde has the dimensions {list(pde.dims)}; SpectralPDE solves equations in one"
            )
        if not isinstance(grid, Mapping):
            raise TypeError(f"grid must be a mapping such as {{'x': 400}}, got {grid!r}")
        if set(grid) != set(pde.dims):
            raise ValueError(f"grid names {list(grid)}; the dimensions are {list(pde.dims)}")
        self.pde, self.dims = pde, pde.dims
        self.points = tuple(
            check_integer(f"grid[{dim!r}]", grid[dim], _FEWEST_POINTS) for dim in pde.dims
        )
        kernel = SpectralMixture() if kernel is None else kernel
        if not isinstance(kernel, SpectralMixture):
            raise TypeError(f"kernel must be a SpectralMixture, got {type(kernel).__name__}")
        self.kernel = kernel
        self.estimates = None

    def __repr__(self):
        grid = dict(zip(self.dims, self.points, strict=True))
        return f"{type(self).__name__}({self.pde!r}, grid={grid}, kernel={self.kernel!r})"

    @property
    def default_method(self):
        """Expectation maximisation."""
        from bayeskit.inference.ascent import EM

        return EM(max_iterations=100)

    @property
    def posterior_class(self):
        """The family's own result, with ``residual``, ``spectrum`` and derivatives."""
        return SpectralPDEPosterior

    def prepare(self, data, *, batch=False):
        """See :class:`~bayeskit.models.base.AbstractModel`."""
        if batch:
            raise TypeError("infer_batch needs measurements, which SpectralPDE does not take yet")
        if data is not None:
            raise TypeError(
                f"data must be None: SpectralPDE takes no measurements yet, got "
                f"{type(data).__name__}"
            )
        pde = self.pde
        assert pde is not None, "only prepared models are without"
        (dim,), (count,), ((lower, upper),) = self.dims, self.points, pde.bounds
        length = upper - lower
        nodes, weights = frame.nodes(count)
        check = frame.check_points(nodes)

        def traced(points):
            return residuals.trace(pde, {dim: lower + length * points}, orders)

        orders = residuals.derivatives_of(pde, {dim: lower + length * nodes})
        at_nodes = traced(nodes)
        uniform = traced(np.linspace(0.0, 1.0, count))
        source, _ = uniform.linearised(jnp.zeros((len(orders), count)))
        places, terms, values = _conditions(pde)
        problem = solve.Problem(
            nodes,
            weights,
            check,
            lower,
            length,
            at_nodes,
            traced(check),
            (places - lower) / length,
            terms,
            values,
            _share_near_nyquist(np.asarray(source)),
        )
        problem = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), problem)
        labels = Labels(
            dims={
                "solution": (dim,),
                "coefficients": ("feature",),
                "equation_noise": (),
                **{
                    f"{name}_{dim}": ("component",) for name in ("weights", "frequencies", "widths")
                },
            },
            coords={dim: lower + length * nodes},
            observed="solution",
        )
        # The user's functions would tie a compiled program to them.
        prepared = eqx.tree_at(
            lambda m: (m.pde, m.estimates), self, (None, None), is_leaf=lambda leaf: leaf is None
        )
        tables = {"constant_data": {"source": ((dim,), np.asarray(_source(at_nodes, count)))}}
        return Prepared(prepared, problem, labels, tables)

    def sample_prior(self, key):
        """The equation is no data that could be drawn: raises ``ValueError``."""
        raise ValueError(
            "SpectralPDE has no measurements that could be simulated: its equation is given"
        )

    def start_from(self, posterior, data, labels):
        """Coefficients to start Newton's iteration from."""
        found = posterior.approximation.coefficients
        waves = frame.frequencies(data.nodes.shape[0])
        expected = frame.features(data.nodes[:1], waves, 0).shape[1]
        if found.shape[0] != expected:
            raise ValueError(
                f"initial does not fit the model: its grid has other points ({found.shape[0]} "
                f"coefficients; expected {expected})"
            )
        return found

    def prediction_target(self, inputs, labels):
        """At points by dimension; with an order of the derivative beside them, as a pair."""
        inputs, order = inputs if isinstance(inputs, tuple) else (inputs, 0)
        (dim,) = self.dims
        lower, length = self._box(labels)
        if inputs is None:
            points, shown = frame.nodes(self.points[0])[0], labels.coords[dim]
        else:
            if not isinstance(inputs, Mapping):
                raise TypeError(
                    f"inputs must be a mapping such as {{{dim!r}: points}}, got "
                    f"{type(inputs).__name__}"
                )
            if set(inputs) != {dim}:
                raise ValueError(f"inputs names {list(inputs)}; the dimensions are [{dim!r}]")
            shown = double_array(f"inputs[{dim!r}]", inputs[dim], REAL)
            if shown.ndim != 1 or not shown.size:
                raise ValueError(f"inputs[{dim!r}] must be (points,), got {shown.shape}")
            points = (shown - lower) / length
            slack = 1e-9
            outside = np.flatnonzero((points < -slack) | (points > 1 + slack))
            if outside.size:
                raise ValueError(
                    f"inputs[{dim!r}] has {outside.size} points outside the domain "
                    f"[{lower:.6g}, {lower + length:.6g}], the first {shown[outside[0]]:.6g}"
                )
        return PredictionTarget((dim,), {dim: shown}, Places(jnp.asarray(points), order))

    def _box(self, labels):
        """Lower end and length of the domain, from the collocation points."""
        (dim,) = self.dims
        nodes, _ = frame.nodes(self.points[0])
        first, last = labels.coords[dim][0], labels.coords[dim][-1]
        length = (last - first) / (nodes[-1] - nodes[0])
        return first - length * nodes[0], length

    def sample_data(self, data, key, sites, inputs):
        """The drawn solution itself: there is no noise."""
        inputs = Places(data.nodes, 0) if inputs is None else inputs
        waves = frame.frequencies(data.nodes.shape[0])
        features = frame.features(inputs.points, waves, inputs.order)
        return features @ sites["coefficients"] / data.length**inputs.order

    def caveats(self, diagnostics):
        """Everything that makes an answer doubtful, from what was found without the solution."""
        found = []
        if diagnostics.near_nyquist > _LARGE_SHARE:
            found.append(
                f"{diagnostics.near_nyquist:.0%} of the source's energy is at frequencies that the "
                "grid hardly resolves, or has been folded there: take more points"
            )
        if diagnostics.misfit > _LARGE_MISFIT:
            found.append(
                f"the conditions are met to {diagnostics.misfit:.1e} only: they contradict each "
                "other or the equation, or are too many"
            )
        if diagnostics.residual > _LARGE_RESIDUAL:
            found.append(
                f"between the collocation points the equation holds to {diagnostics.residual:.1e} "
                "only: the grid is too coarse, or source or solution are not smooth"
            )
        if diagnostics.deviation > _LARGE_DEVIATION:
            found.append(
                "equation and conditions leave the solution open (posterior deviation "
                f"{diagnostics.deviation:.1e} of its size): conditions are missing, or the "
                "homogeneous equation has a solution of its own"
            )
        return tuple(found)

    # Expectation maximisation

    @property
    def m_steps(self):
        """Choice of the band by the residual between the collocation points."""
        return ("residual",)

    def check_em(self, method):
        """Nothing is pruned."""
        if method.prune:
            raise ValueError(f"prune={method.prune} is not for SpectralPDE: nothing is pruned")

    def _components(self, data, index):
        """A candidate spectrum, in cycles per box."""
        highest = 0.5 * (data.nodes.shape[0] - 1)
        return band(self.kernel, jnp.asarray(_BANDS)[index] * highest)

    def em_init(self, data, key, lane, initial, m_step):
        """Zero everywhere, other lanes a draw from the prior of the narrowest band."""
        count = len(_BANDS)
        scales = self._scales(data, 0)
        drawn = scales * jax.random.normal(key_of_lane(key, lane), scales.shape)
        start = jnp.where(lane == 0, jnp.zeros_like(drawn) if initial is None else initial, drawn)
        return solve.Candidates(
            jnp.ones(count),
            jnp.full(count, jnp.finfo(start.dtype).min),
            jnp.ones(count),
            jnp.broadcast_to(start, (count, *start.shape)),
            jnp.zeros(()),
        )

    def _scales(self, data, index):
        return solve.scales_of(self.kernel, self._components(data, index), data.nodes.shape[0])

    def em_step(self, data, parameters, m_step, prune):
        """Solve under the next band; when all were tried, go on with the best one's iteration."""
        index = jnp.where(
            parameters.trials < len(_BANDS),
            parameters.trials.astype(int),
            solve.chosen(parameters),
        )
        ops, scales = solve.operators(data), self._scales(data, index)
        coefficients, step = solve.solve(data, ops, scales, parameters.coefficients[index])
        found = solve.Candidates(
            jnp.maximum(*solve.residuals(data, ops, coefficients)),
            solve.covariance(data, ops, scales, coefficients).log_evidence,
            step,
            coefficients,
            parameters.trials,
        )
        usable = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in found]))
        renewed = jax.tree.map(
            lambda rows, new: rows.at[index].set(jnp.where(usable, new, rows[index])),
            parameters._replace(trials=jnp.zeros(len(_BANDS))),
            found,
        )
        objective = self.em_objective(data, parameters)
        return renewed._replace(trials=parameters.trials + 1.0), objective

    def em_change(self, data, new, old):
        """Newton's last step under the chosen band; at least one while bands are left to try."""
        step = new.steps[solve.chosen(new)]
        return jnp.where(new.trials < len(_BANDS), jnp.maximum(step, 1.0), step)

    def em_objective(self, data, parameters):
        """Minus the logarithm of the smallest residual between the collocation points."""
        smallest = jnp.min(parameters.residuals)
        return -jnp.log(jnp.maximum(smallest, jnp.finfo(smallest.dtype).tiny))

    def em_finish(self, data, parameters):
        """The solution, its covariance, and the evidence of equation and conditions."""
        best = solve.chosen(parameters)
        ops, scales = solve.operators(data), self._scales(data, best)
        coefficients = parameters.coefficients[best]
        spread = solve.covariance(data, ops, scales, coefficients)
        residual, misfit = solve.residuals(data, ops, coefficients)
        approximation = GaussianSolution(
            coefficients,
            scales,
            spread.factor,
            self._components(data, best),
            jnp.maximum(residual, misfit),
            spread.noise,
            spread.amplitude,
        )
        mean, variance = approximation._moments_at(ops.value)
        power = jnp.mean(mean**2)
        deviation = jnp.sqrt(jnp.mean(variance) / jnp.where(power > 0, power, 1.0))
        diagnostics = Diagnostics(
            residual, misfit, jnp.where(power > 0, deviation, 0.0), data.near_nyquist
        )
        return approximation, spread.log_evidence, diagnostics


def _conditions(pde):
    """Places (C, T), weights of value and slope (C, T, 2) and values (C,) of all conditions."""
    rows = [
        (condition.dim, terms, value)
        for condition in pde.conditions
        for terms, value in condition.functionals
    ]
    width = max((len(terms) for _, terms, _ in rows), default=1)
    places = np.full((len(rows), width), pde.bounds[0][0])
    weights = np.zeros((len(rows), width, 2))
    values = np.zeros(len(rows))
    for c, (dim, terms, value) in enumerate(rows):
        for t, term in enumerate(terms):
            places[c, t] = pde.place(dim, term.place)
            weights[c, t, term.order] = term.weight
        values[c] = _value_at(f"conditions[{c}]", value, places[c, 0])
    return places, weights, values


def _value_at(name, value, place):
    found = double_array(f"value of {name}", value(place) if callable(value) else value, REAL)
    if found.size != 1:
        raise ValueError(f"value of {name} must be one number at a point, got shape {found.shape}")
    return float(found.reshape(()))


def _source(residual, count):
    return residual.linearised(jnp.zeros((len(residual.orders), count)))[0]


def _share_near_nyquist(source):
    """Share of a windowed source's energy in the highest frequencies; zero without a source."""
    energy = np.abs(np.fft.rfft(source * np.hanning(len(source)))) ** 2
    total = energy.sum()
    return energy[int(_NEAR_NYQUIST * len(energy)) :].sum() / total if total > 0 else 0.0
