"""No-U-turn sampling through NumPyro's kernel, one step at a time."""

import math
from typing import Any, NamedTuple

import arviz_stats as azs
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from numpyro.infer.hmc import hmc
from numpyro.infer.util import ParamInfo, constrain_fn, potential_energy, unconstrain_fn

from bayeskit.inference.base import AbstractMethod, Fit
from bayeskit.models.base import SupportsMCMC
from bayeskit.results import AbstractApproximation, map_in_blocks
from bayeskit.validation import check_integer, check_number

_CONDITIONAL_BLOCK = 8
_RHAT_LIMIT = 1.01
_ESS_PER_CHAIN = 100


class ChainRecord(NamedTuple):
    """One transition: position in the unconstrained space and the sampler's statistics."""

    position: Any
    lp: Any
    energy: Any
    diverging: Any
    acceptance_rate: Any
    n_steps: Any
    step_size: Any


class ChainApproximation(AbstractApproximation):
    """Draws of the sampled sites; what was integrated out is exact given each draw.

    Means and variances of the integrated sites are averaged over the draws' exact conditionals
    (Rao-Blackwell), not over draws of the sites.
    """

    sites: dict[str, Any]

    @property
    def chains(self):
        return jax.tree.leaves(self.sites)[0].shape[:2]

    def _flat(self):
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), self.sites)

    def moments(self, model, data):
        def one(sites):
            conditional = model.mcmc_conditional(data, sites)
            return conditional.moments(model, data)

        flat = self._flat()
        count = jax.tree.leaves(flat)[0].shape[0]
        first = jax.tree.map(lambda leaf: leaf[0], flat)
        zeros = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(one, first)
        )

        def welford(carry, item):
            (mean, spread), index = carry
            value, inner = one(item)
            delta = jax.tree.map(lambda v, m: v - m, value, mean)
            mean = jax.tree.map(lambda m, d: m + d / (index + 1), mean, delta)
            spread = jax.tree.map(
                lambda s, d, v, m, i: s + (jnp.conj(d) * (v - m)).real + i,
                spread,
                delta,
                value,
                mean,
                inner,
            )
            return ((mean, spread), index + 1), None

        ((mean, spread), _), _ = jax.lax.scan(welford, (zeros, 0), flat)
        given = self.plugged_in(model, data)
        variance = jax.tree.map(lambda s: s / count, spread)
        return {**mean, **given}, {**variance, **jax.tree.map(jnp.zeros_like, given)}

    def plugged_in(self, model, data):
        return model.mcmc_given(data)

    def _draw(self, key, sites, model, data):
        conditional = model.mcmc_conditional(data, sites)
        return {**conditional.plugged_in(model, data), **conditional.sample(key, model, data)}

    def sample(self, key, model, data):
        flat = self._flat()
        choice, inner = jax.random.split(key)
        index = jax.random.randint(choice, (), 0, jax.tree.leaves(flat)[0].shape[0])
        return self._draw(inner, jax.tree.map(lambda leaf: leaf[index], flat), model, data)

    def chain_draws(self, key, model, data):
        """All draws as they were sampled: arrays (chain, draw, …) by site."""
        keys = jax.random.split(key, math.prod(self.chains))
        drawn = map_in_blocks(
            lambda item: self._draw(item[0], item[1], model, data),
            (keys, self._flat()),
            _CONDITIONAL_BLOCK,
        )
        return jax.tree.map(lambda leaf: leaf.reshape(*self.chains, *leaf.shape[1:]), drawn)

    def map_conditionals(self, function, model, data):
        """A function of every draw's exact conditional: arrays (chain, draw, …)."""
        mapped = map_in_blocks(
            lambda sites: function(model.mcmc_conditional(data, sites)),
            self._flat(),
            _CONDITIONAL_BLOCK,
        )
        return jax.tree.map(lambda leaf: leaf.reshape(*self.chains, *leaf.shape[1:]), mapped)

    def predict(self, inputs, include_noise, model, data):
        means, variances = self.map_conditionals(
            lambda c: c.predict(inputs, include_noise, model, data), model, data
        )
        mean = jnp.mean(means, axis=(0, 1))
        return mean, jnp.mean(variances + jnp.abs(means - mean) ** 2, axis=(0, 1))

    def log_predictive(self, model, data):
        """Of every draw: arrays (chain, draw, …)."""
        return self.map_conditionals(lambda c: c.log_predictive(model, data), model, data)

    def hyper_parameters(self, model, data):
        """What convergence is judged by, and the log evidence of every draw."""
        return self.map_conditionals(
            lambda c: (c.judged(model, data), c.log_evidence(model, data)), model, data
        )


class MCMC(AbstractMethod):
    """Markov chain Monte Carlo: NumPyro's No-U-Turn sampler on the model's NumPyro function.

    Chains run vectorised, warm-up included, so one compilation serves any number of data sets.

    Parameters
    ----------
    num_warmup, num_samples, num_chains : int
        Per chain.
    target_accept : float
        Acceptance probability that the step size is adapted to.
    max_tree_depth : int
        Largest number of doublings of a trajectory.
    dense_mass : bool
        Whether the mass matrix has correlations.

    Examples
    --------
    >>> import bayeskit as bk
    >>> bk.inference.MCMC(num_chains=2).num_chains
    2
    """

    num_warmup: int = eqx.field(static=True)
    num_samples: int = eqx.field(static=True)
    num_chains: int = eqx.field(static=True)
    target_accept: float
    max_tree_depth: int = eqx.field(static=True)
    dense_mass: bool = eqx.field(static=True)

    def __init__(
        self,
        num_warmup=500,
        num_samples=500,
        num_chains=4,
        target_accept=0.8,
        max_tree_depth=10,
        dense_mass=False,
    ):
        self.num_warmup = check_integer("num_warmup", num_warmup, 1)
        self.num_samples = check_integer("num_samples", num_samples, 4)
        self.num_chains = check_integer("num_chains", num_chains, 1)
        self.target_accept = check_number("target_accept", target_accept, 0.01, 1.0)
        self.max_tree_depth = check_integer("max_tree_depth", max_tree_depth, 1)
        self.dense_mass = bool(dense_mass)

    def __repr__(self):
        return f"MCMC({', '.join(f'{name}={value!r}' for name, value in self.settings().items())})"

    @property
    def needs(self):
        return SupportsMCMC

    @property
    def lanes(self):
        return self.num_chains

    @property
    def length(self):
        return self.num_warmup + self.num_samples

    @property
    def random(self):
        return True

    @property
    def fixed_length(self):
        return True

    def settings(self):
        return {
            "num_warmup": self.num_warmup,
            "num_samples": self.num_samples,
            "num_chains": self.num_chains,
            "target_accept": float(self.target_accept),
            "max_tree_depth": self.max_tree_depth,
            "dense_mass": self.dense_mass,
        }

    def check(self, model):
        model.check_mcmc(self)

    def map_lanes(self, function, lanes):
        return jax.vmap(function)(lanes)

    def _kernel(self, model):
        return hmc(
            potential_fn_gen=lambda data: (
                lambda z: potential_energy(model.numpyro_model, (data,), {}, z)
            ),
            algo="NUTS",
        )

    def _prime(self, init_kernel, params, data, key):
        return init_kernel(
            params,
            self.num_warmup,
            target_accept_prob=self.target_accept,
            max_tree_depth=self.max_tree_depth,
            dense_mass=self.dense_mass,
            model_args=(data,),
            rng_key=key,
        )

    def init(self, model, data, key, lane, initial):
        start_key, chain_key = jax.random.split(key)
        values = model.mcmc_init(data, start_key, initial)
        position = unconstrain_fn(model.numpyro_model, (data,), {}, values)
        # NumPyro's kernel works in doubles wherever they exist.
        position = jax.tree.map(lambda leaf: leaf.astype(jnp.result_type(float)), position)
        init_kernel, _ = self._kernel(model)
        return self._prime(init_kernel, position, data, chain_key)

    def step(self, model, data, state):
        init_kernel, sample = self._kernel(model)
        # The kernel keeps its closures in the call of init_kernel; with the gradient given, this
        # one evaluates no model and only rebuilds them in the present program.
        self._prime(
            init_kernel,
            ParamInfo(state.z, state.potential_energy, state.z_grad),
            data,
            state.rng_key,
        )
        state = sample(state, (data,), {})
        record = ChainRecord(
            state.z,
            -state.potential_energy,
            state.energy,
            state.diverging,
            state.accept_prob,
            state.num_steps,
            state.adapt_state.step_size,
        )
        return state, record

    def done(self, state):
        return jnp.asarray(False)

    def finish(self, model, data, states, records):
        kept = jax.tree.map(lambda leaf: leaf[:, self.num_warmup : self.length], records.position)
        sites = jax.vmap(jax.vmap(lambda z: constrain_fn(model.numpyro_model, (data,), {}, z)))(
            kept
        )
        given = jax.eval_shape(lambda: model.mcmc_init(data, jax.random.key(0), None))
        sites = {name: value.astype(given[name].dtype) for name, value in sites.items()}
        finite = [
            jnp.all(jnp.isfinite(leaf))
            for leaf in jax.tree.leaves((sites, states.potential_energy))
        ]
        window = slice(self.num_warmup, self.length)
        sites = model.mcmc_aligned(data, sites, records.lp[:, window])
        approximation = ChainApproximation(sites)
        diagnosed = approximation.hyper_parameters(model, data)
        return Fit(
            approximation,
            jnp.asarray(jnp.nan),
            jnp.all(jnp.stack(finite)),
            jnp.asarray(0),
            diagnosed,
        )

    def caveats(self, fit, model):
        # Chains carry their own uncertainty of what the closed-form methods plug in.
        return ()

    def report(self, fit, records, counts):
        window = slice(self.num_warmup, self.length)
        stats = {
            name: np.asarray(value)[:, window]
            for name, value in records._asdict().items()
            if name != "position"
        }
        draws, evidence = jax.tree.map(np.asarray, fit.diagnosed)
        stats["log_evidence"] = evidence
        draws = {**draws, "log_evidence": evidence}
        dataset = xr.Dataset(
            {
                name: (("chain", "draw", *(f"{name}_{i}" for i in range(value.ndim - 2))), value)
                for name, value in draws.items()
            }
        )
        with np.errstate(all="ignore"):
            rhat, ess = azs.rhat(_halves(dataset)), azs.ess(dataset)
        max_rhat = float(max(np.max(rhat[name].values) for name in draws))
        min_ess = float(min(np.min(ess[name].values) for name in draws))
        divergences = int(stats["diverging"].sum())
        finite = bool(fit.finite)
        failures = [
            text
            for failed, text in (
                (not finite, "a non-finite value appeared"),
                (not max_rhat < _RHAT_LIMIT, f"R-hat {max_rhat:.3f} is not below {_RHAT_LIMIT}"),
                (
                    not min_ess >= _ESS_PER_CHAIN * self.num_chains,
                    f"effective sample size {min_ess:.0f} is below "
                    f"{_ESS_PER_CHAIN * self.num_chains}",
                ),
                (divergences > 0, f"{divergences} divergent transitions"),
            )
            if failed
        ]
        fields = {
            "converged": not failures,
            "iterations": self.length,
            "objective": None,
            "reason": "; ".join(failures)
            or f"R-hat {max_rhat:.3f}, effective sample size {min_ess:.0f}",
            "max_rhat": max_rhat,
            "min_ess": min_ess,
            "divergences": divergences,
        }
        diagnostics = {
            "rhat": {name: rhat[name].values for name in draws},
            "ess_bulk": {name: ess[name].values for name in draws},
        }
        return fields, {"sample_stats": stats, "diagnostics": diagnostics}


def _halves(dataset):
    """One chain as two, which R-hat needs at least; several as they are."""
    if dataset.sizes["chain"] > 1:
        return dataset
    half = dataset.sizes["draw"] // 2
    parts = [dataset.isel(draw=slice(at, at + half)) for at in (0, half)]
    return xr.concat(parts, dim="chain")
