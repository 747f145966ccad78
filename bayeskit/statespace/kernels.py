"""The one place where kernels of gpjax enter: their parameters, and chains made of them."""

import functools
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from gpjax.kernels import Matern12, Matern32, Matern52
from gpjax.kernels.base import AbstractKernel, ProductKernel, SumKernel
from gpjax.parameters import val
from gpjax.state_space import TruncatedPeriodic, to_sde
from paramax import AbstractUnwrappable

from bayeskit.codec import storable
from bayeskit.statespace.chain import Chain

_LONGEST = 1e15  # steps, in units of the longest lengthscale or period
_SIMPLE = {cls.__name__: cls for cls in (Matern12, Matern32, Matern52, TruncatedPeriodic)}


class _Simplest(eqx.Module):
    """A kernel with nothing but a variance."""

    variance: float = 1.0

    def __check_init__(self):
        _positive("variance", self.variance)


@storable
class Constant(_Simplest):
    """A random function that is the same number everywhere.

    Parameters
    ----------
    variance : float
        Positive.

    Examples
    --------
    >>> from bayeskit.statespace import Constant
    >>> Constant(2.0)
    Constant(variance=2.0)
    """


@storable
class Independent(_Simplest):
    """A function whose values have nothing to do with each other: for categories.

    Parameters
    ----------
    variance : float
        Positive.

    Examples
    --------
    >>> from bayeskit.statespace import Independent
    >>> Independent(3.0)
    Independent(variance=3.0)
    """


def _positive(name, value):
    if isinstance(value, bool) or np.ndim(value) or not np.isfinite(value) or value <= 0:
        raise ValueError(f"{name} must be a positive number, got {value!r}")
    return float(value)


@storable
class Form(NamedTuple):
    """What kind of function a kernel describes, its numbers left out: hashable.

    Attributes
    ----------
    kind : str
        Name of the kernel's class.
    order : int
        Truncation order where the kernel has one, else zero.
    parts : tuple of Form
        Terms of a sum, factors of a product.
    """

    kind: str
    order: int = 0
    parts: tuple = ()


def form_of(name, kernel):
    """Kind of a kernel and the values of its parameters by name.

    Parameters
    ----------
    name : str
        What the kernel is called in errors.
    kernel : gpjax kernel, Constant or Independent
        Matérn 1/2, 3/2 or 5/2, ``TruncatedPeriodic``, a sum of these, or ``TruncatedPeriodic``
        times a Matérn.

    Returns
    -------
    form : Form
        Hashable, without numbers.
    values : dict of float
        Parameters by name; those of the parts of a sum or product are numbered:
        ``0_lengthscale``.

    Raises
    ------
    TypeError
        If it is no kernel, or has no state-space form, naming it and those that have.
    ValueError
        If a parameter is not a positive finite number.

    Examples
    --------
    >>> from gpjax.kernels import Matern12, Matern32
    >>> from bayeskit.statespace import form_of
    >>> form, values = form_of("kernel", Matern12() + Matern32(lengthscale=0.5))
    >>> form.kind, sorted(values)
    ('SumKernel', ['0_lengthscale', '0_variance', '1_lengthscale', '1_variance'])
    """
    if isinstance(kernel, _Simplest):
        return Form(type(kernel).__name__), {"variance": float(kernel.variance)}
    supported = (
        f"{', '.join(_SIMPLE)}, sums of these, TruncatedPeriodic × Matérn, Constant or Independent"
    )
    if not isinstance(kernel, AbstractKernel):
        hint = "; did you forget the parentheses?" if isinstance(kernel, type) else ""
        raise TypeError(f"{name} must be one of {supported}; got {kernel!r}{hint}")
    form, values = _describe(name, kernel)
    try:
        to_sde(kernel)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise TypeError(
            f"{name}: {type(kernel).__name__} has no state-space form; take one of {supported}"
        ) from error
    return form, values


def _describe(name, kernel):
    kind = type(kernel).__name__
    if isinstance(kernel, (SumKernel, ProductKernel)):
        described = [_describe(name, part) for part in kernel.kernels]
        values = {
            f"{i}_{path}": value
            for i, (_, inner) in enumerate(described)
            for path, value in inner.items()
        }
        return Form(kind, 0, tuple(form for form, _ in described)), values
    names = sorted(n for n, v in vars(kernel).items() if isinstance(v, AbstractUnwrappable))
    values = {
        n: _positive(f"{name}: {n} of {kind}", np.asarray(val(getattr(kernel, n)))) for n in names
    }
    return Form(kind, getattr(kernel, "truncation_order", 0)), values


def kernel_of(form, values):
    """The kernel of a form, with plain and possibly traced numbers as parameters."""
    if form.parts:
        parts = [kernel_of(part, _numbered(values, i)) for i, part in enumerate(form.parts)]
        return {"SumKernel": SumKernel, "ProductKernel": ProductKernel}[form.kind](kernels=parts)
    kernel = _SIMPLE[form.kind](**({"truncation_order": form.order} if form.order else {}))
    names = sorted(values)
    return eqx.tree_at(
        lambda k: [getattr(k, name) for name in names],
        kernel,
        [values[name] for name in names],
        is_leaf=lambda leaf: isinstance(leaf, AbstractUnwrappable),
    )


def _numbered(values, i):
    prefix = f"{i}_"
    return {name[len(prefix) :]: v for name, v in values.items() if name.startswith(prefix)}


def names_in_index_units(form):
    """Parameters that have the unit of the index."""
    if form.parts:
        return [
            f"{i}_{name}"
            for i, part in enumerate(form.parts)
            for name in names_in_index_units(part)
        ]
    if form.kind == "TruncatedPeriodic":
        return ["period"]
    return ["lengthscale"] if form.kind in _SIMPLE else []


def transitions(form, values, steps):
    """State-space form of a kernel over points ``steps`` apart.

    Parameters
    ----------
    form : Form
    values : dict
        Parameters by name.
    steps : array (n,)
        From each point to the one before, not negative; infinite for no relation at all.

    Returns
    -------
    transition, noise : arrays (n, D, D)
    initial : array (D, D)
    output : array (D,)
    """
    if form.kind in ("Constant", "Independent"):
        one = jnp.ones((1, 1), steps.dtype)
        same = steps == 0 if form.kind == "Independent" else jnp.isfinite(steps)
        transition = jnp.where(same, 1.0, 0.0).astype(steps.dtype)[:, None, None]
        initial = values["variance"] * one
        return transition, (1.0 - transition) * initial, initial, one[0]
    # gpjax computes in the default type only, and 1 - A P Aᵀ wants many digits anyway.
    dtype, steps = steps.dtype, steps.astype(jnp.result_type(float))
    values = {name: jnp.asarray(value).astype(steps.dtype) for name, value in values.items()}
    sde = to_sde(kernel_of(form, values))
    root = sde.stationary_state_cov_sqrt
    initial = root @ root.T
    # Derivatives of the closed forms are not finite for a step of zero or infinity, which changes
    # nothing or everything.
    regular = (steps > 0) & jnp.isfinite(steps)
    # Powers of steps that are far longer would overflow before their exponentials vanish.
    lengths = jnp.stack([values[name] for name in names_in_index_units(form)])
    safe = jnp.where(regular, jnp.minimum(steps, _LONGEST * jnp.max(lengths)), 1.0)
    transition = jax.vmap(lambda step: sde.discretise(step)[0])(safe)
    limit = jnp.where((steps > 0)[:, None, None], 0.0, jnp.eye(initial.shape[0]))
    transition = jnp.where(regular[:, None, None], transition, limit)
    noise = initial - transition @ initial @ jnp.swapaxes(transition, 1, 2)
    noise = 0.5 * (noise + jnp.swapaxes(noise, 1, 2))
    return (
        transition.astype(dtype),
        noise.astype(dtype),
        initial.astype(dtype),
        sde.observation_matrix[0].astype(dtype),
    )


def with_constant(form, variance):
    """The state-space form of a function plus an independent constant of the given variance."""
    transition, noise, initial, output = form
    pad = [(0, 0), (0, 1), (0, 1)]
    return (
        jnp.pad(transition, pad).at[:, -1, -1].set(1.0),
        jnp.pad(noise, pad),
        jnp.pad(initial, pad[1:]).at[-1, -1].set(variance),
        jnp.append(output, jnp.ones((), output.dtype)),
    )


@functools.partial(jax.jit, static_argnums=0)
def chain_of(form, values, constant_variances, steps) -> Chain:
    """R independent functions of one kind of kernel, each plus a constant.

    Parameters
    ----------
    form : Form
        As :func:`form_of` gives it.
    values : dict of arrays (R,)
        Parameters by the names that :func:`form_of` gives them.
    constant_variances : array (R,)
        Prior variances of the constants.
    steps : array (n,)
        From each point to the one before, not negative; infinite where the functions, but not the
        constants, begin anew. The first is without effect. Their type is that of the result.

    Returns
    -------
    Chain
        Each function has the states of its kernel and one for its constant, the last.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from gpjax.kernels import Matern32
    >>> from bayeskit.statespace import chain_of, form_of
    >>> form, _ = form_of("kernel", Matern32())
    >>> values = {"lengthscale": jnp.array([0.2, 0.7]), "variance": jnp.array([1.0, 0.3])}
    >>> steps = jnp.array([jnp.inf, 0.1, 0.1, 0.3])
    >>> chain_of(form, values, jnp.array([0.5, 0.5]), steps).transition.shape
    (4, 2, 3, 3)
    """

    def one(values, variance):
        return with_constant(transitions(form, values, steps), variance)

    constant_variances = constant_variances.astype(steps.dtype)
    transition, noise, initial, output = jax.vmap(one)(values, constant_variances)
    return Chain(jnp.swapaxes(transition, 0, 1), jnp.swapaxes(noise, 0, 1), initial, output)
