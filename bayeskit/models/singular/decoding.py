"""What posteriors of singular distributions have in common."""

import abc
from typing import Any, NamedTuple

from bayeskit.models.tables import log_units
from bayeskit.results import AbstractApproximation

ROW_BLOCK = 64  # rows that are computed at a time
PARTICLES = 1000  # draws that densities are averaged over


class Doubts(NamedTuple):
    """What users are warned about after a fit.

    Attributes
    ----------
    singular : bool
        Whether the noise is as small as it can be, and the rows were not perturbed.
    optimism : scalar
        Nats a row by which random numbers that a fit knows are better than others.
    """

    singular: Any
    optimism: Any = 0.0


class Decoding(AbstractApproximation):
    """What the posterior's own functions need of every closed form."""

    @abc.abstractmethod
    def noise(self, model, data):
        """Expected noise variance, with the perturbation, of standardised data."""

    @abc.abstractmethod
    def level(self, data):
        """The perturbation, of standardised data."""

    @abc.abstractmethod
    def encoded(self, model, data, rows) -> Any:
        """Mean and variance (rows, q) of latents of standardised rows."""

    @abc.abstractmethod
    def generated(self, key, model, data, observation_noise):
        """One standardised row (D,)."""

    @abc.abstractmethod
    def row_densities(self, model, data, values, observed, particles) -> Any:
        """Log densities (rows,) of standardised rows, and log weights where there are any.

        Those of importance sampling are (rows, particles), ``None`` where none was needed.
        """

    def log_predictive(self, model, data):
        """Of rows given all of them, latents integrated out: what is plugged in stays."""
        density, _ = self.row_densities(model, data, data.all_rows, data.observed, PARTICLES)
        density = density - log_units(data, data.all_rows, data.observed)
        return density, density
