r"""Latents on a grid, in one or two dimensions.

.. math:: p(x) = \frac{1}{M} \sum_m N(x; f(z_m), \sigma^2 I_D)

with nodes :math:`z_m` at the means of M cells that standard normal latents are in with equal
probability; within a cell, latents keep their prior.
"""

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jax.scipy.stats import norm

NODES = {1: 256, 2: 20}  # along every axis, by the number of axes
_INSIDE = 8  # latents along every axis of a cell, for moments of what they are decoded to


def cells(latent_dim, dtype):
    """Means and variances (M, q) of standard normal latents in cells of equal probability."""
    count = NODES[latent_dim]
    edges = ndtri(jnp.arange(1, count, dtype=dtype) / count)
    density = jnp.pad(norm.pdf(edges), 1)
    mean = -count * jnp.diff(density)
    variance = 1.0 - count * jnp.diff(jnp.pad(edges, 1) * density) - mean**2
    return tuple(
        jnp.stack(jnp.meshgrid(*[axis] * latent_dim, indexing="ij"), -1).reshape(-1, latent_dim)
        for axis in (mean, variance)
    )


def nodes(latent_dim, dtype):
    """Latents (M, q)."""
    return cells(latent_dim, dtype)[0]


def within_cells(latent_dim, dtype):
    """Latents (M, *, q) that spread over every cell with equal probabilities."""
    count, inside = NODES[latent_dim], _INSIDE
    axis = ndtri((jnp.arange(count * inside, dtype=dtype) + 0.5) / (count * inside))
    points = jnp.stack(jnp.meshgrid(*[axis] * latent_dim, indexing="ij"), -1)
    points = points.reshape(*(count, inside) * latent_dim, latent_dim)
    axes = (*range(0, 2 * latent_dim, 2), *range(1, 2 * latent_dim, 2), 2 * latent_dim)
    return jnp.transpose(points, axes).reshape(count**latent_dim, -1, latent_dim)


def drawn(key, chosen, latent_dim, dtype):
    """Latents (n, q) from their prior in the cells that are chosen (n,)."""
    count = NODES[latent_dim]
    places = jnp.stack(jnp.unravel_index(chosen, (count,) * latent_dim), axis=-1)
    # Probabilities of zero or one would be infinite latents.
    edge = count * jnp.finfo(dtype).eps
    within = jax.random.uniform(key, places.shape, dtype, edge, 1.0 - edge)
    return ndtri((places + within) / count)


def clipped(latents):
    """Latents (*, q), those beyond the outermost nodes at these: decoders are not fitted there."""
    last = jnp.max(nodes(latents.shape[-1], latents.dtype))
    return jnp.clip(latents, -last, last)


def log_joint(decoded, noise_variance, values):
    """Log joint densities (n, M) of rows (n, D) and nodes decoded as rows (M, D)."""
    squares = jnp.sum(values**2, axis=1)[:, None] - 2.0 * values @ decoded.T
    distance = jnp.maximum(squares + jnp.sum(decoded**2, axis=1), 0.0)
    constant = values.shape[1] * jnp.log(2.0 * jnp.pi * noise_variance)
    return -0.5 * (distance / noise_variance + constant) - jnp.log(float(decoded.shape[0]))
