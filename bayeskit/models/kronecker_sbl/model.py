r"""Kronecker-structured sparse Bayesian learning.

.. math::
    y = (H_1 \otimes \dots \otimes H_I) x + n, \quad
    x \sim N(0, \mathrm{diag}(\gamma_1 \otimes \dots \otimes \gamma_I)), \quad
    n \sim N(0, \sigma^2 I), \quad
    \gamma_{ij} \sim p_\gamma, \quad \sigma^2 \sim p_\sigma

with circular complex normals where the measurements are complex. Y. He and G. Joseph, "Bayesian
algorithms for Kronecker-structured sparse vector recovery with application to IRS-MIMO channel
estimation", IEEE Transactions on Signal Processing, 2024 (arXiv 2307.14719).
"""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from bayeskit.models import priors
from bayeskit.models.base import (
    Prepared,
    SupportsEM,
    SupportsMCMC,
    SupportsMessages,
    SupportsUpdate,
    best_of,
    key_of_lane,
    relative_change,
)
from bayeskit.models.kronecker_sbl import messages as mean_field
from bayeskit.models.kronecker_sbl import problem, sampling, structure, updates
from bayeskit.models.kronecker_sbl.approximation import (
    Conditional,
    KroneckerSBLPosterior,
    MeanField,
    scale_units,
)

DEFAULT_SCALE_PRIOR = priors.ScaledByData(dist.InverseGamma(1.0, 1e-6))

_M_STEPS = ("mackay", "convex", "alternating", "svd")
_SMALLEST_FREE_SHARE = 0.01
_START_NOISE = 0.1  # share of the measurements' power, as in the paper
_POWER_STEPS = 20
_TRIAL_SWEEPS = 4


class HyperParameters(NamedTuple):
    """Free weights behind the scales (the scales themselves without coupling), and the noise.

    ``spectra`` are the decompositions at these scales: most of an iteration's cost, so that each
    is made once and carried along.
    """

    weights: tuple
    noise_variance: Any
    spectra: tuple


class KroneckerSBL(SupportsEM, SupportsMessages, SupportsMCMC, SupportsUpdate):
    r"""Sparse linear model with a Kronecker dictionary and Kronecker-structured scales.

    Parameters
    ----------
    dictionaries : sequence of arrays (M_i, N_i)
        One an axis of the measurements, real or complex; NumPy, JAX or ``xarray.DataArray``
        (dims ``measurement axis, atom axis`` then name the result's dimensions).
    noise_variance : float, optional
        Known variance of the noise (``E|n|²`` if complex, in squared units of the measurements);
        learned if ``None``.
    scales : "kronecker", "unstructured" or tuple of tuples of int
        Structure of the prior variances of the coefficients: one factor an axis; one number a
        coefficient (classic sparse Bayesian learning: forms the dense dictionary, at most
        2·10⁸ entries); or one factor a group of axes, as ``((0, 1), (2,))``.
    coupling : sequence of float, optional
        One strength β ≥ 0 an axis: prior variances of neighbouring atoms then rise and fall
        together, ``γ_i = (I + β_i (sub- and super-diagonal)) h_i``, which favours blocks.
    scale_prior : NumPyro distribution, ScaledByData or None
        Prior of every entry of every scale factor (of the weights ``h`` with coupling). The
        default, ``ScaledByData(InverseGamma(1, 1e-6))``, has a density of the logarithm that
        falls by one an e-fold above a millionth of the data's scale: a slice of coefficients
        leaves that floor only where the evidence gains more. ``None`` is flat in the logarithm:
        EM then is type-II maximum likelihood.
    noise_prior : NumPyro distribution, ScaledByData or None
        Prior of the noise variance, where it is learned.

    Raises
    ------
    ValueError, TypeError
        For dictionaries that are not finite matrices, a noise variance that is not positive, a
        grouping that is not a partition of the axes, or a prior that is not on the positive
        numbers.

    Notes
    -----
    Data for :func:`bayeskit.infer`: a tensor (M_1, …, M_I), or (snapshots, M_1, …, M_I), whose
    coefficients differ and share their scales. Sites: ``coefficients`` (N_1, …, N_I) or
    (snapshots, N_1, …, N_I), ``noise_variance``, ``scales_0``, ``scales_1``, …, one a group.
    Only the product of the scale factors is determined: all but the last are reported with mean
    one.

    An iteration costs a few products on the side of the measurements and one decomposition a
    factor; only the final mean and variances have the size of the coefficients. Source: He &
    Joseph 2024; see :mod:`bayeskit.models.kronecker_sbl.structure` for the algebra.

    Examples
    --------
    >>> import bayeskit as bk
    >>> problem = bk.datasets.kronecker_sparse(0)
    >>> posterior = bk.infer(bk.models.KroneckerSBL(problem.dictionaries), problem.measurements)
    >>> bool(bk.metrics.nmse(problem.coefficients, posterior.mean["coefficients"]) < 1e-3)
    True
    """

    dictionaries: tuple
    noise_variance: Any
    scales: Any
    coupling: Any
    scale_prior: Any
    noise_prior: Any
    estimates: Any
    factors: Any  # problem.Factors once prepared, None before

    def __init__(
        self,
        dictionaries,
        *,
        noise_variance=None,
        scales="kronecker",
        coupling=None,
        scale_prior=DEFAULT_SCALE_PRIOR,
        noise_prior=priors.DEFAULT_NOISE_PRIOR,
    ):
        self.dictionaries = problem.check_dictionaries(dictionaries)
        self.noise_variance = problem.check_noise_variance(noise_variance)
        self.scales = scales
        self.coupling = problem.check_coupling(coupling, len(self.dictionaries))
        self.scale_prior = priors.check_prior("scale_prior", scale_prior)
        self.noise_prior = priors.check_prior("noise_prior", noise_prior)
        self.estimates = None
        self.factors = None
        problem.check_groups(scales, self.dictionaries, self.coupling)

    def __repr__(self):
        shapes = " ⊗ ".join("×".join(map(str, d.shape)) for d in self.dictionaries)
        noise = "learned" if self.noise_variance is None else f"{self.noise_variance:.6g}"
        coupling = "" if self.coupling is None else f", coupling={self.coupling}"
        return (
            f"{type(self).__name__}({shapes}, noise_variance {noise}, "
            f"scales={self.scales!r}{coupling}, "
            f"scale_prior={priors.describe(self.scale_prior)}, "
            f"noise_prior={priors.describe(self.noise_prior)})"
        )

    @property
    def default_method(self):
        """Expectation maximisation with the factor-wise fixed point."""
        from bayeskit.inference.ascent import EM

        return EM()

    @property
    def posterior_class(self):
        """The family's own result, with ``support``."""
        return KroneckerSBLPosterior

    @property
    def m_steps(self):
        """M-steps of :class:`bayeskit.inference.EM`, the default first."""
        return _M_STEPS

    def prepare(self, data, *, batch=False):
        """See :class:`~bayeskit.models.base.AbstractModel`."""
        factors, observations, labels, tables = problem.prepare(self, data, batch)
        prepared = eqx.tree_at(
            lambda m: (
                m.dictionaries,
                m.scales,
                m.coupling,
                m.estimates,
                m.factors,
                m.noise_variance,
            ),
            self,
            ((), None, None, None, factors, None if self.noise_variance is None else 0.0),
            is_leaf=lambda leaf: leaf is None or leaf is self.dictionaries or leaf is self.scales,
        )
        dtype = factors.masks[0].dtype
        prepared = jax.tree.map(
            lambda leaf: (
                jnp.asarray(leaf, dtype) if isinstance(leaf, float) or jnp.ndim(leaf) == 0 else leaf
            ),
            prepared,
        )
        return Prepared(prepared, observations, labels, tables)

    def joined(self, data, new_data):
        """Further snapshots after those there are."""
        return problem.joined(self.dictionaries, data, new_data)

    def sample_prior(self, key):
        """Draw parameters and a tensor of measurements from the priors.

        Parameters
        ----------
        key : int or JAX key

        Returns
        -------
        parameters : dict of numpy arrays
            By site.
        data : numpy array (M_1, …, M_I)

        Raises
        ------
        ValueError
            If a prior is flat or relative to the data, naming it.
        """
        return problem.sample_prior(self, key)

    # What differs from data set to data set is in ``data``; everything below is pure and traced.

    @property
    def learns_noise(self):
        return self.noise_variance is None

    def log_unit(self, data):
        """What a log density of the scaled measurements exceeds that of the user's by."""
        kappa = structure.likelihood_power(data.tensor.dtype)
        return 2 * kappa * data.tensor.size * jnp.log(data.unit)

    def _scale_priors(self, data):
        units = scale_units(self.factors, data)
        dtype = data.unit.dtype
        return [
            updates.InverseGammaPrior(
                *(p.astype(dtype) for p in priors.inverse_gamma(self.scale_prior, unit, dtype))
            )
            for unit in units
        ]

    def _noise_prior(self, data):
        parameters = priors.inverse_gamma(self.noise_prior, data.unit**2, data.unit.dtype)
        return updates.InverseGammaPrior(*(p.astype(data.unit.dtype) for p in parameters))

    def effective(self, weights):
        return updates.effective(weights, self.factors.strengths, self.factors.masks)

    def start_weights(self, data, key, lane, initial):
        """Lane 0: equal scales that explain the measurements' power; others: log-normal ones."""
        factors, dtype = self.factors, data.unit.dtype
        if initial is not None:
            units = scale_units(factors, data)
            given = [
                updates.uncouple(jnp.ravel(jnp.asarray(initial[f"scales_{g}"])) / unit, strength)
                for g, (unit, strength) in enumerate(zip(units, factors.strengths, strict=True))
            ]
            return tuple(
                jnp.maximum(scale, smallest).astype(dtype) * mask
                for scale, smallest, mask in zip(
                    given, self._smallest_weights(data, given), factors.masks, strict=True
                )
            )
        keys = jax.random.split(key, len(factors.masks))
        return tuple(
            jnp.where(lane == 0, 1.0, jnp.exp(jax.random.normal(k, mask.shape, dtype))) * mask
            for k, mask in zip(keys, factors.masks, strict=True)
        )

    def _smallest_weights(self, data, weights):
        """Positive numbers that no weight is below: under a conjugate prior, at any fixed point."""
        if self.scale_prior is None or not priors.is_conjugate(self.scale_prior):
            return [jnp.finfo(data.unit.dtype).eps ** 2 * jnp.max(w) for w in weights]
        kappa = structure.likelihood_power(data.tensor.dtype)
        return [
            prior.rate / (prior.concentration + kappa * size)
            for prior, size in zip(self._scale_priors(data), self._slices(data), strict=True)
        ]

    def start_noise(self, data, initial):
        if not self.learns_noise:
            return data.noise_variance
        if initial is not None and "noise_variance" in initial:
            return jnp.asarray(initial["noise_variance"] / data.unit**2, data.unit.dtype)
        return jnp.asarray(_START_NOISE, data.unit.dtype)

    # Expectation maximisation

    def check_em(self, method):
        """EM's updates are in closed form for flat and inverse-gamma priors.

        The step ``"svd"`` is a least-squares fit that knows neither prior nor coupling: a prior of
        the user's own, or coupling, would be left out without a word.
        """
        if method.m_step == "svd":
            if self.coupling is not None and any(self.coupling):
                raise ValueError(
                    f"m_step='svd' cannot couple neighbours, got coupling={self.coupling}; "
                    "take m_step='convex', 'mackay' or 'alternating'"
                )
            stated = priors.describe(self.scale_prior)
            if stated not in ("flat", priors.describe(DEFAULT_SCALE_PRIOR)):
                raise ValueError(
                    f"m_step='svd' has no place for a prior of the scales, got scale_prior={stated}"
                    "; leave it out (or None), or take m_step='convex', 'mackay' or 'alternating'"
                )
        for name, prior in (("scale_prior", self.scale_prior), ("noise_prior", self.noise_prior)):
            if not priors.is_conjugate(prior):
                raise ValueError(
                    f"EM on KroneckerSBL takes an InverseGamma {name} or None, "
                    f"got {priors.describe(prior)}; MCMC takes any"
                )

    def em_init(self, data, key, lane, initial, m_step):
        """Equal scales and a tenth of the power as noise, as in the paper.

        For the steps on the evidence that is one candidate of four: see ``_searched_start``.
        """
        if initial is None and m_step in ("mackay", "convex"):
            return self._searched_start(data, key, lane)
        return self._plain_start(data, key, lane, initial)

    def _plain_start(self, data, key, lane, initial):
        weights = self.start_weights(data, key, lane, initial)
        spectra = structure.spectra(self.factors.reduced, self.effective(weights))
        parameters = HyperParameters(weights, self.start_noise(data, initial), spectra)
        # Reported scales are normalised: how the factors share one scale is not in them.
        return parameters if initial is None else self._rebalanced(data, parameters)

    def _searched_start(self, data, key, lane):
        """The best of four starts after a few sweeps: as it is, and after power iteration thrice.

        Where few coefficients carry the signal, power iteration finds them (though not from
        everywhere, so that two of its starts are random), and sweeps from the plain start often
        end at a local maximum; where many do, it is the other way round. Which it is shows after
        two or three sweeps already. These leave the scale prior out: far from a maximum it would
        drive small scales to zero too early.
        """
        flat = eqx.tree_at(
            lambda m: m.scale_prior, self, None, is_leaf=lambda leaf: leaf is self.scale_prior
        )

        def sweep(_, parameters):
            return flat._fixed_point_sweep(data, parameters, flat._evaluate, None, "convex")[0]

        def trial(candidate):
            key, lane, power_steps = candidate
            parameters = self._plain_start(data, key, lane, None)
            parameters = jax.lax.fori_loop(
                0, power_steps, lambda _, p: self._power_step(data, p), parameters
            )
            parameters = jax.lax.fori_loop(0, _TRIAL_SWEEPS, sweep, parameters)
            return parameters, flat._evaluate(data, parameters, ())[1]

        keys = jax.random.split(key_of_lane(key, lane), 3)[jnp.array([0, 0, 1, 2])]
        lanes = jnp.stack([jnp.asarray(lane), jnp.asarray(lane), 1, 1])
        power_steps = jnp.array([0, _POWER_STEPS, _POWER_STEPS, _POWER_STEPS])
        candidates, objectives = jax.lax.map(trial, (keys, lanes, power_steps))
        return best_of(candidates, objectives)[0]

    def _power_step(self, data, parameters):
        """Nearest Kronecker scales to the second moments, by one sweep of the power method.

        The large coefficients decide it, so that it finds the support from far away where steps
        on the evidence stop at a nearby local maximum; those converge fast once it is found.
        """
        scales = self.effective(parameters.weights)
        stats, _ = self._evaluate(data, parameters, ())
        arguments = (parameters.spectra, scales, parameters.noise_variance, data.measurements)
        fitted = list(scales)
        for axis in range(len(fitted)):
            target = structure.projected_second_moments(*arguments, fitted, axis)
            norms = [jnp.sum(v**2) for j, v in enumerate(fitted) if j != axis]
            fitted[axis] = target / math.prod(norms)
        smallest = jnp.finfo(data.unit.dtype).eps ** 2
        weights = tuple(
            jnp.maximum(new, smallest * jnp.max(new)) * mask
            for new, mask in zip(fitted, self.factors.masks, strict=True)
        )
        noise = self._update_noise(data, parameters.noise_variance, stats, "expectation")
        spectra = structure.spectra(self.factors.reduced, self.effective(weights))
        return HyperParameters(weights, noise, spectra)

    def em_step(self, data, parameters, m_step, prune):
        """One iteration; see :mod:`bayeskit.models.kronecker_sbl.updates` for the steps."""
        if m_step in ("alternating", "svd"):
            parameters, objective = self._expectation_maximisation(data, parameters, m_step)
        else:
            bold = "mackay" if m_step == "mackay" else None
            parameters, objective = self._fixed_point_sweep(
                data, parameters, self._evaluate, bold, "convex"
            )
        return jax.lax.cond(
            prune > 0, lambda: self._pruned(parameters, prune), lambda: parameters
        ), objective

    def _pruned(self, parameters, prune):
        weights = updates.prune(parameters.weights, prune)
        spectra = structure.spectra(self.factors.reduced, self.effective(weights))
        return parameters._replace(weights=weights, spectra=spectra)

    def _rebalanced(self, data, parameters):
        """Share the overall scale best among the factors; the product, all the data see, stays."""
        inverse_sums = [
            jnp.sum(jnp.where(w > 0, 1.0 / jnp.where(w > 0, w, 1.0), 0.0))
            for w in parameters.weights
        ]
        counts = [jnp.sum(w > 0) for w in parameters.weights]
        logs = updates.rebalance(inverse_sums, counts, self._scale_priors(data))
        weights = tuple(w * jnp.exp(c) for w, c in zip(parameters.weights, logs, strict=True))
        spectra = tuple(
            s._replace(values=s.values * jnp.exp(c / 2))
            for s, c in zip(parameters.spectra, logs, strict=True)
        )
        return parameters._replace(weights=weights, spectra=spectra)

    def em_change(self, data, new, old):
        """Of scale factors as reported, and of the noise: not how the factors share one scale."""

        def watched(parameters):
            scales = self.effective(parameters.weights)
            sites = problem.normalised_scales(scales, self.factors.layout)
            return sites, parameters.noise_variance

        return relative_change(watched(new), watched(old))

    def em_objective(self, data, parameters):
        """Log evidence plus log prior density (of the logarithms) of scales and noise."""
        return self._evaluate(data, parameters, ())[1]

    def em_finish(self, data, parameters):
        """The exact posterior given the estimates."""
        approximation = Conditional(self.effective(parameters.weights), parameters.noise_variance)
        stats, _ = self._evaluate(data, parameters, ())
        free = stats.noise_leverage / data.tensor.size
        return approximation, stats.log_evidence - self.log_unit(data), free

    def _evaluate(self, data, parameters, axes):
        stats = structure.statistics(
            parameters.spectra, parameters.noise_variance, data.measurements, axes
        )
        objective = stats.log_evidence - self.log_unit(data)
        for prior, weights in zip(self._scale_priors(data), parameters.weights, strict=True):
            objective = objective + prior.log_density(weights)
        if self.learns_noise:
            objective = objective + self._noise_prior(data).log_density(parameters.noise_variance)
        return stats, objective

    def _update_noise(self, data, noise_variance, stats, kind):
        if not self.learns_noise:
            return noise_variance
        return updates.noise_update(
            noise_variance,
            stats.noise_signal,
            stats.noise_leverage,
            float(data.tensor.size),
            self._noise_prior(data),
            structure.likelihood_power(data.tensor.dtype),
            kind,
            jnp.finfo(data.unit.dtype).eps ** 2,
        )

    def _fixed_point_sweep(self, data, parameters, evaluate, bold, careful):
        """Move the scales of one factor after the other, and the noise with each.

        A ``bold`` step that would lower the objective gives way to the ``careful`` one, which
        cannot; both have the same fixed points. Returns the objective at the old parameters.
        """
        kappa = structure.likelihood_power(data.tensor.dtype)
        scale_priors, slices = self._scale_priors(data), self._slices(data)
        count = len(self.factors.masks)
        stats, objective = evaluate(data, parameters, (0,))
        first = objective

        for g in range(count):

            def moved(kind, g=g, parameters=parameters, stats=stats):
                weights = updates.scale_update(
                    parameters.weights[g],
                    self.effective(parameters.weights)[g],
                    self.factors.strengths[g],
                    stats.signal[0],
                    stats.leverage[0],
                    slices[g],
                    scale_priors[g],
                    kappa,
                    kind,
                )
                noise = self._update_noise(data, parameters.noise_variance, stats, kind)
                weights = (*parameters.weights[:g], weights, *parameters.weights[g + 1 :])
                renewed = structure.spectrum(self.factors.reduced[g], self.effective(weights)[g])
                spectra = (*parameters.spectra[:g], renewed, *parameters.spectra[g + 1 :])
                parameters = HyperParameters(weights, noise, spectra)
                return parameters, *evaluate(data, parameters, ((g + 1) % count,))

            if bold is None:
                parameters, stats, objective = moved(careful)
            else:
                attempt = moved(bold)
                rounding = 64 * jnp.finfo(objective.dtype).eps * jnp.abs(objective)
                parameters, stats, objective = jax.lax.cond(
                    attempt[2] >= objective - rounding,
                    lambda attempt=attempt: attempt,
                    lambda moved=moved: moved(careful),
                )
        return self._rebalanced(data, parameters), first

    def _expectation_maximisation(self, data, parameters, m_step):
        """The paper's iterations: second moments of all coefficients, then Kronecker scales."""
        factors, kappa = self.factors, structure.likelihood_power(data.tensor.dtype)
        scales = self.effective(parameters.weights)
        stats, objective = self._evaluate(data, parameters, ())
        arguments = (factors.reduced, scales, parameters.noise_variance)
        mean = structure.posterior_mean(*arguments, data.measurements)
        moments = jnp.mean(jnp.abs(mean) ** 2, axis=0) + structure.posterior_variance(
            *arguments, data.measurements
        )
        weights = parameters.weights
        if m_step == "svd":
            fitted = updates.rank_one(moments)
            weights = tuple(
                jnp.where(w > 0, new, 0.0) for w, new in zip(weights, fitted, strict=True)
            )
        else:
            weights = updates.alternating(
                moments,
                weights,
                factors.strengths,
                factors.masks,
                self._scale_priors(data),
                kappa,
                data.tensor.shape[0],
            )
        noise = self._update_noise(data, parameters.noise_variance, stats, "expectation")
        spectra = structure.spectra(factors.reduced, self.effective(weights))
        parameters = HyperParameters(weights, noise, spectra)
        # The rank-one fit knows no prior, so moving along the prior's ridge would undo it.
        return parameters if m_step == "svd" else self._rebalanced(data, parameters), objective

    # Variational messages

    def check_messages(self, method):
        """Messages are in closed form for proper inverse-gamma priors without coupling."""
        named = [("scale_prior", self.scale_prior)]
        if self.learns_noise:
            named.append(("noise_prior", self.noise_prior))
        for name, prior in named:
            if prior is None or not priors.is_conjugate(prior):
                raise ValueError(
                    f"MessagePassing on KroneckerSBL needs an InverseGamma {name}, "
                    f"got {priors.describe(prior)}; MCMC takes any proper prior"
                )
        if self.coupling is not None and any(self.coupling):
            raise ValueError(
                "MessagePassing on KroneckerSBL has no closed form with coupling; use EM or MCMC"
            )

    def _slices(self, data):
        """Coefficients in a slice of each factor, over all snapshots."""
        active = [jnp.sum(mask) for mask in self.factors.masks]
        total = jnp.prod(jnp.stack(active)) * data.tensor.shape[0]
        return [total / count for count in active]

    def messages_init(self, data, key, lane, initial):
        """Factors centred on the start values of EM."""
        if initial is None:
            return self._searched_start(data, key, lane)
        return self._plain_start(data, key, lane, initial)

    def messages_sweep(self, data, messages, damping):
        """Renew ``q(x)`` and the factors of one group after the other.

        Damping mixes the logarithms of the effective scales and of the noise variance.
        """
        renewed, bound = self._fixed_point_sweep(
            data, messages, self._evaluate_bound, "mackay", "expectation"
        )
        return jax.lax.cond(
            damping > 0, lambda: self._damped(messages, renewed, damping), lambda: renewed
        ), bound

    def _damped(self, old, new, damping):
        def mix(a, b):
            return jnp.where(b > 0, a**damping * b ** (1.0 - damping), 0.0)

        weights = jax.tree.map(mix, old.weights, new.weights)
        noise = mix(old.noise_variance, new.noise_variance)
        spectra = structure.spectra(self.factors.reduced, self.effective(weights))
        return HyperParameters(weights, noise, spectra)

    def _messages(self, data, parameters):
        noise_prior = self._noise_prior(data) if self.learns_noise else None
        return mean_field.messages_at(
            self.effective(parameters.weights),
            parameters.noise_variance,
            self._scale_priors(data),
            noise_prior,
            self._slices(data),
            data.tensor.size,
            structure.likelihood_power(data.tensor.dtype),
        )

    def _evaluate_bound(self, data, parameters, axes):
        stats = structure.statistics(
            parameters.spectra, parameters.noise_variance, data.measurements, axes
        )
        bound = mean_field.bound(
            self._messages(data, parameters),
            stats.log_evidence,
            self._scale_priors(data),
            self._noise_prior(data) if self.learns_noise else None,
            self._slices(data),
            data.tensor.size,
            structure.likelihood_power(data.tensor.dtype),
        )
        return stats, bound - self.log_unit(data)

    def messages_change(self, data, new, old):
        """The effective scales and noise, as for EM."""
        return self.em_change(data, new, old)

    def messages_bound(self, data, messages):
        """Lower bound on the log evidence."""
        return self._evaluate_bound(data, messages, ())[1]

    def messages_finish(self, data, messages):
        """The mean-field posterior and its bound."""
        stats, bound = self._evaluate_bound(data, messages, ())
        free = stats.noise_leverage / data.tensor.size
        return MeanField(self._messages(data, messages)), bound, free

    # Markov chain Monte Carlo

    def check_mcmc(self, method):
        """Sampling needs proper priors."""
        if self.scale_prior is None:
            raise ValueError("MCMC on KroneckerSBL needs a proper scale_prior, got None (flat)")
        if self.learns_noise and self.noise_prior is None:
            raise ValueError(
                "MCMC on KroneckerSBL needs a proper noise_prior where the noise is learned, "
                "got None"
            )

    def numpyro_model(self, data):
        """Scales (with coupling, weights) and noise, from priors; coefficients integrated out."""
        sampling.numpyro_model(self, data)

    def mcmc_init(self, data, key, initial):
        """Scales of the data's own size, spread by about a factor e, different for each chain."""
        return sampling.chain_start(self, data, key, initial)

    def mcmc_conditional(self, data, sites):
        """The exact posterior of the coefficients given one draw of scales and noise."""
        return Conditional(*sampling.conditioned_on(self, data, sites))

    # Prediction and warnings

    def sample_data(self, data, key, sites, inputs):
        """Measurements of given coefficients, with noise."""
        return sampling.sample_data(self, data, key, sites, inputs)

    def caveats(self, diagnostics):
        """A fit that takes up all degrees of freedom leaves nothing to tell the noise by."""
        if diagnostics >= _SMALLEST_FREE_SHARE:
            return ()
        return (
            f"the fit interpolates the data: all but a share {float(diagnostics):.1e} of the "
            "degrees of freedom are taken up, and variances rest on the noise variance alone; is "
            "noise_variance far too small?",
        )

    def prediction_target(self, inputs, labels):
        """At new dictionaries (P_i, N_i), one an axis."""
        return problem.prediction_target(inputs, self.factors, labels)

    def start_from(self, posterior, data, labels):
        """Scales, and the noise variance where there is one, by site."""
        layout, mean = self.factors.layout, posterior.mean
        for g, group in enumerate(layout.groups):
            site, shape = f"scales_{g}", tuple(layout.columns[axis] for axis in group)
            found = np.shape(mean[site]) if site in mean else "no such site"
            if found != shape:
                raise ValueError(
                    f"initial does not fit the model: {site} is expected to have the shape "
                    f"{shape}, got {found}"
                )
        return {site: value for site, value in mean.items() if site != "coefficients"}
