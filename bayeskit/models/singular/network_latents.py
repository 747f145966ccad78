"""Posteriors of latents given networks: by an encoder, or on a grid."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from bayeskit.models.singular import deep, grid, last_layer
from bayeskit.models.singular.decoding import PARTICLES, ROW_BLOCK, Decoding
from bayeskit.results import map_in_blocks

_MOMENT_DRAWS = 1024


class _Trained(Decoding):
    """What all distributions of latents given networks have in common."""

    networks: eqx.AbstractVar[deep.Networks]
    last_layer: eqx.AbstractVar[Any]

    @abc.abstractmethod
    def drawn(self, key, model, data, rows):
        """One draw of the latents of standardised rows; the data's where there are none."""

    def noise(self, model, data):
        return self.networks.noise_variance

    def level(self, data):
        return self.networks.level

    def own_noise(self, data):
        """Noise variance of the data themselves, of standardised data."""
        return self.networks.noise_variance - self.networks.level**2

    def decoded(self, model, data, latents):
        """Standardised rows (*, D) of latents (*, q)."""
        decoder, _ = deep.unpacked(model, data, self.networks)
        return deep.decode(model, data, decoder, latents)

    def latent(self, key, model, data):
        """One latent (q,) of the distribution."""
        return jax.random.normal(key, (model.latent_dim,), data.values.dtype)

    def generated(self, key, model, data, observation_noise):
        for_latent, for_noise = jax.random.split(key)
        row = self.decoded(model, data, self.latent(for_latent, model, data))
        if observation_noise:
            row = row + jnp.sqrt(self.own_noise(data)) * jax.random.normal(
                for_noise, row.shape, row.dtype
            )
        return row

    def moments(self, model, data):
        mean, variance = self.encoded(model, data, None)
        sites = self.plugged_in(model, data)
        means = {"latents": mean, **sites}
        variances = {"latents": variance, **jax.tree.map(jnp.zeros_like, sites)}
        if self.last_layer is not None:
            means[last_layer.SITE] = self.last_layer.mean
            variances[last_layer.SITE] = self.last_layer.variances()
        return as_data(data, means), as_data(data, variances)

    def sample(self, key, model, data):
        sites = {"latents": self.drawn(key, model, data, None)}
        if self.last_layer is not None:
            shape = self.last_layer.mean.shape
            white = jax.random.normal(jax.random.fold_in(key, 1), shape)
            sites[last_layer.SITE] = self.last_layer.drawn(white)
        return as_data(data, sites)

    def decoder_variance(self, model, data, latents):
        """Of every number of the rows (*, D) that latents (*, q) are decoded to: (*,)."""
        if self.last_layer is None:
            return jnp.zeros(latents.shape[:-1], latents.dtype)
        features = last_layer.before(model, data, self.networks, latents)
        return self.last_layer.variance_at(features)

    def plugged_in(self, model, data):
        return network_sites(self.networks, data)


class EncodedLatents(_Trained):
    """Independent Gaussian latents from an encoder, networks given.

    Attributes
    ----------
    networks : Networks
    last_layer : LastLayer or None
        Where the decoder has one that is known, and its own rows told of it.
    tried : Networks
        Of all perturbations that were tried, stacked on axis 0.
    densities, errors : arrays (G,)
        Log densities of held-out rows at one scale for all, and standard errors of their
        differences from the largest; zeros where there was no choice.
    """

    networks: deep.Networks
    last_layer: Any
    tried: deep.Networks
    densities: Any
    errors: Any

    @property
    def levels(self):
        """Perturbations (G,) that were tried."""
        return self.tried.level

    def encoded(self, model, data, rows):
        _, encoder = deep.unpacked(model, data, self.networks)

        def of_rows(values):
            mean, log_deviation = deep.encode(model, data, encoder, values)
            return mean, jnp.exp(2.0 * log_deviation)

        return data.map_rows(of_rows) if rows is None else of_rows(rows[0])

    def drawn(self, key, model, data, rows):
        mean, variance = self.encoded(model, data, rows)
        return mean + jnp.sqrt(variance) * jax.random.normal(key, mean.shape, mean.dtype)

    def predict(self, inputs, include_noise, model, data):
        rows = None if inputs is None else inputs.standardised(data)
        means, variances = self.encoded(model, data, rows)
        white = jax.random.normal(jax.random.key(0), (_MOMENT_DRAWS, model.latent_dim), means.dtype)

        def one(row):
            mean, variance = row
            latents = mean + jnp.sqrt(variance) * white
            found = self.decoded(model, data, latents)
            of_decoder = jnp.mean(self.decoder_variance(model, data, latents))
            return jnp.mean(found, axis=0), jnp.var(found, axis=0) + of_decoder

        mean, variance = map_in_blocks(one, (means, variances), ROW_BLOCK)
        if include_noise:
            variance = variance + self.own_noise(data)
        return data.center + data.unit * mean, data.unit**2 * variance

    def _density(self, model, data, key, row, particles):
        """Log density of one row, and its log importance weights (particles,)."""
        noise = self.networks.noise_variance
        found = deep.log_weights(model, data, self.networks, noise, row[None], key, particles)[:, 0]
        return logsumexp(found) - jnp.log(float(particles)), found

    def row_densities(self, model, data, values, observed, particles):
        keys = jax.random.split(jax.random.key(0), values.shape[0])

        def one(item):
            key, row = item
            return self._density(model, data, key, row, particles)

        return map_in_blocks(one, (keys, values), ROW_BLOCK)

    def log_predictive(self, model, data):
        # As of ``row_densities``, whose weights of all rows together may be many.
        def one(item):
            key, row = item
            return self._density(model, data, key, data.values[row], PARTICLES)[0]

        keys = jax.random.split(jax.random.key(0), data.num_rows)
        density = map_in_blocks(one, (keys, jnp.arange(data.num_rows)), ROW_BLOCK)
        density = density - data.center.shape[0] * jnp.log(data.unit)
        return density, density


def encoded_latents(networks, layer=None) -> EncodedLatents:
    """Of networks of one level, among which there was no choice."""
    nothing = jnp.zeros_like(networks.level[None])
    tried = jax.tree.map(lambda leaf: leaf[None], networks)
    return EncodedLatents(networks, layer, tried, nothing, nothing)


class GridLatents(_Trained):
    """Latents on a grid with their exact probabilities, decoder given."""

    networks: deep.Networks
    last_layer: Any = None

    def _grid(self, model, data, rows):
        """Nodes (M, q), and log joint densities (n, M) of rows and them."""
        values = data.all_rows if rows is None else rows[0]
        nodes = grid.nodes(model.latent_dim, values.dtype)
        decoded = self.decoded(model, data, nodes)
        return nodes, grid.log_joint(decoded, self.networks.noise_variance, values)

    def latent(self, key, model, data):
        return grid.clipped(super().latent(key, model, data))

    def encoded(self, model, data, rows):
        _, joint = self._grid(model, data, rows)
        return _moments_of(joint, *grid.cells(model.latent_dim, joint.dtype))

    def drawn(self, key, model, data, rows):
        nodes, joint = self._grid(model, data, rows)
        for_cells, for_places = jax.random.split(key)
        # One number a row, where categorical draws take one a node.
        uniform = jax.random.uniform(for_cells, (joint.shape[0], 1), joint.dtype)
        below = jnp.cumsum(jax.nn.softmax(joint, axis=1), axis=1) < uniform
        chosen = jnp.minimum(jnp.sum(below, axis=1), nodes.shape[0] - 1)
        return grid.drawn(for_places, chosen, model.latent_dim, joint.dtype)

    def predict(self, inputs, include_noise, model, data):
        rows = None if inputs is None else inputs.standardised(data)
        _, joint = self._grid(model, data, rows)
        inside = grid.within_cells(model.latent_dim, joint.dtype)
        found = self.decoded(model, data, inside)
        of_decoder = jnp.mean(self.decoder_variance(model, data, inside), axis=1, keepdims=True)
        within = jnp.var(found, axis=1) + of_decoder
        mean, variance = _moments_of(joint, jnp.mean(found, axis=1), within)
        if include_noise:
            variance = variance + self.own_noise(data)
        return data.center + data.unit * mean, data.unit**2 * variance

    def row_densities(self, model, data, values, observed, particles):
        _, joint = self._grid(model, data, (values, observed))
        return logsumexp(joint, axis=1), None


def _moments_of(joint, means, variances):
    """Means and variances (n, d) of mixtures of cells (M, d), by log joint densities (n, M)."""
    shares = jax.nn.softmax(joint, axis=1)
    mean = shares @ means
    # About the mean of all cells: squares of what is far from zero cancel.
    center = jnp.mean(means, axis=0)
    between = shares @ (means - center) ** 2 - (mean - center) ** 2
    return mean, jnp.maximum(between, 0.0) + shares @ variances


def as_data(data, sites):
    """In the type of the data."""
    return {name: value.astype(data.unit.dtype) for name, value in sites.items()}


def at_level(approximation, model, data, index) -> EncodedLatents:
    """The posterior at another of the levels that were tried, for ``Posterior.evaluate``."""
    networks = jax.tree.map(lambda leaf: leaf[index], approximation.tried)
    share = 1.0 - model.held_out(data) / data.num_rows
    layer = last_layer.by_encoder(model, data, networks, share)
    kept = approximation.tried, approximation.densities, approximation.errors
    return EncodedLatents(networks, layer, *kept)


def network_sites(networks, data):
    """Sites of networks in the user's units."""
    sites = {
        "noise_variance": data.unit**2 * networks.noise_variance,
        "perturbation": data.unit * networks.level,
        "decoder_weights": networks.decoder,
        "encoder_weights": networks.encoder,
        "center": data.center,
        "unit": data.unit,
    }
    return {name: value for name, value in sites.items() if value is not None}
