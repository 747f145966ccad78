"""One suite of checks that every pair of model and method passes.

The idea is scikit-learn's ``check_estimator``: what users may rely on is written down once, as
code, and each family only registers a small problem. Fits are shared between checks, so that a
pair costs few compilations: one for the problem, one for a batch, one in float32.
"""

import contextlib
import functools
import json
import tempfile
import threading
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import arviz_stats as azs
import equinox as eqx
import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import xarray as xr

from bayeskit.errors import BayeskitWarning, ConvergenceWarning
from bayeskit.inference import checkpoint as checkpoints
from bayeskit.inference.driver import infer, infer_batch
from bayeskit.posterior import Posterior
from bayeskit.precision import as_key
from bayeskit.results import Prediction

_DRAWS = 1000
_TREE = {"num_draws": _DRAWS, "posterior_predictive": True}
# A correct mean strays this many standard errors with probability 2e-9 an entry; estimated
# variances have heavier tails than the normal, so they get more room.
_MEAN_ERRORS = 6.0
_VARIANCE_ERRORS = 9.0
# Moments without a closed form may be averages of this many draws themselves.
_MOMENT_DRAWS = 4096
_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


def check_model(
    model: Any,
    method: Any,
    data: Any,
    key: Any,
    *,
    expected_failed: Mapping[str, str] | None = None,
) -> dict[str, float]:
    """Check everything that a user may rely on, for one model, method and data set.

    Parameters
    ----------
    model : AbstractModel
    method : AbstractMethod
        Iterative methods should be allowed more than one block of steps (more than 50), so that a
        run can be interrupted in the middle. A sampler should be given so few draws that it does
        not meet its own criterion, otherwise one more compilation finds one that does not.
    data : array, or pytree of arrays
        Small, in double precision: data of the model as :func:`bayeskit.infer` takes them.
    key : int or JAX key
    expected_failed : mapping, optional
        Names of checks (:data:`CHECKS`) that this pair is known not to pass, each with the reason.
        One that passes after all is an error too.

    Returns
    -------
    dict
        Seconds that each check took, by name, in order; the first check to need a fit pays for it.

    Raises
    ------
    AssertionError
        Listing every failed check with its reason, and every expected failure that passed.
    ValueError
        If ``expected_failed`` names no check, or gives no reason.

    Notes
    -----
    Every check runs, whatever the others find. Cost: three sets of compiled programs (problem,
    batch of three, float32), and milliseconds beyond them if the problem is as small as it should
    be. Source of the idea: scikit-learn's ``check_estimator``.

    Examples
    --------
    >>> import numpy as np
    >>> import bayeskit as bk
    >>> from bayeskit.testing import check_model
    >>> generator = np.random.default_rng(0)
    >>> dictionaries = [generator.normal(size=(3, 4)), generator.normal(size=(4, 5))]
    >>> model = bk.models.KroneckerSBL(dictionaries)
    >>> seconds = check_model(model, bk.inference.EM(), generator.normal(size=(3, 4)), key=0)
    """
    expected = dict(expected_failed or {})
    unknown = [name for name in expected if name not in CHECKS]
    if unknown:
        raise ValueError(f"expected_failed names {unknown}; the checks are {list(CHECKS)}")
    unexplained = [name for name, reason in expected.items() if not str(reason).strip()]
    if unexplained:
        raise ValueError(f"expected_failed gives no reason for {unexplained}")
    case = _Case(model, method, data, key)
    problems, seconds = [], {}
    for name, check in CHECKS.items():
        begun = time.perf_counter()
        failure = _failure(check, case)
        seconds[name] = time.perf_counter() - begun
        if failure is not None and name not in expected:
            problems.append(f"{name}: {failure}")
        elif failure is None and name in expected:
            problems.append(f"{name}: passed, but was expected to fail ({expected[name]})")
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise AssertionError(
            f"{type(model).__name__} by {method!r}: {len(problems)} of {len(CHECKS)} checks failed"
            f"\n{listed}"
        )
    return seconds


def _failure(check, case):
    """Why a check fails, ``None`` if it passes. Any exception is a failure of the package."""
    try:
        with case.recorded():
            check(case)
    except AssertionError as error:
        return str(error) or "an assertion without a message"
    except Exception as error:
        return f"raised {type(error).__name__}: {error}"
    return None


class _Case:
    """One pair with its data, and the fits that checks share."""

    def __init__(self, model, method, data, key):
        self.given = (model, data)
        # Everything runs on read-only copies: whoever writes into an argument fails at once.
        self.model, self.data = jax.tree.map(_read_only, (model, data))
        self.method = method
        self.key = key
        self.warnings = []
        self.marks = self._fingerprint()

    def _fingerprint(self):
        return checkpoints.fingerprint(
            model=self.model,
            data=self.data,
            method=self.method,
            given_model=self.given[0],
            given_data=self.given[1],
        )

    @contextlib.contextmanager
    def recorded(self):
        """Record warnings, so that they can be checked, and none escapes."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                yield caught
            finally:
                self.warnings.extend(caught)

    def fit(self, *, model=None, data=None, method=None, key=None, **options):
        """``infer`` on this case with something changed."""
        return infer(
            self.model if model is None else model,
            self.data if data is None else data,
            self.method if method is None else method,
            key=self.key if key is None else key,
            **options,
        )

    @functools.cached_property
    def base(self):
        """The fit itself, with the warnings that it gave."""
        with self.recorded() as caught:
            posterior = self.fit()
            self.base_warnings = list(caught)
        return posterior

    @functools.cached_property
    def outcome(self):
        """Everything numerical about the fit."""
        return _outcome(self.base)

    @functools.cached_property
    def tree(self):
        """The result tree, with simulated data."""
        return self.base.to_datatree(**_TREE)

    @functools.cached_property
    def other_data(self):
        """Data of the same shape with other numbers: every one changed by up to a tenth."""
        generator = np.random.default_rng(0)

        def change(leaf):
            if not isinstance(leaf, np.ndarray) or not np.issubdtype(leaf.dtype, np.inexact):
                return leaf
            return _read_only((leaf * generator.uniform(0.9, 1.1, leaf.shape)).astype(leaf.dtype))

        return jax.tree.map(change, self.data)

    @functools.cached_property
    def other(self):
        """The fit to ``other_data``."""
        return self.fit(data=self.other_data)

    @functools.cached_property
    def hurried(self):
        """A method that cannot meet its criterion, of the same shapes where that is possible."""
        if hasattr(self.method, "tolerance"):
            return eqx.tree_at(lambda method: method.tolerance, self.method, 0.0)
        if not self.base.convergence.converged:
            return self.method
        settings = self.method.settings()
        return type(self.method)(**{**settings, "num_warmup": 1, "num_samples": 4})

    @property
    def array(self):
        """The data, where they are one array of numbers; checks of other kinds do not apply."""
        return self.data if isinstance(self.data, np.ndarray) else None


def _read_only(leaf):
    if not isinstance(leaf, np.ndarray):
        return leaf
    leaf = leaf.copy()
    leaf.flags.writeable = False
    return leaf


def _outcome(posterior):
    """Moments, draws, evidence and objective of a posterior as one tree of arrays."""
    return {
        "mean": posterior.mean,
        "variance": posterior.variance,
        "draws": posterior.sample(1, _DRAWS),
        "log_evidence": np.asarray(
            np.nan if posterior.log_evidence is None else posterior.log_evidence
        ),
        "objective": np.asarray(
            () if posterior.convergence.objective is None else posterior.convergence.objective
        ),
        "iterations": np.asarray(posterior.convergence.iterations),
    }


def _named(tree):
    return [
        (jax.tree_util.keystr(path), np.asarray(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def _require(condition, message):
    if not condition:
        raise AssertionError(message)


def _require_identical(tree, reference, what):
    _require(
        jax.tree.structure(tree) == jax.tree.structure(reference),
        f"{what}: the results have different parts",
    )
    different = [
        name
        for (name, array), (_, expected) in zip(_named(tree), _named(reference), strict=True)
        if array.dtype != expected.dtype
        or array.shape != expected.shape
        or array.tobytes() != expected.tobytes()
    ]
    _require(not different, f"{what}: {', '.join(different)} differ")


def _require_raises(kinds, action, what, *texts):
    try:
        action()
    except kinds as error:
        missing = [text for text in texts if text not in str(error)]
        _require(not missing, f"{what}: the error does not mention {missing}: {error}")
        return
    except Exception as error:
        names = " or ".join(kind.__name__ for kind in kinds)
        raise AssertionError(
            f"{what}: {type(error).__name__} instead of {names}: {error}"
        ) from error
    raise AssertionError(f"{what}: accepted")


@contextlib.contextmanager
def _compilations():
    """A list that gets one entry a program that JAX compiles."""
    programs = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == _COMPILE_EVENT:
            programs.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield programs
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def _check_fits(case):
    """The fit works, on read-only arrays, and every number of it is finite."""
    bad = [
        name
        for name, array in _named(
            {name: case.outcome[name] for name in ("mean", "variance", "draws", "objective")}
        )
        if not np.all(np.isfinite(array))
    ]
    _require(not bad, f"not finite: {', '.join(bad)}")
    negative = [
        site for site, variance in case.base.variance.items() if np.any(np.asarray(variance) < 0)
    ]
    _require(not negative, f"negative variances of {negative}")


def _check_no_recompilation(case):
    """Other data of the same shapes and other settings of the method compile nothing."""
    _ = case.outcome, case.base.predict()
    with _compilations() as programs:
        other = _outcome(case.other)
        case.other.predict()
    _require(not programs, f"{len(programs)} programs compiled by a second fit of the same shapes")
    same = all(
        np.array_equal(other["mean"][site], mean) for site, mean in case.outcome["mean"].items()
    )
    _require(not same, "other data gave the same means")


def _check_same_key_same_result(case):
    """The same key gives bitwise the same result; another key another one if anything is random."""
    _require_identical(_outcome(case.fit()), case.outcome, "the same key a second time")
    first, second = (case.base.sample(key, _DRAWS) for key in (1, 2))
    same = [site for site in first if np.array_equal(first[site], second[site])]
    _require(not same, f"draws of {same} do not depend on the key")
    if not case.method.random:
        return
    other = case.fit(key=jax.random.fold_in(as_key(case.key, "a check"), 1))
    if case.method.settings().get("restarts", 1) == 1:
        same = all(np.array_equal(other.mean[site], mean) for site, mean in case.base.mean.items())
        _require(not same, "another key gave the same means")


def _check_keys(case):
    """A key is asked for where it is needed, and what is none is refused."""
    if case.method.random:
        _require_raises(
            (ValueError,),
            lambda: infer(case.model, case.data, case.method, key=None),
            "no key",
            "key",
        )
    for key in ("0", 0.5, True):
        _require_raises((TypeError,), lambda key=key: case.fit(key=key), f"key={key!r}", "key")


def _check_input_kinds(case):
    """NumPy, JAX and xarray arrays give the same result; names and coordinates reach the tree."""
    with jax.enable_x64(True):
        data = jax.tree.map(
            lambda leaf: jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf, case.data
        )
    _require_identical(_outcome(case.fit(data=data)), case.outcome, "JAX arrays against NumPy's")
    if case.array is None:
        return
    dims = [f"named_{axis}" for axis in range(case.array.ndim)]
    coords = {
        dim: [f"{dim}:{i}" for i in range(size)]
        for dim, size in zip(dims, case.array.shape, strict=True)
    }
    posterior = case.fit(data=xr.DataArray(case.array, dims=dims, coords=coords))
    _require_identical(_outcome(posterior), case.outcome, "xarray against NumPy")
    observed = posterior.to_datatree(sites=())["observed_data"]
    missing = [
        dim
        for dim in dims
        if dim not in observed.coords or list(observed.coords[dim].values) != coords[dim]
    ]
    _require(
        not missing,
        f"dimensions {missing} of the data or their coordinates are not in observed_data",
    )


def _check_non_finite_rejected(case):
    """NaN and infinities raise ``ValueError`` naming the index."""
    if case.array is None or not np.issubdtype(case.array.dtype, np.inexact):
        return
    shape = case.array.shape
    for value, index in ((np.nan, tuple(size - 1 for size in shape)), (np.inf, (0,) * len(shape))):
        data = case.array.copy()
        data[index] = value
        _require_raises(
            (ValueError,), lambda data=data: case.fit(data=data), f"{value} in the data", str(index)
        )


def _check_wrong_input_rejected(case):
    """Empty data, wrong ranks and wrong kinds raise ``ValueError`` or ``TypeError``."""
    wrong = [("None", None), ("a string", "data"), ("an object array", np.asarray([object()]))]
    if case.array is not None:
        wrong += [
            ("an empty array", case.array[:0]),
            ("a scalar", case.array.reshape(-1)[0]),
            ("two axes too many", case.array[None, None]),
            ("text", np.full(case.array.shape, "1.0")),
            ("booleans", np.ones(case.array.shape, bool)),
        ]
    for what, data in wrong:
        # Not through ``fit``, for which None means "as it is".
        _require_raises(
            (ValueError, TypeError),
            lambda data=data: infer(case.model, data, case.method, key=case.key),
            what,
        )


def _check_objective_monotone(case):
    """An objective never falls beyond rounding, and has one value an iteration."""
    runs = [("the fit", case.base), ("the fit to other data", case.other)]
    for what, posterior in runs:
        objective = posterior.convergence.objective
        if objective is None:
            continue
        objective = np.asarray(objective)
        count = int(posterior.convergence.iterations)
        _require(
            objective.shape == (count,), f"{what}: {objective.shape} values in {count} iterations"
        )
        slack = 1e-9 * (1.0 + np.max(np.abs(objective)))
        falls = np.flatnonzero(np.diff(objective) < -slack)
        _require(
            not falls.size,
            f"{what}: falls at iterations {falls[:5].tolist()} by up to "
            f"{-np.min(np.diff(objective), initial=0.0):.3g}",
        )


def _check_tree(case):
    """Groups, dimensions, moments and attributes of the result tree; ArviZ's summary of it."""
    tree = case.tree
    mean, plugged_in = case.base.mean, case.base.plugged_in
    random_sites = [site for site in mean if site not in plugged_in]
    groups = {"moments", "observed_data", "posterior_predictive"}
    groups |= {"posterior"} if random_sites else set()
    if case.base.convergence.objective is not None:
        groups.add("optimization")
    _require(
        groups <= set(tree.children), f"groups {sorted(groups - set(tree.children))} are missing"
    )
    for site, value in mean.items():
        for moment in ("mean", "variance"):
            variable = tree["moments"].get(f"{site}_{moment}")
            _require(variable is not None, f"moments has no {site}_{moment}")
            parts = np.iscomplexobj(value) and moment == "mean"
            _require(
                ("part" in variable.dims) == parts, f"{site}_{moment} has dims {variable.dims}"
            )
            shape = np.asarray(value).shape
            _require(
                variable.shape[: len(shape)] == shape,
                f"{site}_{moment} has shape {variable.shape}, not {shape}",
            )
    for site in random_sites:
        variable = tree["posterior"][site]
        _require(
            variable.dims[:2] == ("chain", "draw"), f"posterior {site} has dims {variable.dims}"
        )
        own = np.asarray(mean[site]).shape + (2,) * np.iscomplexobj(mean[site])
        _require(variable.shape[2:] == own, f"posterior {site} has shape {variable.shape}")
    unreal = [
        f"{group}/{name}"
        for group, node in tree.children.items()
        for name, variable in node.data_vars.items()
        if variable.dtype.kind not in "fiub"
    ]
    _require(not unreal, f"not of real numbers: {unreal}")
    for name in ("versions", "settings", "seed", "convergence", "plugged_in"):
        _require(name in tree.attrs, f"attribute {name} is missing")
        json.loads(tree.attrs[name])
    _require(json.loads(tree.attrs["plugged_in"]) == list(plugged_in), "attribute plugged_in")
    texts = [
        name
        for name, value in tree.attrs.items()
        if not isinstance(value, (str, int, float)) or isinstance(value, bool)
    ]
    _require(not texts, f"attributes {texts} are nothing that NetCDF can hold")
    if random_sites:
        kind = "stats" if tree["posterior"].sizes["chain"] == 1 else "all"
        table = azs.summary(tree, kind=kind)
        _require(len(table) > 0, "ArviZ's summary is empty")
        _require_raises(
            (ValueError,),
            lambda: case.base.to_datatree(max_bytes=1),
            "draws beyond max_bytes",
            "max_bytes",
        )
    _require_raises(
        (ValueError,),
        lambda: case.base.to_datatree(sites=["no such site"]),
        "an unknown site",
        "no such site",
    )
    _require(len(case.base.summary()) > 0, "the posterior's own summary is empty")


def _require_moments(what, draws, mean, variance):
    """Draws (draw, …) have this mean and variance, which may rest on draws themselves."""
    inflation = 1.0 / draws.shape[0] + 1.0 / _MOMENT_DRAWS
    squares = np.abs(draws - mean) ** 2
    distance = np.abs(draws.mean(axis=0) - mean)
    allowed = _MEAN_ERRORS * np.sqrt(variance * inflation) + 1e-12 * (np.abs(mean) + 1e-300)
    worst = np.max(distance / np.where(allowed > 0, allowed, 1.0)) * _MEAN_ERRORS
    _require(
        worst <= _MEAN_ERRORS,
        f"means of {what} and of its draws are {worst:.1f} standard errors apart",
    )
    error = np.sqrt(np.maximum(squares.var(axis=0), variance**2) * inflation)
    worst = np.max(np.abs(squares.mean(axis=0) - variance) / np.where(error > 0, error, 1.0))
    _require(
        worst <= _VARIANCE_ERRORS,
        f"variances of {what} and of its draws are {worst:.1f} standard errors apart",
    )


def _check_moments_match_draws(case):
    """Mean and variance of many draws agree with ``.mean`` and ``.variance``."""
    for site, draws in case.outcome["draws"].items():
        mean, variance = np.asarray(case.base.mean[site]), np.asarray(case.base.variance[site])
        _require(draws.shape == (_DRAWS, *mean.shape), f"draws of {site} have shape {draws.shape}")
        _require_moments(site, draws, mean, variance)
    drawn, plugged_in = set(case.outcome["draws"]), set(case.base.plugged_in)
    _require(
        drawn | plugged_in == set(case.base.mean), "draws and plugged_in are not all sites together"
    )
    _require(not drawn & plugged_in, f"{drawn & plugged_in} are plugged in and drawn")
    moving = [site for site in plugged_in if np.any(np.asarray(case.base.variance[site]) != 0)]
    _require(not moving, f"plugged-in sites {moving} have a variance")


def _check_save_and_load(case):
    """A saved posterior comes back with identical moments, draws and tree."""
    from bayeskit import load

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "posterior.nc"
        case.base.save(path)
        loaded = load(path)
        left = [entry.name for entry in Path(folder).iterdir() if entry != path]
        _require(not left, f"save left {left} behind")
        path.unlink()  # everything was read eagerly
        _require(isinstance(loaded, Posterior), f"load gave {type(loaded).__name__}")
        _require(type(loaded) is type(case.base), f"load gave {type(loaded).__name__}")
        _require_identical(_outcome(loaded), case.outcome, "loaded against saved")
        trees = [case.tree, loaded.to_datatree(**_TREE)]
        attributes = [{k: v for k, v in tree.attrs.items() if k != "created_at"} for tree in trees]
        different = [
            name for name in attributes[0] if attributes[0][name] != attributes[1].get(name)
        ]
        _require(
            not different,
            f"tree attributes {different} differ: {[attributes[1].get(n) for n in different]}",
        )
        _require(
            set(trees[0].children) == set(trees[1].children), "the trees have different groups"
        )
        different = [
            name
            for name, node in trees[0].children.items()
            if not node.to_dataset().identical(trees[1][name].to_dataset())
            and not node.to_dataset().equals(trees[1][name].to_dataset())
        ]
        _require(not different, f"tree groups {different} differ")
        case.base.save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        _require_raises((ValueError, OSError), lambda: load(path), "a file cut short")


def _check_checkpoint(case):
    """A run killed in the middle and started again is bitwise the unbroken run."""
    method = case.hurried if hasattr(case.method, "tolerance") else case.method
    unbroken = _outcome(case.fit(method=method))
    write, written = checkpoints.write, []

    def write_and_die(*arguments):
        write(*arguments)
        written.append(arguments)
        raise KeyboardInterrupt

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint"
        try:
            with mock.patch.object(checkpoints, "write", write_and_die):
                case.fit(method=method, checkpoint=path)
        except KeyboardInterrupt:
            pass
        _require(len(written) == 1 and path.exists(), "no checkpoint was written")
        with mock.patch.object(
            checkpoints, "write", lambda *arguments: (written.append(arguments), write(*arguments))
        ):
            resumed = case.fit(method=method, checkpoint=path)
        _require(
            len(written) > 1, "the run has one block only and cannot be cut: register more steps"
        )
        _require_identical(_outcome(resumed), unbroken, "killed and resumed against unbroken")
        again = case.fit(method=method, checkpoint=path)
        _require_identical(_outcome(again), unbroken, "started again after its end")
        _require_raises(
            (ValueError,),
            lambda: case.fit(method=method, data=case.other_data, checkpoint=path),
            "other data",
            "data",
        )
        path.write_bytes(path.read_bytes()[:100])
        _require_raises(
            (ValueError,),
            lambda: case.fit(method=method, checkpoint=path),
            "a checkpoint cut short",
        )


def _check_precision_flag_and_threads(case):
    """JAX's 64-bit flag and the calling thread change nothing, and the flag is left alone."""
    for flag in (False, True):
        with jax.enable_x64(flag):
            _require_identical(_outcome(case.fit()), case.outcome, f"with jax_enable_x64={flag}")
            _require(
                jnp.ones(()).dtype == (jnp.float64 if flag else jnp.float32),
                "the 64-bit flag was changed",
            )
    results = []

    def work():
        try:
            results.append(_outcome(case.fit()))
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if isinstance(results[0], Exception):
        raise results[0]
    _require_identical(results[0], case.outcome, "from a second thread")


def _check_numpy_results(case):
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
    _require(not other, f"no NumPy arrays: {other}")
    single = [
        name for name, array in _named(results) if array.dtype not in (np.float64, np.complex128)
    ]
    _require(not single, f"not in double precision: {single}")
    evidence = case.base.log_evidence
    _require(
        evidence is None or type(evidence) is float, f"log_evidence is a {type(evidence).__name__}"
    )


def _check_single_precision(case):
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
        for name, array in _named({"mean": posterior.mean, "variance": posterior.variance})
        if array.dtype not in (np.float32, np.complex64)
    ]
    _require(not double, f"not in single precision: {double}")
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
        _require(
            bool(np.all(distance <= allowed)),
            f"mean of {site} is {np.max(distance):.3g} from float64's, where the deviation is "
            f"{np.max(deviation):.3g}",
        )


def _check_sample_prior(case):
    """The priors are drawn from in double precision, or refused by name."""
    name_key = as_key(case.key, "a check")
    try:
        parameters, data = case.model.sample_prior(name_key)
    except ValueError as error:
        _require("prior" in str(error), f"the error does not name the prior: {error}")
        return
    _require_identical(
        case.model.sample_prior(name_key), (parameters, data), "the same key a second time"
    )
    _require(
        set(parameters) == set(case.base.mean),
        f"sites {sorted(parameters)} are not the posterior's, {sorted(case.base.mean)}",
    )
    leaves = _named((parameters, data))
    bad = [name for name, array in leaves if not np.all(np.isfinite(array))]
    _require(not bad, f"not finite: {bad}")
    single = [name for name, array in leaves if array.dtype in (np.float32, np.complex64)]
    _require(not single, f"not in double precision: {single}")


def _check_leave_one_out(case):
    """Leave-one-out densities are finite."""
    loo = case.base.loo()
    _require(
        np.isfinite(loo.elpd) and np.isfinite(loo.se), f"elpd {loo.elpd}, standard error {loo.se}"
    )
    _require(np.all(np.isfinite(np.asarray(loo.elpd_i))), "pointwise densities are not finite")
    _require(
        np.isclose(float(np.sum(np.asarray(loo.elpd_i))), float(loo.elpd)),
        "the parts do not sum to the total",
    )


def _check_predict(case):
    """Predictions have the data's shape and named axes; simulated data have their moments."""
    clean, noisy = case.base.predict(), case.base.predict(include_noise=True)
    for prediction in (clean, noisy):
        _require(isinstance(prediction, Prediction), f"predict gave {type(prediction).__name__}")
        _require(
            prediction.mean.shape == prediction.variance.shape, "mean and variance differ in shape"
        )
        _require(len(prediction.dims) == np.ndim(prediction.mean), f"dims {prediction.dims}")
        _require(not np.iscomplexobj(prediction.variance), "the variance is complex")
        _require(
            bool(np.all(np.isfinite(prediction.mean)) and np.all(prediction.variance >= 0)),
            "no finite prediction",
        )
    _require(np.array_equal(clean.mean, noisy.mean), "noise changes the mean")
    _require(bool(np.all(noisy.variance > clean.variance)), "noise does not raise the variance")
    if case.array is not None:
        _require(
            clean.mean.shape == case.array.shape,
            f"shape {clean.mean.shape}, data {case.array.shape}",
        )
    (simulated,) = case.tree["posterior_predictive"].data_vars.values()
    draws = simulated.stack(all=("chain", "draw")).transpose("all", ...).values
    if np.iscomplexobj(noisy.mean):
        draws = draws[..., 0] + 1j * draws[..., 1]
    _require_moments("simulated data", draws, noisy.mean, noisy.variance)


def _check_repr(case):
    """Everything prints as something that names it."""
    for value in (case.model, case.method, case.base):
        _require(type(value).__name__ in repr(value), f"repr of {type(value).__name__}: {value!r}")


def _check_transformations_refused(case):
    """Inside ``jit`` and ``vmap`` a ``TypeError`` names ``infer_batch``."""
    data = jax.tree.map(lambda leaf: np.asarray(leaf)[None], case.data)

    def inside(data):
        return infer(case.model, data, case.method, key=case.key).mean

    _require_raises((TypeError,), lambda: jax.jit(inside)(case.data), "inside jit", "infer_batch")
    _require_raises((TypeError,), lambda: jax.vmap(inside)(data), "inside vmap", "infer_batch")


def _check_batch(case):
    """A batch is the loop over its items; an item that cannot be fitted stops no other."""
    items = [case.data, case.other_data]
    if case.array is not None and np.issubdtype(case.array.dtype, np.inexact):
        items.append(np.full_like(case.array, np.nan))
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *items)
    with case.recorded() as caught:
        batch = infer_batch(case.model, stacked, case.method, key=case.key)
        told = any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    converged = np.asarray(batch.convergence.converged)
    _require(
        batch.batch == len(items) and converged.shape == (len(items),), f"batch of {batch.batch}"
    )
    _require(told or bool(np.all(converged)), "items that did not converge were not warned about")
    if len(items) > 2:
        _require(not converged[2], "an item of NaN is said to have converged")
    for i, single in enumerate((case.base, case.other)):
        for moment in ("mean", "variance"):
            for site, value in getattr(single, moment).items():
                item, value = np.asarray(getattr(batch, moment)[site])[i], np.asarray(value)
                _require(
                    item.shape == value.shape and item.dtype == value.dtype,
                    f"{moment} of {site} has {item.shape}",
                )
                _require(
                    bool(np.all(np.isfinite(item))), f"{moment} of {site} of item {i} is not finite"
                )
                if case.method.random:
                    continue
                scale = np.max(np.abs(value))
                worst = np.max(np.abs(item - value)) / (scale if scale > 0 else 1.0)
                _require(
                    worst <= 1e-10,
                    f"{moment} of {site} of item {i} is {worst:.2g} from its own fit",
                )
        if not case.method.random:
            _require(
                bool(converged[i]) == bool(single.convergence.converged),
                f"item {i} converged differently",
            )
    sample = batch.sample(1, 2)
    wrong = [site for site, draws in sample.items() if draws.shape[:2] != (len(items), 2)]
    _require(not wrong, f"draws of {wrong} do not have the dims batch, draw")
    _require(
        "InferenceData" not in repr(batch) and str(batch.batch) in repr(batch),
        f"repr of the batch: {batch!r}",
    )


def _check_non_convergence_reported(case):
    """What did not converge says so, says why, and warns."""
    with case.recorded() as caught:
        posterior = case.base if case.hurried is case.method else case.fit(method=case.hurried)
        caught = case.base_warnings if case.hurried is case.method else list(caught)
    _require(not posterior.convergence.converged, f"{case.hurried!r} is said to have converged")
    _require(bool(posterior.convergence.reason), "no reason is given")
    told = [warning for warning in caught if issubclass(warning.category, ConvergenceWarning)]
    _require(bool(told), "no ConvergenceWarning")
    _require(
        posterior.convergence.reason in str(told[0].message),
        f"the warning gives no reason: {told[0].message}",
    )
    _require(posterior.convergence.seconds > 0, "no time was measured")
    if case.base.convergence.converged:
        told = [
            warning
            for warning in case.base_warnings
            if issubclass(warning.category, ConvergenceWarning)
        ]
        _require(not told, "a fit that converged was warned about")


def _check_warnings(case):
    """Nothing warns but the package itself, in classes of its own."""
    foreign = {
        f"{warning.category.__name__}: {warning.message}"
        for warning in case.warnings
        if not issubclass(warning.category, BayeskitWarning)
        and "Pareto" not in str(warning.message)
    }
    _require(not foreign, "; ".join(sorted(foreign)))


def _check_arguments_unchanged(case):
    """Model, method and data are as they were before all other checks."""
    now = case._fingerprint()
    changed = [name for name, mark in case.marks.items() if now[name] != mark]
    _require(not changed, f"{', '.join(changed)} changed")


CHECKS = {
    "fits": _check_fits,
    "no_recompilation": _check_no_recompilation,
    "same_key_same_result": _check_same_key_same_result,
    "keys": _check_keys,
    "input_kinds": _check_input_kinds,
    "non_finite_rejected": _check_non_finite_rejected,
    "wrong_input_rejected": _check_wrong_input_rejected,
    "objective_monotone": _check_objective_monotone,
    "tree": _check_tree,
    "moments_match_draws": _check_moments_match_draws,
    "save_and_load": _check_save_and_load,
    "checkpoint": _check_checkpoint,
    "precision_flag_and_threads": _check_precision_flag_and_threads,
    "numpy_results": _check_numpy_results,
    "single_precision": _check_single_precision,
    "sample_prior": _check_sample_prior,
    "leave_one_out": _check_leave_one_out,
    "predict": _check_predict,
    "repr": _check_repr,
    "transformations_refused": _check_transformations_refused,
    "batch": _check_batch,
    "non_convergence_reported": _check_non_convergence_reported,
    "warnings": _check_warnings,
    "arguments_unchanged": _check_arguments_unchanged,
}
"""The checks by name, in the order in which they run; each says in a line what it demands."""
