r"""The last layer of a decoder, which is Gaussian where everything else is known.

.. math:: x_i = W h(z_i) + \varepsilon_i, \quad \varepsilon_i \sim N(0, \sigma^2 I_D), \quad
          W_{dj} \sim N(0, \tau^2)

with what the layers before make of latents, and a one for the bias, in :math:`h(z)`: a regression
with the precision :math:`\sigma^{-2} \sum_i E[h(z_i) h(z_i)^\top] + \tau^{-2} I` for every row of
:math:`W`. The mean square of the trained weights stands for :math:`\tau^2`. Only decoders that were
stated by width and depth are known to end in such a layer.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bayeskit.codec import storable
from bayeskit.linalg import safe
from bayeskit.models.singular import deep

SITE = "last_layer"
_BLOCK = 1024  # rows
_DRAWS = 8192  # of the noise and the latents at least, over all rows


@storable
class LastLayer(NamedTuple):
    """Independent rows of weights with one covariance.

    Attributes
    ----------
    mean : array (D, w + 1)
        The bias last.
    factor : array (w + 1, w + 1)
        Lower Cholesky factor of the precision.
    """

    mean: Any
    factor: Any

    def variances(self):
        """Of all weights (D, w + 1)."""
        identity = jnp.eye(self.factor.shape[0], dtype=self.factor.dtype)
        columns = safe.solve_triangular(self.factor, identity)
        return jnp.broadcast_to(jnp.sum(columns**2, axis=0), self.mean.shape)

    def variance_at(self, features):
        """Of every decoded number (*,), given what the layers before made of latents (*, w + 1)."""
        flat = features.reshape(-1, features.shape[-1]).astype(self.factor.dtype)
        spread = jnp.sum(safe.solve_triangular(self.factor, flat.T) ** 2, axis=0)
        return spread.reshape(features.shape[:-1]).astype(features.dtype)

    def drawn(self, white):
        """Weights (D, w + 1) from white numbers of that shape."""
        return self.mean + safe.solve_triangular(self.factor, white.T, adjoint=True).T


def is_known(model) -> bool:
    """Whether a model's decoder ends in a linear layer that we know of."""
    return isinstance(model.decoder, tuple)


def around_trained(model, data, networks, gram):
    r"""A Gaussian around trained weights, given :math:`\sum_i E[h h^\top]`.

    At a maximum of the likelihood they are what the regression finds, but for its prior.
    """
    weights = trained(model, data, networks)
    return LastLayer(weights, _factor(gram, networks.noise_variance, weights))


def given_latents(model, data, networks, latents, rows) -> LastLayer:
    """The exact posterior, given the latents (n, q) of all rows (n, D)."""
    features = before(model, data, networks, latents)
    weights = trained(model, data, networks)
    factor = _factor(gram_of(features), networks.noise_variance, weights)
    cross = features.astype(factor.dtype).T @ rows / networks.noise_variance
    half = safe.solve_triangular(factor, cross)
    return LastLayer(safe.solve_triangular(factor, half, adjoint=True).T, factor)


def _factor(gram, noise_variance, weights):
    # In doubles: features are collinear, and their products are divided by a small number.
    precision = gram / noise_variance
    ridge = 1.0 / jnp.mean(weights**2)
    return safe.cholesky(precision + ridge * jnp.eye(precision.shape[0], dtype=precision.dtype))


def gram_of(features, weights=None):
    """Sum of products (w + 1, w + 1) of features (m, w + 1), maybe weighted, in doubles."""
    features = features.astype(jnp.result_type(float))
    weighted = features if weights is None else weights[:, None] * features
    return weighted.T @ features


def by_encoder(model, data, networks, share=1.0):
    """As :func:`around_trained`, of a share of the perturbed rows; ``None`` of other decoders."""
    if not is_known(model):
        return None
    return around_trained(model, data, networks, share * _encoded_gram(model, data, networks))


def _encoded_gram(model, data, networks):
    """Expected sum of products of features: of perturbed rows' latents, by the encoder."""
    _, encoder = deep.unpacked(model, data, networks)
    size = min(data.num_rows, _BLOCK)
    number, draws = -(-data.num_rows // size), -(-_DRAWS // data.num_rows)
    indices = jnp.arange(number * size).reshape(number, size)

    def block(total, rows):
        def one(key):
            for_rows, for_latents = jax.random.split(key)
            inside = jnp.minimum(rows, data.num_rows - 1)
            values = model.variational_rows(data, inside, networks.level, for_rows)
            mean, log_deviation = deep.encode(model, data, encoder, values)
            white = jax.random.normal(for_latents, mean.shape, mean.dtype)
            features = before(model, data, networks, mean + jnp.exp(log_deviation) * white)
            return gram_of(features, (rows < data.num_rows) / float(draws))

        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), rows[0]), draws)
        return total + jnp.sum(jax.lax.map(one, keys), axis=0), None

    width = model.decoder[0] + 1
    start = jnp.zeros((width, width), jnp.result_type(float))
    return jax.lax.scan(block, start, indices)[0]


def before(model, data, networks, latents):
    """What all layers but the last make of latents (*, q), and a one: (*, w + 1)."""
    decoder = deep.whole_decoder(model, data.shape, networks)
    found = deep.before_last(decoder, latents)
    return jnp.concatenate([found, jnp.ones((*found.shape[:-1], 1), found.dtype)], axis=-1)


def trained(model, data, networks):
    """Weights (D, w + 1) of the last layer as they were trained."""
    last = deep.whole_decoder(model, data.shape, networks).layers[-1]
    weights = jnp.concatenate([last.weight, last.bias[:, None]], axis=1)
    return weights.astype(jnp.result_type(float))


def replaced(networks, weights):
    """Networks with other weights (D, w + 1) in the last layer of the decoder."""
    # Of all arrays of a network, which are flat one after the other, its weight and bias are last.
    flat = jnp.concatenate([weights[:, :-1].ravel(), weights[:, -1]]).astype(networks.decoder.dtype)
    return networks._replace(decoder=networks.decoder.at[-flat.shape[0] :].set(flat))
