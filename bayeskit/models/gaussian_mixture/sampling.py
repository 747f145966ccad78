"""Sampling of Gaussian mixtures: components, data, and for Markov chain Monte Carlo."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from optax.assignment import hungarian_algorithm

from bayeskit.linalg import safe
from bayeskit.models.gaussian_mixture import conjugate, starts
from bayeskit.precision import as_key, double_precision, to_host
from bayeskit.results import map_in_blocks

_ALIGNED_ROWS = 512
_ROW_BLOCK = 64


def roots(key, blocks, freedom, scale):
    """Upper triangular or square ``B`` with ``B' B`` inverse-Wishart blocks, by Bartlett."""
    size = blocks.size
    chi, normal = jax.random.split(key)
    steps = jnp.arange(size, dtype=scale.dtype)
    halves = 0.5 * (freedom[..., None] - steps)
    diagonal = jnp.sqrt(2.0 * jax.random.gamma(chi, halves, dtype=scale.dtype))
    if size == 1:
        return jnp.sqrt(scale) / diagonal[..., None]
    below = jnp.tril(jax.random.normal(normal, scale.shape, scale.dtype), -1)
    bartlett = below + diagonal[..., None] * jnp.eye(size, dtype=scale.dtype)
    return safe.solve_triangular(bartlett, jnp.swapaxes(safe.cholesky(scale), -1, -2))


def spread_out(key, blocks, root, location, strength):
    """Locations (K, d) whose covariances are ``B' B`` over ``strength`` (K,)."""
    noise = jax.random.normal(key, (blocks.components, blocks.features), root.dtype)
    return location + coloured(blocks, root, noise) / jnp.sqrt(strength)[:, None]


def coloured(blocks, root, noise):
    """White noise (K, d) with the covariances of the components."""
    if blocks.dense:
        each = jnp.broadcast_to(root[:, 0], (blocks.components, *root.shape[2:]))
        return jnp.einsum("kij,ki->kj", each, noise)
    return blocks.spread(root) * noise


def square(root):
    """``B' B`` of blocks."""
    return jnp.einsum("gbij,gbil->gbjl", root, root)


def draw_components(key, blocks, components):
    """Weights, locations and covariances in blocks, from their posterior."""
    for_weights, for_roots, for_locations = jax.random.split(key, 3)
    active = conjugate.active_of(components)
    concentration = jnp.where(active, components.concentration, 1.0)
    logs = jax.random.loggamma(for_weights, concentration, dtype=concentration.dtype)
    weights = jax.nn.softmax(jnp.where(active, logs, -jnp.inf))
    root = roots(for_roots, blocks, components.freedom, components.scale)
    location = spread_out(for_locations, blocks, root, components.location, components.strength)
    return weights, location, square(root)


def prior_components(blocks, prior, concentration):
    """The prior as components of which no row is known."""
    shape = (blocks.groups, blocks.features if blocks.structure == "diagonal" else 1)
    return conjugate.MixtureComponents(
        jnp.full(blocks.components, concentration),
        jnp.broadcast_to(prior.location, (blocks.components, blocks.features)),
        jnp.full(blocks.components, prior.strength),
        jnp.full(shape, prior.freedom),
        jnp.broadcast_to(prior.scale, (*shape, blocks.size, blocks.size)),
    )


def draw_rows(key, blocks, drawn, count):
    """Rows (count, d) of a mixture."""
    weights, location, covariance = drawn
    choice, noise_key = jax.random.split(key)
    labels = jax.random.categorical(choice, conjugate.log_or_never(weights), shape=(count,))
    noise = jax.random.normal(noise_key, (count, blocks.features), location.dtype)
    if not blocks.dense:
        deviations = jnp.sqrt(blocks.spread(covariance))
        return location[labels] + deviations[labels] * noise
    lower = safe.cholesky(covariance[:, 0])
    lower = jnp.broadcast_to(lower, (blocks.components, *lower.shape[1:]))
    # One component after the other: a factor for every row would be n d² numbers.
    rows = location[labels]
    for k in range(blocks.components):
        rows = jnp.where((labels == k)[:, None], rows + noise @ lower[k].T, rows)
    return rows


def sample_prior(model, key):
    """Parameters and a table from the priors; see the model's method."""
    if model.prior is None or isinstance(model.prior, str):
        given = "flat" if model.prior is None else repr(model.prior)
        raise ValueError(
            f"prior is {given}: nothing can be drawn from it; give a NormalInverseWishart"
        )
    if model.num_observations is None:
        raise ValueError("num_observations is needed to draw a table from the prior")
    with double_precision():
        key = as_key(key, "draws are random")
        blocks, prior = model.blocks(model.prior.location.size), model.raw_prior()
        first, second = jax.random.split(key)
        parts = prior_components(blocks, prior, jnp.asarray(model.weights_concentration, float))
        weights, location, covariance = draw_components(first, blocks, parts)
        rows = draw_rows(second, blocks, (weights, location, covariance), model.num_observations)
        sites = {
            "weights": weights,
            "locations": location,
            "covariances": blocks.reported(covariance),
        }
        return to_host(sites), to_host(rows)


def sites_in_blocks(model, data, sites):
    """Standardised weights, locations and covariances in blocks, of sites in the user's units."""
    blocks = model.blocks(data.unit.size)
    shape = prior_components(blocks, data.prior, model.weights_concentration).scale.shape
    dtype = data.unit.dtype
    covariance = jnp.asarray(sites["covariances"], dtype).reshape(shape)
    location = (jnp.asarray(sites["locations"], dtype) - data.center) / data.unit
    weights = jnp.asarray(sites["weights"], dtype)
    return weights, location, covariance / blocks.in_units(data.unit)


def complete_rows(key, blocks, data, drawn, inputs):
    """Rows of a prediction, in the user's units, their missing values drawn given those observed.

    A whole row of the component is drawn, and moved by what the observed values differ from it.
    """
    if inputs.observed is None:
        return inputs.values
    weights, location, covariance = drawn
    spread = blocks.spread(covariance)
    logs = conjugate.log_or_never(weights)

    def one(item):
        key, row = item
        choice, noise_key = jax.random.split(key)
        values, observed = jax.tree.map(lambda leaf: leaf[None], row).standardised(data)
        distances = conjugate.measure(blocks, values, observed, location, spread)
        label = jax.random.categorical(choice, logs + conjugate.log_gaussian(distances)[0])
        whole = draw_rows(noise_key, blocks, (jnp.eye(logs.size)[label], location, covariance), 1)
        other = conjugate.measure(blocks, whole * observed, observed, location, spread)
        moved = whole + (distances.deviations - other.deviations)[:, label]
        return jnp.where(observed > 0, row.values, data.center + data.unit * moved)[0]

    keys = jax.random.split(key, inputs.values.shape[0])
    return map_in_blocks(one, (keys, inputs), _ROW_BLOCK)


# Markov chain Monte Carlo


class GuardedNormal(dist.MultivariateNormal):
    """NumPyro's, its triangular systems solved by the package's guarded solver."""

    def log_prob(self, value: Any):
        """Log density."""
        lower: Any = self.scale_tril
        white = safe.solve_triangular(lower, (value - self.loc)[..., None])[..., 0]
        diagonal = jnp.diagonal(lower, axis1=-2, axis2=-1)
        constant = 0.5 * value.shape[-1] * math.log(2 * math.pi)
        return -0.5 * jnp.sum(white**2, -1) - jnp.sum(jnp.log(diagonal), -1) - constant


def numpyro_model(model, data):
    """Weights, precisions by their Bartlett decomposition, locations; labels summed out.

    A precision is ``L⁻ᵀ A Aᵀ L⁻¹``, ``L Lᵀ`` the scale of its prior and ``A`` lower triangular,
    with independent entries: squares on the diagonal chi-squared, others standard normal.
    """
    blocks, prior = model.blocks(data.unit.size), data.prior
    parts = prior_components(blocks, prior, model.weights_concentration)
    sites = {"weights": numpyro.sample("weights", dist.Dirichlet(parts.concentration))}
    halves = 0.5 * (parts.freedom[..., None] - jnp.arange(blocks.size, dtype=data.unit.dtype))
    sites["squares"] = numpyro.sample("squares", dist.Gamma(halves, 0.5).to_event(3))
    if blocks.size > 1:
        shape = (blocks.groups, blocks.size * (blocks.size - 1) // 2)
        below = dist.Normal(jnp.zeros(shape, data.unit.dtype), 1.0).to_event(2)
        sites["below"] = numpyro.sample("below", below)
    covariance = square(root_of(blocks, prior, sites))
    location = numpyro.sample("locations", location_prior(blocks, prior, covariance))
    log_likelihood = log_likelihood_of(blocks, data, (sites["weights"], location, covariance))
    numpyro.factor("rows", log_likelihood - data.log_unit)


def location_prior(blocks, prior, covariance):
    """Normal distribution of all locations (K, d) given covariances in blocks."""
    spread = blocks.spread(covariance) / prior.strength
    shape = (blocks.components, *spread.shape[1:])
    if not blocks.dense:
        return dist.Normal(prior.location, jnp.sqrt(jnp.broadcast_to(spread, shape))).to_event(2)
    lower = jnp.broadcast_to(safe.cholesky(spread), shape)
    return GuardedNormal(prior.location, scale_tril=lower).to_event(1)


def root_of(blocks, prior, sites):
    """``B`` in blocks with ``B' B`` the covariance, from the sites of Bartlett's ``A``."""
    diagonal = jnp.sqrt(sites["squares"])
    if blocks.size == 1:
        return jnp.sqrt(prior.scale) / diagonal[..., None]
    rows, columns = np.tril_indices(blocks.size, -1)
    bartlett = diagonal[..., None] * jnp.eye(blocks.size, dtype=diagonal.dtype)
    bartlett = bartlett.at[:, 0, rows, columns].set(sites["below"])
    lower = safe.cholesky(prior.scale).astype(bartlett.dtype)
    right = jnp.broadcast_to(jnp.swapaxes(lower, -1, -2), bartlett.shape)
    return safe.solve_triangular(bartlett, right)


def log_likelihood_of(blocks, data, drawn):
    """Of standardised rows, labels summed out."""
    weights, location, covariance = drawn
    spread = blocks.spread(covariance)
    logs = conjugate.log_or_never(weights)

    def block(total, part):
        values, observed, valid = part
        distances = conjugate.measure(blocks, values, observed, location, spread)
        density = jax.nn.logsumexp(logs + conjugate.log_gaussian(distances), axis=-1)
        return total + jnp.sum(valid * density), None

    rows = data.rows
    zero = jnp.zeros((), jnp.result_type(rows.values, location))
    return jax.lax.scan(block, zero, (rows.values, rows.observed, rows.weights))[0]


def given_sites(model, data, sites):
    """Weights, locations and covariances in blocks of one draw of the NumPyro sites."""
    blocks = model.blocks(data.unit.size)
    return sites["weights"], sites["locations"], square(root_of(blocks, data.prior, sites))


def chain_start(model, data, key, components):
    """A draw from the components' posterior, as NumPyro sites."""
    blocks = model.blocks(data.unit.size)
    weights, location, covariance = draw_components(key, blocks, components)
    sites = {"weights": weights, "locations": location}
    scale = jnp.broadcast_to(data.prior.scale, covariance.shape)
    if blocks.size == 1:
        return {**sites, "squares": scale[..., 0] / covariance[..., 0]}
    half = safe.solve_triangular(safe.cholesky(covariance), safe.cholesky(scale))
    bartlett = safe.cholesky(jnp.swapaxes(half, -1, -2) @ half)
    rows, columns = np.tril_indices(blocks.size, -1)
    squares = jnp.diagonal(bartlett, axis1=-2, axis2=-1) ** 2
    return {**sites, "squares": squares, "below": bartlett[:, 0, rows, columns]}


def aligned(model, data, sites, lp):
    """Draws (chain, draw, …) with components in the order of the draw of highest density.

    Every draw is permuted so that its memberships of some rows agree best with that one's
    (P. Papastamoulis and G. Iliopoulos, "An artificial allocations based solution to the label
    switching problem", 2010).
    """
    blocks = model.blocks(data.unit.size)
    if blocks.components == 1:
        return sites
    small = starts.sketch(data, _ALIGNED_ROWS)
    rows = jax.tree.map(lambda leaf: leaf[0], small.rows)

    def memberships(each):
        weights, location, covariance = given_sites(model, data, each)
        distances = conjugate.measure(
            blocks, rows.values, rows.observed, location, blocks.spread(covariance)
        )
        joint = conjugate.log_or_never(weights) + conjugate.log_gaussian(distances)
        return jax.nn.softmax(joint, axis=-1)

    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), sites)
    pivot = jax.tree.map(lambda leaf: leaf[jnp.argmax(lp)], flat)
    reference = memberships(pivot)
    reference = reference[:, jnp.argsort(-jnp.sum(reference, axis=0))]

    def align(each):
        # Of draws that broke down any order will do, but an assignment needs numbers.
        agreement = jnp.nan_to_num(reference.T @ memberships(each))
        first, second = hungarian_algorithm(-agreement)
        order = jnp.zeros(blocks.components, int).at[first].set(second)
        grouped = {"weights", "locations"}
        grouped |= {"squares", "below"} if blocks.groups > 1 else set()
        return {name: value[order] if name in grouped else value for name, value in each.items()}

    done = jax.lax.map(align, flat)
    return jax.tree.map(lambda new, old: new.reshape(old.shape), done, sites)
