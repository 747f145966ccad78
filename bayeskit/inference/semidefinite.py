"""Semidefinite relaxations of clusterings, likelihoods adjusted from one to the next."""

import equinox as eqx
import jax

from bayeskit.inference.ascent import AscentState, _Ascent
from bayeskit.models.base import SupportsSDP
from bayeskit.validation import check_integer, check_number

_TRACES = ("group", "joint")
_SOLVERS = ("low-rank", "admm")
_FINISHES = ("em", None)


class SemidefiniteProgram(_Ascent):
    """Iterative likelihood-adjusted semidefinite programs (iLA-SDP).

    The memberships of all rows are lifted to matrices, over which the likelihood of a clustering
    is linear. The first program has equal covariances and needs no start; each next one has the
    covariances of the clustering that the last one was rounded to. The best clustering of all is
    kept, and finished by expectation maximisation.

    Parameters
    ----------
    trace : "group" or "joint"
        Whether every component's matrix has trace one, or only their sum has trace K, so that one
        covariance may serve two clusters.
    solver : "low-rank" or "admm"
        Non-negative factors of low rank, the best of several random starts: fast, in memory that is
        linear in the rows. Or the alternating direction method of multipliers on the whole
        matrices: exact, for some hundred rows.
    sketch_size : int
        Most rows of a program. Tables with more, or with missing values, are sketched: programs
        are solved on random complete rows, and their clusterings lifted to the others.
    num_sketches : int
        Of a table that needs them; the one with the largest objective on all rows is kept.
    finish : "em" or None
        Whether the best clustering is the start of expectation maximisation, or the result.
    max_iterations : int
        Programs of a restart, at most.
    tolerance : float
        Stop when no more than this share of the rows changes its cluster; ``0.0`` solves all.
    restarts : int
        They differ in the random numbers of sketches, of the solver's starts and of the rounding;
        the first one's are always the same, whatever the key.
    solver_iterations : int
        Largest number of steps of the solver in every program.
    solver_tolerance : float
        Of its residuals.

    Raises
    ------
    TypeError, ValueError
        If an argument is not of these.

    Notes
    -----
    A step of the low-rank solver costs O(m K d) for m rows of a program, one of the other
    O(K m³) with some ten matrices (K, m, m) in memory. A sketch is lifted in two passes over all
    rows, in memory O(n (d + K)). ``posterior.certificate`` bounds what the clustering misses of its
    program, whatever the solver did.

    A posterior given as ``initial`` takes part in no program: it is finished as the best clustering
    is, and kept where its objective is larger. Y. Zhuang, X. Chen and Y. Yang, "Likelihood adjusted
    semidefinite programs for clustering heterogeneous data", ICML 2023.

    Examples
    --------
    >>> import bayeskit as bk
    >>> bk.inference.SemidefiniteProgram(solver="admm").trace
    'group'
    """

    trace: str = eqx.field(static=True)
    solver: str = eqx.field(static=True)
    sketch_size: int = eqx.field(static=True)
    num_sketches: int = eqx.field(static=True)
    finish_by: str | None = eqx.field(static=True)
    solver_iterations: int
    solver_tolerance: float

    def __init__(
        self,
        *,
        trace="group",
        solver="low-rank",
        sketch_size=500,
        num_sketches=3,
        finish: str | None = "em",
        max_iterations=10,
        tolerance=1e-9,
        restarts=1,
        solver_iterations=1000,
        solver_tolerance=1e-4,
    ):
        self._set_loop(max_iterations, tolerance, restarts)
        if trace not in _TRACES:
            raise ValueError(f"trace must be one of {list(_TRACES)}, got {trace!r}")
        if solver not in _SOLVERS:
            raise ValueError(f"solver must be one of {list(_SOLVERS)}, got {solver!r}")
        if finish not in _FINISHES:
            raise ValueError(f"finish must be one of {list(_FINISHES)}, got {finish!r}")
        self.trace, self.solver, self.finish_by = trace, solver, finish
        self.sketch_size = check_integer("sketch_size", sketch_size, 3)
        self.num_sketches = check_integer("num_sketches", num_sketches, 1)
        self.solver_iterations = check_integer("solver_iterations", solver_iterations, 1)
        self.solver_tolerance = check_number("solver_tolerance", solver_tolerance, 0.0)

    def __repr__(self):
        settings = ", ".join(f"{name}={value!r}" for name, value in self.settings().items())
        return f"SemidefiniteProgram({settings})"

    @property
    def needs(self):
        return SupportsSDP

    def settings(self):
        return {
            "trace": self.trace,
            "solver": self.solver,
            "sketch_size": self.sketch_size,
            "num_sketches": self.num_sketches,
            "finish": self.finish_by,
            "max_iterations": int(self.max_iterations),
            "tolerance": float(self.tolerance),
            "restarts": self.restarts,
            "solver_iterations": int(self.solver_iterations),
            "solver_tolerance": float(self.solver_tolerance),
        }

    def check(self, model):
        model.check_sdp(self)

    def check_data(self, model, data):
        model.check_sdp_data(data, self)

    def init(self, model, data, key, lane, initial):
        return self._start(model.sdp_init(data, key, lane, initial, self))

    def step(self, model, data, state):
        updated, objective, change = model.sdp_step(data, state.parameters, self)
        return self._advance(updated, objective, change)

    def finish(self, model, data, states, records):
        lifted = jax.lax.map(lambda p: model.sdp_lifted(data, p, self), states.parameters)
        states = AscentState(lifted, states.change)
        best, lane, finite = self._best(lambda p: model.sdp_objective(data, p), states)
        return self._fit(model.sdp_finish(data, best, self), finite, lane)

    def caveats(self, fit, model):
        own, residual = fit.diagnosed
        found = model.caveats(own)
        if self.solver_tolerance > 0 and not residual < self.solver_tolerance:
            found += (
                f"the solver of the last program stopped at a residual of {float(residual):.2g}, "
                f"solver_tolerance={float(self.solver_tolerance):.2g}: raise solver_iterations",
            )
        return found
