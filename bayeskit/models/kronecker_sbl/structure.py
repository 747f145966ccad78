r"""Exact Gaussian algebra of a Kronecker-structured linear model, in factor space.

The model, with row-major tensors and :math:`\gamma = \gamma_1 \otimes \dots \otimes \gamma_I`:

.. math:: y = (H_1 \otimes \dots \otimes H_I) x + n, \quad
          x \sim N(0, \mathrm{diag}\,\gamma), \quad n \sim N(0, \sigma^2 I)

(complex normal where the data are complex). With one singular value decomposition a factor,
:math:`H_i \Gamma_i^{1/2} = U_i S_i V_i^H`, and :math:`S = S_1 \otimes \dots`,
:math:`\Lambda = S^2`, :math:`\tilde u = U^H y`:

* mean :math:`\Gamma^{1/2} V \, S (\Lambda + \sigma^2)^{-1} \tilde u`,
* variances :math:`\gamma \circ |V|^2 \, \sigma^2 (\Lambda + \sigma^2)^{-1}`: sums of positive
  terms, never negative,
* :math:`\log p(y) = -\kappa [M \log(\pi/\kappa) + \sum \log(\Lambda + \sigma^2)
  + \sum |\tilde u|^2 / (\Lambda + \sigma^2)]` with :math:`\kappa = 1/2` (real) or 1 (complex).

The singular value decomposition of a factor, not of its Gram matrix, keeps float32 usable: the
Gram form squares the condition number and gives negative variances at 100 dB.

The evidence, its gradient and every update of scales and noise need only sums over slices of the
whitened mean and of the leverages. The columns of :math:`V_j` are orthonormal, so the sum over
all axes but ``i`` is taken before :math:`V_j` is ever applied: these cost one Kronecker product
on the side of the measurements, and no array of the size of the coefficients exists.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

from bayeskit.linalg import safe
from bayeskit.linalg.contract import kronecker_multiply, multiply_axis, outer
from bayeskit.linalg.sharding import shard_with

# Up to this many columns, or this many times its rows, a factor's null space is computed as well:
# variances are then sums of positive terms to the last digit.
_FULL_BASIS_COLUMNS = 1024
_FULL_BASIS_RATIO = 4


class Measurements(NamedTuple):
    """Measurements reduced to the range of the dictionaries, one tensor a snapshot.

    Attributes
    ----------
    tensor : array (snapshots, m_1, …, m_I)
        ``m_i = min(M_i, N_i)``: axes longer than their dictionary is wide are rotated onto its
        range, which loses nothing.
    residual : scalar
        Squared norm of what lies outside the range, which is noise alone.
    excess : scalar
        Number of dimensions outside the range, a snapshot.
    """

    tensor: Inexact[Array, "..."]
    residual: Float[Array, "..."]
    excess: Float[Array, ""]


class Spectrum(NamedTuple):
    """Singular value decomposition of one factor times the roots of its scales."""

    left: Inexact[Array, "m m"]
    values: Float[Array, " m"]
    right: Inexact[Array, "n m"]


class Statistics(NamedTuple):
    """What the evidence, its gradient and every update of the hyper-parameters need.

    For a scale ``γ_ij`` (entry ``j`` of factor ``i``) and ``κ`` as in the module's docstring,
    ``∂ log p(y) / ∂ log γ_ij = κ (signal - leverage)``, and the same for the noise variance.

    Attributes
    ----------
    log_evidence : scalar
    signal : tuple of arrays (N_i,)
        Sum over the slice of the squared whitened mean ``|E x_n|² / γ_n``, over snapshots.
    leverage : tuple of arrays (N_i,)
        Sum over the slice of ``1 - Var x_n / γ_n`` in [0, 1], times the number of snapshots.
    noise_signal, noise_leverage : scalars
        ``Σ |r|² / σ²`` with ``r`` the residual of the fit, and the number of measurements less
        the degrees of freedom that the fit takes up.
    """

    log_evidence: Float[Array, ""]
    signal: tuple
    leverage: tuple
    noise_signal: Float[Array, ""]
    noise_leverage: Float[Array, ""]


def likelihood_power(dtype) -> float:
    """κ: one half for real data, one for complex data."""
    return 1.0 if jnp.issubdtype(dtype, jnp.complexfloating) else 0.5


def outer_with(vectors, reference):
    """Outer product of vectors, distributed over the mesh of ``reference`` if it has one."""
    sizes = [vector.shape[0] for vector in vectors]
    return shard_with(outer(vectors), reference, sizes.index(max(sizes)))


def sum_except(tensor, axis):
    """Sum a tensor over all axes but one."""
    return jnp.sum(tensor, axis=tuple(i for i in range(tensor.ndim) if i != axis))


def reduce_factors(factors):
    """Orthonormal bases of the ranges of the factors, and the factors in these bases.

    The bases (M_i, m_i) are of factors with more rows than columns, ``None`` for the others; the
    factors become (m_i, N_i), ``m_i <= N_i``.
    """
    pairs = [
        safe.qr(factor) if factor.shape[0] > factor.shape[1] else (None, factor)
        for factor in factors
    ]
    rotations, reduced = zip(*pairs, strict=True)
    return rotations, reduced


def compress(rotations, tensor) -> Measurements:
    """Rotate every axis that is longer than its factor is wide onto the factor's range."""
    zero = jnp.zeros((), tensor.real.dtype)
    if all(q is None for q in rotations):
        return Measurements(tensor, zero, zero)
    rotated = rotate(rotations, tensor, adjoint=True)
    outside = tensor - rotate(rotations, rotated)
    excess = zero + (math.prod(tensor.shape[1:]) - math.prod(rotated.shape[1:]))
    return Measurements(rotated, jnp.sum(jnp.abs(outside) ** 2), excess)


def rotate(rotations, tensor, adjoint=False):
    """Apply the rotations of :func:`compress` (or their adjoints) where there are any."""
    for axis, q in enumerate(rotations, start=tensor.ndim - len(rotations)):
        if q is not None:
            tensor = multiply_axis(q.conj().T if adjoint else q, tensor, axis)
    return tensor


def decompose(factor, scales, full_matrices=False):
    """Singular value decomposition ``u, s, vh`` of ``H Γ^{1/2}``; O(m² N) for a factor (m, N).

    Always in double precision where there is one: its cost is negligible beside the products,
    and single precision would lose the small singular values, and with them small variances.
    """
    wide = jnp.promote_types(factor.dtype, jnp.result_type(float))
    root = factor.astype(wide) * jnp.sqrt(scales.astype(jnp.finfo(wide).dtype))
    u, values, vh = safe.svd(root, full_matrices=full_matrices)
    return u.astype(factor.dtype), values.astype(scales.dtype), vh.astype(factor.dtype)


def spectrum(factor, scales) -> Spectrum:
    """One factor's :class:`Spectrum`."""
    left, values, right = decompose(factor, scales)
    return Spectrum(left, values, right.conj().T)


def spectra(factors, scales):
    """One :class:`Spectrum` a factor."""
    return tuple(spectrum(factor, scale) for factor, scale in zip(factors, scales, strict=True))


class _Whitened(NamedTuple):
    """Measurements in the common eigenbasis: λ, λ + σ², and U^H y."""

    eigenvalues: Float[Array, "..."]
    total: Float[Array, "..."]
    rotated: Inexact[Array, "..."]

    @property
    def whitened_mean(self):
        """``S (Λ + σ²)^{-1} U^H y``: the whitened mean before ``V`` is applied."""
        return jnp.sqrt(self.eigenvalues) / self.total * self.rotated

    @property
    def fraction(self):
        """``Λ (Λ + σ²)^{-1}``, the leverage of each eigenvector."""
        return self.eigenvalues / self.total


def _whiten(spectra_, noise_variance, tensor) -> _Whitened:
    rotated = kronecker_multiply([s.left.conj().T for s in spectra_], tensor)
    eigenvalues = outer_with([s.values**2 for s in spectra_], rotated)
    return _Whitened(eigenvalues, eigenvalues + noise_variance, rotated)


def statistics(spectra_, noise_variance, measurements, axes=None) -> Statistics:
    """Evidence and slice sums for some of the factors.

    Parameters
    ----------
    spectra_ : tuple of Spectrum
    noise_variance : scalar
    measurements : Measurements
    axes : sequence of int, optional
        The factors whose slice sums are wanted; all by default.

    Notes
    -----
    Cost: one Kronecker product (m_1, …, m_I) and, for each of ``axes``, one product of that axis
    with (N_i, m_i). Nothing of size ``∏ N_i``.
    """
    tensor, residual, excess = measurements
    snapshots = tensor.shape[0]
    kappa = likelihood_power(tensor.dtype)
    white = _whiten(spectra_, noise_variance, tensor)
    power = jnp.abs(white.rotated) ** 2
    size = math.prod(tensor.shape[1:]) + excess
    log_evidence = -kappa * (
        snapshots
        * (
            size * math.log(math.pi / kappa)
            + jnp.sum(jnp.log(white.total))
            + excess * jnp.log(noise_variance)
        )
        + jnp.sum(power / white.total)
        + residual / noise_variance
    )
    signal, leverage = [], []
    for axis in range(len(spectra_)) if axes is None else axes:
        right = spectra_[axis].right
        mean = multiply_axis(right, white.whitened_mean, axis + 1)
        signal.append(sum_except(jnp.abs(mean) ** 2, axis + 1))
        leverage.append(snapshots * jnp.abs(right) ** 2 @ sum_except(white.fraction, axis))
    noise_signal = (
        jnp.sum(power / white.total * (noise_variance / white.total)) + residual / noise_variance
    )
    noise_leverage = snapshots * (jnp.sum(noise_variance / white.total) + excess)
    return Statistics(log_evidence, tuple(signal), tuple(leverage), noise_signal, noise_leverage)


def projected_second_moments(spectra_, scales, noise_variance, measurements, vectors, axis):
    r"""Second moments of the coefficients, contracted with a vector along every axis but one.

    .. math:: t_a = \sum_{n: n_i = a} E|x_n|^2 \prod_{j \ne i} v_{j n_j}

    Parameters
    ----------
    vectors : sequence of arrays (N_j,)
        Not negative; that of ``axis`` is not used.
    axis : int
        The factor ``i`` that remains.

    Returns
    -------
    array (N_i,)
        Averaged over snapshots.

    Notes
    -----
    Like :func:`statistics`, of which it is the form with weights, on the side of the measurements:
    the weights turn the identity that the orthonormal columns give into one small Gram matrix an
    axis.
    """
    white = _whiten(spectra_, noise_variance, measurements.tensor)
    mean, weighted, fraction, total = white.whitened_mean, white.whitened_mean, white.fraction, 1.0
    for j, (spectrum_, scale, vector) in enumerate(zip(spectra_, scales, vectors, strict=True)):
        if j == axis:
            continue
        weight = scale * vector
        gram = spectrum_.right.conj().T @ (weight[:, None] * spectrum_.right)
        weighted = multiply_axis(gram, weighted, j + 1)
        share = weight @ jnp.abs(spectrum_.right) ** 2
        fraction = multiply_axis(share[None, :], fraction, j)
        total = total * jnp.sum(weight)
    right = spectra_[axis].right
    products = multiply_axis(right, mean, axis + 1).conj() * multiply_axis(
        right, weighted, axis + 1
    )
    squares = sum_except(products.real, axis + 1) / measurements.tensor.shape[0]
    leverage = jnp.abs(right) ** 2 @ jnp.ravel(fraction)
    return scales[axis] * jnp.maximum(squares + total - leverage, 0.0)


@jax.custom_vjp
def log_evidence(log_scales, log_noise_variance, factors, measurements):
    """Log marginal likelihood ``log p(y | γ, σ²)`` with its gradient in closed form.

    The derivative (Fisher's identity, :class:`Statistics`) is exact also at repeated singular
    values, where differentiation through the decomposition gives NaN. ``factors`` and
    ``measurements`` are constants.
    """
    return _log_evidence_forward(log_scales, log_noise_variance, factors, measurements)[0]


def _log_evidence_forward(log_scales, log_noise_variance, factors, measurements):
    decomposed = spectra(factors, [jnp.exp(theta) for theta in log_scales])
    stats = statistics(decomposed, jnp.exp(log_noise_variance), measurements)
    value = jnp.where(jnp.isfinite(stats.log_evidence), stats.log_evidence, -jnp.inf)
    kappa = likelihood_power(measurements.tensor.dtype)
    slopes = tuple(kappa * (s - h) for s, h in zip(stats.signal, stats.leverage, strict=True))
    return value, (slopes, kappa * (stats.noise_signal - stats.noise_leverage))


def _log_evidence_backward(slopes, cotangent):
    scales, noise = slopes
    return tuple(cotangent * g for g in scales), cotangent * noise, None, None


log_evidence.defvjp(_log_evidence_forward, _log_evidence_backward)


def posterior_mean(factors, scales, noise_variance, measurements):
    """Mean of the coefficients (snapshots, N_1, …, N_I): two Kronecker products."""
    decomposed = spectra(factors, scales)
    white = _whiten(decomposed, noise_variance, measurements.tensor)
    mean = kronecker_multiply([s.right for s in decomposed], white.whitened_mean)
    return mean * outer_with([jnp.sqrt(scale) for scale in scales], mean)


def posterior_variance(factors, scales, noise_variance, measurements):
    """Variances of the coefficients (N_1, …, N_I), the same for every snapshot.

    One Kronecker product of the size of the coefficients. A factor with more than 1024 columns
    and more than four times as many columns as rows is kept thin: then the part of the variance
    that the data leave untouched is a difference, exact to ``eps`` times the prior variance.
    """
    shapes = [factor.shape for factor in factors]
    full = all(n <= max(_FULL_BASIS_COLUMNS, _FULL_BASIS_RATIO * m) for m, n in shapes)
    decomposed = [decompose(h, scale, full) for h, scale in zip(factors, scales, strict=True)]
    reference = measurements.tensor
    eigenvalues = outer_with([values**2 for _, values, _ in decomposed], reference)
    remaining = noise_variance / (eigenvalues + noise_variance)
    weights = [jnp.abs(right.T) ** 2 for _, _, right in decomposed]
    if full:
        padding = [(0, n - m) for m, n in shapes]
        share = kronecker_multiply(weights, jnp.pad(remaining, padding, constant_values=1.0))
    else:
        inside = [jnp.sum(weight, axis=1) for weight in weights]
        outside = [jnp.maximum(1.0 - share, 0.0) for share in inside]
        share = _untouched(inside, outside, reference) + kronecker_multiply(weights, remaining)
    return outer_with(scales, reference) * share


def posterior_sample(key, factors, scales, noise_variance, measurements):
    """One joint draw of the coefficients (snapshots, N_1, …, N_I), exact.

    A draw of the prior is corrected by its own simulated measurements (Matheron's rule), so only
    thin decompositions are needed: four Kronecker products.
    """
    tensor = measurements.tensor
    decomposed = spectra(factors, scales)
    white = _whiten(decomposed, noise_variance, tensor)
    shape = (tensor.shape[0], *(scale.shape[0] for scale in scales))
    prior_key, noise_key = jax.random.split(key)
    prior = jax.random.normal(prior_key, shape, tensor.dtype)
    prior = shard_with(prior, tensor, shape.index(max(shape)))
    noise = jax.random.normal(noise_key, tensor.shape, tensor.dtype)
    singular = jnp.sqrt(white.eigenvalues)
    simulated = singular * kronecker_multiply([s.right.conj().T for s in decomposed], prior)
    simulated = simulated + jnp.sqrt(noise_variance) * noise
    gain = singular / white.total
    draw = prior + kronecker_multiply(
        [s.right for s in decomposed], gain * (white.rotated - simulated)
    )
    return draw * outer_with([jnp.sqrt(scale) for scale in scales], draw)


def fitted(factors, scales, noise_variance, measurements, rotations):
    """Mean (snapshots, M_1, …) and variance (M_1, …) of the noise-free measurements."""
    decomposed = spectra(factors, scales)
    white = _whiten(decomposed, noise_variance, measurements.tensor)
    left = [s.left if q is None else q @ s.left for s, q in zip(decomposed, rotations, strict=True)]
    mean = kronecker_multiply(left, white.fraction * white.rotated)
    variance = kronecker_multiply([jnp.abs(u) ** 2 for u in left], noise_variance * white.fraction)
    return mean, variance


def predicted(factors, scales, noise_variance, measurements, new_factors):
    """Mean (snapshots, P_1, …) and variance (P_1, …) of ``(⊗ new_factors) x``."""
    decomposed = spectra(factors, scales)
    white = _whiten(decomposed, noise_variance, measurements.tensor)
    roots = [new * jnp.sqrt(scale) for new, scale in zip(new_factors, scales, strict=True)]
    basis = [root @ s.right for root, s in zip(roots, decomposed, strict=True)]
    mean = kronecker_multiply(basis, white.whitened_mean)
    remaining = noise_variance / white.total
    inside = [jnp.abs(b) ** 2 for b in basis]
    untouched = _untouched(
        [jnp.sum(share, axis=1) for share in inside],
        [
            jnp.sum(jnp.abs(root - b @ s.right.conj().T) ** 2, axis=1)
            for root, b, s in zip(roots, basis, decomposed, strict=True)
        ],
        mean,
    )
    return mean, untouched + kronecker_multiply(inside, remaining)


def _untouched(inside, outside, reference):
    """Prior variance (P_1, …) outside the directions that the data speak of.

    ``inside`` and ``outside`` (P_i,) are, by factor, the parts within and without the range of the
    measurements. The product of the sums less that of the ``inside`` parts, as a sum of products
    that are none of them negative: nothing cancels.
    """
    total = [i + o for i, o in zip(inside, outside, strict=True)]
    return sum(
        outer_with([*total[:g], outside[g], *inside[g + 1 :]], reference)
        for g in range(len(inside))
    )


def leave_one_out(factors, scales, noise_variance, tensor):
    r"""Exact leave-one-out predictive mean and variance of every measurement.

    With :math:`P = \Sigma_y^{-1}`: mean :math:`y_m - (P y)_m / P_{mm}` and variance
    :math:`1 / P_{mm}` (Rasmussen and Williams 2006, eq. 5.12), the diagonal of the inverse in
    factor space. ``factors`` (M_i, N_i) and ``tensor`` (snapshots, M_1, …) are those before
    :func:`compress`. Two Kronecker products.
    """
    left, eigenvalues = [], []
    for factor, scale in zip(factors, scales, strict=True):
        u, values, _ = decompose(factor, scale, factor.shape[0] > factor.shape[1])
        left.append(u)
        eigenvalues.append(jnp.pad(values**2, (0, u.shape[1] - values.shape[0])))
    inverse = 1.0 / (outer_with(eigenvalues, tensor) + noise_variance)
    rotated = kronecker_multiply([u.conj().T for u in left], tensor)
    weighted = kronecker_multiply(left, inverse * rotated)
    diagonal = kronecker_multiply([jnp.abs(u) ** 2 for u in left], inverse)
    return tensor - weighted / diagonal, 1.0 / diagonal
