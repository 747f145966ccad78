r"""Solutions of partial differential equations as Gaussian processes with a learned spectrum.

.. math::
    u \sim GP(0, \kappa_\theta), \qquad
    0 = R[u](x_n) + \epsilon_n, \qquad
    g_c = B_c[u] + \epsilon_c, \qquad \epsilon \sim N(0, \sigma^2)

with a spectral-mixture kernel :math:`\kappa_\theta`, equation :math:`R` at collocation points
:math:`x_n` and conditions :math:`B_c`. S. Fang, M. Cooley, D. Long, S. Li, R. Kirby, S. Zhe,
"Solving high frequency and multi-scale PDEs with Gaussian processes", ICLR 2024.
"""

import math
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax

from bayeskit.linalg import kronecker_multiply
from bayeskit.models import priors
from bayeskit.models.base import (
    Prepared,
    SupportsEM,
    SupportsMAP,
    SupportsMCMC,
    SupportsMessages,
    key_of_lane,
)
from bayeskit.models.spectral_pde import bands, evidence, joint, learning
from bayeskit.models.spectral_pde import hyper as hypers
from bayeskit.models.spectral_pde import problem as problems
from bayeskit.models.spectral_pde.approximation import (
    DenseSolution,
    JointSolution,
    Places,
    SpectralPDEPosterior,
)
from bayeskit.models.spectral_pde.basis import derivative
from bayeskit.models.spectral_pde.learned import EVERYTHING, LearnedSolution
from bayeskit.models.spectral_pde.solver import diagnosed
from bayeskit.models.spectral_pde.spectrum import SpectralMixture
from bayeskit.pde.problem import PDE
from bayeskit.pde.sensors import Sensors
from bayeskit.results import Labels, PredictionTarget
from bayeskit.validation import REAL, check_integer, check_positive, double_array

_FEWEST_POINTS = 8
_LARGE_RESIDUAL, _LARGE_MISFIT, _LARGE_DEVIATION, _LARGE_SHARE = 1e-3, 1e-6, 1e-3, 0.01
_COMPONENTS = ("weights", "frequencies", "widths")
_LARGE_NOISE, _LARGE_SENSOR_NOISE = 0.05, 0.2  # of the equation's terms, of what sensors measure
_MOST_WAVES = 3000  # of products over dimensions, where their weights are integrated out
_CHAIN_SPREAD = 0.1  # of the logarithms of chains' starts
# Weights in units of the field's power, widths in cycles per box, noise in units: see the class.
SPECTRUM_PRIOR = {
    "weights": priors.ScaledByData(dist.LogNormal(math.log(1e-6), 4.0)),
    "slow": priors.ScaledByData(dist.LogNormal(math.log(3e-3), 2.0)),
    "widths": priors.ScaledByData(dist.LogNormal(math.log(0.5), 1.0)),
}
NOISE_PRIOR = priors.ScaledByData(dist.LogNormal(math.log(1e-3), 3.0))


class SpectralPDE(SupportsEM, SupportsMAP, SupportsMessages, SupportsMCMC):
    """Solution of a differential equation under a spectral-mixture Gaussian process.

    Parameters
    ----------
    pde : PDE
        In one to three dimensions.
    grid : mapping
        Number of collocation points by dimension, at least 8: Gauss–Legendre points. The highest
        frequency of the solution should stay below 0.55 of ``(points - 1) / 2`` cycles a length
        of the domain.
    kernel : SpectralMixture, optional
        Prior of the solution. Where the spectrum is learned fewer components than its 30 are
        faster and fit less noise.
    equation_noise : float, optional
        Known deviation of independent errors of the equation at the collocation points, in its
        units: of a source that was measured. Learned by default, where anything is.
    spectrum_prior : mapping, optional
        Priors of the components where they are learned: ``"weights"`` (the power of each),
        ``"slow"`` (the power of the first of several components, which stays below half a cycle
        a length of the box)
        and ``"widths"`` (cycles per unit), each a positive NumPyro distribution,
        :class:`ScaledByData` or ``None`` (flat in the logarithm); what is not given has its
        default. Frequencies are uniform over the band that the grid resolves. In several
        dimensions weights are relative in all but the first.
    noise_prior : distribution, ScaledByData or None
        Of the deviations of the equation's and of the sensors' errors.

    Raises
    ------
    TypeError, ValueError
        If ``grid`` does not name the dimensions of ``pde``, or its numbers are too small; if a
        prior is none.

    Notes
    -----
    Data: ``None``, or :class:`bayeskit.pde.Sensors`. Sites: ``solution`` (points, …),
    ``equation_noise``, ``measured`` (sensor,) (what sensors see, without their errors) and
    ``sensor_noise`` where it is learned, unknown coefficients by their names
    and, for every dimension ``x``, ``weights_x``, ``frequencies_x`` and ``widths_x``
    (components,), in cycles per unit of ``x``.

    EM's step ``"evidence"`` learns spectrum, noise and unknown coefficients by maximum evidence
    (L-BFGS; the solution is integrated out exactly, nonlinear equations being linearised at the
    field); ``"auto"`` takes it where there are measurements, unknown coefficients or noise by
    statement, else ``"residual"``. An evaluation costs O((N + K) K²) for N equations and
    measurements and K waves: 0.9 a collocation point in one dimension, products over several.
    Unknown coefficients have Laplace's approximation; :class:`bayeskit.inference.MCMC` has none,
    and integrates over everything.

    EM's step ``"residual"`` tries nine bands of frequencies and keeps the one with the smallest
    residual between the collocation points (of nearly equal ones in one dimension the most
    probable; in several the first that is good enough), which needs no true solution; nonlinear
    equations are solved by Newton's iteration under each. A linear solve under one band costs
    O(N³) for N points in one dimension and O(d N³ + d N^(d+1)) for N points in each of d. Always in
    double precision; several dimensions need a CPU where the operator is not symmetric (Schur
    forms).

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
    >>> posterior = bk.infer(bk.models.SpectralPDE(pde, grid={"x": 48}), None)
    >>> points = np.linspace(0, 1, 101)
    >>> error = posterior.predict({"x": points}).mean - solution(points)
    >>> bool(np.max(np.abs(error)) < 1e-8)
    True
    """

    pde: PDE | None
    dims: tuple[str, ...] = eqx.field(static=True)
    points: tuple[int, ...] = eqx.field(static=True)
    bounds: Any
    kernel: SpectralMixture
    equation_noise: float | None
    spectrum_prior: dict[str, Any]
    noise_prior: Any
    estimates: Any

    def __init__(
        self,
        pde,
        *,
        grid,
        kernel=None,
        equation_noise=None,
        spectrum_prior=None,
        noise_prior=NOISE_PRIOR,
    ):
        if not isinstance(pde, PDE):
            raise TypeError(f"pde must be a bayeskit.pde.PDE, got {type(pde).__name__}")
        if not isinstance(grid, Mapping):
            raise TypeError(f"grid must be a mapping such as {{'x': 400}}, got {grid!r}")
        if set(grid) != set(pde.dims):
            raise ValueError(f"grid names {list(grid)}; the dimensions are {list(pde.dims)}")
        self.pde, self.dims, self.bounds = pde, pde.dims, np.asarray(pde.bounds, float)
        self.points = tuple(
            check_integer(f"grid[{dim!r}]", grid[dim], _FEWEST_POINTS) for dim in pde.dims
        )
        kernel = SpectralMixture() if kernel is None else kernel
        if not isinstance(kernel, SpectralMixture):
            raise TypeError(f"kernel must be a SpectralMixture, got {type(kernel).__name__}")
        self.kernel = kernel
        self.equation_noise = (
            None if equation_noise is None else check_positive("equation_noise", equation_noise)
        )
        self.spectrum_prior = _checked_priors(spectrum_prior)
        self.noise_prior = priors.check_prior("noise_prior", noise_prior)
        self.estimates = None

    def __repr__(self):
        grid = dict(zip(self.dims, self.points, strict=True))
        return f"{type(self).__name__}({self.pde!r}, grid={grid}, kernel={self.kernel!r})"

    @property
    def default_method(self):
        """Expectation maximisation."""
        from bayeskit.inference.ascent import EM

        return EM(max_iterations=300)

    @property
    def posterior_class(self):
        """The family's own result, with ``residual``, ``spectrum`` and derivatives."""
        return SpectralPDEPosterior

    def prepare(self, data, *, batch=False):
        """See :class:`~bayeskit.models.base.AbstractModel`."""
        _check_sensors(data, batch)
        pde = self.pde
        assert pde is not None, "only prepared models are without"
        if len(self.dims) > 1 and jax.default_backend() != "cpu":
            raise NotImplementedError(
                "several dimensions need Schur forms, which JAX has on a CPU only: set "
                "JAX_PLATFORMS=cpu"
            )
        items = data.items() if isinstance(data, Sensors) and batch else data
        problem = problems.build(pde, self.points, self.kernel, items, self.equation_noise)
        if problem.stated.uncertain:
            self._check_size()
        first: Any = jax.tree.map(lambda leaf: leaf[0], problem) if batch else problem
        nodes = {
            dim: np.asarray(axis.lower + axis.length * axis.nodes)
            for dim, axis in zip(self.dims, first.axes, strict=True)
        }
        source, _ = problems.source_of(first.at_nodes, int(np.prod(self.points)))
        tables = _tables(self.dims, np.asarray(source).reshape(self.points), data, batch)
        labels = Labels(self._sites(problem), nodes, "solution" if data is None else "sensors")
        # The user's functions would tie a compiled program to them.
        prepared = eqx.tree_at(
            lambda m: (m.pde, m.estimates), self, (None, None), is_leaf=lambda leaf: leaf is None
        )
        return Prepared(prepared, problem, labels, tables)

    def _sites(self, problem):
        """Names of the dimensions of every site."""
        sites = {"solution": self.dims, "equation_noise": ()}
        if problem.measured is not None:
            sites |= {name: ("sensor",) for name in ("measured", "sensors")}
            sites["sensor_noise"] = ()
        for dim in self.dims:
            sites |= dict.fromkeys((f"{name}_{dim}" for name in _COMPONENTS), ("component",))
        taken = {*sites, *self.dims, "measured", "sensors", "sensor_noise", "sensor", "source"}
        taken |= {"component", "evidence", "batch", "chain", "draw"}
        taken |= {f"{name}_{dim}" for name in ("slow", "sensor") for dim in self.dims}
        for name in problem.unknowns:
            if name in taken:
                raise ValueError(f"an unknown is called {name!r}, as a part of the model is")
            sites[name] = ()
        return sites

    def sample_prior(self, key):
        """The equation is no data that could be drawn: raises ``ValueError``."""
        raise ValueError(
            "nothing can be drawn from the prior of a SpectralPDE: its equation, which the "
            "posterior knows as data, is given"
        )

    def start_from(self, posterior, data, labels):
        """Coefficients to start Newton's iteration from."""
        if posterior.model.points != self.points or posterior.model.dims != self.dims:
            raise ValueError(
                f"initial does not fit the model: its grid is "
                f"{dict(zip(posterior.model.dims, posterior.model.points, strict=True))}"
            )
        if posterior.approximation.chains is not None:
            raise ValueError("initial must not come from chains: there is not one spectrum")
        if isinstance(posterior.approximation, LearnedSolution):
            return posterior.approximation.hyper, posterior.approximation.coefficients
        if isinstance(posterior.approximation, DenseSolution):
            return posterior.approximation.coefficients
        values = jnp.asarray(posterior.mean["solution"])
        return data.axes[0].between @ values if len(self.dims) == 1 else values

    def prediction_target(self, inputs, labels):
        """At a grid of points by dimension; with orders of a derivative beside them, as a pair."""
        inputs, orders = inputs if isinstance(inputs, tuple) else (inputs, (0,) * len(self.dims))
        if inputs is None and labels.observed == "sensors":
            if any(orders):
                raise ValueError("derivative: at the sensors is what they measure; give inputs")
            return PredictionTarget(("sensor",), {}, None)
        if inputs is None:
            inputs = {dim: labels.coords[dim] for dim in self.dims}
        if not isinstance(inputs, Mapping):
            raise TypeError(
                f"inputs must be a mapping such as {{{self.dims[0]!r}: points}}, got "
                f"{type(inputs).__name__}"
            )
        if set(inputs) != set(self.dims):
            raise ValueError(f"inputs names {list(inputs)}; the dimensions are {list(self.dims)}")
        shown, scaled = {}, []
        for dim, (lower, upper) in zip(self.dims, np.asarray(self.bounds), strict=True):
            shown[dim] = double_array(f"inputs[{dim!r}]", inputs[dim], REAL)
            if shown[dim].ndim != 1 or not shown[dim].size:
                raise ValueError(f"inputs[{dim!r}] must be (points,), got {shown[dim].shape}")
            points = problems.scaled_points(f"inputs[{dim!r}]", shown[dim], lower, upper - lower)
            scaled.append(jnp.asarray(points))
        return PredictionTarget(self.dims, shown, Places(tuple(scaled), orders))

    def sample_data(self, data, key, sites, inputs):
        """Noisy measurements, or the drawn solution itself, interpolated between the nodes."""
        if inputs is not None:
            factors = [
                derivative(axis, points, 0) @ axis.between
                for axis, points in zip(data.axes, inputs.points, strict=True)
            ]
            return kronecker_multiply(factors, sites["solution"])
        if data.measured is None:
            return sites["solution"]
        seen, noise = sites["measured"], data.measured.noise
        noise = sites["sensor_noise"] if noise is None else noise
        return seen + noise * jax.random.normal(key, seen.shape, seen.dtype)

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
                f"the conditions are met to {diagnostics.misfit:.1e} only: the grid is too coarse, "
                "for a thin layer perhaps, or they contradict each other or the equation, or are "
                "too many"
            )
        if diagnostics.residual > _LARGE_RESIDUAL:
            found.append(
                f"between the collocation points the equation holds to {diagnostics.residual:.1e} "
                "only: the grid is too coarse, source or solution are not smooth (a layer, a "
                "kink), or the method stopped early"
            )
        if diagnostics.noise > _LARGE_NOISE:
            found.append(
                f"errors of {diagnostics.noise:.0%} of its terms have been learned for the "
                "equation: unless its source is that noisy, the grid is too coarse or the "
                "equation does not describe the measurements"
            )
        if diagnostics.sensor_noise > _LARGE_SENSOR_NOISE:
            found.append(
                f"errors of {diagnostics.sensor_noise:.0%} of what they measure have been learned "
                "for the sensors: unless they are that noisy, the ascent ended where equation and "
                "unknown coefficients do not describe them; try restarts=4, or state their noise"
            )
        if diagnostics.averaged_out:
            found.append(
                "all derivatives of the residual are mixed or have coefficients of mean zero: "
                "several dimensions are solved from these means, which say nothing; take "
                "m_step='evidence'"
            )
        if diagnostics.others:
            found.append(
                "the equation has several solutions: from another start Newton's iteration found "
                "another one, which initial= or restarts= can lead to"
            )
        if diagnostics.missing > 0:
            found.append(
                f"{int(diagnostics.missing)} conditions are missing: a dimension needs as many as "
                "the order of the equation in it, or the solution is left open"
            )
        elif diagnostics.deviation > _LARGE_DEVIATION:
            found.append(
                "equation and conditions leave the solution open (posterior deviation "
                f"{diagnostics.deviation:.1e} of its size): the grid is too coarse, or the "
                "homogeneous equation has a solution of its own, as far as grid and errors tell"
            )
        return tuple(found)

    # Expectation maximisation

    @property
    def m_steps(self):
        """By the residual between the points, or by the evidence; ``"auto"`` takes one of them."""
        return ("auto", "residual", "evidence")

    def check_em(self, method):
        """Nothing is pruned."""
        if method.prune:
            raise ValueError(f"prune={method.prune} is not for SpectralPDE: nothing is pruned")

    def _by_evidence(self, data, m_step):
        """Whether spectrum and noise are learned by the evidence."""
        if m_step == "residual" and data.stated.uncertain:
            raise ValueError(
                "m_step='residual' takes no measurements, noise or unknown coefficients; use "
                "'evidence' or 'auto'"
            )
        if m_step == "evidence":
            self._check_size()
        return m_step == "evidence" or (m_step == "auto" and data.stated.uncertain)

    def _check_size(self):
        count = evidence.number_of_waves(self.points)
        if count > _MOST_WAVES:
            grid = dict(zip(self.dims, self.points, strict=True))
            raise ValueError(
                f"grid={grid} needs {count} waves, whose weights are integrated out where there "
                f"are measurements, noise or unknown coefficients; at most {_MOST_WAVES}: take "
                "fewer points"
            )

    def _search(self, parameters):
        """What is ascended: the evidence, or a list of bands."""
        return learning if isinstance(parameters, learning.Learning) else bands

    def em_init(self, data, key, lane, initial, m_step):
        """A constant, zero if it may be; other lanes a draw from the prior of the narrowest band.

        Of the evidence: peaks of the source's spectrum; other lanes random spectra.
        """
        search = learning if self._by_evidence(data, m_step) else bands
        return search.begin(self, data, key, lane, initial)

    def em_step(self, data, parameters, m_step, prune):
        """Solve under the next band; when all were tried, go on with the best one's iteration.

        Of the evidence: a step of L-BFGS.
        """
        return self._search(parameters).step(self, data, parameters)

    def em_change(self, data, new, old):
        """Newton's last step under the chosen band; at least one while bands are left to try.

        Of the evidence: see :func:`~bayeskit.models.spectral_pde.learning.change`.
        """
        return self._search(new).change(self, data, new, old)

    def em_objective(self, data, parameters):
        """Minus the logarithm of the smallest residual between the points, or of the evidence."""
        return self._search(parameters).objective(self, data, parameters)

    def em_finish(self, data, parameters):
        """The solution, what is not known of it, and the evidence where there is one."""
        return self._search(parameters).finish(self, data, parameters)

    # Joint mode

    def check_map(self, method):
        """Any equation that has values at the ends; see :meth:`map_init`."""

    def map_init(self, data, key, lane, initial):
        """A constant, or the field of ``initial``; other lanes have random frequencies."""
        if data.stated.uncertain:
            raise ValueError(
                "MaximumAPosteriori takes no measurements, noise or unknown coefficients: use EM"
            )
        if isinstance(initial, tuple):
            raise ValueError("initial has a learned spectrum: MaximumAPosteriori starts from none")
        if data.uniform is None:
            raise ValueError(
                "MaximumAPosteriori takes the equation and its conditions at the ends of the "
                "domain, where these have no value: use EM"
            )
        largest = max(max(orders) for orders in data.uniform.residual.orders)
        if largest > 2 and self.kernel.family == "student-t":
            raise ValueError(
                f"the equation has order {largest}; under a student-t spectrum a field has two "
                "derivatives only"
            )
        if initial is None:
            values = jnp.full(self.points, data.level)
        else:
            factors = [
                derivative(axis, joint.grid(count), 0)
                for axis, count in zip(data.axes, self.points, strict=True)
            ]
            if len(self.dims) > 1:
                factors = [f @ a.between for f, a in zip(factors, data.axes, strict=True)]
            values = kronecker_multiply(factors, initial)
        unknowns = joint.start(data, self.kernel, values)
        keys = jax.random.split(key_of_lane(key, lane), len(self.dims))
        drawn = [
            joint.highest(count) * jax.random.uniform(each, (self.kernel.num_components,))
            for each, count in zip(keys, self.points, strict=True)
        ]
        other = joint.start(data, self.kernel, values, drawn)
        return optax.tree.where(lane == 0, unknowns, other)

    def map_objective(self, data, parameters):
        """Log joint density of values, spectra and precisions."""
        return joint.objective(data, self.kernel, parameters)

    def map_finish(self, data, parameters):
        """Laplace's approximation for the values, everything else plugged in; no evidence."""
        mode = joint.laplace(data, self.kernel, parameters, jax.random.key(0))
        parameters = parameters._replace(values=mode.values)
        components = tuple(joint.components_of(self.kernel, each) for each in parameters.spectra)
        power = jnp.mean(mode.values**2)
        zero = jnp.zeros(())
        solution = JointSolution(
            mode=mode,
            kernel=self.kernel,
            components=components,
            residual=zero,
            misfit=joint.largest_misfit(data, self.kernel, parameters, jnp.sqrt(power)),
            noise=jnp.exp(-0.5 * parameters.log_equation),
            power=power,
        )

        def at_check(k, order):
            orders = tuple(order if j == k else 0 for j in range(len(self.dims)))
            places = Places(tuple(axis.check for axis in data.axes), orders)
            return solution.interpolations(data, places)[k][0]

        residual = joint.residual_between(data, at_check, mode.values)
        solution = eqx.tree_at(lambda s: s.residual, solution, residual)
        mean, variance = solution.predict(None, False, None, data)
        found = diagnosed(data, mean, variance, residual, solution.misfit)
        # How well the conditions are met, and how sure the field is, has been learned.
        return solution, None, found._replace(misfit=zero, deviation=zero)

    # Messages: linearised equations, and normal distributions of all hyper-parameters

    def check_messages(self, method):
        """The weights of all waves must be tractable."""
        self._check_size()

    def messages_init(self, data, key, lane, initial):
        """As EM's step ``"evidence"``."""
        return learning.begin(self, data, key, lane, initial)

    def messages_sweep(self, data, messages, damping):
        """A step on spectrum, noise and unknowns, then the equation linearised at the new field."""
        return learning.step(self, data, messages, damping)

    def messages_change(self, data, new, old):
        """As for EM."""
        return learning.change(self, data, new, old)

    def messages_bound(self, data, messages):
        """Log evidence, and log prior density of the hyper-parameters."""
        return self.em_objective(data, messages)

    def messages_finish(self, data, messages):
        """The field and all hyper-parameters, with Laplace's evidence."""
        return learning.finish(self, data, messages, EVERYTHING)

    # Markov chain Monte Carlo: the solution is integrated out

    def check_mcmc(self, method):
        """Priors must be proper."""
        given = {f"spectrum_prior[{k!r}]": v for k, v in self.spectrum_prior.items()}
        for name, prior in {**given, "noise_prior": self.noise_prior}.items():
            if prior is None:
                raise ValueError(f"MCMC needs a proper prior: {name} is flat")
        self._check_size()

    def numpyro_model(self, data):
        """Spectrum, noise and unknown coefficients; the evidence is what they are judged by."""
        hyper = hypers.sampled(self, data)
        matrices = evidence.design(data)
        field = evidence.constant(data, self.points)
        if not data.at_nodes.linear:
            # The gradient leaves out how the field moves: the sampler stays exact all the same.
            fixed = jax.lax.stop_gradient(hyper)
            field = jax.lax.stop_gradient(evidence.mode(self.kernel, data, matrices, fixed, field))
        value = evidence.log_evidence(self.kernel, data, matrices, hyper, field)
        numpyro.factor("evidence", value)

    def mcmc_init(self, data, key, initial):
        """Peaks of the source's spectrum, shaken; or a fit by the evidence."""
        hyper = hypers.start(data) if initial is None else initial[0]
        return hypers.to_sites(self, data, hypers.shaken(key, hyper, _CHAIN_SPREAD))

    def mcmc_conditional(self, data, sites):
        """The field given spectrum, noise and unknown coefficients."""
        hyper = hypers.from_sites(self, data, sites)
        return learning.solution(self, data, hyper, evidence.constant(data, self.points))


def _check_sensors(data, batch):
    """Whether data are sensors, of one data set or several, or none."""
    if data is not None and not isinstance(data, Sensors):
        raise TypeError(f"data must be bayeskit.pde.Sensors or None, got {type(data).__name__}")
    if batch and (data is None or data.values.ndim != 2):
        raise ValueError("data: a batch needs Sensors with values (batch, n)")
    if not batch and data is not None and data.values.ndim > 1:
        raise ValueError(
            f"data: values must be (n,), one a point, got {data.values.shape}; batches are for "
            "infer_batch"
        )


def _tables(dims, source, data, batch):
    """Arrays of the result tree that are data: source, sensors and their places."""
    constant: dict[str, Any] = {}
    # Some equations are undefined for the field that is zero.
    if np.all(np.isfinite(source)):
        constant["source"] = (dims, source)
    if data is None:
        return {"constant_data": constant} if constant else {}
    lead = ("batch",) if batch else ()
    for dim in dims:
        points = data.points[dim]
        constant[f"sensor_{dim}"] = ((*lead[: points.ndim - 1], "sensor"), points)
    observed = {"sensors": ((*lead, "sensor"), data.values)}
    return {"constant_data": constant, "observed_data": observed}


def _checked_priors(given):
    """All three priors of a spectrum."""
    given = {} if given is None else given
    if not isinstance(given, Mapping):
        raise TypeError(f"spectrum_prior must be a mapping, got {type(given).__name__}")
    unknown = [name for name in given if name not in SPECTRUM_PRIOR]
    if unknown:
        raise ValueError(f"spectrum_prior has {unknown}; expected some of {list(SPECTRUM_PRIOR)}")
    return {
        name: priors.check_prior(f"spectrum_prior[{name!r}]", given.get(name, default))
        for name, default in SPECTRUM_PRIOR.items()
    }
