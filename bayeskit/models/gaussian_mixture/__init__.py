"""Gaussian mixtures."""

from bayeskit.models.gaussian_mixture.approximation import (
    GaussianMixturePosterior,
    MixturePrediction,
)
from bayeskit.models.gaussian_mixture.lifted import Certificate
from bayeskit.models.gaussian_mixture.matrices import (
    MatrixClustering,
    cluster_affinity,
    cluster_distances,
)
from bayeskit.models.gaussian_mixture.model import GaussianMixture
from bayeskit.models.gaussian_mixture.prior import NormalInverseWishart

__all__ = [
    "Certificate",
    "GaussianMixture",
    "GaussianMixturePosterior",
    "MatrixClustering",
    "MixturePrediction",
    "NormalInverseWishart",
    "cluster_affinity",
    "cluster_distances",
]
