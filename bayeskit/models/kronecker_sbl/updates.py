r"""Updates of scales and noise that raise the evidence of a Kronecker-structured model.

With :math:`s_j` (signal) and :math:`l_j` (leverage) the slice sums of
:class:`~bayeskit.models.kronecker_sbl.structure.Statistics`, the log evidence has derivative
:math:`\kappa (s_j - l_j)` in :math:`\log \gamma_j`. It is bounded below, with equality at the
present scales, by a function of :math:`-l_j \gamma' / \gamma - s_j \gamma / \gamma'`: the
log-determinant is concave, the quadratic form convex, in the scales of one factor and the noise
variance together. Maximising the bound multiplies a scale by :math:`(s_j / l_j)^{1/2}`
("convex": never lowers the evidence); the full power :math:`s_j / l_j` is MacKay's fixed point,
faster and without a proof. An inverse-gamma prior :math:`(a, b)` on a scale adds
:math:`b / \gamma_j` to :math:`\kappa s_j` and :math:`a` to :math:`\kappa l_j`, and keeps the bound
(the mode is that of the density of the log scale, which does not change under powers).

Block sparsity (pattern coupling) writes :math:`\gamma = C h`, :math:`C = I + \beta (\text{sub- and
super-diagonal})`; the same bound in :math:`h` gives the multiplicative (Itakura-Saito) update
:math:`h \leftarrow h [C^T(s / \gamma) / C^T(l / \gamma)]^{1/2}`, which cannot lower the evidence
either.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float

from bayeskit.linalg import safe
from bayeskit.linalg.contract import outer
from bayeskit.models.kronecker_sbl.structure import sum_except

_ALTERNATING_SWEEPS = 30
_ALTERNATING_TOLERANCE = 1e-5
_NEWTON_STEPS = 30
_UNCOUPLING_STEPS = 200


class InverseGammaPrior(NamedTuple):
    """Concentration and rate; both zero stand for the flat prior of the log scale."""

    concentration: Float[Array, ""]
    rate: Float[Array, ""]

    def log_density(self, value):
        """Log density of ``log(value)`` up to a constant, summed; entries at zero do not count."""
        positive = value > 0
        safe_value = jnp.where(positive, value, 1.0)
        terms = -self.concentration * jnp.log(safe_value) - self.rate / safe_value
        return jnp.sum(jnp.where(positive, terms, 0.0))


def couple(weights, strength):
    """``C h`` (and ``C^T h``: the matrix is symmetric) for coupling ``strength`` β."""
    neighbours = jnp.pad(weights[1:], (0, 1)) + jnp.pad(weights[:-1], (1, 0))
    return weights + strength * neighbours


def uncouple(scales, strength):
    """Weights whose coupled scales come close to the given ones; exact without coupling.

    Where the matrix of :func:`couple` is singular, or the scales are no coupled weights, so that
    its inverse gives negative ones, the multiplicative update of the weights themselves, with the
    scales as target, leads to positive ones.
    """
    positive = scales > 0
    target = jnp.where(positive, scales, 1.0)

    def step(_, weights):
        fitted = couple(weights, strength)
        inverse = jnp.where(positive, 1.0 / jnp.where(fitted > 0, fitted, 1.0), 0.0)
        ratio = couple(target * inverse**2, strength) / couple(inverse, strength)
        return weights * jnp.sqrt(jnp.where(positive, ratio, 0.0))

    off_diagonal = jnp.full(scales.shape[0] - 1, strength)
    matrix = lx.TridiagonalLinearOperator(jnp.ones_like(scales), off_diagonal, off_diagonal)
    solved = lx.linear_solve(matrix, scales, lx.Tridiagonal(), throw=False).value
    usable = jnp.isfinite(solved) & (solved > 0)
    start = jnp.where(usable, solved, scales / (1.0 + 2.0 * strength))
    return jax.lax.fori_loop(0, _UNCOUPLING_STEPS, step, jnp.where(positive, start, 0.0))


def scale_update(weights, scales, strength, signal, leverage, size, prior, kappa, kind):
    """Move the weights of one factor by its slice sums of signal and leverage.

    ``"mackay"`` multiplies by the full ratio, ``"convex"`` by its root, ``"expectation"`` takes the
    expectation-maximisation step, ``size`` being the number of coefficients of a slice (over
    snapshots). Entries at zero stay there; entries that neither data nor prior determine stay
    as they are.
    """
    positive = weights > 0
    inverse = jnp.where(scales > 0, 1.0 / jnp.where(scales > 0, scales, 1.0), 0.0)
    if kind == "expectation":
        signal, leverage = signal + size - leverage, jnp.full_like(leverage, size)
    safe_weights = jnp.where(positive, weights, 1.0)
    signal = couple(signal * inverse, strength) * safe_weights
    leverage = couple(leverage * inverse, strength) * safe_weights
    numerator = kappa * signal + prior.rate / safe_weights
    denominator = kappa * leverage + prior.concentration
    determined = denominator > 0
    ratio = jnp.where(determined, numerator / jnp.where(determined, denominator, 1.0), 1.0)
    # With coupling only the root is known never to lower the objective.
    power = (
        0.5 if kind == "convex" else jnp.where((kind == "expectation") & (strength > 0), 0.5, 1.0)
    )
    return jnp.where(positive, weights * ratio**power, 0.0)


def noise_update(noise_variance, signal, leverage, count, prior, kappa, kind, floor):
    """Noise variance from residual and leftover degrees of freedom; ``kind`` as for the scales."""
    if kind == "expectation":
        signal, leverage = signal + count - leverage, count
    ratio = (kappa * signal + prior.rate / noise_variance) / jnp.maximum(
        kappa * leverage + prior.concentration, jnp.finfo(noise_variance.dtype).tiny
    )
    return jnp.maximum(noise_variance * (jnp.sqrt(ratio) if kind == "convex" else ratio), floor)


def rebalance(inverse_sums, counts, priors):
    r"""Log factors, summing to zero, that share one overall scale best among the scale factors.

    The data see only the product of the factors; under the priors, factors multiplied by
    :math:`e^{c_g}` change the objective by :math:`-\sum_g (a N_g c_g + b_g S_g e^{-c_g})` with
    :math:`S_g = \sum_j 1 / \gamma_{gj}`. At its maximum :math:`b_g S_g e^{-c_g} = \mu + a N_g` with
    one multiplier, an increasing convex equation in the logarithm of :math:`\mu + a \min_g N_g`
    that Newton's iteration solves from any start. Without it, coordinate updates creep along
    this ridge for hundreds of iterations. Zeros for flat priors, which leave the ridge level.
    """
    rates = jnp.stack([prior.rate * s for prior, s in zip(priors, inverse_sums, strict=True)])
    slopes = jnp.stack([prior.concentration * n for prior, n in zip(priors, counts, strict=True)])
    proper = jnp.all(rates > 0)
    targets = jnp.log(jnp.where(proper, rates, 1.0))
    offsets = slopes - jnp.min(slopes)

    def newton(_, t):
        shifted = jnp.exp(t) + offsets
        return t - jnp.sum(jnp.log(shifted) - targets) / jnp.sum(jnp.exp(t) / shifted)

    t = jax.lax.fori_loop(0, _NEWTON_STEPS, newton, jnp.max(targets))
    factors = targets - jnp.log(jnp.exp(t) + offsets)
    return jnp.where(proper, factors - jnp.mean(factors), 0.0)


def alternating(second_moments, weights, strengths, masks, priors, kappa, snapshots):
    """Minimise ``Σ_n log γ_n + d_n / γ_n`` over Kronecker scales, one factor after the other.

    Every factor's minimiser is closed form (a multiplicative step where it is coupled), so each
    sweep lowers the objective; sweeps stop at a relative change of 1e-5 or after 30. The
    objective is convex in the log scales, so the minimiser is unique up to the factors' relative
    scale (He & Joseph 2024, AM-KroSBL).
    """

    def one_sweep(carry):
        weights, _, sweep = carry
        before = weights
        weights = list(weights)
        for axis in range(len(weights)):
            scales = effective(weights, strengths, masks)
            active = [(scale > 0).astype(scale.dtype) for scale in scales]
            inverse = [jnp.where(s > 0, 1.0 / jnp.where(s > 0, s, 1.0), 0.0) for s in scales]
            inverse[axis] = jnp.ones_like(inverse[axis])
            others = [active[i] for i in range(len(weights)) if i != axis]
            count = jnp.prod(jnp.stack([jnp.sum(a) for a in others])) if others else jnp.ones(())
            own = sum_except(second_moments * outer(inverse), axis)
            positive = scales[axis] > 0
            target = jnp.where(positive, own / jnp.where(positive, scales[axis], 1.0), 0.0)
            size = snapshots * count.astype(target.dtype)
            # Second moments play the signal, against the whole slice.
            weights[axis] = scale_update(
                weights[axis],
                scales[axis],
                strengths[axis],
                snapshots * target - size,
                0.0 * target,
                size,
                priors[axis],
                kappa,
                "expectation",
            )
        change = jnp.max(
            jnp.stack(
                [_relative_change(new, old) for new, old in zip(weights, before, strict=True)]
            )
        )
        return tuple(weights), change, sweep + 1

    def unfinished(carry):
        _, change, sweep = carry
        return (change > _ALTERNATING_TOLERANCE) & (sweep < _ALTERNATING_SWEEPS)

    start = (tuple(weights), jnp.asarray(jnp.inf, second_moments.dtype), 0)
    return jax.lax.while_loop(unfinished, one_sweep, start)[0]


def rank_one(second_moments):
    """Nearest Kronecker scales in the least-squares sense: sequential rank-one fits.

    The leading singular vectors of one unfolding after the other (He & Joseph 2024,
    SVD-KroSBL), through the Gram matrix of the short side: O(N N_i).
    """
    factors, rest = [], second_moments
    while rest.ndim > 1:
        unfolded = rest.reshape(rest.shape[0], -1)
        left, _, _ = safe.svd(unfolded @ unfolded.T)
        leading = jnp.abs(left[:, 0])
        factors.append(leading)
        rest = jnp.abs(leading @ unfolded).reshape(rest.shape[1:])
    return (*factors, rest)


def effective(weights, strengths, masks):
    """Scales of the coefficients: coupled weights, without the columns that cannot be used."""
    return tuple(
        couple(h * mask, b) * mask for h, b, mask in zip(weights, strengths, masks, strict=True)
    )


def prune(scales, threshold):
    """Set scales below ``threshold`` times the factor's largest to zero; the largest stays."""
    return tuple(jnp.where(scale >= threshold * jnp.max(scale), scale, 0.0) for scale in scales)


def _relative_change(new, old):
    return jnp.linalg.norm(new - old) / jnp.linalg.norm(new)
