"""Amortised variational inference of latent-variable models by stochastic gradients."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.special import logsumexp

from bayeskit.codec import UserFunction, storable
from bayeskit.inference.base import AbstractMethod, Fit
from bayeskit.models.base import SupportsVariational, best_of
from bayeskit.validation import check_integer, check_number, check_positive

_OBJECTIVES = ("importance-weighted", "elbo")
_EVERY = 50  # steps between two looks at the held-out rows
_PATIENCE = 12  # looks without a gain before steps become smaller
_FALL = 3.0  # by which they do
_FALLS = 3  # times; at the next one training ends
_MEMORY = 0.995  # of the average over steps
_RECOVERY = 0.8  # of the rate, after a gradient that is not finite
_LEARNING_RATE = 2e-3  # of Adam
_CLIP = 10.0  # norm of gradients of a row's bound
_SCORE_PARTICLES = 20
_COMPARED = 2000  # rows at most, after training on all
_COMPARED_PARTICLES = 100  # by a bound that is near to the density, whatever the encoder
_AGAIN = 2**32 - 1  # no number of a step
_MORE = 3  # times as many weighted particles, in training on all rows
_AT_ONCE = 6  # fits on a processor, if restarts are no more: their layers stay in its cache

for _kind in (optax.GradientTransformation, optax.GradientTransformationExtraArgs):
    storable(_kind)


class Training(NamedTuple):
    """All fits of a run: arrays (restarts, settings, …).

    Attributes
    ----------
    parameters, moments, average : pytrees
        Where training is, the optimizer's state, and an average over the last hundreds of steps.
    rate : array
        Of the steps; zero where training has ended.
    best, score : pytree and array
        The average with the largest bound on held-out rows, and that bound.
    mark, stalled : arrays
        The bound at its last gain of more than the tolerance, and looks since then.
    path, best_path : integer arrays (restarts, settings, stages)
        Steps at every rate on the way to where training is, and to the best.
    recoveries : integer array
        How often a gradient was not finite.
    start : pytree (restarts, …)
        Where training began.
    held_out : integer array (h,)
        Rows that are, in order.
    count : integer
    key : JAX key
    """

    parameters: Any
    moments: Any
    average: Any
    rate: Any
    best: Any
    score: Any
    mark: Any
    stalled: Any
    path: Any
    best_path: Any
    recoveries: Any
    start: Any
    held_out: Any
    count: Any
    key: Any


class TrainingRecord(NamedTuple):
    """Mean over all fits of the best bound on held-out rows, and the largest rate of a step."""

    objective: Any
    rate: Any


class VariationalInference(AbstractMethod):
    """Amortised variational inference: decoder and encoder by stochastic gradients.

    Latents have Gaussian posteriors whose moments an encoder computes from a row; a network's own
    uncertainty is not in the result. Steps on random batches of rows, with smaller ones when the
    bound on held-out rows no longer grows; of averages of the parameters over the last hundreds
    of steps, the one with the largest such bound is kept.

    Parameters
    ----------
    objective : "importance-weighted" or "elbo"
        The bound of ``num_particles`` weighted draws of a row's latents, which is tighter; or the
        evidence lower bound, averaged over as many.
    num_particles : int
    max_iterations : int
        Steps at most.
    batch_size : int
        Rows of a step.
    learning_rate : float, optional
        Adam's at the start; 0.002 by default.
    tolerance : float
        Gain of the bound of a held-out row, in nats, that 600 steps must make: otherwise the rate
        falls to a third, and the fourth time training ends. ``0.0`` makes all steps.
    restarts : int
        Networks and batches at random; of each setting of the model the best bound is kept.
    optimizer : optax.GradientTransformation, optional
        In place of Adam with ``learning_rate``, such as ``optax.adamw(1e-3)``. Its updates are
        taken as they are at the start, and by shares of them where steps are to be smaller.
        Gradients that it gets are of the negative bound of a row, with norms of at most 10. Files
        and checkpoints know it by its name alone.

    Raises
    ------
    TypeError, ValueError
        If an argument is not of these.

    Notes
    -----
    A tenth of the rows is held out, a fifth where the model chooses among settings; all settings
    and restarts are trained side by side, in one compilation. The setting that was chosen is then
    trained anew on all rows, in as many passes over them with steps of the same sizes, and three
    times as many particles if they are weighted; that is kept if it has the larger bound on them,
    of 100 particles (on 2000 rows, where they are more), and takes about as long as four settings
    at most. Gradients of importance-weighted bounds with respect to the encoder are doubly
    reparametrised (G. Tucker et al., "Doubly reparameterized gradient estimators for Monte Carlo
    objectives", ICLR 2019); those of the other bound leave out the score of the encoder. All fits
    go on until the last has ended; a result has converged where the fit that is kept has. After a
    gradient that is not finite, training goes on from the best parameters with a smaller rate.

    Examples
    --------
    >>> import bayeskit as bk
    >>> bk.inference.VariationalInference(objective="elbo", num_particles=1).restarts
    1
    """

    objective: str = eqx.field(static=True)
    num_particles: int = eqx.field(static=True)
    max_iterations: int
    batch_size: int = eqx.field(static=True)
    learning_rate: float
    tolerance: float
    restarts: int = eqx.field(static=True)
    optimizer: Any = eqx.field(static=True)

    def __init__(
        self,
        objective="importance-weighted",
        *,
        num_particles=10,
        max_iterations=20_000,
        batch_size=64,
        learning_rate=None,
        tolerance=1e-2,
        restarts=1,
        optimizer=None,
    ):
        if objective not in _OBJECTIVES:
            raise ValueError(f"objective must be one of {list(_OBJECTIVES)}, got {objective!r}")
        self.objective = objective
        self.num_particles = check_integer("num_particles", num_particles, 1)
        self.max_iterations = check_integer("max_iterations", max_iterations, 1)
        self.batch_size = check_integer("batch_size", batch_size, 1)
        if optimizer is not None:
            if not isinstance(optimizer, optax.GradientTransformation):
                raise TypeError(
                    "optimizer must be an optax.GradientTransformation such as optax.adam(1e-3), "
                    f"got {optimizer!r}"
                )
            if learning_rate is not None:
                raise ValueError(
                    "learning_rate must be None beside an optimizer, which has its own, got "
                    f"{learning_rate}"
                )
        self.optimizer = optimizer
        rate = _LEARNING_RATE if learning_rate is None else learning_rate
        self.learning_rate = check_positive("learning_rate", rate)
        self.tolerance = check_number("tolerance", tolerance, 0.0)
        self.restarts = check_integer("restarts", restarts, 1)

    def __repr__(self):
        settings = ", ".join(f"{name}={value!r}" for name, value in self.settings().items())
        return f"VariationalInference({settings})"

    @property
    def needs(self):
        return SupportsVariational

    @property
    def lanes(self):
        """One: its state holds all fits, whose steps and looks at held-out rows go together."""
        return 1

    @property
    def length(self):
        return self.max_iterations

    @property
    def random(self):
        return True

    @property
    def fixed_length(self):
        return False

    def map_lanes(self, function, lanes):
        return jax.lax.map(function, lanes)

    def settings(self):
        settings = {
            "objective": self.objective,
            "num_particles": self.num_particles,
            "max_iterations": int(self.max_iterations),
            "batch_size": self.batch_size,
            "learning_rate": float(self.learning_rate),
            "tolerance": float(self.tolerance),
            "restarts": self.restarts,
        }
        if self.optimizer is not None:
            del settings["learning_rate"]
            settings["optimizer"] = _name_of(self.optimizer.update)
        return settings

    @property
    def _transformation(self):
        """What turns gradients into steps of rate one, and the rate at the start."""
        if self.optimizer is not None:
            return self.optimizer, 1.0
        return optax.chain(optax.scale_by_adam(), optax.scale(-1.0)), self.learning_rate

    def check(self, model):
        if self.optimizer is not None and isinstance(self.optimizer.update, UserFunction):
            raise ValueError(
                "method was read from a file, which does not hold its optimizer "
                f"({_name_of(self.optimizer.update)}): state the method anew"
            )
        model.check_variational(self)

    def check_data(self, model, data):
        model.check_variational_data(data)

    def _of_fits(self, function, fits, settings, keys):
        """A function of one fit, its setting and its restart's key, of all fits (R, G).

        On processors of a few settings at a time: as many each time, so that there is one program.
        """
        of_restarts = jax.vmap(function, in_axes=(0, None, 0))
        count = jax.tree.leaves(settings)[0].shape[0]
        size = count
        if jax.default_backend() == "cpu":
            most = max(1, _AT_ONCE // self.restarts)
            size = max(i for i in range(1, most + 1) if count % i == 0)
        found = jax.lax.map(
            lambda each: of_restarts(*each, keys), (_swapped(fits), settings), batch_size=size
        )
        return _swapped(found)

    def _score(self, model, data, rows, particles):
        """Mean bound of rows as a function of a fit: the same random numbers always."""
        particles = max(self.num_particles, particles)

        def score(parameters, setting, key):
            draw, noise = jax.random.split(key)
            values = model.variational_rows(data, rows, setting, draw)
            weights, _ = _weights(model, data, parameters, setting, values, particles, noise)
            return jnp.mean(logsumexp(weights, axis=0)) - jnp.log(float(particles))

        return score

    def init(self, model, data, key, lane, initial):
        settings = model.variational_settings(data)
        count = jax.tree.leaves(settings)[0].shape[0]
        for_rows, for_starts, for_steps = jax.random.split(key, 3)
        held_out = _one_of_each_part(for_rows, model.rows_of(data), model.held_out(data))
        starts = [
            model.variational_init(data, start, initial)
            for start in jax.random.split(for_starts, self.restarts)
        ]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
        parameters = jax.tree.map(lambda leaf: jnp.repeat(leaf[:, None], count, axis=1), stacked)
        shape = (self.restarts, count)
        dtype = jax.tree.leaves(parameters)[0].dtype
        score = self._look(model, data, parameters, settings, held_out, for_steps)
        optimizer, rate = self._transformation
        return Training(
            parameters,
            jax.vmap(jax.vmap(optimizer.init))(parameters),
            parameters,
            jnp.full(shape, rate, dtype),
            parameters,
            score,
            score,
            jnp.zeros(shape, int),
            jnp.zeros((*shape, _FALLS + 1), int),
            jnp.zeros((*shape, _FALLS + 1), int),
            jnp.zeros(shape, int),
            stacked,
            held_out,
            jnp.asarray(0),
            for_steps,
        )

    def _look(self, model, data, parameters, settings, held_out, key):
        keys = jnp.broadcast_to(jax.random.fold_in(key, 0), (self.restarts,))
        function = self._score(model, data, held_out, _SCORE_PARTICLES)
        scores = self._of_fits(function, parameters, settings, keys)
        return jnp.where(jnp.isfinite(scores), scores, -jnp.inf)

    def step(self, model, data, state):
        settings = model.variational_settings(data)
        held_out = state.held_out
        count = model.rows_of(data) - held_out.size
        batch = min(self.batch_size, count)
        keys = jax.random.split(jax.random.fold_in(state.key, state.count + 1), self.restarts)

        def one(fit, setting, key):
            for_rows, for_values, for_latents = jax.random.split(key, 3)
            rows = _others(held_out, jax.random.randint(for_rows, (batch,), 0, count))
            values = model.variational_rows(data, rows, setting, for_values)
            return self._moved(model, data, fit, setting, values, self.num_particles, for_latents)

        fits = (
            state.parameters,
            state.moments,
            state.average,
            state.rate,
            state.best,
            state.recoveries,
        )
        parameters, moments, average, rate, recoveries = self._of_fits(one, fits, settings, keys)
        stage = jax.nn.one_hot(self._stage(state.rate), _FALLS + 1, dtype=int)
        state = state._replace(
            parameters=parameters,
            moments=moments,
            average=average,
            rate=rate,
            path=state.path + stage,
            recoveries=recoveries,
            count=state.count + 1,
        )

        def look(state):
            scores = self._look(model, data, state.average, settings, held_out, state.key)
            return self._judged(state, scores)

        state = jax.lax.cond(state.count % _EVERY == 0, look, lambda state: state, state)
        return state, TrainingRecord(jnp.mean(state.score), jnp.max(state.rate))

    def _moved(self, model, data, fit, setting, values, particles, key):
        """One step of one fit."""
        parameters, moments, average, rate, best, recoveries = fit
        gradient = self._gradient(model, data, parameters, setting, values, particles, key)
        norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(norm)
        scale = -jnp.minimum(1.0, _CLIP / jnp.maximum(norm, _CLIP))
        optimizer, _ = self._transformation
        clipped = jax.tree.map(lambda leaf: scale * leaf, gradient)
        direction, updated = optimizer.update(clipped, moments, parameters)
        moved = jax.tree.map(lambda p, d: p + rate * d, parameters, direction)
        mixed = jax.tree.map(lambda a, p: _MEMORY * a + (1.0 - _MEMORY) * p, average, moved)
        return (
            optax.tree.where(finite, moved, best),
            optax.tree.where(finite, updated, optimizer.init(best)),
            optax.tree.where(finite, mixed, best),
            jnp.where(finite, rate, _RECOVERY * rate),
            recoveries + jnp.where(finite, 0, 1),
        )

    def _gradient(self, model, data, parameters, setting, values, particles, key):
        """Of the mean bound of a batch."""
        weights, pull = _weights(model, data, parameters, setting, values, particles, key)
        if self.objective == "elbo":
            return pull(jnp.full_like(weights, 1.0 / particles), None)
        share = jax.nn.softmax(weights, axis=0)
        return pull(share, share)

    def _judged(self, state, scores):
        """After a look at the held-out rows: what is kept, and how large steps are from now on."""
        better = scores > state.score
        best = _where(better, state.average, state.best)
        score = jnp.where(better, scores, state.score)
        gained = score > state.mark + self.tolerance
        mark = jnp.where(gained, score, state.mark)
        stalled = jnp.where(gained, 0, state.stalled + 1)
        falls = stalled >= _PATIENCE
        optimizer, largest = self._transformation
        smallest = largest / _FALL**_FALLS
        ended = falls & (state.rate < 1.5 * smallest) & (self.tolerance > 0)
        smaller = jnp.minimum(state.rate, jnp.maximum(state.rate / _FALL, smallest))
        rate = jnp.where(ended, 0.0, jnp.where(falls, smaller, state.rate))
        fresh = jax.vmap(jax.vmap(optimizer.init))(best)
        best_path = jnp.where(better[..., None], state.path, state.best_path)
        return state._replace(
            path=jnp.where(falls[..., None], best_path, state.path),
            best_path=best_path,
            parameters=_where(falls, best, state.parameters),
            average=_where(falls, best, state.average),
            moments=_where(falls, fresh, state.moments),
            rate=rate,
            best=best,
            score=score,
            mark=mark,
            stalled=jnp.where(falls, 0, stalled),
        )

    def done(self, state):
        return jnp.all(state.rate == 0.0)

    def finish(self, model, data, states, records):
        state = jax.tree.map(lambda leaf: leaf[0], states)
        settings = model.variational_settings(data)
        # Of every setting the best restart.
        restarts = jnp.arange(self.restarts)[:, None] + jnp.zeros_like(state.stalled)
        (best, scores, rate, path, restart), _ = jax.vmap(best_of, in_axes=1)(
            (state.best, state.score, state.rate, state.best_path, restarts), state.score
        )
        approximation, chosen, diagnosed = model.variational_finish(
            data, best, settings, state.held_out, jax.random.fold_in(state.key, 0)
        )
        if scores.shape[0] > 1:
            setting, kept = jax.tree.map(lambda leaf: leaf[chosen], (settings, best))
            begun = jax.tree.map(lambda leaf: leaf[restart[chosen]], state.start)
            again = self._again(model, data, setting, begun, kept, path[chosen], state)
            approximation, diagnosed = model.variational_refitted(
                data, approximation, again, setting
            )
        # Of settings that could not be fitted, what is kept may say so by infinities.
        known = [~jnp.any(jnp.isnan(leaf)) for leaf in jax.tree.leaves(approximation)]
        finite = jnp.all(jnp.stack([*known, jnp.isfinite(scores[chosen])]))
        return Fit(
            approximation,
            jnp.asarray(jnp.nan),
            finite,
            jnp.asarray(0),
            (jnp.sum(state.recoveries), rate[chosen], diagnosed),
        )

    def _stage(self, rate):
        """How often a rate has fallen."""
        _, largest = self._transformation
        falls = jnp.log(largest / jnp.maximum(rate, jnp.finfo(rate.dtype).tiny)) / jnp.log(_FALL)
        return jnp.clip(jnp.round(falls), 0, _FALLS).astype(int)

    def _again(self, model, data, setting, start, best, path, state):
        """Training on all rows along a path of rates, or what it led to where that is better."""
        optimizer, largest = self._transformation
        count = model.rows_of(data)
        # As many passes over the rows.
        ends = jnp.cumsum(path) * count // (count - state.held_out.size)
        batch = min(self.batch_size, count)
        particles = self.num_particles * (1 if self.objective == "elbo" else _MORE)
        key = jax.random.fold_in(state.key, _AGAIN)

        def step(index, carry):
            parameters, moments, average = carry
            begins = (index > 0) & jnp.any(index == ends)
            parameters = optax.tree.where(begins, average, parameters)
            moments = optax.tree.where(begins, optimizer.init(average), moments)
            rate = jnp.asarray(largest / _FALL ** jnp.sum(index >= ends), state.rate.dtype)
            for_rows, for_values, for_latents = jax.random.split(jax.random.fold_in(key, index), 3)
            rows = jax.random.randint(for_rows, (batch,), 0, count)
            values = model.variational_rows(data, rows, setting, for_values)
            fit = parameters, moments, average, rate, best, jnp.asarray(0)
            return self._moved(model, data, fit, setting, values, particles, for_latents)[:3]

        begun = start, optimizer.init(start), start
        _, _, again = jax.lax.fori_loop(0, ends[-1], step, begun)
        compared = _one_of_each_part(key, count, min(count, _COMPARED))
        score = self._score(model, data, compared, _COMPARED_PARTICLES)
        ours, theirs = (
            score(each, setting, jax.random.fold_in(key, _AGAIN)) for each in (again, best)
        )
        return optax.tree.where(ours > theirs, again, best)

    def caveats(self, fit, model):
        recoveries, _, diagnosed = fit.diagnosed
        found = model.caveats(diagnosed)
        if recoveries > 0:
            found += (
                f"{int(recoveries)} gradients were not finite: training went on from the best "
                "parameters with smaller steps each time; lower the learning rate",
            )
        return found

    def report(self, fit, records, counts):
        count = int(counts[0])
        trace = {name: np.asarray(values)[0, :count] for name, values in records._asdict().items()}
        rate = float(fit.diagnosed[1])
        converged = bool(fit.finite) and rate == 0.0
        if not bool(fit.finite):
            reason = "a non-finite value appeared"
        elif converged:
            reason = f"the bound on held-out rows grows by less than {float(self.tolerance):.2g}"
        else:
            reason = (
                f"learning rate {rate:.2g} had not ended its falls after "
                f"max_iterations={int(self.max_iterations)}"
            )
        fields = {
            "converged": converged,
            "iterations": count,
            "objective": trace["objective"],
            "reason": reason,
        }
        return fields, {"optimization": trace}


def _name_of(function):
    """Also of one that stands for another in a file."""
    if isinstance(function, UserFunction):
        return function.name
    return f"{function.__module__}.{function.__qualname__}"


def _one_of_each_part(key, count, parts):
    """One row at random of each of as many parts of ``count`` rows, all of about one size."""
    edges = np.arange(parts + 1, dtype=np.int64) * count // parts
    return jax.random.randint(key, (parts,), edges[:-1], edges[1:])


def _others(rows, places):
    """Those that have these places when ``rows``, which are in order, are left out."""
    before = rows - jnp.arange(rows.size)
    return places + jnp.searchsorted(before, places, side="right")


def _swapped(tree):
    """Settings before restarts, or the other way round."""
    return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), tree)


def _where(chosen, new, old):
    """Leaves (R, G, …) of one pytree or the other, by fit."""
    return jax.tree.map(
        lambda a, b: jnp.where(chosen.reshape(chosen.shape + (1,) * (a.ndim - 2)), a, b), new, old
    )


def _weights(model, data, parameters, setting, values, particles, key):
    """Log importance weights (particles, rows), and a function of their gradients.

    The function takes cotangents of the weights, and a factor by which the gradients of the
    particles themselves are multiplied on their way to the encoder, or ``None``.
    """

    def drawn(parameters):
        mean, log_deviation = model.variational_guide(data, parameters, values)
        noise = jax.random.normal(key, (particles, *mean.shape), mean.dtype)
        return mean + jnp.exp(log_deviation) * noise, (mean, log_deviation)

    latents, to_encoder, (mean, log_deviation) = jax.vjp(drawn, parameters, has_aux=True)

    def weighed(parameters, latents):
        # Moments of the guide are constants here: its score has expectation zero.
        scaled = (latents - mean) * jnp.exp(-log_deviation)
        guide = jnp.sum(-0.5 * scaled**2 - log_deviation - 0.5 * jnp.log(2.0 * jnp.pi), axis=-1)
        return model.variational_joint(data, parameters, setting, values, latents) - guide

    weights, back = jax.vjp(weighed, parameters, latents)

    def pull(cotangents, factor):
        direct, of_latents = back(cotangents / values.shape[0])
        if factor is not None:
            of_latents = factor[..., None] * of_latents
        (through,) = to_encoder(of_latents)
        return jax.tree.map(jnp.add, direct, through)

    return weights, pull
