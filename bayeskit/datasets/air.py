"""Real measurements at stations over time."""

from dataclasses import dataclass
from importlib import resources

import numpy as np
import pandas as pd

POLLUTANTS = ("pm25", "pm10", "so2")


@dataclass(frozen=True)
class BeijingAir:
    """Daily means of air pollutants in Beijing.

    Attributes
    ----------
    table : pandas.DataFrame
        16 965 rows with the columns ``day`` (days since 1970-01-01), ``station`` (0 to 11),
        ``temperature`` (degrees Celsius), ``pressure`` (hPa) and ``pm25``, ``pm10``, ``so2``, each
        standardised to mean 0 and deviation 1 over all rows.
    units : dict
        Mean and deviation by pollutant in µg/m³.
    train : dict of bool arrays (5, rows)
        Five random splits into training (80 %) and test rows by pollutant.
    """

    table: pd.DataFrame
    units: dict
    train: dict


def beijing_air() -> BeijingAir:
    """Load daily air pollution at 12 stations in Beijing, 2013-03-01 to 2017-02-28.

    Source: UCI Machine Learning Repository, "Beijing Multi-Site Air-Quality Data" (S. Chen, 2017;
    Zhang et al., Proceedings of the Royal Society A, 2017), CC BY 4.0; daily means of the hourly
    rows without missing values. The file is part of the package.

    Returns
    -------
    BeijingAir

    Examples
    --------
    >>> air = beijing_air()
    >>> air.table.shape, air.train["pm25"].shape
    ((16965, 7), (5, 16965))
    """
    place = resources.files("bayeskit.datasets") / "files" / "beijing_air.npz"
    with resources.as_file(place) as path, np.load(path) as stored:
        raw = stored["index_raw"]
        columns = {
            "day": raw[:, 2],
            "station": stored["station"].astype(int),
            "temperature": raw[:, 0],
            "pressure": raw[:, 1],
        }
        table = pd.DataFrame(columns | {name: stored[name] for name in POLLUTANTS})
        units = {name: tuple(map(float, stored[f"{name}_mean_std"])) for name in POLLUTANTS}
        train = {name: stored[f"train_mask_{name}"] for name in POLLUTANTS}
    return BeijingAir(table, units, train)
