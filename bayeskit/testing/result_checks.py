"""Checks of what comes back: numbers, trees, predictions. Each says in a line what it demands."""

import json

import arviz_stats as azs
import jax
import jax.monitoring
import numpy as np

from bayeskit.precision import as_key
from bayeskit.results import Prediction
from bayeskit.testing.case import DRAWS, named, require, require_identical, require_raises

# A correct mean strays this many standard errors with probability 2e-9 an entry; estimated
# variances have heavier tails than the normal, so they get more room.
_MEAN_ERRORS = 6.0
_VARIANCE_ERRORS = 9.0
# Moments without a closed form may be averages of this many draws themselves.
_MOMENT_DRAWS = 4096


def check_fits(case):
    """The fit works, on read-only arrays, and every number of it is finite."""
    bad = [
        name
        for name, array in named(
            {name: case.outcome[name] for name in ("mean", "variance", "draws", "objective")}
        )
        if not np.all(np.isfinite(array))
    ]
    require(not bad, f"not finite: {', '.join(bad)}")
    negative = [
        site for site, variance in case.base.variance.items() if np.any(np.asarray(variance) < 0)
    ]
    require(not negative, f"negative variances of {negative}")


def check_tree(case):
    """Groups, dimensions, moments and attributes of the result tree; ArviZ's summary of it."""
    tree = case.tree
    mean, plugged_in = case.base.mean, case.base.plugged_in
    random_sites = [site for site in mean if site not in plugged_in]
    groups = {"moments", "observed_data", "posterior_predictive"}
    groups |= {"posterior"} if random_sites else set()
    if case.base.convergence.objective is not None:
        groups.add("optimization")
    require(
        groups <= set(tree.children), f"groups {sorted(groups - set(tree.children))} are missing"
    )
    for site, value in mean.items():
        for moment in ("mean", "variance"):
            variable = tree["moments"].get(f"{site}_{moment}")
            require(variable is not None, f"moments has no {site}_{moment}")
            parts = np.iscomplexobj(value) and moment == "mean"
            require(("part" in variable.dims) == parts, f"{site}_{moment} has dims {variable.dims}")
            shape = np.asarray(value).shape
            require(
                variable.shape[: len(shape)] == shape,
                f"{site}_{moment} has shape {variable.shape}, not {shape}",
            )
    for site in random_sites:
        variable = tree["posterior"][site]
        require(
            variable.dims[:2] == ("chain", "draw"), f"posterior {site} has dims {variable.dims}"
        )
        own = np.asarray(mean[site]).shape + (2,) * np.iscomplexobj(mean[site])
        require(variable.shape[2:] == own, f"posterior {site} has shape {variable.shape}")
    unreal = [
        f"{group}/{name}"
        for group, node in tree.children.items()
        for name, variable in node.data_vars.items()
        if variable.dtype.kind not in "fiub"
    ]
    require(not unreal, f"not of real numbers: {unreal}")
    for name in ("versions", "settings", "seed", "convergence", "plugged_in"):
        require(name in tree.attrs, f"attribute {name} is missing")
        json.loads(tree.attrs[name])
    require(json.loads(tree.attrs["plugged_in"]) == list(plugged_in), "attribute plugged_in")
    texts = [
        name
        for name, value in tree.attrs.items()
        if not isinstance(value, (str, int, float)) or isinstance(value, bool)
    ]
    require(not texts, f"attributes {texts} are nothing that NetCDF can hold")
    if random_sites:
        kind = "stats" if tree["posterior"].sizes["chain"] == 1 else "all"
        table = azs.summary(tree, kind=kind)
        require(len(table) > 0, "ArviZ's summary is empty")
        require_raises(
            (ValueError,),
            lambda: case.base.to_datatree(max_bytes=1),
            "draws beyond max_bytes",
            "max_bytes",
        )
    require_raises(
        (ValueError,),
        lambda: case.base.to_datatree(sites=["no such site"]),
        "an unknown site",
        "no such site",
    )
    require(len(case.base.summary()) > 0, "the posterior's own summary is empty")


def _require_moments(what, draws, mean, variance):
    """Draws (draw, …) have this mean and variance, which may rest on draws themselves."""
    inflation = 1.0 / draws.shape[0] + 1.0 / _MOMENT_DRAWS
    squares = np.abs(draws - mean) ** 2
    distance = np.abs(draws.mean(axis=0) - mean)
    allowed = _MEAN_ERRORS * np.sqrt(variance * inflation) + 1e-12 * (np.abs(mean) + 1e-300)
    worst = np.max(distance / np.where(allowed > 0, allowed, 1.0)) * _MEAN_ERRORS
    require(
        worst <= _MEAN_ERRORS,
        f"means of {what} and of its draws are {worst:.1f} standard errors apart",
    )
    error = np.sqrt(np.maximum(squares.var(axis=0), variance**2) * inflation)
    worst = np.max(np.abs(squares.mean(axis=0) - variance) / np.where(error > 0, error, 1.0))
    require(
        worst <= _VARIANCE_ERRORS,
        f"variances of {what} and of its draws are {worst:.1f} standard errors apart",
    )


def check_moments_match_draws(case):
    """Mean and variance of many draws agree with ``.mean`` and ``.variance``."""
    for site, draws in case.outcome["draws"].items():
        mean, variance = np.asarray(case.base.mean[site]), np.asarray(case.base.variance[site])
        require(draws.shape == (DRAWS, *mean.shape), f"draws of {site} have shape {draws.shape}")
        _require_moments(site, draws, mean, variance)
    drawn, plugged_in = set(case.outcome["draws"]), set(case.base.plugged_in)
    require(
        drawn | plugged_in == set(case.base.mean), "draws and plugged_in are not all sites together"
    )
    require(not drawn & plugged_in, f"{drawn & plugged_in} are plugged in and drawn")
    moving = [site for site in plugged_in if np.any(np.asarray(case.base.variance[site]) != 0)]
    require(not moving, f"plugged-in sites {moving} have a variance")


def check_numpy_results(case):
    """Results are NumPy arrays in the precision of the data."""
    prediction = case.base.predict()
    results = {
        **{name: case.outcome[name] for name in ("mean", "variance", "draws")},
        "prediction": {"mean": prediction.mean, "variance": prediction.variance},
    }
    leaves = jax.tree_util.tree_leaves_with_path(results)
    other = [
        jax.tree_util.keystr(path)
        for path, leaf in leaves
        if not isinstance(leaf, (np.ndarray, np.generic))
    ]
    require(not other, f"no NumPy arrays: {other}")
    single = [
        name for name, array in named(results) if array.dtype not in (np.float64, np.complex128)
    ]
    require(not single, f"not in double precision: {single}")
    evidence = case.base.log_evidence
    require(
        evidence is None or type(evidence) is float, f"log_evidence is a {type(evidence).__name__}"
    )


def check_single_precision(case):
    """Data and model in float32 are computed in float32, with a result close to float64's."""
    kinds = {np.dtype(np.float64): np.float32, np.dtype(np.complex128): np.complex64}

    def cast(leaf):
        return (
            leaf.astype(kinds[leaf.dtype])
            if isinstance(leaf, np.ndarray) and leaf.dtype in kinds
            else leaf
        )

    posterior = case.fit(model=jax.tree.map(cast, case.model), data=jax.tree.map(cast, case.data))
    double = [
        name
        for name, array in named({"mean": posterior.mean, "variance": posterior.variance})
        if array.dtype not in (np.float32, np.complex64)
    ]
    require(not double, f"not in single precision: {double}")
    # Random numbers differ: moments without a closed form move by their Monte-Carlo error, chains
    # part ways for good. What is the same in both may stop a step apart.
    sizes = [_MOMENT_DRAWS, _MOMENT_DRAWS]
    if case.base.convergence.min_ess is not None:
        sizes = [max(result.convergence.min_ess, 4.0) for result in (posterior, case.base)]
    errors = _MEAN_ERRORS * np.sqrt(sum(1.0 / size for size in sizes))
    for site, mean in case.base.mean.items():
        mean = np.asarray(mean)
        deviation = np.sqrt(np.asarray(case.base.variance[site]))
        allowed = errors * deviation + 5e-3 * np.max(np.abs(mean))
        distance = np.abs(posterior.mean[site] - mean)
        require(
            bool(np.all(distance <= allowed)),
            f"mean of {site} is {np.max(distance):.3g} from float64's, where the deviation is "
            f"{np.max(deviation):.3g}",
        )


def check_sample_prior(case):
    """The priors are drawn from in double precision, or refused by name."""
    name_key = as_key(case.key, "a check")
    try:
        parameters, data = case.model.sample_prior(name_key)
    except ValueError as error:
        require("prior" in str(error), f"the error does not name the prior: {error}")
        return
    require_identical(
        case.model.sample_prior(name_key), (parameters, data), "the same key a second time"
    )
    require(
        set(parameters) == set(case.base.mean),
        f"sites {sorted(parameters)} are not the posterior's, {sorted(case.base.mean)}",
    )
    leaves = named((parameters, data))
    bad = [name for name, array in leaves if not np.all(np.isfinite(array))]
    require(not bad, f"not finite: {bad}")
    single = [name for name, array in leaves if array.dtype in (np.float32, np.complex64)]
    require(not single, f"not in double precision: {single}")


def check_leave_one_out(case):
    """Leave-one-out densities are finite."""
    loo = case.base.loo()
    require(
        np.isfinite(loo.elpd) and np.isfinite(loo.se), f"elpd {loo.elpd}, standard error {loo.se}"
    )
    require(np.all(np.isfinite(np.asarray(loo.elpd_i))), "pointwise densities are not finite")
    require(
        np.isclose(float(np.sum(np.asarray(loo.elpd_i))), float(loo.elpd)),
        "the parts do not sum to the total",
    )


def check_predict(case):
    """Predictions have the data's shape and named axes; simulated data have their moments."""
    clean, noisy = case.base.predict(), case.base.predict(include_noise=True)
    for prediction in (clean, noisy):
        require(isinstance(prediction, Prediction), f"predict gave {type(prediction).__name__}")
        require(
            prediction.mean.shape == prediction.variance.shape, "mean and variance differ in shape"
        )
        require(len(prediction.dims) == np.ndim(prediction.mean), f"dims {prediction.dims}")
        require(not np.iscomplexobj(prediction.variance), "the variance is complex")
        require(
            bool(np.all(np.isfinite(prediction.mean)) and np.all(prediction.variance >= 0)),
            "no finite prediction",
        )
    require(np.array_equal(clean.mean, noisy.mean), "noise changes the mean")
    require(bool(np.all(noisy.variance > clean.variance)), "noise does not raise the variance")
    if case.arrays:
        *_, observed = case.arrays.values()
        require(
            clean.mean.shape == observed.shape,
            f"shape {clean.mean.shape}, data {observed.shape}",
        )
    (simulated,) = case.tree["posterior_predictive"].data_vars.values()
    draws = simulated.stack(all=("chain", "draw")).transpose("all", ...).values
    if np.iscomplexobj(noisy.mean):
        draws = draws[..., 0] + 1j * draws[..., 1]
    _require_moments("simulated data", draws, noisy.mean, noisy.variance)


def check_repr(case):
    """Everything prints as something that names it."""
    for value in (case.model, case.method, case.base):
        require(type(value).__name__ in repr(value), f"repr of {type(value).__name__}: {value!r}")
