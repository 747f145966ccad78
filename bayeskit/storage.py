"""Posteriors on disk: one NetCDF file, arrays and JSON, no pickle.

The file is the result tree plus a group ``bayeskit``, from which the posterior itself is rebuilt: a
JSON description of nested structures whose arrays are variables of the group. Nothing but these is
ever rebuilt: classes that have registered themselves with :func:`storable`, containers of xarray
and pandas, and NumPyro's own distributions with their transforms and constraints.

What does not come back as it was given: JAX arrays outside of distributions as NumPy arrays, object
arrays of naive datetimes as ``datetime64``, other subclasses of dictionaries and arrays as these.
"""

import contextlib
import dataclasses
import datetime
import inspect
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pandas as pd
import xarray as xr
from numpyro.distributions import constraints, transforms
from numpyro.distributions.util import lazy_property

_GROUP = "bayeskit"
_SCHEMA = 2
_CLASSES: dict[str, type] = {}
_MISSING = {"NA": pd.NA, "NaT": pd.NaT}
_NUMPYRO = {
    "distributions": (dist, dist.Distribution),
    "transforms": (transforms, transforms.Transform),
    "constraints": (constraints, constraints.Constraint),
}


def storable(cls):
    """Register a module, dataclass or named tuple by its name; usable as a decorator."""
    _CLASSES[cls.__name__] = cls
    return cls


def encode(value, arrays, where="value"):
    """A JSON-able description of ``value``; arrays are appended to ``arrays``.

    Parameters
    ----------
    value
        Nested structure.
    arrays : list
        Is extended by one-dimensional arrays that NetCDF can hold.
    where : str
        What ``value`` is called in errors.

    Raises
    ------
    TypeError
        If something in it has no stored form, naming it; nothing is dropped silently.
    """
    literal = _literal(value)
    if literal is not NotImplemented:
        return literal
    if type(value) in (tuple, list):
        items = [encode(item, arrays, f"{where}[{i}]") for i, item in enumerate(value)]
        return {type(value).__name__: items}
    if isinstance(value, dict):
        items = [
            [encode(k, arrays, f"a key of {where}"), encode(v, arrays, f"{where}[{k!r}]")]
            for k, v in value.items()
        ]
        return {"dict": items}
    adapted = next((name for name, a in _ADAPTERS.items() if isinstance(value, a.type)), None)
    if adapted is not None:
        parts = _ADAPTERS[adapted].take_apart(value)
        return {"adapted": adapted, "fields": _encode_fields(parts, arrays, where)}
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        holder = "scalar" if isinstance(value, np.generic) else "numpy"
        return _encode_array(np.asarray(value), arrays, where, holder)
    if isinstance(value, tuple(base for _, base in _NUMPYRO.values())):
        return _encode_numpyro(value, arrays, where)
    name = type(value).__name__
    if _CLASSES.get(name) is type(value):
        fields = {field: getattr(value, field) for field in _field_names(value)}
        return {"class": name, "fields": _encode_fields(fields, arrays, where)}
    raise TypeError(f"{where} cannot be stored: {name} {value!r}")


def decode(description, arrays) -> Any:
    """The value that :func:`encode` described.

    Raises
    ------
    ValueError
        If it is of a class that is not known.
    """
    if not isinstance(description, dict):
        return description
    kind, content = next(iter(description.items()))
    if kind in _DECODERS:
        return _DECODERS[kind](content, arrays)
    fields = {name: decode(value, arrays) for name, value in description["fields"].items()}
    return _BUILDERS[kind](description, fields)


def _encode_fields(fields, arrays, where):
    return {name: encode(value, arrays, f"{where}.{name}") for name, value in fields.items()}


def _literal(value):
    """The description of a scalar of Python's (or of pandas' missing values), else a mark."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, np.generic):
        return NotImplemented  # np.float64 is a float as well
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return {"float": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real.hex(), value.imag.hex()]}
    missing = next((name for name, known in _MISSING.items() if value is known), None)
    return NotImplemented if missing is None else {"missing": missing}


# Arrays


def _encode_array(array, arrays, where, holder):
    """Place an array among the group's variables; its type and shape go into the description."""
    if array.dtype.kind in "OT":
        return _encode_objects(array, arrays, where)
    if array.dtype.type is np.void:
        raise TypeError(f"{where} cannot be stored: an array of {array.dtype}")
    flat = np.ascontiguousarray(array).reshape(-1)
    if array.dtype.kind == "c":
        flat = flat.view(_real_type(flat.dtype))
    elif array.dtype.kind not in "iuf":
        flat = flat.view(np.uint8)
    arrays.append(flat)
    # Extended types such as bfloat16 all have the same str.
    dtype = array.dtype.name if array.dtype.kind == "V" else array.dtype.str
    return {
        "array": {
            "index": len(arrays) - 1,
            "dtype": dtype,
            "shape": list(array.shape),
            "holder": holder,
        }
    }


def _decode_array(content, arrays):
    dtype, shape, holder = np.dtype(content["dtype"]), content["shape"], content["holder"]
    if 0 in shape:
        array = np.zeros(shape, dtype)
    elif dtype.kind in "iufc":
        # The file has every number in the machine's own byte order.
        parts = arrays[content["index"]].astype(_real_type(dtype))
        array = parts.view(dtype).reshape(shape)
    else:
        stored = np.ascontiguousarray(arrays[content["index"]], np.uint8)
        array = np.frombuffer(stored.tobytes(), dtype).reshape(shape).copy()
    if holder == "scalar":
        return array[()]
    return array if holder == "numpy" else _device_array(array, holder == "weak")


def _real_type(dtype):
    """Type of the real and imaginary parts of complex numbers, else the type itself."""
    return np.zeros((), dtype).real.dtype if dtype.kind == "c" else dtype


def _device_array(array, weak):
    """A JAX array of the same precision whatever JAX's default is."""
    with jax.enable_x64(_real_type(array.dtype).itemsize > 4):
        return jnp.asarray(array.item() if weak else array)


def _encode_objects(array, arrays, where):
    """An object array as the JSON of its scalars, or as ``datetime64`` if that is what it holds."""
    datetimes = _datetimes(array)
    if datetimes is not None:
        return _encode_array(datetimes, arrays, where, "numpy")
    literals = []
    for index, item in np.ndenumerate(array):
        literal = _literal(item.item() if isinstance(item, np.generic) else item)
        if literal is NotImplemented:
            raise TypeError(
                f"{where} cannot be stored: entry {index} of an object array is "
                f"{type(item).__name__} {item!r}, strings and numbers can be"
            )
        literals.append(literal)
    arrays.append(np.frombuffer(json.dumps(literals).encode(), np.uint8))
    content = {"index": len(arrays) - 1, "dtype": array.dtype.char, "shape": list(array.shape)}
    return {"objects": content}


def _decode_objects(content, arrays):
    text = np.ascontiguousarray(arrays[content["index"]], np.uint8).tobytes().decode()
    items = [decode(literal, arrays) for literal in json.loads(text)]
    array = np.empty(len(items), content["dtype"])
    array[:] = items
    return array.reshape(content["shape"])


def _datetimes(array):
    """An object array of naive datetimes as ``datetime64``; ``None`` if it is none."""
    flat = array.reshape(-1)
    if not flat.size or not all(isinstance(item, (datetime.date, np.datetime64)) for item in flat):
        return None
    try:
        converted = pd.DatetimeIndex(pd.to_datetime(flat))
    except (TypeError, ValueError):  # zones are mixed, or a date is out of range
        return None
    return None if converted.tz is not None else converted.to_numpy().reshape(array.shape)


# Containers of NumPy, xarray and pandas: taken apart into fields, and put together from them


class _Adapter(NamedTuple):
    type: Any
    take_apart: Callable[[Any], dict]
    put_together: Callable[..., Any]


def _masked_parts(array):
    mask = np.ma.getmaskarray(array)
    return {"data": array.data, "mask": mask, "fill_value": array.fill_value}


def _variable_parts(variable):
    of_pandas = isinstance(variable.data, pd.api.extensions.ExtensionArray) and variable.ndim
    values = variable.data if of_pandas else variable.values
    return {"dims": variable.dims, "data": values, "attrs": dict(variable.attrs)}


def _dataarray_parts(array):
    for name in array.dims:
        if name in array.coords:
            _check_dimension_coordinate(name, array.coords[name].to_index())
    coords = {name: coord.variable.to_base_variable() for name, coord in array.coords.items()}
    return {"variable": array.variable, "coords": coords, "name": array.name}


def _check_dimension_coordinate(name, index):
    """The result tree holds these, and NetCDF has no array of Python objects but strings."""
    native = isinstance(index.dtype, (np.dtype, pd.CategoricalDtype))
    values = index.to_numpy() if native else index.astype(object).to_numpy()
    if values.dtype.kind != "O" or all(isinstance(item, str) for item in values):
        return
    if _datetimes(values) is None:
        kinds = ", ".join(sorted({type(item).__name__ for item in values}))
        raise TypeError(
            f"coordinate {name!r} cannot be stored: entries of type {kinds}; make all of them "
            "strings, numbers (NumPy's own types), or datetimes without a time zone"
        )


def _dataarray(variable, coords, name):
    return xr.DataArray(variable.data, coords, variable.dims, name, variable.attrs)


def _plain_values(labelled):
    """NumPy values of a pandas object, pandas' own array for types that NumPy does not have."""
    return labelled.to_numpy() if isinstance(labelled.dtype, np.dtype) else labelled.array


def _frame_parts(frame):
    # Labels may repeat, positions do not.
    columns = {(i, str(label)): frame.iloc[:, i] for i, label in enumerate(frame.columns)}
    return {
        "columns": {place: _plain_values(column) for place, column in columns.items()},
        "labels": frame.columns,
        "index": frame.index,
        "attrs": dict(frame.attrs),
    }


def _frame(columns, labels, index, attrs):
    series = [pd.Series(v, index, v.dtype) for v in columns.values()]
    frame = pd.DataFrame(dict(enumerate(series)), index)
    frame.columns = labels
    frame.attrs.update(attrs)
    return frame


def _series_parts(series):
    return {
        "values": _plain_values(series),
        "index": series.index,
        "name": series.name,
        "attrs": dict(series.attrs),
    }


def _series(values, index, name, attrs):
    series = pd.Series(values, index, values.dtype, name)
    series.attrs.update(attrs)
    return series


def _range_parts(index):
    return {"start": index.start, "stop": index.stop, "step": index.step, "name": index.name}


def _multi_index_parts(index):
    levels = [_plain_values(index.get_level_values(i)) for i in range(index.nlevels)]
    return {"levels": levels, "names": list(index.names)}


def _multi_index(levels, names):
    return pd.MultiIndex.from_arrays(levels, names=names)


def _index_parts(index):
    freq = getattr(index, "freqstr", None)
    # Frequencies with holidays of one's own have no name.
    if freq is not None and pd.tseries.frequencies.to_offset(freq) != index.freq:
        freq = None
    return {"values": _plain_values(index), "name": index.name, "freq": freq}


def _index(values, name, freq):
    index = pd.Index(values, values.dtype, name=name)
    cls: Any = type(index)
    return index if freq is None else cls(index, freq=freq, name=name)


def _categorical_parts(array):
    dtype = array.dtype
    return {
        "codes": np.asarray(array.codes),
        "categories": dtype.categories,
        "ordered": dtype.ordered,
    }


def _categorical(codes, categories, ordered):
    return pd.Categorical.from_codes(codes, dtype=pd.CategoricalDtype(categories, ordered))


def _extension_parts(array):
    """Strings and nullable numbers as objects, datetimes of a zone as those of UTC."""
    dtype = array.dtype
    if isinstance(dtype, pd.DatetimeTZDtype):
        values = pd.DatetimeIndex(array).tz_convert("UTC").tz_localize(None).to_numpy()
    else:
        values = np.asarray(array.astype(object))
    # The name of a type of strings leaves out who holds them, which makes types differ.
    name = str(dtype)
    if isinstance(dtype, pd.StringDtype) and name == "string":
        name = f"string[{dtype.storage}]"
    parts = {"dtype": name, "values": values}
    try:
        same = _extension(**parts).equals(array)
    except (TypeError, ValueError):
        same = False
    if not same:
        raise TypeError(f"pandas' {dtype} cannot be stored: make it a category, or an object")
    return parts


def _extension(dtype, values):
    if values.dtype.kind == "M":
        return pd.DatetimeIndex(values).tz_localize("UTC").astype(dtype).array
    return pd.array(values, dtype=dtype)


# The first that matches; types before the more general ones.
_ADAPTERS = {
    "masked": _Adapter(np.ma.MaskedArray, _masked_parts, np.ma.MaskedArray),
    "DataArray": _Adapter(xr.DataArray, _dataarray_parts, _dataarray),
    "Variable": _Adapter(xr.Variable, _variable_parts, xr.Variable),
    "DataFrame": _Adapter(pd.DataFrame, _frame_parts, _frame),
    "Series": _Adapter(pd.Series, _series_parts, _series),
    "RangeIndex": _Adapter(pd.RangeIndex, _range_parts, pd.RangeIndex),
    "MultiIndex": _Adapter(pd.MultiIndex, _multi_index_parts, _multi_index),
    "Index": _Adapter(pd.Index, _index_parts, _index),
    "Categorical": _Adapter(pd.Categorical, _categorical_parts, _categorical),
    "ExtensionArray": _Adapter(pd.api.extensions.ExtensionArray, _extension_parts, _extension),
}


# NumPyro: the name of a class and the arguments of its constructor, as attributes have them


def _encode_numpyro(value, arrays, where):
    name = _numpyro_name(value)
    if name is None:
        raise TypeError(
            f"{where} cannot be stored: {type(value).__name__} is no class of NumPyro's own"
        )
    made = isinstance(_find_numpyro(name), type)
    description = {
        "numpyro": name,
        "fields": _encode_arguments(value, arrays, where) if made else {},
        # Constructors compute in JAX's default precision of the time.
        "double": any(map(_is_double, jax.tree.leaves(value))),
    }
    try:
        same = _same_leaves(decode(description, arrays), value)
    except (TypeError, ValueError, AssertionError, NotImplementedError):
        same = False
    if not same:
        raise TypeError(
            f"{where} cannot be stored: its constructor does not make this {name} again"
        )
    return description


def _is_double(leaf):
    return isinstance(leaf, jax.Array) and _real_type(leaf.dtype).itemsize > 4


def _numpyro_name(value):
    """Where NumPyro has the object (a constraint without parameters) or its class, or ``None``."""
    for label, (module, base) in _NUMPYRO.items():
        if isinstance(value, base):
            singletons = (name for name, known in vars(module).items() if known is value)
            name = next(singletons, type(value).__name__)
            known = getattr(module, name, None)
            return f"{label}.{name}" if known is value or known is type(value) else None
    return None


def _find_numpyro(name):
    label, _, name = name.partition(".")
    module, base = _NUMPYRO.get(label, (None, object))
    found = getattr(module, name, None)
    is_class = isinstance(found, type) and issubclass(found, base)
    if module is None or not (is_class or isinstance(found, base)):
        raise ValueError(f"NumPyro has no {label}.{name}")
    return found


def _encode_arguments(value, arrays, where):
    fields = {}
    for argument in _arguments(type(value)):
        given = [getattr(value, name) for name in _attributes(argument) if hasattr(value, name)]
        given = [item for item in given if not inspect.ismethod(item)]
        if given:
            fields[argument] = _encode_argument(given[0], arrays, f"{where}.{argument}")
    if vars(value).get("_validate_args") is not None:
        fields["validate_args"] = bool(value._validate_args)
    return fields


def _arguments(cls):
    """Names of a constructor's arguments that say what is made."""
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    return [
        p.name
        for p in parameters
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        and p.name != "validate_args"
        # One of several ways to state the same parameter, computed from the one that was given.
        and not isinstance(inspect.getattr_static(cls, p.name, None), lazy_property)
    ]


def _attributes(argument):
    """Names under which NumPyro's classes keep an argument of the constructor."""
    return argument, f"_{argument}", argument.replace("base_distribution", "base_dist")


def _encode_argument(value, arrays, where):
    if isinstance(value, jax.Array):
        # Weak types give way to those of the data.
        holder = "weak" if value.weak_type and not value.ndim else "jax"
        return _encode_array(np.asarray(value), arrays, where, holder)
    return encode(value, arrays, where)


def _same_leaves(one, other):
    (first, structure), (second, wanted) = jax.tree.flatten(one), jax.tree.flatten(other)
    return structure == wanted and all(map(_same_leaf, first, second))


def _same_leaf(one, other):
    if type(one) is not type(other):
        return False
    one, other = np.asarray(one), np.asarray(other)
    same_type = one.dtype == other.dtype and one.shape == other.shape
    return same_type and one.tobytes() == other.tobytes()


def _build_numpyro(description, fields):
    found = _find_numpyro(description["numpyro"])
    with jax.enable_x64(description["double"]):
        return found(**fields) if isinstance(found, type) else found


# Classes of this library


def _field_names(value):
    if hasattr(value, "_fields"):
        return value._fields
    return [field.name for field in dataclasses.fields(value)]


def _build_class(description, fields):
    name = description["class"]
    if name not in _CLASSES:
        raise ValueError(f"the class {name} is not known: import the module that defines it first")
    cls = _CLASSES[name]
    if hasattr(cls, "_fields") or not issubclass(cls, eqx.Module):
        return cls(**fields)
    # Modules check and convert in their constructor; what is stored has been through it.
    module = object.__new__(cls)
    for field, value in fields.items():
        object.__setattr__(module, field, value)
    return module


_DECODERS = {
    "float": lambda content, arrays: float.fromhex(content),
    "complex": lambda content, arrays: complex(*map(float.fromhex, content)),
    "missing": lambda content, arrays: _MISSING[content],
    "tuple": lambda content, arrays: tuple(decode(item, arrays) for item in content),
    "list": lambda content, arrays: [decode(item, arrays) for item in content],
    "dict": lambda content, arrays: {decode(k, arrays): decode(v, arrays) for k, v in content},
    "array": _decode_array,
    "objects": _decode_objects,
}
_BUILDERS = {
    "adapted": lambda description, fields: _ADAPTERS[description["adapted"]].put_together(**fields),
    "numpyro": _build_numpyro,
    "class": _build_class,
}


# Files


def save_tree(path, tree, fields) -> None:
    """Write a result tree and the fields of a posterior: a temporary file, synced, then renamed."""
    arrays: list[np.ndarray] = []
    encoded = {name: encode(value, arrays, name) for name, value in fields.items()}
    structure = json.dumps({"schema": _SCHEMA, "fields": encoded})
    variables = {
        f"array_{i}": (f"length_{i}", array) for i, array in enumerate(arrays) if array.size
    }
    tree = tree.copy()
    tree[_GROUP] = xr.DataTree(
        xr.Dataset(variables, attrs={"structure": structure, "arrays": len(arrays)})
    )
    path = Path(path)
    temporary = path.with_name(path.name + ".part")
    try:
        tree.to_netcdf(temporary, engine="h5netcdf")
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


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
    return {name: decode(value, arrays) for name, value in structure["fields"].items()}


# Comparison


class _Described(NamedTuple):
    """A description and the arrays that it refers to."""

    description: Any
    arrays: list

    @property
    def kind(self):
        """What was described; the name of a class where it is of one."""
        if not isinstance(self.description, dict):
            return type(self.description).__name__
        kind, content = next(iter(self.description.items()))
        return content if "fields" in self.description else kind

    @property
    def parts(self):
        """Parts by what they add to the name of the whole."""
        if not isinstance(self.description, dict):
            return {}
        kind, content = next(iter(self.description.items()))
        parts = {}
        if "fields" in self.description:
            parts = {f".{name}": part for name, part in self.description["fields"].items()}
        elif kind == "dict":
            parts = {f"[{decode(k, self.arrays)!r}]": part for k, part in content}
        elif kind in ("tuple", "list"):
            parts = {f"[{i}]": part for i, part in enumerate(content)}
        return {name: _Described(part, self.arrays) for name, part in parts.items()}

    def __str__(self):
        single = self.kind in ("NoneType", "bool", "str", "int", "float", "complex", "missing")
        return repr(decode(self.description, self.arrays)) if single else self.kind


def _described(value):
    arrays = []
    return _Described(encode(value, arrays), arrays)


def _difference(given, stored, name):
    """How two described values differ, naming the part; ``None`` if they do not."""
    if given.kind != stored.kind:
        return f"{name} is {given} instead of {stored}"
    if given.kind in ("array", "objects"):
        return _difference_of_arrays(given, stored, name)
    ours, theirs = given.parts, stored.parts
    if not ours and not theirs:
        same = given.description == stored.description
        return None if same else f"{name} is {given} instead of {stored}"
    if ours.keys() != theirs.keys():
        return f"{name} has the parts {', '.join(ours)} instead of {', '.join(theirs)}"
    found = (_difference(ours[part], theirs[part], f"{name}{part}") for part in ours)
    return next((difference for difference in found if difference is not None), None)


def _difference_of_arrays(given, stored, name):
    ours, theirs = given.description[given.kind], stored.description[stored.kind]
    for what in ("shape", "dtype"):
        if ours[what] != theirs[what]:
            return f"{name} has {what} {_shown(ours[what])} instead of {_shown(theirs[what])}"
    same = np.array_equal(
        given.arrays[ours["index"]], stored.arrays[theirs["index"]], equal_nan=True
    )
    return None if same else f"{name} has other contents"


def _shown(shape_or_dtype):
    return tuple(shape_or_dtype) if isinstance(shape_or_dtype, list) else np.dtype(shape_or_dtype)


def same_structure(given, stored) -> None:
    """Raise ``ValueError`` if a model is not the stored one, naming the field that differs."""
    if type(given) is not type(stored):
        raise ValueError(
            f"model is not the one that was saved: {type(given).__name__} instead of "
            f"{type(stored).__name__}"
        )
    ours, theirs = _described(_plain(given)).parts, _described(_plain(stored)).parts
    for field, part in theirs.items():
        difference = _difference(ours[field], part, field.removeprefix("."))
        if difference is not None:
            raise ValueError(f"model is not the one that was saved: {difference}")


def _plain(model):
    """A model without what a fit added to it."""
    return model.with_estimates(None)
