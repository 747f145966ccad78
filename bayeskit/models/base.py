"""What every method needs of a model: one small abstract class a method.

A model is an immutable statement of what is believed about the data. A method says how the
posterior is computed and calls only the functions of its own class here; a model offers a method
by inheriting that class. All functions but ``prepare`` and ``sample_prior`` are pure and traced:
``model`` and ``data`` are then what ``prepare`` returned.
"""

import abc
from collections.abc import Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from bayeskit.codec import storable
from bayeskit.posterior import Posterior
from bayeskit.results import AbstractApproximation, Labels, PredictionTarget


class Prepared(NamedTuple):
    """A model and data after validation and conversion, ready for a method.

    Attributes
    ----------
    model, data : pytrees
        In one floating-point type. ``data`` holds all that differs from data set to data set.
    labels : Labels
        Names and coordinates of the dimensions of every site.
    tables : mapping
        Arrays of the groups ``observed_data`` and ``constant_data`` of the result tree, as the
        user gave them.
    """

    model: Any
    data: Any
    labels: Labels
    tables: Mapping[str, Mapping[str, Any]]


def key_of_lane(key, lane):
    """The key, but one fixed key for lane 0: without restarts nothing is random."""
    return jnp.where(lane == 0, jax.random.key(0, impl=jax.random.key_impl(key)), key)


def first_or(lane, first, other):
    """``first()`` for lane 0, ``other()`` for others, which one lane alone does not compile."""
    if isinstance(lane, int):
        return first() if lane == 0 else other()
    return jax.lax.cond(lane == 0, first, other)


def best_of(candidates, objectives):
    """The candidate (stacked on axis 0) with the largest objective, and its index; NaN is least."""
    index = jnp.argmax(jnp.where(jnp.isnan(objectives), -jnp.inf, objectives))
    return jax.tree.map(lambda leaf: leaf[index], candidates), index


def relative_change(new, old):
    """Largest relative change of any array of a pytree, in the 2-norm; zero for zero arrays."""

    def change(a, b):
        norm = jnp.linalg.norm(jnp.ravel(a))
        return jnp.where(
            norm > 0, jnp.linalg.norm(jnp.ravel(a - b)) / jnp.where(norm > 0, norm, 1.0), 0.0
        )

    return jnp.max(
        jnp.stack(
            [change(a, b) for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True)]
        )
    )


class AbstractModel(eqx.Module):
    """A probability model, as a user states it.

    Attributes
    ----------
    estimates : dict by site, or None
        What a fit plugged in.
    """

    estimates: eqx.AbstractVar[Any]

    def __init_subclass__(cls, **arguments):
        super().__init_subclass__(**arguments)
        storable(cls)

    @property
    @abc.abstractmethod
    def default_method(self):
        """The method that :func:`bayeskit.infer` uses if none is given."""

    @abc.abstractmethod
    def prepare(self, data, *, batch: bool = False) -> Prepared:
        """Validate and convert, before any tracing.

        With ``batch`` the data sets are stacked on axis 0, and so is every leaf of the data that
        comes back. Fitted estimates of an earlier run are dropped.
        """

    def leaves_in_place(self, data) -> bool:
        """Whether data are read where they are instead of being copied; as it is, none.

        Whoever gives such data keeps them as they are.
        """
        return False

    @abc.abstractmethod
    def sample_prior(self, key):
        """Draw ``(parameters, data)`` from the priors: a dict by site, and data for ``infer``."""

    def with_estimates(self, estimates: Mapping[str, Any] | None):
        """The model with ``estimates``, a dict by site or ``None``, in place of earlier ones."""
        return eqx.tree_at(
            lambda m: m.estimates, self, estimates, is_leaf=lambda leaf: leaf is None
        )

    @property
    def sites_not_drawn(self) -> tuple[str, ...]:
        """Random sites of posteriors that ``sample_prior`` does not draw; as it is, none."""
        return ()

    def check_calibrate(self, method) -> None:
        """Raise where a method infers other quantities than those that ``sample_prior`` draws."""
        del method

    def moments_of(self, data):
        """Arrays that tell whether data in a file of their own are as they were; as it is, none.

        All are compared up to rounding, by what is the largest in them.
        """
        return ()

    @abc.abstractmethod
    def prediction_target(self, inputs, labels) -> PredictionTarget:
        """Inputs of a prediction validated and converted, and names of its dimensions."""

    @abc.abstractmethod
    def start_from(self, posterior, data, labels):
        """What the start functions of methods get as ``initial`` from an earlier posterior.

        ``posterior`` is one of the same class of model and of a single data set; ``data`` and
        ``labels`` are the new ones.

        Raises
        ------
        ValueError
            If it does not fit, saying what differs.
        """

    @abc.abstractmethod
    def sample_data(self, data, key, sites, inputs):
        """One set of noisy data at ``inputs`` given the values of all sites.

        Traced; ``inputs`` as :meth:`prediction_target` gives them (``None``: where the observed
        data were taken), ``sites`` and the result in the user's units.
        """

    @abc.abstractmethod
    def caveats(self, diagnostics) -> tuple[str, ...]:
        """What a user should be warned about, from the diagnostics of a finished fit."""

    @property
    def posterior_class(self) -> type[Posterior]:
        """Class of the result."""
        return Posterior


class SupportsUpdate(AbstractModel):
    """Data that come bit by bit: :func:`bayeskit.update`."""

    @abc.abstractmethod
    def joined(self, data, new_data):
        """All data together, in a form that ``prepare`` takes.

        Raises
        ------
        TypeError, ValueError
            If the two do not go together.
        """


class SupportsEM(AbstractModel):
    """Expectation maximisation: hyper-parameters by maximum evidence (or posterior mode)."""

    @property
    @abc.abstractmethod
    def m_steps(self) -> tuple[str, ...]:
        """Names of the M-steps on offer, the default first."""

    @abc.abstractmethod
    def check_em(self, method) -> None:
        """Raise where the model as stated cannot be fitted by this EM."""

    @abc.abstractmethod
    def em_init(self, data, key, lane, initial, m_step: str):
        """Start values for ``m_step``.

        Lane 0 is the documented start, others are random; ``initial`` is what
        :meth:`start_from` gave, or ``None``.
        """

    @abc.abstractmethod
    def em_step(self, data, parameters, m_step: str, prune):
        """One iteration: new parameters, and the objective at the *old* ones."""

    @abc.abstractmethod
    def em_change(self, data, new, old):
        """How far a step has moved what the data determine; the stopping rule's number."""

    @abc.abstractmethod
    def em_objective(self, data, parameters):
        """Log evidence plus log prior density of the hyper-parameters."""

    @abc.abstractmethod
    def em_finish(self, data, parameters):
        """The posterior given the estimates, the log evidence, and diagnostics for ``caveats``.

        The log evidence is ``None`` where the model has none.
        """


class SupportsMessages(AbstractModel):
    """Variational message passing: coordinate ascent on a bound on the evidence."""

    @abc.abstractmethod
    def check_messages(self, method) -> None:
        """Raise where the model as stated has no closed-form messages."""

    @abc.abstractmethod
    def messages_init(self, data, key, lane, initial):
        """Start values; as for ``em_init``."""

    @abc.abstractmethod
    def messages_sweep(self, data, messages, damping):
        """One sweep over all messages: new messages, and the bound at the *old* ones.

        ``damping``: the share of the old messages that is kept.
        """

    @property
    def prunes_messages(self) -> bool:
        """Whether :meth:`pruned_messages` can drop what the data do not need."""
        return False

    def pruned_messages(self, messages, share):
        """Messages without the parts below this share of the largest."""
        return messages

    @abc.abstractmethod
    def messages_change(self, data, new, old):
        """As for ``em_change``."""

    @abc.abstractmethod
    def messages_bound(self, data, messages):
        """The evidence bound."""

    @abc.abstractmethod
    def messages_finish(self, data, messages):
        """The approximation, the bound, and diagnostics for ``caveats``."""


class SupportsMAP(AbstractModel):
    """Joint maximisation of a density over everything unknown, by gradients."""

    @abc.abstractmethod
    def check_map(self, method) -> None:
        """Raise where the model as stated has no density to maximise."""

    @abc.abstractmethod
    def map_init(self, data, key, lane, initial):
        """Start values, real arrays on which steps of the method's rate make sense; as ``em_init``.

        They are unconstrained: positive quantities are given by their logarithms.
        """

    @abc.abstractmethod
    def map_objective(self, data, parameters):
        """Log joint density, bounded above; differentiable."""

    @abc.abstractmethod
    def map_finish(self, data, parameters):
        """A distribution around the mode, the log evidence or ``None``, and diagnostics."""


class SupportsSDP(AbstractModel):
    """Semidefinite relaxations of a clustering, one after the other."""

    @abc.abstractmethod
    def check_sdp(self, method) -> None:
        """Raise where the model as stated has no such program."""

    @abc.abstractmethod
    def check_sdp_data(self, data, method) -> None:
        """Raise where the data have no such program; host side, before tracing."""

    @abc.abstractmethod
    def sdp_init(self, data, key, lane, initial, method):
        """Clusterings of sketches by the program that needs none to start from; as for ``em_init``.

        One of ``initial`` is kept beside them. ``method`` has the settings of sketches, programs
        and solver.
        """

    @abc.abstractmethod
    def sdp_step(self, data, parameters, method):
        """The next programs: parameters, the best objective so far, and the share that changed."""

    @abc.abstractmethod
    def sdp_lifted(self, data, parameters, method):
        """The best clustering, of all data."""

    @abc.abstractmethod
    def sdp_objective(self, data, lifted):
        """Objective of a clustering of all data."""

    @abc.abstractmethod
    def sdp_finish(self, data, lifted, method):
        """The posterior given the best clustering, the log evidence or ``None``, diagnostics.

        Diagnostics are the model's own, and the residual of the solver.
        """


class SupportsVariational(AbstractModel):
    """Amortised variational inference of one latent vector a row, by gradients of random batches.

    Whatever is tried side by side, such as several sizes of a perturbation, is a setting.
    """

    @abc.abstractmethod
    def check_variational(self, method) -> None:
        """Raise where the model as stated cannot be fitted by gradients."""

    @abc.abstractmethod
    def check_variational_data(self, data) -> None:
        """Raise where the data cannot be; host side, before tracing."""

    @abc.abstractmethod
    def rows_of(self, data) -> int:
        """Number of rows."""

    @abc.abstractmethod
    def held_out(self, data) -> int:
        """How many of them are held out of training."""

    @abc.abstractmethod
    def variational_settings(self, data):
        """Settings, stacked on axis 0; every one is a fit of its own."""

    @abc.abstractmethod
    def variational_init(self, data, key, initial):
        """Start values of one fit, real arrays without constraints."""

    @abc.abstractmethod
    def variational_rows(self, data, rows, setting, key):
        """The rows (m, …) with these indices, as training sees them."""

    @abc.abstractmethod
    def variational_guide(self, data, parameters, values):
        """Mean and log standard deviation (m, q) of the latents of rows."""

    @abc.abstractmethod
    def variational_joint(self, data, parameters, setting, values, latents):
        """Log joint density (particles, m) of rows and particles (particles, m, q)."""

    @abc.abstractmethod
    def variational_finish(self, data, parameters, settings, held_out, key):
        """The posterior of the best setting, the setting's index, and diagnostics for ``caveats``.

        Parameters and settings are stacked on axis 0; ``held_out`` are the indices of the rows
        that were held out.
        """

    @abc.abstractmethod
    def variational_refitted(self, data, approximation, parameters, setting):
        """The posterior of the best setting with parameters that all rows were trained on.

        And diagnostics for ``caveats``, of these parameters.
        """


class SupportsMCMC(AbstractModel):
    """Markov chain Monte Carlo through an ordinary NumPyro model."""

    @abc.abstractmethod
    def check_mcmc(self, method) -> None:
        """Raise where the model as stated has no proper posterior to sample."""

    @abc.abstractmethod
    def numpyro_model(self, data) -> None:
        """The NumPyro model function, sites that have been integrated out left out."""

    @abc.abstractmethod
    def mcmc_init(self, data, key, initial):
        """Start values by NumPyro site, in the constrained space, different for each key."""

    def mcmc_given(self, data) -> dict[str, Any]:
        """Sites that an earlier fit found and chains take as known; as it is, none."""
        return {}

    def mcmc_aligned(self, data, sites, density):
        """Draws (chain, draw, …) by site with what is exchangeable in the same order in all.

        ``density`` (chain, draw) is their log density. As they are, where nothing is exchangeable.
        """
        return sites

    @abc.abstractmethod
    def mcmc_conditional(self, data, sites) -> AbstractApproximation:
        """Exact posterior of what was integrated out, given one draw of the NumPyro sites."""
