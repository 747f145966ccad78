"""Whatever a fit is made of comes back from its file, and a file of another model is refused."""

import json
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpyro.distributions import constraints, transforms

import bayeskit as bk
from bayeskit.codec import decode, encode
from bayeskit.inference import EM, MessagePassing
from bayeskit.models import FunctionalTucker, KroneckerSBL, ScaledByData
from bayeskit.models.priors import check_positive_prior, describe
from bayeskit.storage import load_fields, same_structure, save_tree


@pytest.fixture
def through_file(tmp_path):
    """What a value has become after a file."""

    def pass_through(value):
        path = tmp_path / "value.nc"
        save_tree(path, xr.DataTree(), {"value": value})
        return load_fields(path)["value"]

    return pass_through


def assert_same(loaded, saved):
    """Equal, and of the same types all the way down."""
    assert type(loaded) is type(saved)
    if isinstance(saved, dict):
        assert_same(list(loaded), list(saved))
        assert_same(list(loaded.values()), list(saved.values()))
    elif isinstance(saved, (tuple, list)):
        assert len(loaded) == len(saved)
        for one, other in zip(loaded, saved, strict=True):
            assert_same(one, other)
    elif isinstance(saved, (np.ndarray, np.generic)):
        np.testing.assert_array_equal(loaded, saved, strict=True)
    else:
        assert repr(loaded) == repr(saved)


# Values

_NUMPY_SCALARS = st.sampled_from([np.float32(0.1), np.float64(0.1), np.bool_(True)])
_NUMBERS = st.integers(-(2**70), 2**70) | st.floats() | st.complex_numbers()
_SCALARS = st.none() | st.booleans() | _NUMBERS | st.text() | _NUMPY_SCALARS
_TYPES = hnp.scalar_dtypes() | hnp.unicode_string_dtypes(max_len=4)
_SHAPES = hnp.array_shapes(min_dims=0, min_side=0, max_dims=3, max_side=3)
_ARRAYS = hnp.arrays(_TYPES, _SHAPES)
_STRINGS = hnp.arrays(object, _SHAPES, elements=st.text() | st.none(), fill=st.nothing())
_KEYS = st.text() | st.integers() | st.tuples(st.integers(), st.text()) | st.none()
_NESTED = st.recursive(
    _SCALARS | _ARRAYS | _STRINGS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(_KEYS, inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None)
@given(_NESTED)
def test_any_nested_structure_survives_json(value):
    arrays = []
    description = json.loads(json.dumps(encode(value, arrays)))
    assert_same(decode(description, arrays), value)


def test_values_survive_a_file(through_file):
    value = {
        "numbers": [None, True, 2**80, -0.0, np.inf, 1 + 2j, "é⊗", (), [], {}],
        ("key", 1): {None: np.array([1e-300, -0.0, np.nan, 5e-324])},
        "types": [np.ones(3, t) for t in ("f2", "u8", "c8", ">f8", "?", "M8[h]", "m8[us]")],
        "strings": [np.array(["é⊗", "", "inner\0x"]), np.array(["a", "bc" * 50, None], object)],
        "empty": [np.zeros((0, 3)), np.zeros((2, 0), "U3"), np.zeros(0, object), np.array(3.5)],
        "scalars": [np.float32(0.1), np.datetime64("2020-01-01"), np.str_("x")],
        # HDF5 keeps small attributes only where everything else is.
        "long": tuple(f"relative change {i} below tolerance" for i in range(3000)),
    }
    assert_same(through_file(value), value)


def test_jax_arrays_and_datetimes_come_back_in_numpy(through_file):
    with jax.enable_x64(True):
        saved = [jnp.array([1 / 3, 1e-300]), jnp.array([1 / 3], jnp.float32), jnp.array(2**40)]
    assert_same(through_file(saved), [np.asarray(array) for array in saved])
    dates = [pd.Timestamp("2020-01-01T12"), np.datetime64("2020-01-02"), pd.NaT]
    assert_same(through_file(np.array(dates, object)), pd.to_datetime(dates).to_numpy())


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({"a": [1, object()]}, r"value\['a'\]\[1\]"),
        (np.array(["a", {}], object), r"value\[1\].*dict in an object array"),
        (np.zeros(2, [("a", float)]), "value.*array of"),
        (np.ma.masked_array([1.0, 2.0]), "value.*MaskedArray"),
        (jnp.ones(2, jnp.bfloat16), "value.*bfloat16"),
        (jax.random.key(0), "value.*key"),
        (pd.DataFrame({"x": pd.to_datetime(["2020"], utc=True)}), r"value\.columns\['x'\].*UTC"),
        (pd.DataFrame({"x": pd.array([1, None], dtype="Int64")}), r"value\.columns\['x'\].*Int64"),
        (pd.DataFrame({"x": [{1}]}), r"value\.columns\['x'\]\[0\].*set in an object array"),
        (pd.Series([1.0], pd.MultiIndex.from_tuples([(1, 2)])), r"value\.index.*tuple"),
        (xr.DataArray([1], {"x": np.array([b"a"], object)}, "x"), r"value\.coords\['x'\].*bytes"),
    ],
)
def test_what_has_no_stored_form_is_named(value, named, tmp_path):
    with pytest.raises(TypeError, match=named):
        save_tree(tmp_path / "value.nc", xr.DataTree(), {"value": value})
    assert not list(tmp_path.iterdir())


def test_a_failure_to_write_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "value.nc"
    save_tree(path, xr.DataTree(), {"value": 1})

    def fail(self, path, **options):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(xr.DataTree, "to_netcdf", fail)
    with pytest.raises(OSError, match="disk full"):
        save_tree(path, xr.DataTree(), {"value": 2})
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert load_fields(path) == {"value": 1}


def test_files_of_another_schema_and_no_posteriors_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "value.nc"
    monkeypatch.setattr("bayeskit.storage._SCHEMA", 1)
    save_tree(path, xr.DataTree(), {"value": 1})
    monkeypatch.undo()
    with pytest.raises(ValueError, match="has schema 1; this version reads schema 6"):
        load_fields(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="not a saved posterior, or was cut short"):
        load_fields(path)


@pytest.mark.parametrize("name", ["distributions.kl_divergence", "os.system", "Popen"])
def test_a_file_cannot_name_anything_else_to_be_called(name):
    with pytest.raises(ValueError, match=r"has no|not known"):
        decode({"class": name, "fields": {}}, [])


# xarray and pandas


def test_dataarrays_are_identical_with_all_coordinates(through_file):
    coords = {
        "channel": np.array(["left", "right"], object),
        "time": pd.date_range("2020-01-01", periods=3),
        "side": ("channel", [1, 2], {"units": "m"}),
        "kind": ("time", pd.Categorical(["a", "b", "a"])),
        "grid": (("channel", "time"), np.ones((2, 3), np.float32)),
        "run": 7,
    }
    values = np.arange(6.0).reshape(2, 3) * (1 + 1j)
    array = xr.DataArray(values, coords, ("channel", "time"), "signal", {"units": "V"})
    by_category = xr.DataArray([1, 2], {"x": pd.Categorical(["b", "a"])}, "x")
    for saved in (array, array[0, 0], array[:, :0], xr.DataArray(np.zeros((2, 2))), by_category):
        xr.testing.assert_identical(through_file(saved), saved)


FRAME = pd.DataFrame(
    {
        "value": [1.5, np.nan, 1e-300],
        "single": np.arange(3, dtype=np.float32),
        "count": [1, 2, 3],
        "flag": [True, False, True],
        "text": ["a", "b", None],
        "objects": pd.Series(["a", None, "c"], dtype=object),
        "strings": pd.array(["a", pd.NA, "c"], dtype="string"),
        "category": pd.Categorical(["x", "y", None], categories=["y", "x", "z"], ordered=True),
        "levels": pd.Categorical([3, 1, 3]),
        "when": pd.to_datetime(["2020-01-01", "2021-05-05", None]),
        "span": pd.to_timedelta([1, 2, 3], unit="h"),
    }
)


def test_tables_come_back_with_types_and_index(through_file):
    tables = [FRAME.set_index(name) for name in ("when", "category", "text", "count")]
    by_number = pd.DataFrame(np.ones((2, 2)), columns=pd.Index([4, 7], name="depth"))
    tables += [FRAME, FRAME.iloc[[2, 0, 0]], FRAME.iloc[:0], FRAME[[]], by_number]
    columns = [column for _, column in FRAME.items()]
    for table, loaded in zip(tables, through_file(tables), strict=True):
        pd.testing.assert_frame_equal(loaded, table, check_exact=True, check_index_type=False)
    for column, loaded in zip(columns, through_file(columns), strict=True):
        pd.testing.assert_series_equal(loaded, column, check_exact=True, check_index_type=False)


# Distributions

SCALED = transforms.AffineTransform(0.0, 1 / 3, domain=constraints.positive)
ROOT = transforms.PowerTransform(0.5)


@pytest.mark.parametrize("x64", [False, True])
def test_distributions_have_equal_densities_and_draws(x64, through_file):
    with jax.enable_x64(x64):
        priors = [
            dist.HalfCauchy(jnp.float32(0.1), validate_args=True),
            dist.FoldedDistribution(dist.Normal(0.1, 1.1)),
            dist.LeftTruncatedDistribution(dist.Normal(0.3, 1.1), low=0.1),
            dist.TransformedDistribution(dist.LogNormal(0.1, 0.3), [ROOT, SCALED]),
        ]
        for loaded, prior in zip(through_file(priors), priors, strict=True):
            assert type(loaded) is type(prior)
            assert loaded._validate_args == prior._validate_args
            draws = [np.asarray(d.sample(jax.random.key(3), (50,))) for d in (loaded, prior)]
            assert_same(*draws)
            assert_same(*(np.asarray(d.log_prob(draws[1])) for d in (loaded, prior)))


def test_distributions_of_the_users_own_are_named():
    own = type("ExpTransform", (transforms.ExpTransform,), {})()
    with pytest.raises(TypeError, match=r"prior\.transforms\[0\].*ExpTransform"):
        encode(dist.TransformedDistribution(dist.Normal(), own), [], "prior")


def test_priors_are_described_with_what_they_are_made_of():
    assert describe(FOLDED) == "FoldedDistribution(Normal(loc=0, scale=1))"
    moved = dist.TransformedDistribution(dist.Exponential(2.0), [ROOT])
    nested = "Exponential(rate=2), PowerTransform(exponent=0.5)"
    assert describe(moved) == f"TransformedDistribution({nested})"


def test_supports_are_the_positive_numbers_up_to_zero_itself():
    softplus = dist.TransformedDistribution(dist.Normal(), transforms.SoftplusTransform())
    for prior in (softplus, dist.LeftTruncatedDistribution(dist.Normal(), low=0.0)):
        assert check_positive_prior("scale", prior) is prior
    for prior in (dist.Normal(), dist.Uniform(), dist.Pareto(1.0, 2.0), dist.Poisson(1.0)):
        with pytest.raises(ValueError, match="scale must live on the positive numbers"):
            check_positive_prior("scale", prior)


# Models and fits

MATRIX = np.random.default_rng(0).normal(size=(3, 4))
FOLDED = dist.FoldedDistribution(dist.Normal(0.0, 1.0))
WIDE = dist.FoldedDistribution(dist.Normal(0.0, 2.0))


def kronecker(*matrices, **options):
    return KroneckerSBL(matrices or (MATRIX,), **options)


def tucker(prior):
    options = {"ranks": 1, "core": "cp", "value": "value"}
    return FunctionalTucker(["day"], kernel_priors={"lengthscale": prior}, **options)


def with_names(shift):
    return kronecker(xr.DataArray(MATRIX, {"atom": np.arange(4) + shift}, ("row", "atom")))


OTHER = {
    "[0] has other contents": (kronecker(np.nextafter(MATRIX, np.inf)), kronecker()),
    "[0] is an array of float64 of shape (3, 3)": (kronecker(MATRIX[:, 1:]), kronecker()),
    "[0] is DataArray instead of an array": (with_names(0), kronecker()),
    "[0].coords['atom'][1] has other contents": (with_names(1), with_names(0)),
    "dictionaries is tuple of 2 instead of": (kronecker(MATRIX, MATRIX), kronecker()),
    "noise_variance is 0.1 instead of None": (kronecker(noise_variance=0.1), kronecker()),
    "['lengthscale'].base_dist.scale is 2.0 instead of 1.0": (tucker(WIDE), tucker(FOLDED)),
    "['lengthscale'] is ScaledByData": (tucker(ScaledByData(FOLDED)), tucker(FOLDED)),
    "FunctionalTucker instead of KroneckerSBL": (tucker(FOLDED), kronecker()),
}


@pytest.mark.parametrize("difference", OTHER)
def test_another_model_is_refused_by_the_field_that_differs(difference, through_file):
    model, stored = OTHER[difference]
    with pytest.raises(ValueError, match=r"not the one that was saved: .*" + re.escape(difference)):
        same_structure(model, through_file(stored))


def test_the_model_itself_is_accepted_with_estimates_and_on_the_device(through_file):
    for model in (kronecker(noise_prior=FOLDED), with_names(0)):
        fitted = model.with_estimates({"noise_variance": np.array(1.0)})
        same_structure(model, through_file(fitted))
        same_structure(fitted, through_file(model))
    same_structure(kronecker(jnp.eye(3)), through_file(kronecker(np.eye(3, dtype=np.float32))))


# NumPy's integers as options, names and dates among the data, a prior made of another
DAYS = pd.date_range("2020-01-01", periods=3, name="x")
SHOTS = xr.DataArray(np.ones((2, 3)), {"shot": np.array(["a", "b"], object), "x": DAYS})
TABLE = pd.DataFrame({"day": DAYS, "value": [0.1, -0.3, 0.4], "remark": ["fine", None, "late"]})
FITS = {
    "kronecker": (kronecker(), SHOTS, EM(max_iterations=np.int64(2))),
    "tucker": (tucker(FOLDED), TABLE, MessagePassing(max_iterations=np.int32(2))),
}


@pytest.mark.parametrize("family", FITS)
def test_fits_come_back(family, tmp_path):
    model, data, method = FITS[family]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bk.BayeskitWarning)
        posterior = bk.infer(model, data, method, key=0)
    path = tmp_path / "fit.nc"
    posterior.save(path)
    loaded = bk.load(path)
    assert_same(loaded.mean, posterior.mean)
    assert_same(loaded.variance, posterior.variance)
    assert_same(loaded.sample(5, 2), posterior.sample(5, 2))
    assert_same(loaded.log_evidence, posterior.log_evidence)
    assert loaded.method == posterior.method
    assert repr(loaded.model) == repr(posterior.model)
    assert data.equals(loaded.data)
    assert_same(bk.load(path, model=model).mean, posterior.mean)
    with pytest.raises(ValueError, match="not the one that was saved"):
        bk.load(path, model=kronecker(2 * MATRIX) if family == "kronecker" else tucker(WIDE))
