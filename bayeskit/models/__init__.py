"""Models: what is believed about the data."""

from bayeskit.models.kronecker_sbl import KroneckerSBL, KroneckerSBLPosterior
from bayeskit.models.priors import ScaledByData

__all__ = ["KroneckerSBL", "KroneckerSBLPosterior", "ScaledByData"]
