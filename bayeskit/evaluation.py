"""Pure functions of (approximation, model, data, …): compiled once a shape, mapped over a batch."""

import equinox as eqx
import jax

from bayeskit.results import map_in_blocks

_DRAW_BLOCK = 16


def moments(approximation, model, data):
    """Mean and variance of every site."""
    return approximation.moments(model, data)


def plugged_in(approximation, model, data):
    """Sites that were estimated by a number."""
    return approximation.plugged_in(model, data)


def draws(approximation, model, data, key, count):
    """Independent draws (count, …) by site."""
    keys = jax.random.split(key, count)
    return map_in_blocks(lambda key: approximation.sample(key, model, data), keys, _DRAW_BLOCK)


def chain_draws(approximation, model, data, key):
    """All draws of chains as they were sampled: arrays (chain, draw, …) by site."""
    return approximation.chain_draws(key, model, data)


def simulated(approximation_and_draws, model, data, key, sizes, targets):
    """Data simulated from draws (chain, draw, …) by site at every one of ``targets``.

    ``sizes`` are the numbers of chains and of their draws.
    """
    approximation, drawn = approximation_and_draws
    chains, each = sizes
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), drawn)
    fixed = approximation.plugged_in(model, data)
    values = {}
    for index, (name, inputs) in enumerate(targets.items()):
        keys = jax.random.split(jax.random.fold_in(key, index), chains * each)
        found = map_in_blocks(
            lambda item, inputs=inputs: model.sample_data(
                data, item[0], {**fixed, **item[1]}, inputs
            ),
            (keys, flat),
            _DRAW_BLOCK,
        )
        values[name] = found.reshape(chains, each, *found.shape[1:])
    return values


def predict(approximation, model, data, inputs, include_noise):
    """Mean and variance of predicted data."""
    return approximation.predict(inputs, include_noise, model, data)


def log_predictive(approximation, model, data):
    """Log densities of every observation, left out and not."""
    return approximation.log_predictive(model, data)


@eqx.filter_jit
def evaluate(function, approximation, model, data, batched, *rest):
    """A function of this module, mapped over the data sets of a batch."""
    if not batched:
        return function(approximation, model, data, *rest)
    return jax.lax.map(lambda item: function(item[0], model, item[1], *rest), (approximation, data))


@eqx.filter_jit
def evaluate_random(function, approximation, model, data, batched, key, *rest):
    """As :func:`evaluate`, for functions that take a key."""
    if not batched:
        return function(approximation, model, data, key, *rest)
    # Data sets are independent, and so are the draws of their posteriors.
    keys = jax.random.split(key, jax.tree.leaves(data)[0].shape[0])
    return jax.lax.map(
        lambda item: function(item[0], model, item[1], item[2], *rest), (approximation, data, keys)
    )
