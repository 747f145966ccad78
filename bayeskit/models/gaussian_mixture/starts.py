"""Where iterations start: k-means from several seeds, some sweeps of messages, the best bound.

Then moves that sweeps do not make: a component is dissolved into the others and comes back as half
of another one (N. Ueda, R. Nakano, Z. Ghahramani and G. Hinton, "SMEM algorithm for mixture
models", Neural Computation 2000), as long as the bound grows.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayeskit.linalg import safe
from bayeskit.models.base import best_of
from bayeskit.models.gaussian_mixture import conjugate
from bayeskit.models.gaussian_mixture.table import Rows

SEEDS = 64
FINALISTS = 6
FIRST_SWEEPS = 10
SWEEPS = 30
ROUNDS = 3
MOVES = 32
FINALISTS_OF_MOVES = 2
ROWS = 2048
FIRST_ROWS = 512
_ROWS_A_MEAN = 8  # of the first rows, for every number of the components' locations
_LLOYD = 10


def sketch(table, most=ROWS):
    """Some rows, evenly spaced, as a table of one block."""
    count = min(table.count, most)
    index = np.unique(np.linspace(0, table.count - 1, count).astype(int))

    def pick(values):
        return table.flat(values)[index][None]

    rows = table.rows
    seen = None if rows.observed is None else pick(rows.observed)
    picked = Rows(pick(rows.values), seen, pick(rows.weights))
    return dataclasses.replace(table, rows=picked, count=len(index))


def seeded_labels(values, components, key):
    """Hard memberships (n, K) by k-means, its seeds drawn in proportion to squared distances."""

    def distances(centers):
        return jnp.sum((values[:, None] - centers) ** 2, axis=-1)

    first, *rest = jax.random.split(key, components)
    index = jax.random.randint(first, (), 0, values.shape[0])
    centers = jnp.broadcast_to(values[index], (components, values.shape[1]))
    for k, each in enumerate(rest, start=1):
        nearest = jnp.min(distances(centers), axis=1)
        index = jax.random.categorical(each, conjugate.log_or_never(nearest))
        centers = centers.at[k:].set(values[index])

    def lloyd(_, centers):
        member = _nearest(distances(centers), components, values.dtype)
        counts = jnp.sum(member, axis=0)[:, None]
        means = member.T @ values / jnp.maximum(counts, 1.0)
        return jnp.where(counts > 0, means, centers)

    centers = jax.lax.fori_loop(0, _LLOYD, lloyd, centers)
    return _nearest(distances(centers), components, values.dtype)


def _nearest(distances, components, dtype):
    return jax.nn.one_hot(jnp.argmin(distances, axis=1), components, dtype=dtype)


def statistics_of(blocks, table, share):
    """Statistics about zero of all rows (in one block) with memberships (n, K)."""
    rows = jax.tree.map(lambda leaf: leaf[0], table.rows)
    zeros = jnp.zeros((blocks.components, blocks.features), rows.values.dtype)
    one = jnp.eye(blocks.features) if blocks.dense else jnp.ones(blocks.features)
    unit = jnp.broadcast_to(one.astype(zeros.dtype), (blocks.groups, *one.shape))
    distances = conjugate.measure(blocks, rows.values, rows.observed, zeros, unit)
    sums = conjugate.sums_of(blocks, distances, share)
    return conjugate.Statistics(jnp.zeros((), zeros.dtype), *sums), zeros


class Guess(NamedTuple):
    """Components, and the prior that they were computed under."""

    prior: Any
    components: Any


def bound_of(blocks, table, prior, concentration, components):
    """Evidence bound in the user's units."""
    gaussians = conjugate.message_gaussians(blocks, components)
    evidence = conjugate.statistics(blocks, table.rows, gaussians).evidence
    divergence = conjugate.divergence(blocks, prior, concentration, components)
    return evidence - table.log_unit - divergence


def moved_share(blocks, table, components, gone, halved):
    """Memberships (n, K) without component ``gone``, which gets half of component ``halved``.

    The half is on one side of the mean, across the longest axis.
    """
    values, observed = table.rows.values[0], None
    if table.rows.observed is not None:
        observed = table.rows.observed[0]
    gaussians = conjugate.message_gaussians(blocks, components)
    distances = conjugate.measure(blocks, values, observed, *gaussians[1:])
    joint = gaussians.log_weights + conjugate.log_gaussian(distances)
    share = jax.nn.softmax(joint.at[:, gone].set(-jnp.inf), axis=-1)
    own, away = share[:, halved], distances.deviations[:, halved]
    total = jnp.maximum(jnp.sum(own), jnp.finfo(own.dtype).tiny)
    away = away - own @ away / total
    axis = safe.eigh(away.T @ (own[:, None] * away) / total)[1][:, -1]
    half = jnp.where(away @ axis > 0, own, 0.0)
    return share.at[:, gone].set(half).at[:, halved].set(own - half)


def tournament(blocks, table, concentration, key, renewed):
    """The best of many guesses by the bound (by the likelihood, where the prior is flat).

    All start from k-means and make some sweeps of messages; the best go on, and from the best one
    moves are tried. ``renewed(earlier, statistics, location)`` is the guess that follows from
    statistics, and from an earlier guess if it is not ``None``. First sweeps see fewer rows.
    """
    fewer = sketch(table, max(FIRST_ROWS, _ROWS_A_MEAN * blocks.components * blocks.features))
    pairs = np.argwhere(~np.eye(blocks.components, dtype=bool))

    def sweeps(guess, table, count):
        def again(_, guess):
            components = guess.components
            gaussians = conjugate.message_gaussians(blocks, components)
            found = conjugate.statistics(blocks, table.rows, gaussians)
            return renewed(guess, found, components.location)

        return jax.lax.fori_loop(0, count, again, guess)

    def score(guess, table):
        if table.proper:
            return bound_of(blocks, table, guess.prior, concentration, guess.components)
        gaussians = conjugate.mode_gaussians(blocks, guess.components)
        return conjugate.statistics(blocks, table.rows, gaussians).evidence

    def first(earlier, share):
        guess = renewed(earlier, *statistics_of(blocks, fewer, share))
        guess = sweeps(guess, fewer, FIRST_SWEEPS)
        return guess, score(guess, fewer)

    def heat(key, metric):
        return first(None, seeded_labels(fewer.rows.values[0] * metric, blocks.components, key))

    def trial(best, pair):
        return first(best, moved_share(blocks, fewer, best.components, *pair))

    def final(guess):
        guess = sweeps(guess, table, SWEEPS)
        return guess, score(guess, table)

    def finals(scored, count):
        guesses, scores = scored
        order = jnp.argsort(-jnp.where(jnp.isnan(scores), -jnp.inf, scores))[:count]
        found = jax.lax.map(final, jax.tree.map(lambda leaf: leaf[order], guesses))
        return best_of(found, found[1])[0]

    def growing(carry):
        _, grew, count = carry
        return grew & (count < ROUNDS)

    def round_of_moves(carry):
        best, _, count = carry
        order = jax.random.permutation(jax.random.fold_in(key, count), len(pairs))[:MOVES]
        found = jax.lax.map(lambda pair: trial(best[0], pair), jnp.asarray(pairs)[order])
        other = finals(found, FINALISTS_OF_MOVES)
        grew = other[1] > best[1]
        return jax.tree.map(lambda a, b: jnp.where(grew, a, b), other, best), grew, count + 1

    # Every other seeding is in the user's units: where features have one in common, those that
    # vary more tell more.
    metrics = jnp.stack([jnp.ones_like(table.unit), table.unit / jnp.max(table.unit)])
    seeds = jax.random.split(key, SEEDS), metrics[jnp.arange(SEEDS) % len(metrics)]
    best = finals(jax.lax.map(lambda seed: heat(*seed), seeds), FINALISTS)
    if table.proper and blocks.components > 2:
        # Of two components a move is one more seeding. Not by a likelihood, which has no largest
        # value.
        carry = best, jnp.asarray(True), jnp.asarray(0)
        best, _, _ = jax.lax.while_loop(growing, round_of_moves, carry)
    return best[0]


def searched(blocks, table, concentration, key):
    """Components of the best of many starts under the table's prior."""

    def renewed(earlier, statistics, location):
        active = jnp.ones(blocks.components, bool)
        parts = (table.prior, concentration, statistics, location, active)
        return Guess(table.prior, conjugate.renew(blocks, *parts))

    return tournament(blocks, sketch(table), concentration, key, renewed).components
