"""One data set, as the computations have it."""

from typing import Any

import equinox as eqx


class Rows(eqx.Module):
    """Standardised rows in blocks of equal size.

    Attributes
    ----------
    values : array (blocks, size, d)
        Zero where missing.
    observed : array (blocks, size, d) or None
        Zero where a value is missing, one elsewhere; ``None`` where none is.
    weights : array (blocks, size)
        Zero for rows that fill the last block up, one elsewhere.
    """

    values: Any
    observed: Any
    weights: Any


class Table(eqx.Module):
    """One data set.

    Attributes
    ----------
    rows : Rows
    center, unit : arrays (d,)
        Subtracted from the features, and what they were divided by.
    spread : array (d,)
        Variance of the middle half of each standardised feature, were it normal; at most one.
    log_unit : scalar
        Sum of the logarithms of ``unit`` over all observed values.
    prior : BlockPrior
        Of the standardised features.
    start : MixtureComponents or None
        Where the data have chosen the prior: components that were found with it.
    count : int
    complete : int
        Rows without a missing value; of a batch, in the data set that has fewest.
    proper : bool
        Whether the prior is a distribution.
    """

    rows: Rows
    center: Any
    unit: Any
    spread: Any
    log_unit: Any
    prior: Any
    start: Any
    count: int = eqx.field(static=True)
    complete: int = eqx.field(static=True)
    proper: bool = eqx.field(static=True)

    def flat(self, values):
        """Values (blocks, size, …) of rows without those that fill up, (n, …)."""
        return values.reshape(-1, *values.shape[2:])[: self.count]
