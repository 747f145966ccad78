"""Posteriors on disk: one NetCDF file, arrays and JSON, no pickle.

The file is the result tree plus a group ``bayeskit``, from which the posterior itself is rebuilt: a
JSON description of nested structures whose arrays are variables of the group. Only classes that
have registered themselves with :func:`storable` are ever rebuilt.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
import numpyro.distributions as dist
import xarray as xr

_GROUP = "bayeskit"
_SCHEMA = 1
_CLASSES: dict[str, type] = {}


def storable(cls):
    """Register a module, dataclass or named tuple by its name; usable as a decorator."""
    _CLASSES[cls.__name__] = cls
    return cls


def encode(value, arrays):
    """A JSON-able description of ``value``; arrays are appended to ``arrays``.

    Raises
    ------
    TypeError
        If something in it has no stored form; nothing is dropped silently.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return {"float": float(value).hex()}
    if isinstance(value, xr.DataArray):
        coords = {name: value.coords[name].values for name in value.dims if name in value.coords}
        return {"dataarray": encode([value.values, list(value.dims), coords, value.name], arrays)}
    if isinstance(value, (np.ndarray, jax.Array, np.generic)):
        return {"array": _append(np.asarray(value), arrays)}
    if isinstance(value, dict):
        return {"dict": [[encode(k, arrays), encode(v, arrays)] for k, v in value.items()]}
    if isinstance(value, dist.Distribution):
        parameters = {name: np.asarray(getattr(value, name)) for name in value.arg_constraints}
        return {"distribution": type(value).__name__, "fields": encode(parameters, arrays)}
    name = type(value).__name__
    if _CLASSES.get(name) is type(value):
        names = _field_names(value)
        return {
            "class": name,
            "fields": {field: encode(getattr(value, field), arrays) for field in names},
        }
    if type(value) in (tuple, list):
        return {type(value).__name__: [encode(item, arrays) for item in value]}
    raise TypeError(f"{name} cannot be stored: {value!r}")


def decode(description, arrays) -> Any:
    """The value that :func:`encode` described."""
    if not isinstance(description, dict):
        return description
    kind = next(iter(description))
    content = description[kind]
    if kind == "float":
        return float.fromhex(content)
    if kind == "array":
        return _restore(content, arrays)
    if kind == "dataarray":
        values, dims, coords, name = decode(content, arrays)
        return xr.DataArray(values, dims=dims, coords=coords, name=name)
    if kind == "dict":
        return {decode(k, arrays): decode(v, arrays) for k, v in content}
    if kind in ("tuple", "list"):
        items = [decode(item, arrays) for item in content]
        return tuple(items) if kind == "tuple" else items
    if kind == "distribution":
        fields = decode(description["fields"], arrays)
        return getattr(dist, content)(**{name: value.item() for name, value in fields.items()})
    cls = _CLASSES[content]
    fields = {name: decode(value, arrays) for name, value in description["fields"].items()}
    if hasattr(cls, "_fields") or not issubclass(cls, eqx.Module):
        return cls(**fields)
    # Modules check and convert in their constructor; what is stored has been through it.
    module = object.__new__(cls)
    for name, value in fields.items():
        object.__setattr__(module, name, value)
    return module


def _field_names(value):
    if hasattr(value, "_fields"):
        return value._fields
    return [field.name for field in dataclasses.fields(value)]


def _append(array, arrays):
    """Place an array among the group's variables; its type and shape go into the description."""
    kind = array.dtype.kind
    if kind in "Mm":
        stored = array.view(np.int64)
    elif kind == "O":
        raise TypeError(f"an array of objects cannot be stored: {array.ravel()[:3]!r}")
    elif kind == "b":
        stored = array.astype(np.int8)
    elif kind == "U":
        stored = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
    else:
        stored = array
    arrays.append(stored.reshape(-1))
    return {"index": len(arrays) - 1, "dtype": array.dtype.str, "shape": list(array.shape)}


def _restore(content, arrays):
    dtype, stored = np.dtype(content["dtype"]), np.asarray(arrays[content["index"]])
    if dtype.kind in "MmU":
        stored = np.frombuffer(np.ascontiguousarray(stored).tobytes(), dtype)
    return stored.astype(dtype).reshape(content["shape"])


def save_tree(path, tree, fields) -> None:
    """Write a result tree and the fields of a posterior: a temporary file, synced, then renamed."""
    arrays: list[np.ndarray] = []
    structure = json.dumps({"schema": _SCHEMA, "fields": encode(fields, arrays)})
    variables = {
        f"array_{i}": (f"length_{i}", array) for i, array in enumerate(arrays) if array.size
    }
    tree = tree.copy()
    tree[_GROUP] = xr.DataTree(
        xr.Dataset(variables, attrs={"structure": structure, "arrays": len(arrays)})
    )
    path = Path(path)
    temporary = path.with_name(path.name + ".part")
    tree.to_netcdf(temporary, engine="h5netcdf")
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load_fields(path) -> dict:
    """The fields that :func:`save_tree` wrote.

    Raises
    ------
    ValueError
        If the file cannot be read, was cut short, or is no posterior.
    """
    if not Path(path).exists():
        raise ValueError(f"{str(path)!r} does not exist")
    try:
        with xr.open_dataset(path, group=_GROUP, engine="h5netcdf", decode_cf=False) as dataset:
            dataset = dataset.load()
        structure = json.loads(dataset.attrs["structure"])
        arrays = [
            dataset[f"array_{i}"].values if f"array_{i}" in dataset else np.zeros(0)
            for i in range(int(dataset.attrs["arrays"]))
        ]
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{str(path)!r} is not a saved posterior, or was cut short: {error}"
        ) from error
    if structure["schema"] != _SCHEMA:
        raise ValueError(
            f"{str(path)!r} has schema {structure['schema']}; this version reads schema {_SCHEMA}"
        )
    return decode(structure["fields"], arrays)


def same_structure(given, stored) -> None:
    """Raise ``ValueError`` if a model differs from the stored in structure, shapes or types."""
    one, other = [], []
    if json.dumps(encode(_plain(given), one)) != json.dumps(encode(_plain(stored), other)):
        raise ValueError(f"model is not the one that was saved: {given!r} instead of {stored!r}")


def _plain(model):
    """A model without what a fit added to it."""
    return eqx.tree_at(lambda m: m.estimates, model, None, is_leaf=lambda leaf: leaf is None)
