"""Rows that stay on the host or in a file, and come in batches."""

import itertools
import math
import mmap
import weakref
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayeskit.models import tables
from bayeskit.validation import is_numeric, whole_mapping

_LARGE = 2**30  # bytes of an array that is not copied to the device
_MOST_ROWS = 2**31 - 1
_SHARED = ("r", "r+", "w+")  # modes of mapped files, other than of private pages
_BLOCK_NUMBERS = 2**22
_LOOKED_AT = 10_000  # rows
_SCATTERED = 4  # rows that are read at a time


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


# Only while somebody else holds the table: compiled programs know no more than a number.
_sources: dict[int, _Source] = {}
_numbers = itertools.count()


def _number_of(table, center, unit):
    """The number of a table with its moments: the same as long as these are."""
    for number, source in _sources.items():
        same = source.table() is table and source.unit == unit
        if same and np.array_equal(source.center, center):
            return number
    number = next(_numbers)
    _sources[number] = _Source(weakref.ref(table), center, unit)
    weakref.finalize(table, _sources.pop, number, None)
    return number


@jax.tree_util.register_static
class StreamedRows:
    """Standardised rows (n, D) of a table, read whenever they are indexed by an array.

    Also inside a compiled program, which calls back to the host. Nothing is kept in memory, nor is
    the table: whoever has asked for its rows holds it.
    """

    def __init__(self, table, center, unit, dtype):
        if len(table) > _MOST_ROWS:
            raise ValueError(f"data has {len(table)} rows; at most {_MOST_ROWS} are streamed")
        self.dtype = np.dtype(dtype)
        self.shape = (len(table), math.prod(table.shape[1:]))
        file = getattr(table, "filename", None)
        file = None if file is None else str(Path(file).resolve())
        # Checkpoints know data by this.
        self._text = f"StreamedRows({file}, {table.dtype}, {table.shape}, {self.dtype})"
        self._number = _number_of(table, center, unit)

    def __eq__(self, other):
        return isinstance(other, StreamedRows) and self._parts == other._parts

    def __hash__(self):
        return hash(self._parts)

    @property
    def _parts(self):
        return (self._number, self._text)

    def __reduce__(self):
        raise TypeError(
            "rows that are streamed can be neither copied nor pickled with their posterior: save "
            "it, and load it where it is needed"
        )

    def __getitem__(self, rows):
        dtype = jax.dtypes.canonicalize_dtype(self.dtype)

        def read(rows):
            source = _sources.get(self._number)
            table = None if source is None else source.table()
            if source is None or table is None:
                raise RuntimeError("the table that rows are streamed from has been deleted")
            rows = np.asarray(rows)
            values = _chosen(table, rows.reshape(-1)).reshape(*rows.shape, self.shape[1])
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
        return data.filename is not None and data.mode in _SHARED
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
    """Rows, by an array of their numbers; few of a file at a time, which come with many others."""
    first = int(rows[0])
    if np.array_equal(rows, np.arange(first, first + len(rows))):
        return _taken(table, slice(first, first + len(rows)))
    if _file_of(table) is None:
        return _taken(table, rows)
    parts = np.array_split(rows, -(-len(rows) // _SCATTERED))
    return np.concatenate([_taken(table, part) for part in parts])


def _taken(table, rows):
    """Rows as doubles. Of a file, what was read does not stay in this process's memory."""
    found = np.array(table[rows], np.float64)
    mapped = _file_of(table)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)
    return found


def _file_of(table):
    """The mapping of a file that nothing is lost of when its pages are let go, or ``None``."""
    whole: Any = whole_mapping(table)
    return whole.base if whole is not None and whole.mode in _SHARED else None
