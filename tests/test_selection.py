"""Comparing models: what the table says is what the fits say, and the true model wins."""

import jax
import numpy as np
import numpyro.distributions as dist
import pytest

import bayeskit as bk
from tests.registered import kronecker_problem

PRIORS = {
    "scale_prior": dist.InverseGamma(3.0, 2.0),
    "noise_prior": dist.InverseGamma(3.0, 0.02),
}


@pytest.fixture(scope="module")
def problem():
    dictionaries, data = kronecker_problem((5, 6), (3, 4))
    wrong, _ = kronecker_problem((5, 6), (3, 4), seed=1)
    models = {
        "true": bk.models.KroneckerSBL(dictionaries, **PRIORS),
        "wrong": bk.models.KroneckerSBL(wrong, **PRIORS),
    }
    return models, data


@pytest.mark.parametrize(
    "method",
    [
        bk.inference.EM(),
        bk.inference.MCMC(num_warmup=150, num_samples=150, num_chains=2),
    ],
    ids=["EM", "MCMC"],
)
@pytest.mark.filterwarnings("ignore:.*did not converge", "ignore:Estimated shape parameter")
def test_the_model_that_made_the_data_is_best(problem, method):
    models, data = problem
    selection = bk.select(models, data, method, key=3)
    table = selection.table
    assert list(table.index) == ["true", "wrong"]
    assert table.loc["true", "elpd_diff"] == table.loc["true", "dse"] == 0.0
    assert table.loc["wrong", "elpd_diff"] > 2 * table.loc["wrong", "dse"] > 0
    loos = {name: fit.loo() for name, fit in selection.posteriors.items()}
    for name, fit in selection.posteriors.items():
        assert table.loc[name, "elpd_loo"] == pytest.approx(float(loos[name].elpd), rel=1e-12)
        evidence = np.nan if fit.log_evidence is None else fit.log_evidence
        np.testing.assert_equal(table.loc[name, "log_evidence"], evidence)
        assert table.loc[name, "converged"] == fit.convergence.converged
    gain = float(loos["true"].elpd) - float(loos["wrong"].elpd)
    assert table.loc["wrong", "elpd_diff"] == pytest.approx(gain, rel=1e-10)
    with jax.enable_x64(True):
        key = jax.random.split(jax.random.key(3), 2)[0]
    alone = bk.infer(models["true"], data, method, key=key)
    np.testing.assert_array_equal(
        alone.mean["coefficients"], selection.posteriors["true"].mean["coefficients"]
    )


def test_no_models_and_batches_are_refused(problem):
    models, data = problem
    with pytest.raises(ValueError, match="models is empty"):
        bk.select({}, data)
    batch = bk.infer_batch(models["true"], data[None])
    with pytest.raises(TypeError, match="loo is for one data set"):
        batch.loo()
