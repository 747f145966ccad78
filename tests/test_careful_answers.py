"""What a careful user notices: tables that lose nothing, and errors that name the argument."""

import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

import bayeskit as bk
from tests.registered import kronecker_problem

DICTIONARIES, DATA = kronecker_problem((4, 5), (5, 6))
MODEL = bk.models.KroneckerSBL(DICTIONARIES)


@pytest.fixture(scope="module")
def posterior():
    return bk.infer(MODEL, DATA)


def test_summary_keeps_entries_whose_coordinates_repeat():
    first = xr.DataArray(
        DICTIONARIES[0], dims=("row", "angle"), coords={"angle": [0.0, 0.0, 1.0, 1.0, 2.0]}
    )
    table = bk.infer(bk.models.KroneckerSBL((first, DICTIONARIES[1])), DATA).summary()
    assert sum(name.startswith("coefficients[") for name in table.index) == 30
    assert [name for name in table.index if name.startswith("scales_0")] == [
        f"scales_0[{i}]" for i in range(5)
    ]


def test_summary_of_a_large_estimated_site_shows_its_largest_entries():
    generator = np.random.default_rng(0)
    dictionary, truth = generator.normal(size=(40, 150)), np.zeros(150)
    truth[[77, 120]] = 3.0, -4.0
    model = bk.models.KroneckerSBL((dictionary,))
    table = bk.infer(model, dictionary @ truth + 0.01 * generator.normal(size=40)).summary()
    assert {"scales_0[77]", "scales_0[120]"} <= set(table.index)


def test_one_chain_has_a_split_r_hat():
    method = bk.inference.MCMC(num_warmup=200, num_samples=60, num_chains=1)
    with pytest.warns(bk.ConvergenceWarning):
        fit = bk.infer(
            bk.models.KroneckerSBL((np.eye(3),)), np.array([1.0, -2.0, 0.5]), method, key=0
        )
    assert 0.99 < fit.convergence.max_rhat < 2.0
    assert "nan" not in fit.convergence.reason


@pytest.mark.parametrize("scales", [((0.7,), (1.9,)), ("0", "1")])
def test_axes_of_groups_are_integers(scales):
    with pytest.raises(TypeError, match="scales must be a name or groups of axes"):
        bk.models.KroneckerSBL(DICTIONARIES, scales=scales)


@pytest.mark.parametrize("coupling", [["a", "b"], [1j, 2]])
def test_coupling_is_real(coupling):
    with pytest.raises(TypeError, match="coupling must have 2 real numbers"):
        bk.models.KroneckerSBL(DICTIONARIES, coupling=coupling)


@pytest.mark.parametrize("sites", ["coefficients", "scales_0"])
def test_one_site_is_not_a_sequence_of_letters(posterior, sites):
    with pytest.raises(TypeError, match="sites must be a sequence of names"):
        posterior.summary(sites=sites)
    with pytest.raises(TypeError, match="sites must be a sequence of names"):
        posterior.to_datatree(sites=sites)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (None, "data must be real or complex numbers, got None"),
        ([[1, 2], [3]], "data is no array of numbers"),
        (DATA.astype(np.longdouble), "got float128"),
    ],
)
def test_what_is_no_table_of_numbers_is_said(data, match):
    with pytest.raises((TypeError, ValueError), match=match):
        bk.infer(MODEL, data)


def test_one_model_is_not_a_selection():
    with pytest.raises(TypeError, match="models must be several, got one KroneckerSBL"):
        bk.select(MODEL, DATA)


@pytest.mark.parametrize("write", [lambda p: p.write_text("hello" * 100), lambda p: np.save(p, 1)])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, write):
    path = tmp_path / "run.npy"
    write(path)
    with pytest.raises(ValueError, match="cannot be read: it is no checkpoint"):
        bk.infer(MODEL, DATA, checkpoint=path)


def test_a_checkpoint_that_cannot_be_written_is_refused_before_the_fit(tmp_path):
    for path, text in (
        (tmp_path, "is a folder"),
        (tmp_path / "missing" / "run", "a folder that does not exist"),
    ):
        with pytest.raises(ValueError, match=text):
            bk.infer(MODEL, DATA, checkpoint=path)


def named(data, lead="time", **coords):
    return xr.DataArray(data, dims=(lead, "a", "b"), coords=coords)


def test_named_snapshots_are_joined_or_the_difference_is_said():
    first = named(np.stack([DATA, 2 * DATA]), time=[10, 20])
    plain = np.stack([DATA, 2 * DATA, 3 * DATA])
    fitted = bk.infer(MODEL, first)
    more = bk.update(fitted, xr.DataArray(3 * DATA, dims=("a", "b")).expand_dims(time=[30]))
    expected = bk.infer(MODEL, plain, initial=fitted)
    np.testing.assert_allclose(more.log_evidence, expected.log_evidence, rtol=1e-10)
    with pytest.raises(ValueError, match=r"no coordinate 'time'.*new_data\.expand_dims"):
        bk.update(fitted, xr.DataArray(3 * DATA, dims=("a", "b")))
    for wrong in (first.rename(time="day"), first.rename(a="q")):
        with pytest.raises(ValueError, match="new_data has the dimensions"):
            bk.update(fitted, wrong)
    unlabelled = bk.infer(MODEL, named(plain[:2]))
    joined = bk.update(unlabelled, xr.DataArray(3 * DATA, dims=("a", "b")))
    np.testing.assert_allclose(joined.log_evidence, more.log_evidence, rtol=1e-6)


def test_the_package_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "bayeskit", "--help"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0
    assert "quickstart" in done.stdout
