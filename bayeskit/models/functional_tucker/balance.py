r"""Mixing and scaling that the data do not see: shared best between functions and core.

Functions of a mode multiplied by an invertible matrix, :math:`f \to A f`, and the core by its
inverse, leave every fitted value as it is. Coordinate ascent creeps along this ridge, because each
factor is renewed with the others held fixed. Along it the bound changes only through the
divergences from the priors,

.. math:: -\tfrac12 \mathrm{tr}(S M) - \tfrac12 \mathrm{tr}(C M^{-1})
          + \tfrac12 (n - p) \log\det M, \qquad M = A^T A,

with :math:`S = \mathrm E\, f^T K^{-1} f` over the :math:`n` points and
:math:`C = \mathrm E\, W W^T` of the unfolded core with :math:`p` columns. Its maximum solves
:math:`M S M - (n - p) M = C`, in closed form. J. Luttinen and A. Ilin, "Transformations in
variational Bayesian factor analysis to speed up learning", Neurocomputing, 2010. The energy needs
no kernel matrix: under a Gaussian prior conditioned on messages, integration by parts gives
:math:`S = n I + \sum_i (\eta_i \mathrm E f_i^T - \Lambda_i \mathrm E f_i f_i^T)`.
"""

import math

import jax
import jax.numpy as jnp

from bayeskit.linalg import safe
from bayeskit.models.functional_tucker.sweep import Moments

_NEWTON_STEPS = 30
# Smoothed means have errors of up to so many units of rounding (measured where messages are sharp
# and nearly collinear), and energies, of about one a point, are used with so much relative error.
_ROUNDING, _LOST = 300, 0.1


def energy(moments, shifts, precisions, points):
    """``E fᵀ K⁻¹ f`` (R, R) of functions conditioned on messages, and whether it has its digits.

    Symmetric for equal kernels. It is a difference, of which sharp messages leave only rounding.
    """
    found = shifts.T @ moments.mean - jnp.einsum("nij,njk->ik", precisions, moments.second)
    found = points * jnp.eye(found.shape[0], dtype=found.dtype) + found
    size = jnp.einsum("nij,nji->i", jnp.abs(precisions), jnp.abs(moments.second))
    lost = _ROUNDING * jnp.finfo(found.dtype).eps * jnp.max(size)
    resolved = (lost <= _LOST * points) & jnp.all(jnp.diagonal(found) > 0)
    return 0.5 * (found + found.T), resolved


def best_mixing(own, other, excess, mixing):
    """Symmetric ``A`` that is best for energies ``S``, ``C`` and ``n − p``, and its inverse.

    Diagonal unless ``mixing``: functions with kernels of their own can only be scaled.
    """
    tiny = jnp.finfo(own.dtype).tiny
    if not mixing:
        own, other = jnp.diagonal(own), jnp.diagonal(other)
        own = jnp.maximum(own, tiny)
        square = (excess + jnp.sqrt(excess**2 + 4 * own * other)) / (2 * own)
        return jnp.diag(jnp.sqrt(square)), jnp.diag(1.0 / jnp.sqrt(square))
    root, inverse_root = _powers(own, (0.5, -0.5))
    values, vectors = safe.eigh(root @ other @ root)
    values = 0.5 * (excess + jnp.sqrt(excess**2 + 4 * jnp.maximum(values, 0.0)))
    half = inverse_root @ vectors
    return _powers((half * values) @ half.T, (0.5, -0.5))


def _powers(matrix, exponents):
    """Powers of a symmetric positive definite matrix."""
    values, vectors = safe.eigh(matrix)
    values = jnp.maximum(values, jnp.finfo(values.dtype).eps * jnp.max(jnp.abs(values)))
    return tuple((vectors * values**p) @ vectors.T for p in exponents)


def mixed_functions(moments, matrix):
    """Moments of ``A f``."""
    return Moments(moments.mean @ matrix.T, matrix @ moments.second @ matrix.T)


def mixed_core(core, ranks, k, matrix):
    """Moments of the core whose axis ``k`` is multiplied by a matrix."""
    count = len(ranks)

    def along(tensor, axis):
        return jnp.moveaxis(jnp.tensordot(matrix, tensor, axes=(1, axis)), 0, axis)

    mean = along(core.mean.reshape(ranks), k).reshape(-1)
    second = along(along(core.second.reshape(*ranks, *ranks), k), count + k)
    return Moments(mean, second.reshape(core.second.shape))


def core_energy(core, ranks, k):
    """``E W Wᵀ`` (R_k, R_k) of the core unfolded along axis ``k``."""
    count, size = len(ranks), ranks[k]
    second = core.second.reshape(*ranks, *ranks)
    second = jnp.moveaxis(second, (k, count + k), (0, 1)).reshape(size, size, -1)
    others = math.prod(ranks) // size
    return jnp.trace(second.reshape(size, size, others, others), axis1=2, axis2=3)


def best_scales(energies, points):
    """Factors (K, R) of the functions of every mode, whose product over the modes is one.

    Maximises ``Σ_k n_k log a_k − s_k a_k² / 2``: ``a_k² = (n_k + t) / s_k`` with one ``t`` for each
    component, the root of an increasing function of ``log(t + min n)``.
    """
    energies, points = jnp.stack(energies), jnp.stack(points)[:, None]
    energies = jnp.maximum(energies, jnp.finfo(energies.dtype).tiny)
    smallest = jnp.min(points)
    offsets = points - smallest

    def newton(_, u):
        shifted = jnp.exp(u) + offsets
        value = jnp.sum(jnp.log(shifted) - jnp.log(energies), axis=0)
        return u - value / jnp.sum(jnp.exp(u) / shifted, axis=0)

    start = jnp.log(jnp.max(energies, axis=0))
    u = jax.lax.fori_loop(0, _NEWTON_STEPS, newton, start)
    logs = jnp.log(jnp.exp(u) + offsets) - jnp.log(energies)
    return jnp.exp(0.5 * (logs - jnp.mean(logs, axis=0)))


def balanced(modes, shifts, precisions, core, points, mixing):
    """Moments of all factors, moved along the ridge to where the bound is largest.

    Left where they are if rounding hides where that is.

    Parameters
    ----------
    modes : sequence of Moments
    shifts, precisions : sequences of arrays
        Messages that the functions are conditioned on.
    core : Moments or None
    points : sequence of scalars
        Numbers of different points of the modes.
    mixing : bool
        Whether the functions of a mode have equal kernels.

    Returns
    -------
    modes, core
    """
    modes = list(modes)
    energies, resolved = zip(
        *(energy(*given) for given in zip(modes, shifts, precisions, points, strict=True)),
        strict=True,
    )

    def if_known(matrix, known):
        return jnp.where(known, matrix, jnp.eye(len(matrix), dtype=matrix.dtype))

    if core is not None:
        ranks = tuple(moments.mean.shape[1] for moments in modes)
        for k, rank in enumerate(ranks):
            excess = points[k] - math.prod(ranks) // rank
            pair = best_mixing(energies[k], core_energy(core, ranks, k), excess, mixing)
            matrix, inverse = (if_known(each, resolved[k]) for each in pair)
            modes[k] = mixed_functions(modes[k], matrix)
            core = mixed_core(core, ranks, k, inverse)
        return modes, core
    if len(modes) == 2 and mixing:
        first, second = energies
        matrices = best_mixing(first, second, points[0] - points[1], mixing)
    else:
        scales = best_scales([jnp.diagonal(each) for each in energies], points)
        matrices = [jnp.diag(each) for each in scales]
    known = jnp.all(jnp.stack(resolved))
    return [
        mixed_functions(m, if_known(each, known)) for m, each in zip(modes, matrices, strict=True)
    ], core
