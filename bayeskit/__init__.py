"""Structured Bayesian models with calibrated uncertainty, on JAX and NumPyro."""

from bayeskit import datasets, inference, linalg, metrics, models, pde, testing
from bayeskit._version import __version__
from bayeskit.citations import cite
from bayeskit.errors import (
    BayeskitWarning,
    ConditioningWarning,
    ConvergenceWarning,
    PrecisionWarning,
)
from bayeskit.inference.driver import infer, infer_batch, update
from bayeskit.linalg.sharding import make_mesh
from bayeskit.posterior import Posterior, load
from bayeskit.results import Convergence, Prediction
from bayeskit.selection import Selection, select

__all__ = [
    "BayeskitWarning",
    "ConditioningWarning",
    "Convergence",
    "ConvergenceWarning",
    "Posterior",
    "PrecisionWarning",
    "Prediction",
    "Selection",
    "__version__",
    "cite",
    "datasets",
    "infer",
    "infer_batch",
    "inference",
    "linalg",
    "load",
    "make_mesh",
    "metrics",
    "models",
    "pde",
    "select",
    "testing",
    "update",
]
