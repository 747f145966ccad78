"""Structured Bayesian models with calibrated uncertainty, on JAX and NumPyro."""

from bayeskit import datasets, inference, linalg, metrics, models
from bayeskit._version import __version__
from bayeskit.errors import BayeskitWarning, ConditioningWarning, ConvergenceWarning, PrecisionWarning
from bayeskit.inference.driver import infer, infer_batch
from bayeskit.posterior import Convergence, Posterior, Prediction

__all__ = [
    "BayeskitWarning",
    "ConditioningWarning",
    "Convergence",
    "ConvergenceWarning",
    "Posterior",
    "PrecisionWarning",
    "Prediction",
    "__version__",
    "datasets",
    "infer",
    "infer_batch",
    "inference",
    "linalg",
    "metrics",
    "models",
]
