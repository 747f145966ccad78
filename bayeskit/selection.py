"""Comparison of models fitted to the same data."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd

from bayeskit.inference.driver import infer
from bayeskit.models.base import AbstractModel
from bayeskit.posterior import Posterior
from bayeskit.precision import as_key, double_precision


class Selection(NamedTuple):
    """Fitted models and how they compare.

    Attributes
    ----------
    table : pandas.DataFrame
        One row a model, best expected log predictive density first: ``elpd_loo``, its standard
        error ``se``, ``elpd_diff`` to the best with its standard error ``dse``, ``log_evidence``
        (NaN where the method has none) and ``converged``.
    posteriors : dict
        By model name.
    """

    table: pd.DataFrame
    posteriors: dict[Any, Posterior]


def select(models, data, method=None, *, key=None) -> Selection:
    """Fit several models to the same data; compare evidence and leave-one-out prediction.

    Parameters
    ----------
    models : mapping of name to model, or sequence of models
    data
        As for :func:`bayeskit.infer`.
    method : AbstractMethod, optional
        For all models; each one's default if ``None``.
    key : int or JAX key, optional
        Needed where a fit is random; every fit gets a key of its own.

    Returns
    -------
    Selection

    Raises
    ------
    TypeError
        If ``models`` is a single model, or the method does not support one of them.
    ValueError
        If ``models`` is empty, the data do not fit a model, or a key is needed.
    FloatingPointError
        If a fit broke down to a non-finite result.

    Warns
    -----
    ConvergenceWarning
        For every fit that stopped before its criterion was met.

    Notes
    -----
    One fit a model, as by :func:`bayeskit.infer`, and :meth:`Posterior.loo` of each: no refits.

    Examples
    --------
    >>> import bayeskit as bk
    >>> problem = bk.datasets.kronecker_sparse(0, shape=(4, 5), atoms=(6, 6), nonzeros=(2, 2))
    >>> models = {
    ...     "kronecker": bk.models.KroneckerSBL(problem.dictionaries),
    ...     "classic": bk.models.KroneckerSBL(problem.dictionaries, scales="unstructured"),
    ... }
    >>> sorted(bk.select(models, problem.measurements).table.columns)
    ['converged', 'dse', 'elpd_diff', 'elpd_loo', 'log_evidence', 'se']
    """
    if isinstance(models, AbstractModel) or not isinstance(models, Iterable):
        raise TypeError(
            f"models must be several, got one {type(models).__name__}; put it in a list"
        )
    named = dict(models) if isinstance(models, Mapping) else dict(enumerate(models))
    if not named:
        raise ValueError("models is empty; at least one model is expected")
    keys = [None] * len(named)
    if key is not None:
        with double_precision():
            keys = list(jax.random.split(as_key(key, "fits are random"), len(named)))
    posteriors = {
        name: infer(model, data, method, key=k)
        for (name, model), k in zip(named.items(), keys, strict=True)
    }
    pointwise = {name: posterior.loo() for name, posterior in posteriors.items()}
    best = max(pointwise, key=lambda name: pointwise[name].elpd)
    rows = {}
    for name, posterior in posteriors.items():
        difference = np.ravel(pointwise[best].elpd_i.values - pointwise[name].elpd_i.values)
        evidence = posterior.log_evidence
        rows[name] = {
            "elpd_loo": float(pointwise[name].elpd),
            "se": float(pointwise[name].se),
            "elpd_diff": float(difference.sum()),
            "dse": float(np.sqrt(difference.size * difference.var())),
            "log_evidence": np.nan if evidence is None else evidence,
            "converged": bool(posterior.convergence.converged),
        }
    table = pd.DataFrame.from_dict(rows, orient="index").sort_values("elpd_loo", ascending=False)
    return Selection(table, posteriors)
