"""Meshes of devices, and constraints that keep a tensor spread over the mesh it lives on."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Inexact, Shaped

from bayeskit.precision import is_distributed


def make_mesh(shape: Sequence[int], names: Sequence[str]) -> Mesh:
    """Make a mesh of devices whose axes are all of type ``Auto``.

    JAX's own default type is ``Explicit``, under which factorisations and scans over a
    distributed axis raise.

    Parameters
    ----------
    shape : sequence of int
        Devices along each axis of the mesh.
    names : sequence of str
        One for each axis.

    Returns
    -------
    jax.sharding.Mesh

    Raises
    ------
    ValueError
        If there are not as many names as axes, or more devices asked for than there are.

    Examples
    --------
    >>> import jax
    >>> from bayeskit.linalg import make_mesh
    >>> mesh = make_mesh((1,), ("rows",))
    >>> mesh.axis_names
    ('rows',)
    """
    shape, names = tuple(shape), tuple(names)
    if len(shape) != len(names) or not shape:
        raise ValueError(f"names has {len(names)} entries; expected one for each axis of {shape}")
    wanted = 1
    for size in shape:
        wanted *= size
    if not 1 <= wanted <= jax.device_count():
        raise ValueError(
            f"shape {shape} asks for {wanted} devices; expected between 1 and the "
            f"{jax.device_count()} that JAX sees"
        )
    devices = jax.devices()[:wanted]
    return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(names), devices=devices)


def mesh_of(tensor: Shaped[Array, "..."]):
    """Return the mesh of several devices that a tensor lives on, or ``None``, inside ``jit`` too.

    Raises
    ------
    TypeError
        If the mesh has axes of type ``Explicit``.
    """
    mesh = jax.typeof(tensor).sharding.mesh
    if mesh.empty or mesh.size == 1:
        return None
    if AxisType.Explicit in mesh.axis_types:
        raise TypeError(
            "the tensor lives on a mesh with Explicit axes; expected Auto axes: convert it with "
            "bayeskit.linalg.to_auto_mesh before any jit"
        )
    return mesh


def shard_along(tensor: Inexact[Array, "..."], axis: int) -> Inexact[Array, "..."]:
    """Distribute one axis of a tensor over the whole mesh that the tensor lives on.

    The mesh is found from the value itself, inside ``jit`` too, so that no function needs a mesh
    argument.

    Parameters
    ----------
    tensor : array (...)
    axis : int

    Returns
    -------
    array (...)
        The tensor as it came where there is no mesh.

    Raises
    ------
    TypeError
        If the mesh has axes of type ``Explicit``; see `to_auto_mesh`.

    Notes
    -----
    At most one all-to-all. Outside ``jit`` JAX splits evenly or not at all: an axis whose length
    the number of devices does not divide stays as it is there.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bayeskit.linalg import shard_along
    >>> shard_along(jnp.ones((4, 3)), axis=0).shape
    (4, 3)
    """
    mesh = mesh_of(tensor)
    traced = isinstance(tensor, Tracer)
    if mesh is None or (not traced and tensor.shape[axis] % mesh.size):
        return tensor
    return jax.lax.with_sharding_constraint(tensor, _along(mesh, axis, tensor.ndim))


def shard_with(tensor: Inexact[Array, "..."], reference: Inexact[Array, "..."], axis: int):
    """Distribute one axis of a tensor over the mesh that another value lives on.

    For tensors that a program builds out of small replicated pieces (outer products), which
    every device would otherwise hold whole. Arguments as for :func:`shard_along`.
    """
    mesh = mesh_of(reference)
    if mesh is None:
        return tensor
    return jax.lax.with_sharding_constraint(tensor, _along(mesh, axis, tensor.ndim))


def mesh_of_rows(data) -> Mesh | None:
    """The mesh that the first axis of an array of ``data`` is spread over, if one is."""
    for leaf in jax.tree.leaves(data):
        if is_distributed(leaf):
            sharding = to_auto_mesh(leaf).sharding
            if not (isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh)):
                continue
            if len(sharding.spec) and sharding.spec[0] is not None:
                return sharding.mesh
    return None


def spread(array: np.ndarray, mesh: Mesh, axis: int) -> Array:
    """A host's array with one axis, which the number of devices divides, spread over a mesh."""
    sharding = _along(mesh, axis, array.ndim)
    return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])


def _along(mesh, axis, ndim):
    """One of ``ndim`` axes over the whole mesh."""
    spec: list[tuple[str, ...] | None] = [None] * ndim
    spec[axis] = tuple(mesh.axis_names)
    return NamedSharding(mesh, PartitionSpec(*spec))


def to_auto_mesh(array: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """Move an array from a mesh with Explicit axes to the same devices' mesh with Auto axes.

    Parameters
    ----------
    array : array (...)

    Returns
    -------
    array (...)
        With the same shard on the same device; the array itself where no axis is Explicit.

    Raises
    ------
    TypeError
        If the array is being traced: the type of its mesh is fixed before ``jit``.

    Notes
    -----
    Moves no data.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from bayeskit.linalg import to_auto_mesh
    >>> mesh = jax.make_mesh((1,), ("rows",), axis_types=(jax.sharding.AxisType.Explicit,))
    >>> spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows"))
    >>> to_auto_mesh(jax.device_put(jnp.ones(4), spec)).sharding.mesh.axis_types
    (Auto,)
    """
    if AxisType.Explicit not in jax.typeof(array).sharding.mesh.axis_types:
        return array
    if isinstance(array, Tracer):
        raise TypeError("array is traced on an Explicit mesh; expected to_auto_mesh before any jit")
    sharding = array.sharding
    assert isinstance(sharding, NamedSharding), "only these have Explicit axes"
    names = sharding.mesh.axis_names
    devices = np.asarray(sharding.mesh.devices)
    auto = Mesh(devices, names, axis_types=(AxisType.Auto,) * len(names))
    return jax.device_put(array, NamedSharding(auto, sharding.spec))
