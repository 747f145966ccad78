"""A normalizing flow of flowjax's: masked autoregressive, with rational-quadratic splines."""

import jax
import jax.numpy as jnp
import numpy as np
from flowjax.bijections import RationalQuadraticSpline
from flowjax.distributions import Normal
from flowjax.flows import masked_autoregressive_flow
from flowjax.train import fit_to_data

COPIES = 10  # of every row, each with noise of its own
EPOCHS, PATIENCE = 400, 15


def fit(rows, key, *, perturbation=0.0, rate=1e-3):
    """A flow of rows (n, D), and its losses; training ends by held-out rows."""
    for_flow, for_steps, for_noise = jax.random.split(key, 3)
    rows, epochs = jnp.asarray(rows), EPOCHS
    if perturbation > 0.0:
        # The library has no fresh noise; the same number of steps sees as many copies.
        rows, epochs = jnp.tile(rows, (COPIES, 1)), EPOCHS // COPIES
        rows = rows + perturbation * jax.random.normal(for_noise, rows.shape)
    flow = masked_autoregressive_flow(
        for_flow,
        base_dist=Normal(jnp.zeros(rows.shape[1])),
        transformer=RationalQuadraticSpline(knots=8, interval=4),
        flow_layers=5,
        nn_width=48,
    )
    patience = PATIENCE if perturbation == 0.0 else max(3, PATIENCE // COPIES)
    flow, losses = fit_to_data(
        for_steps,
        flow,
        rows,
        learning_rate=rate,
        max_epochs=epochs,
        max_patience=patience,
        show_progress=False,
    )
    return flow, losses


def sample(flow, count, key):
    """Draws (count, D)."""
    return np.asarray(flow.sample(key, (count,)))
