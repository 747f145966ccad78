"""Real data and simulators with known truth.

Everything is NumPy, float64 or complex128, and nothing is downloaded. The same key always gives
the same data.
"""

from bayeskit.datasets.air import BeijingAir, beijing_air
from bayeskit.datasets.clusters import GaussianClusters, gaussian_clusters
from bayeskit.datasets.digits import Digits, digits
from bayeskit.datasets.flowers import iris
from bayeskit.datasets.images import CompressiveImage, compressive_image, mri_slice
from bayeskit.datasets.irs import IRSChannelSounding, irs_mimo
from bayeskit.datasets.shapes import Shape, shape
from bayeskit.datasets.sparse import KroneckerSparse, kronecker_sparse

__all__ = [
    "BeijingAir",
    "CompressiveImage",
    "Digits",
    "GaussianClusters",
    "IRSChannelSounding",
    "KroneckerSparse",
    "Shape",
    "beijing_air",
    "compressive_image",
    "digits",
    "gaussian_clusters",
    "iris",
    "irs_mimo",
    "kronecker_sparse",
    "mri_slice",
    "shape",
]
