"""One suite of checks that every pair of model and method passes.

The idea is scikit-learn's ``check_estimator``: what users may rely on is written down once, as
code, and each family only registers a small problem. Fits are shared between checks, so that a
pair costs few compilations: one for the problem, one for a batch, one in float32.
"""

import time
from collections.abc import Mapping
from typing import Any

from bayeskit.testing import result_checks, run_checks
from bayeskit.testing.case import Case


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
    Every check runs, whatever the others find. Cost: the method is compiled three times (problem,
    batch of three, float32), and so are draws, predictions and leave-one-out; milliseconds beyond
    that if the problem is as small as it should be. Source of the idea: scikit-learn's
    ``check_estimator``.

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
    case = Case(model, method, data, key)
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


CHECKS = {
    "fits": result_checks.check_fits,
    "no_recompilation": run_checks.check_no_recompilation,
    "same_key_same_result": run_checks.check_same_key_same_result,
    "keys": run_checks.check_keys,
    "input_kinds": run_checks.check_input_kinds,
    "non_finite_rejected": run_checks.check_non_finite_rejected,
    "wrong_input_rejected": run_checks.check_wrong_input_rejected,
    "objective_monotone": run_checks.check_objective_monotone,
    "tree": result_checks.check_tree,
    "moments_match_draws": result_checks.check_moments_match_draws,
    "save_and_load": run_checks.check_save_and_load,
    "checkpoint": run_checks.check_checkpoint,
    "precision_flag_and_threads": run_checks.check_precision_flag_and_threads,
    "numpy_results": result_checks.check_numpy_results,
    "single_precision": result_checks.check_single_precision,
    "sample_prior": result_checks.check_sample_prior,
    "leave_one_out": result_checks.check_leave_one_out,
    "predict": result_checks.check_predict,
    "repr": result_checks.check_repr,
    "transformations_refused": run_checks.check_transformations_refused,
    "batch": run_checks.check_batch,
    "non_convergence_reported": run_checks.check_non_convergence_reported,
    "warnings": run_checks.check_warnings,
    "arguments_unchanged": run_checks.check_arguments_unchanged,
}
"""The checks by name, in the order in which they run; each says in a line what it demands."""
