"""Functional Bayesian Tucker decomposition."""

from bayeskit.models.functional_tucker.approximation import FunctionalTuckerPosterior
from bayeskit.models.functional_tucker.mode import Mode
from bayeskit.models.functional_tucker.model import FunctionalTucker

__all__ = ["FunctionalTucker", "FunctionalTuckerPosterior", "Mode"]
