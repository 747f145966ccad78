"""Names and coordinates of dimensions: taken from the user, distinct, and never silently mixed."""

import numpy as np
import pytest
import xarray as xr

import bayeskit as bk

KroneckerSBL = bk.models.KroneckerSBL


@pytest.fixture(scope="module")
def problem():
    return bk.datasets.kronecker_sparse(1, shape=(4, 5), atoms=(6, 7), nonzeros=(2, 2))


def named(problem):
    first = xr.DataArray(
        problem.dictionaries[0],
        dims=("antenna", "angle"),
        coords={"antenna": list("abcd"), "angle": np.linspace(-1, 1, 6)},
    )
    measurements = xr.DataArray(
        problem.measurements, dims=("antenna", "time"), coords={"antenna": list("abcd")}
    )
    return first, problem.dictionaries[1], measurements


def test_data_in_another_order_than_the_dictionary_are_refused(problem):
    first, second, measurements = named(problem)
    model = KroneckerSBL((first, second))
    with pytest.raises(ValueError, match=r"different coordinates along 'antenna' \(at 0 .*d and a"):
        bk.infer(model, measurements[::-1])
    # xarray's own way to bring them into one order is enough.
    reordered = measurements[::-1].sel(antenna=first["antenna"])
    expected = bk.infer(model, measurements).mean["coefficients"]
    np.testing.assert_array_equal(bk.infer(model, reordered).mean["coefficients"], expected)
    with pytest.raises(ValueError, match=r"'row' where dictionaries\[0\] has 'antenna'"):
        bk.infer(model, measurements.rename(antenna="row"))


def test_names_that_repeat_are_refused(problem):
    first, second, measurements = named(problem)
    cases = {
        r"dictionaries\[0\] and dictionaries\[1\] both have the dimension 'angle'": (
            (first, xr.DataArray(second, dims=("time", "angle"))),
            measurements,
        ),
        r"data and dictionaries\[0\] both have the dimension 'time'": (
            (first.rename(angle="time"), second),
            measurements,
        ),
        "the dimension 'draw', a name of the result's own": (
            (first.rename(angle="draw"), second),
            measurements,
        ),
    }
    for message, (dictionaries, data) in cases.items():
        with pytest.raises(ValueError, match=message):
            bk.infer(KroneckerSBL(dictionaries), data)


def test_names_that_xarray_makes_up_are_no_names(problem):
    dictionaries = [xr.DataArray(d) for d in problem.dictionaries]
    posterior = bk.infer(KroneckerSBL(dictionaries), xr.DataArray(problem.measurements))
    assert posterior.to_datatree(sites=()).observed_data["y"].dims == (
        "measurements_0",
        "measurements_1",
    )


def test_predictions_have_the_coordinates_of_their_own_inputs(problem):
    first, second, measurements = named(problem)
    posterior = bk.infer(KroneckerSBL((first, second)), measurements)
    elsewhere = first[:3].assign_coords(antenna=["p", "q", "r"])
    predictions = posterior.to_datatree(5, sites=(), predictions=(elsewhere, second))["predictions"]
    assert predictions["y"].dims == ("chain", "draw", "antenna", "prediction_1")
    assert list(predictions["antenna"].values) == ["p", "q", "r"]
    assert list(predictions["prediction_1"].values) == list(range(5))
    prediction = posterior.predict((elsewhere, second))
    assert list(prediction.coords["antenna"]) == ["p", "q", "r"]
    assert list(posterior.predict().coords["antenna"]) == list("abcd")


def test_wrong_prediction_inputs_are_called_inputs(problem):
    first, second, measurements = named(problem)
    posterior = bk.infer(KroneckerSBL((first, second)), measurements)
    missing = second.copy()
    missing[1, 2] = np.nan
    cases = {
        r"inputs\[1\] has 1 non-finite values.*\(1, 2\)": (first, missing),
        r"inputs must have \(6, 7\) columns": (first, second[:, :3]),
        r"inputs\[0\] and dictionaries\[0\] have different coordinates along 'angle'": (
            first[:, ::-1],
            second,
        ),
        r"inputs\[0\] has the dimension 'delay' where the dictionary has 'angle'": (
            first.rename(angle="delay"),
            second,
        ),
    }
    for message, inputs in cases.items():
        with pytest.raises(ValueError, match=message):
            posterior.predict(inputs)
