"""Distributions on or near sets of low dimension."""

from bayeskit.models.singular.model import SingularDistribution
from bayeskit.models.singular.posterior import RowLikelihood, SingularDistributionPosterior

__all__ = ["RowLikelihood", "SingularDistribution", "SingularDistributionPosterior"]
