"""Functions of one dimension: derivatives of waves, and an orthonormal basis of a prior's own."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bayeskit.linalg import safe
from bayeskit.models.spectral_pde import frame
from bayeskit.models.spectral_pde.spectrum import log_density

_CUT = 1e-12  # of the largest singular value: what is below is rounding
_BACKGROUND = 1e-8  # of the power
_SHARE = 0.85  # of as many functions as points: bands end below


def derivative(axis, points, order, share=1.0):
    """Columns (points, K) of waves' derivatives, in the user's units, at scaled points.

    ``share``: of the highest frequency that the collocation points resolve.
    """
    waves = frame.frequencies(axis.nodes.shape[0], share)
    return frame.features(points, waves, order) / axis.length**order


def condition_rows(axis, share=1.0):
    """What the conditions of a dimension see of all waves, (conditions, K)."""
    flat = axis.places.reshape(-1)
    columns = [derivative(axis, flat, k, share) for k in range(2)]
    shape = (*axis.places.shape, columns[0].shape[1])
    parts = [columns[k].reshape(shape) * axis.terms[:, :, k, None] for k in range(2)]
    return jnp.sum(parts[0] + parts[1], axis=1)


def scales_of(kernel, components, axis):
    """Prior deviations (K,) of the coefficients of waves, the largest being one."""
    waves = frame.frequencies(axis.nodes.shape[0])
    densities = log_density(kernel, components, waves)
    return jnp.exp(0.5 * frame.log_variances(densities - jnp.max(densities), 0.0))


def log_variances_of(kernel, components, axis, share):
    """Prior log variances (K,) of the coefficients, by quadrature of the spectral density.

    Polynomials, which carry what is slower than the box, have the density's at zero. A small share
    of the power is spread over all: no frequency is ruled out, as tails of Gaussians would.
    """
    waves = jnp.concatenate([jnp.zeros(1), frame.frequencies(axis.nodes.shape[0], share)])
    densities = log_density(kernel, components, waves) - jnp.log(frame.PERIOD)
    power = jax.scipy.special.logsumexp(components.log_weights)
    densities = jnp.logaddexp(densities, power + jnp.log(_BACKGROUND / waves.shape[0]))
    return frame.log_variances(densities[1:], densities[0])


class Basis(NamedTuple):
    """Orthonormal functions of one dimension that span what its prior holds possible.

    Attributes
    ----------
    transform : array (K, R)
        From their coefficients to those of the waves; columns beyond the prior's rank are zero.
    values : array (N, R)
        At the nodes, times the roots of the weights: orthonormal columns, or zero ones.
    conditions : array (C, R)
    null : array (R, R - C)
        Orthonormal: coefficients that satisfy the conditions with value zero.
    lift : array (R, C)
        Coefficients that give the conditions the values of the identity.
    """

    transform: Any
    values: Any
    conditions: Any
    null: Any
    lift: Any


def orthonormal(axis, scales, rank):
    """Transform (K, R) and weighted values (N, R) of the first functions; see :class:`Basis`.

    Singular vectors of the waves, weighted by the prior, in the quadrature's inner product.
    """
    root = jnp.sqrt(axis.weights)[:, None]
    left, sizes, right = safe.svd(derivative(axis, axis.nodes, 0) * scales * root)
    left, sizes, right = left[:, :rank], sizes[:rank], right[:rank]
    kept = sizes > _CUT * sizes[0]
    inverse = jnp.where(kept, 1.0 / jnp.where(kept, sizes, 1.0), 0.0)
    return scales[:, None] * right.T * inverse, left * kept


def between(axis, scales):
    """Coefficients (K, N) of the field of a prior through values at the nodes."""
    transform, values = orthonormal(axis, scales, axis.nodes.shape[0])
    return transform @ (values * jnp.sqrt(axis.weights)[:, None]).T


def basis_of(axis, scales) -> Basis:
    """The basis under prior deviations (K,) of the waves."""
    rank = int(_SHARE * axis.nodes.shape[0])
    transform, values = orthonormal(axis, scales, rank)
    rows = condition_rows(axis) @ transform
    number = rows.shape[0]
    if not number:
        return Basis(transform, values, rows, jnp.eye(rank), jnp.zeros((rank, 0)))
    orthogonal, upper = safe.qr(rows.T, complete=True)
    square = safe.solve_triangular(upper[:number].T, jnp.eye(number))
    return Basis(transform, values, rows, orthogonal[:, number:], orthogonal[:, :number] @ square)
