"""Spectral-mixture Gaussian-process solver of partial differential equations."""

from bayeskit.models.spectral_pde.approximation import SpectralPDEPosterior, Spectrum
from bayeskit.models.spectral_pde.model import SpectralPDE
from bayeskit.models.spectral_pde.spectrum import SpectralMixture

__all__ = ["SpectralMixture", "SpectralPDE", "SpectralPDEPosterior", "Spectrum"]
