r"""Variational messages for linear decoders.

The approximation :math:`\prod_i q(z_i) \prod_d q(w_d, \mu_d)\, q(\sigma^2)` has Gaussian factors
and an inverse-gamma one, all of them exact given the others. The prior of loadings and offsets of
standardised data is standard normal. C. Bishop, "Variational principal components", ICANN 1999;
missing values: A. Ilin and T. Raiko, Journal of Machine Learning Research, 2010.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.scipy.special import digamma, gammaln

from bayeskit.codec import storable
from bayeskit.models.singular import linear


@storable
class DecoderMessages(NamedTuple):
    """Factors of loadings with offsets, and of the noise variance.

    Attributes
    ----------
    mean : array (D, q + 1)
    precision : array (1, q + 1, q + 1) or (D, q + 1, q + 1)
    noise_concentration, noise_rate : scalars
    """

    mean: Any
    precision: Any
    noise_concentration: Any
    noise_rate: Any


def messages_at(data, decoder) -> DecoderMessages:
    """Factors around a decoder, as narrow as if all latents were known."""
    mean = linear.known(decoder).mean
    noise = decoder.noise_variance
    features = 1 if data.observed is None else mean.shape[0]
    size = mean.shape[1]
    rows = data.values.shape[0] / noise
    precision = jnp.broadcast_to(rows * jnp.eye(size, dtype=mean.dtype), (features, size, size))
    concentration = _concentration(data)
    return DecoderMessages(mean, precision, concentration, concentration * noise)


def _concentration(data):
    if not data.noise_learned:
        return jnp.ones((), data.values.dtype)
    return data.noise_prior[0] + 0.5 * data.count


def affine(data, messages) -> linear.Affine:
    """Decoders as latents see them."""
    covariance, _ = linear.inverse(messages.precision)
    precision = messages.noise_concentration / messages.noise_rate
    log_precision = jnp.log(precision)
    if data.noise_learned:
        log_precision = digamma(messages.noise_concentration) - jnp.log(messages.noise_rate)
    return linear.Affine(messages.mean, covariance, precision, log_precision)


def _gain(found, precision):
    """Natural parameters of the rows' factors: precisions, and those times the means."""
    eye = jnp.eye(found.cross.shape[1], dtype=found.cross.dtype)
    return eye + precision * found.second, precision * found.cross


def _solve(precision, weighted):
    """Means and covariances of Gaussians of natural parameters."""
    covariance, _ = linear.inverse(precision)
    return linear.apply(covariance, weighted), covariance


def renewed(data, messages, found, damping) -> DecoderMessages:
    """Factors given the latents' moments; a share of the old natural parameters is kept."""
    kept, gone = damping, 1.0 - damping
    noise_precision = messages.noise_concentration / messages.noise_rate
    precision, weighted = _gain(found, noise_precision)
    precision = gone * precision + kept * messages.precision
    weighted = gone * weighted + kept * linear.apply(messages.precision, messages.mean)
    mean, covariance = _solve(precision, weighted)
    if not data.noise_learned:
        return messages._replace(mean=mean, precision=precision)
    return DecoderMessages(
        mean,
        precision,
        gone * _concentration(data) + kept * messages.noise_concentration,
        gone * _noise_rate(data, mean, covariance, found) + kept * messages.noise_rate,
    )


def _noise_rate(data, mean, covariance, found):
    smallest = data.count * linear.smallest_variance(data.values)
    misfit = jnp.maximum(_misfit(mean, covariance, found), smallest)
    return data.noise_prior[1] + 0.5 * misfit


def _misfit(mean, covariance, found):
    """Expected sum of squares of what the decoder leaves of the rows."""
    features = mean.shape[0]
    second = jnp.broadcast_to(found.second, (features, *found.second.shape[1:]))
    spread = mean[:, :, None] * mean[:, None, :] + covariance
    return jnp.sum(found.squares) - 2 * jnp.sum(mean * found.cross) + jnp.sum(spread * second)


def bound(data, messages, decoder):
    """The evidence bound, latents at their best; but for a constant where the noise's is flat."""
    latents = linear.latents_given(decoder, data.values, data.observed)
    rows = linear.log_densities(decoder, latents, data.values, data.observed, data.perturbation)
    return jnp.sum(rows) - _divergence(messages, decoder) + _noise_gain(data, messages, decoder)


def _divergence(messages, decoder):
    """Of the factors of loadings and offsets from their prior."""
    features, size = messages.mean.shape
    _, log_determinant = linear.inverse(messages.precision)
    each = jnp.trace(decoder.covariance, axis1=-2, axis2=-1) - size - log_determinant
    return 0.5 * (jnp.sum(jnp.broadcast_to(each, (features,))) + jnp.sum(messages.mean**2))


def _noise_gain(data, messages, decoder):
    """``E log p - E log q`` of the logarithm of the noise variance."""
    if not data.noise_learned:
        return jnp.zeros((), messages.mean.dtype)
    concentration = messages.noise_concentration
    entropy = gammaln(concentration) + concentration - concentration * digamma(concentration)
    return entropy + data.log_noise_prior(decoder.log_precision, decoder.precision)


def rotated(messages) -> DecoderMessages:
    """The same with loadings along their principal axes, which changes no density."""
    rotation = linear.principal_axes(messages.mean[:, :-1])
    size = messages.mean.shape[1]
    whole = jnp.eye(size, dtype=rotation.dtype).at[:-1, :-1].set(rotation)
    return messages._replace(
        mean=messages.mean @ whole, precision=whole.T @ messages.precision @ whole
    )


def without(data, messages, own, decoder):
    """Decoders without the messages of one row, of which ``own`` are the moments."""
    rest = messages.precision - decoder.precision * own.second
    weighted = linear.apply(messages.precision, messages.mean) - decoder.precision * own.cross
    mean, covariance = _solve(rest, weighted)
    precision = decoder.precision
    if data.noise_learned:
        concentration = messages.noise_concentration - 0.5 * jnp.sum(own.counts)
        misfit = _misfit(messages.mean, decoder.covariance, own)
        precision = concentration / (messages.noise_rate - 0.5 * misfit)
    return decoder._replace(mean=mean, covariance=covariance, precision=precision)


def center(messages) -> linear.LinearDecoder:
    """The decoder of the means, and the inverse of the mean precision of the noise."""
    mean = messages.mean
    noise = messages.noise_rate / messages.noise_concentration
    return linear.LinearDecoder(mean[:, :-1], mean[:, -1], noise)
