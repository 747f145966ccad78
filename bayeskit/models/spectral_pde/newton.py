"""Newton's iteration with halved steps, until rounding stalls it; and sizes of numbers."""

import math

import jax
import jax.numpy as jnp

_STEPS = 8  # at a time: the best spectrum goes on
_SETTLED = 1e-6  # relative steps that may be rounding's when they stall


def rms(values):
    """Root mean square."""
    return jnp.sqrt(jnp.mean(values**2))


def share_of(part, whole):
    """Zero where the whole is; infinite where that is no number that squares can be taken of."""
    share = jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1.0), 0.0)
    return jnp.where(jnp.isfinite(whole), share, jnp.inf)


def equation_share(equation, values, lengths, typical):
    """Root mean square of what is left of an equation, relative to the size of its terms.

    Terms count for at least what they are of a solution of ``typical`` size that varies over the
    whole box. ``values`` (derivatives, points) are those of the field.
    """
    left, by_value = equation.linearised(values)
    terms = by_value * values
    slow = jnp.stack(
        [
            typical * math.prod(length**-o for length, o in zip(lengths, orders, strict=True))
            for orders in equation.orders
        ]
    )
    size = jnp.sum(jnp.abs(terms), axis=0) + jnp.abs(left - jnp.sum(terms, axis=0))
    size = size + slow @ jnp.abs(by_value)
    return share_of(rms(left), rms(size))


def iterate(towards, size, merit, start, halvings):
    """Follow full steps as far as they lower what is left.

    Parameters
    ----------
    towards : callable
        The full step from some coefficients.
    size : callable
        Of the field with such coefficients.
    merit : callable
        What is left of the equation there.
    start : array
        Coefficients.
    halvings : int
        How many shares of a step are tried: 1, 1/2, ….

    Returns
    -------
    coefficients, size
        The last step's, relative to the field.
    """
    shares = 0.5 ** jnp.arange(halvings)

    def step(carry):
        coefficients, last, _, count = carry
        full = towards(coefficients)
        merits = jax.lax.map(lambda share: merit(coefficients + share * full), shares)
        move = shares[jnp.nanargmin(merits)] * full
        moved = coefficients + move
        relative = size(move) / jnp.maximum(size(moved), jnp.finfo(moved.dtype).tiny)
        return moved, relative, last, count + 1

    def unfinished(carry):
        _, relative, last, count = carry
        stalled = (relative > 0.5 * last) & (relative < _SETTLED)
        return (count < _STEPS) & ~stalled & (relative > 0) & ~jnp.isnan(relative)

    infinite = jnp.asarray(jnp.inf)
    coefficients, relative, _, _ = jax.lax.while_loop(
        unfinished, step, (start, infinite, infinite, jnp.asarray(0))
    )
    return coefficients, relative
