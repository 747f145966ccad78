r"""Distributions on or near a set of low dimension.

.. math:: X = f(Z) + \varepsilon, \quad Z \sim N(0, I_q), \quad
          \varepsilon \sim N(0, \sigma^2 I_D), \quad q < D

Where the noise of the data is small the likelihood is nearly unbounded, and its maximum says little
of the distribution of :math:`f(Z)`; the likelihood of perturbed data, with noise added, says more.
M. Chae, D. Kim, Y. Kim and L. Lin, "A likelihood approach to nonparametric estimation of a singular
distribution using deep generative models", Journal of Machine Learning Research, 2023.
"""

import dataclasses
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
    SupportsVariational,
)
from bayeskit.models.priors import check_prior, describe, is_conjugate
from bayeskit.models.singular import data as preparation
from bayeskit.models.singular import (
    deep,
    grid,
    grid_em,
    images,
    last_layer,
    linear,
    linear_em,
    messages,
    sampled_em,
    selection,
    streaming,
)
from bayeskit.models.singular.arguments import described, levels, network
from bayeskit.models.singular.decoding import Doubts
from bayeskit.models.singular.earlier import (
    given,
    given_networks,
    given_sites,
    simulated,
    started,
    with_sites,
)
from bayeskit.models.singular.linear_latents import DecoderMeanField
from bayeskit.models.singular.network_latents import EncodedLatents
from bayeskit.models.singular.numpyro_functions import model_and_guide
from bayeskit.models.singular.posterior import SingularDistributionPosterior
from bayeskit.models.singular.sampled_latents import KnownLatents, log_given_latents
from bayeskit.precision import as_key, double_precision
from bayeskit.validation import check_integer, check_positive

_OPTIMISM = 0.5  # nats a row
_LEAST_ROWS = 20
_LEAST_TO_CHOOSE = 50


class SingularDistribution(SupportsEM, SupportsMessages, SupportsMCMC, SupportsVariational):
    """Distribution on or near a set of low dimension, by likelihood of perturbed data.

    Parameters
    ----------
    latent_dim : int
        q, below the number of columns of the data.
    decoder : pair of int, "linear", "convolutional" or equinox module
        f: width and depth of a network; ``"linear"``, probabilistic principal component analysis;
        ``"convolutional"``, for images; or a module from arrays (q,) to arrays (D,).
    encoder : pair of int, "convolutional" or equinox module, optional
        Of the latents' means and log standard deviations: a module from arrays (D,) to arrays
        (2 q,); by default of the decoder's kind. A linear decoder has none.
    perturbation : "auto", float or sequence of float
        Standard deviation of the noise that is added to the data, in units of their standard
        deviation: the root of the mean variance of the columns. Of several, one is chosen by
        held-out rows; ``"auto"`` chooses among none and four, up to that of the theory.
    fresh : bool
        Whether rows are perturbed anew in every batch, or once for all.
    noise_scale : float, optional
        Standard deviation of the noise of the data themselves, in the user's units; learned by
        default.
    noise_start : float, optional
        Where networks start to learn the noise of the data themselves, in units of the data's
        standard deviation as ``perturbation``; 0.3 by default. Noise that shrinks during training
        is itself a perturbation: with a small start, the data need another.
    noise_prior : InverseGamma, ScaledByData of one, or None
        Of the variance of the noise with the perturbation, where it is learned. ``None`` is flat
        in its logarithm.
    num_observations : int, optional
        Rows that ``sample_prior`` of a trained model draws; nothing else needs it.

    Raises
    ------
    TypeError, ValueError
        If an argument is not of these.

    Notes
    -----
    Data for :func:`bayeskit.infer`: an array (n, D), a DataFrame of numbers, or a DataArray; NaN
    are missing values, which are integrated out (at random missing). Columns are centred and all
    divided by one number, so that noise of one size in all of them stays so: columns of different
    units should be divided by their own first. Images (n, H, W) or (n, H, W, C) are rows of D
    numbers, in NumPy's order, for modules and sites; ``generate`` and ``predict`` give images
    again. Sites of a linear decoder: ``latents`` (n, q), ``loadings`` (D, q), ``offset`` (D,), and
    ``noise_variance``, which includes the perturbation. Loadings lie along their principal axes.

    Nothing is drawn to perturb the data of a linear decoder: results are expectations over fresh
    noise, under which its loadings stay and the noise variance grows by the perturbation's square.

    ``EM`` maximises the likelihood times ``noise_prior`` over loadings, offset and noise variance,
    and starts at the closed form, which is the maximum where no value is missing; its evidence has
    them plugged in. ``MessagePassing`` has a distribution of them, under a standard normal prior of
    loadings and offset in the units above; it has no evidence where the noise's prior is flat.
    ``MCMC`` samples latents given the decoder of an earlier fit:
    ``infer(posterior.model, data, MCMC())``. A step costs O(n D q), with missing values O(n D q²).

    ``EM`` of networks with one or two latents sums over a grid of them, of rows that are perturbed
    once (``fresh=False``, one level): its likelihood (times ``noise_prior``, as of all methods that
    learn the noise) never falls, and it needs no encoder.
    Responsibilities take O(n M) memory, for M = 256 nodes of a line and 400 of a plane; latents
    beyond the outermost nodes are generated at these. With more latents they are drawn, 20 a row,
    from the encoder with the same random numbers in every step, and weighted: EM then climbs the
    importance-weighted bound at these numbers, without ever falling, takes all rows in every step,
    and has no evidence. It is for going on from a trained model (``initial=posterior``): from
    scratch, ``VariationalInference`` gets further in less time.

    Networks are else trained by ``VariationalInference``, on complete rows only. Their sites are
    ``latents``, ``noise_variance``, ``perturbation``, ``decoder_weights`` and ``encoder_weights``
    (of standardised data, with ``center`` and ``unit``), and of a decoder of stated width and depth
    ``last_layer`` (D, width + 1), the bias last, which has a Gaussian posterior where all else is
    known. Rows of mapped files (``numpy.memmap``) and of NumPy arrays of a gibibyte or more are
    read batch by batch; rows that are spread over devices stay so. Levels are compared by the log
    density of held-out rows with noise of one size, that of the rate: the smallest within a
    standard error of the best is taken, and trained anew on all rows. All levels of a linear
    decoder give the same distribution, and ``"auto"`` is
    zero.

    Examples
    --------
    >>> import numpy as np
    >>> import bayeskit as bk
    >>> generator = np.random.default_rng(0)
    >>> plane = generator.normal(size=(200, 2)) @ generator.normal(size=(2, 5))
    >>> model = bk.models.SingularDistribution(2, decoder="linear", perturbation=0.1)
    >>> posterior = bk.infer(model, plane)
    >>> bool(np.isclose(posterior.noise_scale, posterior.perturbation))
    True
    >>> posterior.generate(0, 3).shape
    (3, 5)
    """

    latent_dim: int = eqx.field(static=True)
    decoder: Any
    encoder: Any
    perturbation: Any
    fresh: bool = eqx.field(static=True)
    noise_scale: Any
    noise_start: Any
    noise_prior: Any
    num_observations: int | None = eqx.field(static=True)
    estimates: Any

    def __init__(
        self,
        latent_dim,
        *,
        decoder=(64, 2),
        encoder=None,
        perturbation: Any = "auto",
        fresh=True,
        noise_scale=None,
        noise_start=None,
        noise_prior=None,
        num_observations=None,
    ):
        self.latent_dim = check_integer("latent_dim", latent_dim, 1)
        self.decoder = network("decoder", decoder, ("linear", deep.CONVOLUTIONAL))
        if encoder is None:
            encoder = decoder if isinstance(decoder, (tuple, str)) else (64, 2)
        elif self.is_linear:
            raise ValueError(f"encoder must be None beside decoder='linear', got {encoder!r}")
        self.encoder = (
            None if self.is_linear else network("encoder", encoder, (deep.CONVOLUTIONAL,))
        )
        self.perturbation = levels(perturbation)
        self.fresh = bool(fresh)
        self.noise_scale = (
            None if noise_scale is None else check_positive("noise_scale", noise_scale)
        )
        self.noise_start = (
            None if noise_start is None else check_positive("noise_start", noise_start)
        )
        if noise_start is not None and (self.is_linear or noise_scale is not None):
            other = "decoder='linear'" if self.is_linear else f"noise_scale={noise_scale}"
            raise ValueError(f"noise_start must be None beside {other}, got {noise_start}")
        self.noise_prior = check_prior("noise_prior", noise_prior)
        if not is_conjugate(noise_prior):
            raise ValueError(
                "noise_prior must be inverse-gamma or None, for updates in closed form, got "
                f"{describe(noise_prior)}"
            )
        self.num_observations = (
            None
            if num_observations is None
            else check_integer("num_observations", num_observations, 1)
        )
        self.estimates = None

    def __repr__(self):
        networks = "" if self.is_linear else f", encoder={described(self.encoder)}"
        noise = "".join(
            f", {name}={float(value):.6g}"
            for name in ("noise_scale", "noise_start")
            if (value := getattr(self, name)) is not None
        )
        return (
            f"{type(self).__name__}({self.latent_dim}, decoder={described(self.decoder)}"
            f"{networks}, perturbation={self.perturbation!r}, fresh={self.fresh}{noise}, "
            f"noise_prior={describe(self.noise_prior)})"
        )

    @property
    def is_linear(self) -> bool:
        """Whether the decoder is linear."""
        return isinstance(self.decoder, str) and self.decoder == "linear"

    def levels_of(self, rows) -> tuple[float, ...]:
        """The levels of the perturbation of that many rows."""
        if self.perturbation != "auto":
            return (
                self.perturbation if isinstance(self.perturbation, tuple) else (self.perturbation,)
            )
        return (0.0,) if self.is_linear else selection.candidates(rows, self.latent_dim)

    @property
    def default_method(self):
        """Variational inference of networks; of a linear decoder expectation maximisation.

        To a smaller tolerance than its default: it is slow where values are missing.
        """
        from bayeskit.inference.ascent import EM
        from bayeskit.inference.variational import VariationalInference

        if self.is_linear:
            return EM(tolerance=1e-5, max_iterations=2000)
        return VariationalInference()

    @property
    def posterior_class(self):
        """The family's own result, with ``generate``, ``encode``, ``log_likelihood``."""
        return SingularDistributionPosterior

    def leaves_in_place(self, data):
        """Tables that networks are trained on batch by batch."""
        trained = self.is_linear or preparation.is_trained(self)
        return not trained and streaming.is_streamed(data)

    def prepare(self, data, *, batch=False):
        """See :class:`~bayeskit.models.base.AbstractModel`."""
        table, labels, groups = preparation.prepare(self, data, batch)
        # All of these are in the data, in their units.
        fields = ("perturbation", "noise_scale", "noise_start", "noise_prior", "estimates")
        prepared = eqx.tree_at(
            lambda m: tuple(getattr(m, name) for name in fields),
            self,
            (None,) * len(fields),
            is_leaf=lambda leaf: leaf is None or any(leaf is getattr(self, n) for n in fields),
        )
        return Prepared(prepared, table, labels, groups)

    def sample_prior(self, key):
        """Latents from their prior, and a table of ``num_observations`` rows, of a trained model.

        For ``calibrate`` of ``MCMC``: all other methods train anew.

        Parameters
        ----------
        key : int or JAX key

        Returns
        -------
        parameters : dict of numpy arrays
            The site ``latents``: the only one that has a prior which does not depend on the data.
        data : numpy array (num_observations, D)
            Perturbed, as the trained model's noise is. Of images rows of pixels.

        Raises
        ------
        ValueError
            If the model is not a trained one, or has no ``num_observations``; if its decoder is
            ``"convolutional"``.
        """
        if not preparation.is_trained(self):
            raise ValueError(
                "the decoder's prior is in units of the data: nothing can be drawn from it; give "
                "a trained model, posterior.model, whose latents have one"
            )
        if self.num_observations is None:
            raise ValueError("num_observations is needed to draw a table from the prior")
        with double_precision():
            latents, rows = simulated(self, as_key(key, "draws are random"))
            return {"latents": np.asarray(latents)}, np.asarray(rows)

    @property
    def sites_not_drawn(self):
        """The last layer, whose prior is about what was trained."""
        return (last_layer.SITE,)

    def check_calibrate(self, method):
        """Only chains take a trained decoder as known."""
        if method.needs is not SupportsMCMC:
            raise ValueError(
                f"{type(method).__name__} trains the decoder anew, which has no prior to draw "
                "from: calibrate MCMC(), whose latents are given a trained one"
            )

    def moments_of(self, data):
        """Center and unit: rows may be in a file of their own."""
        return np.asarray(data.center), np.asarray(data.unit)

    def prediction_target(self, inputs, labels):
        """Rows, complete or not, or images."""
        return tables.rows_target(images.as_rows(inputs, labels), labels)

    def start_from(self, posterior, data, labels):
        """What a linear decoder or networks are made of, by site."""
        mean = posterior.mean
        if self.is_linear:
            features = data.center.shape[-1]
            shapes = {"loadings": (features, self.latent_dim), "offset": (features,)}
        else:
            given = deep.sizes(self, data.shape)
            shapes = {f"{name}_weights": (size,) for name, size in given.items()}
            if "encoder_weights" not in mean:  # of EM: it starts at random
                del shapes["encoder_weights"]
        for site, shape in shapes.items():
            found = np.shape(mean[site]) if site in mean else None
            if found != shape:
                raise ValueError(
                    f"initial does not fit the model: {site} is expected to have the shape "
                    f"{shape}, got {found}"
                )
        if not np.isfinite(mean["noise_variance"]):
            raise ValueError("initial has a noise variance without a mean: it is of too few data")
        return {site: mean[site] for site in preparation.sites_of(self) if site in mean}

    def sample_data(self, data, key, sites, inputs):
        """Noisy rows at the latents, or at latents of given rows: without the perturbation."""
        for_latents, for_noise = jax.random.split(key)
        source, data = with_sites(self, data, sites)
        latents = jnp.asarray(sites["latents"], data.values.dtype)
        if inputs is not None:
            latents = source.drawn(for_latents, self, data, inputs.standardised(data))
        rows = source.decoded(self, data, latents)
        scale = jnp.sqrt(source.own_noise(data))
        rows = rows + scale * jax.random.normal(for_noise, rows.shape, rows.dtype)
        return data.center + data.unit * rows

    # Expectation maximisation

    @property
    def _em(self):
        """How expectations are taken: one of several modules with the same functions."""
        if self.is_linear:
            return linear_em
        return grid_em if self.latent_dim in grid.NODES else sampled_em

    @property
    def m_steps(self):
        """The only M-step: the exact maximum of a linear decoder, a gain of a network's."""
        return (self._em.M_STEP,)

    def check_em(self, method):
        """Closed forms are of one level, and so are fixed functions of networks."""
        self._em.check(self, method)

    def em_init(self, data, key, lane, initial, m_step):
        """The closed form, which is the maximum where no value is missing; networks at random."""
        return self._em.start(self, data, key, lane, initial)

    def em_step(self, data, parameters, m_step, prune):
        """Probabilities of latents, and the decoder given them."""
        return self._em.step(self, data, parameters)

    def em_change(self, data, new, old):
        """Of loadings, offset and noise variance; of a network what nodes are decoded to."""
        return self._em.change(self, data, new, old)

    def em_objective(self, data, parameters):
        """Log likelihood of the perturbed data plus the log prior density of the noise."""
        return self._em.objective(self, data, parameters)

    def em_finish(self, data, parameters):
        """Latents given the decoder, the log likelihood, and whether the noise is none."""
        return self._em.finish(self, data, parameters)

    def caveats(self, diagnostics):
        """Data without noise of their own and without perturbation have no maximum."""
        found = ()
        if bool(diagnostics.singular):
            what = (
                f"the rows lie in a plane of dimension {self.latent_dim}, to rounding,"
                if self.is_linear
                else "the noise of the networks has shrunk to its smallest,"
            )
            found += (
                f"{what} and the rows were not perturbed: the distribution is singular, its "
                "likelihood unbounded, and the noise variance says nothing; give perturbation=0.1 "
                "or so",
            )
        if diagnostics.optimism > _OPTIMISM:
            found += (
                f"the bound is {float(diagnostics.optimism):.2g} nats a row higher at the random "
                "numbers of EM than at others: the networks have learnt these; give smaller "
                "networks, fewer iterations, or VariationalInference(), which draws new ones",
            )
        return found

    # Messages

    def check_messages(self, method):
        """Linear decoders at one level have closed forms."""
        linear_em.check(self, method)

    def messages_init(self, data, key, lane, initial):
        """Factors around the start of EM."""
        return messages.messages_at(data, linear_em.start(self, data, key, lane, initial))

    def messages_sweep(self, data, messages_, damping):
        """Latents, then the decoder, then the noise."""
        affine = messages.affine(data, messages_)
        latents = linear.latents_given(affine, data.values, data.observed)
        found = linear.moments(affine, latents, data.values, data.observed, data.perturbation)
        bound = self.messages_bound(data, messages_)
        return messages.renewed(data, messages_, found, damping), bound

    def messages_change(self, data, new, old):
        """Of the means of loadings, offset and noise."""
        return linear_em.change(self, data, *(messages.center(each) for each in (new, old)))

    def messages_bound(self, data, messages_):
        """Lower bound on the log evidence; but for a constant where the noise's prior is flat."""
        affine = messages.affine(data, messages_)
        return messages.bound(data, messages_, affine) - data.log_unit

    def messages_finish(self, data, messages_):
        """Factors along principal axes, and the bound where the priors are proper."""
        found = messages.rotated(messages_)
        bound = self.messages_bound(data, found) if data.proper else None
        singular = linear_em.is_singular(data, messages.center(found))
        return DecoderMeanField(found), bound, Doubts(singular)

    # Markov chain Monte Carlo

    def check_mcmc(self, method):
        """Latents are sampled given a decoder."""
        if not preparation.is_trained(self):
            trained = "EM()" if self.is_linear else "VariationalInference()"
            raise ValueError(
                "MCMC on SingularDistribution samples latents given a trained decoder, and this "
                f"model has none: fit it by {trained} first and give posterior.model"
            )

    def mcmc_given(self, data):
        """The decoder of the earlier fit."""
        return given_sites(self, data)

    def numpyro_model(self, data):
        """Latents given the decoder."""
        shape = (data.num_rows, self.latent_dim)
        standard = dist.Normal(jnp.zeros(shape, data.values.dtype), 1.0)
        positions = numpyro.sample("latents", standard.to_event(2))
        numpyro.factor("rows", jnp.sum(log_given_latents(self, data, positions)))

    def mcmc_init(self, data, key, initial):
        """A draw from the earlier fit's posterior of the latents."""
        source, view = given(self, data)
        return source.sample(key, self, view)

    def mcmc_conditional(self, data, sites):
        """Everything is sampled: one draw."""
        layer = None
        if last_layer.is_known(self):
            networks, view = given_networks(self, data)
            latents, rows = sites["latents"], view.all_rows
            layer = last_layer.given_latents(self, view, networks, latents, rows)
        return KnownLatents(sites["latents"], layer)

    # Variational inference

    def to_numpyro(self, data, *, batch_size=64, key=0):
        """The model of networks and their encoder as functions for NumPyro's ``SVI``.

        For training loops, optimizers or bounds of your own; :func:`bayeskit.infer` has its own.
        Networks of a trained model go on from there, in units of these rows: give it those that
        it was trained on.

        Parameters
        ----------
        data
            As for :func:`bayeskit.infer`.
        batch_size : int
            Rows of a step.
        key : int or JAX key
            Of the random weights of networks that were stated by width and depth.

        Returns
        -------
        model, guide : functions of a JAX key
            One plate of standardised rows, subsampled; the key is what these are perturbed by, and
            is to be another one in every step. Parameters are ``decoder$params``,
            ``encoder$params`` and, where the noise is learned, ``log_scale``.

        Raises
        ------
        ValueError
            If the decoder is linear, several perturbations are to be compared, or rows are too few.

        Examples
        --------
        >>> import jax, optax
        >>> from numpyro.infer import SVI, RenyiELBO
        >>> import bayeskit as bk
        >>> rows = bk.datasets.shape(0, "circle", rows=100).observations
        >>> model = bk.models.SingularDistribution(2, perturbation=0.1)
        >>> pair = model.to_numpyro(rows)
        >>> svi = SVI(*pair, optax.adam(2e-3), RenyiELBO(alpha=0, num_particles=10))
        >>> state = svi.init(jax.random.key(0), jax.random.key(1))
        >>> state, loss = jax.jit(svi.update)(state, jax.random.key(2))
        """
        self.check_variational(None)
        if not isinstance(self.perturbation, float):
            raise ValueError(
                f"to_numpyro is for one perturbation, such as 0.1, got {self.perturbation!r}"
            )
        check_integer("batch_size", batch_size, 1)
        with double_precision():
            prepared = self.prepare(data)
            self.check_variational_data(prepared.data)
            trained = preparation.is_trained(self)
            key = as_key(key, "weights start at random")
            return model_and_guide(prepared.model, prepared.data, data, batch_size, key, trained)

    def check_variational(self, method):
        """Of networks, not of closed forms."""
        if self.is_linear:
            raise ValueError(
                "VariationalInference on SingularDistribution trains networks; decoder='linear' "
                "has closed forms: EM() or MessagePassing()"
            )

    def check_variational_data(self, data):
        """Some rows are held out."""
        count = data.num_rows
        if count < _LEAST_ROWS:
            raise ValueError(
                f"data has {count} rows; networks need {_LEAST_ROWS} at least. Of fewer, try "
                "decoder='linear'"
            )
        if data.levels.shape[-1] > 1 and count < _LEAST_TO_CHOOSE:
            raise ValueError(
                f"data has {count} rows; {_LEAST_TO_CHOOSE} are needed to choose a perturbation: "
                "state one level, such as perturbation=0.2"
            )

    def rows_of(self, data):
        """All of them."""
        return data.num_rows

    def held_out(self, data):
        """A fifth where a level is chosen, otherwise a tenth; at most 500."""
        share = 5 if data.levels.shape[0] > 1 else 10
        return min(500, max(1, data.num_rows // share))

    def variational_settings(self, data):
        """The levels of the perturbation."""
        return data.levels

    def variational_init(self, data, key, initial):
        """Random weights, the modules that were given, or an earlier fit's weights."""
        return started(self, data, key, initial)

    def variational_rows(self, data, rows, setting, key):
        """Rows with noise: of the batch's key, or of keys of their own."""
        values = data.batch_of(rows)
        if self.fresh:
            return deep.perturbed(data, key, values, setting)
        keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.key(0), row))(rows)
        return jax.vmap(lambda key, row: deep.perturbed(data, key, row, setting))(keys, values)

    def variational_guide(self, data, parameters, values):
        """The encoder's moments."""
        return deep.encode(self, data, parameters.encoder, values)

    def variational_joint(self, data, parameters, setting, values, latents):
        """Likelihood, the standard normal prior of latents, and a row's share of the noise's."""
        noise = deep.noise_variance_of(data, parameters, setting)
        prior = deep.log_noise_prior(data, noise)
        joint = deep.log_joint(self, data, parameters.decoder, noise, values, latents)
        return joint + prior / data.num_rows

    def variational_finish(self, data, parameters, settings, held_out, key):
        """Of several levels the smallest whose held-out density is the best but for its error."""
        networks = jax.vmap(lambda fit, level: self._trained(data, fit, level))(
            parameters, settings
        )
        if settings.shape[0] == 1:
            chosen, nothing = jnp.asarray(0), jnp.zeros_like(settings)
            compared = (nothing, nothing)
        else:
            chosen, *compared = selection.compared(self, data, networks, settings, held_out, key)
        found = jax.tree.map(lambda leaf: leaf[chosen], networks)
        # Of a fit that broke down, which is not chosen, no NaN is kept.
        tried = jax.tree.map(lambda leaf: jnp.where(jnp.isnan(leaf), jnp.inf, leaf), networks)
        layer = last_layer.by_encoder(self, data, found, 1.0 - held_out.shape[0] / data.num_rows)
        return (
            EncodedLatents(found, layer, tried, *compared),
            chosen,
            Doubts(deep.is_shrunken(data, found)),
        )

    def variational_refitted(self, data, approximation, parameters, setting):
        """The levels that were tried stay as they were."""
        found = self._trained(data, parameters, setting)
        layer = last_layer.by_encoder(self, data, found)
        kept = dataclasses.replace(approximation, networks=found, last_layer=layer)
        return kept, Doubts(deep.is_shrunken(data, found))

    def _trained(self, data, parameters, level):
        noise = deep.noise_variance_of(data, parameters, level)
        return deep.trained(parameters.decoder, parameters.encoder, noise, level)
