r"""Decoders and encoders as networks.

.. math:: x = f(z) + \varepsilon, \quad \varepsilon \sim N(0, \sigma^2 I_D), \quad
          \sigma^2 = s^2 + \sigma_0^2, \quad q(z \mid x) = N(m(x), \mathrm{diag}\, v(x))

with the perturbation :math:`s` as a floor of the noise: without it, a latent space as wide as the
data decodes the perturbation itself. Unless stated, :math:`\sigma_0` starts at a third of the
data's standard deviation: noise that shrinks during training is a perturbation that is annealed.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jax.scipy.special import logsumexp

from bayeskit.codec import storable
from bayeskit.models.singular.convolutional import ConvolutionalDecoder, ConvolutionalEncoder

CONVOLUTIONAL = "convolutional"
START = 0.3  # of σ₀, where the user states none
FLOOR = 1e-3  # of σ₀: without one, likelihoods of unperturbed data are unbounded
_ACTIVATION = jax.nn.relu
_LOG_DEVIATIONS = (-8.0, 3.0)
_INFLATION = 1.5  # of variances of the encoder, for importance sampling
_STEPS = 5  # of L-BFGS
_SHRUNK = 4.0  # times the smallest noise variance: no noise


class NetworkParameters(NamedTuple):
    """Arrays of both networks, and the logarithm of σ₀."""

    decoder: Any
    encoder: Any
    log_scale: Any


@storable
class Networks(NamedTuple):
    """A trained model of standardised data: weights (P,) of both networks, σ² and the level s.

    The encoder is ``None`` where none was trained.
    """

    decoder: Any
    encoder: Any
    noise_variance: Any
    level: Any


def is_network_shape(value) -> bool:
    """Whether a value states a width and a depth."""
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and all(isinstance(item, int) and not isinstance(item, bool) and item > 0 for item in value)
    )


def built(model, shape, key):
    """Decoder and encoder of rows of a shape: the user's own, or of random weights."""
    for_decoder, for_encoder = jax.random.split(key)
    latents = 2 * model.latent_dim
    encodes = partial(ConvolutionalEncoder, shape, latents)
    encoder = _network(model.encoder, math.prod(shape), latents, encodes, for_encoder)
    return _decoder(model, shape, for_decoder), encoder


def _decoder(model, shape, key):
    decodes = partial(ConvolutionalDecoder, model.latent_dim, shape)
    return _network(model.decoder, model.latent_dim, math.prod(shape), decodes, key)


def _network(stated, inputs, outputs, convolutional, key):
    if is_convolutional(stated):
        return convolutional(key=key)
    if not isinstance(stated, tuple):
        return stated
    width, depth = stated
    return eqx.nn.MLP(inputs, outputs, width, depth, _ACTIVATION, key=key)


def is_convolutional(stated) -> bool:
    """Whether a decoder or encoder is the default of images."""
    return isinstance(stated, str) and stated == CONVOLUTIONAL


def check_shapes(model, shape):
    """Raise ``ValueError`` where a network maps between other shapes than those of the data."""
    features = math.prod(shape)
    sizes = ((model.latent_dim, features), (features, 2 * model.latent_dim))
    for name, size in zip(("decoder", "encoder"), sizes, strict=True):
        network = getattr(model, name)
        if is_convolutional(network) and len(shape) == 1:
            raise ValueError(
                f"{name}={network!r} is for images (n, height, width) or (n, height, width, "
                f"channels), got rows of {features} numbers"
            )
        if isinstance(network, (tuple, str)):
            continue
        expected = f"{name} must map an array of shape ({size[0]},) to one of shape ({size[1]},)"
        try:
            found = eqx.filter_eval_shape(network, jax.ShapeDtypeStruct((size[0],), jnp.float32))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{expected}, and raised: {error}") from error
        if getattr(found, "shape", None) != (size[1],):
            raise ValueError(f"{expected}, got {found}")


def split(model, shape, dtype, key=None):
    """Arrays of both networks in one type, and what else they are made of."""
    networks = built(model, shape, jax.random.key(0) if key is None else key)
    arrays, rest = eqx.partition(networks, eqx.is_inexact_array)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), arrays), rest


def sizes(model, shape) -> dict[str, int]:
    """Numbers of weights of both networks."""
    networks, _ = split(model, shape, jnp.float32)
    return {
        name: sum(leaf.size for leaf in jax.tree.leaves(network))
        for name, network in zip(("decoder", "encoder"), networks, strict=True)
    }


def check_fixed(model):
    """Raise where the likelihood of perturbed rows is no fixed function of the networks alone."""
    if not isinstance(model.perturbation, float):
        raise ValueError(
            "EM of networks is for one perturbation, such as perturbation=0.1, got "
            f"{model.perturbation!r}; VariationalInference() chooses"
        )
    if model.fresh and model.perturbation > 0.0:
        raise ValueError(
            "EM of networks perturbs rows once for all: state fresh=False; fresh noise is for "
            "VariationalInference()"
        )


def perturbed_once(model, data):
    """All rows with the one level's noise, always the same."""
    rows = jnp.arange(data.num_rows)
    return model.variational_rows(data, rows, data.perturbation, jax.random.key(0))


def start(model, data, key) -> NetworkParameters:
    """Start values of a fit."""
    dtype = data.values.dtype
    (decoder, encoder), _ = split(model, data.shape, dtype, key)
    scale = data.noise_start if data.noise_learned else jnp.sqrt(data.noise_variance)
    return NetworkParameters(decoder, encoder, jnp.log(jnp.asarray(scale, dtype)))


def continued(model, data, parameters, networks) -> NetworkParameters:
    """Start values at an earlier fit, whose networks stay those of its own units."""
    decoder, encoder = unpacked(model, data, networks)
    encoder = parameters.encoder if encoder is None else encoder
    own = networks.noise_variance - networks.level**2 - FLOOR**2
    log_scale = 0.5 * jnp.log(jnp.maximum(own, FLOOR**2))
    return NetworkParameters(
        decoder, encoder, log_scale if data.noise_learned else parameters.log_scale
    )


def noise_variance_of(data, parameters, level):
    """σ², with the perturbation."""
    own = jnp.exp(2.0 * parameters.log_scale) + FLOOR**2
    return level**2 + (own if data.noise_learned else data.noise_variance)


def perturbed(data, key, values, level):
    """Rows (*, D) with noise of a level, and columns with ties that it leaves with uniform noise.

    Of the width of their spacing: see :mod:`bayeskit.models.singular.support`.
    """
    found = values + level * jax.random.normal(key, values.shape, values.dtype)
    if data.spacing is None:
        return found
    width = jnp.where(level < 0.5 * data.spacing, data.spacing, 0.0)
    key = jax.random.fold_in(key, 1)
    return found + width * jax.random.uniform(key, values.shape, values.dtype, -0.5, 0.5)


def noise_variance_from(data, misfit):
    """σ² of one level that maximises likelihood and prior at a mean squared residual.

    Of the logarithm of σ², whose density rises up to that and falls from there on.
    """
    if not data.noise_learned:
        return data.perturbation**2 + data.noise_variance
    concentration, rate = data.noise_prior
    best = (data.count * misfit + 2.0 * rate) / (data.count + 2.0 * concentration)
    return jnp.maximum(best, data.perturbation**2 + FLOOR**2)


def log_noise_prior(data, noise_variance):
    """See :meth:`SingularTable.log_noise_prior`, of a known noise."""
    return data.log_noise_prior(-jnp.log(noise_variance), 1.0 / noise_variance)


def is_shrunken(data, networks):
    """Whether the noise of unperturbed rows is the smallest that networks can have."""
    small = (networks.level == 0) & (networks.noise_variance < _SHRUNK * FLOOR**2)
    return small & data.noise_learned


def encode(model, data, encoder, values):
    """Means and log standard deviations (m, q) of the latents of rows (m, D)."""
    _, (_, rest) = split(model, data.shape, values.dtype)
    return moments_from(jax.vmap(eqx.combine(encoder, rest))(values))


def moments_from(encoded):
    """Means and log standard deviations (m, q) in what an encoder gives (m, 2 q)."""
    mean, log_deviation = jnp.split(encoded, 2, axis=-1)
    return mean, jnp.clip(log_deviation, *_LOG_DEVIATIONS)


def decode(model, data, decoder, latents):
    """Rows (*, D) of latents (*, q)."""
    _, (rest, _) = split(model, data.shape, latents.dtype)
    return mapped(eqx.combine(decoder, rest), latents)


def mapped(function, latents):
    """A function of arrays (q,) at latents (*, q).

    Along one axis after the other: several in one would lose how they are spread over devices.
    """
    for _ in latents.shape[:-1]:
        function = jax.vmap(function)
    return function(latents)


def before_last(decoder, latents):
    """What all layers but the last of a network of stated shape make of latents (*, q)."""
    for layer in decoder.layers[:-1]:
        latents = _ACTIVATION(mapped(layer, latents))
    return latents


def log_normal(values, means, variance):
    """Log densities of rows (*, D) with independent noise."""
    each = (values - means) ** 2 / variance + jnp.log(2.0 * jnp.pi * variance)
    return -0.5 * jnp.sum(each, axis=-1)


def log_joint(model, data, decoder, noise_variance, values, latents):
    """Log joint densities (particles, m) of rows (m, D) and latents (particles, m, q)."""
    means = decode(model, data, decoder, latents)
    return log_normal(values, means, noise_variance) + log_normal(latents, 0.0, 1.0)


def trained(decoder, encoder, noise_variance, level) -> Networks:
    """What a posterior keeps of a fit."""
    decoder, encoder = (
        None if network is None else ravel_pytree(network)[0] for network in (decoder, encoder)
    )
    return Networks(decoder, encoder, noise_variance, level)


def unpacked(model, data, networks):
    """Arrays of both networks from their weights, ``None`` of one that there is not."""
    arrays, _ = split(model, data.shape, data.values.dtype)
    return tuple(
        None if flat is None else ravel_pytree(like)[1](flat)
        for like, flat in zip(arrays, (networks.decoder, networks.encoder), strict=True)
    )


def whole_decoder(model, shape, networks):
    """The decoder of rows of a shape, ready to be called."""
    like, rest = eqx.partition(_decoder(model, shape, jax.random.key(0)), eqx.is_inexact_array)
    like = jax.tree.map(lambda leaf: jnp.asarray(leaf, networks.decoder.dtype), like)
    return eqx.combine(ravel_pytree(like)[1](networks.decoder), rest)


def proposed(model, data, encoder, values, key, particles):
    """Latents (particles, m, q) of rows (m, D), and log ratios (particles, m) to weigh them by.

    Half are drawn from their prior and half around the encoder's, and weighed as draws of the
    mixture of the two, so that no weight is large where the encoder is wrong. The ratios are of
    the prior and that mixture.
    """
    mean, log_deviation = encode(model, data, encoder, values)
    deviation = jnp.sqrt(_INFLATION) * jnp.exp(log_deviation)
    white = jax.random.normal(key, (particles, *mean.shape), mean.dtype)
    near = jnp.arange(particles)[:, None, None] % 2 == 0
    latents = jnp.where(near, mean + deviation * white, white)
    prior = log_normal(latents, 0.0, 1.0)
    guide = log_normal(latents, mean, deviation**2)
    return latents, prior - (jnp.logaddexp(prior, guide) - jnp.log(2.0))


def log_weights(model, data, networks, noise_variance, values, key, particles):
    """Log importance weights (particles, m) of latents given rows (m, D)."""
    decoder, encoder = unpacked(model, data, networks)
    latents, ratios = proposed(model, data, encoder, values, key, particles)
    return ratios + log_normal(values, decode(model, data, decoder, latents), noise_variance)


def log_densities(model, data, networks, noise_variance, values, key, particles):
    """Log densities (m,) of rows (m, D), by importance sampling."""
    weights = log_weights(model, data, networks, noise_variance, values, key, particles)
    return logsumexp(weights, axis=0) - jnp.log(float(particles))


def lessened(function, start):
    """Parameters where a function is no larger than at the start, by steps of L-BFGS."""
    optimizer = optax.lbfgs()
    value_and_gradient = optax.value_and_grad_from_state(function)

    def step(carry, _):
        parameters, state = carry
        value, gradient = value_and_gradient(parameters, state=state)
        updates, state = optimizer.update(
            gradient, state, parameters, value=value, grad=gradient, value_fn=function
        )
        return (optax.apply_updates(parameters, updates), state), None

    (found, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), length=_STEPS)
    return optax.tree.where(function(found) <= function(start), found, start)
