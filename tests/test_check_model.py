"""Every registered pair of model and method through the common suite, and the suite itself."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bayeskit as bk
from bayeskit.testing import CHECKS, check_model
from tests.registered import REGISTERED


def _pairs():
    for problem in REGISTERED:
        for method in problem.methods:
            marks = [pytest.mark.full] if problem.full else []
            yield pytest.param(
                problem, method, id=f"{problem.name}-{type(method).__name__}", marks=marks
            )


@pytest.mark.parametrize(("problem", "method"), _pairs())
def test_pair(problem, method):
    expected_failed = problem.expected_failed.get(type(method).__name__)
    seconds = check_model(
        problem.model, method, problem.data, key=0, expected_failed=expected_failed
    )
    assert list(seconds) == list(CHECKS)
