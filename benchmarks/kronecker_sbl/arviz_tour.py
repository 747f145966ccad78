"""ArviZ end to end on a complex and on a large posterior, and storage."""

import tempfile
from pathlib import Path

import arviz_plots as azp
import arviz_stats as azs
import numpy as np

import bayeskit as bk
from bayeskit.inference import MCMC
from benchmarks.common import Bar, Options, Report, Table

ORDER = 7
TITLE = "ArviZ end to end: summary, leave-one-out, plots, save and load"
MINUTES = (2, 2)

SHOWN = 6  # coefficients in summaries and forests


def run(options: Options) -> Report:
    report = Report(TITLE)
    pictures = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, make in (("IRS channel", irs_posterior), ("MRI slice", mri_posterior)):
            posterior, num_draws = make(100 if options.seeds == 1 else 250)
            pictures += tour(report, name, posterior, num_draws, Path(folder))
            identical = stored(posterior, Path(folder) / "posterior.nc")
            for what, same in identical.items():
                report.bars.append(Bar(f"{name}: {what} identical after load", same, "==", 1))
    report.bars.append(Bar("pictures drawn", pictures, "==", 4))
    return report


def irs_posterior(draws):
    """Complex coefficients, sampled: four chains."""
    problem = bk.datasets.irs_mimo(0)
    model = bk.models.KroneckerSBL(
        problem.dictionaries, noise_variance=problem.noise_variance, coupling=(0.8, 0.0, 0.8)
    )
    method = MCMC(
        num_warmup=draws, num_samples=draws, num_chains=4, target_accept=0.9, dense_mass=True
    )
    return bk.infer(model, problem.measurements, method, key=0), draws


def mri_posterior(draws):
    """16 384 coefficients, in closed form."""
    problem = bk.datasets.compressive_image(0)
    return bk.infer(bk.models.KroneckerSBL(problem.dictionaries), problem.measurements), draws


def tour(report, name, posterior, num_draws, folder):
    """Everything a user does with the tree; the number of pictures drawn."""
    tree = posterior.to_datatree(num_draws=num_draws, key=0)
    # The coefficients with the largest means, as a dimension of their own.
    coefficients = tree["posterior"]["coefficients"]
    dims = [dim for dim in coefficients.dims if dim not in ("chain", "draw", "part")]
    flat = coefficients.stack(coefficient=dims).reset_index("coefficient", drop=True)
    size = np.abs(flat.mean(["chain", "draw"]))
    size = size.sum("part") if "part" in size.dims else size
    order = np.argsort(-size.values)[:SHOWN]
    largest = flat.isel(coefficient=order).assign_coords(coefficient=order)
    shown = tree.copy()
    shown["posterior"] = tree["posterior"].to_dataset().assign(largest=largest)
    scales = [site for site in ("scales_0", "scales_1") if site in tree["posterior"]]
    var_names = ["largest", *scales]

    summary = azs.summary(shown, var_names=var_names)
    missing = (~np.isfinite(summary["mean"].astype(float))).sum()
    sizes = tree["posterior"].sizes
    loo = posterior.loo()
    files = [folder / f"{name}-{kind}.png" for kind in ("rank", "forest")]
    # Rank plots compare chains; a posterior in closed form has one, of independent draws.
    azp.plot_rank(shown, var_names=scales[:1] or ["largest"], backend="matplotlib").savefig(
        str(files[0])
    )
    azp.plot_forest(shown, var_names=["largest"], backend="matplotlib").savefig(str(files[1]))
    own = posterior.summary()
    report.tables.append(
        Table(
            f"{name}: {type(posterior.method).__name__}",
            ("", "value"),
            [
                ("groups of the tree", ", ".join(tree.children)),
                ("draws", " × ".join(str(sizes[dim]) for dim in ("chain", "draw"))),
                ("coefficients", posterior.mean["coefficients"].size),
                ("megabytes of the posterior group", tree["posterior"].nbytes / 1e6),
                ("leave-one-out elpd", float(loo.elpd)),
                ("its standard error", float(loo.se)),
                ("effective parameters", float(loo.p)),
                ("largest Pareto k (0: exact)", float(np.max(loo.pareto_k))),
                ("reason", posterior.convergence.reason),
            ],
        )
    )
    report.tables.append(
        Table(
            f"{name}: arviz_stats.summary of the {SHOWN} largest coefficients",
            ("", *summary.columns),
            [
                (index, *(str(value) for value in row))
                for index, row in zip(summary.index, summary.values.tolist(), strict=True)
            ][: 2 * SHOWN],
        )
    )
    # What the package reports of the largest entries must be what ArviZ finds in the draws.
    reference = np.asarray(posterior.mean["coefficients"]).ravel()[order]
    if np.iscomplexobj(reference):
        reference = np.stack([reference.real, reference.imag], axis=-1)
    drawn = largest.mean(["chain", "draw"]).transpose("coefficient", ...).values
    deviation = largest.std(["chain", "draw"]).transpose("coefficient", ...).values
    gap = float(np.max(np.abs(drawn - reference) / deviation))
    report.bars += [
        Bar(f"{name}: non-finite means of the summary", int(missing), "==", 0),
        Bar(f"{name}: rows of the package's summary", len(own), ">=", 20),
        Bar(f"{name}: draws' means from exact ones (deviations)", gap, "<=", 0.5),
        Bar(f"{name}: non-finite points of loo", int((~np.isfinite(loo.elpd_i)).sum()), "==", 0),
    ]
    report.results[name] = {
        "elpd": float(loo.elpd),
        "se": float(loo.se),
        "summary": summary.astype(str).to_dict(),
    }
    return sum(file.exists() and file.stat().st_size > 1000 for file in files)


def stored(posterior, path):
    """Whether what comes back from a file is the same to the last bit."""
    posterior.save(path)
    loaded = bk.load(path)
    same = {
        what: all(
            np.array_equal(getattr(posterior, what)[site], getattr(loaded, what)[site])
            for site in posterior.mean
        )
        for what in ("mean", "variance")
    }
    ours, theirs = posterior.sample(1, 3), loaded.sample(1, 3)
    same["draws"] = all(np.array_equal(ours[site], theirs[site]) for site in ours)
    same["leave-one-out"] = np.array_equal(posterior.loo().elpd_i, loaded.loo().elpd_i)
    same["evidence and convergence"] = (
        posterior.log_evidence == loaded.log_evidence
        and posterior.convergence.reason == loaded.convergence.reason
    )
    path.unlink()
    return {what: int(value) for what, value in same.items()}
