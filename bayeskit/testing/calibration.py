"""Simulation-based calibration: whether posteriors are as wide as they should be, on average.

Parameters are drawn from the prior, data from the parameters, and the posterior is computed. If
it is right, the rank of the true value among L independent posterior draws is uniform on
{0, …, L}, central intervals of probability p cover the truth with frequency p, and squared errors
average the posterior variance. S. Talts et al., "Validating Bayesian inference algorithms with
simulation-based calibration", 2018 (arXiv 1804.06788); test quantities of parameters and data
jointly: M. Modrák et al., "Simulation-based calibration checking for Bayesian computation: the
choice of test quantities shapes sensitivity", Bayesian Analysis, 2023; simultaneous bands:
T. Säilynoja, P.-C. Bürkner and A. Vehtari, "Graphical test for discrete uniformity and its
applications in goodness-of-fit evaluation and multiple sample comparison", Statistics and
Computing, 2022.
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np
import pandas as pd
import xarray as xr

from bayeskit.errors import ConvergenceWarning
from bayeskit.inference.driver import checked_method, infer_batch
from bayeskit.precision import as_key, double_precision, to_host
from bayeskit.testing.ranks import (
    NULL_SEED,
    chi2_p_value,
    clustered_error,
    coverage_error,
    null_distribution,
    share_inside,
    uniformity_p_value,
)
from bayeskit.validation import check_probability, chosen_names

_INTERVALS = (0.5, 0.8, 0.9, 0.95)
_ENTRIES = 16


@dataclasses.dataclass(frozen=True)
class CalibrationResult:
    """Where the truth lay in the posteriors of many simulated data sets.

    Attributes
    ----------
    description : str
        Model and method.
    num_simulations, num_draws : int
    ranks : dict of integer arrays (usable simulations, entries)
        By site or test quantity: how many of the ``num_draws`` draws are below the true value,
        and a random number of those that equal it.
        Real and imaginary parts of complex sites are entries of their own.
    entries : dict of lists of str
        What the columns of ``ranks`` are.
    squared_errors : dict of arrays (usable simulations, entries)
        ``(truth - mean)² / variance``; for complex sites by complex entry. NaN where the
        posterior's variance does not exist.
    widths : dict of arrays (usable simulations, entries)
        Widths of the central 90 % intervals of the draws.
    truths : dict of arrays (num_simulations, entries)
    converged : bool array (num_simulations,)
        Whether each fit met its method's criterion; those that did not are kept.
    usable : bool array (num_simulations,)
        Whether each posterior is finite; the others are in no statistic, and reported.
    plugged_in : tuple of str
        Sites that are point estimates: they have no draws, so nothing can be ranked.
    reference : CalibrationResult or None
        What widths are compared with.
    """

    description: str
    num_simulations: int
    num_draws: int
    ranks: dict[str, Any]
    entries: dict[str, list[str]]
    squared_errors: dict[str, Any]
    widths: dict[str, Any]
    truths: dict[str, Any]
    converged: Any
    usable: Any
    plugged_in: tuple[str, ...]
    reference: Any = None

    @property
    def coverage(self) -> pd.DataFrame:
        """Share of central intervals that hold the truth, over simulations and entries.

        Index: site; columns: the intervals' probabilities. The statistical error of a share is in
        :attr:`coverage_error`.
        """
        return self._by_interval(lambda shares, probability: shares.mean())

    @property
    def coverage_error(self) -> pd.DataFrame:
        """Standard errors of :attr:`coverage`.

        Entries of one simulation depend on each other, so the error is that of the mean over
        simulations of each simulation's own share; at least that of independent entries which are
        covered with the intervals' own probability.
        """
        return self._by_interval(coverage_error)

    def _by_interval(self, reduce):
        rows = {
            site: {p: float(reduce(share_inside(ranks, self.num_draws, p), p)) for p in _INTERVALS}
            for site, ranks in self.ranks.items()
        }
        return pd.DataFrame.from_dict(rows, orient="index", columns=list(_INTERVALS))

    @property
    def mean_z2(self) -> pd.Series:
        """Mean of squared error over posterior variance by site; one if posteriors are right.

        Of posteriors with heavy tails, such as a noise variance's, it varies much: see
        :attr:`mean_z2_error`.
        """
        return pd.Series({site: float(z2.mean()) for site, z2 in self.squared_errors.items()})

    @property
    def mean_z2_error(self) -> pd.Series:
        """Standard errors of :attr:`mean_z2`, over simulations."""
        return pd.Series(
            {site: float(clustered_error(z2)) for site, z2 in self.squared_errors.items()}
        )

    @property
    def width_ratio(self) -> pd.Series:
        """Median ratio of interval widths to the reference's, by site; NaN without a reference."""
        ratios = dict.fromkeys(self.ranks, np.nan)
        if self.reference is not None:
            both = self.usable & self.reference.usable
            for site in ratios:
                if site in self.reference.widths:
                    mine, theirs = (r.widths[site][both[r.usable]] for r in (self, self.reference))
                    ratios[site] = float(np.median(mine / theirs))
        return pd.Series(ratios, dtype=float)

    @property
    def p_values(self) -> pd.DataFrame:
        """P-values of two tests of uniform ranks, by site.

        ``ecdf``: the largest exit from pointwise bands, its distribution simulated; ``chi2``:
        Pearson's, in twenty bins or fewer. Each is the smallest over the site's entries times
        their number (Bonferroni), at most 1.
        """
        rows = {}
        for site, ranks in self.ranks.items():
            ecdf = min(uniformity_p_value(column, self.num_draws) for column in ranks.T)
            chi2 = min(chi2_p_value(column, self.num_draws) for column in ranks.T)
            rows[site] = {
                name: min(1.0, p * ranks.shape[1]) for name, p in (("ecdf", ecdf), ("chi2", chi2))
            }
        return pd.DataFrame.from_dict(rows, orient="index", columns=["ecdf", "chi2"])

    def table(self) -> pd.DataFrame:
        """Everything in numbers, one row a site.

        Columns: number of ``entries``; ``coverage_50`` … ``coverage_95`` and the standard error of
        the 90 % one; ``mean_z2`` and its standard error; ``width_ratio``; ``p_ecdf`` and
        ``p_chi2``; ``note``. Plugged-in sites are rows without numbers. ``table.attrs`` has the
        description, and how many simulations there were, did not converge, and were not usable.
        """
        coverage, errors, p_values = self.coverage, self.coverage_error, self.p_values
        z2, z2_error, ratio = self.mean_z2, self.mean_z2_error, self.width_ratio
        rows = {}
        for site in self.ranks:
            rows[site] = {
                "entries": len(self.entries[site]),
                **{f"coverage_{p:.0%}".rstrip("%"): coverage.loc[site, p] for p in _INTERVALS},
                "coverage_90_error": errors.loc[site, 0.9],
                "mean_z2": z2.get(site, np.nan),
                "mean_z2_error": z2_error.get(site, np.nan),
                "width_ratio": ratio[site],
                "p_ecdf": p_values.loc[site, "ecdf"],
                "p_chi2": p_values.loc[site, "chi2"],
                "note": "",
            }
        for site in self.plugged_in:
            rows[site] = {"entries": 0, "note": "plugged in: no draws, not ranked"}
        table = pd.DataFrame.from_dict(rows, orient="index")
        table.attrs.update(
            description=self.description,
            simulations=self.num_simulations,
            not_converged=int(np.sum(~self.converged)),
            not_usable=int(np.sum(~self.usable)),
        )
        return table

    def bands(self, probability: float = 0.95):
        """Simultaneous bands of the share of ranks below each possible one.

        Parameters
        ----------
        probability : float
            That the ECDF of one entry stays inside everywhere, if its ranks are uniform.

        Returns
        -------
        points, lower, upper : arrays (num_draws,)
        """
        check_probability("probability", probability)
        count = int(np.sum(self.usable))
        points, tails, null = null_distribution(count, self.num_draws)
        level = np.quantile(null, 1.0 - probability)
        inside = tails > level
        lower = np.argmax(inside, axis=0) / count
        upper = (count - np.argmax(inside[::-1], axis=0)) / count
        return points, lower, upper

    def plot(self, sites: Sequence[str] | None = None, probability: float = 0.95):
        """ArviZ's picture of ECDF minus uniform, a panel a site and a line an entry.

        Parameters
        ----------
        sites : sequence of str, optional
            Sites and quantities to show; all by default.
        probability : float
            That one line stays inside the simultaneous bands everywhere, if its ranks are uniform.

        Returns
        -------
        arviz_plots.PlotCollection
        """
        import arviz_plots

        sites = chosen_names("sites", sites, list(self.ranks), "ranked sites")
        check_probability("probability", probability)
        tree = self.to_datatree()
        return arviz_plots.plot_ecdf_pit(
            tree,
            var_names=sites,
            sample_dims=["sample"],
            ci_prob=probability,
            cols=["__variable__"],
            aes={"overlay": [f"{site}_entry" for site in sites]},
            aes_by_visuals={"ecdf_lines": ["overlay"]},
        )

    def to_datatree(self) -> xr.DataTree:
        """Ranks as numbers in (0, 1), in the group ``prior_sbc`` that ArviZ's plots read.

        The rank r of L becomes a number drawn uniformly from (r, r + 1) / (L + 1), with a fixed
        seed, so that bands for continuous numbers are exact.
        """
        generator = np.random.default_rng(NULL_SEED)
        variables = {
            site: (
                ("sample", f"{site}_entry"),
                (ranks + generator.uniform(size=ranks.shape)) / (self.num_draws + 1),
            )
            for site, ranks in self.ranks.items()
        }
        coords = {f"{site}_entry": self.entries[site] for site in self.ranks}
        return xr.DataTree.from_dict({"prior_sbc": xr.Dataset(variables, coords=coords)})

    def __repr__(self):
        counts = f"{self.num_simulations} simulations, {int(np.sum(~self.converged))} not converged"
        unusable = int(np.sum(~self.usable))
        return f"CalibrationResult({self.description}; {counts}, {unusable} not usable)"


def calibrate(
    model: Any,
    method: Any,
    *,
    key: Any,
    num_simulations: int = 200,
    num_draws: int = 99,
    batch_size: int | None = None,
    sites: Sequence[str] | None = None,
    quantities: Mapping[str, Callable] | None = None,
    reference: CalibrationResult | None = None,
) -> CalibrationResult:
    """Simulation-based calibration of a method on a model, over the model's own priors.

    Parameters
    ----------
    model : AbstractModel
        With proper priors that do not depend on the data.
    method : AbstractMethod
        Of a sampler, effective samples should be as many as ``num_draws`` or more: draws that
        depend on each other push ranks to the ends.
    key : int or JAX key
        For parameters, data, fits and draws; the same key simulates the same data for every method.
    num_simulations : int
    num_draws : int
        L; ranks have L + 1 values. The default makes the central intervals of 50, 80 and 90 %
        exact.
    batch_size : int, optional
        As for :func:`bayeskit.infer_batch`.
    sites : sequence of str, optional
        Sites to rank; all random ones by default. Entries that the prior holds at one value, such
        as coefficients of zero columns, are not ranked. Of a site with more than 16 others, 16
        are, the same in all simulations.
    quantities : mapping, optional
        Test quantities by name: functions of ``(parameters, data)`` to a number, ``parameters`` a
        dict by site. One that depends on the data, such as the log-likelihood, finds errors that
        no site shows: a posterior equal to the prior has uniform ranks at all sites.
    reference : CalibrationResult, optional
        Of another method with the same key, whose interval widths are compared with.

    Returns
    -------
    CalibrationResult
        Fits that did not converge are in it and counted; those without a finite result are
        counted only.

    Raises
    ------
    ValueError
        If a prior is improper or depends on the data (it is named), a site is unknown or a point
        estimate, chains have fewer draws than ``num_draws``, or the reference is of other data.

    Notes
    -----
    One compilation of the fit, which is mapped over simulations, and one of the draws. Memory:
    ``num_simulations`` posteriors and, for a sampler, all draws of one.

    Examples
    --------
    >>> import numpy as np
    >>> import numpyro.distributions as dist
    >>> import bayeskit as bk
    >>> from bayeskit.testing import calibrate
    >>> generator = np.random.default_rng(0)
    >>> model = bk.models.KroneckerSBL(
    ...     [generator.normal(size=(3, 3)), generator.normal(size=(3, 3))],
    ...     scale_prior=dist.InverseGamma(3.0, 2.0), noise_prior=dist.InverseGamma(3.0, 0.02))
    >>> result = calibrate(model, bk.inference.EM(), key=0, num_simulations=20)
    >>> result.ranks["coefficients"].shape
    (20, 9)
    """
    for name, value in (("num_simulations", num_simulations), ("num_draws", num_draws)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 2:
            raise ValueError(f"{name} must be an integer of at least 2, got {value!r}")
    method = checked_method(model, method)
    quantities = {} if quantities is None else quantities
    with double_precision():
        simulation_key, fit_key, draw_key = jax.random.split(
            as_key(key, "simulations are random"), 3
        )
        simulation_keys = jax.random.split(simulation_key, num_simulations)
    model.check_calibrate(method)
    simulated = [model.sample_prior(simulation_keys[i]) for i in range(num_simulations)]
    parameters = jax.tree.map(lambda *leaves: np.stack(leaves), *(pair[0] for pair in simulated))
    data = jax.tree.map(lambda *leaves: np.stack(leaves), *(pair[1] for pair in simulated))

    _check_quantities(quantities, parameters)
    if not chosen_names("sites", sites, parameters, "sites"):
        raise ValueError(f"sites is empty; the sites are {list(parameters)}")
    truths = {site: _truth_columns(values) for site, values in parameters.items()}
    _check_reference(reference, truths)

    with warnings.catch_warnings():
        # Counted in the result.
        warnings.simplefilter("ignore", ConvergenceWarning)
        posterior = infer_batch(model, data, method, key=fit_key, batch_size=batch_size)
    converged = np.asarray(posterior.convergence.converged)
    plugged_in = tuple(posterior.plugged_in)
    mean, variance = posterior.mean, posterior.variance
    ranked = _sites_to_rank(
        sites, [site for site in mean if site not in model.sites_not_drawn], plugged_in
    )
    draws = _independent_draws(posterior, draw_key, num_draws)
    # A variance that does not exist is infinite: no reason to leave a posterior out.
    usable = functools.reduce(
        np.logical_and,
        [_finite(draws[site]) & _known(mean[site]) & _known(variance[site]) for site in ranked],
    )
    if not np.any(usable):
        raise ValueError(f"no fit of {method!r} to {num_simulations} simulated data sets is finite")

    ranks, entries, squared_errors, widths = {}, {}, {}, {}
    for site in ranked:
        chosen = _choose_entries(parameters[site])
        truth, center, spread = (
            _columns(moment[site], chosen)[usable] for moment in (parameters, mean, variance)
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            squared_errors[site] = np.where(
                np.isfinite(spread), np.abs(truth - center) ** 2 / spread, np.nan
            )
        drawn = np.stack([_split_complex(_columns(draw, chosen)) for draw in draws[site][usable]])
        labels = [f"[{', '.join(map(str, index))}]" if index else site for index in chosen]
        if drawn.shape[-1] == 2 * len(labels):
            labels = [f"{label} {part}" for part in ("real", "imag") for label in labels]
        entries[site] = labels
        ranks[site], widths[site] = _ranks_and_widths(truths[site][usable], drawn)
    for name, quantity in quantities.items():
        truths[name], drawn = _evaluate_quantity(
            name, quantity, parameters, data, draws, mean, plugged_in, usable
        )
        entries[name] = [name]
        ranks[name], widths[name] = _ranks_and_widths(truths[name][usable], drawn)

    return CalibrationResult(
        description=f"{type(model).__name__} by {posterior.method!r}",
        num_simulations=int(num_simulations),
        num_draws=int(num_draws),
        ranks=ranks,
        entries=entries,
        squared_errors=squared_errors,
        widths=widths,
        truths=truths,
        converged=converged,
        usable=usable,
        plugged_in=plugged_in,
        reference=reference,
    )


def _sites_to_rank(sites, known, plugged_in):
    random_sites = [site for site in known if site not in plugged_in]
    if not random_sites:
        raise ValueError(
            f"all sites are point estimates ({', '.join(plugged_in)}): nothing can be ranked"
        )
    chosen = random_sites if sites is None else list(sites)
    points = [site for site in chosen if site in plugged_in]
    if points:
        raise ValueError(
            f"sites has the point estimates {points}: they have no draws to rank; the random sites "
            f"are {random_sites}"
        )
    return chosen


def _check_quantities(quantities, sites):
    if not isinstance(quantities, Mapping):
        raise TypeError(f"quantities must be functions by name, got {type(quantities).__name__}")
    for name, quantity in quantities.items():
        if not callable(quantity):
            raise TypeError(f"quantities[{name!r}] must be a function, got {quantity!r}")
        if name in sites:
            raise ValueError(f"quantities has {name!r}, which is a site's name")


@eqx.filter_jit
def _draw_batch(approximation, model, data, keys, num_draws):
    def one(item):
        approximation, data, key = item
        if approximation.chains is None:
            return jax.lax.map(
                lambda k: approximation.sample(k, model, data), jax.random.split(key, num_draws)
            )
        total = int(np.prod(approximation.chains))
        drawn = approximation.chain_draws(key, model, data)
        # Evenly spaced over the chains laid end to end: as nearly independent as they can be, and
        # none twice, which would push ranks to the ends.
        spaced = np.arange(num_draws) * total // num_draws
        return jax.tree.map(lambda leaf: leaf.reshape(total, *leaf.shape[2:])[spaced], drawn)

    return jax.lax.map(one, (approximation, data, keys))


def _independent_draws(posterior, key, num_draws):
    """Draws (simulation, draw, …) by site, each simulation with random numbers of its own."""
    first = jax.tree.map(lambda leaf: leaf[0], posterior.approximation)
    if first.chains is not None and np.prod(first.chains) < num_draws:
        raise ValueError(
            f"num_draws is {num_draws}, but the chains have only {int(np.prod(first.chains))} "
            "draws: sample more or rank fewer"
        )
    with double_precision():
        keys = jax.random.split(key, posterior.batch)
        prepared = posterior.prepared
        return to_host(
            _draw_batch(
                posterior.approximation, prepared.model, prepared.data, keys, int(num_draws)
            )
        )


def _finite(array):
    """Whether each simulation's numbers are all finite."""
    return np.all(np.isfinite(np.asarray(array)), axis=tuple(range(1, np.ndim(array))))


def _known(array):
    """Whether none of each simulation's numbers is NaN."""
    return ~np.any(np.isnan(np.asarray(array)), axis=tuple(range(1, np.ndim(array))))


def _choose_entries(values):
    """Indices to rank: all of a small site, a random but fixed subset of a large one.

    Entries that the prior holds at one value are no random numbers, and left out.
    """
    shape = values.shape[1:]
    moving = np.ravel(np.any(values != values[:1], axis=0))
    chosen = np.flatnonzero(moving)
    if chosen.size > _ENTRIES:
        generator = np.random.default_rng(NULL_SEED)
        chosen = np.sort(generator.choice(chosen, _ENTRIES, replace=False))
    return [tuple(int(i) for i in np.unravel_index(flat, shape)) for flat in chosen]


def _split_complex(columns):
    """(lead, entries), imaginary parts after real ones."""
    if not np.iscomplexobj(columns):
        return columns
    return np.concatenate([columns.real, columns.imag], axis=-1)


def _truth_columns(values):
    return _split_complex(_columns(values, _choose_entries(values)))


def _columns(array, indices):
    """(lead, …) to (lead, entries)."""
    return np.stack([np.asarray(array)[(slice(None), *index)] for index in indices], axis=1)


def _ranks_and_widths(truth, drawn):
    """From truths (simulation, entry) and draws (simulation, draw, entry).

    A truth that equals draws, as discrete quantities do, has a random rank among them.
    """
    lower, upper = np.quantile(drawn, [0.05, 0.95], axis=1)
    below, equal = np.sum(drawn < truth[:, None], axis=1), np.sum(drawn == truth[:, None], axis=1)
    ties = np.random.default_rng(NULL_SEED).integers(0, equal, endpoint=True)
    return below + ties, upper - lower


def _evaluate_quantity(name, quantity, parameters, data, draws, mean, plugged_in, usable):
    """Truths (simulations, 1) and draws (usable simulations, draws, 1) of one test quantity."""

    def item(tree, index):
        return jax.tree.map(lambda leaf: leaf[index], tree)

    def number(own_parameters, own_data):
        value = np.asarray(quantity(own_parameters, own_data))
        if value.size != 1 or not np.isreal(value).all() or not np.isfinite(value).all():
            raise ValueError(f"quantities[{name!r}] must give one finite number, gave {value!r}")
        return float(np.real(value.item()))

    num_draws = next(iter(draws.values())).shape[1]
    count = usable.size
    truths = [[number(item(parameters, i), item(data, i))] for i in range(count)]
    drawn = []
    for i in np.flatnonzero(usable):
        own, fixed = item(data, i), {site: mean[site][i] for site in plugged_in}
        drawn.append([[number({**fixed, **item(draws, (i, j))}, own)] for j in range(num_draws)])
    return np.asarray(truths), np.asarray(drawn)


def _check_reference(reference, truths):
    if reference is None:
        return
    if not isinstance(reference, CalibrationResult):
        raise TypeError(f"reference must be a CalibrationResult, got {type(reference).__name__}")
    same = (np.array_equal(reference.truths.get(site, ()), value) for site, value in truths.items())
    if not all(same):
        raise ValueError(
            "reference is of other simulated data: use the same model, key and num_simulations"
        )
