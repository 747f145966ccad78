r"""Distributions on or near a set of low dimension.

.. math:: X = f(Z) + \varepsilon, \quad Z \sim N(0, I_q), \quad
          \varepsilon \sim N(0, \sigma^2 I_D), \quad q < D

Where the noise of the data is small the likelihood is nearly unbounded, and its maximum says little
of the distribution of :math:`f(Z)`; the likelihood of perturbed data, with noise added, says more.
M. Chae, D. Kim, Y. Kim and L. Lin, "A likelihood approach to nonparametric estimation of a singular
distribution using deep generative models", Journal of Machine Learning Research, 2023.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from bayeskit.models import tables
from bayeskit.models.base import (
    Prepared,
    SupportsEM,
    SupportsMCMC,
    SupportsMessages,
    first_or,
    relative_change,
)
from bayeskit.models.priors import check_prior, describe, is_conjugate
from bayeskit.models.singular import data as preparation
from bayeskit.models.singular import linear, messages
from bayeskit.models.singular.approximation import (
    DecoderMeanField,
    GivenDecoder,
    KnownLatents,
    SingularDistributionPosterior,
    in_units,
    log_given_latents,
    own_noise,
)
from bayeskit.validation import check_integer, check_number, check_positive

_SINGULAR = 100.0  # times the rounding of the data: no noise


class SingularDistribution(SupportsEM, SupportsMessages, SupportsMCMC):
    """Distribution on or near a set of low dimension, by likelihood of perturbed data.

    The decoder is linear: probabilistic principal component analysis.

    Parameters
    ----------
    latent_dim : int
        q, below the number of columns of the data.
    perturbation : float
        Standard deviation of the noise that is added to the data, in units of their standard
        deviation: the root of the mean variance of the columns.
    noise_scale : float, optional
        Standard deviation of the noise of the data themselves, in the user's units; learned by
        default.
    noise_prior : InverseGamma, ScaledByData of one, or None
        Of the variance of the noise with the perturbation, where it is learned. ``None`` is flat
        in its logarithm.

    Raises
    ------
    TypeError, ValueError
        If an argument is not of these.

    Notes
    -----
    Data for :func:`bayeskit.infer`: an array (n, D), a DataFrame of numbers, or a DataArray; NaN
    are missing values, which are integrated out (at random missing). Columns are centred and all
    divided by one number, so that noise of one size in all of them stays so: columns of different
    units should be divided by their own first. Sites: ``latents`` (n, q), ``loadings`` (D, q),
    ``offset`` (D,), and ``noise_variance``, which includes the perturbation. Loadings lie along
    their principal axes.

    Nothing is drawn to perturb data: results are expectations over fresh noise, under which a
    linear decoder keeps its loadings and adds the perturbation's square to the noise variance.

    ``EM`` maximises the likelihood times ``noise_prior`` over loadings, offset and noise variance,
    and starts at the closed form, which is the maximum where no value is missing; its evidence has
    them plugged in. ``MessagePassing`` has a distribution of them, under a standard normal prior of
    loadings and offset in the units above; it has no evidence where the noise's prior is flat.
    ``MCMC`` samples latents given the decoder of a fit by ``EM``:
    ``infer(posterior.model, data, MCMC())``. A step costs O(n D q), with missing values O(n D q²).

    Examples
    --------
    >>> import numpy as np
    >>> import bayeskit as bk
    >>> generator = np.random.default_rng(0)
    >>> plane = generator.normal(size=(200, 2)) @ generator.normal(size=(2, 5))
    >>> model = bk.models.SingularDistribution(2, perturbation=0.1)
    >>> posterior = bk.infer(model, plane)
    >>> bool(np.isclose(posterior.noise_scale, posterior.perturbation))
    True
    >>> posterior.generate(0, 3).shape
    (3, 5)
    """

    latent_dim: int = eqx.field(static=True)
    perturbation: Any
    noise_scale: Any
    noise_prior: Any
    estimates: Any

    def __init__(self, latent_dim, *, perturbation=0.0, noise_scale=None, noise_prior=None):
        self.latent_dim = check_integer("latent_dim", latent_dim, 1)
        self.perturbation = check_number("perturbation", perturbation, 0.0)
        self.noise_scale = (
            None if noise_scale is None else check_positive("noise_scale", noise_scale)
        )
        self.noise_prior = check_prior("noise_prior", noise_prior)
        if not is_conjugate(noise_prior):
            raise ValueError(
                "noise_prior must be inverse-gamma or None, for updates in closed form, got "
                f"{describe(noise_prior)}"
            )
        self.estimates = None

    def __repr__(self):
        noise = "" if self.noise_scale is None else f", noise_scale={float(self.noise_scale):.6g}"
        return (
            f"{type(self).__name__}({self.latent_dim}, perturbation={float(self.perturbation):.6g}"
            f"{noise}, noise_prior={describe(self.noise_prior)})"
        )

    @property
    def default_method(self):
        """Expectation maximisation."""
        from bayeskit.inference.ascent import EM

        return EM()

    @property
    def posterior_class(self):
        """The family's own result, with ``generate``, ``encode``, ``log_likelihood``."""
        return SingularDistributionPosterior

    @property
    def m_steps(self):
        """The only M-step: the exact maximum of the expected likelihood."""
        return ("exact",)

    def prepare(self, data, *, batch=False):
        """See :class:`~bayeskit.models.base.AbstractModel`."""
        table, labels, groups = preparation.prepare(self, data, batch)
        # Everything else is in the data, in their units.
        fields = ("perturbation", "noise_scale", "noise_prior", "estimates")
        prepared = eqx.tree_at(
            lambda m: tuple(getattr(m, name) for name in fields),
            self,
            (None,) * len(fields),
            is_leaf=lambda leaf: leaf is None or any(leaf is getattr(self, n) for n in fields),
        )
        return Prepared(prepared, table, labels, groups)

    def sample_prior(self, key):
        """Nothing can be drawn: the prior of loadings and offset depends on the data.

        Raises
        ------
        ValueError
        """
        raise ValueError(
            "the prior of loadings and offset is in units of the data: nothing can be drawn from "
            "it; simulate from stated loadings instead"
        )

    def prediction_target(self, inputs, labels):
        """Rows, complete or not."""
        return tables.rows_target(inputs, labels)

    def start_from(self, posterior, data, labels):
        """Loadings, offset and noise variance, in the units of the new data."""
        mean = posterior.mean
        features = data.center.shape[-1]
        shapes = {"loadings": (features, self.latent_dim), "offset": (features,)}
        for site, shape in shapes.items():
            found = np.shape(mean[site]) if site in mean else None
            if found != shape:
                raise ValueError(
                    f"initial does not fit the model: {site} is expected to have the shape "
                    f"{shape}, got {found}"
                )
        if not np.isfinite(mean["noise_variance"]):
            raise ValueError("initial has a noise variance without a mean: it is of too few data")
        return {site: mean[site] for site in (*shapes, "noise_variance")}

    def sample_data(self, data, key, sites, inputs):
        """Noisy rows at the latents, or at latents of given rows: without the perturbation."""
        for_latents, for_noise = jax.random.split(key)
        decoder = _standardised(data, sites)
        latents = jnp.asarray(sites["latents"], decoder.offset.dtype)
        if inputs is not None:
            given = GivenDecoder(decoder)
            found = given.latents(self, data, inputs.standardised(data))
            latents = given.drawn_latents(for_latents, found)
        rows = latents @ decoder.loadings.T + decoder.offset
        scale = jnp.sqrt(own_noise(decoder.noise_variance, data))
        rows = rows + scale * jax.random.normal(for_noise, rows.shape, rows.dtype)
        return data.center + data.unit * rows

    def start(self, data, key, lane, initial):
        """An earlier decoder, the closed form, or for further lanes random loadings."""

        def first():
            if initial is not None:
                return _standardised(data, initial)
            return linear.maximum_likelihood(data, self.latent_dim)

        def other():
            features, dtype = data.center.shape[0], data.values.dtype
            shape = (features, self.latent_dim)
            noise = linear.fixed_or(data, jnp.ones((), dtype))
            return linear.LinearDecoder(
                jax.random.normal(key, shape, dtype), jnp.zeros(features, dtype), noise
            )

        return first_or(lane, first, other)

    # Expectation maximisation

    def check_em(self, method):
        """All that can be stated can be fitted."""

    def em_init(self, data, key, lane, initial, m_step):
        """The closed form, which is the maximum where no value is missing."""
        return self.start(data, key, lane, initial)

    def em_step(self, data, parameters, m_step, prune):
        """Moments of latents, and the decoder given them."""
        affine = linear.known(parameters)
        latents = linear.latents_given(affine, data.values, data.observed)
        found = linear.moments(affine, latents, data.values, data.observed, data.perturbation)
        return linear.renewed(data, found), self._objective(data, affine, latents)

    def _objective(self, data, affine, latents):
        rows = linear.log_densities(affine, latents, data.values, data.observed, data.perturbation)
        prior = linear.log_noise_prior(data, affine.log_precision, affine.precision)
        return jnp.sum(rows) - _log_unit(data) + prior

    def em_change(self, data, new, old):
        """Of loadings, offset and noise variance."""
        # Offsets are about zero, where the unit of the data is what they are relative to.
        return relative_change(
            *((d.loadings, jnp.append(d.offset, 1.0), d.noise_variance) for d in (new, old))
        )

    def em_objective(self, data, parameters):
        """Log likelihood of the perturbed data plus the log prior density of the noise."""
        affine = linear.known(parameters)
        return self._objective(
            data, affine, linear.latents_given(affine, data.values, data.observed)
        )

    def em_finish(self, data, parameters):
        """Exact latents, the log likelihood, and the noise beside its rounding."""
        rotation = linear.principal_axes(parameters.loadings)
        found = parameters._replace(loadings=parameters.loadings @ rotation)
        return GivenDecoder(found), self.em_objective(data, found), _diagnosed(data, found)

    def caveats(self, diagnostics):
        """Data without noise of their own and without perturbation have no maximum."""
        if not bool(diagnostics):
            return ()
        return (
            f"the rows lie in a plane of dimension {self.latent_dim}, to rounding, and were not "
            "perturbed: the distribution is singular, its likelihood unbounded, and the noise "
            "variance a rounding error; give perturbation=0.1 or so",
        )

    # Messages

    def check_messages(self, method):
        """All that can be stated can be fitted."""

    def messages_init(self, data, key, lane, initial):
        """Factors around the start of EM."""
        return messages.messages_at(data, self.start(data, key, lane, initial))

    def messages_sweep(self, data, messages_, damping):
        """Latents, then the decoder, then the noise."""
        affine = messages.affine(data, messages_)
        latents = linear.latents_given(affine, data.values, data.observed)
        found = linear.moments(affine, latents, data.values, data.observed, data.perturbation)
        bound = self.messages_bound(data, messages_)
        return messages.renewed(data, messages_, found, damping), bound

    def messages_change(self, data, new, old):
        """Of the means of loadings, offset and noise."""
        return self.em_change(data, *(messages.center(each) for each in (new, old)))

    def messages_bound(self, data, messages_):
        """Lower bound on the log evidence; but for a constant where the noise's prior is flat."""
        affine = messages.affine(data, messages_)
        return messages.bound(data, messages_, affine) - _log_unit(data)

    def messages_finish(self, data, messages_):
        """Factors along principal axes, and the bound where the priors are proper."""
        found = messages.rotated(messages_)
        bound = self.messages_bound(data, found) if data.proper else None
        return DecoderMeanField(found), bound, _diagnosed(data, messages.center(found))

    # Markov chain Monte Carlo

    def check_mcmc(self, method):
        """Latents are sampled given a decoder."""
        if not self.estimates:
            raise ValueError(
                "MCMC on SingularDistribution samples latents given a trained decoder, and this "
                "model has none: fit it by EM() first and give posterior.model"
            )

    def mcmc_given(self, data):
        """The decoder of the earlier fit."""
        return in_units(data.given, data)

    def numpyro_model(self, data):
        """Latents given the decoder."""
        shape = (data.values.shape[0], self.latent_dim)
        standard = dist.Normal(jnp.zeros(shape, data.values.dtype), 1.0)
        positions = numpyro.sample("latents", standard.to_event(2))
        numpyro.factor("rows", jnp.sum(log_given_latents(data, positions)))

    def mcmc_init(self, data, key, initial):
        """A draw from the exact posterior given the decoder."""
        return GivenDecoder(data.given).sample(key, self, data)

    def mcmc_conditional(self, data, sites):
        """Everything is sampled: one draw."""
        return KnownLatents(sites["latents"])


def _standardised(data, sites):
    dtype = data.values.dtype
    loadings, offset, noise = (
        jnp.asarray(sites[site], dtype) for site in ("loadings", "offset", "noise_variance")
    )
    return linear.LinearDecoder(
        loadings / data.unit, (offset - data.center) / data.unit, noise / data.unit**2
    )


def _log_unit(data):
    return data.count * jnp.log(data.unit)


def _diagnosed(data, decoder):
    """Whether the noise is a rounding error."""
    smallest = _SINGULAR * linear.smallest_variance(data.values)
    return decoder.noise_variance < smallest
