"""Nested values as JSON and arrays, so that files need no pickle.

Nothing but these is ever rebuilt: scalars, tuples, lists and dicts of Python, arrays of NumPy,
labelled ones of xarray and pandas, mapped files by their paths, classes registered with
:func:`storable`, and NumPyro's own distributions with their transforms. Of functions the name alone
is kept: whoever reads has to bring them. JAX arrays (but parameters of distributions) come back as
NumPy arrays, object arrays of datetimes as ``datetime64``, a pandas index without its frequency and
a ``RangeIndex`` as integers.
"""

import dataclasses
import datetime
import hashlib
import inspect
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pandas as pd
import xarray as xr
from numpyro.distributions import constraints, transforms
from numpyro.distributions.util import lazy_property

from bayeskit.validation import whole_mapping

_CLASSES: dict[str, Any] = {}
_LITERALS = (type(None), bool, int, float, str)
# Booleans, numbers, dates and strings.
_KINDS = "biufcMmU"
# Of mapped files, which are known by parts of them.
_MARKS, _MARK_BYTES = 256, 4096
_NUMPYRO = {
    "distributions": (dist, dist.Distribution),
    "transforms": (transforms, transforms.Transform),
    "constraints": (constraints, constraints.Constraint),
}


def storable(cls):
    """Register a module, dataclass or named tuple by its name; usable as a decorator."""
    known = _CLASSES.setdefault(cls.__name__, cls)
    if known.__module__.startswith("bayeskit.") and known.__module__ != cls.__module__:
        raise TypeError(
            f"{cls.__module__}.{cls.__name__} has the name of {known.__module__}.{cls.__name__}, "
            "which files know it by"
        )
    _CLASSES[cls.__name__] = cls
    return cls


class UserFunction(NamedTuple):
    """Stands for a function of a user's, which no file holds."""

    name: str


def encode(value, arrays, where="value"):
    """A JSON-able description of ``value``; arrays are appended to ``arrays``.

    A description is a literal or a dict: ``{kind: parts}`` for containers, ``{"array": …}``, or
    ``{"class": name, "fields": …}``.

    Parameters
    ----------
    value
        Nested structure.
    arrays : list
        Is extended by one-dimensional arrays of bytes.
    where : str
        What ``value`` is called in errors.

    Raises
    ------
    TypeError
        If something in it has no stored form, naming it; nothing is dropped silently.
    """
    if type(value) in _LITERALS:
        return value
    if type(value) is complex:
        return {"complex": [value.real, value.imag]}
    if type(value) in (tuple, list):
        items = [encode(item, arrays, f"{where}[{i}]") for i, item in enumerate(value)]
        return {type(value).__name__: items}
    if isinstance(value, dict):
        items = [
            [encode(k, arrays, f"a key of {where}"), encode(v, arrays, f"{where}[{k!r}]")]
            for k, v in value.items()
        ]
        return {"dict": items}
    if isinstance(value, np.memmap):
        return {"file": _place_of(value, where)}
    # Subclasses of NumPy's arrays hold more, and JAX's random keys are no numbers.
    of_jax = isinstance(value, jax.Array) and isinstance(value.dtype, np.dtype)
    if of_jax or type(value) is np.ndarray or isinstance(value, np.generic):
        return _encode_array(value, arrays, where)
    if isinstance(value, tuple(base for _, base in _NUMPYRO.values())):
        return _encode_numpyro(value, arrays, where)
    name = type(value).__name__
    for container, labelled in _LABELLED.items():
        if isinstance(value, labelled.type):
            return _encode_fields(container, labelled.take_apart(value), arrays, where)
    if _CLASSES.get(name) is type(value):
        known = _CLASSES[name]
        names = getattr(known, "_fields", None) or [f.name for f in dataclasses.fields(known)]
        parts = {field: getattr(value, field) for field in names}
        return _encode_fields(name, parts, arrays, where)
    if isinstance(value, UserFunction):
        return {"function": value.name}
    if callable(value) and not isinstance(value, type):
        found = getattr(value, "__qualname__", getattr(value, "__name__", name))
        return {"function": f"{getattr(value, '__module__', None) or 'numpy'}.{found}"}
    raise _not_storable(where, f"{name} of {value.dtype}" if hasattr(value, "dtype") else name)


def decode(description, arrays) -> Any:
    """The value that :func:`encode` described.

    Raises
    ------
    ValueError
        If it is of a class that is not known.
    """
    if not isinstance(description, dict):
        return description
    if "class" in description:
        fields = {name: decode(part, arrays) for name, part in description["fields"].items()}
        return _build(description["class"], fields)
    kind, content = next(iter(description.items()))
    if kind == "array":
        return _decode_array(content, arrays)
    if kind == "file":
        return _map_file(content)
    if kind == "complex":
        return complex(*content)
    if kind == "function":
        return UserFunction(content)
    if kind == "dict":
        return {decode(k, arrays): decode(v, arrays) for k, v in content}
    return {"tuple": tuple, "list": list}[kind](decode(item, arrays) for item in content)


def functions_in(description) -> list[str]:
    """Names of all functions that a description holds in place of their code."""
    if not isinstance(description, dict):
        return []
    if "function" in description:
        return [description["function"]]
    parts = description["fields"].values() if "class" in description else description.values()
    flat = [part for each in parts for part in (each if isinstance(each, list) else [each])]
    flat = [part for each in flat for part in (each if isinstance(each, list) else [each])]
    return [name for part in flat for name in functions_in(part)]


def _not_storable(where, kind):
    return TypeError(
        f"{where} cannot be stored ({kind}): make it numbers (NumPy's own types), strings, "
        "categories of these, or datetimes without a time zone"
    )


def _encode_fields(name, fields, arrays, where):
    encoded = {field: encode(part, arrays, f"{where}.{field}") for field, part in fields.items()}
    return {"class": name, "fields": encoded}


def _build(name, fields):
    if name in _LABELLED:
        return _LABELLED[name].put_together(**fields)
    if "." in name:
        found = _find_numpyro(name)
        return found(**fields) if isinstance(found, type) else found
    if name not in _CLASSES:
        raise ValueError(f"the class {name} is not known: import the module that defines it first")
    cls = _CLASSES[name]
    if issubclass(cls, tuple):
        return cls(**fields)
    # Constructors check and convert; what is stored has been through it.
    value = object.__new__(cls)
    vars(value).update(fields)
    return value


# Arrays


def _encode_array(array, arrays, where):
    holder = "scalar" if isinstance(array, np.generic) else "array"
    array = np.asarray(array)
    if array.dtype.kind == "O":
        array = _of_datetimes(array)
    if array.dtype.kind == "O":
        flat = np.frombuffer(_json_of_strings(array, where), np.uint8)
    elif array.dtype.kind in _KINDS:
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    else:
        raise _not_storable(where, f"array of {array.dtype}")
    arrays.append(flat)
    place = {"index": len(arrays) - 1, "dtype": array.dtype.str, "shape": list(array.shape)}
    return {"array": {**place, "holder": holder}}


def _decode_array(content, arrays):
    flat = arrays[content["index"]]
    if content["dtype"] == "|O":
        items = json.loads(flat.tobytes())
        array = np.empty(len(items), object)
        array[:] = items
    else:
        array = flat.view(content["dtype"])
    array = array.reshape(content["shape"])
    if content["holder"] == "jax":
        with jax.enable_x64(True):
            return jnp.asarray(array)
    return array[()] if content["holder"] == "scalar" else array


def _place_of(array, where):
    """Where a mapped array is, instead of its numbers, which may be more than fit in memory."""
    whole = whole_mapping(array)
    if whole is None or array.filename is None or not array.flags.forc:
        raise TypeError(
            f"{where} cannot be stored: it is no contiguous part of a mapped file; "
            "make it an array, numpy.array(…)"
        )
    path = str(Path(array.filename).resolve())
    offset = whole.offset + array.ctypes.data - whole.ctypes.data
    order = "C" if array.flags.c_contiguous else "F"
    place = {"path": path, "offset": int(offset), "dtype": array.dtype.str, "order": order}
    return {**place, "shape": list(array.shape), "digest": _digest_of(path)}


def _digest_of(path):
    """SHA-256 of a file's size and of blocks at equal distances: files may be too large for all."""
    size = os.path.getsize(path)
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        for place in np.linspace(0, max(size - _MARK_BYTES, 0), _MARKS).astype(int):
            file.seek(place)
            digest.update(file.read(_MARK_BYTES))
    return digest.hexdigest()


def _map_file(content):
    path, shape = content["path"], tuple(content["shape"])
    try:
        digest = _digest_of(path)
        found = np.memmap(path, content["dtype"], "r", content["offset"], shape, content["order"])
    except (OSError, ValueError) as error:
        raise ValueError(f"the data were mapped from {path!r}, which cannot be: {error}") from error
    if digest != content["digest"]:
        raise ValueError(f"the data were mapped from {path!r}, which has changed since")
    return found


def _of_datetimes(array):
    """An object array of datetimes without a time zone as ``datetime64``; others as they are."""
    flat = array.reshape(-1)
    dates = all(isinstance(item, (datetime.date, np.datetime64)) for item in flat)
    zones = any(getattr(item, "tzinfo", None) for item in flat)
    if zones or not dates or not flat.size:
        return array
    return np.asarray(pd.to_datetime(flat)).reshape(array.shape)


def _json_of_strings(array, where):
    for index, item in np.ndenumerate(array):
        missing = item is None or (isinstance(item, float) and np.isnan(item))
        if not (isinstance(item, str) or missing):
            at = ", ".join(map(str, index))
            raise _not_storable(f"{where}[{at}]", f"{type(item).__name__} in an object array")
    return json.dumps(array.reshape(-1).tolist()).encode()


# Arrays with labels: taken apart into fields, and put together from them


class _Labelled(NamedTuple):
    type: Any
    take_apart: Callable[[Any], dict]
    put_together: Callable[..., Any]


def _values(labelled):
    """NumPy values of a pandas object, pandas' own array for types that NumPy does not have."""
    return labelled.to_numpy() if isinstance(labelled.dtype, np.dtype) else labelled.array


def _dataarray_parts(array):
    coords = {}
    for name, coord in array.coords.items():
        # `values` makes objects of the categories and strings of pandas.
        values = coord.variable.to_base_variable().data if coord.ndim else None
        own = isinstance(values, pd.api.extensions.ExtensionArray)
        coords[name] = (coord.dims, values if own else coord.values, dict(coord.attrs))
    parts = {"data": array.values, "coords": coords, "dims": array.dims}
    return {**parts, "name": array.name, "attrs": dict(array.attrs)}


def _frame_parts(frame):
    if not frame.columns.is_unique:
        raise TypeError("a DataFrame cannot be stored: names of its columns occur twice")
    columns = {name: _values(frame[name]) for name in frame.columns}
    return {"index": frame.index, "names": frame.columns, "columns": columns}


def _frame(index, names, columns):
    series = {name: _series(values, index, name) for name, values in columns.items()}
    return pd.DataFrame(series, index).set_axis(names, axis=1)


def _series(values, index, name):
    return pd.Series(values, index, values.dtype, name)


def _index(values, name):
    return pd.Index(values, values.dtype, name=name)


def _categorical_parts(array):
    codes = np.asarray(array.codes)
    return {"codes": codes, "categories": array.categories, "ordered": array.ordered}


def _string_parts(array):
    # The name of the type leaves out who holds the strings.
    name = "str" if str(array.dtype) == "str" else f"string[{array.dtype.storage}]"
    return {"data": array.to_numpy(object, na_value=None), "dtype": name}


_LABELLED = {
    "DataArray": _Labelled(xr.DataArray, _dataarray_parts, xr.DataArray),
    "DataFrame": _Labelled(pd.DataFrame, _frame_parts, _frame),
    "Series": _Labelled(
        pd.Series, lambda s: {"values": _values(s), "index": s.index, "name": s.name}, _series
    ),
    "Index": _Labelled(pd.Index, lambda i: {"values": _values(i), "name": i.name}, _index),
    "Categorical": _Labelled(pd.Categorical, _categorical_parts, pd.Categorical.from_codes),
    "StringArray": _Labelled(
        (pd.arrays.StringArray, pd.arrays.ArrowStringArray), _string_parts, pd.array
    ),
}


# NumPyro: the name of a class and the arguments of its constructor, as attributes have them


def constructor_arguments(value) -> dict[str, Any]:
    """The arguments that made a distribution or a transform of NumPyro's, by name."""
    found = {}
    for name in inspect.signature(type(value)).parameters:
        # One of several ways to state the same parameter, computed from the one that was given.
        if isinstance(inspect.getattr_static(type(value), name, None), lazy_property):
            continue
        for attribute in (f"_{name}", name, name.replace("distribution", "dist")):
            if attribute in vars(value):
                found[name] = vars(value)[attribute]
                break
    return found


def _encode_numpyro(value, arrays, where):
    label = next(label for label, (_, base) in _NUMPYRO.items() if isinstance(value, base))
    known = vars(_NUMPYRO[label][0])
    if label == "constraints":  # those without parameters are objects, known by a name
        wanted, arguments = value, {}
    else:
        wanted, arguments = type(value), constructor_arguments(value)
    name = next((name for name, item in known.items() if item is wanted), None)
    if name is None:
        cls = type(value).__name__
        raise TypeError(f"{where} cannot be stored: {cls} is no class of NumPyro's own")
    description = _encode_fields(f"{label}.{name}", arguments, arrays, where)
    for argument, given in arguments.items():
        if isinstance(given, jax.Array):  # NumPy would round otherwise
            description["fields"][argument]["array"]["holder"] = "jax"
    leaves, structure = jax.tree.flatten(value)
    try:
        again, made = jax.tree.flatten(decode(description, arrays))
        same = made == structure and all(map(np.array_equal, again, leaves))
    except (TypeError, ValueError, AssertionError, NotImplementedError):
        same = False
    if not same:
        raise TypeError(f"{where} cannot be stored: {name} cannot be made again from its arguments")
    return description


def _find_numpyro(name):
    label, _, name = name.partition(".")
    module, base = _NUMPYRO.get(label, (None, object))
    found = getattr(module, name, None)
    is_class = isinstance(found, type) and issubclass(found, base)
    if module is None or not (is_class or isinstance(found, base)):
        raise ValueError(f"NumPyro has no {label}.{name}")
    return found
