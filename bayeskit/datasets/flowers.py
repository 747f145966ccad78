"""Measurements of flowers."""

from importlib import resources

import pandas as pd


def iris() -> pd.DataFrame:
    """Load lengths and widths of the sepals and petals of 150 irises.

    Source: UCI Machine Learning Repository, "Iris" (R. A. Fisher, "The use of multiple measurements
    in taxonomic problems", Annals of Eugenics, 1936), CC BY 4.0. The file is part of the package.

    Returns
    -------
    pandas.DataFrame (150, 5)
        ``sepal_length``, ``sepal_width``, ``petal_length``, ``petal_width`` in centimetres, and
        ``species``: 50 rows each of setosa, versicolor and virginica.

    Examples
    --------
    >>> iris()["species"].value_counts().tolist()
    [50, 50, 50]
    """
    place = resources.files("bayeskit.datasets") / "files" / "iris.csv"
    with resources.as_file(place) as path:
        return pd.read_csv(path)
