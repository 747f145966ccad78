"""Rows that stay in a file, or in the host's memory, beside the same rows on the device."""

import copy
import gc
import weakref

import numpy as np
import pytest

import bayeskit as bk
from bayeskit.models.singular import streaming

EM, MCMC = bk.inference.EM, bk.inference.MCMC
SingularDistribution = bk.models.SingularDistribution
BRIEF = bk.inference.VariationalInference(
    max_iterations=100, tolerance=0.0, num_particles=3, batch_size=32
)
MODEL = SingularDistribution(1, decoder=(8, 1), perturbation=0.1)
pytestmark = pytest.mark.filterwarnings("ignore::bayeskit.BayeskitWarning")


@pytest.fixture(scope="module")
def rows():
    return 1e3 + 5.0 * bk.datasets.shape(0, "circle", rows=150, features=4).observations


@pytest.fixture
def mapped(rows, tmp_path):
    np.save(tmp_path / "rows.npy", rows)
    return np.load(tmp_path / "rows.npy", mmap_mode="r")


def test_one_pass_finds_the_moments(monkeypatch):
    table = np.random.default_rng(0).normal(1e6, 1.0, size=(103, 3, 2))
    monkeypatch.setattr(streaming, "_BLOCK_NUMBERS", 60)
    found = streaming.summary(table, "")
    flat = table.reshape(103, 6)
    np.testing.assert_allclose(found.center, flat.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(found.variance, flat.var(axis=0), rtol=1e-10)
    np.testing.assert_array_equal(found.smallest, flat.min(axis=0))
    np.testing.assert_array_equal(found.largest, flat.max(axis=0))


def test_a_mapped_file_gives_the_fit_of_the_same_rows_in_memory(rows, mapped, tmp_path):
    streamed, whole = (bk.infer(MODEL, table, BRIEF, key=0) for table in (mapped, rows))
    assert isinstance(streamed.prepared.data.values, streaming.StreamedRows)
    assert not isinstance(whole.prepared.data.values, streaming.StreamedRows)
    for site in ("latents", "decoder_weights", "noise_variance", "center", "last_layer"):
        np.testing.assert_allclose(streamed.mean[site], whole.mean[site], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(streamed.predict().mean, whole.predict().mean, rtol=1e-8)
    np.testing.assert_allclose(streamed.loo().elpd_i, whole.loo().elpd_i, rtol=1e-6)
    np.testing.assert_allclose(
        streamed.log_likelihood().values, whole.log_likelihood().values, rtol=1e-6
    )
    tree = streamed.to_datatree(num_draws=3, posterior_predictive=True)
    assert tree["posterior_predictive"]["x"].shape == (1, 3, 150, 4)
    assert "x" not in tree["observed_data"]

    streamed.save(tmp_path / "fit.nc")
    assert (tmp_path / "fit.nc").stat().st_size < 10 * mapped.nbytes + 200_000
    again = bk.load(tmp_path / "fit.nc")
    # Sums of columns are rounded differently where memory is aligned differently.
    np.testing.assert_allclose(again.mean["latents"], streamed.mean["latents"], rtol=0, atol=1e-10)
    changed = np.load(tmp_path / "rows.npy", mmap_mode="r+")
    changed[0] += 1.0
    changed.flush()
    with pytest.raises(ValueError, match=r"mapped from '.*rows\.npy', which has changed since"):
        bk.load(tmp_path / "fit.nc")
    streamed.save(tmp_path / "fit.nc")
    with pytest.raises(ValueError, match="data in another file, which have changed since they"):
        bk.load(tmp_path / "fit.nc")
    (tmp_path / "rows.npy").unlink()
    with pytest.raises(ValueError, match=r"mapped from '.*rows\.npy', which cannot be"):
        bk.load(tmp_path / "fit.nc")


def test_large_arrays_of_the_host_are_not_copied(rows, monkeypatch):
    whole = bk.infer(MODEL, rows, BRIEF, key=0)
    monkeypatch.setattr(streaming, "_LARGE", rows.nbytes)
    streamed = bk.infer(MODEL, rows, BRIEF, key=0)
    assert isinstance(streamed.prepared.data.values, streaming.StreamedRows)
    np.testing.assert_allclose(
        streamed.mean["latents"], whole.mean["latents"], rtol=1e-6, atol=1e-8
    )
    small = bk.infer(MODEL, rows[:-1], BRIEF, key=0)
    assert not isinstance(small.prepared.data.values, streaming.StreamedRows)


def test_other_methods_take_what_is_mapped(rows, mapped):
    fixed = SingularDistribution(1, decoder=(8, 1), perturbation=0.1, fresh=False)
    found = [bk.infer(fixed, table, EM(max_iterations=3)) for table in (mapped, rows)]
    assert found[0].log_evidence == pytest.approx(found[1].log_evidence, rel=1e-9)
    plane = SingularDistribution(2, decoder="linear")
    found = [bk.infer(plane, table).log_evidence for table in (mapped, rows)]
    assert found[0] == found[1]
    trained = bk.infer(MODEL, mapped, BRIEF, key=0)
    chains = MCMC(num_warmup=5, num_samples=5, num_chains=1)
    found = [bk.infer(trained.model, table, chains, key=0) for table in (mapped, rows)]
    np.testing.assert_allclose(found[0].mean["latents"], found[1].mean["latents"], rtol=1e-9)


def test_images_are_mapped_too(tmp_path):
    images = np.random.default_rng(0).uniform(size=(60, 3, 2)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    streamed, whole = (bk.infer(MODEL, table, BRIEF, key=0) for table in (mapped, images))
    assert streamed.mean["latents"].dtype == np.float32
    assert streamed.generate(0, 2).shape == (2, 3, 2)
    np.testing.assert_allclose(streamed.noise_scale, whole.noise_scale, rtol=1e-3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda rows: rows + 0j, TypeError, "real numbers, got complex128"),
        (lambda rows: rows[:, 0], ValueError, r"shape .* got \(150,\)"),
        (lambda rows: rows[:, :1], ValueError, "latent_dim=1 must be below"),
        (lambda rows: 0.0 * rows, ValueError, "equal rows only"),
        (lambda rows: _with(rows, 149, 2, np.nan), ValueError, r"first at index \(149, 2\)"),
        (lambda rows: _with(rows, 3, 0, np.inf), ValueError, r"first at index \(3, 0\)"),
        (lambda rows: rows[:10], ValueError, "10 rows"),
        (lambda rows: 1e120 * rows, ValueError, "beyond 1e[+]100"),
    ],
)
def test_bad_rows_of_a_file(rows, tmp_path, change, error, message):
    np.save(tmp_path / "rows.npy", change(rows))
    with pytest.raises(error, match=message):
        bk.infer(MODEL, np.load(tmp_path / "rows.npy", mmap_mode="r"), BRIEF, key=0)


def test_other_families_read_mapped_files_and_store_their_numbers(mapped, tmp_path):
    posterior = bk.infer(bk.models.GaussianMixture(2), mapped, key=0)
    assert type(posterior.data) is np.ndarray
    posterior.save(tmp_path / "fit.nc")
    np.testing.assert_array_equal(bk.load(tmp_path / "fit.nc").data, mapped)


def test_files_in_the_order_of_columns(rows, mapped, tmp_path):
    np.save(tmp_path / "columns.npy", np.asfortranarray(rows))
    columns = np.load(tmp_path / "columns.npy", mmap_mode="r")
    found, expected = (bk.infer(MODEL, table, BRIEF, key=0) for table in (columns, mapped))
    np.testing.assert_allclose(found.mean["latents"], expected.mean["latents"], atol=1e-8)
    found.save(tmp_path / "fit.nc")
    np.testing.assert_array_equal(bk.load(tmp_path / "fit.nc").data, rows)


def test_what_no_file_holds_is_not_streamed(rows, mapped, tmp_path):
    private = np.load(tmp_path / "rows.npy", mmap_mode="c")
    private[:] = 2.0 * private + 1.0
    for table, expected in ((private, 2.0 * rows + 1.0), (mapped.astype(np.float64), rows)):
        posterior = bk.infer(MODEL, table, BRIEF, key=0)
        assert type(posterior.data) is np.ndarray
        np.testing.assert_allclose(posterior.mean["center"], expected.mean(axis=0))
    np.testing.assert_array_equal(private, 2.0 * rows + 1.0)


def test_views_of_private_pages_keep_what_was_written(rows, mapped, monkeypatch):
    private = np.load(mapped.filename, mmap_mode="c")
    private *= 2.0
    view = np.asarray(private)
    monkeypatch.setattr(streaming, "_LARGE", 1)
    posterior = bk.infer(MODEL, view, BRIEF, key=0)
    np.testing.assert_array_equal(view, 2.0 * rows)
    np.testing.assert_allclose(posterior.mean["center"], 2.0 * rows.mean(axis=0))


def test_posteriors_keep_the_moments_of_their_own_fit(mapped):
    table = np.load(mapped.filename, mmap_mode="r+")
    posterior = bk.infer(MODEL, table, BRIEF, key=0)
    expected = posterior.encode().mean
    table *= 3.0
    bk.infer(MODEL, table, BRIEF, key=0)
    table /= 3.0
    np.testing.assert_allclose(posterior.encode().mean, expected, atol=1e-9)
    with pytest.raises(TypeError, match="neither copied nor pickled"):
        copy.deepcopy(posterior)


def test_parts_of_a_file_are_stored_where_they_are_contiguous(rows, mapped, tmp_path):
    posterior = bk.infer(MODEL, mapped[50:], BRIEF, key=0)
    assert posterior.mean["latents"].shape == (100, 1)
    posterior.save(tmp_path / "fit.nc")
    np.testing.assert_array_equal(bk.load(tmp_path / "fit.nc").data, rows[50:])
    every_other = bk.infer(MODEL, mapped[::2], BRIEF, key=0)
    with pytest.raises(TypeError, match="no contiguous part of a mapped file"):
        every_other.save(tmp_path / "fit.nc")


def test_programs_do_not_hold_tables(mapped):
    path = mapped.filename
    table = np.load(path, mmap_mode="r")
    bk.infer(MODEL, table, BRIEF, key=0)
    alive, known = weakref.ref(table), len(streaming._sources)
    del table
    gc.collect()
    assert alive() is None
    assert len(streaming._sources) == known - 1


def test_links_are_the_files_that_they_point_to(mapped, tmp_path):
    (tmp_path / "link.npy").symlink_to(mapped.filename)
    linked = np.load(tmp_path / "link.npy", mmap_mode="r")
    found = [
        bk.infer(MODEL, table, BRIEF, key=0, checkpoint=tmp_path / "checkpoint")
        for table in (mapped, linked)
    ]
    np.testing.assert_array_equal(found[0].mean["latents"], found[1].mean["latents"])


def _with(rows, row, column, value):
    changed = rows.copy()
    changed[row, column] = value
    return changed
