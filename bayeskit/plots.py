"""Pictures that ArviZ has not: images with their uncertainty, sparse supports, convergence.

Every function returns a matplotlib figure and shows or saves nothing. For traces, ranks, forests,
densities and the like give ``posterior.to_datatree()`` to ``arviz_plots``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import chi2, norm

from bayeskit.metrics import psnr
from bayeskit.models import (
    FunctionalTuckerPosterior,
    GaussianMixturePosterior,
    KroneckerSBLPosterior,
)
from bayeskit.posterior import Posterior
from bayeskit.validation import (
    REAL,
    check_integer,
    check_positive,
    check_probability,
    chosen_names,
    double_array,
)

__all__ = [
    "plot_clusters",
    "plot_convergence",
    "plot_image_posterior",
    "plot_mode_functions",
    "plot_support",
]

_BAR_LENGTH = 0.8
_FAR = 1e6  # standard deviations
_CLEAR = 0.95  # probability of a label


def plot_image_posterior(
    mean: Any,
    standard_deviation: Any,
    *,
    truth: Any = None,
    baseline: Any = None,
    baseline_label: str = "minimum norm",
    title: str | None = None,
    unit: str = "intensity",
    data_range: float | None = None,
) -> Figure:
    """An image's posterior: mean, standard deviation and, with the truth, errors.

    Parameters
    ----------
    mean, standard_deviation : array (rows, columns)
        Of the pixels. Coefficients of a transform are correlated in the posterior, so take both
        from transformed draws.
    truth : array (rows, columns), optional
        Adds the truth, the error of the mean, and the error in standard deviations.
    baseline : array (rows, columns), optional
        Another reconstruction, shown on the grey scale of the mean.
    baseline_label : str
        Its name.
    title : str, optional
        Above all panels.
    unit : str
        Of the pixels, on the colour bars.
    data_range : float, optional
        Largest possible difference of two pixels, for peak signal-to-noise ratios; that of the
        truth by default.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    TypeError
        If an array is not of real numbers, or ``data_range`` is no number.
    ValueError
        If an array is empty, not two-dimensional or not of the mean's shape, an entry is masked or
        not finite, a standard deviation is negative, or ``data_range`` is not positive.

    Examples
    --------
    >>> import numpy as np
    >>> image = np.linspace(0.0, 1.0, 12).reshape(3, 4)
    >>> figure = plot_image_posterior(image + 0.1, np.full((3, 4), 0.2), truth=image)
    >>> [axis.get_title().splitlines()[0] for axis in figure.axes[:3]]
    ['truth', 'posterior mean: PSNR 20.0 dB', 'posterior standard deviation']
    """
    import matplotlib.pyplot as plt

    mean = double_array("mean", mean, REAL)
    if mean.ndim != 2 or mean.size == 0:
        raise ValueError(f"mean: got shape {mean.shape}; expected an image (rows, columns)")
    standard_deviation = _image("standard_deviation", standard_deviation, mean.shape)
    if (standard_deviation < 0).any():
        raise ValueError(
            f"standard_deviation must be at least 0, got {standard_deviation.min():.6g}"
        )
    truth, baseline = (
        None if image is None else _image(name, image, mean.shape)
        for name, image in (("truth", truth), ("baseline", baseline))
    )

    reference = mean if truth is None else truth
    low, high = float(reference.min()), float(reference.max())
    data_range = high - low if data_range is None else check_positive("data_range", data_range)
    grey = {"cmap": "gray", "vmin": low, "vmax": high}
    panels: list[tuple[str, np.ndarray, dict[str, Any], str]] = []
    if truth is not None:
        panels.append(("truth", reference, grey, unit))
    if baseline is not None:
        name = baseline_label + _decibels(truth, baseline, data_range)
        panels.append((name, baseline, grey, unit))
    panels.append(("posterior mean" + _decibels(truth, mean, data_range), mean, grey, unit))
    shallow, deep = (float(q) for q in np.quantile(standard_deviation, [0.005, 0.995]))
    spread = {"cmap": "viridis", "vmin": shallow, "vmax": deep if deep > shallow else shallow + 1}
    panels.append(("posterior standard deviation", standard_deviation, spread, unit))
    if truth is not None:
        error = mean - reference
        # A few pixels on edges are far off; the colours are for all the others.
        limit = float(np.quantile(np.abs(error), 0.995)) or 1.0
        signed = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
        panels.append(("error: mean − truth", error, signed, unit))
        # 0 / 0 is no error; what is infinite is coloured as the largest errors are.
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            standardised = np.nan_to_num(error / standard_deviation, posinf=_FAR, neginf=-_FAR)
        inside = float(np.mean(np.abs(standardised) < 1))
        name = f"error / standard deviation\n{inside:.0%} of pixels within ±1 (normal: 68 %)"
        panels.append((name, standardised, {"cmap": "RdBu_r", "vmin": -3, "vmax": 3}, "sd"))

    columns = 3 if len(panels) > 2 else len(panels)
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4.0 * columns, 3.7 * rows), layout="constrained", squeeze=False
    )
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (name, image, style, label) in zip(axes.flat, panels, strict=False):
        shown = axis.imshow(image, interpolation="nearest", **style)
        beyond = _beyond(image, style["vmin"], style["vmax"])
        bar = figure.colorbar(shown, ax=axis, shrink=_BAR_LENGTH, label=label, extend=beyond)
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
        axis.set_title(name, fontsize=11)
        axis.set_xticks([])
        axis.set_yticks([])
    if title is not None:
        figure.suptitle(title, fontsize=13)
    return figure


def plot_support(
    posterior: Any, *, max_coefficients: int = 30, probability: float = 0.95, key: Any = 0
) -> Figure:
    """What a sparse fit found: the coefficients in its support, and the scale factors.

    Parameters
    ----------
    posterior : KroneckerSBLPosterior
        Of one data set.
    max_coefficients : int
        Coefficients to show: those of largest ``|mean| / sd``, in the order of their indices, with
        the interval of ``probability``. Of complex coefficients the modulus, with the radius of
        their disc of that probability.
    probability : float
        Of intervals and support, in (0, 1).
    key : int or JAX key
        For the draws behind the intervals of scale factors, where those are not plugged in.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    TypeError
        For the posterior of a batch or of another family, if ``max_coefficients`` is no integer,
        or if ``probability`` is no number.
    ValueError
        If ``max_coefficients`` is below one, or ``probability`` is not in (0, 1).

    Examples
    --------
    >>> import bayeskit as bk
    >>> problem = bk.datasets.kronecker_sparse(0, shape=(4, 5), atoms=(6, 6), nonzeros=(2, 2))
    >>> model = bk.models.KroneckerSBL(problem.dictionaries)
    >>> posterior = bk.infer(model, problem.measurements)
    >>> figure = plot_support(posterior, max_coefficients=8)
    >>> figure.axes[0].get_title()
    '8 of 36 coefficients: mean and 95% interval'
    """
    import matplotlib.pyplot as plt

    _require_one_data_set("plot_support", posterior, KroneckerSBLPosterior)
    max_coefficients = check_integer("max_coefficients", max_coefficients, 1)
    probability = check_probability("probability", probability)
    mean = posterior.mean
    scales = [name for name in mean if name.startswith("scales_")]
    supported = posterior.support(probability)
    center = np.asarray(mean["coefficients"])
    spread = np.sqrt(np.asarray(posterior.variance["coefficients"]))
    complex_valued = np.iscomplexobj(center)
    radius = np.sqrt(-np.log1p(-probability)) if complex_valued else norm.ppf(0.5 + probability / 2)

    figure = plt.figure(figsize=(max(7.5, 2.6 * len(scales)), 6.4), layout="constrained")
    grid = figure.add_gridspec(2, len(scales))
    top = figure.add_subplot(grid[0, :])
    score = np.abs(center) / np.where(spread > 0, spread, np.inf)
    chosen = np.sort(np.argsort(-score, axis=None, kind="stable")[:max_coefficients])
    positions = np.arange(len(chosen))
    values = np.abs(center.ravel()[chosen]) if complex_valued else center.ravel()[chosen]
    flags = supported.ravel()[chosen]
    for kept, colour, name in (
        (flags, "C0", f"interval excludes zero ({int(supported.sum())} in all)"),
        (~flags, "0.6", "interval includes zero"),
    ):
        if kept.any():
            widths = radius * spread.ravel()[chosen][kept]
            style = {"fmt": "o", "markersize": 4, "capsize": 2, "color": colour, "label": name}
            top.errorbar(positions[kept], values[kept], yerr=widths, **style)
    top.axhline(0.0, color="0.8", linewidth=0.8, zorder=0)
    indices = (np.unravel_index(int(i), center.shape) for i in chosen)
    labels = [", ".join(str(int(i)) for i in index) for index in indices]
    top.set_xticks(positions, labels, rotation=90, fontsize=8)
    top.set_xlabel("index")
    top.set_ylabel("|coefficient|" if complex_valued else "coefficient")
    top.set_title(
        f"{len(chosen)} of {center.size} coefficients: mean and {probability:.0%} "
        + ("disc radius" if complex_valued else "interval"),
        fontsize=11,
    )
    top.legend(fontsize=9)

    plugged_in = posterior.plugged_in
    draws = None
    if any(name not in plugged_in for name in scales):
        draws = posterior.sample(key, 400)
    for position, name in enumerate(scales):
        axis = figure.add_subplot(grid[1, position])
        factor = np.asarray(mean[name]).ravel()
        tail = (1 - probability) / 2
        if draws is None or name in plugged_in:
            axis.plot(factor, "o", markersize=3)
            kind = "estimate"
        else:
            sampled = np.asarray(draws[name]).reshape(len(draws[name]), -1)
            low, middle, high = np.quantile(sampled, [tail, 0.5, 1 - tail], axis=0)
            lengths = np.stack([middle - low, high - middle])
            axis.errorbar(np.arange(len(middle)), middle, lengths, fmt="o", markersize=3, capsize=1)
            kind = f"median, {probability:.0%} interval"
        if np.any(factor > 0):
            axis.set_yscale("log")
        axis.set_title(f"{name}\n{kind}", fontsize=10)
        dims = posterior.prepared.labels.dims[name]
        axis.set_xlabel(" × ".join(map(str, dims)))
        if position == 0:
            axis.set_ylabel("prior variance factor")
    return figure


def plot_mode_functions(
    posterior: Any,
    modes: Sequence[str] | None = None,
    *,
    components: int = 3,
    probability: float = 0.95,
    labels: Mapping[str, Sequence[str]] | None = None,
) -> Figure:
    """Functions of the modes of a functional Tucker decomposition, with bands.

    Parameters
    ----------
    posterior : FunctionalTuckerPosterior
        Of one data set.
    modes : sequence of str, optional
        One row of panels each; all by default.
    components : int
        How many functions, those with the largest mean square first.
    probability : float
        Of the bands, in (0, 1): central normal intervals of each point.
    labels : mapping, optional
        Names of the categories of a mode, in the order of its points.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    TypeError
        For the posterior of a batch or of another family, if ``modes`` is one string, if
        ``components`` is no integer, or if ``probability`` is no number.
    ValueError
        If a mode is unknown or none is named, ``components`` is below one, or ``probability`` is
        not in (0, 1).

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> import bayeskit as bk
    >>> day = np.repeat(np.arange(12.0), 2)
    >>> site = np.tile(["a", "b"], 12)
    >>> level = np.sin(day / 3) * np.where(site == "a", 1.0, 2.0)
    >>> table = pd.DataFrame({"day": day, "site": site, "level": level})
    >>> modes = [bk.models.Mode("day"), bk.models.Mode("site", categorical=True)]
    >>> model = bk.models.FunctionalTucker(modes, ranks=1, value="level", noise_variance=0.01)
    >>> posterior = bk.infer(model, table)
    >>> figure = plot_mode_functions(posterior)
    >>> [axis.get_title() for axis in figure.axes]
    ['day, function 1', 'site, function 1']
    """
    import matplotlib.pyplot as plt

    _require_one_data_set("plot_mode_functions", posterior, FunctionalTuckerPosterior)
    components = check_integer("components", components, 1)
    probability = check_probability("probability", probability)
    every = {mode.name: mode for mode in posterior.prepared.model.modes}
    names = chosen_names("modes", modes, every, "modes")
    if not names:
        raise ValueError(f"modes: got none; the modes are {list(every)}")
    found = {name: posterior.mode_function(name) for name in names}
    columns = min(components, max(each.mean.shape[1] for each in found.values()))
    figure, axes = plt.subplots(
        len(names),
        columns,
        figsize=(4.0 * columns, 2.8 * len(names)),
        layout="constrained",
        squeeze=False,
    )
    width = float(norm.ppf(0.5 + probability / 2))
    for row, name in enumerate(names):
        points, functions = posterior.names.coords[name], found[name]
        for column in range(columns):
            axis = axes[row, column]
            if column >= functions.mean.shape[1]:
                axis.set_visible(False)
                continue
            mean = functions.mean[:, column]
            half = width * np.sqrt(functions.variance[:, column])
            axis.axhline(0.0, color="0.6", linewidth=0.6)
            if every[name].categorical:
                place = np.arange(len(points))
                axis.errorbar(place, mean, half, fmt="o", markersize=4, capsize=2)
                ticks = (labels or {}).get(name, [str(point) for point in points])
                axis.set_xticks(place, ticks, rotation=60, ha="right", fontsize=7)
            else:
                axis.fill_between(points, mean - half, mean + half, alpha=0.3, linewidth=0)
                axis.plot(points, mean, linewidth=0.8)
                axis.set_xlabel(name)
                axis.tick_params(axis="x", labelrotation=30, labelsize=8)
            axis.set_title(f"{name}, function {column + 1}", fontsize=10)
        axes[row, 0].set_ylabel(f"mean and {probability:.0%} interval")
    return figure


def plot_clusters(posterior: Any, features: Sequence[Any] | None = None) -> Figure:
    """Rows of a Gaussian mixture's data by two features, its components, and which are unsure.

    Parameters
    ----------
    posterior : GaussianMixturePosterior
        Of one data set with at least two features.
    features : two labels, optional
        Of the horizontal and the vertical axis, as in the data; the first two by default.

    Returns
    -------
    matplotlib.figure.Figure
        Left: rows in the colour of their most probable component, rings around those whose
        component has a probability below 0.95, and ellipses that hold 50 % and 95 % of every
        component by its mean location and covariance; crosses are locations with two standard
        deviations. Right: how probable the components of the rows are, in rising order. Rows that
        miss a shown feature are not on the left.

    Raises
    ------
    TypeError
        For the posterior of a batch or of another family.
    ValueError
        If the data have one feature, or if ``features`` are not two different ones of theirs.

    Examples
    --------
    >>> import numpy as np
    >>> import bayeskit as bk
    >>> rows = np.random.default_rng(0).normal(size=(60, 2)) + np.repeat([[0.0], [9.0]], 30, axis=0)
    >>> posterior = bk.infer(bk.models.GaussianMixture(2), rows)
    >>> len(bk.plots.plot_clusters(posterior).axes)
    2
    """
    import matplotlib.pyplot as plt
    from matplotlib.patches import Ellipse

    _require_one_data_set("plot_clusters", posterior, GaussianMixturePosterior)
    names = posterior.names
    feature = names.dims[names.observed][-1]
    known = np.asarray(names.coords[feature]).tolist()
    chosen = list(known[:2] if features is None else features)
    if len(chosen) != 2 or chosen[0] == chosen[-1] or any(each not in known for each in chosen):
        raise ValueError(f"features: got {chosen}; expected two different ones of {known}")
    pair = [known.index(each) for each in chosen]

    _, values = posterior.prepared.tables["observed_data"][names.observed]
    shares = posterior.responsibilities()
    labels, sure = shares.argmax(axis=1), shares.max(axis=1)
    mean, deviation = posterior.mean, np.sqrt(posterior.variance["locations"])
    count, size = mean["locations"].shape
    covariances = {
        "full": lambda c: c,
        "tied": lambda c: np.broadcast_to(c, (count, size, size)),
        "diagonal": lambda c: c[:, :, None] * np.eye(size),
        "spherical": lambda c: c[:, None, None] * np.eye(size),
    }[posterior.model.covariance](mean["covariances"])

    figure, (left, right) = plt.subplots(
        1, 2, figsize=(10.5, 4.2), layout="constrained", width_ratios=(1.6, 1.0)
    )
    points = np.asarray(values)[:, pair]
    unsure = sure < _CLEAR
    for k in range(count):
        colour, own = f"C{k % 10}", labels == k
        left.plot(*points[own].T, ".", color=colour, markersize=4, label=f"{k}: {own.sum()} rows")
        place, spread = mean["locations"][k, pair], covariances[k][np.ix_(pair, pair)]
        lengths, axes = np.linalg.eigh(spread)
        angle = np.degrees(np.arctan2(axes[1, -1], axes[0, -1]))
        for probability in (0.5, 0.95):
            width, height = 2 * np.sqrt(lengths[::-1] * chi2.ppf(probability, 2))
            left.add_patch(
                Ellipse(tuple(place), width, height, angle=angle, fill=False, edgecolor=colour)
            )
        across, up = 2 * deviation[k, pair]
        left.errorbar(*place, xerr=across, yerr=up, color="k", lw=1.2)
    left.plot(
        *points[unsure].T, "o", color="0.3", fillstyle="none", markersize=7, lw=0,
        label=f"below {_CLEAR:.0%}: {unsure.sum()}",
    )  # fmt: skip
    left.autoscale_view()
    left.set(xlabel=str(chosen[0]), ylabel=str(chosen[1]), title="rows and components")
    left.legend(fontsize="small")
    order = np.argsort(sure)
    right.scatter(
        np.arange(1, len(sure) + 1), sure[order], c=[f"C{k % 10}" for k in labels[order]], s=6
    )
    right.axhline(_CLEAR, color="0.3", ls=":", lw=0.8)
    right.set(
        xlabel="rows, the least sure first",
        ylabel="probability of the component",
        ylim=(0.0, 1.02),
        title="how sure the labels are",
    )
    return figure


def plot_convergence(posterior: Any) -> Figure:
    """How a fit ended: objective and change an iteration, or the chains' log evidence.

    Parameters
    ----------
    posterior : Posterior
        Of one data set.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    TypeError
        For what is no posterior, that of a batch, or where the method keeps no trace.

    Examples
    --------
    >>> import bayeskit as bk
    >>> problem = bk.datasets.kronecker_sparse(0, shape=(4, 5), atoms=(6, 6), nonzeros=(2, 2))
    >>> model = bk.models.KroneckerSBL(problem.dictionaries)
    >>> figure = plot_convergence(bk.infer(model, problem.measurements))
    >>> [axis.get_title() for axis in figure.axes]
    ['objective before each iteration', 'largest relative change of a site']
    """
    import matplotlib.pyplot as plt

    _require_one_data_set("plot_convergence", posterior, Posterior)
    status = posterior.convergence
    method = type(posterior.method).__name__
    ended = "converged" if status.converged else "NOT converged"
    if "optimization" in posterior.trace:
        trace = posterior.trace["optimization"]
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.0, 3.4), layout="constrained")
        steps = np.arange(1, len(trace["objective"]) + 1)
        left.plot(steps, trace["objective"], ".-", markersize=3)
        left.set_ylabel("objective (nats)")
        left.set_title("objective before each iteration", fontsize=11)
        # The first iterations gain thousands of nats; what matters is whether the last ones do.
        tail = np.asarray(trace["objective"])[len(steps) // 4 :]
        if len(tail) > 3 and np.ptp(tail) > 0:
            inset = left.inset_axes((0.45, 0.14, 0.5, 0.5))
            inset.plot(steps[len(steps) // 4 :], tail, linewidth=1)
            inset.set_title("last three quarters", fontsize=8)
            inset.tick_params(labelsize=7)
        _changes(right, steps, np.asarray(trace["change"]))
        tolerance = posterior.method.settings().get("tolerance")
        if tolerance:
            right.axhline(tolerance, color="C3", linewidth=1, label=f"tolerance {tolerance:g}")
        if right.get_legend_handles_labels()[0]:
            right.legend(fontsize=9)
        right.set_ylabel("relative change")
        right.set_title("largest relative change of a site", fontsize=11)
        for axis in (left, right):
            axis.set_xlabel("iteration")
    elif "log_evidence" in posterior.trace.get("sample_stats", {}):
        chains = np.asarray(posterior.trace["sample_stats"]["log_evidence"])
        figure, axis = plt.subplots(figsize=(9.0, 3.4), layout="constrained")
        for number, chain in enumerate(chains):
            axis.plot(chain, linewidth=0.7, label=f"chain {number}")
        axis.set_xlabel("draw")
        axis.set_ylabel("log evidence (nats)")
        axis.legend(fontsize=9, ncols=4)
        axis.set_title("log evidence of the hyper-parameters of each draw", fontsize=11)
    else:
        raise TypeError(f"plot_convergence: {method} keeps no trace")
    figure.suptitle(f"{method} {ended}: {status.reason}", fontsize=11)
    return figure


def _changes(axis, steps, change):
    """Changes on a logarithmic axis, with those of exactly zero along its bottom."""
    zero = change == 0
    axis.semilogy(steps, np.where(zero, np.nan, change), ".-", markersize=3)
    if zero.any():
        bottom = {"transform": axis.get_xaxis_transform(), "clip_on": False}
        axis.plot(steps[zero], np.zeros(zero.sum()), "vC0", label="no change at all", **bottom)


def _image(name, image, shape):
    image = double_array(name, image, REAL)
    if image.shape != shape:
        raise ValueError(f"{name}: got shape {image.shape}; expected {shape}")
    return image


def _require_one_data_set(function, posterior, family):
    if not isinstance(posterior, family):
        raise TypeError(
            f"posterior: {function} got {type(posterior).__name__}; expected {family.__name__}"
        )
    if posterior.batch is not None:
        raise TypeError(f"{function} is for one data set, got a batch of {posterior.batch}")


def _decibels(truth, image, data_range):
    if truth is None or data_range <= 0:
        return ""
    return f": PSNR {psnr(truth, image, data_range):.1f} dB"


def _beyond(image, low, high):
    """Which ends of a colour bar are passed by pixels."""
    below, above = bool(np.min(image) < low), bool(np.max(image) > high)
    return {(False, False): "neither", (True, False): "min", (False, True): "max"}.get(
        (below, above), "both"
    )
