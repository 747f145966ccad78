"""Networks as an ordinary model and guide of NumPyro's."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.module import eqx_module

from bayeskit.models.singular import deep


def model_and_guide(model, data, source, batch_size, key, trained):
    """Functions of a JAX key, which perturbs the rows of a batch that the plate chooses.

    They hold ``source``, what the user gave: rows that are streamed are read from there.
    """
    start = deep.start(model, data, key)
    if trained:
        start = deep.continued(model, data, start, data.given[0])
    _, rest = deep.split(model, data.shape, data.unit.dtype)
    networks = tuple(map(eqx.combine, (start.decoder, start.encoder), rest))
    # On the host: both functions are in the precision that is in force when they are called.
    data, networks, log_start = jax.tree.map(
        lambda leaf: np.asarray(leaf) if eqx.is_array(leaf) else leaf,
        (data, networks, start.log_scale),
    )
    kept = data, source
    size = min(batch_size, data.num_rows)

    def network(index):
        whole = jax.tree.map(
            lambda leaf: jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf,
            networks[index],
        )
        registered: Any = eqx_module(("decoder", "encoder")[index], whole)
        return jax.vmap(registered)

    def batch():
        table = jax.tree.map(jnp.asarray, kept[0])
        return table, numpyro.plate("rows", table.num_rows, subsample_size=size)

    def joint(key):
        decoder = network(0)
        table, plate = batch()
        log_scale = jnp.zeros(())
        if table.noise_learned:
            log_scale = numpyro.param("log_scale", jnp.asarray(log_start))
        parameters = deep.NetworkParameters(None, None, log_scale)
        noise = deep.noise_variance_of(table, parameters, table.perturbation)
        scale = jnp.sqrt(noise)
        with plate as rows:
            values = model.variational_rows(table, rows, table.perturbation, key)
            standard = dist.Normal(jnp.zeros(model.latent_dim), 1.0).to_event(1)
            latents = numpyro.sample("latents", standard)
            decoded = dist.Normal(decoder(latents), scale).to_event(1)
            numpyro.sample("x", decoded, obs=values)
            if table.noise_learned and table.proper:
                # Shares of all rows: bounds of several particles are of the rows of the plate.
                share = deep.log_noise_prior(table, noise) / table.num_rows
                numpyro.factor("noise_prior", jnp.broadcast_to(share, rows.shape))

    def guide(key):
        encoder = network(1)
        table, plate = batch()
        with plate as rows:
            values = model.variational_rows(table, rows, table.perturbation, key)
            mean, log_deviation = deep.moments_from(encoder(values))
            numpyro.sample("latents", dist.Normal(mean, jnp.exp(log_deviation)).to_event(1))

    return joint, guide
