"""Kronecker-structured sparse Bayesian learning."""

from bayeskit.models.kronecker_sbl.approximation import KroneckerSBLPosterior
from bayeskit.models.kronecker_sbl.model import KroneckerSBL

__all__ = ["KroneckerSBL", "KroneckerSBLPosterior"]
