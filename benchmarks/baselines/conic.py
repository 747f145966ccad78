"""Semidefinite programs of clustering handed to a general conic solver, SCS."""

import numpy as np
import scs
from scipy import sparse


def clustering_program(affinity, total, joint, tolerance=1e-7, iterations=200_000):
    """Objective and matrices (G, n, n) of ``max Σ ⟨A_k, Z_k⟩``.

    Over positive semi-definite, non-negative ``Z_k`` with row sums of one together, and traces of
    one each or ``total`` together. Variables are lower triangles, by columns, off-diagonals times
    √2, as SCS has them.
    """
    groups, size, _ = affinity.shape
    columns, rows = np.triu_indices(size)
    each = len(rows)
    weight = np.where(rows == columns, 1.0, np.sqrt(2.0))
    cost = -(affinity[:, rows, columns] * weight).reshape(-1)
    index = np.arange(each)
    off = rows != columns
    place = np.concatenate([rows, columns[off]]), np.concatenate([index, index[off]])
    values = np.concatenate([1.0 / weight, 1.0 / weight[off]])
    sums = sparse.hstack([sparse.csc_matrix((values, place), (size, each))] * groups)
    trace = sparse.csc_matrix((rows == columns).astype(float)[None])
    traces = sparse.hstack([trace] * groups) if joint else sparse.block_diag([trace] * groups)
    eye = sparse.identity(groups * each)
    matrix = sparse.vstack([sums, traces, -eye, -eye]).tocsc()
    heads = np.ones(size), np.full(1, float(total)) if joint else np.ones(groups)
    right = np.concatenate([*heads, np.zeros(2 * groups * each)])
    cone = {"z": size + traces.shape[0], "l": groups * each, "s": [size] * groups}
    solver = scs.SCS(
        {"A": matrix, "b": right, "c": cost},
        cone,
        eps_abs=tolerance,
        eps_rel=tolerance,
        max_iters=iterations,
        verbose=False,
    )
    found = solver.solve()
    if found["info"]["status"] != "solved":
        raise RuntimeError(f"SCS: {found['info']['status']}")
    solution = np.zeros((groups, size, size))
    parts = found["x"].reshape(groups, each) / weight
    solution[:, rows, columns] = solution[:, columns, rows] = parts
    return -found["info"]["pobj"], solution
