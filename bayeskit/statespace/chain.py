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

from bayeskit.linalg import safe, small
from bayeskit.linalg.small import apply, product, semidefinite_root

# Systems of so many values are solved without LAPACK, in three quarters of the time.
_FEW_VALUES = 4


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


def _block_diagonal(blocks):
    """(…, R, D, D) to (…, R D, R D)."""
    count, size = blocks.shape[-3], blocks.shape[-1]
    eye = jnp.eye(count, dtype=blocks.dtype)
    dense = blocks[..., :, :, None, :] * eye[:, None, :, None]
    return dense.reshape(*blocks.shape[:-3], count * size, count * size)


def _observe(output):
    """The matrix (R, R D) from all states to all values."""
    count, size = output.shape
    return (output[:, None, :] * jnp.eye(count, dtype=output.dtype)[:, :, None]).reshape(
        count, count * size
    )


class _Filtered(NamedTuple):
    """What the way back needs of every point: moments after it, and the weight of its message."""

    mean: Any
    covariance: Any
    solved: Any  # covariance of values and states after the message (R, R D)
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
    A Kalman filter in information form, its covariances updated in Joseph's form: neither ``Λ`` nor
    a covariance is inverted, and they stay positive semi-definite. The derivative by everything
    but ``chain.output`` (which is a constant of every kernel) is written out: a backward recursion
    on adjoint means and precisions (Bryson and Frazier 1963). O(n (R D)³) operations each.
    """
    return _filter(chain, shifts, precisions)[0]


def _filter(chain, shifts, precisions):
    count, size = chain.output.shape
    observe = _observe(chain.output)
    eye_values = jnp.eye(count, dtype=shifts.dtype)
    eye_states = jnp.eye(count * size, dtype=shifts.dtype)

    def step(carry, item):
        mean, covariance = carry
        transition, noise, shift, precision = item
        transition = _block_diagonal(transition)
        mean = apply(transition, mean)
        covariance = product(transition, covariance, transition.T) + _block_diagonal(noise)
        value, cross = apply(observe, mean), product(observe, covariance)
        # I + S Λ has no eigenvalue below one, however singular S and Λ are.
        system = eye_values + product(cross, observe.T, precision)
        surprise = shift - apply(precision, value)
        right = jnp.concatenate([precision, surprise[:, None]], axis=1)
        solved, weighted, log_determinant = _solve_both(system, cross, right)
        information, innovation = weighted[:, :-1], weighted[:, -1]
        gain = product(cross.T, information)
        remain = eye_states - product(gain, observe)
        mean = mean + apply(solved.T, surprise)
        covariance = product(remain, covariance, remain.T) + product(solved.T, precision, solved)
        covariance = 0.5 * (covariance + covariance.T)
        log_weight = (
            jnp.sum(shift * value)
            - 0.5 * jnp.sum(value * apply(precision, value))
            + 0.5 * jnp.sum(surprise * apply(solved, apply(observe.T, surprise)))
            - 0.5 * log_determinant
        )
        filtered = _Filtered(mean, covariance, solved, gain, innovation, information)
        return (mean, covariance), (log_weight, filtered)

    start = (jnp.zeros(count * size, shifts.dtype), _block_diagonal(chain.initial))
    _, (log_weights, filtered) = jax.lax.scan(step, start, (*_steps(chain), shifts, precisions))
    return jnp.sum(log_weights), filtered


def _solve_both(matrix, right, right_of_transposed):
    """Solutions with a matrix and with its transpose, and the logarithm of its determinant."""
    if len(matrix) <= _FEW_VALUES:
        solved, log_determinant = small.eliminate(matrix, right)
        return solved, small.eliminate(matrix.T, right_of_transposed)[0], log_determinant
    factored = safe.lu(matrix)
    log_determinant = jnp.sum(jnp.log(jnp.abs(jnp.diagonal(factored[0]))))
    solved = safe.lu_solve(factored, right)
    return solved, safe.lu_solve(factored, right_of_transposed, transposed=True), log_determinant


def _steps(chain):
    """Transitions and noises, the first ones of no effect."""
    eye = jnp.eye(chain.output.shape[1], dtype=chain.transition.dtype)
    return chain.transition.at[0].set(eye), chain.noise.at[0].set(0.0)


def _diagonal_blocks(dense, count):
    """(…, R D, R D) to (…, R, D, D)."""
    size = dense.shape[-1] // count
    blocks = dense.reshape(*dense.shape[:-2], count, size, count, size)
    return jnp.einsum("...risj,rs->...rij", blocks, jnp.eye(count, dtype=dense.dtype))


def _forward(chain, shifts, precisions):
    value, filtered = _filter(chain, shifts, precisions)
    return value, (chain, filtered)


def _backward(saved, weight):
    chain, filtered = saved
    count = chain.output.shape[0]
    observe = _observe(chain.output)
    eye = jnp.eye(observe.shape[1], dtype=observe.dtype)

    def step(carry, item):
        # Derivatives by the mean after a message, and minus twice those by the covariance, less
        # the outer product of the former.
        adjoint, precision = carry
        transition, here, mean_before, covariance_before = item
        transition = _block_diagonal(transition)
        value = apply(observe, here.mean) + apply(here.solved, adjoint)
        spread = product(here.solved, observe.T - product(precision, here.solved.T))
        second = 0.5 * (spread + spread.T) + jnp.outer(value, value)
        remain = eye - product(here.gain, observe)
        adjoint = apply(remain.T, adjoint) + apply(observe.T, here.innovation)
        precision = product(remain.T, precision, remain)
        precision = precision + product(observe.T, here.information, observe)
        excess = jnp.outer(adjoint, adjoint) - precision
        by_transition = jnp.outer(adjoint, mean_before) + product(
            excess, product(transition, covariance_before)
        )
        carry = apply(transition.T, adjoint), product(transition.T, precision, transition)
        blocks = _diagonal_blocks(jnp.stack([by_transition, 0.5 * excess]), count)
        return carry, (value, second, blocks[0], blocks[1])

    means_before = jnp.roll(filtered.mean, 1, axis=0).at[0].set(0.0)
    covariances_before = jnp.roll(filtered.covariance, 1, axis=0).at[0].set(0.0)
    end = (jnp.zeros(observe.shape[1], observe.dtype), jnp.zeros_like(eye))
    items = (_steps(chain)[0], filtered, means_before, covariances_before)
    (adjoint, precision), parts = jax.lax.scan(step, end, items, reverse=True)
    values, seconds, by_transition, by_noise = parts
    by_initial = _diagonal_blocks(0.5 * (jnp.outer(adjoint, adjoint) - precision), count)
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
    O(n (R D)³) operations and O(n (R D)²) memory.

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
