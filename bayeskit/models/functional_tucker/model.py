r"""Functional Bayesian Tucker decomposition.

.. math::
    y_n = b + \sum_{r_1 \dots r_K} W_{r_1 \dots r_K} \prod_k f^k_{r_k}(x_{nk}) + \epsilon_n, \quad
    f^k_r = c^k_r + g^k_r, \quad c^k_r \sim N(0, v^k_r), \quad g^k_r \sim GP(0, \kappa^k_r), \quad
    W \sim N(0, I), \quad \epsilon_n \sim N(0, \sigma^2)

with a core of ones on the superdiagonal for CP. S. Fang, X. Yu, Z. Wang, S. Li, M. Kirby, S. Zhe,
"Functional Bayesian Tucker decomposition for continuous-indexed tensor data", ICLR 2024.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax

from bayeskit import statespace
from bayeskit.models import priors
from bayeskit.models.base import (
    Prepared,
    SupportsEM,
    SupportsMCMC,
    SupportsMessages,
    SupportsUpdate,
    key_of_lane,
    relative_change,
)
from bayeskit.models.functional_tucker import ascent, balance, sampling, starts, sweep
from bayeskit.models.functional_tucker import data as tables
from bayeskit.models.functional_tucker.approximation import (
    Factorised,
    FunctionalTuckerPosterior,
    Given,
)
from bayeskit.models.functional_tucker.mode import Mode
from bayeskit.results import PredictionTarget
from bayeskit.statespace.kernels import names_in_index_units
from bayeskit.validation import check_finite_number, check_positive

_STARTS, _MOST_STARTS = 4, 32
_NOTHING = 1e-6  # share of the values' variance that counts as none
_TRIAL_SWEEPS = 20
_DEVIATIONS = {"lengthscale": 1.5, "period": 0.1}  # of the logarithm, under default priors
_NATS = 100.0  # a gain of the bound that the stopping rule counts as a change by one
# Units of rounding (measured in single precision).
_LOST_OF_FIT, _LOST_OF_SQUARES = 64, 8
_START_LENGTHSCALE = 0.2  # of the range of a mode's points
_VARIANCE_PRIOR = dist.Gamma(0.5, 0.5)


class EMState(NamedTuple):
    """Messages, logarithms of kernel parameters, how each mode's climb, and what leaps need."""

    messages: sweep.FactorMessages
    logs: tuple
    climbs: tuple
    leaps: ascent.Leaps


class FunctionalTucker(SupportsEM, SupportsMessages, SupportsMCMC, SupportsUpdate):
    """Tucker decomposition with Gaussian-process functions of continuous or categorical indices.

    Parameters
    ----------
    modes : sequence of Mode or str
        One an index column, in the order of the columns.
    ranks : int or sequence of int
        Number of functions of every mode; one number for all. Functions that the data do not
        support shrink to nothing under EM and MCMC, so that ranks are upper limits.
    core : "tucker" or "cp"
        A full core with standard normal entries, or ones on the superdiagonal (equal ranks).
    value : str, optional
        Name of the observed quantity, and of its column in a table; ``"value"`` by default.
    noise_variance : float, optional
        Known variance of the noise in squared units of the values; learned if ``None``.
    offset : float, optional
        Known number that is added to the product; learned if ``None``, with a normal prior of the
        values' mean and standard deviation.
    scale : float, optional
        What the values are divided by, so that variances of kernels and core are relative to it;
        their standard deviation if ``None``. With numbers here and in ``offset``, a proper noise
        prior and ``points`` for every mode, data can be simulated.
    kernel_priors : mapping, optional
        Priors of kernel parameters: by name (``"lengthscale"``, ``"variance"``, ``"period"``,
        ``"constant_variance"``) or by name and mode (``"lengthscale_time"``); NumPyro
        distributions in the units of the index, :class:`ScaledByData` relative to the start value,
        or ``None`` (flat). By default log-normal around the start value (deviation 1.5 in the
        logarithm; 0.1 for a period) and Gamma(1/2, 1/2) for both variances: half-normal
        amplitudes, the constant's being the relevance of the rest of the product.
    noise_prior : NumPyro distribution, ScaledByData or None
        Inverse-gamma prior of the noise variance, where it is learned.

    Raises
    ------
    TypeError, ValueError
        For names that repeat, ranks that are no positive integers, unequal ranks of a CP core, or
        priors that are not on the positive numbers.

    Notes
    -----
    Data for :func:`bayeskit.infer`: a pair ``(indices (N, K), values (N,))``, a DataFrame with
    the modes' columns and one of the values, or a DataArray with the modes as dims, whose NaN
    are missing; JAX arrays whose rows are spread over a mesh of devices stay so. Sites:
    ``mode_<name>`` (points, R_k), ``core``, ``offset``, ``noise_variance``, and
    ``<parameter>_<name>`` (R_k,) for every kernel parameter and the variance of the constants.

    A sweep costs O(N K R²) for CP and O(N R^(2K-2)) for Tucker, in blocks of rows, and O(n_k R³)
    for the n_k points of every mode. Source: Fang et al. 2024, with exact second moments of the
    core, normalised messages and learned kernels.

    Examples
    --------
    >>> import numpy as np
    >>> import bayeskit as bk
    >>> generator = np.random.default_rng(0)
    >>> indices = generator.uniform(size=(200, 2))
    >>> values = np.sin(6 * indices[:, 0]) * np.cos(4 * indices[:, 1])
    >>> posterior = bk.infer(bk.models.FunctionalTucker(["x", "z"], ranks=1), (indices, values))
    >>> error = posterior.predict([[0.5, 0.5]]).mean - np.sin(3) * np.cos(2)
    >>> bool(abs(error[0]) < 0.05)
    True
    """

    modes: tuple
    rank_tuple: tuple = eqx.field(static=True)
    core: str = eqx.field(static=True)
    value: str = eqx.field(static=True)
    noise_variance: Any
    offset: Any
    scale: Any
    kernel_priors: Any
    noise_prior: Any
    estimates: Any

    def __init__(
        self,
        modes,
        *,
        ranks,
        core="tucker",
        value=None,
        noise_variance=None,
        offset=None,
        scale=None,
        kernel_priors=None,
        noise_prior=priors.DEFAULT_NOISE_PRIOR,
    ):
        if not isinstance(modes, (tuple, list)) or not modes:
            raise TypeError(f"modes must be a list or tuple of Mode or names, got {modes!r}")
        modes = tuple(Mode(mode) if isinstance(mode, str) else mode for mode in modes)
        wrong = [mode for mode in modes if not isinstance(mode, Mode)]
        if wrong:
            raise TypeError(f"modes must be Mode or names, got {type(wrong[0]).__name__}")
        names = [mode.name for mode in modes]
        if len(set(names)) < len(names):
            raise ValueError(f"modes need different names, got {names}")
        self.modes = modes
        if core not in ("tucker", "cp"):
            raise ValueError(f"core must be 'tucker' or 'cp', got {core!r}")
        self.core = core
        self.rank_tuple = _check_ranks(ranks, len(modes), core)
        self.value = "value" if value is None else value
        if not isinstance(self.value, str) or self.value in names:
            raise ValueError(f"value must be a name other than the modes', got {value!r}")
        self._check_names([*names, self.value])
        self.noise_variance = _if_given(check_positive, "noise_variance", noise_variance)
        self.offset = _if_given(check_finite_number, "offset", offset)
        self.scale = _if_given(check_positive, "scale", scale)
        self.kernel_priors = self._check_kernel_priors(kernel_priors)
        self.noise_prior = priors.check_prior("noise_prior", noise_prior)
        self.estimates = None

    def __repr__(self):
        noise = "learned" if self.noise_variance is None else f"{self.noise_variance:.6g}"
        given = "".join(
            f", {name} prior {priors.describe(prior)}" for name, prior in self.kernel_priors.items()
        )
        return (
            f"{type(self).__name__}([{', '.join(map(repr, self.modes))}], "
            f"ranks={self.rank_tuple}, core={self.core!r}, noise_variance {noise}, "
            f"noise_prior={priors.describe(self.noise_prior)}{given})"
        )

    def _check_names(self, names):
        """Names are dims and variables of the result, beside these."""
        taken = {"chain", "draw", "batch", "observation", "part", "component"}
        taken |= {"core", "offset", "noise_variance"}
        for mode in self.modes:
            taken |= {f"mode_{mode.name}", f"rank_{mode.name}", f"{mode.name}_at"}
            taken |= {f"{name}_{mode.name}" for name in self.parameter_names(mode)}
        wrong = [name for name in names if name in taken or "/" in name]
        if wrong:
            raise ValueError(
                f"modes and value cannot be called {wrong}: names with '/' and those of the "
                "result's own dims and sites are not available"
            )

    def _check_kernel_priors(self, given):
        if given is None:
            return {}
        if not isinstance(given, Mapping):
            raise TypeError(f"kernel_priors must be a mapping by name, got {type(given).__name__}")
        known = {name for mode in self.modes for name in self.parameter_names(mode)}
        known |= {f"{n}_{mode.name}" for mode in self.modes for n in self.parameter_names(mode)}
        unknown = [name for name in given if name not in known]
        if unknown:
            raise ValueError(f"kernel_priors has {unknown}; the names are {sorted(known)}")
        return {
            name: priors.check_prior(f"kernel_priors[{name!r}]", p) for name, p in given.items()
        }

    @staticmethod
    def parameter_names(mode):
        """Names of a mode's kernel parameters and of the variance of its constants."""
        return [*mode.values, "constant_variance"]

    @property
    def default_method(self):
        """Expectation maximisation, with a smaller tolerance: kernel parameters move slowly."""
        from bayeskit.inference.ascent import EM

        return EM(tolerance=1e-6)

    @property
    def posterior_class(self):
        """The family's own result, with ``mode_function`` and ``effective_ranks``."""
        return FunctionalTuckerPosterior

    @property
    def m_steps(self):
        """The only M-step: quasi-Newton ascent on the bound of each mode."""
        return ("ascent",)

    def prepare(self, data, *, batch=False):
        """See :class:`~bayeskit.models.base.AbstractModel`."""
        observations, labels, groups = tables.prepare(self, data, batch)
        dtype = observations.unit.dtype
        prepared = eqx.tree_at(
            lambda m: (m.estimates, m.noise_variance, m.offset, m.scale, m.modes),
            self,
            (
                None,
                None if self.noise_variance is None else 0.0,
                None if self.offset is None else 0.0,
                None,
                tuple(
                    eqx.tree_at(lambda m: m.points, mode, None, is_leaf=_is_none)
                    for mode in self.modes
                ),
            ),
            is_leaf=lambda leaf: leaf is None or leaf is self.modes,
        )
        prepared = jax.tree.map(
            lambda leaf: jnp.asarray(leaf, dtype) if isinstance(leaf, float) else leaf, prepared
        )
        return Prepared(prepared, observations, labels, groups)

    def joined(self, data, new_data):
        """Rows of both, in this order."""
        return tables.joined(self, data, new_data)

    # Kernels: parameters are logarithms, lengthscales and periods divided by the span of the mode.

    def index_units(self, data, k):
        in_units = names_in_index_units(self.modes[k].form)
        one = jnp.ones_like(data.spans[k])
        return {
            name: data.spans[k] if name in in_units else one
            for name in self.parameter_names(self.modes[k])
        }

    def _start_values(self, data, k):
        units = self.index_units(data, k)
        values = {
            name: jnp.full_like(data.unit, _START_LENGTHSCALE)
            if value is None
            else value / units[name]
            for name, value in self.modes[k].values.items()
        }
        return {**values, "constant_variance": jnp.ones_like(data.unit)}

    def start_logs(self, data):
        """Logarithms of the start values of all kernel parameters, a dict by name for each mode."""
        return tuple(
            {
                name: jnp.full(rank, jnp.log(value), data.unit.dtype)
                for name, value in self._start_values(data, k).items()
            }
            for k, rank in enumerate(self.rank_tuple)
        )

    def reported(self, logs, data):
        """Kernel parameters in the user's units by site."""
        return {
            f"{name}_{mode.name}": jnp.exp(value) * self.index_units(data, k)[name]
            for k, mode in enumerate(self.modes)
            for name, value in logs[k].items()
        }

    def chain(self, k, logs, steps):
        """Prior of the functions of mode ``k`` as a chain."""
        values = {name: jnp.exp(value) for name, value in logs.items()}
        constants = values.pop("constant_variance")
        return statespace.chain_of(self.modes[k].form, values, constants, steps)

    def kernel_prior(self, name, k):
        """A parameter's prior, and whether it is one of the ratio to the start value."""
        prior = self.kernel_priors.get(f"{name}_{self.modes[k].name}", ())
        prior = self.kernel_priors.get(name, ()) if prior == () else prior
        if prior == () and name.endswith("variance"):
            return _VARIANCE_PRIOR, False
        if prior == ():
            return dist.LogNormal(0.0, _DEVIATIONS[name.rpartition("_")[2]]), True
        return priors.distribution_of(prior), isinstance(prior, priors.ScaledByData)

    def prior_units(self, data, k):
        """What a parameter under its prior is multiplied by, to be in the units of the chains."""
        starts, units = self._start_values(data, k), self.index_units(data, k)
        return {
            name: starts[name] if self.kernel_prior(name, k)[1] else 1.0 / units[name]
            for name in units
        }

    def _log_prior(self, data, k, logs):
        """Log density of the logarithms of a mode's kernel parameters."""
        total = jnp.zeros((), data.unit.dtype)
        units = self.prior_units(data, k)
        for name, value in logs.items():
            distribution, _ = self.kernel_prior(name, k)
            if distribution is not None:
                density = distribution.log_prob(jnp.exp(value) / units[name]) + value
                total = total + jnp.sum(density)
        return total

    # Sweeps

    def _points(self, data, k):
        """Dimension of the functions of a mode: its points, but for those that fill a batch up."""
        if self.modes[k].form.kind == "Constant":
            return jnp.ones_like(data.unit)
        return jnp.sum(data.steps[k] != 0).astype(data.unit.dtype)

    def observed(self, data):
        """Standardised values (N,)."""
        return data.rows.values.reshape(-1)[: data.count]

    def positions(self, data):
        """Positions (N,) among the points of every mode."""
        return tuple(index.reshape(-1)[: data.count] for index in data.rows.index)

    def _noise_prior(self, data):
        prior = priors.inverse_gamma(self.noise_prior, data.unit**2, data.unit.dtype)
        return sweep.NoisePrior(*(p.astype(data.unit.dtype) for p in prior))

    def _searched_start(self, data, key, lane, logs, mixing):
        """The best of four starts after some sweeps, half of them with an offset at zero.

        More, while the best of them has collapsed to a constant.
        """
        keys = jax.random.split(key_of_lane(key, lane), _MOST_STARTS)

        def trial(count):
            return jax.lax.fori_loop(
                0,
                _TRIAL_SWEEPS,
                lambda _, m: self._sweep(data, self._balanced(data, m, mixing), logs)[0],
                starts.random_messages(self, data, keys[count], count % 2 == 1),
            )

        def unfinished(carry):
            count, best = carry
            collapsed = self._explained(data, best) <= _NOTHING
            return (count < _STARTS) | (collapsed & (count < _MOST_STARTS))

        def another(carry):
            count, best = carry
            found = trial(count)
            return count + 1, optax.tree.where(found.bound > best.bound, found, best)

        count = jnp.asarray(0)
        nothing = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(trial, count)
        )
        nothing = nothing._replace(bound=jnp.full_like(nothing.bound, -jnp.inf))
        return jax.lax.while_loop(unfinished, another, (count, nothing))[1]

    def _start(self, data, key, lane, initial, logs):
        """Messages to start from: those of an earlier posterior, else the best of random ones."""
        if initial is None or initial.messages is None:
            return self._searched_start(data, key, lane, logs, initial is None)
        # Not balanced before a sweep has renewed the functions' messages.
        return self._sweep(data, initial.messages, logs)[0]

    def start_from(self, posterior, data, labels):
        """Kernel parameters, noise and (unless they are draws of chains) functions and core."""
        return starts.from_posterior(self, posterior, data, labels)

    def _balanced(self, data, messages, mixing):
        """Messages with what the data do not see shared best between functions and core.

        ``mixing`` says that the functions of each mode have equal kernels.
        """
        points = [self._points(data, k) for k in range(len(self.modes))]
        modes, core = balance.balanced(
            messages.modes, messages.shifts, messages.precisions, messages.core, points, mixing
        )
        return messages._replace(modes=tuple(modes), core=core)

    def _sweep(self, data, messages, logs, climbs=(), damping=0.0):
        """Renew every factor in turn; with ``climbs``, move each mode's parameters uphill first.

        ``damping`` is the share of the old message that every message to the functions keeps.
        """
        modes, core = list(messages.modes), messages.core
        shifts, precisions = list(messages.shifts), list(messages.precisions)
        divergences, logs = messages.divergences, list(logs)
        climbs = list(climbs)
        offset = messages.offset
        for k in sweep.order_of(modes):
            sums = sweep.merged_messages(modes, core, data.rows, k)
            shift = messages.precision * (sums[0] - offset.mean * sums[1])
            precision = messages.precision * sums[2]
            shift = damping * shifts[k] + (1.0 - damping) * shift
            precision = damping * precisions[k] + (1.0 - damping) * precision
            if not climbs:
                chain = self.chain(k, logs[k], data.steps[k])
                smoothed = statespace.smooth(chain, shift, precision)
            else:
                logs[k], climbs[k], smoothed = ascent.climbed(
                    climbs[k], self._share_of_bound(data, k, shift, precision), logs[k]
                )
            modes[k] = sweep.Moments(smoothed.mean, smoothed.second)
            shifts[k], precisions[k] = shift, precision
            divergences = divergences.at[k].set(sweep.divergence(smoothed, shift, precision))
        core_divergence = jnp.zeros_like(data.unit)
        if core is None:
            weighting = modes[k]
        else:
            sums = sweep.core_statistics(modes, data.rows)
            core, core_divergence = sweep.core_update(
                messages.precision * (sums[0] - offset.mean * sums[1]),
                messages.precision * sums[2],
            )
            weighting = core
        # Sums over the observations of y f, f and f².
        linear, plain = jnp.sum(sums[0] * weighting.mean), jnp.sum(sums[1] * weighting.mean)
        quadratic = jnp.sum(sums[2] * weighting.second)
        weighted = data.rows.weights * data.rows.values
        offset_divergence = jnp.zeros_like(data.unit)
        if self.offset is None:
            offset, offset_divergence = sweep.offset_update(
                messages.precision * (jnp.sum(weighted) - plain), messages.precision * data.count
            )
        total = jnp.sum(weighted * data.rows.values) - 2 * offset.mean * jnp.sum(weighted)
        squares = total + data.count * offset.second - 2 * (linear - offset.mean * plain)
        squares = jnp.maximum(squares + quadratic, 0.0)
        concentration, rate = messages.noise_concentration, messages.noise_rate
        precision = messages.precision
        log_unit = data.count * jnp.log(data.unit)
        if self.noise_variance is None:
            prior = self._noise_prior(data)
            concentration = prior.concentration + 0.5 * data.count
            rate = prior.rate + 0.5 * squares
            precision = concentration / rate
            likelihood = sweep.noise_bound(prior, concentration, rate, data.count, squares)
        else:
            likelihood = (
                0.5 * data.count * jnp.log(precision / (2 * jnp.pi)) - 0.5 * precision * squares
            )
        bound = likelihood - jnp.sum(divergences) - core_divergence - offset_divergence - log_unit
        messages = sweep.FactorMessages(
            tuple(modes),
            tuple(shifts),
            tuple(precisions),
            divergences,
            core,
            offset,
            concentration,
            rate,
            precision,
            bound,
            offset.mean + sweep.fitted(modes, core)(data.sketch)[0],
        )
        return messages, tuple(logs), tuple(climbs)

    def _share_of_bound(self, data, k, shift, precision):
        """A mode's share as a function of its kernels: value, slope, and the functions."""

        def objective(logs, shift, precision):
            chain = self.chain(k, logs, data.steps[k])
            value = statespace.log_normaliser(chain, shift, precision)
            return value + self._log_prior(data, k, logs), value

        evaluate = jax.value_and_grad(objective, argnums=(0, 1, 2), has_aux=True)

        def share(logs):
            (value, log_normaliser), slopes = evaluate(logs, shift, precision)
            slope, mean, by_precision = slopes
            return value, slope, statespace.Smoothed(mean, -2.0 * by_precision, log_normaliser)

        return share

    # Expectation maximisation

    def check_em(self, method):
        """Pruning is left to the bound; the noise prior has to be conjugate."""
        if method.prune:
            raise ValueError(
                f"prune={method.prune} is not for FunctionalTucker: functions that are not needed "
                "shrink to nothing by themselves"
            )
        self._check_noise_prior("EM")

    def _check_noise_prior(self, method):
        if self.noise_variance is None and not priors.is_conjugate(self.noise_prior):
            raise ValueError(
                f"{method} on FunctionalTucker takes an InverseGamma noise_prior or None, "
                f"got {priors.describe(self.noise_prior)}"
            )

    def logs_of(self, sites, data):
        """Logarithms of kernel parameters given by site in the user's units."""
        return tuple(
            {
                name: jnp.log(
                    jnp.asarray(sites[f"{name}_{mode.name}"]) / self.index_units(data, k)[name]
                ).astype(data.unit.dtype)
                for name in self.parameter_names(mode)
            }
            for k, mode in enumerate(self.modes)
        )

    def initial_logs(self, data, initial):
        return self.start_logs(data) if initial is None else initial.logs

    def em_init(self, data, key, lane, initial, m_step):
        """The best of a few random starts after some sweeps of messages."""
        logs = self.initial_logs(data, initial)
        messages = self._start(data, key, lane, initial, logs)
        climbs = tuple(ascent.start_climb(each) for each in logs)
        return EMState(messages, logs, climbs, ascent.start_leaps(ascent.position(messages, logs)))

    def em_step(self, data, parameters, m_step, prune):
        """Kernel parameters and messages of every mode, then core and noise.

        Every third step starts from a leap, and is taken back if the objective is lower after it.
        """
        messages, logs, climbs, leaps = parameters
        objective = self.em_objective(data, parameters)
        here = ascent.position(messages, logs)
        target, length = ascent.target_of(leaps, here)
        leaping = ascent.is_leap(leaps)
        start, start_logs = optax.tree.where(
            leaping,
            (ascent.moved(messages, target), target.logs),
            (self._balanced(data, messages, False), logs),
        )
        new = EMState(*self._sweep(data, start, start_logs, climbs), leaps)
        refused = leaping & ~(self.em_objective(data, new) >= objective)
        new = optax.tree.where(refused, parameters, new)
        change = self._em_change(data, new, parameters)
        leaps = ascent.after_step(leaps, here, length, refused, change)
        return new._replace(leaps=leaps), objective

    def em_change(self, data, new, old):
        """The largest of the last three steps."""
        return jnp.max(new.leaps.changes)

    def _em_change(self, data, new, old):
        """As for messages, and what the kernels' last steps missed."""
        change = self.messages_change(data, new.messages, old.messages)
        missed = [climb.missed for climb in new.climbs]
        return jnp.maximum(change, jnp.max(jnp.stack(missed)) / _NATS)

    def em_objective(self, data, parameters):
        """The bound plus the log prior density of the logarithms of kernel parameters."""
        prior = sum(self._log_prior(data, k, logs) for k, logs in enumerate(parameters.logs))
        return parameters.messages.bound + prior

    def em_finish(self, data, parameters):
        """The factorised posterior and the bound."""
        return (
            Factorised(parameters.messages, parameters.logs),
            parameters.messages.bound,
            self._explained(data, parameters.messages),
        )

    # Messages

    def check_messages(self, method):
        """The noise prior has to be conjugate."""
        self._check_noise_prior("MessagePassing")

    def messages_init(self, data, key, lane, initial):
        """The best of a few random starts after some sweeps."""
        # Messages keep the kernels as they were stated, whatever an earlier posterior had learned.
        return self._start(data, key, lane, initial, self.start_logs(data))

    def messages_sweep(self, data, messages, damping):
        """Renew every factor in turn, kernel parameters as they were given."""
        balanced = self._balanced(data, messages, True)
        renewed = self._sweep(data, balanced, self.start_logs(data), damping=damping)[0]
        return renewed, messages.bound

    def messages_change(self, data, new, old):
        """Of fitted values and the noise, relative; of the bound, in units of a hundred nats.

        Kernels and scales move last, when the fitted values hardly do. What a nat is worth does not
        depend on how large the bound is. Only what is beyond rounding counts.
        """
        eps = jnp.finfo(new.bound.dtype).eps
        fitted = relative_change(new.sketch, old.sketch) - _LOST_OF_FIT * eps
        # The sum of squares is a difference of sums of about the number of observations.
        lost = _LOST_OF_SQUARES * eps * new.precision
        noise = relative_change(new.precision, old.precision) - lost
        bound = jnp.abs(new.bound - old.bound) - 0.5 * data.count * lost
        return jnp.max(jnp.stack([fitted, noise, bound / _NATS, jnp.zeros_like(lost)]))

    def messages_bound(self, data, messages):
        """Lower bound on the log evidence."""
        return messages.bound

    def messages_finish(self, data, messages):
        """The factorised posterior and its bound."""
        return (
            Factorised(messages, self.start_logs(data)),
            messages.bound,
            self._explained(data, messages),
        )

    @staticmethod
    def _explained(data, messages):
        """Variance of the fit at some rows relative to the values'; one if those are equal."""
        varied = data.spread > 0
        return jnp.where(
            varied, jnp.var(messages.sketch) / jnp.where(varied, data.spread, 1.0), 1.0
        )

    def caveats(self, diagnostics):
        """A fit that is the same everywhere has explained nothing."""
        if diagnostics > _NOTHING:
            return ()
        return ("the fit is constant: no function of the indices explains the values",)

    def prediction_target(self, inputs, labels):
        """At indices (P, K), or at the rows of a DataFrame."""
        points = [labels.coords.get(mode.name) for mode in self.modes]
        if any(p is None for p in points):
            raise TypeError("predictions of a batch are where the data were taken: inputs=None")
        spans = [tables.span_of(m, p) for m, p in zip(self.modes, points, strict=True)]
        converted = tables.prediction_inputs(self, points, spans, inputs)
        return PredictionTarget(("observation",), {}, converted)

    def sample_data(self, data, key, sites, inputs):
        """Noisy values given functions and core at the fit's points."""
        return sampling.sample_data(self, data, key, sites, inputs)

    # Markov chain Monte Carlo

    def check_mcmc(self, method):
        """Sampling needs proper priors."""
        if self.noise_variance is None and self.noise_prior is None:
            raise ValueError("MCMC on FunctionalTucker needs a proper noise_prior, got None (flat)")
        flat = [name for name, prior in self.kernel_priors.items() if prior is None]
        if flat:
            raise ValueError(f"MCMC on FunctionalTucker needs proper priors; {flat} are flat")

    def numpyro_model(self, data):
        """Whitened functions, kernel parameters, core and noise."""
        sampling.numpyro_model(self, data)

    def mcmc_init(self, data, key, initial):
        """Start values of the kernels, random functions, noise of a quarter of the power."""
        return sampling.chain_start(self, data, key, initial)

    def mcmc_conditional(self, data, sites):
        """Everything is sampled: one draw."""
        return Given(*sampling.functions_of(self, data, sites))

    def sample_prior(self, key):
        """Draw parameters and values on the grid of all modes' ``points`` from the priors.

        Parameters
        ----------
        key : int or JAX key

        Returns
        -------
        parameters : dict of numpy arrays
            By site.
        data : tuple of numpy arrays
            Indices (N, K) and values (N,), N the product of the numbers of points.

        Raises
        ------
        ValueError
            If a mode has no ``points``, or a prior, the offset or the scale depends on data.
        """
        return sampling.sample_prior(self, key)


def _is_none(leaf):
    return leaf is None


def _check_ranks(ranks, count, core):
    if isinstance(ranks, (int, np.integer)):
        given = [ranks] * count
    elif isinstance(ranks, (tuple, list)) or (isinstance(ranks, np.ndarray) and ranks.ndim == 1):
        given = list(ranks)
    else:
        raise TypeError(f"ranks must be a positive integer, or one a mode, got {ranks!r}")
    if len(given) != count:
        raise ValueError(f"ranks must be one number or one a mode ({count}), got {ranks!r}")
    wrong = [
        r for r in given if isinstance(r, bool) or not isinstance(r, (int, np.integer)) or r < 1
    ]
    if wrong:
        raise ValueError(f"ranks must be positive integers, got {ranks!r}")
    if core == "cp" and len(set(given)) > 1:
        raise ValueError(f"a CP core needs equal ranks, got {ranks!r}")
    return tuple(int(rank) for rank in given)


def _if_given(check, name, value):
    return None if value is None else check(name, value)
