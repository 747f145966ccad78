"""State of an unfinished run on disk: arrays and a fingerprint, written atomically."""

import hashlib
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def fingerprint(**parts) -> dict[str, str]:
    """SHA-256 of every named part: structure, types and bytes of its leaves.

    Functions count by their names, whatever place in memory this process has them at.
    """
    digests = {}
    for name, tree in parts.items():
        leaves, structure = jax.tree.flatten(tree)
        digest = hashlib.sha256(_ADDRESS.sub("", str(structure)).encode())
        for leaf in leaves:
            array = (
                np.asarray(_raw(leaf))
                if isinstance(leaf, (jax.Array, np.ndarray, float, int, bool))
                else None
            )
            text = _ADDRESS.sub("", repr(leaf)) if array is None else f"{array.dtype}{array.shape}"
            digest.update(text.encode())
            if array is not None:
                digest.update(np.ascontiguousarray(array).tobytes())
        digests[name] = digest.hexdigest()
    return digests


def _raw(leaf):
    """An array's own numbers, also of a typed random key."""
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(leaf)
    return leaf


def check_path(path) -> None:
    """Whether a checkpoint can be there, before anything is computed.

    Raises
    ------
    ValueError
        If the path is a folder, or in one that does not exist.
    """
    path = Path(path)
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else "is in a folder that does not exist"
        raise ValueError(f"checkpoint {str(path)!r} {what}; expected a file's name")


def write(path, marks, states, records, counts, total) -> None:
    """Write a checkpoint: to a temporary file, synced, then renamed over the old one."""
    # Any, so that no name is taken for a keyword of savez's own
    arrays: dict[str, Any] = {f"mark_{name}": np.asarray(value) for name, value in marks.items()}
    arrays["total"] = np.asarray(total)
    for name, tree in (("state", states), ("record", records), ("count", counts)):
        for index, leaf in enumerate(jax.tree.leaves(tree)):
            arrays[f"{name}_{index}"] = np.asarray(_raw(leaf))
    path = Path(path)
    temporary = path.with_name(path.name + ".part")
    with open(temporary, "wb") as file:
        np.savez(file, **arrays)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read(path, marks, states, records):
    """States, records, counts and steps of a checkpoint of the same run.

    Raises
    ------
    ValueError
        If the file is not a checkpoint, is cut short, or belongs to another model, method, data
        or key; the message says which part differs.
    """
    if os.path.isfile(path) and not zipfile.is_zipfile(path):
        raise ValueError(
            f"checkpoint {str(path)!r} cannot be read: it is no checkpoint, or is cut short"
        )
    try:
        with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        for name, value in marks.items():
            if str(arrays[f"mark_{name}"]) != value:
                raise ValueError(
                    f"checkpoint {str(path)!r} has another {name}; remove it or name another file"
                )
        restored = [
            _restore(arrays, name, tree) for name, tree in (("state", states), ("record", records))
        ]
        return *restored, arrays["count_0"], int(arrays["total"])
    except (OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"checkpoint {str(path)!r} cannot be read, it may be cut short: {error}"
        ) from error


def _restore(arrays, name, like):
    leaves, structure = jax.tree.flatten(like)
    restored = []
    for index, leaf in enumerate(leaves):
        value = jnp.asarray(arrays[f"{name}_{index}"])
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            value = jax.random.wrap_key_data(value)
        restored.append(value)
    return jax.tree.unflatten(structure, restored)
