"""Least squares on the true support."""

from collections.abc import Sequence

import numpy as np

from bayeskit.datasets.sparse import outer_product


def oracle_least_squares(
    dictionaries: Sequence[np.ndarray], measurements: np.ndarray, support: np.ndarray
) -> np.ndarray:
    """Estimate the coefficients knowing where they are not zero.

    Parameters
    ----------
    dictionaries : sequence of arrays (M_i, N_i)
    measurements : array (M_1, …, M_I)
    support : boolean array (N_1, …, N_I)
        Any set of entries, of Kronecker form or not.

    Returns
    -------
    array (N_1, …, N_I)
        The least-squares solution of smallest norm. Only the columns in the support are formed.
    """
    columns = np.stack(
        [
            outer_product([H[:, n] for H, n in zip(dictionaries, index, strict=True)]).ravel()
            for index in np.argwhere(support)
        ],
        axis=1,
    )
    values = np.linalg.lstsq(columns, measurements.ravel(), rcond=None)[0]
    estimate = np.zeros(support.shape, values.dtype)
    estimate[support] = values
    return estimate
