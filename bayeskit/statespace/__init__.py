"""Markovian Gaussian processes: chains of states, Gaussian messages, gpjax's kernels."""

from bayeskit.statespace.chain import Chain, Smoothed, follow, log_normaliser, sample, smooth
from bayeskit.statespace.kernels import Constant, Independent, chain_of, form_of

__all__ = [
    "Chain",
    "Constant",
    "Independent",
    "Smoothed",
    "chain_of",
    "follow",
    "form_of",
    "log_normaliser",
    "sample",
    "smooth",
]
