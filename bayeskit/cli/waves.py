"""The part of ``bayeskit quickstart`` about a differential equation on several scales."""

from typing import Any

import numpy as np

from bayeskit import pde
from bayeskit.cli.console import summary_table
from bayeskit.inference.driver import infer
from bayeskit.models import SpectralPDE

_POINTS = 400
_FREQUENCIES = np.array([1.0, 20.0, 100.0])
_AMPLITUDES = np.array([1.0, 0.1, 0.05])
_LEVEL_Z = 1.959964


def _truth(x):
    return np.sin(np.multiply.outer(x, _FREQUENCIES)) @ _AMPLITUDES


def _source(x):
    return np.sin(np.multiply.outer(x, _FREQUENCIES)) @ (-_AMPLITUDES * _FREQUENCIES**2)


def quickstart_waves(console, out, draws) -> None:
    """Solve a Poisson equation whose solution has three scales, print, write picture and tree."""
    console.print(
        "[bold]Spectral-mixture solver[/] of u'' = f on [0, 1], whose solution has waves of "
        f"{', '.join(f'{each:g}' for each in _FREQUENCIES)} radians a unit, {_POINTS} points"
    )
    problem = pde.PDE(
        lambda u, x: u.d("x", 2) - _source(x),
        {"x": (0.0, 1.0)},
        [pde.Dirichlet("x", 0.0, _truth), pde.Dirichlet("x", 1.0, _truth)],  # pyright: ignore[reportCallIssue]
    )
    posterior: Any = infer(SpectralPDE(problem, grid={"x": _POINTS}), None)
    points = np.linspace(0.0, 1.0, 1001)
    found = posterior.predict({"x": points})
    error, deviation = found.mean - _truth(points), np.sqrt(found.variance)
    path = out / "waves.png"
    _picture(posterior, points, found, error, deviation, path)
    posterior.save(out / "waves.nc", posterior.to_datatree(num_draws=draws))

    status = posterior.convergence
    inside = np.mean(np.abs(error) < _LEVEL_Z * deviation)
    rows = {
        "relative error": f"{np.linalg.norm(error) / np.linalg.norm(_truth(points)):.1e}",
        "residual, which needs no true solution": f"{posterior.residual:.1e}",
        "root mean square posterior sd": f"{np.sqrt(np.mean(deviation**2)):.1e}",
        "points inside their 95% interval": f"{inside:.1%}",
        "log evidence": f"{posterior.log_evidence:.1f} nats",
        "converged": f"{'yes' if status.converged else 'NO'}, {status.iterations} iterations",
    }
    console.print(f"  {status.seconds:.1f} s, compilation included\n    {path.name}, waves.nc")
    console.print(summary_table(rows))


def _picture(posterior, points, found, error, deviation, path):
    import matplotlib

    matplotlib.use("Agg")  # files only: no display is needed
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    left.plot(points, found.mean)
    left.set(xlabel="x", ylabel="u", title="solution")
    middle.fill_between(points, -2e12 * deviation, 2e12 * deviation, alpha=0.3, label="± 2 sd")
    middle.plot(points, 1e12 * error, lw=0.8, label="error")
    middle.set(xlabel="x", ylabel="difference [10⁻¹²]", title="what is not known of it")
    middle.legend()
    spectrum = posterior.spectrum("x")
    right.semilogy(spectrum.frequencies, np.maximum(spectrum.weights, 1e-16), label="learned")
    for frequency in _FREQUENCIES / (2 * np.pi):
        right.axvline(frequency, color="k", ls=":", lw=0.8)
    right.plot([], [], "k:", lw=0.8, label="true")
    right.set(xlabel="cycles per unit", title="spectrum: shares of power", xlim=(0.0, 30.0))
    right.legend()
    figure.savefig(path, dpi=130)
    plt.close(figure)
