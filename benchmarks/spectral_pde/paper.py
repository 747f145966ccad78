"""The paper's algorithm on the problems of the studies, entry by entry and structured."""

import jax
import numpy as np

import bayeskit as bk
from bayeskit.models.spectral_pde import joint
from benchmarks.baselines.gp_hm import GPHM, adam
from benchmarks.spectral_pde.problems import PROBLEMS

COMPONENTS = 30
# Of the inverse length in what the scales are logarithms of.
POWERS = {"gaussian": 2, "student-t": 1}


def model_of(name, family):
    """The package's model at the problem's number of points."""
    problem = PROBLEMS[name]
    return bk.models.SpectralPDE(
        problem.pde,
        grid=dict.fromkeys(problem.pde.dims, problem.points),
        kernel=bk.models.SpectralMixture(COMPONENTS, family),
    )


def baseline_of(name, family):
    """The algorithm's statement entry by entry, and its start, which is that of ours."""
    problem = PROBLEMS[name]
    grids = tuple(np.linspace(0.0, length, problem.points) for length in problem.lengths)
    mesh = np.meshgrid(*grids, indexing="ij")
    values = problem.truth(*mesh)
    faces = tuple(np.take(values, end, axis=k) for k in range(len(grids)) for end in (0, -1))
    reaction = (lambda u: u * (u**2 - 1)) if problem.allen_cahn else None
    baseline = GPHM(grids, problem.source(*mesh), faces, family, reaction)
    # In cycles of a unit, where the package counts in boxes of length 2 π.
    highest = float(joint.highest(problem.points)) * joint.BOX / problem.lengths[0]
    return baseline, baseline.start(COMPONENTS, highest)


def as_unknowns(lengths, family, parameters) -> joint.Unknowns:
    """The baseline's parameters as ours, which are those of boxes of length 2 π."""
    spectra = tuple(
        joint.Spectra(
            each["log_weights"],
            each["frequencies"] / ratio,
            each["log_scales"] - POWERS[family] * np.log(ratio),
        )
        for each, ratio in zip(parameters["kernels"], _ratios(lengths), strict=True)
    )
    return joint.Unknowns(
        parameters["values"], spectra, parameters["log_equation"], parameters["log_condition"]
    )


def as_parameters(lengths, family, unknowns):
    """The other way."""
    kernels = tuple(
        {
            "log_weights": each.log_weights,
            "frequencies": each.frequencies * ratio,
            "log_scales": each.log_scales + POWERS[family] * np.log(ratio),
        }
        for each, ratio in zip(unknowns.spectra, _ratios(lengths), strict=True)
    )
    return {
        "values": unknowns.values,
        "kernels": kernels,
        "log_equation": unknowns.log_equation,
        "log_condition": unknowns.log_condition,
    }


def _ratios(lengths):
    return [joint.BOX / length for length in lengths]


def structured_loss(name, family):
    """The negative density of MaximumAPosteriori without the guard: the paper's loss."""
    prepared = model_of(name, family).prepare(None)
    return lambda unknowns: -joint.log_joint(prepared.data, prepared.model.kernel, unknowns)


def started(loss, parameters):
    """A function that makes so many steps of Adam from the start, compiled."""
    # Python's numbers would have another type in the first step than in the second.
    parameters = jax.tree.map(lambda leaf: jax.numpy.asarray(np.asarray(leaf)), parameters)
    init, step = adam(loss)
    state = init(parameters)

    def steps(count):
        moved, moments = parameters, state
        for _ in range(count):
            moved, moments, _ = step(moved, moments)
        return moved

    jax.block_until_ready(steps(2))
    return steps
