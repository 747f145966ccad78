"""Semidefinite programs on sketches of the rows, and their clusterings brought to all rows.

A sketch is a random subset of the complete rows. Its programs know nothing of the other rows; the
clustering found is lifted to these by the components' densities (covariances and determinants
included, whatever values are missing), never by the nearest centre. Y. Zhuang, X. Chen and Y. Yang,
"Sketch-and-lift: scalable subsampled semidefinite program for k-means clustering", AISTATS 2022.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bayeskit.linalg import safe
from bayeskit.models.base import best_of
from bayeskit.models.gaussian_mixture import conjugate, lifted
from bayeskit.models.gaussian_mixture.affinity import RowAffinity
from bayeskit.models.gaussian_mixture.table import Rows


class Programs(NamedTuple):
    """Clusterings of S sketches, shares of zeros and ones.

    Attributes
    ----------
    share : array (S, m, K)
        The last ones.
    components : MixtureComponents
        Of these, on a first axis S.
    best : array (S, m, K)
        The best so far, by the objective on the sketch.
    objective : array (S,)
    changed : array (S,)
        Share of rows that changed their cluster by the last program.
    residual : array (S,)
        Of the last program's solver.
    rows : integer array (S, m)
    given : MixtureComponents or None
        Of a clustering that the user gave.
    seed : integer scalar
        Of the next programs.
    """

    share: Any
    components: Any
    best: Any
    objective: Any
    changed: Any
    residual: Any
    rows: Any
    given: Any
    seed: Any


class Lifted(NamedTuple):
    """A clustering of all rows, and of the sketch that it comes from.

    Attributes
    ----------
    components : MixtureComponents
    objective : scalar
    share : array (m, K)
    rows : integer array (m,)
    residual : scalar
        Of the sketch's last program's solver.
    given : MixtureComponents or None
    """

    components: Any
    objective: Any
    share: Any
    rows: Any
    residual: Any
    given: Any


def drawn(data, method, key):
    """Rows (S, m) of the sketches: all of them once, where that is not more than a sketch takes."""
    size = min(method.sketch_size, data.complete)
    if size == data.count:
        return jnp.arange(size)[None]
    place = jax.random.uniform(key, (method.num_sketches, data.count), data.unit.dtype)
    if data.rows.observed is not None:
        place = jnp.where(complete_rows(data), place, jnp.inf)
    return jnp.sort(jax.lax.top_k(-place, size)[1], axis=-1)


def complete_rows(data):
    """Which rows (n,) have all values."""
    return data.flat(jnp.all(data.rows.observed > 0, axis=-1))


def table_of(data, rows):
    """The rows of a sketch as a table of one block."""
    values = data.flat(data.rows.values)[rows]
    if data.rows.observed is not None:
        # In a batch, a data set may have fewer complete rows than a sketch: no number is made up.
        values = jnp.where(complete_rows(data)[rows][:, None], values, jnp.nan)
    ones = jnp.ones((1, rows.size), values.dtype)
    return dataclasses.replace(data, rows=Rows(values[None], None, ones), count=rows.size)


def affinity_of(model, table, components):
    """Affinities of a sketch's rows under the components' covariances."""
    blocks = model.blocks(table.unit.size)
    rows = table.rows.values[0]
    covariance = conjugate.mode_gaussians(blocks, components).covariance
    if blocks.dense:
        lower = safe.cholesky(covariance)
        columns = jnp.broadcast_to(rows.T, (len(lower), *rows.T.shape))
        white = jnp.swapaxes(safe.solve_triangular(lower, columns), -1, -2)
        logdet = 2 * jnp.sum(jnp.log(jnp.diagonal(lower, axis1=-2, axis2=-1)), axis=-1)
    else:
        white = rows / jnp.sqrt(covariance)[:, None]
        logdet = jnp.sum(jnp.log(covariance), axis=-1)
    # The classification likelihood has no weights: a component's is not its share of the rows.
    shape = (blocks.components, *white.shape[1:])
    constant = jnp.broadcast_to(-0.5 * logdet, blocks.components)
    return RowAffinity(constant, jnp.broadcast_to(white, shape))


def begun(model, data, key, given, method):
    """The program of k-means on every sketch, rounded."""
    of_rows, of_programs, later = jax.random.split(key, 3)
    rows = drawn(data, method, of_rows)
    dtype = data.unit.dtype

    def one(item):
        rows, key = item
        table = table_of(data, rows)
        affinity = RowAffinity(jnp.zeros(1, dtype), table.rows.values)
        solution = lifted.relaxed(affinity, model.num_components, True, method, key)
        share = lifted.spectral(solution.vectors, model.num_components, key)
        components, objective = model.clustered(table, share)
        return share, components, share, objective, jnp.ones((), dtype), solution.residual

    found = jax.lax.map(one, (rows, jax.random.split(of_programs, len(rows))))
    return Programs(*found, rows=rows, given=given, seed=jax.random.bits(later))


def continued(model, data, programs, method):
    """On every sketch that has not settled, the program of its last clustering's covariances."""
    joint = method.trace == "joint"
    key, later = jax.random.split(jax.random.key(programs.seed))

    def solve(item):
        share, components, best, objective, _, _, rows, key = item
        table = table_of(data, rows)
        affinity = affinity_of(model, table, components)
        solution = lifted.relaxed(affinity, model.num_components, joint, method, key)
        new = lifted.rounded(affinity, solution, model.num_components, joint, key)
        components, value = model.clustered(table, new)
        changed = 1.0 - jnp.sum(new * share) / rows.size
        best = jnp.where(value > objective, new, best)
        return new, components, best, jnp.maximum(value, objective), changed, solution.residual

    def one(item):
        settled = item[4] < method.tolerance
        return jax.lax.cond(settled, lambda item: item[:6], solve, item)

    keys = jax.random.split(key, len(programs.rows))
    found = jax.lax.map(one, (*programs[:6], programs.rows, keys))
    kept = {"rows": programs.rows, "given": programs.given, "seed": jax.random.bits(later)}
    new = Programs(*found, **kept)
    return new, jnp.max(programs.objective), jnp.max(new.changed)


def lifted_to_all(model, data, programs, method):
    """The best of all sketches' clusterings of all rows, by the objective."""
    blocks = model.blocks(data.unit.size)
    whole = programs.rows.shape[1] == data.count

    def one(item):
        share, rows = item
        table = table_of(data, rows)
        components, objective = model.clustered(table, share)
        if whole:
            return components, objective
        if method.finish_by == "em":
            components = model.settled(table, components)
        components = assigned(model, data, conjugate.mode_gaussians(blocks, components))
        return components, model.em_objective(data, components)

    components, objectives = jax.lax.map(one, (programs.best, programs.rows))
    found = (components, objectives, programs.best, programs.rows, programs.residual)
    best, _ = best_of(found, objectives)
    return Lifted(*best, given=programs.given)


def assigned(model, data, gaussians):
    """Components of all rows, each wholly in the component where it is most probable."""
    blocks = model.blocks(data.unit.size)
    found = conjugate.statistics(blocks, data.rows, gaussians, hard=True)
    active = jnp.ones(blocks.components, bool)
    parts = data.prior, model.weights_concentration, found, gaussians.location, active
    return conjugate.renew(blocks, *parts)


def raced(model, data, best, method):
    """The finished clustering; the given one where that has the larger objective when finished."""

    def finished(components):
        return model.settled(data, components) if method.finish_by == "em" else components

    found = best._replace(components=finished(best.components), given=None)
    if best.given is None:
        return found
    blocks = model.blocks(data.unit.size)
    gaussians = conjugate.mode_gaussians(blocks, best.given)
    components = finished(assigned(model, data, gaussians))
    rows = table_of(data, best.rows).rows.values[0]
    distances = conjugate.measure(blocks, rows, None, *gaussians[1:])
    weights = conjugate.log_gaussian(distances)
    labels = lifted.filled(jnp.argmax(weights, axis=1), weights)
    share = jax.nn.one_hot(labels, blocks.components, dtype=rows.dtype)
    objectives = [model.em_objective(data, each) for each in (found.components, components)]
    return optax.tree.where(
        objectives[1] > objectives[0],
        found._replace(components=components, objective=objectives[1], share=share),
        found._replace(objective=objectives[0]),
    )


def certified(approximation, model, data, method):
    """The certificate of a sketch's clustering, for ``Posterior.evaluate``."""
    table = table_of(data, approximation.rows)
    components, _ = model.clustered(table, approximation.share)
    affinity = affinity_of(model, table, components)
    joint = method.trace == "joint"
    # In single precision the bound's rounding would be more than the gap.
    affinity = jax.tree.map(lambda leaf: leaf.astype(float), affinity)
    parts = (
        affinity,
        approximation.share.astype(float),
        model.num_components,
        joint,
        method,
        jax.random.key(0),
    )
    return lifted.certificate(*parts)[0]
