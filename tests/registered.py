"""Small problems, one or more a family, on which every pair of model and method is checked."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpyro.distributions as dist
from gpjax.kernels import Matern32

import bayeskit as bk


class Registered(NamedTuple):
    """A problem, and the methods that are checked on it.

    ``full`` problems run in the whole matrix only: the others are families under their own
    method, and every method on one family or another. ``expected_failed`` has, by method's name,
    the checks which that pair is known not to pass, with reasons.
    """

    name: str
    model: Any
    data: Any
    methods: tuple
    full: bool = False
    expected_failed: Mapping = MappingProxyType({})


def methods():
    # More than one block of steps, the last one not full; chains too short to converge.
    return (
        bk.inference.EM(max_iterations=120),
        bk.inference.MessagePassing(max_iterations=120),
        bk.inference.MCMC(num_warmup=40, num_samples=40, num_chains=2),
    )


def _normal(generator, complex_data, *shape):
    real = generator.normal(size=shape)
    return (real + 1j * generator.normal(size=shape)) / np.sqrt(2) if complex_data else real


def kronecker_problem(rows, columns, *, seed=0, complex_data=False, snapshots=None, noise=0.01):
    """Dictionaries of independent normal entries, and data simulated in NumPy."""
    generator = np.random.default_rng(seed)
    dictionaries = [
        _normal(generator, complex_data, m, n) for m, n in zip(rows, columns, strict=True)
    ]
    lead = () if snapshots is None else (snapshots,)
    data = _normal(generator, complex_data, *lead, *columns)
    for axis, dictionary in enumerate(dictionaries, start=len(lead)):
        data = np.moveaxis(np.tensordot(dictionary, data, axes=(1, axis)), 0, axis)
    return dictionaries, data + np.sqrt(noise) * _normal(generator, complex_data, *data.shape)


def _kronecker_sbl():
    priors = {
        "scale_prior": dist.InverseGamma(3.0, 2.0),
        "noise_prior": dist.InverseGamma(3.0, 0.02),
    }
    dictionaries, data = kronecker_problem((3, 4), (4, 5))
    model, (em, messages, chains) = bk.models.KroneckerSBL(dictionaries, **priors), methods()
    yield Registered("kronecker_sbl", model, data, (em, chains))
    yield Registered("kronecker_sbl_messages", model, data, (messages,), full=True)
    dictionaries, data = kronecker_problem((3, 4), (4, 3), complex_data=True, snapshots=2)
    yield Registered(
        "kronecker_sbl_complex_snapshots",
        bk.models.KroneckerSBL(dictionaries, **priors),
        data,
        methods(),
        full=True,
    )
    dictionaries, data = kronecker_problem((3, 4, 2), (4, 3, 2))
    yield Registered(
        "kronecker_sbl_grouped_known_noise",
        bk.models.KroneckerSBL(
            dictionaries,
            noise_variance=0.01,
            scales=((0, 2), (1,)),
            scale_prior=priors["scale_prior"],
        ),
        data,
        methods(),
        full=True,
    )


def _functional_tucker():
    generator = np.random.default_rng(0)
    place, group = generator.uniform(0.0, 4.0, 30), np.tile(np.arange(3), 10)
    values = np.sin(2 * place) * np.array([1.0, 0.5, -0.7])[group] + 0.5
    values = values + 0.1 * generator.normal(size=30)
    modes = [
        bk.models.Mode("place", kernel=Matern32(lengthscale=1.0), points=np.linspace(0, 3, 8)),
        bk.models.Mode("group", categorical=True, points=np.arange(3)),
    ]
    priors = {
        "offset": 0.0,
        "scale": 1.0,
        "noise_prior": dist.InverseGamma(3.0, 0.03),
        "kernel_priors": {
            "lengthscale": dist.LogNormal(0.0, 0.3),
            "variance": dist.LogNormal(-1.0, 0.3),
            "constant_variance": dist.LogNormal(-1.0, 0.3),
        },
    }
    data = ((place, group), values)
    yield Registered(
        "functional_tucker",
        bk.models.FunctionalTucker(modes, ranks=(2, 1), **priors),
        data,
        methods()[:1],
    )
    yield Registered(
        "functional_tucker_other_methods",
        bk.models.FunctionalTucker(modes, ranks=(2, 1), **priors),
        data,
        methods()[1:],
        full=True,
    )
    yield Registered(
        "functional_tucker_cp",
        bk.models.FunctionalTucker(modes, ranks=1, core="cp", **priors),
        data,
        methods(),
        full=True,
    )


def _spectral_pde():
    generator = np.random.default_rng(0)

    def solution(x):
        return np.sin(5 * x) + 0.5 * x

    stiffness = bk.pde.Unknown("stiffness", dist.Normal(2.0, 0.5))
    pde = bk.pde.PDE(
        lambda u, x: u.d("x", 2) + stiffness * u + 25 * np.sin(5 * x) - 2 * solution(x),
        {"x": (0.0, 2.0)},
        [bk.pde.Dirichlet("x", 0.0, solution)],
    )
    points = np.linspace(0.1, 1.7, 12)
    values = solution(points) + 0.05 * generator.normal(size=12)
    model = bk.models.SpectralPDE(
        pde,
        grid={"x": 12},
        kernel=bk.models.SpectralMixture(2),
        spectrum_prior={
            "weights": dist.LogNormal(-1.0, 0.5),
            "slow": dist.LogNormal(-1.0, 0.5),
            "widths": dist.LogNormal(-1.0, 0.3),
        },
        noise_prior=dist.LogNormal(-3.0, 0.5),
    )
    reasons = {
        "single_precision": "differential equations are solved in double precision always",
        "wrong_input_rejected": "None are no data, which an equation can do without",
    }
    yield Registered(
        "spectral_pde",
        model,
        bk.pde.Sensors({"x": points}, values),
        methods(),
        full=True,
        expected_failed=dict.fromkeys(("EM", "MessagePassing", "MCMC"), reasons),
    )
    no_data = "an exact equation has no data"
    checks = ("no_recompilation", "tree", "checkpoint", "leave_one_out", "predict", "batch")
    yield Registered(
        "spectral_pde_exact",
        bk.models.SpectralPDE(
            bk.pde.PDE(
                lambda u, x: u.d("x", 2) + 25 * np.sin(5 * x),
                {"x": (0.0, 2.0)},
                [bk.pde.Dirichlet("x", end, solution) for end in (0.0, 2.0)],
            ),
            grid={"x": 12},
            kernel=bk.models.SpectralMixture(2),
        ),
        None,
        (bk.inference.EM(max_iterations=120), bk.inference.MaximumAPosteriori(max_iterations=120)),
        full=True,
        expected_failed=dict.fromkeys(
            ("EM", "MaximumAPosteriori"), reasons | dict.fromkeys(checks, no_data)
        ),
    )


def _gaussian_mixture():
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(24, 2)) + np.repeat([[0.0, 0.0], [7.0, 4.0]], [15, 9], axis=0)
    prior = bk.models.NormalInverseWishart([2.0, 1.0], 0.2, 9.0 * np.eye(2), 8.0)
    reasons = {"non_finite_rejected": "NaN are missing values; infinities are refused"}
    for covariance in ("full", "full_other_methods", "diagonal", "tied", "spherical"):
        kept = {"full": methods()[:1], "full_other_methods": methods()[1:]}
        yield Registered(
            f"gaussian_mixture_{covariance}",
            bk.models.GaussianMixture(
                2,
                covariance="full" if covariance in kept else covariance,
                prior=prior,
                weights_concentration=3.0,
                num_observations=9,
            ),
            rows,
            kept.get(covariance, methods()),
            full=covariance != "full",
            expected_failed=dict.fromkeys(("EM", "MessagePassing", "MCMC"), reasons),
        )
    program = bk.inference.SemidefiniteProgram(max_iterations=60, solver_iterations=40)
    yield Registered(
        "gaussian_mixture_lifted",
        bk.models.GaussianMixture(2, prior=prior, num_observations=9),
        rows,
        (program,),
        full=True,
        expected_failed={"SemidefiniteProgram": {"non_finite_rejected": "NaN are missing values"}},
    )


def _singular_distribution():
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(14, 2)) @ generator.normal(size=(2, 4)) + [3.0, 0.0, 1.0, -2.0]
    rows = rows + 0.3 * generator.normal(size=rows.shape)
    prior = dist.InverseGamma(3.0, 0.5)
    model = bk.models.SingularDistribution(2, decoder="linear", perturbation=0.2, noise_prior=prior)
    reasons = {"non_finite_rejected": "NaN are missing values; infinities are refused"}
    expected_failed = dict.fromkeys(("EM", "MessagePassing", "MCMC"), reasons)
    yield Registered(
        "singular_distribution",
        model,
        rows,
        methods()[:2],
        expected_failed=expected_failed,
    )
    trained = {
        "loadings": generator.normal(size=(4, 2)),
        "offset": rows.mean(axis=0),
        "noise_variance": np.array(0.3),
    }
    yield Registered(
        "singular_distribution_sampled",
        model.with_estimates(trained),
        rows,
        methods()[2:],
        full=True,
        expected_failed=expected_failed,
    )
    angle = generator.vonmises(0.0, 2.0, 40)
    circle = np.column_stack([np.cos(angle), np.sin(angle), 0.5 * np.cos(angle)]) + 3.0
    circle = circle + 0.05 * generator.normal(size=circle.shape)
    random_numbers = {"single_precision": "other random numbers are taken in single precision"}
    yield Registered(
        "singular_distribution_grid",
        bk.models.SingularDistribution(1, decoder=(4, 1), perturbation=0.2, fresh=False),
        circle,
        methods()[:1],
        full=True,
        expected_failed={
            "EM": random_numbers | {"batch": "what line searches find depends on rounding"}
        },
    )
    wide = np.column_stack([circle, 0.3 * np.sin(2.0 * angle)])
    yield Registered(
        "singular_distribution_weighted",
        bk.models.SingularDistribution(3, decoder=(4, 1), perturbation=0.2, fresh=False),
        wide + 0.05 * generator.normal(size=wide.shape),
        methods()[:1],
        full=True,
        expected_failed={
            "EM": random_numbers | {"batch": "what line searches find depends on rounding"}
        },
    )
    yield Registered(
        "singular_distribution_networks",
        bk.models.SingularDistribution(2, decoder=(8, 1), perturbation=0.2),
        circle,
        (bk.inference.VariationalInference(num_particles=3, max_iterations=120, batch_size=8),),
        full=True,
        expected_failed={"VariationalInference": random_numbers},
    )


REGISTERED = (
    *_kronecker_sbl(),
    *_functional_tucker(),
    *_spectral_pde(),
    *_gaussian_mixture(),
    *_singular_distribution(),
)
