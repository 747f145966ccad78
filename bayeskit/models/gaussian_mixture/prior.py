"""Priors of the components, as users state them and as computations use them."""

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from bayeskit.codec import storable
from bayeskit.validation import check_finite_number, check_positive, double_array


@storable
class NormalInverseWishart(eqx.Module):
    r"""Normal–inverse-Wishart prior of a component's location and covariance.

    .. math::
        \Sigma \sim IW(\nu, S), \qquad \mu \mid \Sigma \sim N(m, \Sigma / \kappa),
        \qquad E \Sigma = S / (\nu - d - 1)

    Parameters
    ----------
    location : array (d,)
        :math:`m`, in the units of the data.
    location_strength : float
        :math:`\kappa`: how many rows the prior location counts for.
    scale : array (d, d)
        :math:`S`, symmetric positive definite, in squared units of the data.
    degrees_of_freedom : float
        :math:`\nu > d - 1`; the prior covariance has a mean where it is above :math:`d + 1`.

    Raises
    ------
    TypeError, ValueError
        If an argument is no finite number of its kind, shapes do not match, or the scale is not
        positive definite.

    Notes
    -----
    Diagonal covariances have the prior that the diagonal of :math:`\Sigma` has, independent
    inverse-gamma of concentration :math:`(\nu - d + 1)/2` and rates :math:`S_{jj}/2`; spherical
    ones that of the mean rate.

    Examples
    --------
    >>> import numpy as np
    >>> import bayeskit as bk
    >>> bk.models.NormalInverseWishart(np.zeros(2), 0.1, np.eye(2), 5.0)
    NormalInverseWishart(2 features, location_strength=0.1, degrees_of_freedom=5)
    """

    location: Any
    location_strength: Any
    scale: Any
    degrees_of_freedom: Any

    def __init__(self, location, location_strength, scale, degrees_of_freedom):
        self.location = double_array("location", location, "iuf")
        if self.location.ndim != 1 or not self.location.size:
            raise ValueError(f"location must have the shape (d,), got {self.location.shape}")
        features = self.location.size
        self.location_strength = check_positive("location_strength", location_strength)
        self.scale = double_array("scale", scale, "iuf")
        if self.scale.shape != (features, features):
            raise ValueError(
                f"scale must have the shape {(features, features)}, as location has {features} "
                f"entries; got {self.scale.shape}"
            )
        if not np.allclose(self.scale, self.scale.T, rtol=1e-8, atol=0.0):
            raise ValueError("scale must be symmetric")
        deviations = np.sqrt(np.abs(np.diag(self.scale)))
        relative = self.scale / np.outer(*[np.where(deviations > 0, deviations, 1.0)] * 2)
        if np.any(np.diag(self.scale) <= 0) or np.linalg.eigvalsh(relative)[0] <= 1e-14:
            raise ValueError("scale must be positive definite")
        self.degrees_of_freedom = check_finite_number("degrees_of_freedom", degrees_of_freedom)
        if self.degrees_of_freedom <= features - 1:
            raise ValueError(
                f"degrees_of_freedom must be above {features - 1}, the number of features less "
                f"one, got {degrees_of_freedom}"
            )

    def __repr__(self):
        return (
            f"{type(self).__name__}({self.location.size} features, location_strength="
            f"{float(self.location_strength):.6g}, degrees_of_freedom="
            f"{float(self.degrees_of_freedom):.6g})"
        )


class BlockPrior(NamedTuple):
    """A prior of standardised features, its covariance in blocks.

    Attributes
    ----------
    location : array (d,)
    strength : scalar
        Zero for a flat prior.
    freedom : scalar
    scale : array, broadcast against blocks (groups, blocks, p, p)
    """

    location: Any
    strength: Any
    freedom: Any
    scale: Any


def flat_prior(blocks, dtype):
    """A density of one in locations and precisions: its mode is the likelihood's."""
    shape = (1, blocks.parts, blocks.size, blocks.size)
    return BlockPrior(
        jnp.zeros(blocks.features, dtype),
        jnp.zeros((), dtype),
        jnp.asarray(blocks.size + 1 - blocks.locations, dtype),
        jnp.zeros(shape, dtype),
    )


def block_prior(blocks, location, strength, scale, freedom):
    """A prior stated by a full matrix, both of standardised features."""
    if blocks.dense:
        return BlockPrior(location, strength, freedom, scale[None, None])
    rates = jnp.diagonal(scale)
    if blocks.structure == "spherical":
        rates = jnp.mean(rates, keepdims=True)
    freedom = freedom - blocks.features + 1
    return BlockPrior(location, strength, freedom, rates[None, :, None, None])
