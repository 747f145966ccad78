"""One index column, as a user states it."""

from typing import Any

import equinox as eqx

from bayeskit import statespace
from bayeskit.codec import storable
from bayeskit.models.functional_tucker.data import check_column
from bayeskit.statespace.kernels import Form


@storable
class Mode(eqx.Module):
    """One index column of a functional Tucker decomposition.

    Parameters
    ----------
    name : str
        Of the column.
    kernel : gpjax kernel, Constant or Independent, optional
        Prior of the functions: Matérn 1/2, 3/2, 5/2, truncated periodic, sums of these, truncated
        periodic times Matérn. Its parameters are where learning starts; lengthscale and period
        in the units of the index (days for datetimes; those with a time zone are turned to UTC),
        the variance relative to the product of all modes. By default Matérn 3/2 with unit variance
        and a fifth of the range of the points as lengthscale (of ten distances of their
        quartiles, where a few points lie further away).
    categorical : bool
        Whether values of the index are names, each with a level of its own: the functions then
        are independent between categories, beside their constant.
    points : array (n,), optional
        Where :meth:`FunctionalTucker.sample_prior` simulates.

    Raises
    ------
    TypeError, ValueError
        If the kernel has no state-space form, or a parameter is not positive.

    Examples
    --------
    >>> from gpjax.kernels import Matern12
    >>> import bayeskit as bk
    >>> bk.models.Mode("time", kernel=Matern12(lengthscale=5.0))
    Mode('time', Matern12(lengthscale=5, variance=1))
    """

    name: str = eqx.field(static=True)
    categorical: bool = eqx.field(static=True)
    form: Form = eqx.field(static=True)
    values: Any
    points: Any

    def __init__(self, name, *, kernel=None, categorical=False, points=None):
        if not isinstance(name, str) or not name:
            raise TypeError(f"name must be a string, got {name!r}")
        if categorical and kernel is not None:
            raise ValueError(
                f"mode {name!r} is categorical and has a kernel: its categories have no order, "
                "give one or the other"
            )
        self.name = name
        self.categorical = bool(categorical)
        if categorical:
            self.form, self.values = statespace.form_of("kernel", statespace.Independent())
        elif kernel is None:
            self.form, self.values = Form("Matern32"), {"lengthscale": None, "variance": 1.0}
        else:
            self.form, self.values = statespace.form_of(f"kernel of mode {name!r}", kernel)
        self.points = None if points is None else check_column(self, points)

    def __repr__(self):
        if self.categorical:
            return f"Mode({self.name!r}, categorical=True)"
        values = ", ".join(
            f"{name}={'from the points' if v is None else format(float(v), '.6g')}"
            for name, v in self.values.items()
        )
        return f"Mode({self.name!r}, {self.form.kind}({values}))"
