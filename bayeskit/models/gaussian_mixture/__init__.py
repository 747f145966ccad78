"""Gaussian mixtures."""

from bayeskit.models.gaussian_mixture.approximation import (
    GaussianMixturePosterior,
    MixturePrediction,
)
from bayeskit.models.gaussian_mixture.model import GaussianMixture
from bayeskit.models.gaussian_mixture.prior import NormalInverseWishart

__all__ = [
    "GaussianMixture",
    "GaussianMixturePosterior",
    "MixturePrediction",
    "NormalInverseWishart",
]
