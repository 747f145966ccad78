"""Coefficients of an equation that are not known."""

import contextlib
from collections.abc import Callable
from contextvars import ContextVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import biject_to

from bayeskit.pde.field import Symbol
from bayeskit.precision import double_precision

_DRAWS = 1000
_READ: ContextVar[Callable | None] = ContextVar("read", default=None)


class Unknown(Symbol):
    """A number of the equation that is to be inferred: the problem becomes an inverse one.

    To be used inside the residual: ``k * u``, ``k**2``; functions of ``jax.numpy`` take its value,
    ``jnp.exp(k())``.

    Parameters
    ----------
    name : str
        Of the site in results.
    prior : numpyro.distributions.Distribution
        Scalar and continuous.

    Raises
    ------
    TypeError, ValueError
        If the name is no identifier, or the prior no scalar continuous distribution that can be
        drawn from.

    Examples
    --------
    >>> import numpyro.distributions as dist
    >>> import bayeskit as bk
    >>> k = bk.pde.Unknown("k", dist.Normal(3.0, 1.0))
    >>> pde = bk.pde.PDE(lambda u, x: u.d("x", 2) + k**2 * u - x, {"x": (0.0, 1.0)}, [])
    """

    def __init__(self, name, prior):
        if not isinstance(name, str) or not name.isidentifier():
            raise TypeError(f"name must be a name such as 'k', got {name!r}")
        if not isinstance(prior, dist.Distribution):
            raise TypeError(f"prior must be a NumPyro distribution, got {type(prior).__name__}")
        if prior.batch_shape or prior.event_shape:
            raise ValueError(
                f"prior must be a scalar distribution, got batch shape {prior.batch_shape} and "
                f"event shape {prior.event_shape}"
            )
        if prior.is_discrete:
            raise ValueError(f"prior must be continuous, got {type(prior).__name__}")
        self.name, self.prior = name, prior
        self.centre, self.scale = _place(prior)

    def __call__(self):
        """The value, a scalar; inside a residual only."""
        read = _READ.get()
        if read is None:
            raise ValueError(
                f"the unknown {self.name!r} has a value only inside a residual, not in values "
                "of conditions"
            )
        return read(self)

    @property
    def typical(self):
        """The median of the prior's draws."""
        return biject_to(self.prior.support)(jnp.asarray(self.centre, float))

    def __repr__(self):
        return f"Unknown({self.name!r})"


def _place(prior):
    """Median and half of the range of two thirds of draws, in unconstrained coordinates."""
    try:
        with double_precision(), jax.ensure_compile_time_eval():
            drawn = prior.sample(jax.random.key(0), (_DRAWS,))
            free = np.asarray(biject_to(prior.support).inv(jnp.asarray(drawn, float)))
    except NotImplementedError as error:
        raise ValueError(f"prior cannot be drawn from: {type(prior).__name__}") from error
    low, centre, high = np.quantile(free, [1 / 6, 0.5, 5 / 6])
    if not np.isfinite(high - low) or high <= low:
        raise ValueError(
            f"prior must spread over numbers that are finite, got {type(prior).__name__} between "
            f"{low:.3g} and {high:.3g}"
        )
    return float(centre), float(0.5 * (high - low))


@contextlib.contextmanager
def reading(read: Callable):
    """While this lasts, unknowns have the values that ``read`` gives."""
    token = _READ.set(read)
    try:
        yield
    finally:
        _READ.reset(token)
