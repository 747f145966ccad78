"""Going on with more data gives what a new fit to all of them gives."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from gpjax.kernels import Matern32

import bayeskit as bk
from bayeskit.inference import EM, MCMC, MessagePassing
from bayeskit.models import FunctionalTucker, KroneckerSBL, Mode


@pytest.fixture(scope="module")
def days():
    """A function of time seen at five stations, day after day."""
    generator = np.random.default_rng(0)
    time, station = np.sort(generator.uniform(0, 10, 400)), generator.integers(0, 5, 400)
    loadings = generator.normal(size=5)
    values = 3 + 2 * np.sin(1.7 * time) * loadings[station] + 0.1 * generator.normal(size=400)
    return pd.DataFrame({"time": time, "station": [f"s{i}" for i in station], "value": values})


def steps_to(posterior, nats):
    """Number of steps after which the bound is as near to its end."""
    objective = posterior.convergence.objective
    return int(np.argmax(objective > objective[-1] - nats))


MODES = (Mode("time", kernel=Matern32(lengthscale=2.0)), Mode("station", categorical=True))


@pytest.mark.parametrize(
    "method",
    [
        MessagePassing(tolerance=1e-7, max_iterations=5000),
        pytest.param(EM(tolerance=1e-7, max_iterations=5000), marks=pytest.mark.full),
    ],
    ids=["MessagePassing", "EM"],
)
def test_a_stream_of_days_agrees_with_a_refit(days, method):
    model = FunctionalTucker(MODES, ranks=1, core="cp")
    posterior = bk.infer(model, days[:330], method)
    posterior = bk.update(posterior, days[330:])
    refit = bk.infer(model, days, method)
    steps = [steps_to(fit, 0.01) for fit in (posterior, refit)]
    assert steps[0] < steps[1]
    assert list(posterior.data["station"]) == list(days["station"])
    ours, theirs = posterior.predict(), refit.predict()
    deviation = np.sqrt(theirs.variance)
    assert np.max(np.abs(ours.mean - theirs.mean) / deviation) < 0.02
    np.testing.assert_allclose(np.sqrt(ours.variance), deviation, rtol=0.02)
    noise = [fit.mean["noise_variance"] for fit in (posterior, refit)]
    spread = np.sqrt(refit.variance["noise_variance"])
    assert abs(noise[0] - noise[1]) < 0.02 * spread


@pytest.mark.full
@pytest.mark.parametrize("seed", [0, 2])
def test_learned_kernels_agree_with_a_refit(seed):
    """Half of the rows, then all.

    By the default tolerance, of six seeds: predictions 0.01, noise 0.001, offset 0.09 deviations.
    """
    generator = np.random.default_rng(seed)
    places = generator.uniform(size=(150, 2)) * [2.0, 1.0]
    places = places[np.argsort(places[:, 0])]
    values = 3 + 5 * np.sin(4 * places[:, 0]) * (1 + places[:, 1])
    values = values + 0.2 * generator.normal(size=150)
    model = FunctionalTucker(["a", "b"], ranks=2)
    method = EM(tolerance=1e-7, max_iterations=3000)
    half = bk.infer(model, (places[:75], values[:75]), method)
    posterior = bk.update(half, (places[75:], values[75:]))
    refit = bk.infer(model, (places, values), method)
    ours, theirs = posterior.predict(), refit.predict()
    assert np.max(np.abs(ours.mean - theirs.mean) / np.sqrt(theirs.variance)) < 0.02
    np.testing.assert_allclose(np.sqrt(ours.variance / theirs.variance), 1.0, atol=0.02)
    for name in ("noise_variance", "offset"):
        apart = abs(posterior.mean[name] - refit.mean[name])
        assert apart < 0.02 * np.sqrt(refit.variance[name])
    assert abs(posterior.log_evidence - refit.log_evidence) < 0.05
    # A default fit is there too; sweeps without leaps are 0.4 nats below after 100 steps.
    default = bk.infer(model, (places, values))
    with pytest.warns(bk.ConvergenceWarning):
        longer = bk.infer(model, (places, values), EM(tolerance=0.0, max_iterations=500))
    objective = longer.convergence.objective
    assert np.min(np.diff(objective)) > -1e-9 * np.max(np.abs(objective))
    assert default.convergence.converged
    assert default.convergence.iterations < 300
    assert default.convergence.objective[-1] > objective[-1] - 0.05


def test_snapshots_are_added():
    generator = np.random.default_rng(1)
    dictionaries = [generator.normal(size=(4, 6)), generator.normal(size=(5, 6))]
    scales = np.outer([1, 0, 0, 1, 0, 0], [0, 1, 1, 0, 0, 0.0])
    coefficients = np.sqrt(scales) * generator.normal(size=(3, 6, 6))
    data = np.einsum("ai,bj,sij->sab", *dictionaries, coefficients)
    data = data + 0.05 * generator.normal(size=data.shape)
    model, method = KroneckerSBL(dictionaries), EM(tolerance=1e-7, max_iterations=5000)
    refit = bk.infer(model, data, method)
    one_by_one = bk.infer(model, data[0], method)
    for more in (data[1], data[2:]):
        one_by_one = bk.update(one_by_one, more)
    deviation = np.sqrt(refit.variance["coefficients"])
    error = np.abs(one_by_one.mean["coefficients"] - refit.mean["coefficients"])
    assert np.max(error / deviation) < 0.02
    named = bk.infer(model, xr.DataArray(data[:2], dims=("day", "row", "column")), method)
    with_names = bk.update(named, xr.DataArray(data[2:], dims=("day", "row", "column")))
    assert with_names.names.dims["coefficients"][0] == "day"
    np.testing.assert_array_equal(with_names.data.values, data)
    with pytest.raises(TypeError, match="new_data must be a DataArray"):
        bk.update(named, data[2:])


def test_what_cannot_be_updated_is_refused(days):
    model = FunctionalTucker(MODES, ranks=2, core="cp")
    posterior = bk.infer(model, days[:100], EM(max_iterations=5, tolerance=1.0))
    with pytest.raises(TypeError, match="posterior must be a Posterior"):
        bk.update(model, days)
    with pytest.raises(ValueError, match="no column"):
        bk.update(posterior, days[["time", "value"]])
    with pytest.raises(ValueError, match="empty"):
        bk.update(posterior, days[:0])
    with pytest.raises(ValueError, match=r"values has 1 non-finite"):
        bk.update(posterior, days[:2].assign(value=[1.0, np.nan]))
    with pytest.raises(TypeError, match="got NoneType"):
        bk.update(posterior, None)
    other = days.assign(time=pd.to_datetime(days["time"], unit="D"))
    with pytest.raises(TypeError, match=r"index 'time' has datetime64.* so far have float64"):
        bk.update(posterior, other)
    wider = FunctionalTucker(MODES, ranks=3, core="cp")
    with pytest.raises(ValueError, match=r"initial has the ranks \(2, 2\), the model \(3, 3\)"):
        bk.infer(wider, days[:100], initial=posterior)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:.*did not converge")
def test_a_mode_that_is_added_to_an_earlier_fit_starts_constant(days):
    plain = FunctionalTucker(MODES, ranks=2, core="tucker")
    earlier = bk.infer(plain, days, EM(max_iterations=100))
    noise = Mode("noise", kernel=Matern32(lengthscale=0.3, variance=1e-6))
    with_noise = days.assign(noise=np.random.default_rng(0).uniform(size=len(days)))
    model = FunctionalTucker([noise, *MODES], ranks=(1, 2, 2), core="tucker")
    method = EM(max_iterations=1)
    added = bk.infer(model, with_noise, method, initial=earlier).predict()
    continued = bk.infer(plain, days, method, initial=earlier).predict()
    change = (added.mean - continued.mean) / np.sqrt(continued.variance)
    assert np.sqrt(np.mean(change**2)) < 0.02  # 0.0015; from random functions 0.16
    wide = FunctionalTucker([noise, *MODES], ranks=2, core="tucker")
    with pytest.raises(ValueError, match=r"modes that are new have rank 1, got \{'noise': 2\}"):
        bk.infer(wide, with_noise, initial=earlier)
    other = FunctionalTucker([MODES[0], noise], ranks=2, core="cp")
    with pytest.raises(ValueError, match=r"initial has the names of modes \['time', 'station'\]"):
        bk.infer(other, with_noise, initial=earlier)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:.*did not converge")
def test_chains_start_from_kernels_and_noise_of_an_earlier_posterior(days):
    model = FunctionalTucker(MODES, ranks=1, core="cp")
    posterior = bk.infer(model, days[:60], EM(max_iterations=300))
    short = MCMC(num_warmup=5, num_samples=5, num_chains=2)
    assert np.all(
        np.isfinite(bk.infer(model, days[:60], short, key=0, initial=posterior).predict().mean)
    )
