"""Latents and denoised rows: chains beside encoders, and how often intervals hold the truth."""

import copy
import dataclasses
import warnings

import numpy as np
from scipy.stats import norm

import bayeskit as bk
from benchmarks.common import Bar, Options, Report, Table, in_two_processes

ORDER = 9
TITLE = "Latents by chains beside the encoder's, and coverage of denoised rows"
MINUTES = (4, 15)

LEVEL = 0.9
CHAINS = bk.inference.MCMC(num_warmup=500, num_samples=2000, num_chains=4)
SHORT_CHAINS = bk.inference.MCMC(num_warmup=500, num_samples=500, num_chains=4)
SHAPES = {"circle": 2, "sphere": 3}
ROWS, NOISE = 200, 0.15
METHODS = (
    "linear, EM",
    "linear, MessagePassing",
    "linear, MCMC",
    "networks, encoder alone",
    "networks, encoder and last layer",
    "networks, MCMC and last layer",
    "networks, EM on a grid",
)


def run(options: Options) -> Report:
    seeds = options.count(3, 10)
    report = Report(
        TITLE, settings={"data sets": seeds, "rows": ROWS, "noise": NOISE, "level": LEVEL}
    )
    found = in_two_processes(
        "benchmarks.singular.posterior:latents", [{"name": name} for name in SHAPES]
    )
    report.results["latents"] = dict(zip(SHAPES, found, strict=True))
    report.tables.append(
        Table(
            f"latents of {ROWS} rows: NUTS beside the encoder, networks given",
            ("shape", "R-hat", "divergences", "RMS of means' difference ÷ sd", "sd ÷ NUTS's"),
            [
                (
                    name,
                    f"{each['rhat']:.4f}",
                    each["divergences"],
                    f"{each['difference']:.2f}",
                    f"{each['ratio']:.2f}",
                )
                for name, each in zip(SHAPES, found, strict=True)
            ],
            "The largest R-hat is over the log density and the norms of all latents.",
        )
    )
    for name, each in zip(SHAPES, found, strict=True):
        report.bars.append(Bar(f"{name}: largest R-hat", each["rhat"], "<", 1.01))
    covered = in_two_processes(
        "benchmarks.singular.posterior:coverage", [{"seed": seed} for seed in range(seeds)]
    )
    report.results["coverage"] = covered
    means = {
        name: {
            what: float(np.mean([each[name][what] for each in covered]))
            for what in ("covered", "squares")
        }
        for name in METHODS
    }
    report.tables.append(
        Table(
            f"{LEVEL:.0%} intervals of denoised rows, {seeds} data sets of {ROWS} rows",
            ("method", "covered", "smallest", "largest", "mean z²"),
            [
                (
                    name,
                    f"{means[name]['covered']:.3f}",
                    f"{min(each[name]['covered'] for each in covered):.3f}",
                    f"{max(each[name]['covered'] for each in covered):.3f}",
                    f"{means[name]['squares']:.2f}",
                )
                for name in METHODS
            ],
            f"Rows with noise {NOISE} of a plane or a circle of radius one in ten dimensions, not "
            "perturbed; intervals of predict().",
        )
    )
    for name in ("linear, MCMC", "linear, MessagePassing"):
        report.bars.append(Bar(f"{name}: covered", means[name]["covered"], ">=", 0.85))
        report.bars.append(Bar(f"{name}: mean z²", means[name]["squares"], "<=", 2.0))
    return report


def latents(name):
    """Chains of the latents of some rows beside the encoder's moments."""
    sample = bk.datasets.shape(0, name, rows=ROWS)
    rows = sample.observations
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bk.BayeskitWarning)
        trained = bk.infer(
            bk.models.SingularDistribution(SHAPES[name], perturbation=0.2),
            rows.astype(np.float32),
            key=0,
        )
        chains = bk.infer(trained.model, rows, CHAINS, key=1)
    encoded = trained.encode(rows)
    mean, deviation = chains.mean["latents"], np.sqrt(chains.variance["latents"])
    return {
        "rhat": chains.convergence.max_rhat,
        "ess": chains.convergence.min_ess,
        "divergences": chains.convergence.divergences,
        "difference": float(np.sqrt(np.mean(((encoded.mean - mean) / deviation) ** 2))),
        "ratio": float(np.median(np.sqrt(encoded.variance) / deviation)),
    }


def coverage(seed):
    """Shares of noise-free rows in their intervals, and mean squares of scores, by method."""
    generator = np.random.default_rng(seed)
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bk.BayeskitWarning)
        weights = generator.normal(size=(2, 10)) / np.sqrt(2.0)
        clean = generator.normal(size=(ROWS, 2)) @ weights
        rows = clean + NOISE * generator.normal(size=clean.shape)
        model = bk.models.SingularDistribution(2, decoder="linear", perturbation=0.0)
        first = bk.infer(model, rows)
        found["linear, EM"] = _scores(first.predict(), clean)
        messages = bk.infer(model, rows, bk.inference.MessagePassing())
        found["linear, MessagePassing"] = _scores(messages.predict(), clean)
        chains = bk.infer(first.model, rows, SHORT_CHAINS, key=seed)
        found["linear, MCMC"] = _scores(chains.predict(), clean)

        shape = bk.datasets.shape(seed, "circle", rows=ROWS, noise=0.0)
        clean = shape.observations
        rows = clean + NOISE * generator.normal(size=clean.shape)
        trained = bk.infer(
            bk.models.SingularDistribution(2, perturbation=0.0), rows.astype(np.float32), key=seed
        )
        found["networks, encoder and last layer"] = _scores(trained.predict(), clean)
        bare = copy.copy(trained)
        bare.approximation = dataclasses.replace(trained.approximation, last_layer=None)
        found["networks, encoder alone"] = _scores(bare.predict(), clean)
        chains = bk.infer(trained.model, rows, SHORT_CHAINS, key=seed)
        found["networks, MCMC and last layer"] = _scores(chains.predict(), clean)
        fixed = bk.models.SingularDistribution(2, perturbation=0.0, fresh=False)
        grid = bk.infer(fixed, rows, bk.inference.EM(max_iterations=300), key=seed)
        found["networks, EM on a grid"] = _scores(grid.predict(), clean)
    return found


def _scores(prediction, clean):
    scores = (clean - prediction.mean) / np.sqrt(prediction.variance)
    inside = np.abs(scores) < norm.ppf(0.5 + LEVEL / 2)
    return {"covered": float(np.mean(inside)), "squares": float(np.mean(scores**2))}
