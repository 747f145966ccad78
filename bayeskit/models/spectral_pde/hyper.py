"""Hyper-parameters of a solution: its spectrum, deviations of errors, unknown coefficients."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import biject_to

from bayeskit.codec import storable
from bayeskit.models import priors
from bayeskit.models.spectral_pde.basis import log_variances_of
from bayeskit.models.spectral_pde.frame import PERIOD
from bayeskit.models.spectral_pde.newton import rms
from bayeskit.models.spectral_pde.problem import WIDEST
from bayeskit.models.spectral_pde.spectrum import Components

START_NOISE = 1e-2  # in units
_SMALLEST_NOISE = 1e-6  # of the equation, in units: below, rounding decides
_SLOW = 0.5  # cycles per box that the first component reaches
_RESOLVED = 0.5 / PERIOD  # cycles per box
_EDGE = 1e-3  # of the band: where chains begin at most
_SPREAD = 1.0  # of the logarithms of random starts


@storable
class Hyper(NamedTuple):
    """Everything but the field, in coordinates without bounds.

    Attributes
    ----------
    log_weights, frequencies, log_widths : tuples of arrays (Q,)
        One a dimension: weights in units of the field's power in the first, without units in the
        others; frequencies and widths in cycles per box.
    log_noise : dict of scalars
        Logarithms of the deviations that are learned, in units: of the ``"equation"`` and the
        ``"sensor"`` errors.
    unknowns : dict of scalars
        By name, in NumPyro's unconstrained space, from the prior's centre in units of its scale.
    """

    log_weights: Any
    frequencies: Any
    log_widths: Any
    log_noise: Any
    unknowns: Any


def start(problem) -> Hyper:
    """From the source's spectrum; unknowns as their priors have them."""
    peaks = problem.peaks
    return Hyper(
        tuple(jnp.log(each.shares) for each in peaks),
        tuple(each.frequencies for each in peaks),
        tuple(jnp.log(each.widths) for each in peaks),
        {name: jnp.log(jnp.asarray(START_NOISE)) for name in learned_noise(problem)},
        {name: jnp.zeros(()) for name in problem.unknowns},
    )


def scattered(key, problem, hyper) -> Hyper:
    """A random start: other weights, widths, noise and unknowns, frequencies anywhere."""
    keys = iter(jax.random.split(key, 3 * len(hyper.log_weights) + len(hyper.unknowns)))

    def moved(value):
        return value + _SPREAD * jax.random.normal(next(keys), value.shape)

    highest = [highest_of(axis) for axis in problem.axes]
    frequencies = [
        jax.random.uniform(next(keys), each.shape) * top
        for each, top in zip(hyper.frequencies, highest, strict=True)
    ]
    return Hyper(
        tuple(map(moved, hyper.log_weights)),
        tuple(frequencies),
        tuple(map(moved, hyper.log_widths)),
        {
            name: value + _SPREAD * jax.random.normal(jax.random.fold_in(key, k))
            for k, (name, value) in enumerate(sorted(hyper.log_noise.items()))
        },
        {name: value + jax.random.normal(next(keys)) for name, value in hyper.unknowns.items()},
    )


def shaken(key, hyper, size) -> Hyper:
    """Moved a little."""
    leaves, structure = jax.tree.flatten(hyper)
    keys = jax.random.split(key, len(leaves))
    moved = [
        leaf + size * jax.random.normal(each, leaf.shape, leaf.dtype)
        for each, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, moved)


def highest_of(axis):
    """Where the spectrum ends, in cycles per box."""
    return WIDEST * 0.5 * (axis.nodes.shape[0] - 1)


def components_of(problem, hyper):
    """Components a dimension; where there are several, the first is slow: below half a cycle.

    Widths are beyond half of the waves' distance: what is narrower would fall between two waves.
    """
    found = []
    for axis, weights, frequencies, widths in zip(
        problem.axes, hyper.log_weights, hyper.frequencies, hyper.log_widths, strict=True
    ):
        count = frequencies.shape[0]
        first = (jnp.arange(count) == 0) & (count > 1)
        reach = jnp.where(first, _SLOW / highest_of(axis), 1.0)
        resolved = jnp.hypot(jnp.exp(widths), _RESOLVED)
        found.append(Components(weights, frequencies * reach, resolved))
    return tuple(found)


def log_scales(kernel, problem, hyper):
    """Logarithms of the prior deviations (K,) of all coefficients, in the user's units."""
    total = jnp.zeros(1)
    for each, axis in zip(components_of(problem, hyper), problem.axes, strict=True):
        own = log_variances_of(kernel, each, axis, WIDEST)
        total = (total[:, None] + own).reshape(-1)
    return 0.5 * total + jnp.log(problem.units.field)


def unknown_values(problem, unknowns):
    """Unknown coefficients themselves, from their coordinates."""
    return {
        name: biject_to(prior.support)(_unconstrained(problem, name, unknowns[name]))
        for name, prior in problem.unknowns.items()
    }


def _unconstrained(problem, name, coordinate):
    centre, scale = problem.spans[name]
    return centre + scale * coordinate


def _coordinate(problem, name, value):
    centre, scale = problem.spans[name]
    return (biject_to(problem.unknowns[name].support).inv(value) - centre) / scale


def sensor_unit(problem):
    """Size of the measurements."""
    size = rms(problem.measured.values)
    return jnp.where(size > 0, size, 1.0)


def noise_unit(problem, name):
    """Size of what has errors, ``"equation"`` or ``"sensor"``."""
    return problem.units.equation if name == "equation" else sensor_unit(problem)


def deviations(problem, hyper):
    """Deviations of the equation's errors (a scalar) and of the sensors' (n,)."""
    equation = problem.equation_noise
    if equation is None:
        relative = jnp.hypot(jnp.exp(hyper.log_noise["equation"]), _SMALLEST_NOISE)
        equation = relative * problem.units.equation
    if problem.measured is None:
        return equation, jnp.zeros(0)
    sensor = problem.measured.noise
    if sensor is None:
        sensor = jnp.exp(hyper.log_noise["sensor"]) * sensor_unit(problem)
        sensor = jnp.broadcast_to(sensor, problem.measured.values.shape)
    return equation, sensor


def units_of(problem, k):
    """Units of weights and widths in dimension ``k``."""
    power = problem.units.field**2 if k == 0 else jnp.ones(())
    return power, 1.0 / problem.axes[k].length


def log_prior(model, problem, hyper):
    """Log density in the coordinates of :class:`Hyper`, frequencies uniform."""
    total = jnp.zeros(())
    for k in range(len(problem.axes)):
        power, width = units_of(problem, k)
        slow = hyper.log_weights[k].shape[0] > 1
        total += _log_density(model.spectrum_prior["weights"], hyper.log_weights[k][slow:], power)
        total += _log_density(model.spectrum_prior["slow"], hyper.log_weights[k][:slow], power)
        total += _log_density(model.spectrum_prior["widths"], hyper.log_widths[k], width)
        total -= hyper.frequencies[k].size * jnp.log(highest_of(problem.axes[k]))
    for name, value in hyper.log_noise.items():
        total += _log_density(model.noise_prior, value, noise_unit(problem, name))
    for name, value in unknown_values(problem, hyper.unknowns).items():
        transform = biject_to(problem.unknowns[name].support)
        free = _unconstrained(problem, name, hyper.unknowns[name])
        total += problem.unknowns[name].log_prob(value)
        total += transform.log_abs_det_jacobian(free, value) + jnp.log(problem.spans[name][1])
    return total


def _log_density(prior, logs, unit):
    """Of the logarithms of positive values, given in units."""
    if prior is None or not logs.size:
        return jnp.zeros(())
    logs = logs + jnp.log(_own_unit(prior, unit))
    return jnp.sum(priors.distribution_of(prior).log_prob(jnp.exp(logs)) + logs)


def _own_unit(prior, unit):
    """Unit of a prior's values: one where they are relative to the data's scale already."""
    return jnp.ones(()) if isinstance(prior, priors.ScaledByData) else unit


def in_user_units(model, problem, hyper):
    """Sites by name, in the user's units."""
    equation, sensor = deviations(problem, hyper)
    found: dict[str, Any] = {"equation_noise": equation}
    if "sensor" in hyper.log_noise:
        found["sensor_noise"] = sensor[0]
    for k, (dim, each) in enumerate(zip(model.dims, components_of(problem, hyper), strict=True)):
        power, width = units_of(problem, k)
        found[f"weights_{dim}"] = jnp.exp(each.log_weights) * power
        found[f"frequencies_{dim}"] = jnp.abs(each.frequencies) * width
        found[f"widths_{dim}"] = each.widths * width
    return found


def learned_noise(problem):
    """Names of the deviations that are learned."""
    names = ["equation"] if problem.equation_noise is None else []
    if problem.measured is not None and problem.measured.noise is None:
        names.append("sensor")
    return names


def _positive_sites(model, problem):
    """Prior, shape, and unit of the prior's values in those of :class:`Hyper`, by site.

    NumPyro's sites have the first of several weights by itself: its prior is another.
    """
    count, found = model.kernel.num_components, {}
    slow = count > 1
    for k, dim in enumerate(model.dims):
        power, width = units_of(problem, k)
        found[f"weights_{dim}"] = (model.spectrum_prior["weights"], (count - slow,), power)
        if slow:
            found[f"slow_{dim}"] = (model.spectrum_prior["slow"], (1,), power)
        found[f"widths_{dim}"] = (model.spectrum_prior["widths"], (count,), width)
    for name in learned_noise(problem):
        found[f"{name}_noise"] = (model.noise_prior, (), noise_unit(problem, name))
    return {
        site: (priors.distribution_of(prior), shape, _own_unit(prior, unit))
        for site, (prior, shape, unit) in found.items()
    }


def sampled(model, problem) -> Hyper:
    """NumPyro's sites of all hyper-parameters: in units of their priors, frequencies per box."""
    sites = {}
    for site, (prior, shape, _) in _positive_sites(model, problem).items():
        distribution = prior.expand(shape).to_event(len(shape))
        sites[site] = numpyro.sample(site, distribution)
    for dim, axis in zip(model.dims, problem.axes, strict=True):
        uniform = dist.Uniform(0.0, highest_of(axis)).expand([model.kernel.num_components])
        site = f"frequencies_{dim}"
        sites[site] = numpyro.sample(site, uniform.to_event(1))
    for name, prior in problem.unknowns.items():
        sites[name] = numpyro.sample(name, prior)
    return from_sites(model, problem, sites)


def from_sites(model, problem, sites) -> Hyper:
    """Hyper-parameters from NumPyro's sites."""
    units = {site: unit for site, (_, _, unit) in _positive_sites(model, problem).items()}
    logs = {site: jnp.log(sites[site]) - jnp.log(unit) for site, unit in units.items()}
    return Hyper(
        tuple(
            jnp.concatenate([logs.get(f"slow_{dim}", jnp.zeros(0)), logs[f"weights_{dim}"]])
            for dim in model.dims
        ),
        tuple(sites[f"frequencies_{dim}"] for dim in model.dims),
        tuple(logs[f"widths_{dim}"] for dim in model.dims),
        {name: logs[f"{name}_noise"] for name in learned_noise(problem)},
        {name: _coordinate(problem, name, sites[name]) for name in problem.unknowns},
    )


def to_sites(model, problem, hyper):
    """NumPyro's sites from hyper-parameters, frequencies inside their bounds."""
    logs = {f"{name}_noise": value for name, value in hyper.log_noise.items()}
    sites = {}
    for k, (dim, axis) in enumerate(zip(model.dims, problem.axes, strict=True)):
        slow = int(model.kernel.num_components > 1)
        logs |= {f"slow_{dim}": hyper.log_weights[k][:slow], f"widths_{dim}": hyper.log_widths[k]}
        logs[f"weights_{dim}"] = hyper.log_weights[k][slow:]
        edge = _EDGE * highest_of(axis)
        sites[f"frequencies_{dim}"] = jnp.clip(
            jnp.abs(hyper.frequencies[k]), edge, highest_of(axis) - edge
        )
    for site, (_, _, unit) in _positive_sites(model, problem).items():
        sites[site] = jnp.exp(logs[site]) * unit
    return sites | unknown_values(problem, hyper.unknowns)
