"""Sampling of functional Tucker decompositions: from priors, and for Markov chain Monte Carlo."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from bayeskit import statespace
from bayeskit.linalg.small import semidefinite_root
from bayeskit.models import priors
from bayeskit.models.functional_tucker import sweep
from bayeskit.models.functional_tucker.approximation import pinned, spread_messages
from bayeskit.models.functional_tucker.starts import normal, typical_variance
from bayeskit.precision import as_key, double_precision, to_host

_JITTER = 1e-10
_START_NOISE = 0.25  # of a chain, as a share of the values' variance


def sample_prior(model, key):
    """Parameters and values on the grid of all modes' points; see the model's method."""
    without = [mode.name for mode in model.modes if mode.points is None]
    if without:
        raise ValueError(
            f"priors of functions can be drawn at given points only: modes {without} have no points"
        )
    if model.offset is None or model.scale is None:
        raise ValueError(
            "offset and scale depend on the data: nothing can be drawn from the prior; give numbers"
        )
    for mode in model.modes:
        if any(value is None for value in mode.values.values()):
            raise ValueError(
                f"the prior of mode {mode.name!r} depends on the data's points: give a kernel"
            )
        if mode.points.dtype.kind not in "fiu":
            raise ValueError(
                f"prior draws need numbers as points, mode {mode.name!r} has {mode.points.dtype}"
            )
    for name, prior in model.kernel_priors.items():
        if prior is None:
            priors.simulable(f"kernel_priors[{name!r}]", prior)
    if model.noise_variance is None:
        priors.simulable("noise_prior", model.noise_prior)
    points = [np.unique(np.asarray(mode.points, float)) for mode in model.modes]
    grid = np.meshgrid(*points, indexing="ij")
    indices = np.stack([axis.reshape(-1) for axis in grid], axis=1)
    with double_precision():
        key = as_key(key, "draws are random")
        prepared = model.prepare((indices, np.zeros(len(indices))))
        parameters, values = simulate(prepared.model, prepared.data, key)
    return to_host(parameters), (indices, np.asarray(values))


@eqx.filter_jit
def simulate(model, data, key):
    """Sites and values drawn from the priors at the points of ``data``; traced."""
    keys = iter(jax.random.split(key, sum(len(m.values) + 3 for m in model.modes) + 3))
    dtype = data.unit.dtype
    sites = {}
    for k, (mode, rank) in enumerate(zip(model.modes, model.rank_tuple, strict=True)):
        units, own = model.prior_units(data, k), model.index_units(data, k)
        logs = {}
        for name in model.parameter_names(mode):
            distribution, _ = model.kernel_prior(name, k)
            drawn = jnp.asarray(distribution.sample(next(keys), (rank,)), dtype) * units[name]
            logs[name] = jnp.log(drawn)
            sites[f"{name}_{mode.name}"] = drawn * own[name]
        nothing = jnp.zeros((*data.steps[k].shape, rank), dtype)
        sites[f"mode_{mode.name}"] = statespace.sample(
            next(keys),
            model.chain(k, logs, data.steps[k]),
            nothing,
            jnp.zeros((*nothing.shape, rank), dtype),
        )
    if model.core == "tucker":
        sites["core"] = jax.random.normal(next(keys), model.rank_tuple, dtype)
    if model.noise_variance is None:
        sites["noise_variance"] = jnp.asarray(model.noise_prior.sample(next(keys)), dtype)
    return sites, sample_data(model, data, next(keys), sites, None)


def sample_data(model, data, key, sites, inputs):
    """Noisy values given functions and core at the fit's points."""
    values = [sites[f"mode_{mode.name}"] for mode in model.modes]
    core = sites["core"].reshape(-1) if model.core == "tucker" else None
    key, *keys = jax.random.split(key, len(values) + 1)
    index = model.positions(data)
    if inputs is not None:
        logs = model.logs_of(sites, data)
        known = pinned(values, logs, model, data)
        index = inputs.index
        values = [
            statespace.sample(
                keys[k], *spread_messages(known, model, k, inputs.steps[k], inputs.known[k])
            )
            for k in range(len(values))
        ]
    clean = sweep.product_at(values, core, index)
    if model.offset is None:
        clean = clean + (sites["offset"] - data.center) / data.unit
    noise = data.noise_variance
    if model.noise_variance is None:
        noise = sites["noise_variance"] / data.unit**2
    noisy = clean + jnp.sqrt(noise) * jax.random.normal(key, clean.shape, clean.dtype)
    return data.center + data.unit * noisy


def numpyro_model(model, data):
    """Whitened functions, kernel parameters, core and noise."""
    sites = {}
    for k, mode in enumerate(model.modes):
        for name in model.parameter_names(mode):
            site = f"{name}_{mode.name}"
            distribution, _ = model.kernel_prior(name, k)
            sites[site] = numpyro.sample(
                site, distribution.expand([model.rank_tuple[k]]).to_event(1)
            )
        shape = _white_shape(model, data, k)
        sites[f"white_{mode.name}"] = numpyro.sample(
            f"white_{mode.name}", dist.Normal(0.0, 1.0).expand(shape).to_event(3)
        )
    if model.core == "tucker":
        size = math.prod(model.rank_tuple)
        sites["core"] = numpyro.sample("core", dist.Normal(0.0, 1.0).expand([size]).to_event(1))
    if model.offset is None:
        sites["offset"] = numpyro.sample("offset", dist.Normal(0.0, 1.0))
    if model.noise_variance is None:
        sites["noise_variance"] = numpyro.sample(
            "noise_variance", priors.distribution_of(model.noise_prior)
        )
    values, _, core, offset, noise = functions_of(model, data, sites)
    fitted = offset + sweep.product_at(values, core, model.positions(data))
    residual = model.observed(data) - fitted
    log_likelihood = -0.5 * (
        data.count * jnp.log(2 * jnp.pi * noise) + jnp.sum(residual**2) / noise
    )
    numpyro.factor("values", log_likelihood - data.count * jnp.log(data.unit))


def functions_of(model, data, sites):
    """Functions, logarithms of kernel parameters, core, offset and noise of one draw."""
    logs, values = [], []
    for k, mode in enumerate(model.modes):
        units = model.prior_units(data, k)
        logs.append(
            {name: jnp.log(sites[f"{name}_{mode.name}"] * unit) for name, unit in units.items()}
        )
        chain = model.chain(k, logs[k], data.steps[k])
        jitter = _JITTER * jnp.diagonal(chain.initial, axis1=-2, axis2=-1)
        jitter = jitter[:, :, None] * jnp.eye(chain.output.shape[1], dtype=jitter.dtype)
        white = sites[f"white_{mode.name}"]
        initial = jnp.einsum("rij,rj->ri", semidefinite_root(chain.initial + jitter), white[0])
        roots = semidefinite_root(chain.noise + jitter)
        innovations = jnp.einsum("nrij,nrj->nri", roots, white)
        values.append(statespace.follow(chain, initial, innovations))
    noise = data.noise_variance
    if model.noise_variance is None:
        noise = sites["noise_variance"] / _noise_unit(model, data)
    offset = sites.get("offset", jnp.zeros_like(data.unit))
    return tuple(values), tuple(logs), sites.get("core"), offset, noise


def chain_start(model, data, key, initial):
    """Start values of the kernels, random functions, noise of a quarter of the power."""
    dtype = data.unit.dtype
    keys = iter(jax.random.split(key, 3 * sum(len(m.values) + 2 for m in model.modes) + 2))
    logs = model.initial_logs(data, initial)
    sites = {}
    for k, mode in enumerate(model.modes):
        units = model.prior_units(data, k)
        for name, log_value in logs[k].items():
            jitter = 0.1 * normal(next(keys), log_value.shape, dtype)
            sites[f"{name}_{mode.name}"] = jnp.exp(log_value + jitter) / units[name]
        sites[f"white_{mode.name}"] = normal(next(keys), _white_shape(model, data, k), dtype)
    if model.core == "tucker":
        size = math.prod(model.rank_tuple)
        sites["core"] = normal(next(keys), (size,), dtype)
    if model.offset is None:
        sites["offset"] = 0.1 * normal(next(keys), (), dtype)
    if model.noise_variance is None:
        noise = (
            _START_NOISE * typical_variance(data) if initial is None else 1.0 / initial.precision
        )
        sites["noise_variance"] = jnp.asarray(noise, dtype) * _noise_unit(model, data)
    return sites


def _noise_unit(model, data):
    return 1.0 if isinstance(model.noise_prior, priors.ScaledByData) else data.unit**2


def _white_shape(model, data, k):
    steps, rank = data.steps[k], model.rank_tuple[k]
    chain = jax.eval_shape(lambda: model.chain(k, model.start_logs(data)[k], steps))
    return (*steps.shape, rank, chain.output.shape[1])
