"""Linear decoders: what a perturbation does to the closed form, and EM beside it."""

import warnings

import numpy as np

import bayeskit as bk
from benchmarks.common import Bar, Options, Report, Table, relative_error, share

ORDER = 1
TITLE = "Linear decoders: perturbing adds its square to the noise and leaves the loadings"
MINUTES = (1, 3)

ROWS, FEATURES, LATENTS = 300, 12, 3
LEVELS = (0.05, 0.2, 1.0)
NOISE = 0.3


def run(options: Options) -> Report:
    seeds = options.count(5, 20)
    report = Report(
        TITLE,
        settings={"seeds": seeds, "rows": ROWS, "D": FEATURES, "q": LATENTS, "levels": LEVELS},
    )
    names = ("loadings", "noise", "closed form", "EM from elsewhere")
    worst = {level: dict.fromkeys(names, 0.0) for level in LEVELS}
    singular = []
    for seed in range(seeds):
        generator = np.random.default_rng(seed)
        clean = generator.normal(size=(ROWS, LATENTS)) @ generator.normal(size=(LATENTS, FEATURES))
        rows = clean + NOISE * generator.normal(size=clean.shape)
        for level in LEVELS:
            for name, error in errors_of(rows, level).items():
                worst[level][name] = max(worst[level][name], error)
        singular.append(told_singular(clean))
    report.results["worst errors"] = {str(level): errors for level, errors in worst.items()}
    report.tables.append(
        Table(
            f"largest relative errors, {seeds} data sets",
            ("level", *names),
            [(level, *(f"{worst[level][name]:.1e}" for name in names)) for level in LEVELS],
            "Loadings: W Wᵀ with and without the perturbation. Noise: the difference of variances "
            "beside the square of the perturbation. Closed form: covariance beside the one of an "
            "eigendecomposition in NumPy. EM: the same, from the loadings of another data set.",
        )
    )
    for name, limit in (("loadings", 1e-8), ("noise", 1e-8), ("closed form", 1e-8)):
        largest = max(errors[name] for errors in worst.values())
        report.bars.append(Bar(f"{name}: largest relative error", largest, "<=", limit))
    largest = max(errors["EM from elsewhere"] for errors in worst.values())
    report.bars.append(Bar("EM from elsewhere: largest relative error", largest, "<=", 1e-6))
    report.bars.append(
        Bar("noise-free rows without perturbation: found singular", share(singular), ">=", 1.0)
    )
    return report


def fitted(rows, level, method=None, initial=None):
    model = bk.models.SingularDistribution(LATENTS, decoder="linear", perturbation=level)
    return bk.infer(model, rows, method, initial=initial)


def outer_of(posterior):
    loadings = posterior.mean["loadings"]
    return loadings @ loadings.T


def covariance_of(posterior):
    return outer_of(posterior) + posterior.mean["noise_variance"] * np.eye(FEATURES)


def errors_of(rows, level):
    """Relative errors of a perturbed fit."""
    plain, perturbed = fitted(rows, 0.0), fitted(rows, level)
    added = perturbed.mean["noise_variance"] - plain.mean["noise_variance"]
    expected = closed_form(rows, perturbed.perturbation)
    other = fitted(np.random.default_rng(0).normal(size=rows.shape), level)
    method = bk.inference.EM(max_iterations=20_000, tolerance=1e-12)
    again = fitted(rows, level, method, other)
    return {
        "loadings": relative_error(outer_of(perturbed), outer_of(plain)),
        "noise": abs(added / perturbed.perturbation**2 - 1.0),
        "closed form": relative_error(covariance_of(perturbed), expected),
        "EM from elsewhere": relative_error(covariance_of(again), expected),
    }


def closed_form(rows, perturbation):
    """Covariance of the maximum of the likelihood, by an eigendecomposition."""
    values, vectors = np.linalg.eigh(np.cov(rows.T, bias=True) + perturbation**2 * np.eye(FEATURES))
    values[: FEATURES - LATENTS] = values[: FEATURES - LATENTS].mean()
    return vectors * values @ vectors.T


def told_singular(rows):
    """Whether rows in a plane are said to have no likelihood's maximum."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        fitted(rows, 0.0)
    return any("the distribution is singular" in str(warning.message) for warning in told)
