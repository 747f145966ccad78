"""A small diffusion model: a denoising network over many sizes of noise, and its ordinary equation.

T. Karras, M. Aittala, T. Aila and S. Laine, "Elucidating the design space of diffusion-based
generative models", NeurIPS 2022: its preconditioning, weights, sizes of noise and Heun's method.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

SMALLEST, LARGEST, EXPONENT = 0.002, 10.0, 7.0
TYPICAL = -1.2, 1.2  # mean and deviation of the logarithm of the noise in training
FREQUENCIES = 2.0 ** jnp.arange(4)


class Denoiser(eqx.Module):
    """Rows (D,) of unit variance from rows with noise of a given size."""

    network: eqx.nn.MLP

    def __init__(self, features, width, depth, key):
        inputs = features + 2 * len(FREQUENCIES)
        self.network = eqx.nn.MLP(inputs, features, width, depth, jax.nn.silu, key=key)

    def __call__(self, noisy, scale):
        total = jnp.sqrt(1.0 + scale**2)
        phase = 0.25 * jnp.log(scale) * FREQUENCIES
        given = jnp.concatenate([noisy / total, jnp.cos(phase), jnp.sin(phase)])
        return noisy / total**2 + scale / total * self.network(given)


def fit(rows, key, *, width=128, depth=3, steps=8000, batch=256, rate=2e-3):
    """A denoiser of rows (n, D), its weights averaged over the last steps; and its losses."""
    rows = jnp.asarray(rows)
    for_network, for_steps = jax.random.split(key)
    arrays, rest = eqx.partition(
        Denoiser(rows.shape[1], width, depth, for_network), eqx.is_inexact_array
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(rate, steps))
    )

    def loss(arrays, key):
        for_rows, for_scales, for_noise = jax.random.split(key, 3)
        clean = rows[jax.random.randint(for_rows, (batch,), 0, len(rows))]
        scale = jnp.exp(TYPICAL[0] + TYPICAL[1] * jax.random.normal(for_scales, (batch,)))
        noisy = clean + scale[:, None] * jax.random.normal(for_noise, clean.shape)
        found = jax.vmap(eqx.combine(arrays, rest))(noisy, scale)
        weight = (1.0 + scale**2) / scale**2
        return jnp.mean(weight[:, None] * (found - clean) ** 2)

    def step(carry, key):
        arrays, state, average = carry
        value, gradient = jax.value_and_grad(loss)(arrays, key)
        updates, state = optimizer.update(gradient, state, arrays)
        arrays = optax.apply_updates(arrays, updates)
        average = jax.tree.map(lambda a, b: 0.999 * a + 0.001 * b, average, arrays)
        return (arrays, state, average), value

    keys = jax.random.split(for_steps, steps)
    start = arrays, optimizer.init(arrays), arrays
    (_, _, average), losses = jax.jit(lambda: jax.lax.scan(step, start, keys))()
    return eqx.combine(average, rest), losses


def sample(denoiser, features, count, key, *, steps=40):
    """Draws (count, D): noise, moved along the ordinary equation to where there is none."""
    share = jnp.arange(steps) / (steps - 1)
    ends = LARGEST ** (1 / EXPONENT), SMALLEST ** (1 / EXPONENT)
    scales = jnp.append((ends[0] + share * (ends[1] - ends[0])) ** EXPONENT, 0.0)

    def slope(rows, scale):
        scale = jnp.maximum(scale, SMALLEST)
        return (rows - jax.vmap(denoiser, in_axes=(0, None))(rows, scale)) / scale

    def move(rows, pair):
        now, then = pair
        first = slope(rows, now)
        ahead = rows + (then - now) * first
        heun = rows + (then - now) * 0.5 * (first + slope(ahead, then))
        return jnp.where(then > 0, heun, ahead), None

    start = scales[0] * jax.random.normal(key, (count, features))
    return jax.jit(lambda: jax.lax.scan(move, start, (scales[:-1], scales[1:])))()[0]
