"""Rows that stay on the host or in a file, and come in batches."""

import math
import mmap
import weakref
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayeskit.models import tables
from bayeskit.validation import is_numeric

_LARGE = 2**30  # bytes of an array that is not copied to the device
_BLOCK_NUMBERS = 2**22
_LOOKED_AT = 10_000  # rows
_SCATTERED = 16  # rows that are read at a time


class Summary(NamedTuple):
    """What one pass over all rows finds.

    Attributes
    ----------
    center, variance, smallest, largest : arrays (D,)
        Moments of the columns and their limits, in the user's units.
    """

    center: Any
    variance: Any
    smallest: Any
    largest: Any


class _Source(NamedTuple):
    table: Any
    center: Any
    unit: Any


# By identity, and only while somebody else holds the table: compiled programs do not.
_sources: dict[int, _Source] = {}


@jax.tree_util.register_static
class StreamedRows:
    """Standardised rows (n, D) of a table, read whenever they are indexed by an array.

    Also inside a compiled program, which calls back to the host. Nothing is kept in memory, nor is
    the table: whoever has asked for its rows holds it.
    """

    def __init__(self, table, center, unit, dtype):
        self.dtype = np.dtype(dtype)
        self.shape = (len(table), math.prod(table.shape[1:]))
        file = getattr(table, "filename", None)
        file = None if file is None else str(Path(file).resolve())
        # Checkpoints know data by this.
        self._text = f"StreamedRows({file}, {table.dtype}, {table.shape}, {self.dtype})"
        self._identity = id(table)
        _sources[self._identity] = _Source(weakref.ref(table), center, unit)
        weakref.finalize(table, _sources.pop, self._identity, None)

    def __eq__(self, other):
        return isinstance(other, StreamedRows) and self._parts == other._parts

    def __hash__(self):
        return hash(self._parts)

    @property
    def _parts(self):
        return (self._identity, self._text)

    def __getitem__(self, rows):
        dtype = jax.dtypes.canonicalize_dtype(self.dtype)

        def read(rows):
            source, rows = _sources[self._identity], np.asarray(rows)
            values = _chosen(source.table(), rows.reshape(-1)).reshape(*rows.shape, self.shape[1])
            values = ((values - source.center) / source.unit).astype(dtype)
            # Callbacks have a thread of their own, in which doubles may not exist: bits do.
            return values[..., None].view(np.uint32)

        shape = (*jnp.shape(rows), self.shape[1], dtype.itemsize // 4)
        bits = jax.ShapeDtypeStruct(shape, np.dtype(np.uint32))
        indices = jnp.asarray(rows, np.int32)
        found = jax.pure_callback(read, bits, indices, vmap_method="broadcast_all")
        return jax.lax.bitcast_convert_type(found if dtype.itemsize > 4 else found[..., 0], dtype)

    def __repr__(self):
        return self._text


def is_streamed(data) -> bool:
    """Whether a table stays where it is: in a mapped file, or as a large array on the host."""
    if isinstance(data, np.memmap):
        # Results of computations are of this class too, without a file; and pages of a mapping in
        # mode "c" hold what was written to them alone.
        return data.filename is not None and data.mode in ("r", "r+", "w+")
    return type(data) is np.ndarray and data.nbytes >= _LARGE


def summary(table, shown) -> Summary:
    """Moments and limits of all columns, in one pass; ``shown`` is the shape that errors name.

    Raises
    ------
    TypeError, ValueError
        If numbers are not real and finite.
    """
    if not is_numeric(table) or table.dtype.kind == "c":
        raise TypeError(f"data must be real numbers, got {table.dtype}")
    if table.ndim not in (2, 3, 4) or table.size == 0:
        raise ValueError(f"data must have the shape {shown}, got {table.shape}")
    features = math.prod(table.shape[1:])
    size = max(1, _BLOCK_NUMBERS // features)
    count, center, squares = 0, np.zeros(features), np.zeros(features)
    smallest, largest = np.full(features, np.inf), np.full(features, -np.inf)
    for first in range(0, len(table), size):
        block = _taken(table, slice(first, first + size)).reshape(-1, features)
        bad = np.argwhere(~np.isfinite(block))
        if bad.size:
            row, column = (int(i) for i in bad[0])
            at = np.unravel_index(column, table.shape[1:])
            raise ValueError(
                f"data has values that are not finite, the first at index "
                f"{(first + row, *map(int, at))}; rows that are streamed must be finite numbers"
            )
        if np.abs(block).max() > tables.LARGEST:
            raise ValueError(
                f"data has values beyond {tables.LARGEST:g}, whose squares overflow, in rows "
                f"{first} to {first + len(block) - 1}"
            )
        # Blocks are joined as in T. F. Chan, G. H. Golub and R. J. LeVeque, 1983.
        mean = block.mean(axis=0)
        delta, joined = mean - center, count + len(block)
        squares += ((block - mean) ** 2).sum(axis=0) + delta**2 * count * len(block) / joined
        center += delta * len(block) / joined
        count = joined
        smallest = np.minimum(smallest, block.min(axis=0))
        largest = np.maximum(largest, block.max(axis=0))
    return Summary(center, squares / count, smallest, largest)


def looked_at(table):
    """Rows (m, D) at equal distances, for what is not looked for in all of them."""
    step = -(-len(table) // _LOOKED_AT)
    chosen = np.arange(0, len(table), step)
    return _chosen(table, chosen).reshape(len(chosen), -1)


def _chosen(table, rows):
    """Rows, by an array of their numbers; few at a time, since a file's come with many others."""
    parts = np.array_split(rows, max(1, -(-len(rows) // _SCATTERED)))
    return np.concatenate([_taken(table, part) for part in parts])


def _taken(table, rows):
    """Rows as doubles. Of a file, what was read does not stay in this process's memory."""
    found = np.asarray(table[rows], np.float64)
    base = table
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)
    return found
