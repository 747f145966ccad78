"""Semidefinite relaxations of clusterings, likelihoods adjusted from one to the next."""

import equinox as eqx

from bayeskit.inference.ascent import _Ascent
from bayeskit.models.base import SupportsSDP
from bayeskit.validation import check_integer, check_number

_TRACES = ("group", "joint")
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
    finish : "em" or None
        Whether the best clustering is the start of expectation maximisation, or the result.
    max_iterations : int
        Programs of a restart, at most.
    tolerance : float
        Stop when no more than this share of the rows changes its cluster; ``0.0`` solves all.
    restarts : int
        They differ in the seeds of the rounding only.
    solver_iterations : int
        Largest number of steps of the solver in every program.
    solver_tolerance : float
        Of its residuals.

    Notes
    -----
    A step of the solver costs O(K n³) and there are some ten matrices (K, n, n) in memory: for some
    hundred rows. ``posterior.certificate`` bounds what the clustering misses of its program,
    whatever the solver did. Y. Zhuang, X. Chen and Y. Yang, "Likelihood adjusted semidefinite
    programs for clustering heterogeneous data", ICML 2023.

    Examples
    --------
    >>> import bayeskit as bk
    >>> bk.inference.SemidefiniteProgram().trace
    'group'
    """

    trace: str = eqx.field(static=True)
    finish_by: str | None = eqx.field(static=True)
    solver_iterations: int
    solver_tolerance: float

    def __init__(
        self,
        *,
        trace="group",
        finish="em",
        max_iterations=10,
        tolerance=1e-9,
        restarts=1,
        solver_iterations=500,
        solver_tolerance=1e-4,
    ):
        self._set_loop(max_iterations, tolerance, restarts)
        if trace not in _TRACES:
            raise ValueError(f"trace must be one of {list(_TRACES)}, got {trace!r}")
        if finish not in _FINISHES:
            raise ValueError(f"finish must be one of {list(_FINISHES)}, got {finish!r}")
        self.trace, self.finish_by = trace, finish
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
            "finish": self.finish_by,
            "max_iterations": int(self.max_iterations),
            "tolerance": float(self.tolerance),
            "restarts": self.restarts,
            "solver_iterations": int(self.solver_iterations),
            "solver_tolerance": float(self.solver_tolerance),
        }

    def check(self, model):
        model.check_sdp(self)

    def init(self, model, data, key, lane, initial):
        return self._start(model.sdp_init(data, key, lane, initial, self))

    def step(self, model, data, state):
        updated, objective, change = model.sdp_step(data, state.parameters, self)
        return self._advance(updated, objective, change)

    def finish(self, model, data, states, records):
        best, lane, finite = self._best(lambda p: model.sdp_objective(data, p), states)
        return self._fit(model.sdp_finish(data, best, self), finite, lane)
