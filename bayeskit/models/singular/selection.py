"""The level of a perturbation, by the rate of the theory and by held-out rows."""

import jax
import jax.numpy as jnp
import numpy as np

from bayeskit.models.singular import deep

_DRAWS = 16  # of noise, when levels are compared
_PARTICLES = 500


def rate_level(rows, latent_dim):
    """Level of the perturbation that the theory's rate suggests, for smoothness two.

    ``2 n^(-β / (2 (β + q)))``, in units of the data's standard deviation; the theory leaves the
    factor open.
    """
    return 2.0 * float(rows ** (-1.0 / (2.0 + latent_dim)))


def candidates(rows, latent_dim):
    """Levels that ``"auto"`` chooses from: none, and up to the one of the rate."""
    return tuple(np.array([0.0, 0.125, 0.25, 0.5, 1.0]) * rate_level(rows, latent_dim))


def compared(model, data, networks, settings, held_out, key):
    """Index of the smallest level whose held-out density is the best but for its error.

    And densities (G,) at one scale, and errors of their differences from the largest.
    """
    scale = rate_level(data.num_rows, model.latent_dim)

    def density(networks):
        own = networks.noise_variance - networks.level**2
        return _common_densities(model, data, networks, own, held_out, scale, key, _PARTICLES)

    densities = jax.lax.map(density, networks)
    mean = jnp.mean(densities, axis=1)
    mean = jnp.where(jnp.isfinite(mean), mean, -jnp.inf)
    lost = densities[jnp.argmax(mean)] - densities
    error = jnp.std(lost, axis=1) / jnp.sqrt(float(held_out.shape[0]))
    error = jnp.where(jnp.isfinite(error), error, jnp.inf)
    close = jnp.isfinite(mean) & (jnp.max(mean) - mean <= error)
    chosen = jnp.argmin(jnp.where(close, settings, jnp.inf))
    return chosen, mean, error


def _common_densities(model, data, networks, own_variance, held_out, scale, key, particles):
    """Log densities (h,) of held-out rows with noise of one ``scale``, that of no fit's training.

    Noise of the data that a fit has found stays in its density. Averaged over draws of the noise,
    which are the same for all fits.
    """
    rows = data.values[held_out]

    def one(key):
        for_noise, for_latents = jax.random.split(key)
        noisy = rows + scale * jax.random.normal(for_noise, rows.shape, rows.dtype)
        variance = scale**2 + own_variance
        return deep.log_densities(model, data, networks, variance, noisy, for_latents, particles)

    return jnp.mean(jax.lax.map(one, jax.random.split(key, _DRAWS)), axis=0)
