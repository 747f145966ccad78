"""Posteriors on disk: one NetCDF file, arrays and JSON, no pickle.

The file is the result tree plus a group ``bayeskit``, from which the posterior itself is rebuilt:
the description that :mod:`bayeskit.codec` makes of it, and the arrays that this refers to.
"""

import contextlib
import hashlib
import json
import os
from pathlib import Path

import jax
import numpy as np
import xarray as xr

from bayeskit.codec import decode, encode, functions_in

_GROUP = "bayeskit"
_SCHEMA = 6


def content_of(data) -> str:
    """SHA-256 of prepared data: of what they are made of, and of all numbers."""
    leaves, structure = jax.tree.flatten(data)
    digest = hashlib.sha256(str(structure).encode())
    for leaf in leaves:
        array = np.asarray(leaf)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def has_functions(model) -> bool:
    """Whether a model has functions of the user's, which no file holds."""
    return bool(functions_in(encode(model, [], "model")))


def save_tree(path, tree, fields) -> None:
    """Write a result tree and the fields of a posterior: a temporary file, synced, then renamed."""
    arrays: list[np.ndarray] = []
    encoded = {name: encode(value, arrays, name) for name, value in fields.items()}
    for name, description in encoded.items():
        if name not in ("model", "method") and (functions := functions_in(description)):
            raise TypeError(f"{name} has functions, which cannot be stored: {', '.join(functions)}")
    structure = json.dumps({"schema": _SCHEMA, "fields": encoded})
    # A dimension of length zero is an unlimited one to NetCDF.
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


def load_fields(path, with_functions=False) -> dict:
    """The fields that :func:`save_tree` wrote.

    Raises
    ------
    ValueError
        If the file cannot be read, was cut short, or is no posterior; if its model needs functions
        of the user's and nobody brings them (``with_functions``).
    """
    if not Path(path).exists():
        raise ValueError(f"{str(path)!r} does not exist")
    try:
        with xr.open_dataset(path, group=_GROUP, engine="h5netcdf", decode_cf=False) as dataset:
            dataset = dataset.load()
        structure = json.loads(dataset.attrs["structure"])
        empty = np.zeros(0, np.uint8)
        arrays = [
            dataset[f"array_{i}"].values if f"array_{i}" in dataset else empty
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
    functions = functions_in(structure["fields"].get("model"))
    if functions and not with_functions:
        raise ValueError(
            f"the model of {str(path)!r} has functions of your own ({', '.join(functions)}), which "
            "a file does not hold: give load the model too, load(path, model)"
        )
    return {name: decode(value, arrays) for name, value in structure["fields"].items()}


def same_structure(given, stored) -> None:
    """Raise ``ValueError`` if a model is not the stored one, naming the field that differs.

    Estimates that a fit added make no difference.
    """
    if type(given) is not type(stored):
        raise ValueError(
            f"model is not the one that was saved: {type(given).__name__} instead of "
            f"{type(stored).__name__}"
        )
    ours, theirs = _parts(given.with_estimates(None)), _parts(stored.with_estimates(None))
    for name, (text, content) in theirs.items():
        # A part of what has been equal so far is there on both sides.
        our_text, our_content = ours[name]
        if our_text != text:
            difference = f"{name} is {our_text} instead of {text}"
        elif our_content != content:
            difference = f"{name} has other contents"
        else:
            continue
        raise ValueError(f"model is not the one that was saved: {difference}")


def _parts(model):
    """What every part of a model is, in words, and the bytes of arrays; by name, wholes first."""
    arrays, found = [], {}

    def visit(description, name):
        content, parts = None, {}
        if not isinstance(description, dict):
            text = repr(description)
        elif "class" in description:
            parts = {f"{name}.{field}": part for field, part in description["fields"].items()}
            text = description["class"]
        elif "array" in description:
            array = description["array"]
            content = arrays[array["index"]].tobytes()
            text = f"an array of {np.dtype(array['dtype'])} of shape {tuple(array['shape'])}"
        elif "function" in description:
            text = f"the function {description['function']}"
        elif "dict" in description:
            keys = [repr(decode(key, arrays)) for key, _ in description["dict"]]
            values = [value for _, value in description["dict"]]
            parts = {f"{name}[{k}]": part for k, part in zip(keys, values, strict=True)}
            text = f"dict of {', '.join(keys)}"
        else:
            kind, items = next(iter(description.items()))
            parts = {f"{name}[{i}]": part for i, part in enumerate(items)}
            text = f"{kind} of {len(items)}"
        found[name.lstrip(".")] = (text, content)
        for part_name, part in parts.items():
            visit(part, part_name)

    visit(encode(model, arrays), "")
    return found
