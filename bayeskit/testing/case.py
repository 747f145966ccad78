"""One pair of model and method with its data: fits that checks share, and ways to demand."""

import contextlib
import functools
import warnings

import equinox as eqx
import jax
import jax.monitoring
import numpy as np

from bayeskit.inference import checkpoint as checkpoints
from bayeskit.inference.driver import infer

DRAWS = 1000
TREE = {"num_draws": DRAWS, "posterior_predictive": True}
_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


class Case:
    """One pair with its data, and the fits that checks share."""

    def __init__(self, model, method, data, key):
        self.given = (model, data)
        # Everything runs on read-only copies: whoever writes into an argument fails at once.
        self.model, self.data = jax.tree.map(read_only, (model, data))
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
        return outcome(self.base)

    @functools.cached_property
    def tree(self):
        """The result tree, with simulated data."""
        return self.base.to_datatree(**TREE)

    @functools.cached_property
    def other_data(self):
        """Data of the same shape with other numbers: every one changed by up to a tenth."""
        generator = np.random.default_rng(0)

        def change(leaf):
            if not isinstance(leaf, np.ndarray) or not np.issubdtype(leaf.dtype, np.inexact):
                return leaf
            return read_only((leaf * generator.uniform(0.9, 1.1, leaf.shape)).astype(leaf.dtype))

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

    @property
    def arrays(self):
        """Arrays of real or complex numbers by their place in the data: one array, or a tuple."""
        leaves = jax.tree.leaves(self.data) if isinstance(self.data, tuple) else [self.data]
        return {
            place: leaf
            for place, leaf in enumerate(leaves)
            if isinstance(leaf, np.ndarray) and np.issubdtype(leaf.dtype, np.inexact)
        }

    def with_array(self, place, array):
        """The data with another array in one of those places."""
        leaves, structure = jax.tree.flatten(self.data)
        return jax.tree.unflatten(structure, [*leaves[:place], array, *leaves[place + 1 :]])


def read_only(leaf):
    """Copy an array so that writing into it fails."""
    if not isinstance(leaf, np.ndarray):
        return leaf
    leaf = leaf.copy()
    leaf.flags.writeable = False
    return leaf


def outcome(posterior):
    """Moments, draws, evidence and objective of a posterior as one tree of arrays."""
    return {
        "mean": posterior.mean,
        "variance": posterior.variance,
        "draws": posterior.sample(1, DRAWS),
        "log_evidence": np.asarray(
            np.nan if posterior.log_evidence is None else posterior.log_evidence
        ),
        "objective": np.asarray(
            () if posterior.convergence.objective is None else posterior.convergence.objective
        ),
        "iterations": np.asarray(posterior.convergence.iterations),
    }


def named(tree):
    """Pairs of name and array for all leaves."""
    return [
        (jax.tree_util.keystr(path), np.asarray(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def require(condition, message):
    """Fail with a message unless a condition holds."""
    if not condition:
        raise AssertionError(message)


def require_identical(tree, reference, what):
    """Fail unless two trees are bitwise equal."""
    require(
        jax.tree.structure(tree) == jax.tree.structure(reference),
        f"{what}: the results have different parts",
    )
    different = [
        name
        for (name, array), (_, expected) in zip(named(tree), named(reference), strict=True)
        if array.dtype != expected.dtype
        or array.shape != expected.shape
        or array.tobytes() != expected.tobytes()
    ]
    require(not different, f"{what}: {', '.join(different)} differ")


def require_raises(kinds, action, what, *texts):
    """Fail unless an action raises one of the kinds, with all texts in its message."""
    try:
        action()
    except kinds as error:
        missing = [text for text in texts if text not in str(error)]
        require(not missing, f"{what}: the error does not mention {missing}: {error}")
        return
    except Exception as error:
        names = " or ".join(kind.__name__ for kind in kinds)
        raise AssertionError(
            f"{what}: {type(error).__name__} instead of {names}: {error}"
        ) from error
    raise AssertionError(f"{what}: accepted")


@contextlib.contextmanager
def compilations():
    """A list that gets the name of every program that JAX compiles."""
    programs = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == _COMPILE_EVENT:
            programs.append(str(kwargs.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield programs
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
