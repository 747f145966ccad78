"""Every registered pair of model and method through the common suite, and the suite itself."""

import jax
import numpy as np
import pytest

import bayeskit as bk
from bayeskit.models.kronecker_sbl.approximation import Conditional
from bayeskit.testing import CHECKS, check_model, checks
from bayeskit.testing.case import compilations
from tests.registered import REGISTERED


def _pairs():
    for problem in REGISTERED:
        for method in problem.methods:
            marks = [pytest.mark.full] if problem.full else []
            name = f"{problem.name}-{type(method).__name__}"
            yield pytest.param(problem, method, id=name, marks=marks)


@pytest.mark.parametrize(("problem", "method"), tuple(_pairs()))
def test_pair(problem, method):
    expected_failed = problem.expected_failed.get(type(method).__name__)
    with compilations() as programs:
        seconds = check_model(
            problem.model, method, problem.data, key=0, expected_failed=expected_failed
        )
    assert list(seconds) == list(CHECKS)
    # The algorithm itself: for the problem, in float32, for a batch, and once to spare.
    algorithm = [name for name in programs if "_advance" in name or "_run_batch" in name]
    assert 1 <= len(algorithm) <= 4


class WrongVariance(Conditional):
    """States twice the variance that it draws with."""

    def moments(self, model, data):
        mean, variance = super().moments(model, data)
        return mean, {site: 2 * value for site, value in variance.items()}


class WrongSBL(bk.models.KroneckerSBL):
    """Wrong variances, and an argument written into."""

    def sample_prior(self, key):
        self.dictionaries[0].flags.writeable = True
        self.dictionaries[0][0, 0] += 1e-9
        return super().sample_prior(key)

    def em_finish(self, data, parameters):
        approximation, *rest = super().em_finish(data, parameters)
        return WrongVariance(approximation.scales, approximation.noise_variance), *rest


def test_failures_are_found_collected_and_named(monkeypatch):
    some = ("fits", "keys", "sample_prior", "moments_match_draws", "arguments_unchanged")
    monkeypatch.setattr(checks, "CHECKS", {name: CHECKS[name] for name in some})
    problem = REGISTERED[0]
    model = WrongSBL(problem.model.dictionaries, scale_prior=problem.model.scale_prior)
    expected_failed = {"keys": "a control", "arguments_unchanged": "known to write"}
    with pytest.raises(AssertionError) as caught:
        check_model(model, bk.inference.EM(), problem.data, 0, expected_failed=expected_failed)
    message = str(caught.value)
    assert "2 of 5 checks failed" in message
    assert "moments_match_draws: variances of coefficients" in message
    assert "keys: passed, but was expected to fail (a control)" in message


def test_expected_failures_need_a_check_and_a_reason():
    problem = REGISTERED[0]
    for expected_failed, text in (
        ({"no such check": "why"}, "no such check"),
        ({"fits": " "}, "reason"),
    ):
        with pytest.raises(ValueError, match=text):
            check_model(
                problem.model, bk.inference.EM(), problem.data, 0, expected_failed=expected_failed
            )


def test_problems_are_double_precision_and_named_once():
    names = [problem.name for problem in REGISTERED]
    assert len(set(names)) == len(names)
    for problem in REGISTERED:
        kinds = {np.asarray(leaf).dtype for leaf in jax.tree.leaves(problem.data)}
        assert kinds <= {np.dtype(kind) for kind in (np.float64, np.complex128, np.int64)}
