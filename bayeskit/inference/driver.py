"""The two drivers: blocks from Python (:func:`infer`), and whole fits mapped over data sets."""

import contextlib
import inspect
import time
import warnings
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bayeskit.errors import ConditioningWarning, ConvergenceWarning
from bayeskit.inference import checkpoint as checkpoints
from bayeskit.inference.ascent import EM, MaximumAPosteriori, MessagePassing
from bayeskit.inference.base import AbstractMethod, advance, as_leaves, run_compiled, start
from bayeskit.inference.mcmc import MCMC
from bayeskit.inference.semidefinite import SemidefiniteProgram
from bayeskit.inference.variational import VariationalInference
from bayeskit.models.base import AbstractModel, SupportsUpdate
from bayeskit.posterior import Posterior
from bayeskit.precision import as_key, double_precision, refuse_transformation
from bayeskit.results import Convergence
from bayeskit.validation import check_integer, owned

METHODS = (
    EM,
    MessagePassing,
    MCMC,
    MaximumAPosteriori,
    SemidefiniteProgram,
    VariationalInference,
)
_BLOCK = 50


def infer(
    model, data, method=None, *, key=None, initial=None, progress=False, checkpoint=None
) -> Posterior:
    """Fit a model to data.

    Parameters
    ----------
    model : AbstractModel
        What is believed, for example :class:`bayeskit.models.KroneckerSBL`.
    data
        What was observed; its form is the model's.
    method : AbstractMethod, optional
        How the posterior is computed; the model's documented default if ``None``.
    key : int or JAX key, optional
        Needed where something is random (several restarts, sampling).
    initial : Posterior, optional
        A posterior of the same kind of model to start from.
    progress : bool
        Whether to show a progress bar.
    checkpoint : path, optional
        A file that is written after every block of steps. Started again with it, a run that was
        killed at any moment gives the bitwise identical posterior.

    Returns
    -------
    Posterior

    Raises
    ------
    TypeError
        If the method does not support the model, or inside a JAX transformation.
    ValueError
        If the data do not fit the model, or the checkpoint is of another run.
    FloatingPointError
        If the computation broke down to a non-finite result.

    Warns
    -----
    ConvergenceWarning
        If the method stopped before its criterion was met; ``posterior.convergence`` says why.

    Examples
    --------
    >>> import bayeskit as bk
    >>> problem = bk.datasets.kronecker_sparse(0)
    >>> model = bk.models.KroneckerSBL(problem.dictionaries)
    >>> bk.infer(model, problem.measurements).mean["coefficients"].shape
    (15, 15, 15)
    """
    method = _check_arguments("infer", model, data, method)
    if checkpoint is not None:
        checkpoints.check_path(checkpoint)
    model, data = owned(model), data if model.leaves_in_place(data) else owned(data)
    with double_precision():
        key_used, key = _key_for(method, key)
        prepared = model.prepare(data)
        method.check_data(prepared.model, prepared.data)
        start_values = _start_values(initial, prepared)
        begun = time.perf_counter()
        fit, records, counts = _run_blocks(
            method, prepared, key, start_values, progress, checkpoint
        )
        fields, trace = method.report(fit, records, counts)
        seconds = time.perf_counter() - begun
        if not bool(fit.finite):
            raise FloatingPointError(
                f"{type(method).__name__} on {type(model).__name__} broke down: {fields['reason']} "
                f"after {fields['iterations']} iterations; check the scales of data and priors"
            )
    for caveat in method.caveats(jax.tree.map(np.asarray, fit), prepared.model):
        warnings.warn(caveat, ConditioningWarning, stacklevel=2)
    convergence = Convergence(**fields, seconds=seconds)
    if not convergence.converged:
        warnings.warn(
            f"{type(method).__name__} did not converge: {convergence.reason}",
            ConvergenceWarning,
            stacklevel=2,
        )
    log_evidence = float(fit.log_evidence)
    return model.posterior_class(
        model=model,
        data=data,
        method=method,
        approximation=fit.approximation,
        prepared=prepared,
        log_evidence=None if np.isnan(log_evidence) else log_evidence,
        convergence=convergence,
        trace=trace,
        key=key_used,
        batch=None,
    )


def infer_batch(model, data, method=None, *, key=None, batch_size=None) -> Posterior:
    """Fit a model to many data sets of one shape in one compilation.

    Parameters
    ----------
    model, method, key
        As for :func:`infer`; every data set gets a key of its own.
    data
        Data sets stacked on axis 0.
    batch_size : int, optional
        How many are computed at a time; all one after the other by default on a CPU, which is as
        fast there and needs least memory, all together elsewhere.

    Returns
    -------
    Posterior
        With a leading axis ``batch``; ``convergence`` has one entry a data set. A data set that
        cannot be fitted stops no other: its entries are NaN, not converged, and warned about.

    Raises
    ------
    TypeError
        If the method does not support the model, ``batch_size`` is no integer, or inside a JAX
        transformation.
    ValueError
        If the data do not fit the model, all of them are outside the range of their precision,
        ``batch_size`` is below one, or a key is needed.

    Warns
    -----
    ConvergenceWarning
        If the method stopped before its criterion was met, saying for which data sets.
    ConditioningWarning
        If some data sets cannot be fitted, or their fits deserve no trust, saying which.

    Examples
    --------
    >>> import numpy as np
    >>> import bayeskit as bk
    >>> problem = bk.datasets.kronecker_sparse(0, shape=(4, 5), atoms=(6, 6), nonzeros=(2, 2))
    >>> model = bk.models.KroneckerSBL(problem.dictionaries)
    >>> stacked = np.stack([problem.measurements, 2 * problem.measurements])
    >>> bk.infer_batch(model, stacked).mean["coefficients"].shape
    (2, 6, 6)
    """
    method = _check_arguments("infer_batch", model, data, method)
    if batch_size is not None:
        check_integer("batch_size", batch_size, 1)
    with double_precision():
        key_used, key = _key_for(method, key)
        model, data = owned((model, data))
        prepared = model.prepare(data, batch=True)
        method.check_data(prepared.model, prepared.data)
        count = jax.tree.leaves(prepared.data)[0].shape[0]
        keys = jax.random.split(key, count)
        if batch_size is None:
            batch_size = 1 if jax.default_backend() == "cpu" else count
        begun = time.perf_counter()
        results = _run_batch(
            as_leaves(method),
            prepared.model,
            prepared.data,
            keys,
            method.length,
            int(min(batch_size, count)),
        )
        results = jax.block_until_ready(results)
        seconds = time.perf_counter() - begun
        convergence, trace, log_evidence = _collect(method, results, count, seconds)
    caveats = _caveats_of_batch(method, results[0], prepared.model)
    if caveats:
        warnings.warn(
            f"{len(caveats)} of {count} data sets ({_listed(list(caveats))}): "
            f"{next(iter(caveats.values()))[0]}",
            ConditioningWarning,
            stacklevel=2,
        )
    bad = np.flatnonzero(~np.asarray(convergence.converged))
    if bad.size:
        warnings.warn(
            f"{bad.size} of {count} data sets did not converge: {_listed(bad)} "
            f"({convergence.reason[bad[0]]})",
            ConvergenceWarning,
            stacklevel=2,
        )
    return model.posterior_class(
        model=model,
        data=data,
        method=method,
        approximation=results[0].approximation,
        prepared=prepared,
        log_evidence=None if np.all(np.isnan(log_evidence)) else log_evidence,
        convergence=convergence,
        trace=trace,
        key=key_used,
        batch=count,
    )


def _start_values(initial, prepared):
    """What an earlier posterior tells the start, if it fits the model."""
    if initial is None:
        return None
    model = prepared.model
    if not isinstance(initial, Posterior):
        raise TypeError(f"initial must be a Posterior, got {type(initial).__name__}")
    if type(initial.model) is not type(model):
        raise ValueError(
            f"initial is of {type(initial.model).__name__}, the model is {type(model).__name__}"
        )
    if initial.batch is not None:
        raise ValueError("initial is the posterior of a batch; one of a single data set is needed")
    return model.start_from(initial, prepared.data, prepared.labels)


def update(posterior, new_data, *, key=None, progress=False) -> Posterior:
    """Go on from a posterior with more data.

    Parameters
    ----------
    posterior : Posterior
        Of a single data set, by any method; its model, data and method are kept.
    new_data
        More of what the model was fitted to: further rows of a table, further snapshots.
    key : int or JAX key, optional
        As for :func:`infer`.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    Posterior
        Given all data together: what a new fit to them finds, up to the method's tolerance (and to
        which of several maxima is nearest), started where the earlier one ended.

    Raises
    ------
    TypeError
        If the family cannot go on, or the posterior is of a batch; if ``new_data`` are of another
        kind than the data so far.
    ValueError
        If ``new_data`` are empty, or nothing that the model could be fitted to.

    Notes
    -----
    All data are kept, so that nothing is approximated twice: a sweep costs what one of a new fit
    costs, and few are needed.

    Examples
    --------
    >>> import numpy as np
    >>> import bayeskit as bk
    >>> generator = np.random.default_rng(0)
    >>> indices = generator.uniform(size=(200, 2))
    >>> values = np.sin(6 * indices[:, 0]) * np.cos(4 * indices[:, 1])
    >>> model = bk.models.FunctionalTucker(["x", "z"], ranks=1)
    >>> first = bk.infer(model, (indices[:150], values[:150]))
    >>> bk.update(first, (indices[150:], values[150:])).predict().mean.shape
    (200,)
    """
    if not isinstance(posterior, Posterior):
        raise TypeError(f"posterior must be a Posterior, got {type(posterior).__name__}")
    if posterior.batch is not None:
        raise TypeError("update is for one data set; index the batch's data and fit it alone")
    model = posterior.model.with_estimates(None)
    if not isinstance(model, SupportsUpdate):
        raise TypeError(f"{type(model).__name__} cannot be updated: fit all data together by infer")
    data = model.joined(posterior.data, new_data)
    return infer(model, data, posterior.method, key=key, initial=posterior, progress=progress)


def _caveats_of_batch(method, fits, model):
    """Caveats by data set, where there are any; what could not be fitted has none."""
    fits = jax.tree.map(np.asarray, fits)
    found = {}
    for i in np.flatnonzero(fits.finite):
        caveats = method.caveats(jax.tree.map(lambda leaf: leaf[i], fits), model)  # noqa: B023
        if caveats:
            found[i] = caveats
    return found


def _listed(items):
    return ", ".join(str(i) for i in items[:10]) + (", …" if len(items) > 10 else "")


def check_pair(model, method) -> None:
    """Raise ``TypeError`` naming the methods which the model supports, if this is not one."""
    if not isinstance(model, method.needs):
        supported = [cls.__name__ for cls in METHODS if isinstance(model, _needs(cls))]
        raise TypeError(
            f"{type(model).__name__} does not support {type(method).__name__}; "
            f"it supports {', '.join(supported)}"
        )
    method.check(model)


def _needs(method_class):
    return inspect.getattr_static(method_class, "needs").fget(None)


def _check_arguments(name, model, data, method):
    refuse_transformation(name, model, data, method)
    return checked_method(model, method)


def checked_method(model, method):
    """The method, or the model's own by default, if the two are what they should be and match."""
    if not isinstance(model, AbstractModel):
        raise TypeError(f"model must be a bayeskit model, got {type(model).__name__}")
    method = model.default_method if method is None else method
    if not isinstance(method, AbstractMethod):
        hint = "; did you forget the parentheses?" if isinstance(method, type) else ""
        raise TypeError(f"method must be a bayeskit method such as EM(), got {method!r}{hint}")
    check_pair(model, method)
    return method


def _key_for(method, key):
    """The key's numbers for the record (``None`` if nothing is random), and a key to run with."""
    if key is None and not method.random:
        return None, jax.random.key(0)
    key = as_key(key, f"{method!r} is random")
    return np.asarray(jax.random.key_data(key)), key


@eqx.filter_jit
def _start(method, model, data, key, initial):
    return start(method, model, data, key, initial)


@eqx.filter_jit
def _advance(method, model, data, states, size, limit):
    return advance(method, model, data, states, size, limit)


@eqx.filter_jit
def _finish(method, model, data, states, records):
    return method.finish(model, data, states, records)


@eqx.filter_jit
def _run_batch(method, model, data, keys, length, batch_size):
    return jax.lax.map(
        lambda item: run_compiled(method, model, item[0], item[1], length),
        (data, keys),
        batch_size=None if batch_size == 1 else batch_size,
    )


def _run_blocks(method, prepared, key, initial, progress, checkpoint):
    """Advance compiled blocks of steps; between them, Python can see and save everything."""
    model, data = prepared.model, prepared.data
    traced = as_leaves(method)
    size = _block_size(method)
    states = _start(traced, model, data, key, initial)
    records, counts, total = None, np.zeros(method.lanes, int), 0
    marks = None
    if checkpoint is not None:
        marks = checkpoints.fingerprint(model=model, method=traced, data=data, key=(key, initial))
        if Path(checkpoint).exists():
            shapes = eqx.filter_eval_shape(
                _advance, traced, model, data, states, size, jnp.asarray(size)
            )[1]
            states, records, counts, total = checkpoints.read(checkpoint, marks, states, shapes)
            records = jax.tree.map(np.asarray, records)
    with _progress_bar(progress, method, total) as show:
        finished = checkpoint is not None and total > 0 and _all_done(method, states)
        while total < method.length and not finished:
            limit = min(size, method.length - total)
            states, block, made, done = _advance(
                traced, model, data, states, size, jnp.asarray(limit)
            )
            kept = jax.tree.map(lambda leaf: np.asarray(leaf)[:, :limit], block)  # noqa: B023
            records = (
                kept
                if records is None
                else jax.tree.map(lambda a, b: np.concatenate([a, b], 1), records, kept)
            )
            counts = counts + np.minimum(np.asarray(made), limit)
            total += limit
            finished = bool(np.all(np.asarray(done)))
            show(total, records)
            if checkpoint is not None:
                checkpoints.write(checkpoint, marks, states, records, counts, total)
    needed = jax.tree.map(jnp.asarray, records) if method.fixed_length else None
    fit = _finish(traced, model, data, states, needed)
    return fit, records, counts


def _block_size(method):
    """Steps in a block: the same for every budget, unless all steps are made, in equal parts."""
    if not method.fixed_length:
        return _BLOCK
    blocks = -(-method.length // _BLOCK)
    return -(-method.length // blocks)


def _all_done(method, states):
    return bool(np.all(np.asarray(jax.vmap(method.done)(states))))


@contextlib.contextmanager
def _progress_bar(progress, method, total):
    if not progress:
        yield lambda made, records: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as bar:
        task = bar.add_task(type(method).__name__, total=method.length, completed=total)

        def show(made, records):
            text = type(method).__name__
            if hasattr(records, "objective"):
                text = f"{text} objective {np.nanmax(records.objective[:, -1]):.6g}"
            bar.update(task, completed=made, description=text)

        yield show


def _collect(method, results, count, seconds):
    """Convergence and traces of a batch from its stacked results."""
    results = jax.tree.map(np.asarray, results)
    reports = []
    for i in range(count):
        reports.append(method.report(*jax.tree.map(lambda leaf: leaf[i], results)))  # noqa: B023
    fields = {name: [report[0][name] for report in reports] for name in reports[0][0]}
    objective = None
    if fields["objective"][0] is not None:
        objective = _pad(fields["objective"])
    extras = {
        name: np.asarray(fields[name])
        for name in ("max_rhat", "min_ess", "divergences")
        if name in fields
    }
    convergence = Convergence(
        converged=np.asarray(fields["converged"]),
        iterations=np.asarray(fields["iterations"]),
        objective=objective,
        reason=tuple(fields["reason"]),
        seconds=seconds,
        **extras,
    )
    trace = {
        group: {
            name: _pad([report[1][group][name] for report in reports])
            for name in reports[0][1][group]
        }
        for group in ("optimization", "sample_stats")
        if group in reports[0][1]
    }
    return convergence, trace, np.asarray(results[0].log_evidence)


def _pad(arrays):
    """Stack arrays of different lengths on axis 0, NaN after the end of the shorter ones."""
    length = max(array.shape[0] for array in arrays)
    if all(array.shape[0] == length for array in arrays):
        return np.stack(arrays)
    return np.stack(
        [
            np.pad(np.asarray(array, float), (0, length - array.shape[0]), constant_values=np.nan)
            for array in arrays
        ]
    )
