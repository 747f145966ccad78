"""Distributions on or near sets of low dimension."""

from bayeskit.models.singular.approximation import RowLikelihood, SingularDistributionPosterior
from bayeskit.models.singular.model import SingularDistribution

__all__ = ["RowLikelihood", "SingularDistribution", "SingularDistributionPosterior"]
