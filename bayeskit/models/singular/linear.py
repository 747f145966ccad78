r"""Linear decoders: exact Gaussian posteriors of latents, and maximum likelihood.

.. math:: x_i = W z_i + \mu + \varepsilon_i, \quad z_i \sim N(0, I_q), \quad
          \varepsilon_i \sim N(0, \sigma^2 I_D)

M. Tipping and C. Bishop, "Probabilistic principal component analysis", Journal of the Royal
Statistical Society B, 1999. Rows are perturbed by fresh noise of variance :math:`s^2` without
drawing any: all that is computed are expectations over it. A decoder may be known only up to a
Gaussian distribution of each row :math:`(w_d, \mu_d)`, independent of the others; expectations are
then over that too.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from bayeskit.codec import storable
from bayeskit.linalg import safe


@storable
class LinearDecoder(NamedTuple):
    """A linear decoder of standardised data: W (D, q), μ (D,), and σ² with the perturbation."""

    loadings: Any
    offset: Any
    noise_variance: Any


class Affine(NamedTuple):
    """What the latents see of a decoder, or of a distribution of decoders.

    Attributes
    ----------
    mean : array (D, q + 1)
        Of ``[W, μ]``.
    covariance : array (1, q + 1, q + 1) or (D, q + 1, q + 1) or None
        Of its rows; one for all, one each, or ``None`` where the decoder is known.
    precision, log_precision : scalars
        Expectations of ``1 / σ²`` and of its logarithm.
    """

    mean: Any
    covariance: Any
    precision: Any
    log_precision: Any


class Latents(NamedTuple):
    """Gaussian posteriors of latents.

    Attributes
    ----------
    mean : array (n, q)
    covariance : array (1, q, q) or (n, q, q)
        One for all rows where no value is missing.
    log_determinant : array (1,) or (n,)
        Of ``covariance``.
    gram : array (1, q, q) or (n, q, q)
        ``Σ_d w_d w_dᵀ`` over the observed features of a row, of the mean decoder.
    """

    mean: Any
    covariance: Any
    log_determinant: Any
    gram: Any


class Moments(NamedTuple):
    """Expected sums over rows, for every feature over those rows in which it is observed.

    Attributes
    ----------
    second : array (1, q + 1, q + 1) or (D, q + 1, q + 1)
        Of ``z zᵀ`` with ``z`` continued by a one.
    cross : array (D, q + 1)
        Of ``x_d z``.
    squares, counts : arrays (D,)
        Of ``x_d²`` and of ones.
    """

    second: Any
    cross: Any
    squares: Any
    counts: Any


def known(decoder):
    """A decoder without uncertainty, as latents see it."""
    mean = jnp.concatenate([decoder.loadings, decoder.offset[:, None]], axis=1)
    return Affine(mean, None, 1.0 / decoder.noise_variance, -jnp.log(decoder.noise_variance))


def _by_row(observed, matrices):
    """Sums over the observed features of matrices (D, p, p): (n, p, p)."""
    flat = observed @ matrices.reshape(matrices.shape[0], -1)
    return flat.reshape(-1, *matrices.shape[1:])


def _identity_like(matrices):
    return jnp.broadcast_to(jnp.eye(matrices.shape[-1], dtype=matrices.dtype), matrices.shape)


def inverse(matrices):
    """Inverses of positive definite matrices (*, p, p), and the logarithms of their determinants.

    Of the inverses: covariances, which are results themselves.
    """
    lower = safe.cholesky(matrices)
    half = safe.solve_triangular(lower, _identity_like(lower))
    diagonal = jnp.diagonal(lower, axis1=-2, axis2=-1)
    return jnp.swapaxes(half, -1, -2) @ half, -2.0 * jnp.sum(jnp.log(diagonal), axis=-1)


def latents_given(affine, values, observed) -> Latents:
    """Posteriors of the latents of rows (n, D), zero where ``observed`` (n, D) is.

    Cost O(n D q + q³); O(n D q² + n q³) and memory O(n q²) where values are missing.
    """
    loadings, offset = affine.mean[:, :-1], affine.mean[:, -1]
    outer = loadings[:, :, None] * loadings[:, None, :]
    both, cross = outer, loadings * offset[:, None]
    if affine.covariance is not None:
        both = both + affine.covariance[:, :-1, :-1]
        cross = cross + affine.covariance[:, :-1, -1]
    if observed is None:
        gram, both = jnp.sum(outer, 0, keepdims=True), jnp.sum(both, 0, keepdims=True)
        cross = jnp.sum(cross, 0, keepdims=True)
    else:
        gram, both, cross = _by_row(observed, outer), _by_row(observed, both), observed @ cross
    covariance, log_determinant = inverse(_identity_like(both) + affine.precision * both)
    right = affine.precision * (values @ loadings - cross)
    return Latents(apply(covariance, right), covariance, log_determinant, gram)


def apply(matrices, vectors):
    """Products of matrices (1 or n, p, p) with vectors (n, p)."""
    if matrices.shape[0] == 1:
        return vectors @ matrices[0].T
    return jnp.einsum("nij,nj->ni", matrices, vectors)


def _quadratic(matrices, vectors):
    return jnp.sum(vectors * apply(matrices, vectors), axis=-1)


def continued(vectors):
    """Vectors (n, q) with a one at their end, (n, q + 1)."""
    return jnp.concatenate([vectors, jnp.ones_like(vectors[:, :1])], axis=1)


def log_densities(affine, latents, values, observed, level=0.0):
    """Log densities of rows (n,), latents integrated out; expected over noise of ``level``.

    Exact for a known decoder; for a distribution of decoders, the part of the evidence bound that
    the rows have.
    """
    counts = values.shape[1] if observed is None else jnp.sum(observed, axis=1)
    points = continued(latents.mean)
    residual = values - points @ affine.mean.T
    if observed is not None:
        residual = observed * residual
    misfit = jnp.sum(residual**2, axis=1)
    if affine.covariance is not None:
        covariance = affine.covariance
        if observed is None:
            total = jnp.sum(
                jnp.broadcast_to(covariance, (values.shape[1], *covariance.shape[1:])), 0
            )
            misfit = misfit + _quadratic(total[None], points)
        else:
            misfit = misfit + _quadratic(_by_row(observed, covariance), points)
    explained = jnp.trace(latents.covariance @ latents.gram, axis1=-2, axis2=-1)
    noise = level**2 * (counts - affine.precision * explained)
    return 0.5 * (
        latents.log_determinant
        - affine.precision * (misfit + noise)
        - jnp.sum(latents.mean**2, axis=1)
        + counts * (affine.log_precision - jnp.log(2.0 * jnp.pi))
    )


def moments(affine, latents, values, observed, level) -> Moments:
    """Expected sums over rows and over noise of ``level``, which moves the latents' means."""
    variance, gain = level**2, affine.precision
    loadings = affine.mean[:, :-1]
    mean, covariance = latents.mean, latents.covariance
    spread = covariance + variance * gain**2 * covariance @ latents.gram @ covariance
    if observed is None:
        count = values.shape[0]
        points = continued(mean)
        second = (points.T @ points).at[:-1, :-1].add(count * spread[0])[None]
        moved = count * loadings @ covariance[0]
        counts = jnp.full(values.shape[1], float(count), values.dtype)
    else:
        points = continued(mean)
        each = (points[:, :, None] * points[:, None, :]).at[:, :-1, :-1].add(spread)
        second = _by_row(observed.T, each)
        moved = apply(_by_row(observed.T, covariance), loadings)
        counts = jnp.sum(observed, axis=0)
    cross = (values.T @ points).at[:, :-1].add(variance * gain * moved)
    return Moments(second, cross, jnp.sum(values**2, axis=0) + variance * counts, counts)


def smallest_variance(values):
    """What a noise variance of standardised data may be at least: their rounding."""
    return values.shape[1] * jnp.finfo(values.dtype).eps


def maximum_likelihood(data, latent_dim) -> LinearDecoder:
    """The closed form of Tipping and Bishop for complete rows; missing values are taken as means.

    Perturbing adds ``s²`` to every eigenvalue of the covariance. ``O(n D min(n, D))``.
    """
    values = data.values
    offset = jnp.mean(values, axis=0)
    _, singular, vectors = safe.svd((values - offset) / jnp.sqrt(values.shape[0]))
    added = data.perturbation**2
    eigenvalues = singular[:latent_dim] ** 2 + added
    others = values.shape[1] - latent_dim
    rest = jnp.sum(singular[latent_dim:] ** 2) + others * added
    concentration, rate = data.noise_prior
    pairs = values.shape[0] * others
    noise = fixed_or(data, (values.shape[0] * rest + 2 * rate) / (pairs + 2 * concentration))
    scale = jnp.sqrt(jnp.maximum(eigenvalues - noise, 0.0))
    return LinearDecoder(vectors[:latent_dim].T * scale, offset, noise)


def fixed_or(data, noise_variance):
    """The noise variance that is known, or the one that was found but for rounding."""
    if not data.noise_learned:
        return data.noise_variance + data.perturbation**2
    return jnp.maximum(noise_variance, smallest_variance(data.values))


def renewed(data, found) -> LinearDecoder:
    """The decoder that maximises the expected log likelihood plus the noise's log prior density."""
    if found.second.shape[0] == 1:
        mean = safe.solve(found.second[0], found.cross.T).T
    else:
        mean = safe.solve(found.second, found.cross[:, :, None])[..., 0]
    concentration, rate = data.noise_prior
    misfit = jnp.sum(found.squares) - jnp.sum(mean * found.cross)
    noise = (misfit + 2 * rate) / (jnp.sum(found.counts) + 2 * concentration)
    return LinearDecoder(mean[:, :-1], mean[:, -1], fixed_or(data, noise))


def principal_axes(loadings):
    """A rotation (q, q) after which columns of loadings are orthogonal, of falling norm.

    The largest entry of a column is positive.
    """
    _, vectors = safe.eigh(loadings.T @ loadings)
    vectors = vectors[:, ::-1]
    rotated = loadings @ vectors
    largest = jnp.take_along_axis(rotated, jnp.argmax(jnp.abs(rotated), axis=0)[None], axis=0)[0]
    return vectors * jnp.where(largest < 0, -1.0, 1.0)
