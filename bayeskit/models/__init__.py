"""Models: what is believed about the data."""

from bayeskit.models.functional_tucker import (
    FunctionalTucker,
    FunctionalTuckerPosterior,
    Mode,
)
from bayeskit.models.gaussian_mixture import (
    Certificate,
    GaussianMixture,
    GaussianMixturePosterior,
    MatrixClustering,
    MixturePrediction,
    NormalInverseWishart,
    cluster_affinity,
    cluster_distances,
)
from bayeskit.models.kronecker_sbl import KroneckerSBL, KroneckerSBLPosterior
from bayeskit.models.priors import ScaledByData
from bayeskit.models.singular import (
    RowLikelihood,
    SingularDistribution,
    SingularDistributionPosterior,
)
from bayeskit.models.spectral_pde import SpectralMixture, SpectralPDE, SpectralPDEPosterior

__all__ = [
    "Certificate",
    "FunctionalTucker",
    "FunctionalTuckerPosterior",
    "GaussianMixture",
    "GaussianMixturePosterior",
    "KroneckerSBL",
    "KroneckerSBLPosterior",
    "MatrixClustering",
    "MixturePrediction",
    "Mode",
    "NormalInverseWishart",
    "RowLikelihood",
    "ScaledByData",
    "SingularDistribution",
    "SingularDistributionPosterior",
    "SpectralMixture",
    "SpectralPDE",
    "SpectralPDEPosterior",
    "cluster_affinity",
    "cluster_distances",
]
