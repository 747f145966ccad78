"""``bayeskit fit singular``: tables in, a distribution out, one line for what cannot be used."""

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import bayeskit as bk
from bayeskit import cli

runner = CliRunner()


def call(*arguments):
    return runner.invoke(cli.app, ["fit", "singular", *map(str, arguments)])


@pytest.fixture(scope="module")
def table():
    rows = bk.datasets.shape(0, "circle", rows=60, features=3, noise=0.05).observations
    return pd.DataFrame(rows, columns=["east", "north", "up"]).assign(name="x")


def test_a_table_is_fitted_as_in_python(table, tmp_path):
    path, out = tmp_path / "data.csv", tmp_path / "result.nc"
    table.to_csv(path, index=False)
    result = call(
        path, "--latent-dim", 1, "--decoder", "8x1", "--perturbation", 0.2, "--method", "em",
        "--model-option", "fresh=false", "--option", "max_iterations=20", "--out", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "columns left out, no numbers" in result.output
    assert "60, 0 missing values" in result.output
    assert "0.2 of the data's deviation" in result.output
    loaded = bk.load(out)
    model = bk.models.SingularDistribution(1, decoder=(8, 1), perturbation=0.2, fresh=False)
    with pytest.warns(bk.ConvergenceWarning):
        expected = bk.infer(model, table.drop(columns="name"), bk.inference.EM(max_iterations=20))
    np.testing.assert_array_equal(loaded.generate(0, 5), expected.generate(0, 5))
    # A linear decoder has closed forms, and nothing is written without --out.
    before = sorted(tmp_path.iterdir())
    result = call(path, "--latent-dim", 2, "--decoder", "linear")
    assert result.exit_code == 0, result.output
    assert "relative change" in result.output
    assert sorted(tmp_path.iterdir()) == before


def test_what_cannot_be_used_is_told_in_one_line(table, tmp_path):
    good = tmp_path / "data.csv"
    table.to_csv(good, index=False)
    for arguments, message in (
        ([tmp_path / "absent.csv", "--latent-dim", 1], "no such file"),
        ([good, "--latent-dim", 0], "latent_dim must be at least 1"),
        ([good, "--latent-dim", 3], "latent_dim=3 must be below"),
        ([good, "--latent-dim", 1, "--decoder", "tree"], "expected WIDTHxDEPTH"),
        ([good, "--latent-dim", 1, "--perturbation", "some"], "expected auto, a number"),
        ([good, "--latent-dim", 1, "--perturbation", "0,-1"], "perturbation must be in"),
        ([good, "--latent-dim", 1, "--method", "sdp"], "em, messages, mcmc, variational"),
        ([good, "--latent-dim", 1, "--method", "messages"], "needs decoder='linear'"),
        ([good, "--latent-dim", 1, "--model-option", "decoder=linear"], "option of that name"),
        ([good, "--latent-dim", 1, "--out", good], "would overwrite the data"),
    ):
        result = call(*arguments)
        assert result.exit_code == 2, result.output
        assert message in " ".join(result.stderr.split())
