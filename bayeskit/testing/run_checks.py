"""Checks of runs: input, keys, interruption, batches. Each says in a line what it demands."""

import tempfile
import threading
from pathlib import Path
from unittest import mock

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
from bayeskit.storage import has_functions
from bayeskit.testing.case import (
    DRAWS,
    TREE,
    compilations,
    outcome,
    require,
    require_identical,
    require_raises,
)


def check_no_recompilation(case):
    """Other data of the same shapes and other settings of the method compile nothing."""
    _ = case.outcome, case.base.predict()
    with compilations() as programs:
        other = outcome(case.other)
        case.other.predict()
    require(not programs, f"a second fit of the same shapes compiled {', '.join(programs)}")
    same = all(
        np.array_equal(other["mean"][site], mean) for site, mean in case.outcome["mean"].items()
    )
    require(not same, "other data gave the same means")


def check_same_key_same_result(case):
    """The same key gives bitwise the same result; another key another one if anything is random."""
    require_identical(outcome(case.fit()), case.outcome, "the same key a second time")
    first, second = (case.base.sample(key, DRAWS) for key in (1, 2))
    same = [site for site in first if np.array_equal(first[site], second[site])]
    require(not same, f"draws of {same} do not depend on the key")
    if not case.method.random:
        return
    other = case.fit(key=jax.random.fold_in(as_key(case.key, "a check"), 1))
    if case.method.settings().get("restarts", 1) == 1:
        same = all(np.array_equal(other.mean[site], mean) for site, mean in case.base.mean.items())
        require(not same, "another key gave the same means")


def check_keys(case):
    """A key is asked for where it is needed, and what is none is refused."""
    if case.method.random:
        require_raises(
            (ValueError,),
            lambda: infer(case.model, case.data, case.method, key=None),
            "no key",
            "key",
        )
    for key in ("0", 0.5, True):
        require_raises((TypeError,), lambda key=key: case.fit(key=key), f"key={key!r}", "key")


def check_input_kinds(case):
    """NumPy, JAX and xarray arrays give the same result; names and coordinates reach the tree."""
    with jax.enable_x64(True):
        data = jax.tree.map(
            lambda leaf: jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf, case.data
        )
    require_identical(outcome(case.fit(data=data)), case.outcome, "JAX arrays against NumPy's")
    if case.array is None:
        return
    dims = [f"named_{axis}" for axis in range(case.array.ndim)]
    coords = {
        dim: [f"{dim}:{i}" for i in range(size)]
        for dim, size in zip(dims, case.array.shape, strict=True)
    }
    posterior = case.fit(data=xr.DataArray(case.array, dims=dims, coords=coords))
    require_identical(outcome(posterior), case.outcome, "xarray against NumPy")
    observed = posterior.to_datatree(sites=())["observed_data"]
    missing = [
        dim
        for dim in dims
        if dim not in observed.coords or list(observed.coords[dim].values) != coords[dim]
    ]
    require(
        not missing,
        f"dimensions {missing} of the data or their coordinates are not in observed_data",
    )


def check_non_finite_rejected(case):
    """NaN and infinities raise ``ValueError`` naming the index."""
    for place, array in case.arrays.items():
        for value, pick in ((np.nan, -1), (np.inf, 0)):
            changed = array.copy()
            changed.reshape(-1)[pick] = value
            index = tuple(int(i) for i in np.unravel_index(pick % array.size, array.shape))
            # Of an array of indices beside others the row is named.
            named = index if case.array is not None else index[:1]
            require_raises(
                (ValueError,),
                lambda place=place, changed=changed: case.fit(data=case.with_array(place, changed)),
                f"{value} in the data",
                str(named),
            )


def check_wrong_input_rejected(case):
    """Empty data, wrong ranks and wrong kinds raise ``ValueError`` or ``TypeError``."""
    wrong = [("None", None), ("a string", "data"), ("an object array", np.asarray([object()]))]
    for place, array in case.arrays.items():
        wrong += [
            (what, case.with_array(place, changed))
            for what, changed in (
                ("an empty array", array[:0]),
                ("a scalar", array.reshape(-1)[0]),
                ("two axes too many", array[None, None]),
                ("text", np.full(array.shape, "1.0")),
                ("booleans", np.ones(array.shape, bool)),
            )
        ]
    for what, data in wrong:
        # Not through ``fit``, for which None means "as it is".
        require_raises(
            (ValueError, TypeError),
            lambda data=data: infer(case.model, data, case.method, key=case.key),
            what,
        )


def check_objective_monotone(case):
    """An objective never falls beyond rounding, and has one value an iteration."""
    runs = [("the fit", case.base), ("the fit to other data", case.other)]
    for what, posterior in runs:
        objective = posterior.convergence.objective
        if objective is None:
            continue
        objective = np.asarray(objective)
        count = int(posterior.convergence.iterations)
        require(
            objective.shape == (count,), f"{what}: {objective.shape} values in {count} iterations"
        )
        slack = 1e-9 * (1.0 + np.max(np.abs(objective)))
        falls = np.flatnonzero(np.diff(objective) < -slack)
        require(
            not falls.size,
            f"{what}: falls at iterations {falls[:5].tolist()} by up to "
            f"{-np.min(np.diff(objective), initial=0.0):.3g}",
        )


def check_save_and_load(case):
    """A saved posterior comes back with identical moments, draws and tree."""
    from bayeskit import load

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "posterior.nc"
        case.base.save(path)
        # Files hold no functions of the user's.
        loaded = load(path, case.model if has_functions(case.model) else None)
        left = [entry.name for entry in Path(folder).iterdir() if entry != path]
        require(not left, f"save left {left} behind")
        path.unlink()  # everything was read eagerly
        require(isinstance(loaded, Posterior), f"load gave {type(loaded).__name__}")
        require(type(loaded) is type(case.base), f"load gave {type(loaded).__name__}")
        require_identical(outcome(loaded), case.outcome, "loaded against saved")
        trees = [case.tree, loaded.to_datatree(**TREE)]
        attributes = [{k: v for k, v in tree.attrs.items() if k != "created_at"} for tree in trees]
        different = [
            name for name in attributes[0] if attributes[0][name] != attributes[1].get(name)
        ]
        require(
            not different,
            f"tree attributes {different} differ: {[attributes[1].get(n) for n in different]}",
        )
        require(set(trees[0].children) == set(trees[1].children), "the trees have different groups")
        different = [
            name
            for name, node in trees[0].children.items()
            if not node.to_dataset().identical(trees[1][name].to_dataset())
            and not node.to_dataset().equals(trees[1][name].to_dataset())
        ]
        require(not different, f"tree groups {different} differ")
        case.base.save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        require_raises((ValueError, OSError), lambda: load(path), "a file cut short")


def check_checkpoint(case):
    """A run killed in the middle and started again is bitwise the unbroken run."""
    method = case.hurried if hasattr(case.method, "tolerance") else case.method
    unbroken = outcome(case.fit(method=method))
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
        require(len(written) == 1 and path.exists(), "no checkpoint was written")
        with mock.patch.object(
            checkpoints, "write", lambda *arguments: (written.append(arguments), write(*arguments))
        ):
            resumed = case.fit(method=method, checkpoint=path)
        require(
            len(written) > 1, "the run has one block only and cannot be cut: register more steps"
        )
        require_identical(outcome(resumed), unbroken, "killed and resumed against unbroken")
        again = case.fit(method=method, checkpoint=path)
        require_identical(outcome(again), unbroken, "started again after its end")
        require_raises(
            (ValueError,),
            lambda: case.fit(method=method, data=case.other_data, checkpoint=path),
            "other data",
            "data",
        )
        path.write_bytes(path.read_bytes()[:100])
        require_raises(
            (ValueError,),
            lambda: case.fit(method=method, checkpoint=path),
            "a checkpoint cut short",
        )


def check_precision_flag_and_threads(case):
    """JAX's 64-bit flag and the calling thread change nothing, and the flag is left alone."""
    for flag in (False, True):
        with jax.enable_x64(flag):
            require_identical(outcome(case.fit()), case.outcome, f"with jax_enable_x64={flag}")
            require(
                jnp.ones(()).dtype == (jnp.float64 if flag else jnp.float32),
                "the 64-bit flag was changed",
            )
    results = []

    def work():
        try:
            results.append(outcome(case.fit()))
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if isinstance(results[0], Exception):
        raise results[0]
    require_identical(results[0], case.outcome, "from a second thread")


def check_transformations_refused(case):
    """Inside ``jit``, and ``vmap`` over data, a ``TypeError`` names ``infer_batch``."""
    data = jax.tree.map(lambda leaf: np.asarray(leaf)[None], case.data)

    def inside(data):
        return infer(case.model, data, case.method, key=case.key).mean

    require_raises((TypeError,), lambda: jax.jit(inside)(case.data), "inside jit", "infer_batch")
    if jax.tree.leaves(data):
        require_raises((TypeError,), lambda: jax.vmap(inside)(data), "inside vmap", "infer_batch")


def check_batch(case):
    """A batch is the loop over its items; an item that cannot be fitted stops no other."""
    items = [case.data, case.other_data]
    if case.array is not None and np.issubdtype(case.array.dtype, np.inexact):
        items.append(np.full_like(case.array, np.nan))
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *items)
    with case.recorded() as caught:
        # All at once: one after the other they run the program of a single fit.
        batch = infer_batch(case.model, stacked, case.method, key=case.key, batch_size=len(items))
        told = any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    converged = np.asarray(batch.convergence.converged)
    require(
        batch.batch == len(items) and converged.shape == (len(items),), f"batch of {batch.batch}"
    )
    require(told or bool(np.all(converged)), "items that did not converge were not warned about")
    if len(items) > 2:
        require(not converged[2], "an item of NaN is said to have converged")
    for i, single in enumerate((case.base, case.other)):
        for moment in ("mean", "variance"):
            for site, value in getattr(single, moment).items():
                item, value = np.asarray(getattr(batch, moment)[site])[i], np.asarray(value)
                require(
                    item.shape == value.shape and item.dtype == value.dtype,
                    f"{moment} of {site} has {item.shape}",
                )
                require(
                    bool(np.all(np.isfinite(item))), f"{moment} of {site} of item {i} is not finite"
                )
                if case.method.random:
                    continue
                scale = np.max(np.abs(value))
                worst = np.max(np.abs(item - value)) / (scale if scale > 0 else 1.0)
                require(
                    worst <= 1e-10,
                    f"{moment} of {site} of item {i} is {worst:.2g} from its own fit",
                )
        if not case.method.random:
            require(
                bool(converged[i]) == bool(single.convergence.converged),
                f"item {i} converged differently",
            )
    sample = batch.sample(1, 2)
    wrong = [site for site, draws in sample.items() if draws.shape[:2] != (len(items), 2)]
    require(not wrong, f"draws of {wrong} do not have the dims batch, draw")
    require(
        "InferenceData" not in repr(batch) and str(batch.batch) in repr(batch),
        f"repr of the batch: {batch!r}",
    )


def check_non_convergence_reported(case):
    """What did not converge says so, says why, and warns."""
    with case.recorded() as caught:
        posterior = case.base if case.hurried is case.method else case.fit(method=case.hurried)
        caught = case.base_warnings if case.hurried is case.method else list(caught)
    require(not posterior.convergence.converged, f"{case.hurried!r} is said to have converged")
    require(bool(posterior.convergence.reason), "no reason is given")
    told = [warning for warning in caught if issubclass(warning.category, ConvergenceWarning)]
    require(bool(told), "no ConvergenceWarning")
    require(
        posterior.convergence.reason in str(told[0].message),
        f"the warning gives no reason: {told[0].message}",
    )
    require(posterior.convergence.seconds > 0, "no time was measured")
    if case.base.convergence.converged:
        told = [
            warning
            for warning in case.base_warnings
            if issubclass(warning.category, ConvergenceWarning)
        ]
        require(not told, "a fit that converged was warned about")


def check_warnings(case):
    """Nothing warns but the package itself, in classes of its own."""
    foreign = {
        f"{warning.category.__name__}: {warning.message}"
        for warning in case.warnings
        if not issubclass(warning.category, BayeskitWarning)
        and "Pareto" not in str(warning.message)
    }
    require(not foreign, "; ".join(sorted(foreign)))


def check_arguments_unchanged(case):
    """Model, method and data are as they were before all other checks."""
    now = case._fingerprint()
    changed = [name for name, mark in case.marks.items() if now[name] != mark]
    require(not changed, f"{', '.join(changed)} changed")
