"""Results: what every method on every model gives back."""

import abc
import dataclasses
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import arviz_stats as azs
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from arviz_base import from_dict
from arviz_stats import utils as arviz_stats_utils
from arviz_stats.utils import ELPDData

from bayeskit._version import __version__
from bayeskit.errors import BayeskitWarning
from bayeskit.precision import as_key, double_precision, to_host
from bayeskit.storage import load_fields, same_structure, save_tree, storable

_DRAW_BLOCK = 16
_SUMMARY_SCALARS = 100
_SUMMARY_ENTRIES = 20
_PARTS = ["real", "imag"]
# What a file holds; everything else follows from it.
_STORED = (
    "model",
    "data",
    "method",
    "approximation",
    "labels",
    "log_evidence",
    "convergence",
    "trace",
    "key",
    "batch",
)


@storable
class Labels(NamedTuple):
    """Names of the dimensions of every site, coordinates, and the name of what was observed."""

    dims: Mapping[str, tuple[str, ...]]
    coords: Mapping[str, Any]
    observed: str


class Prediction(NamedTuple):
    """Mean and variance of predicted quantities, with named dimensions.

    Attributes
    ----------
    mean : numpy.ndarray
        Real or complex.
    variance : numpy.ndarray
        Real; for complex quantities ``E|y - E y|²``.
    dims : tuple of str
        Names of the axes of both.
    coords : mapping
        Coordinates by dimension, where there are any.
    """

    mean: Any
    variance: Any
    dims: tuple[str, ...]
    coords: Mapping[str, Any] = MappingProxyType({})


class PredictionTarget(NamedTuple):
    """Where to predict: what predictions' dimensions are called, and inputs as methods take them.

    Attributes
    ----------
    dims : tuple of str
    coords : mapping
        Coordinates by dimension, where there are any.
    inputs : pytree or None
        Converted; ``None`` where the observed data were taken.
    """

    dims: tuple[str, ...]
    coords: Mapping[str, Any]
    inputs: Any


@storable
@dataclasses.dataclass(frozen=True)
class Convergence:
    """How a method ended.

    Attributes
    ----------
    converged : bool or array (batch,)
    iterations : int or array (batch,)
    objective : array (iteration,) or (batch, iteration) or None
        What the method increases, one value an iteration; NaN after the end of a shorter run of a
        batch. ``None`` for sampling.
    reason : str or tuple of str
        Why the method stopped.
    seconds : float
        Wall-clock time, compilation included.
    max_rhat, min_ess : float or None
        Worst split R-hat and effective sample size over all sampled hyper-parameters (MCMC).
    divergences : int or None
        Divergent transitions after warm-up (MCMC).
    """

    converged: Any
    iterations: Any
    objective: Any
    reason: Any
    seconds: float
    max_rhat: Any = None
    min_ess: Any = None
    divergences: Any = None


class AbstractApproximation(eqx.Module):
    """A posterior distribution as arrays: a pure pytree that can be mapped over and stored.

    Every function takes the prepared model and data beside it. Dicts are keyed by site.
    """

    def __init_subclass__(cls, **arguments):
        super().__init_subclass__(**arguments)
        storable(cls)

    @property
    def chains(self) -> tuple[int, int] | None:
        """Numbers of chains and draws where the posterior is held as draws."""
        return None

    @abc.abstractmethod
    def moments(self, model, data):
        """Mean and variance of every site: estimates that were plugged in have variance zero."""

    @abc.abstractmethod
    def sample(self, key, model, data):
        """One joint draw of all sites that are random."""

    @abc.abstractmethod
    def plugged_in(self, model, data):
        """Sites that were estimated by a number and carry no uncertainty."""

    def judged(self, model, data):
        """What the convergence of chains is judged by: quantities that the data determine."""
        return self.plugged_in(model, data)

    @abc.abstractmethod
    def predict(self, inputs, include_noise, model, data):
        """Mean and variance of predicted data."""

    @abc.abstractmethod
    def log_predictive(self, model, data):
        """``log p(y_m | y_-m)`` and ``log p(y_m | y)`` for every observation ``m``, exact."""


def map_in_blocks(function, items, block):
    """``lax.map`` in blocks that are computed at once.

    The last block is filled up with the first item: a shorter one would be compiled anew.
    """
    count = jax.tree.leaves(items)[0].shape[0]
    block = min(block, count)
    index = jnp.arange(-(-count // block) * block)
    index = jnp.where(index < count, index, 0)
    padded = jax.tree.map(lambda leaf: leaf[index], items)
    mapped = jax.lax.map(function, padded, batch_size=block)
    return jax.tree.map(lambda leaf: leaf[:count], mapped)


# Pure functions of (approximation, model, data, *rest): compiled once a shape, mapped over a batch.
def _moments(approximation, model, data):
    return approximation.moments(model, data)


def _plugged_in(approximation, model, data):
    return approximation.plugged_in(model, data)


def _draws(approximation, model, data, key, count):
    keys = jax.random.split(key, count)
    return map_in_blocks(lambda key: approximation.sample(key, model, data), keys, _DRAW_BLOCK)


def _draws_and_data(approximation, model, data, key, count, targets):
    """Draws (chain, draw, …) by site, and data simulated from them at every one of ``targets``."""
    if approximation.chains is None:
        drawn = _draws(approximation, model, data, key, count)
        drawn = jax.tree.map(lambda leaf: leaf[None], drawn)
    else:
        drawn = approximation.chain_draws(key, model, data)
    chains, draws = approximation.chains or (1, count)
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), drawn)
    fixed = approximation.plugged_in(model, data)
    simulated = {}
    for index, (name, inputs) in enumerate(targets.items()):
        keys = jax.random.split(jax.random.fold_in(key, index), chains * draws)
        values = map_in_blocks(
            lambda item, inputs=inputs: model.sample_data(
                data, item[0], {**fixed, **item[1]}, inputs
            ),
            (keys, flat),
            _DRAW_BLOCK,
        )
        simulated[name] = values.reshape(chains, draws, *values.shape[1:])
    return drawn, simulated


def _predict(approximation, model, data, inputs, include_noise):
    return approximation.predict(inputs, include_noise, model, data)


def _log_predictive(approximation, model, data):
    return approximation.log_predictive(model, data)


@eqx.filter_jit
def _evaluate(function, approximation, model, data, batched, *rest):
    if not batched:
        return function(approximation, model, data, *rest)
    return jax.lax.map(lambda item: function(item[0], model, item[1], *rest), (approximation, data))


@eqx.filter_jit
def _evaluate_random(function, approximation, model, data, batched, key, *rest):
    if not batched:
        return function(approximation, model, data, key, *rest)
    # Data sets are independent, and so are the draws of their posteriors.
    keys = jax.random.split(key, jax.tree.leaves(data)[0].shape[0])
    return jax.lax.map(
        lambda item: function(item[0], model, item[1], item[2], *rest), (approximation, data, keys)
    )


class Posterior:
    """A posterior distribution with everything needed to use, check and store it.

    Made by :func:`bayeskit.infer`, :func:`bayeskit.infer_batch` and :func:`bayeskit.load`.

    Attributes
    ----------
    model : AbstractModel
        The user's model, with point estimates of hyper-parameters in its field ``estimates``.
    data
        What the model was fitted to, as it was given.
    method : AbstractMethod
    log_evidence : float or array (batch,) or None
        Log marginal likelihood given the estimates, a bound on it, or ``None`` where the method
        has none.
    convergence : Convergence
    """

    def __init__(
        self,
        *,
        model,
        data,
        method,
        approximation,
        prepared,
        log_evidence,
        convergence,
        trace,
        key,
        batch,
    ):
        self.data = data
        self.method = method
        self.approximation = approximation
        self.prepared = prepared
        self.log_evidence = log_evidence
        self.convergence = convergence
        self.trace = trace
        self.key = key
        self.batch = batch
        self._cached_moments = None
        estimates = self._call(_plugged_in)
        self._plugged_in = tuple(estimates)
        self.model = model.with_estimates(estimates) if batch is None else model

    @property
    def labels(self) -> Labels:
        """Names and coordinates of dimensions."""
        return self.prepared.labels

    def _call(self, function, *rest):
        with double_precision():
            where = self.prepared.model, self.prepared.data, self.batch is not None
            return to_host(_evaluate(function, self.approximation, *where, *rest))

    def _call_random(self, function, key, *rest):
        with double_precision():
            where = self.prepared.model, self.prepared.data, self.batch is not None
            key = as_key(key, "draws are random")
            return to_host(_evaluate_random(function, self.approximation, *where, key, *rest))

    def _both_moments(self):
        if self._cached_moments is None:
            self._cached_moments = self._call(_moments)
        return self._cached_moments

    @property
    def mean(self) -> dict[str, Any]:
        """Posterior means by site, NumPy arrays; a leading axis ``batch`` for a batch."""
        return dict(self._both_moments()[0])

    @property
    def variance(self) -> dict[str, Any]:
        """Posterior variances by site.

        ``E|x - E x|²`` for complex sites, zero for plugged-in estimates.
        """
        return dict(self._both_moments()[1])

    @property
    def plugged_in(self) -> tuple[str, ...]:
        """Sites that are point estimates: their own uncertainty is not in the result."""
        return self._plugged_in

    def sample(self, key, num_draws: int = 1) -> dict[str, Any]:
        """Independent joint draws (for MCMC: draws picked at random from the chains).

        Parameters
        ----------
        key : int or JAX key
        num_draws : int

        Returns
        -------
        dict of arrays (num_draws, ...)
            By site, a leading axis ``batch`` before ``num_draws`` for a batch.
        """
        return self._call_random(_draws, key, _positive_count("num_draws", num_draws))

    def predict(self, inputs=None, *, include_noise: bool = False) -> Prediction:
        """Mean and variance of predicted data.

        Parameters
        ----------
        inputs : optional
            Where to predict; what it is depends on the family. The observed data's own places
            by default.
        include_noise : bool
            Whether the variance is that of a new noisy measurement.
        """
        with double_precision():
            target = self._target(inputs)
            mean, variance = self._call(_predict, target.inputs, bool(include_noise))
        if self.batch is None:
            return Prediction(mean, variance, target.dims, target.coords)
        coords = {**target.coords, **self._coords(["batch"])}
        return Prediction(mean, variance, ("batch", *target.dims), coords)

    def _target(self, inputs) -> PredictionTarget:
        """Where to predict; the observed data's own places if ``inputs`` is ``None``."""
        if inputs is not None:
            return self.prepared.model.prediction_target(inputs, self.labels)
        dims = self.labels.dims[self.labels.observed]
        return PredictionTarget(dims, self._coords(dims), None)

    def loo(self) -> ELPDData:
        """Leave-one-out cross-validation as ArviZ's ``ELPDData``.

        Exact for posteriors that are Gaussian given plugged-in hyper-parameters; for sampled
        hyper-parameters the exact conditional densities are combined by Pareto-smoothed
        importance sampling.
        """
        if self.batch is not None:
            raise TypeError("loo is for one data set; index the batch's data and fit it alone")
        if self._chains is not None:
            efficiency = float(self.convergence.min_ess) / math.prod(self._chains)
            # A tuple comes only from ArviZ's internal callers.
            return azs.loo(  # pyright: ignore[reportReturnType]
                self.to_datatree(sites=()), pointwise=True, reff=min(efficiency, 1.0)
            )
        left_out, inside = (np.asarray(part) for part in self._call(_log_predictive))
        name = self.prepared.labels.observed
        dims = self.prepared.labels.dims[name]
        pointwise = xr.DataArray(left_out, dims=dims, coords=self._coords(dims), name=name)
        count = left_out.size
        return _exact_elpd(
            elpd=float(left_out.sum()),
            se=float(np.sqrt(count * left_out.var())),
            p=float((inside - left_out).sum()),
            n_samples=1,
            n_data_points=count,
            scale="log",
            warning=False,
            good_k=0.7,
            elpd_i=pointwise,
            pareto_k=xr.zeros_like(pointwise),
        )

    def to_datatree(
        self,
        num_draws: int = 1000,
        key=None,
        sites: Sequence[str] | None = None,
        max_bytes=2e9,
        *,
        posterior_predictive: bool = False,
        predictions=None,
    ):
        """The result as an ``xarray.DataTree`` in the ArviZ schema.

        Parameters
        ----------
        num_draws : int
            Draws from a posterior held in closed form. Chains are kept as they were sampled.
        key : int or JAX key, optional
            For the draws; derived from the fit's own key (or 0) by default.
        sites : sequence of str, optional
            Sites to draw in the group ``posterior``; all by default. The group ``moments`` always
            has every site.
        max_bytes : float
            Largest size of all draws together.
        posterior_predictive : bool
            Whether to add the group ``posterior_predictive``: new noisy data where the observed
            ones were taken, one set for every draw.
        predictions : optional
            Inputs as for :meth:`predict`, for the group ``predictions``: new noisy data there.

        Returns
        -------
        xarray.DataTree
            Groups ``posterior`` (dims ``chain``, ``draw``, …), ``moments``, ``observed_data``,
            ``constant_data`` and, where the method has them, ``optimization``, ``sample_stats``
            and ``log_likelihood``; on request ``posterior_predictive`` and ``predictions``. A
            complex variable has a last dimension ``part``.

        Raises
        ------
        ValueError
            If the draws need more than ``max_bytes``, or a site is unknown.
        """
        mean, variance = self.mean, self.variance
        random_sites = [name for name in mean if name not in self.plugged_in]
        wanted = random_sites if sites is None else list(sites)
        unknown = [name for name in wanted if name not in random_sites]
        if unknown:
            raise ValueError(f"sites has {unknown}; the random sites are {random_sites}")
        targets = {}
        with double_precision():
            if posterior_predictive:
                targets["posterior_predictive"] = self._target(None)
            if predictions is not None:
                targets["predictions"] = self._target(predictions)
        inputs = {group: target.inputs for group, target in targets.items()}
        drawn, simulated = self._tree_draws(wanted, num_draws, key, inputs, max_bytes)
        tree = from_dict(
            {"posterior": drawn} if drawn else {},
            dims={name: list(self._dims(name, array)) for name, array in mean.items()},
            coords=self._all_coords(),
            sample_dims=self._sample_dims,
        )
        datasets = {"moments": self._moments_dataset(mean, variance)}
        for group, values in simulated.items():
            target = targets[group]
            coords = {**self._coords(["batch"]), **target.coords}
            variable = self._variable(values, (*self._sample_dims, *target.dims), coords)
            datasets[group] = xr.Dataset({self.labels.observed: variable})
        for group, tables in self.prepared.tables.items():
            datasets[group] = xr.Dataset(
                {name: self._variable(value, dims) for name, (dims, value) in tables.items()}
            )
        datasets.update(self._trace_datasets())
        if self._chains is not None and self.batch is None:
            datasets["log_likelihood"] = self._log_likelihood_dataset()
        for name, dataset in datasets.items():
            tree[name] = xr.DataTree(dataset)
        tree.attrs.update(self._attributes())
        return tree

    @property
    def _sample_dims(self):
        return ["chain", "draw"] if self.batch is None else ["batch", "chain", "draw"]

    @property
    def _chains(self):
        approximation = self.approximation
        if self.batch is not None:
            approximation = jax.tree.map(lambda leaf: leaf[0], approximation)
        return approximation.chains

    def _tree_draws(self, sites, num_draws, key, targets, max_bytes):
        """Draws by site and simulated data by group, none where neither is asked for."""
        if not sites and not targets:
            return {}, {}
        chains, draws = self._chains or (1, _positive_count("num_draws", num_draws))
        with double_precision():
            if key is None:
                base = (
                    jax.random.key(0)
                    if self.key is None
                    else jax.random.wrap_key_data(jnp.asarray(self.key))
                )
                key = jax.random.fold_in(base, 1)
            each = {name: self.mean[name].nbytes for name in sites} | self._data_bytes(targets)
        size = chains * draws * sum(each.values())
        if size > max_bytes:
            raise ValueError(
                f"the draws of {', '.join(each)} would take {size / 1e9:.3g} GB, more than "
                f"max_bytes={max_bytes / 1e9:.3g} GB: lower num_draws (now {draws}), choose fewer "
                "sites, or raise max_bytes"
            )
        drawn, simulated = self._call_random(_draws_and_data, key, draws, targets)
        return {name: _split_complex(drawn[name]) for name in sites}, simulated

    def _data_bytes(self, targets):
        """Bytes of one simulated data set of every group."""
        items = self.mean, self.prepared.data
        if self.batch is not None:
            items = jax.tree.map(lambda leaf: leaf[0], items)
        mean, data = items
        shapes = {
            name: eqx.filter_eval_shape(
                self.prepared.model.sample_data, data, jax.random.key(0), mean, inputs
            )
            for name, inputs in targets.items()
        }
        count = 1 if self.batch is None else self.batch
        return {
            name: count * math.prod(leaf.shape) * leaf.dtype.itemsize
            for name, leaf in shapes.items()
        }

    def _dims(self, site, array):
        """Dimension names of one site's own axes, with ``part`` for a complex one."""
        dims = self.prepared.labels.dims[site]
        return (*dims, "part") if np.iscomplexobj(array) else tuple(dims)

    def _coords(self, dims):
        return {dim: values for dim, values in self.prepared.labels.coords.items() if dim in dims}

    def _all_coords(self):
        return {**self.prepared.labels.coords, "part": _PARTS}

    def _variable(self, value, dims, coords=None):
        """Real numbers with named dimensions; coordinates are those of the fit by default."""
        value = np.asarray(value)
        dims = (*dims, "part") if np.iscomplexobj(value) else tuple(dims)
        array = xr.DataArray(_split_complex(value), dims=dims)
        known = self._all_coords() if coords is None else {**coords, "part": _PARTS}
        # Integers where there are no others, as ArviZ gives the draws.
        return array.assign_coords(
            {dim: known.get(dim, np.arange(size)) for dim, size in array.sizes.items()}
        )

    def _moments_dataset(self, mean, variance):
        lead = () if self.batch is None else ("batch",)
        variables = {}
        for site in mean:
            dims = (*lead, *self.prepared.labels.dims[site])
            variables[f"{site}_mean"] = self._variable(mean[site], dims)
            variables[f"{site}_variance"] = self._variable(variance[site], dims)
        return xr.Dataset(variables)

    def _trace_datasets(self):
        lead = () if self.batch is None else ("batch",)
        datasets = {}
        for group, dims in (("optimization", ("iteration",)), ("sample_stats", ("chain", "draw"))):
            if self.trace.get(group):
                datasets[group] = xr.Dataset(
                    {name: ((*lead, *dims), values) for name, values in self.trace[group].items()}
                )
        return datasets

    def _log_likelihood_dataset(self):
        name = self.prepared.labels.observed
        dims = self.prepared.labels.dims[name]
        left_out, _ = self._call(_log_predictive)
        return xr.Dataset({name: (("chain", "draw", *dims), left_out)}, coords=self._coords(dims))

    def _attributes(self):
        versions = {module.__name__: module.__version__ for module in (jax, np, xr)}
        convergence = {
            field.name: np.asarray(getattr(self.convergence, field.name)).tolist()
            for field in dataclasses.fields(self.convergence)
            if field.name != "objective"
        }
        return {
            "inference_library": "bayeskit",
            "inference_library_version": __version__,
            "versions": json.dumps(versions),
            "model": repr(self.model),
            "method": repr(self.method),
            "settings": json.dumps(self.method.settings()),
            "seed": json.dumps(None if self.key is None else np.asarray(self.key).tolist()),
            "convergence": json.dumps(convergence),
            "plugged_in": json.dumps(list(self.plugged_in)),
        }

    def summary(self, sites: Sequence[str] | None = None):
        """A table of means and standard deviations.

        Sites of up to 100 numbers are listed whole, with R-hat and effective sample size where
        they were sampled by chains; the column ``plugged_in`` marks point estimates, whose own
        uncertainty (zero here) is not in the result. Of a larger site the 20 entries with the
        largest ``|mean| / sd`` are listed, and ``table.attrs["large_sites"]`` has its size, norm
        and mean variance.

        Returns
        -------
        pandas.DataFrame
        """
        import pandas as pd

        if self.batch is not None:
            raise TypeError(
                "summary is for one data set; use mean, variance and convergence of the batch"
            )
        mean, variance = self.mean, self.variance
        wanted = list(mean) if sites is None else list(sites)
        unknown = [name for name in wanted if name not in mean]
        if unknown:
            raise ValueError(f"sites has {unknown}; the sites are {list(mean)}")
        rows, large = {}, {}
        for site in wanted:
            center, spread = np.asarray(mean[site]), np.sqrt(np.asarray(variance[site]))
            names = self.prepared.labels.dims[site]
            indices = list(np.ndindex(center.shape))
            if center.size > _SUMMARY_SCALARS:
                with np.errstate(divide="ignore", invalid="ignore"):
                    score = np.nan_to_num(np.abs(center) / spread, nan=0.0)
                order = np.argsort(-score, axis=None, kind="stable")[:_SUMMARY_ENTRIES]
                indices = [
                    tuple(int(i) for i in np.unravel_index(flat, center.shape)) for flat in order
                ]
                large[site] = {
                    "size": int(center.size),
                    "norm": float(np.linalg.norm(center)),
                    "mean_variance": float(np.mean(variance[site])),
                }
            for index in indices:
                label = ", ".join(
                    self._coordinate(dim, i) for dim, i in zip(names, index, strict=True)
                )
                rows[f"{site}[{label}]" if label else site] = {
                    "mean": center[index],
                    "sd": float(spread[index]),
                }
        table = pd.DataFrame.from_dict(rows, orient="index")
        diagnostics = self.trace.get("diagnostics", {})
        for column in ("rhat", "ess_bulk"):
            values = {}
            for site, array in diagnostics.get(column, {}).items():
                for index in np.ndindex(np.asarray(array).shape):
                    name = site
                    if array.ndim:
                        dims = self.prepared.labels.dims[site]
                        label = ", ".join(
                            self._coordinate(d, i) for d, i in zip(dims, index, strict=True)
                        )
                        name = f"{site}[{label}]"
                    values[name] = float(array[index])
            if values:
                table[column] = [values.get(name, np.nan) for name in table.index]
        plugged_in = self.plugged_in
        table["plugged_in"] = [name.partition("[")[0] in plugged_in for name in table.index]
        table.attrs["large_sites"] = large
        return table

    def _coordinate(self, dim, index):
        values = self.prepared.labels.coords.get(dim)
        return str(index) if values is None else str(np.asarray(values)[index])

    def save(self, path, tree: xr.DataTree | None = None) -> None:
        """Write everything to one NetCDF file; :func:`bayeskit.load` reads it back unchanged.

        Parameters
        ----------
        path : path
        tree : xarray.DataTree, optional
            What other NetCDF readers find beside it: :meth:`to_datatree` without draws by
            default; give one with draws, or with groups of your own.
        """
        fields = {name: getattr(self, name) for name in _STORED}
        save_tree(path, self.to_datatree(sites=()) if tree is None else tree, fields)

    def __repr__(self):
        status = self.convergence
        batch = "" if self.batch is None else f", batch of {self.batch}"
        lines = [
            f"{type(self).__name__}({type(self.model).__name__} by {self.method!r}{batch})",
            *(f"  {site}: {np.asarray(value).shape}" for site, value in self.mean.items()),
        ]
        if self.batch is None:
            evidence = (
                "" if self.log_evidence is None else f"log evidence {self.log_evidence:.6g}, "
            )
            lines.append(f"  {evidence}{status.iterations} iterations, {status.reason}")
        else:
            lines.append(f"  {int(np.sum(status.converged))} of {self.batch} converged")
        return "\n".join(lines)


def _exact_elpd(**fields) -> ELPDData:
    """ArviZ's result of leave-one-out, whose class is named and made in two ways."""
    newer = getattr(arviz_stats_utils, "ELPDDataLOO", None)
    return ELPDData(kind="loo", **fields) if newer is None else newer(**fields)


def _positive_count(name, value):
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
    return int(value)


def _split_complex(array):
    array = np.asarray(array)
    return np.stack([np.real(array), np.imag(array)], -1) if np.iscomplexobj(array) else array


def load(path, model=None) -> Posterior:
    """Read a posterior that :meth:`Posterior.save` wrote.

    Parameters
    ----------
    path : path
    model : AbstractModel, optional
        The model that was fitted, to go on with this very object; every field must be as it was
        saved, down to the contents of its arrays.

    Returns
    -------
    Posterior
        With the same moments, draws for the same key, and tree.

    Raises
    ------
    ValueError
        If the file cannot be read, was cut short, is no posterior, or ``model`` is another one;
        the message names the field that differs.
    """
    fields = load_fields(path)
    if model is not None:
        same_structure(model, fields["model"])
    else:
        model = fields["model"]
    with double_precision(), warnings.catch_warnings():
        # What there was to warn about was said when the model was fitted.
        warnings.simplefilter("ignore", BayeskitWarning)
        prepared = model.prepare(fields["data"], batch=fields["batch"] is not None)
        fields["approximation"] = jax.tree.map(jnp.asarray, fields["approximation"])
    labels = fields.pop("labels")
    return model.posterior_class(
        **{**fields, "model": model, "prepared": prepared._replace(labels=labels)}
    )
