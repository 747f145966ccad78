"""Priors as users state them: NumPyro distributions, absolute or relative to the data's scale."""

from typing import cast

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints

from bayeskit.codec import constructor_arguments, storable


@storable
class ScaledByData(eqx.Module):
    """A prior on a quantity divided by the scale that the data set for it.

    Such a prior makes a fit independent of the units of the data, which is why the defaults are
    of this kind. It depends on the data, so data cannot be simulated from it: ``sample_prior``
    and ``calibrate`` refuse it by name and want a distribution in the data's own units.

    Parameters
    ----------
    distribution : numpyro.distributions.Distribution
        Scalar, on the positive numbers.

    Examples
    --------
    >>> import numpyro.distributions as dist
    >>> from bayeskit.models import ScaledByData
    >>> ScaledByData(dist.InverseGamma(2.0, 1.0))
    ScaledByData(InverseGamma(concentration=2, rate=1))
    """

    distribution: dist.Distribution

    def __init__(self, distribution):
        self.distribution = check_positive_prior("distribution", distribution)

    def __repr__(self):
        return f"ScaledByData({describe(self.distribution)})"


def describe(prior) -> str:
    """A prior in one line, with its parameters."""
    if prior is None:
        return "flat"
    if isinstance(prior, ScaledByData):
        return repr(prior)
    arguments = (_argument(*item) for item in constructor_arguments(prior).items())
    return f"{type(prior).__name__}({', '.join(filter(None, arguments))})"


def _argument(name, value):
    """An argument of a distribution or a transform; empty if it holds no numbers."""
    if isinstance(value, (dist.Distribution, dist.transforms.Transform)):
        return describe(value)
    if isinstance(value, (list, tuple)):
        return ", ".join(filter(None, (_argument(name, part) for part in value)))
    if np.asarray(value).dtype.kind not in "iuf":
        return ""
    numbers = ", ".join(f"{number:.6g}" for number in np.ravel(value))
    return f"{name}={numbers if np.ndim(value) == 0 else f'[{numbers}]'}"


def check_positive_prior(name, prior):
    """The prior itself, if it is a scalar distribution on the positive numbers.

    Raises
    ------
    TypeError
        If it is not a NumPyro distribution.
    ValueError
        If it is not a scalar on the positive numbers, or a parameter is not positive and finite.
    """
    if not isinstance(prior, dist.Distribution):
        raise TypeError(f"{name} must be a NumPyro distribution, got {type(prior).__name__}")
    if prior.batch_shape or prior.event_shape:
        raise ValueError(
            f"{name} must be a scalar distribution, got batch shape {prior.batch_shape} "
            f"and event shape {prior.event_shape}"
        )
    support = prior.support
    # Zero itself has no probability.
    bounded_below = isinstance(support, constraints.greater_than)
    if not (bounded_below and float(np.asarray(support.lower_bound)) == 0.0):
        raise ValueError(
            f"{name} must live on the positive numbers, got {type(prior).__name__} on {support}"
        )
    for parameter, constraint in prior.arg_constraints.items():
        value = np.asarray(getattr(prior, parameter))
        if not np.all(np.isfinite(value)) or not bool(np.all(constraint(value))):
            raise ValueError(f"{name} needs {parameter} in {constraint}, got {value}")
    return prior


def check_prior(name, prior):
    """A prior argument: ``None`` (flat), :class:`ScaledByData`, or a positive distribution."""
    if prior is None or isinstance(prior, ScaledByData):
        return prior
    return check_positive_prior(name, prior)


def distribution_of(prior):
    """The NumPyro distribution inside a prior argument."""
    return prior.distribution if isinstance(prior, ScaledByData) else prior


def is_conjugate(prior) -> bool:
    """Whether a prior is flat or inverse-gamma, which closed-form updates need."""
    return prior is None or isinstance(distribution_of(prior), dist.InverseGamma)


def simulable(name, prior):
    """The distribution to simulate from.

    Raises
    ------
    ValueError
        If the prior is flat (improper) or depends on the data, naming it and what to give.
    """
    if prior is None:
        raise ValueError(
            f"{name} is flat (improper): nothing can be drawn from it; give a NumPyro distribution"
        )
    if isinstance(prior, ScaledByData):
        raise ValueError(
            f"{name} depends on the data ({prior!r}): nothing can be drawn from it; "
            "give a NumPyro distribution in the data's own units"
        )
    return prior


def inverse_gamma(prior, unit, dtype):
    """Concentration and rate of a prior for the quantity divided by ``unit``; zeros if flat."""
    if prior is None:
        return jnp.zeros((), dtype), jnp.zeros((), dtype)
    distribution = cast(dist.InverseGamma, distribution_of(prior))
    unit = jnp.ones((), dtype) if isinstance(prior, ScaledByData) else unit
    return jnp.asarray(distribution.concentration, dtype), jnp.asarray(
        distribution.rate, dtype
    ) / unit


def inverse_gamma_moments(concentration, rate):
    """Mean and variance of inverse-gamma variables: infinite where they do not exist.

    Zero where the rate is zero, which stands for a quantity held at zero.
    """
    positive = rate > 0
    rate = jnp.where(positive, rate, 1.0)
    mean = rate / jnp.maximum(concentration - 1, 0.0)
    variance = mean**2 / jnp.maximum(concentration - 2, 0.0)
    return jnp.where(positive, mean, 0.0), jnp.where(positive, variance, 0.0)


# Of the noise variance, where no prior is given: hardly informative from a part in 10¹⁰ upwards.
DEFAULT_NOISE_PRIOR = ScaledByData(dist.InverseGamma(0.1, 1e-10))
