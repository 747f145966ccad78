r"""Spectral-mixture kernels as densities over frequencies.

.. math::
    \kappa(\delta) = \sum_q w_q\, g(\delta; \ell_q) \cos(2 \pi \mu_q \delta)

with a squared-exponential :math:`g` (``"gaussian"``) or a Matérn 5/2 one (``"student-t"``), whose
spectral densities are Gaussians or Student-t densities around :math:`\pm \mu_q`, in cycles. A. G.
Wilson and R. P. Adams, "Gaussian process kernels for pattern discovery and extrapolation", ICML
2013; S. Fang, M. Cooley, D. Long, S. Li, R. Kirby, S. Zhe, "Solving high frequency and multi-scale
PDEs with Gaussian processes", ICLR 2024.
"""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jax import lax

from bayeskit.codec import storable
from bayeskit.validation import check_integer

FAMILIES = ("gaussian", "student-t")
_DEGREES = 5.0  # of freedom of the spectral density of a Matérn 5/2 kernel
_LOG_PEAK = {  # of the density of unit weight and width at its centre
    "gaussian": -0.5 * math.log(2 * math.pi),
    "student-t": math.lgamma(0.5 * (_DEGREES + 1))
    - math.lgamma(0.5 * _DEGREES)
    - 0.5 * math.log(_DEGREES * math.pi),
}


@storable
class SpectralMixture(eqx.Module):
    """A spectral-mixture kernel for every dimension of a field.

    Parameters
    ----------
    num_components : int
        Number of components in each dimension.
    family : "gaussian" or "student-t"
        Squared-exponential or Matérn 5/2 times cosine. The heavy tails of the second never rule
        high frequencies out, which is right for rough solutions and costs digits on smooth ones.

    Raises
    ------
    TypeError, ValueError
        If there is no component, or the family is unknown.

    Examples
    --------
    >>> import bayeskit as bk
    >>> bk.models.SpectralMixture(num_components=30)
    SpectralMixture(num_components=30, family='gaussian')
    """

    num_components: int = eqx.field(static=True)
    family: str = eqx.field(static=True)

    def __init__(self, num_components=30, family="gaussian"):
        self.num_components = check_integer("num_components", num_components, 1)
        if family not in FAMILIES:
            raise ValueError(f"family must be one of {list(FAMILIES)}, got {family!r}")
        self.family = family


@storable
class Components(NamedTuple):
    """Components in one dimension: arrays (Q,); frequencies and widths in cycles per box."""

    log_weights: Any
    frequencies: Any
    widths: Any


def band(kernel, highest) -> Components:
    """Equal components from zero to a highest frequency: flat to 2 % up to there.

    The widths, half of the distances, are as narrow as that allows: what is beyond the band only
    costs digits.
    """
    count = kernel.num_components
    width = 0.5 * highest / max(count - 1, 1)
    return Components(
        jnp.full(count, -jnp.log(count)) + 0.0 * highest,
        jnp.linspace(0.0, 1.0, count) * highest,
        jnp.full(count, 1.0) * width,
    )


def log_density(kernel, components, frequencies):
    """Logarithm of the spectral density (m,) over positive frequencies: its integral is power."""
    terms = []
    for sign in (1.0, -1.0):
        distance = (frequencies[:, None] + sign * components.frequencies) / components.widths
        shape = (
            -0.5 * distance**2
            if kernel.family == "gaussian"
            else -0.5 * (_DEGREES + 1.0) * jnp.log1p(distance**2 / _DEGREES)
        )
        peak = components.log_weights - jnp.log(components.widths) + _LOG_PEAK[kernel.family]
        terms.append(peak + shape)
    joined = jnp.concatenate(terms, axis=1)
    top = jnp.max(joined, axis=1, keepdims=True)
    return top[:, 0] + jnp.log(jnp.sum(jnp.exp(joined - top), axis=1))


def covariance(kernel, components, lags, order=0):
    """Derivative of some order of the kernel at lags in boxes, of their shape.

    Every component is the real part of ``p(δ) exp(c(δ))`` with complex ``c``: derivatives multiply
    it by polynomials. Orders above four of a Matérn 5/2 kernel do not exist at zero.
    """
    distance = jnp.abs(lags)[..., None]
    turns = 2.0 * jnp.pi * components.frequencies
    if kernel.family == "gaussian":
        rate = 2.0 * (jnp.pi * components.widths) ** 2
        decay = jnp.exp(-rate * distance**2)
        slope = lax.complex(-2.0 * rate * distance, jnp.broadcast_to(turns, decay.shape))
        before, factor = 0.0, jnp.ones_like(slope)
        for n in range(order):
            before, factor = factor, slope * factor - 2.0 * n * rate * before
    else:
        rate = math.sqrt(_DEGREES) * 2.0 * jnp.pi * components.widths
        decay = jnp.exp(-rate * distance)
        power = lax.complex(-rate, turns)
        polynomials = (
            1.0 + rate * distance * (1.0 + rate * distance / 3.0),
            rate * (1.0 + 2.0 * rate * distance / 3.0),
            2.0 * rate**2 / 3.0,
        )
        factor = sum(
            math.comb(order, j) * power ** (order - j) * polynomials[j]
            for j in range(min(order, 2) + 1)
        )
    phase = turns * distance
    wave = factor * lax.complex(jnp.cos(phase), jnp.sin(phase))
    value = jnp.sum(jnp.exp(components.log_weights) * decay * jnp.real(wave), axis=-1)
    return jnp.sign(lags) * value if order % 2 else value
