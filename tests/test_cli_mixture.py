"""``bayeskit fit mixture``: tables in, clusters out, one line for what cannot be used."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from typer.testing import CliRunner

import bayeskit as bk
from bayeskit import cli

runner = CliRunner()


def call(*arguments):
    return runner.invoke(cli.app, ["fit", "mixture", *map(str, arguments)])


@pytest.fixture(scope="module")
def table():
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(60, 2)) + np.repeat([[0.0, 0.0], [9.0, 4.0]], [40, 20], axis=0)
    table = pd.DataFrame(rows, columns=["length", "width"]).assign(name="x", big=True)
    table.loc[::9, "width"] = np.nan
    return table


def test_texts_are_left_out_by_name_and_missing_values_kept(table, tmp_path):
    path, out = tmp_path / "data.csv", tmp_path / "result.nc"
    table.to_csv(path, index=False)
    result = call(path, "--components", 2, "--out", out)
    assert result.exit_code == 0, result.output
    assert "name, big" in result.output
    assert "60, 7 missing values" in result.output
    loaded = bk.load(out)
    expected = bk.infer(bk.models.GaussianMixture(2), table[["length", "width"]])
    np.testing.assert_array_equal(loaded.labels, expected.labels)
    assert np.bincount(loaded.labels).tolist() == [40, 20]
    tree = xr.load_datatree(out, engine="h5netcdf")
    assert np.isnan(tree["observed_data"]["x"].values).sum() == 7
    # Without --out nothing is written.
    before = sorted(tmp_path.iterdir())
    assert call(path, "--components", 2).output.count("±") == 6
    assert sorted(tmp_path.iterdir()) == before


def test_what_cannot_be_used_is_told_in_one_line(table, tmp_path):
    good, texts = tmp_path / "data.csv", tmp_path / "texts.csv"
    table.to_csv(good, index=False)
    table[["name"]].to_csv(texts, index=False)
    cases = [
        ([tmp_path / "absent.csv", "--components", 2], "no such file"),
        ([texts, "--components", 2], "no numbers; the columns are name"),
        ([good, "--components", 0], "num_components"),
        ([good, "--components", 61], "60 rows"),
        ([good, "--components", 2, "--covariance", "round"], "covariance must be one of"),
        ([good, "--components", 2, "--method", "kmeans"], "em, messages, mcmc, sdp"),
        ([good, "--components", 2, "--out", good], "would overwrite the data"),
    ]
    for arguments, message in cases:
        result = call(*arguments)
        assert result.exit_code == 2, (arguments, result.output)
        assert message in result.stderr, (arguments, result.stderr)
        assert result.stderr.count("\n") == 1
