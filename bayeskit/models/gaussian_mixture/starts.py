"""Where iterations start: k-means from several seeds, some sweeps of messages, the best bound.

k-means alone has round clusters of like sizes. Two seedings of three have more centres than there
are components, whose clusters are then merged (J. Ward, "Hierarchical grouping to optimize an
objective function", Journal of the American Statistical Association 1963).

Then moves that sweeps do not make: a component is dissolved into the others and comes back as half
of another one (N. Ueda, R. Nakano, Z. Ghahramani and G. Hinton, "SMEM algorithm for mixture
models", Neural Computation 2000), as long as the bound grows.

Clear components are found from nearly every seed: when the first ones agree, there are no more.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bayeskit.linalg import safe
from bayeskit.models.gaussian_mixture import conjugate
from bayeskit.models.gaussian_mixture.table import Rows

SEEDS = 64
SEEDS_OF_LIKELIHOODS = 16
FINALISTS = 6
FIRST_SWEEPS = 10
SWEEPS = 30
ROUNDS = 3
MOVES = 32
FINALISTS_OF_MOVES = 2
ROWS = 2048
FIRST_ROWS = 512
AGREEING = 8  # starts, at least half of which end at the best
_ROWS_A_MEAN = 8  # of the first rows, for every number of the components' locations
PARTS = (1, 3, 6)  # of k-means, for every component; in turn
_SAME = 1.0  # in nats, of those whose first sweeps end near each other
_SETTLED = 0.001  # growth of a sweep, in nats
_LLOYD = 10
_FIRST_STRENGTH = 0.1


def sketch(table, most=ROWS, size=None):
    """Some rows at random, always the same, as a table of one block or of several.

    Evenly spaced rows would all be of one kind where kinds alternate. Only the last rows of blocks
    other than the first can have no weight. All rows in one block stay in their order.
    """
    count = min(table.count, most)
    index = np.random.default_rng(0).choice(table.count, count, replace=False)
    index = np.sort(index) if size is None or size >= count else index
    number = 1 if size is None else -(-len(index) // size)
    fill = -len(index) % number
    index = np.append(index, np.repeat(index[-1:], fill)).reshape(-1, number).T

    def pick(values):
        return table.flat(values)[index]

    rows = table.rows
    seen = None if rows.observed is None else pick(rows.observed)
    weights = pick(rows.weights)
    if fill:
        weights = weights.at[-fill:, -1].set(0.0)
    count = index.size - fill
    return dataclasses.replace(table, rows=Rows(pick(rows.values), seen, weights), count=count)


def seeded_labels(values, components, key):
    """Hard memberships (n, K) by k-means, its seeds drawn in proportion to squared distances."""
    labels, _, _ = _kmeans(values, components, components, key)
    return jax.nn.one_hot(labels, components, dtype=values.dtype)


def merged_labels(values, components, parts, most, key):
    """Hard memberships (n, K) by k-means of more parts, merged as J. Ward does.

    Parameters
    ----------
    values : array (n, d)
    components, most : int
    parts : integer scalar
        At least ``components``, at most ``most``.
    key : JAX key

    Notes
    -----
    O(n d ``most`` + ``most``³ d).
    """
    labels, centers, counts = _kmeans(values, parts, most, key)

    def unfinished(carry):
        return jnp.sum(carry[1] > 0) > components

    def merge(carry):
        centers, counts, owner = carry
        pair = counts[:, None] * counts / jnp.maximum(counts[:, None] + counts, 1.0)
        rise = pair * jnp.sum((centers[:, None] - centers) ** 2, axis=-1)
        alone = jnp.eye(most, dtype=bool) | (pair == 0)
        kept, gone = jnp.divmod(jnp.argmin(jnp.where(alone, jnp.inf, rise)), most)
        both = counts[kept] + counts[gone]
        middle = (counts[kept] * centers[kept] + counts[gone] * centers[gone]) / both
        return (
            centers.at[kept].set(middle),
            counts.at[kept].set(both).at[gone].set(0.0),
            jnp.where(owner == gone, kept, owner),
        )

    begun = centers, counts, jnp.arange(most)
    _, counts, owner = jax.lax.while_loop(unfinished, merge, begun)
    place = jnp.cumsum(counts > 0) - 1
    return jax.nn.one_hot(place[owner[labels]], components, dtype=values.dtype)


def _kmeans(values, parts, most, key):
    """Labels (n,), centers (most, d) and counts (most,) of that many parts, the others empty."""
    present = jnp.arange(most) < parts

    def distances(centers):
        squares = jnp.sum((values[:, None] - centers) ** 2, axis=-1)
        return jnp.where(present, squares, jnp.inf)

    keys = jax.random.split(key, most)
    index = jax.random.randint(keys[0], (), 0, values.shape[0])
    centers = jnp.broadcast_to(values[index], (most, values.shape[1]))

    def seed(k, centers):
        nearest = jnp.min(distances(centers), axis=1)
        index = jax.random.categorical(keys[k], conjugate.log_or_never(nearest))
        return jnp.where(jnp.arange(most)[:, None] >= k, values[index], centers)

    def members(centers):
        return jax.nn.one_hot(jnp.argmin(distances(centers), axis=1), most, dtype=values.dtype)

    def lloyd(_, centers):
        member = members(centers)
        counts = jnp.sum(member, axis=0)[:, None]
        means = member.T @ values / jnp.maximum(counts, 1.0)
        return jnp.where(counts > 0, means, centers)

    centers = jax.lax.fori_loop(1, parts, seed, centers)
    centers = jax.lax.fori_loop(0, _LLOYD, lloyd, centers)
    labels = jnp.argmin(distances(centers), axis=1)
    return labels, centers, jnp.sum(members(centers), axis=0)


def statistics_of(blocks, table, share):
    """Statistics about zero of the first block's rows with memberships (n, K)."""
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


class Sweep(NamedTuple):
    """A guess, statistics of rows about locations, from which the next follows, and its score."""

    guess: Guess
    statistics: conjugate.Statistics
    location: Any
    score: Any


class Search(NamedTuple):
    """State of a search.

    Attributes
    ----------
    best : Sweep
    pool : Sweep
        Stacked: those of this round, on the first rows.
    round, job : int
        The first round is of seeds, the others of moves; jobs are counted anew in each.
    first : int
        How many jobs of the round are sweeps on the first rows; those after them go on from the
        best of the pool, on all rows.
    grew, ended : bool
        Whether this round made the best one better, and whether the search is over.
    """

    best: Sweep
    pool: Sweep
    round: Any
    job: Any
    first: Any
    grew: Any
    ended: Any


def bound_of(blocks, table, prior, concentration, components):
    """Evidence bound in the user's units."""
    gaussians = conjugate.message_gaussians(blocks, components)
    evidence = conjugate.statistics(blocks, table.rows, gaussians).evidence
    divergence = conjugate.divergence(blocks, prior, concentration, components)
    return evidence - table.log_unit - divergence


def moved_share(blocks, table, components, gone, halved):
    """Memberships (n, K) without component ``gone``, which gets half of component ``halved``.

    The half is on one side of the mean, across the longest axis. Of the first block's rows.
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


def _nowhere(blocks, prior, dtype):
    """A guess of components that are all at zero, before the first."""
    shape = (blocks.groups, blocks.parts, blocks.size, blocks.size)
    return Guess(
        prior,
        conjugate.MixtureComponents(
            jnp.ones(blocks.components, dtype),
            jnp.zeros((blocks.components, blocks.features), dtype),
            jnp.full(blocks.components, _FIRST_STRENGTH, dtype),
            jnp.ones((blocks.groups, 1), dtype),
            jnp.broadcast_to(jnp.eye(blocks.size, dtype=dtype), shape),
        ),
    )


def tournament(blocks, table, concentration, key, renewed):
    """The best of many guesses by the bound (by the likelihood, where the prior is flat).

    All start from k-means and make some sweeps of messages on the first rows; the best go on with
    all rows, and from the best one moves are tried. ``renewed(guess, statistics, location, anew)``
    is the guess that follows from an earlier one and statistics of deviations from ``location``;
    ``anew`` is false where the guess's prior may be kept.

    All sweeps are those of one loop, whatever they are for: compiling them is what a fit of a
    small table takes longest for.
    """
    size = max(FIRST_ROWS, _ROWS_A_MEAN * blocks.components * blocks.features)
    table = sketch(table, ROWS, size)
    rows, dtype = table.rows, table.unit.dtype
    # A likelihood has no largest value: more starts would find more collapsed components.
    seeds = SEEDS if table.proper else SEEDS_OF_LIKELIHOODS
    keys = jax.random.split(key, seeds)
    # Every other seeding is in the user's units: where features have one in common, those that
    # vary more tell more.
    metrics = jnp.stack([jnp.ones_like(table.unit), table.unit / jnp.max(table.unit)])
    most = min(PARTS[-1] * blocks.components, rows.values.shape[1])
    pairs = jnp.asarray(np.argwhere(~np.eye(blocks.components, dtype=bool)).reshape(-1, 2))
    # Of two components a move is one more seeding. Not by a likelihood, which has no largest value.
    moves = min(MOVES, len(pairs)) if table.proper and blocks.components > 2 else 0

    def statistics(gaussians, number):
        def block(index, total):
            part = jax.tree.map(lambda leaf: leaf[index], rows)
            found = conjugate.block_statistics(blocks, part, gaussians)
            return jax.tree.map(jnp.add, total, found)

        return jax.lax.fori_loop(0, number, block, conjugate.empty_statistics(blocks, dtype))

    def swept(sweep, number, most, anew):
        """The last of some sweeps over a number of blocks of rows."""

        def growing(carry):
            _, growth, count = carry
            return (count < most) & (growth > _SETTLED)

        def again(carry):
            old, _, count = carry
            guess = renewed(old.guess, old.statistics, old.location, anew)
            parts = guess.components
            found = statistics(conjugate.message_gaussians(blocks, parts), number)
            score = found.evidence
            if table.proper:
                score = score - conjugate.divergence(blocks, guess.prior, concentration, parts)
            new = Sweep(guess, found, parts.location, score)
            return new, jnp.abs(score - old.score), count + 1

        carry = sweep, jnp.asarray(jnp.inf, dtype), jnp.asarray(0)
        last = jax.lax.while_loop(growing, again, carry)[0]
        score = last.score
        if not table.proper:
            gaussians = conjugate.mode_gaussians(blocks, last.guess.components)
            found = statistics(gaussians, number)
            # A component of hardly more rows than features is about to collapse.
            sound = (blocks.groups == 1) | jnp.all(found.counts > blocks.size + 1)
            score = jnp.where(sound, found.evidence, -jnp.inf)
        return last._replace(score=jnp.where(jnp.isnan(score), -jnp.inf, score))

    def opening(search):
        """Statistics of a seeding, or of a move from the best."""
        job, best = search.job, search.best.guess

        def seeding():
            values = rows.values[0] * metrics[job % len(metrics)]
            parts = jnp.minimum(jnp.asarray(PARTS)[job % len(PARTS)] * blocks.components, most)
            return merged_labels(values, blocks.components, parts, most, keys[job])

        def move():
            order = jax.random.permutation(jax.random.fold_in(key, search.round), len(pairs))
            return moved_share(blocks, table, best.components, *pairs[order[job]])

        of_seeds = search.round == 0
        share = jax.lax.cond(of_seeds, seeding, move) if moves else seeding()
        guess = optax.tree.where(of_seeds, start.guess, best)
        found, location = statistics_of(blocks, table, share)
        return Sweep(guess, found, location, start.score)

    def unfinished(search):
        return ~search.ended

    def work(search):
        job, first, seeded = search.job, search.first, search.round == 0
        final = job >= first
        place = jnp.where(final, jnp.argmax(search.pool.score), job)
        kept = jax.tree.map(lambda leaf: leaf[place], search.pool)
        sweep = jax.lax.cond(final, lambda: kept, lambda: opening(search))
        number = jnp.where(final, rows.weights.shape[0], 1)
        # On the first rows, moves are compared under the prior of what they move from.
        most = jnp.where(final, SWEEPS, FIRST_SWEEPS)
        sweep = swept(sweep, number, most, anew=final | seeded)
        pool = jax.tree.map(lambda leaf, new: leaf.at[place].set(new), search.pool, sweep)
        better = final & ((sweep.score > search.best.score) | (seeded & ~search.grew))
        best = optax.tree.where(better, sweep, search.best)
        grew, job = search.grew | better, job + 1

        near = jnp.sum(pool.score >= jnp.max(pool.score) - _SAME)
        agreed = seeded & ~final & (job >= AGREEING) & (2 * near >= job)
        first = jnp.where(agreed, job, first)
        # Those that went on do not do so again, nor do others that are the same.
        same = (jnp.abs(pool.score - kept.score) < _SAME) | (jnp.arange(seeds) == place)
        score = jnp.where(final & same, -jnp.inf, pool.score)
        # Seeds that agree are finals of the same.
        finals = jnp.where(seeded & (first == seeds), FINALISTS, FINALISTS_OF_MOVES)
        over = (job >= first + finals) | (final & ~jnp.any(score > -jnp.inf))
        ended = over & (~grew | (search.round >= (ROUNDS if moves else 0)))
        return Search(
            best,
            pool._replace(score=jnp.where(over, -jnp.inf, score)),
            search.round + over,
            jnp.where(over, 0, job),
            jnp.where(over, moves, first),
            grew & ~over,
            ended,
        )

    nothing = _nowhere(blocks, table.prior, dtype)
    empty = conjugate.empty_statistics(blocks, dtype)
    start = Sweep(nothing, empty, nothing.components.location, jnp.asarray(-jnp.inf, dtype))
    pool = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (seeds, *leaf.shape)), start)
    no, zero = jnp.asarray(False), jnp.asarray(0)
    search = Search(start, pool, zero, zero, jnp.asarray(seeds), no, no)
    return jax.lax.while_loop(unfinished, work, search).best.guess


def searched(blocks, table, concentration, key):
    """Components of the best of many starts under the table's prior."""

    def renewed(guess, statistics, location, anew):
        active = jnp.ones(blocks.components, bool)
        parts = (table.prior, concentration, statistics, location, active)
        return guess._replace(components=conjugate.renew(blocks, *parts))

    return tournament(blocks, table, concentration, key, renewed).components
