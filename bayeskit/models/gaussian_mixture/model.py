r"""Gaussian mixtures.

.. math::
    \pi \sim \mathrm{Dirichlet}(\alpha, \dots, \alpha), \quad
    \Sigma_k \sim IW(\nu, S), \quad \mu_k \mid \Sigma_k \sim N(m, \Sigma_k / \kappa), \quad
    z_i \sim \pi, \quad x_i \mid z_i \sim N(\mu_{z_i}, \Sigma_{z_i})

C. Fraley and A. Raftery, "Bayesian regularization for normal mixture estimation and model-based
clustering", Journal of Classification, 2007; messages: C. Bishop, "Pattern recognition and machine
learning", 2006, section 10.2.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from bayeskit.models import tables
from bayeskit.models.base import (
    Prepared,
    SupportsEM,
    SupportsMCMC,
    SupportsMessages,
    SupportsSDP,
    first_or,
    key_of_lane,
    relative_change,
)
from bayeskit.models.gaussian_mixture import conjugate, sampling, sketches, starts
from bayeskit.models.gaussian_mixture import data as preparation
from bayeskit.models.gaussian_mixture.approximation import (
    Certified,
    Conjugate,
    GaussianMixturePosterior,
    KnownComponents,
)
from bayeskit.models.gaussian_mixture.blocks import STRUCTURES, Blocks
from bayeskit.models.gaussian_mixture.prior import NormalInverseWishart, block_prior
from bayeskit.validation import check_integer, check_positive

_FINISHING_SWEEPS = 500
_FINISHING_TOLERANCE = 1e-5
_PROGRAM_ROWS = 3


class GaussianMixture(SupportsEM, SupportsMessages, SupportsMCMC, SupportsSDP):
    """Mixture of Gaussians with priors on weights, locations and covariances.

    Parameters
    ----------
    num_components : int
        K.
    covariance : "full", "diagonal", "tied" or "spherical"
        Of every component its own, with no correlations, one for all, or one variance each.
    prior : "empirical", NormalInverseWishart or None
        Of locations and covariances. ``"empirical"``: location, scale, shape and strength
        follow from the evidence, for every data set anew; ``posterior.prior`` has them. ``None`` is
        flat, for ``EM`` only, which then maximises the likelihood: it is unbounded, and a component
        with hardly more rows than features collapses.
    weights_concentration : float
        Of the symmetric Dirichlet distribution of the weights, per component.
    num_observations : int, optional
        Rows that ``sample_prior`` draws; nothing else needs it.

    Raises
    ------
    TypeError, ValueError
        If an argument is not of these.

    Notes
    -----
    Data for :func:`bayeskit.infer`: an array (n, d), a DataFrame of numbers, or a DataArray; NaN
    are missing values, which are integrated out (at random missing); programs of
    ``SemidefiniteProgram`` have complete rows only. Features are standardised inside. JAX arrays
    whose rows are spread over a mesh of devices are so inside. Sites:
    ``weights`` (K,), ``locations`` (K, d), ``covariances`` (K, d, d) where full, (d, d) tied,
    (K, d) diagonal, (K,) spherical. Components come in the order of falling weight.

    ``EM`` finds the mode of the posterior density of log-odds of weights, locations and precisions;
    its result is the exact posterior of the three given the responsibilities there, and its
    ``log_evidence`` the variational bound of that posterior. A sweep costs O(n K d²), with missing
    values O(n K d³) where covariances are full or tied, in blocks of rows. Before it, up to some
    two thousand sweeps over at most 2048 rows look for the start, whatever n is: with many
    components or features they are what a fit takes longest for.

    Examples
    --------
    >>> import numpy as np
    >>> import bayeskit as bk
    >>> generator = np.random.default_rng(0)
    >>> rows = generator.normal(size=(90, 2)) + np.repeat([[0, 0], [9, 0], [0, 9]], 30, axis=0)
    >>> posterior = bk.infer(bk.models.GaussianMixture(3), rows)
    >>> bool((posterior.coclustering()[:30, :30] > 0.9).all())
    True
    """

    num_components: int = eqx.field(static=True)
    covariance: str = eqx.field(static=True)
    prior: Any
    weights_concentration: Any
    num_observations: int | None = eqx.field(static=True)
    estimates: Any

    def __init__(
        self,
        num_components,
        *,
        covariance="full",
        prior: str | NormalInverseWishart | None = "empirical",
        weights_concentration=1.0,
        num_observations=None,
    ):
        self.num_components = check_integer("num_components", num_components, 1)
        if covariance not in STRUCTURES:
            raise ValueError(f"covariance must be one of {list(STRUCTURES)}, got {covariance!r}")
        self.covariance = covariance
        named = isinstance(prior, str) and prior == "empirical"
        if not (named or prior is None or isinstance(prior, NormalInverseWishart)):
            kind = TypeError if not isinstance(prior, str) else ValueError
            raise kind(
                f"prior must be 'empirical', a NormalInverseWishart or None (flat), got {prior!r}"
            )
        self.prior = prior
        self.weights_concentration = check_positive("weights_concentration", weights_concentration)
        self.num_observations = (
            None
            if num_observations is None
            else check_integer("num_observations", num_observations, 1)
        )
        self.estimates = None

    def __repr__(self):
        return (
            f"{type(self).__name__}({self.num_components}, covariance={self.covariance!r}, "
            f"prior={self.prior!r}, weights_concentration={float(self.weights_concentration):.6g})"
        )

    def blocks(self, features):
        """The structure of the covariances of that many features."""
        return Blocks(self.covariance, self.num_components, features)

    def raw_prior(self):
        """The stated prior in the user's own units."""
        given = self.prior
        parts = (given.location, given.location_strength, given.scale, given.degrees_of_freedom)
        return block_prior(
            self.blocks(given.location.size), *(jnp.asarray(part, float) for part in parts)
        )

    @property
    def default_method(self):
        """Expectation maximisation, to a smaller tolerance: it is slow where components overlap."""
        from bayeskit.inference.ascent import EM

        return EM(tolerance=1e-5, max_iterations=2000)

    @property
    def posterior_class(self):
        """The family's own result, with ``labels``, ``responsibilities``, ``coclustering``."""
        return GaussianMixturePosterior

    @property
    def m_steps(self):
        """The only M-step: the conjugate mode."""
        return ("mode",)

    def prepare(self, data, *, batch=False):
        """See :class:`~bayeskit.models.base.AbstractModel`."""
        table, labels, groups = preparation.prepare(self, data, batch)
        prepared = eqx.tree_at(
            lambda m: (m.prior, m.weights_concentration, m.estimates),
            self,
            (None, jnp.asarray(self.weights_concentration, table.unit.dtype), None),
            is_leaf=lambda leaf: leaf is None or leaf is self.prior,
        )
        return Prepared(prepared, table, labels, groups)

    def sample_prior(self, key):
        """Draw parameters and a table of ``num_observations`` rows from the priors.

        Parameters
        ----------
        key : int or JAX key

        Returns
        -------
        parameters : dict of numpy arrays
            By site; components are in no order.
        data : numpy array (num_observations, d)

        Raises
        ------
        ValueError
            If the prior is flat or chosen by the data, or ``num_observations`` is not given.
        """
        return sampling.sample_prior(self, key)

    def prediction_target(self, inputs, labels):
        """Rows, complete or not."""
        return tables.rows_target(inputs, labels)

    def start_from(self, posterior, data, labels):
        """Weights, locations and covariances by site."""
        blocks = self.blocks(data.unit.shape[-1])
        shapes = {
            "weights": (blocks.components,),
            "locations": (blocks.components, blocks.features),
            "covariances": blocks.shape,
        }
        mean = posterior.mean
        if not np.all(np.isfinite(mean["covariances"])):
            raise ValueError(
                "initial has covariances without a mean (degrees of freedom of its prior are too "
                "few for components of few rows): start from a draw, or from nothing"
            )
        for site, shape in shapes.items():
            if np.shape(mean[site]) != shape:
                raise ValueError(
                    f"initial does not fit the model: {site} is expected to have the shape "
                    f"{shape}, got {np.shape(mean[site])}"
                )
        return {site: mean[site] for site in shapes}

    def sample_data(self, data, key, sites, inputs):
        """New rows, or the missing values of given ones."""
        blocks = self.blocks(data.unit.size)
        drawn = sampling.sites_in_blocks(self, data, sites)
        if inputs is None:
            rows = sampling.draw_rows(key, blocks, drawn, data.count)
            return data.center + data.unit * rows
        return sampling.complete_rows(key, blocks, data, drawn, inputs)

    # Expectation maximisation and messages

    def check_em(self, method):
        """Densities of covariances that grow without limit have no mode."""
        given = self.prior
        if isinstance(given, NormalInverseWishart):
            blocks = self.blocks(given.location.size)
            least = blocks.features + 1 - blocks.locations
            if given.degrees_of_freedom <= least:
                raise ValueError(
                    f"{type(method).__name__} on GaussianMixture needs a prior whose covariances "
                    f"have a mode: degrees_of_freedom above {least}, got "
                    f"{float(given.degrees_of_freedom):g}; MessagePassing and MCMC take it"
                )

    def check_messages(self, method):
        """The evidence needs a proper prior."""
        self._check_proper(type(method).__name__)

    def _check_proper(self, method):
        if self.prior is None:
            raise ValueError(
                f"{method} on GaussianMixture needs a proper prior, got None (flat): give "
                "'empirical' or a NormalInverseWishart"
            )

    def _renew(self, data, statistics, location, active):
        blocks = self.blocks(data.unit.size)
        return conjugate.renew(
            blocks, data.prior, self.weights_concentration, statistics, location, active
        )

    def start(self, data, key, lane, initial):
        """Components of the best of several starts, or of an earlier posterior.

        Where the data chose the prior, restarts beside an earlier posterior start from what was
        found with it.
        """
        blocks = self.blocks(data.unit.size)
        concentration = self.weights_concentration
        if initial is None:

            def search():
                return starts.searched(blocks, data, concentration, key_of_lane(key, lane))

            if data.start is None:
                return in_order(search())
            return in_order(first_or(lane, lambda: data.start, search))
        weights, location, covariance = sampling.sites_in_blocks(self, data, initial)
        gaussians = conjugate.Gaussians(
            conjugate.log_or_never(weights), location, blocks.spread(covariance)
        )
        found = conjugate.statistics(blocks, data.rows, gaussians)
        given = self._renew(data, found, location, weights > 0)
        if data.start is None:
            return given
        return first_or(lane, lambda: given, lambda: in_order(data.start))

    def em_init(self, data, key, lane, initial, m_step):
        """The best of many starts, after some sweeps of messages on some rows."""
        return self.start(data, key, lane, initial)

    def em_step(self, data, parameters, m_step, prune):
        """Responsibilities under the mode, and the components given them."""
        blocks = self.blocks(data.unit.size)
        gaussians = conjugate.mode_gaussians(blocks, parameters)
        found = conjugate.statistics(blocks, data.rows, gaussians)
        objective = found.evidence - data.log_unit + self._log_prior(data, parameters)
        active = conjugate.active_of(parameters)
        new = self._renew(data, found, parameters.location, active)
        return self.pruned_messages(new, prune), objective

    @property
    def prunes_messages(self):
        """Components can be dropped."""
        return True

    def pruned_messages(self, messages, share):
        """The least component has none from now on, if less than this share of the largest weight.

        One at a time: others may take its rows.
        """
        weights = messages.concentration
        least = jnp.argmin(jnp.where(conjugate.active_of(messages), weights, jnp.inf))
        dropped = weights[least] < share * jnp.max(weights)
        kept = weights.at[least].set(jnp.where(dropped, 0.0, weights[least]))
        return messages._replace(concentration=kept)

    def _log_prior(self, data, parameters):
        blocks = self.blocks(data.unit.size)
        return conjugate.log_prior(
            blocks, data.prior, self.weights_concentration, parameters, data.proper
        )

    def em_change(self, data, new, old):
        """Of weights, locations and covariances at the mode."""
        blocks = self.blocks(data.unit.size)
        pair = [conjugate.mode_gaussians(blocks, each) for each in (new, old)]
        # Locations are about zero, where the unit of the features is what they are relative to.
        return relative_change(
            *((jnp.exp(g.log_weights), jnp.append(g.location, 1.0), g.covariance) for g in pair)
        )

    def em_objective(self, data, parameters):
        """Log likelihood plus log prior density of log-odds, locations and precisions."""
        blocks = self.blocks(data.unit.size)
        gaussians = conjugate.mode_gaussians(blocks, parameters)
        evidence = conjugate.statistics(blocks, data.rows, gaussians).evidence
        return evidence - data.log_unit + self._log_prior(data, parameters)

    def em_finish(self, data, parameters):
        """The posterior given responsibilities, and its bound."""
        bound = self.messages_bound(data, parameters) if data.proper else None
        return Conjugate(in_order(parameters)), bound, self._diagnosed(parameters)

    def messages_init(self, data, key, lane, initial):
        """As for EM."""
        return self.start(data, key, lane, initial)

    def messages_sweep(self, data, messages, damping):
        """Responsibilities under expected log densities, and the components given them."""
        blocks = self.blocks(data.unit.size)
        gaussians = conjugate.message_gaussians(blocks, messages)
        found = conjugate.statistics(blocks, data.rows, gaussians)
        divergence = conjugate.divergence(blocks, data.prior, self.weights_concentration, messages)
        bound = found.evidence - data.log_unit - divergence
        new = self._renew(data, found, messages.location, conjugate.active_of(messages))
        return damped(blocks, new, messages, damping), bound

    def messages_change(self, data, new, old):
        """Of weights, locations and covariances."""
        return self.em_change(data, new, old)

    def messages_bound(self, data, messages):
        """Lower bound on the log evidence."""
        blocks = self.blocks(data.unit.size)
        return starts.bound_of(blocks, data, data.prior, self.weights_concentration, messages)

    def messages_finish(self, data, messages):
        """The posterior and its bound."""
        bound = self.messages_bound(data, messages)
        return Conjugate(in_order(messages)), bound, self._diagnosed(messages)

    def _diagnosed(self, components):
        """Rows of every component; of those that were pruned, none are missed."""
        rows = components.concentration - self.weights_concentration
        return jnp.where(conjugate.active_of(components), rows, jnp.inf)

    def caveats(self, diagnostics):
        """Components that no row belongs to."""
        empty = int(np.sum(np.asarray(diagnostics) < 0.5))
        if not empty:
            return ()
        return (
            f"{empty} of {self.num_components} components have less than half a row: the data "
            "do not support that many",
        )

    # Semidefinite programs

    def check_sdp(self, method):
        """Priors are as for EM."""
        self.check_em(method)

    def check_sdp_data(self, data, method):
        """Programs are of complete rows."""
        needed = max(_PROGRAM_ROWS, self.num_components)
        if data.complete < needed:
            raise ValueError(
                f"SemidefiniteProgram needs {needed} complete rows, of {data.count} in data "
                f"{data.complete} have no NaN: use EM, MessagePassing or MCMC"
            )
        if method.sketch_size < needed:
            raise ValueError(
                f"sketch_size must be at least {needed} for {self.num_components} components, got "
                f"{method.sketch_size}"
            )

    def clustered(self, table, share):
        """Components of a clustering of one block of rows, and its objective."""
        blocks = self.blocks(table.unit.size)
        statistics, location = starts.statistics_of(blocks, table, share)
        components = self._renew(table, statistics, location, jnp.ones(blocks.components, bool))
        return components, self.em_objective(table, components)

    def sdp_init(self, data, key, lane, initial, method):
        """The program of k-means on every sketch of the rows, rounded."""
        key = key_of_lane(key, lane)
        given = None if initial is None else self.start(data, key, lane, initial)
        return sketches.begun(self, data, key, given, method)

    def sdp_step(self, data, parameters, method):
        """On every sketch the program with the covariances of its last clustering, rounded."""
        return sketches.continued(self, data, parameters, method)

    def sdp_lifted(self, data, parameters, method):
        """Every sketch's best clustering brought to all rows; the best of these."""
        return sketches.lifted_to_all(self, data, parameters, method)

    def sdp_objective(self, data, lifted):
        """As for EM, at the clustering of all rows."""
        return lifted.objective

    def sdp_finish(self, data, lifted, method):
        """What EM makes of the best clustering, or of the given one where that ends better."""
        lifted = sketches.raced(self, data, lifted, method)
        approximation, bound, diagnosed = self.em_finish(data, lifted.components)
        order = jnp.argsort(-lifted.components.concentration)
        clustered = Certified(approximation.components, lifted.rows, lifted.share[:, order])
        return clustered, bound, (diagnosed, lifted.residual)

    # Markov chain Monte Carlo

    def check_mcmc(self, method):
        """Sampling needs a proper prior."""
        self._check_proper("MCMC")

    def numpyro_model(self, data):
        """Weights, precisions and whitened locations, labels summed out."""
        sampling.numpyro_model(self, data)

    def settled(self, data, components):
        """Components after sweeps of EM."""
        blocks = self.blocks(data.unit.size)

        def unfinished(carry):
            _, change, count = carry
            return (count < _FINISHING_SWEEPS) & ~(change < _FINISHING_TOLERANCE)

        def body(carry):
            old, _, count = carry
            found = conjugate.statistics(blocks, data.rows, conjugate.mode_gaussians(blocks, old))
            new = self._renew(data, found, old.location, conjugate.active_of(old))
            return new, self.em_change(data, new, old), count + 1

        first = (components, jnp.asarray(jnp.inf, data.unit.dtype), jnp.asarray(0))
        return jax.lax.while_loop(unfinished, body, first)[0]

    def mcmc_init(self, data, key, initial):
        """A draw from the posterior that EM finds."""
        components = self.settled(data, self.start(data, key, 0, initial))
        return sampling.chain_start(self, data, key, in_order(components))

    def mcmc_aligned(self, data, sites, density):
        """Components in the same order in all draws."""
        return sampling.aligned(self, data, sites, density)

    def mcmc_conditional(self, data, sites):
        """Everything is sampled: one draw."""
        return KnownComponents(*sampling.given_sites(self, data, sites))


def in_order(components):
    """Components in the order of falling weight."""
    order = jnp.argsort(-components.concentration)
    grouped = components.freedom.shape[0] == order.size
    return conjugate.MixtureComponents(
        *(part[order] for part in components[:3]),
        *(part[order] if grouped else part for part in components[3:]),
    )


def damped(blocks, new, old, share):
    """New components whose natural parameters keep a share of the old ones'."""
    kept, gone = share * old.strength, (1.0 - share) * new.strength
    strength = kept + gone
    away = old.location - new.location
    between = conjugate.squares_of((kept * gone / strength)[:, None] ** 0.5 * away, blocks.dense)

    def mix(a, b):
        return (1.0 - share) * a + share * b

    return conjugate.MixtureComponents(
        mix(new.concentration, old.concentration),
        new.location + (kept / strength)[:, None] * away,
        strength,
        mix(new.freedom, old.freedom),
        mix(new.scale, old.scale) + blocks.gather(between),
    )
