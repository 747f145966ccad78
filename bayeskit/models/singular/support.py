"""What rows show of their support before any fit: ties, and parts that are not connected."""

import numpy as np
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import pdist, squareform

_TIED = 0.5  # share of values that occur again: more is no accident
_ROUNDING = 1e-2  # of a spacing, where numbers are multiples of it
_FALSE_ALARMS = 0.01
_MOST_ROWS = 1000


def ties(column) -> tuple[bool, float]:
    """Whether most values (n,) occur again, and the spacing that all are multiples of or zero.

    ``O(n log n)``.
    """
    values, counts = np.unique(np.asarray(column, np.float64), return_counts=True)
    if len(values) < 2 or counts[counts > 1].sum() <= _TIED * counts.sum():
        return False, 0.0
    width = values[-1] - values[0]
    steps = np.round(width / np.diff(values).min())
    multiples = (values - values[0]) / (width / steps)
    regular = np.abs(multiples - np.round(multiples)).max() < _ROUNDING
    return True, float(width / steps) if regular else 0.0


def num_parts(rows) -> int:
    r"""Number of parts between which rows (n, D) leave gaps that are no accident.

    An edge of the shortest tree through all rows is a gap where it is longer than the distances of
    both its ends from their k-th neighbours together. On a curve with rows of locally even density
    the spacings are exponential and those distances the sums of k of them, so that a spacing is a
    gap with the probability :math:`2^{-2k}`; k is the least that makes one among all rare. On
    surfaces, where neighbours are more, gaps are rarer still. Of more than 1000 rows a random
    choice is looked at. ``O(n² D)`` time and ``O(n²)`` memory.
    """
    rows = np.unique(rows, axis=0)
    if len(rows) > _MOST_ROWS:
        rows = np.random.default_rng(0).choice(rows, _MOST_ROWS, replace=False)
    neighbours = int(np.ceil(np.log(len(rows) / _FALSE_ALARMS) / np.log(4.0)))
    if neighbours >= len(rows):
        return 1
    distances = squareform(pdist(rows))
    near = np.partition(distances, neighbours, axis=1)[:, neighbours]
    tree = minimum_spanning_tree(distances).tocoo()
    return 1 + int(np.sum(tree.data > near[tree.row] + near[tree.col]))
