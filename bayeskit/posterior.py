"""Results: what every method on every model gives back."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import arviz_stats as azs
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from arviz_stats import utils as arviz_stats_utils
from arviz_stats.utils import ELPDData

from bayeskit import evaluation
from bayeskit.errors import BayeskitWarning
from bayeskit.precision import as_key, double_precision, to_host
from bayeskit.results import Labels, Prediction, PredictionTarget, positive_count
from bayeskit.storage import content_of, has_functions, load_fields, same_structure, save_tree
from bayeskit.tree import result_tree, summary_table

# What a file holds; everything else follows from it.
_STORED = (
    "model",
    "data",
    "method",
    "approximation",
    "names",
    "log_evidence",
    "convergence",
    "trace",
    "key",
    "batch",
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
        estimates = self.evaluate(evaluation.plugged_in)
        self._plugged_in = tuple(estimates)
        self.model = model.with_estimates(estimates) if batch is None else model

    @property
    def names(self) -> Labels:
        """Names and coordinates of dimensions."""
        return self.prepared.labels

    def evaluate(self, function, *rest):
        """Apply a function of :mod:`bayeskit.evaluation`, to every data set of a batch."""
        with double_precision():
            where = self.prepared.model, self.prepared.data, self.batch is not None
            return to_host(evaluation.evaluate(function, self.approximation, *where, *rest))

    def evaluate_random(self, function, key, *rest, drawn=None):
        """As :meth:`evaluate`, for functions that take a key, and maybe draws of all sites."""
        with double_precision():
            where = self.prepared.model, self.prepared.data, self.batch is not None
            key = as_key(key, "draws are random")
            what = self.approximation if drawn is None else (self.approximation, drawn)
            return to_host(evaluation.evaluate_random(function, what, *where, key, *rest))

    def _both_moments(self):
        if self._cached_moments is None:
            self._cached_moments = self.evaluate(evaluation.moments)
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

    @property
    def chains(self) -> tuple[int, int] | None:
        """Numbers of chains and of their draws; ``None`` for a posterior in closed form."""
        approximation = self.approximation
        if self.batch is not None:
            approximation = jax.tree.map(lambda leaf: leaf[0], approximation)
        return approximation.chains

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
        return self.evaluate_random(evaluation.draws, key, positive_count("num_draws", num_draws))

    def predict(self, inputs=None, *, include_noise: bool = False) -> Prediction:
        """Mean and variance of predicted data.

        Parameters
        ----------
        inputs : optional
            Where to predict; what it is depends on the family: dictionaries (P_i, N_i), one an
            axis, or rows of indices. The observed data's own places by default.
        include_noise : bool
            Whether the variance is that of a new noisy measurement.

        Returns
        -------
        Prediction
            Mean and variance of the data's shape, or that of ``inputs``; a leading axis ``batch``
            for a batch.

        Raises
        ------
        TypeError
            If ``inputs`` is not of the kind that the family takes, or takes for a batch.
        ValueError
            If ``inputs`` does not have the shape that the model needs, or is not finite.

        Examples
        --------
        >>> import bayeskit as bk
        >>> problem = bk.datasets.kronecker_sparse(0, shape=(4, 5), atoms=(6, 6), nonzeros=(2, 2))
        >>> model = bk.models.KroneckerSBL(problem.dictionaries)
        >>> posterior = bk.infer(model, problem.measurements)
        >>> first, second = problem.dictionaries
        >>> posterior.predict([first[:3], second]).mean.shape
        (3, 5)
        """
        with double_precision():
            target = self.target(inputs)
            mean, variance = self.evaluate(evaluation.predict, target.inputs, bool(include_noise))
        if self.batch is None:
            return Prediction(mean, variance, target.dims, target.coords)
        coords = {**target.coords, **self.names.coords_of(["batch"])}
        return Prediction(mean, variance, ("batch", *target.dims), coords)

    def target(self, inputs) -> PredictionTarget:
        """Where to predict; the observed data's own places if ``inputs`` is ``None``."""
        if inputs is not None:
            with double_precision():
                return self.prepared.model.prediction_target(inputs, self.names)
        dims = self.names.dims[self.names.observed]
        return PredictionTarget(dims, self.names.coords_of(dims), None)

    def loo(self) -> ELPDData:
        """Leave-one-out cross-validation as ArviZ's ``ELPDData``.

        Exact for posteriors that are Gaussian given plugged-in hyper-parameters; for sampled
        hyper-parameters the exact conditional densities are combined by Pareto-smoothed
        importance sampling.

        Returns
        -------
        arviz_stats.utils.ELPDData
            The expected log predictive density ``elpd`` with its standard error ``se``, the
            effective number of parameters ``p``, and, with the observed data's dimensions, the
            single densities ``elpd_i`` and ``pareto_k`` (zero where no importance sampling was
            needed).

        Raises
        ------
        TypeError
            For the posterior of a batch.

        Warns
        -----
        UserWarning
            By ArviZ, if importance sampling is unreliable for some observations (MCMC).

        Notes
        -----
        Nothing is fitted again: estimated hyper-parameters stay as all data determined them. The
        chains of a sampler cost one set of densities a draw. For a factorised posterior of
        :class:`~bayeskit.models.FunctionalTucker` the observation is taken out of the Gaussian
        approximation of its own value. For ``EM`` and ``MessagePassing`` of
        :class:`~bayeskit.models.GaussianMixture` a row is taken out of the components as much as it
        belongs to them, and the others' memberships (and completed values) stay: exact for one
        component and complete rows, too hopeful where components overlap; ``MCMC`` is not.

        Examples
        --------
        >>> import bayeskit as bk
        >>> problem = bk.datasets.kronecker_sparse(0, shape=(4, 5), atoms=(6, 6), nonzeros=(2, 2))
        >>> model = bk.models.KroneckerSBL(problem.dictionaries)
        >>> bk.infer(model, problem.measurements).loo().elpd_i.shape
        (4, 5)
        """
        if self.batch is not None:
            raise TypeError("loo is for one data set; index the batch's data and fit it alone")
        if self.chains is not None:
            efficiency = float(self.convergence.min_ess) / math.prod(self.chains)
            # A tuple comes only from ArviZ's internal callers.
            return azs.loo(  # pyright: ignore[reportReturnType]
                self.to_datatree(sites=()), pointwise=True, reff=min(efficiency, 1.0)
            )
        left_out, inside = (np.asarray(part) for part in self.evaluate(evaluation.log_predictive))
        name = self.names.observed
        # What is left out may be a whole row of the data.
        dims = self.names.dims[name][: left_out.ndim]
        pointwise = xr.DataArray(left_out, dims=dims, coords=self.names.coords_of(dims), name=name)
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
        return result_tree(
            self, num_draws, key, sites, max_bytes, posterior_predictive, predictions
        )

    def summary(self, sites: Sequence[str] | None = None):
        """A table of means and standard deviations.

        Sites of up to 100 numbers are listed whole, with R-hat and effective sample size where
        they were sampled by chains; the column ``plugged_in`` marks point estimates, whose own
        uncertainty (zero here) is not in the result. Of a larger site the 20 entries with the
        largest ``|mean| / sd`` are listed, and ``table.attrs["large_sites"]`` has its size, norm
        and mean variance.

        Parameters
        ----------
        sites : sequence of str, optional
            Sites to list; all by default.

        Returns
        -------
        pandas.DataFrame
            One row an entry, with columns ``mean``, ``sd`` and ``plugged_in``, and for chains
            ``rhat`` and ``ess_bulk``.

        Raises
        ------
        TypeError
            For the posterior of a batch, or if ``sites`` is one string.
        ValueError
            If a site is unknown.

        Examples
        --------
        >>> import bayeskit as bk
        >>> problem = bk.datasets.kronecker_sparse(0, shape=(4, 5), atoms=(6, 6), nonzeros=(2, 2))
        >>> model = bk.models.KroneckerSBL(problem.dictionaries)
        >>> table = bk.infer(model, problem.measurements).summary(["scales_0", "noise_variance"])
        >>> table.shape, bool(table["plugged_in"].all())
        ((7, 3), True)
        """
        if self.batch is not None:
            raise TypeError(
                "summary is for one data set; use mean, variance and convergence of the batch"
            )
        return summary_table(self, sites)

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
        # Functions are in no file; what they gave is compared instead.
        content = content_of(self.prepared.data) if has_functions(self.model) else None
        tree = self.to_datatree(sites=()) if tree is None else tree
        moments = self.model.moments_of(self.prepared.data)
        save_tree(path, tree, {**fields, "content": content, "moments": moments})

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


def _alike(stored, found) -> bool:
    """Whether moments are the same but for rounding, relative to the largest of them."""
    finite = [old[np.isfinite(old)] for old in stored]
    largest = max((np.max(np.abs(old), initial=0.0) for old in finite), default=0.0)
    return all(
        np.allclose(new, old, rtol=0.0, atol=_rounding(old.dtype) * largest, equal_nan=True)
        for new, old in zip(found, stored, strict=True)
    )


def _rounding(dtype):
    """Of sums of many numbers, relative to the largest."""
    return max(1e-9, 100 * float(np.finfo(dtype).eps))


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
        If the file cannot be read, was cut short, is no posterior, or ``model`` is another one
        (the message names the field that differs), or is needed: functions of the user's own, such
        as the residual of a PDE, are in no file.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import bayeskit as bk
    >>> problem = bk.datasets.kronecker_sparse(0, shape=(4, 5), atoms=(6, 6), nonzeros=(2, 2))
    >>> model = bk.models.KroneckerSBL(problem.dictionaries)
    >>> posterior = bk.infer(model, problem.measurements)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     posterior.save(Path(folder) / "posterior.nc")
    ...     again = bk.load(Path(folder) / "posterior.nc")
    >>> bool((again.mean["coefficients"] == posterior.mean["coefficients"]).all())
    True
    """
    fields = load_fields(path, with_functions=model is not None)
    if model is not None:
        same_structure(model, fields["model"])
    else:
        model = fields["model"]
    with double_precision(), warnings.catch_warnings():
        # What there was to warn about was said when the model was fitted.
        warnings.simplefilter("ignore", BayeskitWarning)
        prepared = model.prepare(fields["data"], batch=fields["batch"] is not None)
        fields["approximation"] = jax.tree.map(jnp.asarray, fields["approximation"])
        if not _alike(fields.pop("moments"), model.moments_of(prepared.data)):
            raise ValueError(
                f"{str(path)!r} refers to data in another file, which have changed since they were "
                "fitted"
            )
        content = fields.pop("content")
        if content not in (None, content_of(prepared.data)):
            raise ValueError(
                "model is not the one that was saved: its functions give other values than when "
                f"{str(path)!r} was written"
            )
    names = fields.pop("names")
    return model.posterior_class(
        **{**fields, "model": model, "prepared": prepared._replace(labels=names)}
    )
