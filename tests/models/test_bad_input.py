"""Bad input gets a clear error before any tracing, or a right answer with a warning."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import bayeskit as bk
from tests.models.dense import DenseModel, kron
from tests.registered import REGISTERED, kronecker_problem

EM, KroneckerSBL = bk.inference.EM, bk.models.KroneckerSBL
SHAPE = (4, 5, 6)
# A single measurement is fitted exactly, and the warning says so.
one_number = pytest.mark.filterwarnings("ignore:the fit interpolates")
any_ending = pytest.mark.filterwarnings("ignore:.*did not converge")


@pytest.fixture(scope="module")
def problem():
    return bk.datasets.kronecker_sparse(1, shape=SHAPE, atoms=(6, 6, 7), nonzeros=(2, 2, 2))


def replaced(problem, axis, change):
    dictionaries = [d.copy() for d in problem.dictionaries]
    change(dictionaries[axis])
    return dictionaries


def set_entry(index, value):
    def change(matrix):
        matrix[index] = value

    return change


def dense_twin(dictionaries, measurements, sites, noise_variance=None):
    """Everything formed, at scales and noise as they are reported."""
    scales = kron([sites[f"scales_{g}"] for g in range(len(dictionaries))])
    noise = sites["noise_variance"] if noise_variance is None else noise_variance
    return DenseModel(kron(dictionaries), scales, noise, np.asarray(measurements).ravel())


def check_against_dense(posterior, dictionaries, noise_variance=None):
    """Moments and evidence are those of the dense posterior at the reported scales and noise."""
    twin = dense_twin(dictionaries, posterior.data, posterior.mean, noise_variance)
    mean, variance = (m["coefficients"] for m in (posterior.mean, posterior.variance))
    assert mean.shape == variance.shape == tuple(d.shape[1] for d in dictionaries)
    peak = np.abs(twin.mean).max()
    np.testing.assert_allclose(mean.ravel(), twin.mean, rtol=0, atol=1e-10 * peak)
    # The twin subtracts from its prior variances, and rounds by as much.
    rounding = 1e-14 * twin.scales.max()
    expected = np.diag(twin.posterior_covariance)
    np.testing.assert_allclose(variance.ravel(), expected, rtol=1e-8, atol=rounding)
    assert posterior.log_evidence == pytest.approx(twin.log_evidence, rel=1e-10)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_dictionary_names_matrix_index_and_count(problem, value):
    with pytest.raises(ValueError, match=r"dictionaries\[1\] has 1 non-finite.*\(2, 3\)"):
        KroneckerSBL(replaced(problem, 1, set_entry((2, 3), value)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_measurement_names_index_and_count(problem, value):
    measurements = problem.measurements.copy()
    measurements[1, 2, 3] = measurements[3, 0, 0] = value
    with pytest.raises(ValueError, match=r"data has 2 non-finite values.*\(1, 2, 3\)"):
        bk.infer(KroneckerSBL(problem.dictionaries), measurements)


def test_zero_column_is_warned_about_and_its_coefficients_stay_zero(problem):
    unused = next(j for j in range(6) if j not in problem.support[0])
    dictionaries = replaced(problem, 0, set_entry((slice(None), unused), 0.0))
    for m_step in ("mackay", "alternating", "svd"):
        with pytest.warns(bk.ConditioningWarning, match=r"dictionaries\[0\] has 1 zero columns"):
            posterior = bk.infer(
                KroneckerSBL(dictionaries), problem.measurements, EM(m_step, max_iterations=2000)
            )
        assert np.all(posterior.mean["coefficients"][unused] == 0)
        assert bk.metrics.nmse(problem.coefficients, posterior.mean["coefficients"]) < 0.05


def test_duplicate_columns_are_warned_about_and_their_sum_is_right(problem):
    used = int(problem.support[0][0])
    unused = next(j for j in range(6) if j not in problem.support[0])
    column = problem.dictionaries[0][:, used]
    dictionaries = replaced(problem, 0, set_entry((slice(None), unused), column))
    with pytest.warns(bk.ConditioningWarning, match="multiples of others"):
        posterior = bk.infer(KroneckerSBL(dictionaries), problem.measurements)
    mean = posterior.mean["coefficients"].copy()
    mean[used] += mean[unused]
    mean[unused] = 0
    assert bk.metrics.nmse(problem.coefficients, mean) < 0.05


def test_zero_measurements_give_zeros_and_finite_evidence(problem):
    for method in (EM(), bk.inference.MessagePassing()):
        posterior = bk.infer(KroneckerSBL(problem.dictionaries), np.zeros(SHAPE), method)
        assert posterior.convergence.converged
        assert np.all(posterior.mean["coefficients"] == 0)
        assert np.all(np.isfinite(posterior.variance["coefficients"]))
        assert np.isfinite(posterior.log_evidence)
        if isinstance(method, EM):
            check_against_dense(posterior, problem.dictionaries)


@any_ending
def test_zero_measurements_leave_sampled_coefficients_at_zero():
    # Model, shapes and method of the registered problem, which is compiled anyway.
    registered = REGISTERED[0]
    dictionaries, method = registered.model.dictionaries, registered.methods[-1]
    zeros = np.zeros(registered.data.shape)
    posterior = bk.infer(registered.model, zeros, method, key=0)
    assert np.all(posterior.mean["coefficients"] == 0)
    group = posterior.to_datatree().posterior
    count = method.num_chains * method.num_samples
    draws = {name: group[name].values.reshape(count, *group[name].shape[2:]) for name in group}
    # Given the sampled scales and noise, coefficients are normal around zero; their variance is
    # the mean of the dense ones.
    variance = posterior.variance["coefficients"]
    expected = np.zeros(variance.size)
    for i in range(count):
        twin = dense_twin(dictionaries, zeros, {name: draw[i] for name, draw in draws.items()})
        expected += np.diag(twin.posterior_covariance) / count
    np.testing.assert_allclose(variance.ravel(), expected, rtol=1e-8)
    deviations = draws["coefficients"].mean(0) / np.sqrt(variance / count)
    assert np.all(np.abs(deviations) < 5)
    assert np.abs(deviations).max() > 0.5


def test_wrong_shapes_say_what_was_expected(problem):
    model = KroneckerSBL(problem.dictionaries)
    cases = {
        r"another order": problem.measurements.transpose(2, 1, 0),
        r"reshape\(4, 5, 6\)": problem.measurements.ravel(),
        r"shape \(4, 5\).*expected": problem.measurements[..., 0],
        r"shape \(4, 5, 7\).*\(4, 5, 6\)": np.ones((4, 5, 7)),
        r"data is empty": np.ones((0, 4, 5, 6)),
    }
    for message, data in cases.items():
        with pytest.raises(ValueError, match=message):
            bk.infer(model, data)


def test_wrong_kinds_of_data_are_refused(problem):
    model = KroneckerSBL(problem.dictionaries)
    for data in (np.full(SHAPE, "a"), problem.measurements > 0, None, "text"):
        with pytest.raises(TypeError, match="data must be real or complex"):
            bk.infer(model, data)


def test_integers_are_exact_numbers(problem):
    measurements = np.round(1000 * problem.measurements)
    dictionaries = [np.round(30 * d) for d in problem.dictionaries]
    expected = bk.infer(KroneckerSBL(dictionaries), measurements)
    truth = problem.coefficients * 1000 / 30**3
    assert bk.metrics.nmse(truth, expected.mean["coefficients"]) < 0.05
    check_against_dense(expected, dictionaries)
    for kind, of_dictionaries in ((int, float), (float, int), (int, int), (np.int16, np.int8)):
        ours = bk.infer(
            KroneckerSBL([d.astype(of_dictionaries) for d in dictionaries]),
            measurements.astype(kind),
        )
        for site, value in expected.mean.items():
            np.testing.assert_array_equal(ours.mean[site], value)
            np.testing.assert_array_equal(ours.variance[site], expected.variance[site])


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_impossible_noise_variance_is_refused(problem, value):
    with pytest.raises(ValueError, match="noise_variance must be positive and finite"):
        KroneckerSBL(problem.dictionaries, noise_variance=value)


def test_noise_variance_far_too_small_is_warned_about(problem):
    noise_variance = problem.noise_variance * 1e-28
    model = KroneckerSBL(problem.dictionaries, noise_variance=noise_variance)
    with pytest.warns(bk.ConditioningWarning, match="interpolates"):
        posterior = bk.infer(model, problem.measurements, EM(max_iterations=2000))
    # What the warning says: nothing is left of the measurements.
    fitted = kron(problem.dictionaries) @ posterior.mean["coefficients"].ravel()
    rounding = 1e-12 * np.abs(problem.measurements).max()
    np.testing.assert_allclose(fitted, problem.measurements.ravel(), rtol=0, atol=rounding)
    check_against_dense(posterior, problem.dictionaries, noise_variance)


def test_real_measurements_of_complex_dictionaries_are_refused(problem):
    dictionaries = [problem.dictionaries[0] + 0j, *problem.dictionaries[1:]]
    with pytest.raises(ValueError, match=r"data is real.*dictionary is complex"):
        bk.infer(KroneckerSBL(dictionaries), problem.measurements)


def test_complex_measurements_of_real_dictionaries_are_a_complex_problem(problem):
    model = KroneckerSBL(problem.dictionaries)
    posterior = bk.infer(model, problem.measurements * np.exp(0.3j))
    expected = problem.coefficients * np.exp(0.3j)
    assert np.iscomplexobj(posterior.mean["coefficients"])
    assert not np.iscomplexobj(posterior.variance["coefficients"])
    assert bk.metrics.nmse(expected, posterior.mean["coefficients"]) < 0.05


@one_number
@pytest.mark.parametrize(
    ("rows", "columns"),
    [((6,), (4,)), ((1, 5), (3, 4)), ((7, 6), (3, 2)), ((1,), (1,)), ((5, 4), (1, 6))],
)
def test_unusual_sizes_work(rows, columns):
    dictionaries, measurements = kronecker_problem(rows, columns)
    posterior = bk.infer(KroneckerSBL(dictionaries), measurements, EM(max_iterations=3000))
    # The signal was not taken for noise, where any prior would give the same zeros.
    assert posterior.mean["noise_variance"] < 0.1 * np.mean(measurements**2)
    check_against_dense(posterior, dictionaries)


@any_ending
def test_pruning_everything_but_the_largest_still_answers(problem):
    model = KroneckerSBL(problem.dictionaries)
    pruned = bk.infer(model, problem.measurements, EM(prune=0.999, max_iterations=5000))
    first = bk.infer(model, problem.measurements, EM(max_iterations=1))
    # Of every factor the scale that is the largest after one step is kept, with mean one in all
    # factors but the last; the rest is an exact zero.
    for site in ("scales_0", "scales_1", "scales_2"):
        largest = np.argmax(first.mean[site])
        assert np.flatnonzero(pruned.mean[site]).tolist() == [largest]
        if site != "scales_2":
            assert pruned.mean[site][largest] == pytest.approx(first.mean[site].size)
    assert np.count_nonzero(pruned.mean["coefficients"]) == 1
    assert np.count_nonzero(pruned.variance["coefficients"]) == 1
    check_against_dense(pruned, problem.dictionaries)


def test_exhausted_budget_is_reported_and_warned_about(problem):
    with pytest.warns(bk.ConvergenceWarning, match="max_iterations=2"):
        posterior = bk.infer(
            KroneckerSBL(problem.dictionaries), problem.measurements, EM(max_iterations=2)
        )
    assert not posterior.convergence.converged
    assert posterior.convergence.iterations == 2


def test_units_outside_the_floating_point_range_are_refused(problem):
    for factor in (1e-160, 1e160):
        with pytest.raises(ValueError, match="outside the range of float64"):
            bk.infer(KroneckerSBL(problem.dictionaries), problem.measurements * factor)
    single = [np.float32(d) for d in problem.dictionaries]
    with pytest.raises(ValueError, match="outside the range of float32"):
        bk.infer(KroneckerSBL(single), np.float32(problem.measurements * 1e-20))


def test_constructor_arguments_are_checked(problem):
    dictionaries = problem.dictionaries
    cases = [
        (TypeError, "sequence of matrices, got one matrix", (dictionaries[0],), {}),
        (ValueError, "dictionaries is empty", ((),), {}),
        (ValueError, r"dictionaries\[0\].*shape \(4,\)", ((np.ones(4),),), {}),
        (ValueError, "zero everywhere", ((np.zeros((2, 3)),),), {}),
        (TypeError, "real or complex", ((np.array([["a"]]),),), {}),
        (ValueError, "scales must be", (dictionaries,), {"scales": "other"}),
        (ValueError, "exactly once", (dictionaries,), {"scales": ((0, 1),)}),
        (ValueError, "coupling must have 3", (dictionaries,), {"coupling": (0.5,)}),
        (ValueError, "coupling must have 3", (dictionaries,), {"coupling": (0.5, -1, 0)}),
        (
            ValueError,
            "grouped axes",
            (dictionaries,),
            {"scales": ((0, 1), (2,)), "coupling": (1, 0, 0)},
        ),
        (TypeError, "scale_prior must be a NumPyro", (dictionaries,), {"scale_prior": 3}),
        (ValueError, "positive numbers", (dictionaries,), {"noise_prior": dist.Normal()}),
        (TypeError, "noise_variance must be", (dictionaries,), {"noise_variance": "a"}),
    ]
    for error, message, arguments, options in cases:
        with pytest.raises(error, match=message):
            KroneckerSBL(*arguments, **options)


def test_dense_group_beyond_memory_is_refused_with_its_size():
    dictionary = np.ones((150, 200)) + np.eye(150, 200)
    with pytest.raises(ValueError, match="dense dictionary has 9e"):
        KroneckerSBL((dictionary, dictionary), scales="unstructured")


def test_methods_name_what_they_need(problem):
    gamma = dist.Gamma(2.0, 1.0)
    model = KroneckerSBL(problem.dictionaries, scale_prior=gamma)
    flat = KroneckerSBL(problem.dictionaries, scale_prior=None)
    coupled = KroneckerSBL(problem.dictionaries, coupling=(0.5, 0, 0))
    messages = bk.inference.MessagePassing()
    for wrong, method, message in (
        (model, EM(), "InverseGamma scale_prior"),
        (flat, messages, "InverseGamma scale_prior"),
        (flat, bk.inference.MCMC(), "proper scale_prior"),
        (coupled, messages, "coupling"),
        (KroneckerSBL(problem.dictionaries), EM("newton"), "m_step='newton'.*mackay"),
        # The paper's rank-one step would leave these out without a word.
        (coupled, EM("svd"), "m_step='svd' cannot couple"),
        (
            KroneckerSBL(problem.dictionaries, scale_prior=dist.InverseGamma(2.0, 1.0)),
            EM("svd"),
            "m_step='svd' has no place for a prior",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            bk.infer(wrong, problem.measurements, method, key=0)
    with pytest.raises(ValueError, match="scale_prior depends on the data"):
        KroneckerSBL(problem.dictionaries).sample_prior(0)
    with pytest.raises(ValueError, match="scale_prior is flat"):
        flat.sample_prior(0)


def test_wrong_arguments_of_infer_are_named(problem):
    model = KroneckerSBL(problem.dictionaries)
    with pytest.raises(ValueError, match="key is needed"):
        bk.infer(model, problem.measurements, EM(restarts=2))
    with pytest.raises(TypeError, match="key must be an integer or one JAX key"):
        bk.infer(model, problem.measurements, EM(restarts=2), key="seed")
    with pytest.raises(TypeError, match="parentheses"):
        bk.infer(model, problem.measurements, EM)
    with pytest.raises(TypeError, match="model must be"):
        bk.infer(EM(), problem.measurements)
    with pytest.raises(TypeError, match="infer_batch"):
        jax.jit(lambda y: bk.infer(model, y).mean["coefficients"])(jnp.ones(SHAPE))
    for options in ({"max_iterations": 0}, {"tolerance": -1.0}, {"prune": 1.0}, {"restarts": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            EM(**options)


def test_checkpoint_of_another_run_and_files_cut_short_are_refused(problem, tmp_path):
    model = KroneckerSBL(problem.dictionaries)
    path = tmp_path / "run.npz"
    bk.infer(model, problem.measurements, checkpoint=path)
    for part, call in {
        "data": lambda: bk.infer(model, 2 * problem.measurements + 1, checkpoint=path),
        "method": lambda: bk.infer(model, problem.measurements, EM("convex"), checkpoint=path),
        "model": lambda: bk.infer(
            KroneckerSBL(problem.dictionaries, coupling=(0.3, 0, 0)),
            problem.measurements,
            checkpoint=path,
        ),
    }.items():
        with pytest.raises(ValueError, match=f"has another {part}"):
            call()
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="cannot be read"):
        bk.infer(model, problem.measurements, checkpoint=path)
    saved = tmp_path / "posterior.nc"
    posterior = bk.infer(model, problem.measurements)
    posterior.save(saved)
    other = KroneckerSBL(problem.dictionaries, noise_variance=1.0)
    with pytest.raises(ValueError, match="noise_variance"):
        bk.load(saved, model=other)
    saved.write_bytes(saved.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cut short"):
        bk.load(saved)
    with pytest.raises(ValueError, match="does not exist"):
        bk.load(tmp_path / "nothing.nc")


@one_number
def test_one_observation_gives_a_finite_answer():
    dictionary = np.array([[2.0, 1.0]])
    posterior = bk.infer(KroneckerSBL((dictionary,)), np.array([3.0]))
    np.testing.assert_allclose(dictionary @ posterior.mean["coefficients"], 3.0, rtol=1e-5)
    check_against_dense(posterior, (dictionary,))


def test_masked_entries_are_refused(problem):
    masked = np.ma.masked_array(problem.measurements, np.zeros(SHAPE, bool))
    model = KroneckerSBL(problem.dictionaries)
    nothing_hidden = bk.infer(model, masked)
    assert type(nothing_hidden.data) is np.ndarray  # which can be saved
    nothing_hidden = nothing_hidden.mean["coefficients"]
    np.testing.assert_array_equal(
        nothing_hidden, bk.infer(model, problem.measurements).mean["coefficients"]
    )
    masked[1, 2, 3] = np.ma.masked
    with pytest.raises(ValueError, match=r"data has 1 masked entries, the first at.*\(1, 2, 3\)"):
        bk.infer(model, masked)
    hidden = np.ma.masked_less(problem.dictionaries[0], 0.0)
    with pytest.raises(ValueError, match=r"dictionaries\[0\] has \d+ masked"):
        KroneckerSBL((hidden, *problem.dictionaries[1:]))


def test_a_posterior_keeps_its_own_numbers(problem, tmp_path):
    buffer = problem.measurements.copy()
    dictionaries = [d.copy() for d in problem.dictionaries]
    posterior = bk.infer(KroneckerSBL(dictionaries), buffer)
    before = posterior.mean["coefficients"], posterior.predict(dictionaries).mean
    buffer[:] = 7.0
    dictionaries[0][:] = 7.0
    observed = posterior.to_datatree(sites=()).observed_data["y"].values
    np.testing.assert_array_equal(observed, problem.measurements)
    posterior.save(tmp_path / "posterior.nc")
    loaded = bk.load(tmp_path / "posterior.nc")
    for fit in (posterior, loaded):
        np.testing.assert_array_equal(fit.mean["coefficients"], before[0])
        np.testing.assert_array_equal(fit.predict(problem.dictionaries).mean, before[1])


def test_an_item_out_of_range_stops_no_other_of_its_batch(problem):
    model = KroneckerSBL(problem.dictionaries)
    stacked = np.stack([problem.measurements, 1e200 * problem.measurements])
    with (
        pytest.warns(
            bk.ConditioningWarning, match=r"1 of 2 data sets \(1\) cannot be fitted: .*ran"
        ),
        pytest.warns(bk.ConvergenceWarning, match="1 of 2 data sets did not converge: 1"),
    ):
        batch = bk.infer_batch(model, stacked)
    alone = bk.infer(model, problem.measurements).mean["coefficients"]
    np.testing.assert_allclose(batch.mean["coefficients"][0], alone, atol=1e-12)
    with pytest.raises(ValueError, match="outside the range of float64"):
        bk.infer_batch(model, 1e200 * stacked[:1])
    with pytest.raises(ValueError, match="batch_size must be at least 1, got -1"):
        bk.infer_batch(model, stacked, batch_size=-1)


def test_initial_of_another_problem_is_refused(problem):
    model = KroneckerSBL(problem.dictionaries[:2])
    one, two = problem.measurements[:, :, 0], problem.measurements[:, :, 1]
    other = bk.infer(KroneckerSBL(problem.dictionaries[:1]), one[:, 0])
    with pytest.raises(ValueError, match=r"scales_1 is expected.*no such site"):
        bk.infer(model, one, initial=other)
    with pytest.raises(ValueError, match=r"scales_0 is expected.*\(7,\), got \(6,\)"):
        bk.infer(KroneckerSBL(problem.dictionaries[2:]), np.ones(6), initial=other)
    batch = bk.infer_batch(model, np.stack([one, two]))
    with pytest.raises(ValueError, match="posterior of a batch"):
        bk.infer(model, one, initial=batch)
