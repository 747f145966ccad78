"""The part of ``bayeskit quickstart`` about air pollution in Beijing."""

from typing import Any

import numpy as np
import pandas as pd
from gpjax.kernels import Matern12
from scipy.stats import norm

from bayeskit import datasets, inference
from bayeskit.cli.console import summary_table
from bayeskit.inference.driver import infer
from bayeskit.models import FunctionalTucker, Mode

_RANK = 6
_LEVEL = 0.95
# In the order of the data's numbers.
_STATIONS = (
    "Aotizhongxin Changping Dingling Dongsi Guanyuan Gucheng Huairou Nongzhanguan Shunyi "
    "Tiantan Wanliu Wanshouxigong"
).split()


def air_table(days) -> tuple[Any, np.ndarray]:
    """Rows of the first ``days`` days with dates, station numbers and PM2.5, and a split."""
    air = datasets.beijing_air()
    table, train = air.table, air.train["pm25"][0]
    kept = (table["day"] < table["day"].min() + days).to_numpy()
    mean, deviation = air.units["pm25"]
    rows = pd.DataFrame(
        {
            "day": pd.to_datetime(table["day"].to_numpy(), unit="D"),
            "station": table["station"],
            "pm25": mean + deviation * table["pm25"],
        }
    )
    return rows[kept].reset_index(drop=True), train[kept]


def quickstart_air(console, out, days, draws) -> None:
    """Fit four fifths of the station-days, predict the others, print, write picture and tree."""
    table, train = air_table(days)
    console.print(
        f"[bold]Functional Tucker decomposition[/] of daily PM2.5 at 12 stations in Beijing, "
        f"{int(train.sum())} station-days, {int((~train).sum())} held out"
    )
    modes = [
        Mode("day", kernel=Matern12(lengthscale=30.0)),  # pyright: ignore[reportArgumentType]
        Mode("station", categorical=True),
    ]
    model = FunctionalTucker(modes, ranks=_RANK, core="cp", value="pm25")
    method = inference.EM(max_iterations=300, tolerance=1e-3)
    posterior: Any = infer(model, table[train], method)

    held_out = table[~train]
    prediction = posterior.predict(held_out, include_noise=True)
    truth = held_out["pm25"].to_numpy()
    deviation = np.sqrt(prediction.variance)
    z = (truth - prediction.mean) / deviation
    means = table[train].groupby("day")["pm25"].mean()
    day_mean = held_out["day"].map(means).fillna(table[train]["pm25"].mean()).to_numpy()

    path = out / "beijing.png"
    _picture(posterior, path)
    tree = posterior.to_datatree(num_draws=max(2, draws // 8), predictions=held_out)
    posterior.save(out / "beijing.nc", tree)

    status = posterior.convergence
    rows = {
        "root mean square error, held out": f"{_rms(truth - prediction.mean):.2f} µg/m³",
        "  of the mean of the day's other stations": f"{_rms(truth - day_mean):.2f} µg/m³",
        f"held-out values inside their {_LEVEL:.0%} interval": (
            f"{np.mean(np.abs(z) < norm.ppf(0.5 + _LEVEL / 2)):.1%}"
        ),
        "mean squared standardised error": f"{np.mean(z**2):.2f}",
        "noise sd": f"{np.sqrt(posterior.mean['noise_variance']):.2f} µg/m³",
        "components that matter": f"{posterior.effective_ranks['day']} of {_RANK}",
        "evidence bound": f"{posterior.log_evidence:.1f} nats",
        "converged": f"{'yes' if status.converged else 'NO'}, {status.iterations} iterations",
    }
    console.print(f"  {status.seconds:.1f} s, compilation included\n    {path.name}, beijing.nc")
    console.print(summary_table(rows))


def _picture(posterior, path):
    import matplotlib

    matplotlib.use("Agg")  # files only: no display is needed
    import matplotlib.pyplot as plt

    from bayeskit import plots

    figure = plots.plot_mode_functions(
        posterior, ["day", "station"], labels={"station": _STATIONS}, components=3
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _rms(error):
    return float(np.sqrt(np.mean(error**2)))
