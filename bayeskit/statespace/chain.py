r"""Gaussian chains, and conditioning them on Gaussian messages.

Several independent Markovian Gaussian processes ``f_r`` along one axis are a chain of states with
block-diagonal transitions. What is known about their values ``f_i = (f_1, …, f_R)(x_i)`` comes as
Gaussian messages in information form, :math:`\exp(\eta_i^T f_i - f_i^T \Lambda_i f_i / 2)`, whose
precisions may be singular or zero.

One recursion does everything: the logarithm of the normaliser

.. math::
    \log Z(\eta, \Lambda) = \log \int p(f) \prod_i e^{\eta_i^T f_i - f_i^T \Lambda_i f_i / 2} df

is a Kalman filter, and its derivatives are the smoothed moments: :math:`\partial \log Z / \partial
\eta_i = E f_i` and :math:`\partial \log Z / \partial \Lambda_i = -E[f_i f_i^T] / 2`, because the
conditioned chain is an exponential family. Derivatives by the parameters of the transitions come
out of the same reverse pass.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bayeskit.linalg import small
from bayeskit.linalg.small import apply, product, semidefinite_root


class Chain(NamedTuple):
    """Transitions of R independent processes with D states each over n points.

    Attributes
    ----------
    transition : array (n, R, D, D)
        From the point before; of the first point without effect.
    noise : array (n, R, D, D)
        Covariance of the step from the point before.
    initial : array (R, D, D)
        Covariance before the first point.
    output : array (R, D)
        A process's value is the inner product of its row and its states.
    """

    transition: Any
    noise: Any
    initial: Any
    output: Any


class Smoothed(NamedTuple):
    """Moments of the processes' values given messages.

    Attributes
    ----------
    mean : array (n, R)
    second : array (n, R, R)
        ``E[f fᵀ]``.
    log_normaliser : scalar
    """

    mean: Any
    second: Any
    log_normaliser: Any


def _move(blocks, states):
    """Product of a block-diagonal matrix (R, D, D) with the rows of an array (R D, …)."""
    split = states.reshape(*blocks.shape[:2], -1)
    return jnp.sum(blocks[..., None] * split[:, None], axis=2).reshape(states.shape)


def _congruent(blocks, matrix):
    """``B M Bᵀ`` of a block-diagonal ``B`` and a symmetric ``M``."""
    return _move(blocks, _move(blocks, matrix).T)


def _observe(output, states):
    """Values (R, …) of states (R D, …)."""
    split = states.reshape(*output.shape, -1)
    return jnp.sum(output[..., None] * split, axis=1).reshape(len(output), *states.shape[1:])


def _unobserve(output, values):
    """The transpose: (R, …) to (R D, …)."""
    split = output[..., None] * values.reshape(len(output), 1, -1)
    return split.reshape(output.size, *values.shape[1:])


def _block_diagonal(blocks):
    """(R, D, D) to (R D, R D)."""
    count, size = blocks.shape[:2]
    dense = blocks[:, :, None, :] * jnp.eye(count, dtype=blocks.dtype)[:, None, :, None]
    return dense.reshape(count * size, count * size)


class _Filtered(NamedTuple):
    """What the way back needs of every point: moments after it, and the weight of its message."""

    mean: Any
    covariance: Any
    gain: Any  # (R D, R)
    innovation: Any  # (Λ⁻¹ + S)⁻¹ (Λ⁻¹ η − prediction), where S is the predicted covariance
    information: Any  # (Λ⁻¹ + S)⁻¹


@jax.custom_vjp
def log_normaliser(
    chain: Chain, shifts: Float[Array, "n R"], precisions: Float[Array, "n R R"]
) -> Float[Array, ""]:
    r"""``log ∫ p(f) Π exp(η_iᵀ f_i − f_iᵀ Λ_i f_i / 2) df``.

    Parameters
    ----------
    chain : Chain
    shifts : array (n, R)
        ``η``.
    precisions : array (n, R, R)
        ``Λ``, symmetric positive semi-definite.

    Notes
    -----
    A message is an observation ``w`` of ``Wᵀ f`` with unit noise, where ``Λ = W Wᵀ`` and
    ``η = W w + r``; the remainder ``r``, zero where ``Λ`` is regular, tilts what is not observed.
    Then a Kalman filter with covariances in Joseph's form, which needs systems ``I + Wᵀ S W``
    alone: symmetric, no eigenvalue below one. Neither ``Λ`` nor a covariance is inverted. The
    system ``I + S Λ`` does without ``W``, but where messages are sharp and nearly collinear it
    leaves few digits of what they say least of.

    The derivative by everything but ``chain.output`` (which is a constant of every kernel) is
    written out: a backward recursion on adjoint means and precisions (Bryson and Frazier 1963).
    O(n R² D² (R + D)) operations each.
    """
    return _filter(chain, shifts, precisions)[0]


# Compiled functions of their own, traced once for all programs that smooth arrays of one shape.


@jax.jit
def _filter(chain, shifts, precisions):
    output = chain.output
    eye = jnp.eye(len(output), dtype=shifts.dtype)
    roots = semidefinite_root(precisions)
    targets, remainders = small.divide(roots, shifts)

    def step(carry, item):
        mean, covariance = carry
        transition, noise, root, target, remainder = item
        mean = _move(transition, mean)
        covariance = _congruent(transition, covariance) + _block_diagonal(noise)
        cross = product(root.T, _observe(output, covariance))
        system = eye + product(root.T, _observe(output, cross.T))
        lower = small.cholesky(0.5 * (system + system.T), smallest=1.0)
        surprise = target - apply(root.T, _observe(output, mean))
        right = jnp.concatenate([cross, root.T, surprise[:, None]], axis=1)
        half = small.solve_lower(lower, right)
        half, weight, surprise = half[:, : len(mean)], half[:, len(mean) : -1], half[:, -1]
        gain = small.solve_upper(lower, half).T  # of an observation of Wᵀ f
        mean = mean + apply(half.T, surprise)
        # Joseph's form; its second half undoes what rounding did to the first.
        covariance = covariance - product(gain, cross)
        excess = gain - product(_observe(output, covariance.T).T, root)
        covariance = covariance + product(excess, gain.T)
        covariance = 0.5 * (covariance + covariance.T)
        tilt = apply(covariance, _unobserve(output, remainder))
        log_weight = (
            0.5 * jnp.sum(target**2)
            - 0.5 * jnp.sum(surprise**2)
            - jnp.sum(jnp.log(jnp.diagonal(lower)))
            + jnp.sum(remainder * _observe(output, mean + 0.5 * tilt))
        )
        mean, gain = mean + tilt, product(gain, root.T)
        innovation = apply(weight.T, surprise) + remainder
        innovation = innovation - apply(gain.T, _unobserve(output, remainder))
        filtered = _Filtered(mean, covariance, gain, innovation, product(weight.T, weight))
        return (mean, covariance), (log_weight, filtered)

    start = (jnp.zeros(output.size, shifts.dtype), _block_diagonal(chain.initial))
    items = (*_steps(chain), roots, targets, remainders)
    _, (log_weights, filtered) = jax.lax.scan(step, start, items)
    return jnp.sum(log_weights), filtered


def _steps(chain):
    """Transitions and noises, the first ones of no effect."""
    eye = jnp.eye(chain.output.shape[1], dtype=chain.transition.dtype)
    return chain.transition.at[0].set(eye), chain.noise.at[0].set(0.0)


def _diagonal_blocks(dense, output):
    """(R D, R D) to (R, D, D)."""
    count, size = output.shape
    blocks = dense.reshape(count, size, count, size)
    return jnp.einsum("risj,rs->rij", blocks, jnp.eye(count, dtype=dense.dtype))


def _blocks_of_product(first, second, output):
    """The diagonal blocks (R, D, D) of a product of two matrices (R D, R D)."""
    count, size = output.shape
    rows = first.reshape(count, size, -1)
    columns = second.T.reshape(count, size, -1)
    return jnp.einsum("rik,rjk->rij", rows, columns)


def _forward(chain, shifts, precisions):
    value, filtered = _filter(chain, shifts, precisions)
    return value, (chain, filtered)


@jax.jit
def _backward(saved, weight):
    chain, filtered = saved
    output = chain.output

    def step(carry, item):
        # Derivatives by the mean after a message, and minus twice those by the covariance, less
        # the outer product of the former.
        adjoint, precision = carry
        transition, here, mean_before, covariance_before = item
        cross = _observe(output, here.covariance)
        value = _observe(output, here.mean) + apply(cross, adjoint)
        spread = _observe(output, cross.T) - product(cross, precision, cross.T)
        second = 0.5 * (spread + spread.T) + jnp.outer(value, value)
        adjoint = adjoint + _unobserve(output, here.innovation - apply(here.gain.T, adjoint))
        precision = precision - _unobserve(output, product(here.gain.T, precision))
        precision = precision.T - _unobserve(output, product(precision, here.gain).T)
        seen = _unobserve(output, _unobserve(output, here.information).T)
        precision = 0.5 * (precision + precision.T) + seen
        excess = jnp.outer(adjoint, adjoint) - precision
        moved = _move(transition, covariance_before)
        by_transition = _diagonal_blocks(jnp.outer(adjoint, mean_before), output)
        by_transition = by_transition + _blocks_of_product(excess, moved, output)
        blocks = by_transition, 0.5 * _diagonal_blocks(excess, output)
        turned = jnp.swapaxes(transition, 1, 2)
        return (_move(turned, adjoint), _congruent(turned, precision)), (value, second, *blocks)

    means_before = jnp.roll(filtered.mean, 1, axis=0).at[0].set(0.0)
    covariances_before = jnp.roll(filtered.covariance, 1, axis=0).at[0].set(0.0)
    end = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), (filtered.mean, filtered.covariance))
    items = (_steps(chain)[0], filtered, means_before, covariances_before)
    (adjoint, precision), parts = jax.lax.scan(step, end, items, reverse=True)
    values, seconds, by_transition, by_noise = parts
    by_initial = _diagonal_blocks(0.5 * (jnp.outer(adjoint, adjoint) - precision), output)
    by_chain = Chain(
        by_transition.at[0].set(0.0),
        by_noise.at[0].set(0.0),
        by_initial,
        jnp.full_like(chain.output, jnp.nan),
    )
    return jax.tree.map(lambda leaf: weight * leaf, (by_chain, values, -0.5 * seconds))


log_normaliser.defvjp(_forward, _backward)


def smooth(
    chain: Chain, shifts: Float[Array, "n R"], precisions: Float[Array, "n R R"]
) -> Smoothed:
    """Moments of the processes' values given messages.

    Parameters
    ----------
    chain : Chain
        Of n points, R processes and D states each.
    shifts : array (n, R)
        ``η``.
    precisions : array (n, R, R)
        ``Λ``, symmetric positive semi-definite.

    Returns
    -------
    Smoothed
        Means (n, R), second moments (n, R, R) and the value of :func:`log_normaliser`.

    Notes
    -----
    The derivatives of :func:`log_normaliser` by the messages: one pass forth and one back,
    O(n R² D² (R + D)) operations and O(n (R D)²) memory.

    Examples
    --------
    A message at the first of two points tells as much of the second, if the function is constant.

    >>> import jax.numpy as jnp
    >>> from bayeskit.statespace import Constant, chain_of, form_of, smooth
    >>> form, values = form_of("kernel", Constant(1.0))
    >>> values = {name: jnp.array([value]) for name, value in values.items()}
    >>> chain = chain_of(form, values, jnp.array([1.0]), jnp.array([jnp.inf, 1.0]))
    >>> shifts, precisions = jnp.array([[3.0], [0.0]]), jnp.array([[[0.5]], [[0.0]]])
    >>> [round(mean, 3) for mean in smooth(chain, shifts, precisions).mean.ravel().tolist()]
    [3.0, 3.0]
    """
    value, pull_back = jax.vjp(
        lambda *messages: log_normaliser(chain, *messages), shifts, precisions
    )
    mean, by_precision = pull_back(jnp.ones_like(value))
    return Smoothed(mean, -2.0 * by_precision, value)


def follow(chain: Chain, initial, innovations):
    """Values of the processes that start at given states and are moved by given innovations.

    Parameters
    ----------
    chain : Chain
        Of n points, R processes and D states each; of it, transitions and output are used.
    initial : array (R, D)
        States at the first point.
    innovations : array (n, R, D)
        What is added to the states by the step from the point before; the first ones are without
        effect.

    Returns
    -------
    array (n, R)

    Notes
    -----
    O(n R D²) operations.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bayeskit.statespace import Constant, chain_of, follow, form_of
    >>> form, values = form_of("kernel", Constant(1.0))
    >>> values = {name: jnp.array([value]) for name, value in values.items()}
    >>> chain = chain_of(form, values, jnp.array([1.0]), jnp.array([jnp.inf, 1.0, 1.0]))
    >>> innovations = jnp.zeros((3, 1, 2)).at[1, 0, 0].set(4.0)
    >>> follow(chain, jnp.array([[1.0, 2.0]]), innovations).tolist()
    [[3.0], [7.0], [7.0]]
    """

    def step(state, item):
        transition, innovation = item
        state = jnp.einsum("rij,rj->ri", transition, state) + innovation
        return state, jnp.sum(state * chain.output, axis=1)

    transition = _steps(chain)[0]
    return jax.lax.scan(step, initial, (transition, innovations.at[0].set(0.0)))[1]


def sample(key, chain: Chain, shifts, precisions) -> Float[Array, "n R"]:
    """One draw of the processes' values given messages.

    Parameters
    ----------
    key : JAX key
    chain : Chain
        Of n points, R processes and D states each.
    shifts : array (n, R)
        ``η``.
    precisions : array (n, R, R)
        ``Λ``, symmetric positive semi-definite.

    Returns
    -------
    array (n, R)

    Notes
    -----
    A draw from the prior and one of the messages around it, corrected by the smoothed mean of the
    difference (Matheron's rule): nothing needs to be inverted. Costs as much as :func:`smooth`, and
    square roots of all noises and precisions.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from bayeskit.statespace import Constant, chain_of, form_of, sample
    >>> form, values = form_of("kernel", Constant(1.0))
    >>> values = {name: jnp.array([value]) for name, value in values.items()}
    >>> chain = chain_of(form, values, jnp.array([1.0]), jnp.array([jnp.inf, 1.0, 1.0]))
    >>> sample(jax.random.key(0), chain, jnp.zeros((3, 1)), jnp.zeros((3, 1, 1))).shape
    (3, 1)
    """
    start_key, step_key, message_key = jax.random.split(key, 3)
    shape, dtype = chain.noise.shape, shifts.dtype

    def normal(key, covariance, shape):
        white = jax.random.normal(key, shape, dtype)
        return jnp.einsum("...ij,...j->...i", semidefinite_root(covariance), white)

    initial = normal(start_key, chain.initial, shape[1:3])
    drawn = follow(chain, initial, normal(step_key, chain.noise, shape[:3]))
    around = jnp.einsum("nij,nj->ni", precisions, drawn)
    around = around + normal(message_key, precisions, shifts.shape)
    return drawn + smooth(chain, shifts - around, precisions).mean
