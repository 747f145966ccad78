"""The smoother against dense Gaussian processes, and against cuthbert's square-root filters."""

import jax
import jax.numpy as jnp
import numpy as np
from cuthbert.filtering import filter as run_filter
from cuthbert.gaussian import kalman
from cuthbert.smoothing import smoother as run_smoother
from gpjax.kernels import Matern12, Matern32, Matern52
from gpjax.state_space import to_sde

from bayeskit.statespace import chain_of, form_of, log_normaliser, smooth
from bayeskit.statespace.kernels import kernel_of
from benchmarks.common import Bar, Options, Report, Table, side_by_side

ORDER = 1
TITLE = "Smoothing: dense Gaussian processes, cuthbert, time"
MINUTES = (2, 5)

ACCURACY = 1e-8
RANK = 2
POINTS = 60
TIMED = (400, 1461)
KERNELS = {"Matérn 1/2": Matern12, "Matérn 3/2": Matern32, "Matérn 5/2": Matern52}
FORMS = {kernel: form_of("kernel", kernel())[0] for kernel in KERNELS.values()}
LENGTHSCALES = np.array([0.2, 0.7])
VARIANCES = np.array([1.0, 0.3])
CONSTANTS = np.array([0.5, 2.0])
# Which of the functions every point's message is about, in turn: both, one combination, none.
MESSAGES = {"full rank": (2,), "rank one": (1,), "of full rank, rank one and none": (2, 1, 0)}


def run(options: Options) -> Report:
    rounds = options.at_most(7, 25)
    report = Report(
        TITLE,
        settings={"points": POINTS, "functions": RANK, "rounds": rounds, "precision": "float64"},
    )
    with jax.enable_x64(True):
        worst = accuracy(report)
        slower = timing(report, rounds)
    report.bars += [
        Bar(f"{what}: largest error against {other}", error, "<=", ACCURACY)
        for (other, what), error in worst.items()
    ]
    report.bars.append(Bar("cuthbert ÷ ours, value and gradient", slower, ">=", 2))
    return report


def correlation(kernel, distance):
    """Matérn correlations."""
    scaled = {Matern12: 1, Matern32: np.sqrt(3), Matern52: np.sqrt(5)}[kernel] * distance
    polynomial = {Matern12: 1, Matern32: 1 + scaled, Matern52: 1 + scaled + scaled**2 / 3}[kernel]
    return polynomial * np.exp(-scaled)


def made_problem(count, ranks):
    """Sorted points, two of them equal, and messages whose precisions have the ranks in turn."""
    generator = np.random.default_rng(0)
    points = np.sort(generator.uniform(size=count))
    points[5] = points[4]
    roots = 3 * generator.normal(size=(count, RANK, RANK))
    for i in range(count):
        roots[i, :, ranks[i % len(ranks)] :] = 0.0
    precisions = roots @ np.swapaxes(roots, 1, 2)
    shifts = np.einsum("nij,nj->ni", precisions, generator.normal(size=(count, RANK)))
    return points, shifts, precisions


def dense(kernel, points, shifts, precisions):
    """Mean (n, R), covariances (n, R, R) and log normaliser by dense linear algebra."""
    count = len(points)
    prior, precision = np.zeros((2, count, RANK, count, RANK))
    for r in range(RANK):
        distance = np.abs(points[:, None] - points) / LENGTHSCALES[r]
        prior[:, r, :, r] = VARIANCES[r] * correlation(kernel, distance) + CONSTANTS[r]
    precision[np.arange(count), :, np.arange(count)] = precisions
    prior, precision = (array.reshape(count * RANK, -1) for array in (prior, precision))
    matrix = np.eye(count * RANK) + prior @ precision
    posterior, shift = np.linalg.solve(matrix, prior), shifts.reshape(-1)
    value = 0.5 * shift @ posterior @ shift - 0.5 * np.linalg.slogdet(matrix)[1]
    mean = (posterior @ shift).reshape(count, RANK)
    blocks = posterior.reshape(count, RANK, count, RANK)[np.arange(count), :, np.arange(count)]
    return mean, blocks, value


def our_chain(kernel, logs, steps):
    values = {"lengthscale": jnp.exp(logs), "variance": jnp.asarray(VARIANCES)}
    return chain_of(FORMS[kernel], values, jnp.asarray(CONSTANTS), steps)


def our_moments(kernel, logs, steps, shifts, precisions):
    found = smooth(our_chain(kernel, logs, steps), shifts, precisions)
    covariance = found.second - found.mean[:, :, None] * found.mean[:, None, :]
    return found.mean, covariance, found.log_normaliser


class Cuthbert:
    """The same problem as whitened observations: ``exp(ηᵀf − fᵀΛf / 2) ∝ N(o; Λ^½ f, I)``."""

    def __init__(self, kernel, shifts, precisions, parallel):
        self.form, self.parallel = FORMS[kernel], parallel
        values, vectors = np.linalg.eigh(precisions)
        there = values > 1e-12 * values.max()
        root = np.sqrt(np.where(there, values, 1.0))
        self.roots = np.where(there, root, 0.0)[:, :, None] * np.swapaxes(vectors, 1, 2)
        turned = np.where(there, 1 / root, 0.0)[:, :, None] * np.swapaxes(vectors, 1, 2)
        self.observed = np.einsum("nij,nj->ni", turned, shifts)
        # Of what the density of the observations has beside the messages.
        size = self.observed.size
        self.constant = 0.5 * np.sum(self.observed**2) + 0.5 * size * np.log(2 * np.pi)

    def filtered(self, logs, steps):
        """Filter, inputs, and the matrix (R, S) from states to values."""

        def one(log, variance, constant):
            values = {"lengthscale": jnp.exp(log), "variance": variance}
            sde = to_sde(kernel_of(self.form, values))
            transition, noise = jax.vmap(sde.discretise)(jnp.where(jnp.isinf(steps), 0.0, steps))
            grown = [(0, 0), (0, 1), (0, 1)]
            transition = jnp.pad(transition, grown).at[:, -1, -1].set(1.0)
            initial = jnp.pad(sde.stationary_state_cov_sqrt, grown[1:])
            initial = initial.at[-1, -1].set(jnp.sqrt(constant))
            return transition, jnp.pad(noise, grown), initial

        made = [one(*each) for each in zip(logs, VARIANCES, CONSTANTS, strict=True)]
        transition, noise, initial = (
            jax.vmap(jax.scipy.linalg.block_diag)(*parts)
            if parts[0].ndim == 3
            else jax.scipy.linalg.block_diag(*parts)
            for parts in zip(*made, strict=True)
        )
        size = len(initial) // RANK
        output = jnp.zeros(size).at[jnp.array([0, size - 1])].set(1.0)
        observe = jnp.kron(jnp.eye(RANK), output[None, :])
        nothing, eye = jnp.zeros(len(initial)), jnp.eye(RANK)
        inputs = (transition, noise, self.roots @ observe, jnp.asarray(self.observed))
        filtering = kalman.build_filter(
            nothing,
            initial,
            lambda i: (i[0], nothing, i[1]),
            lambda i: (i[2], jnp.zeros(RANK), eye, i[3]),
        )
        states = run_filter(filtering, inputs, filtering.init_prepare(), parallel=self.parallel)
        return states, inputs, observe, nothing

    def value(self, logs, steps):
        states = self.filtered(logs, steps)[0]
        return jnp.reshape(states.log_normalizing_constant, (-1,))[-1] + self.constant

    def moments(self, logs, steps):
        states, inputs, observe, nothing = self.filtered(logs, steps)
        smoothing = kalman.build_smoother(lambda i: (i[0], nothing, i[1]))
        smoothed = run_smoother(smoothing, states, inputs, parallel=self.parallel)
        factor = observe @ smoothed.chol_cov[1:]
        value = jnp.reshape(states.log_normalizing_constant, (-1,))[-1] + self.constant
        return smoothed.mean[1:] @ observe.T, factor @ jnp.swapaxes(factor, 1, 2), value


def accuracy(report):
    """Largest errors, relative to the largest entry."""
    rows, worst = [], {}
    logs = jnp.log(jnp.asarray(LENGTHSCALES))
    for name, kernel in KERNELS.items():
        for messages, ranks in MESSAGES.items():
            points, shifts, precisions = made_problem(POINTS, ranks)
            steps = jnp.asarray(np.diff(points, prepend=-np.inf))
            given = jnp.asarray(shifts), jnp.asarray(precisions)
            ours = our_moments(kernel, logs, steps, *given)
            others = {"a dense Gaussian process": dense(kernel, points, shifts, precisions)}
            for label, parallel in (("sequential", False), ("parallel", True)):
                peer = Cuthbert(kernel, shifts, precisions, parallel)
                others[f"cuthbert, {label}"] = jax.jit(peer.moments)(logs, steps)
            for other, reference in others.items():
                errors = [relative(*pair) for pair in zip(ours, reference, strict=True)]
                if other == "cuthbert, parallel" and np.isnan(errors[-1]):
                    errors[-1] = None
                rows.append((name, messages, other, *errors))
                for what, error in zip(("mean", "covariance", "evidence"), errors, strict=True):
                    if error is not None:
                        worst.setdefault((other, what), []).append(error)
    report.tables.append(
        Table(
            f"{POINTS} points, two of them equal: our mean, covariance and log evidence",
            ("kernel", "precisions", "against", "mean", "covariance", "evidence"),
            rows,
            "Largest error over the largest entry. Each function has a constant beside it. A dash: "
            "cuthbert's parallel filter gives NaN as the log evidence where a transition has no "
            "noise, as constants and equal points do.",
        )
    )
    report.results["errors"] = rows
    return {key: max(errors) for key, errors in worst.items()}


def relative(value, reference):
    value, reference = np.asarray(value), np.asarray(reference)
    return float(np.max(np.abs(value - reference)) / np.max(np.abs(reference)))


def timing(report, rounds):
    """Log evidence with its gradient, and smoothed moments, side by side; Matérn 3/2."""
    rows, ratios = [], []
    logs = jnp.log(jnp.asarray(LENGTHSCALES))
    for count in TIMED:
        points, shifts, precisions = made_problem(count, (1,))
        steps = jnp.asarray(np.diff(points, prepend=-np.inf))
        given = jnp.asarray(shifts), jnp.asarray(precisions)

        def value(logs, shifts, precisions, steps=steps):
            return log_normaliser(our_chain(Matern32, logs, steps), shifts, precisions)

        with_gradient = jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2)))
        moments = jax.jit(lambda logs, s, p, d=steps: our_moments(Matern32, logs, d, s, p))
        functions = {
            "ours, gradient": lambda f=with_gradient, g=given: f(logs, *g),
            "ours, moments": lambda f=moments, g=given: f(logs, *g),
        }
        for label, parallel in (("sequential", False), ("parallel", True)):
            peer = Cuthbert(Matern32, shifts, precisions, parallel)
            both = jax.jit(peer.moments)
            functions[f"cuthbert {label}, moments"] = lambda f=both, d=steps: f(logs, d)
            if not parallel:
                slope = jax.jit(jax.value_and_grad(peer.value))
                functions[f"cuthbert {label}, gradient"] = lambda f=slope, d=steps: f(logs, d)
        timings = side_by_side(functions, rounds)
        for what in ("gradient", "moments"):
            peers = [n for n in functions if n.startswith("cuthbert") and n.endswith(what)]
            slower = min(timings.ratio(name, f"ours, {what}") for name in peers)
            times = [1e3 * timings.median(name) for name in (f"ours, {what}", *sorted(peers)[::-1])]
            rows.append((count, what, *times, *([None] * (2 - len(peers))), slower))
            if what == "gradient":
                ratios.append(slower)
    report.tables.append(
        Table(
            "Two functions, Matérn 3/2 and constants (6 states): milliseconds, medians",
            ("points", "", "ours", "cuthbert, sequential", "cuthbert, parallel", "ratio"),
            rows,
            "Gradient: the log evidence and its derivatives by the lengthscales; ours are also by "
            "the messages, which are the smoothed moments. Moments: filter and smoother. The ratio "
            "is to the faster of cuthbert's; its parallel log evidence is not a number here.",
        )
    )
    report.results["milliseconds"] = rows
    return min(ratios)
