"""Physics-informed network with multi-scale Fourier features, by DeepXDE.

S. Wang, H. Wang, P. Perdikaris, "On the eigenvector bias of Fourier feature networks", Computer
Methods in Applied Mechanics and Engineering 384, 2021, as DeepXDE's ``MsFFN`` (on TensorFlow), with
the settings of its own example of a multi-scale Poisson equation: tanh, three layers of 100, Adam
at 1e-3 with inverse time decay, conditions exact by construction where they can be.
"""

import os
import time

import numpy as np

WIDTH, DEPTH = 100, 3
_DOMAIN, _BOUNDARY = 10_000, 400  # points in several dimensions; in one, the problem's number
_CHECK = 100  # iterations between looks at the clock


def fourier_network(problem, scales, seconds, seed, tested):
    """Train for so many seconds, with compilation; the error by time.

    Parameters
    ----------
    problem : Problem
        ``Δu [+ u (u² - 1)] = source`` with values on all faces.
    scales : tuple of float
        Deviations of the features' frequencies, in radians over coordinates of unit deviation.
    seconds : float
    seed : int
    tested : list of arrays
        A uniform grid, one array a dimension.

    Returns
    -------
    dict
        ``seconds``, ``errors`` and ``losses`` at the looks, and ``iterations``.
    """
    os.environ["DDE_BACKEND"] = "tensorflow.compat.v1"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import deepxde as dde

    begun = time.perf_counter()
    dde.config.set_random_seed(seed)
    lengths = np.asarray(problem.lengths)
    count = len(lengths)
    box = dde.geometry.Interval(0.0, lengths[0])
    if count > 1:
        box = dde.geometry.Hypercube([0.0] * count, lengths.tolist())

    def residual(x, u, source):
        left = sum(dde.grad.hessian(u, x, i=i, j=i) for i in range(count)) - source
        return left + u * (u**2 - 1) if problem.allen_cahn else left

    def on_points(function):
        def values(x):
            return np.asarray(function(*x.T)).reshape(-1, 1)

        return values

    truth = on_points(problem.truth)
    conditions = [] if count == 1 else [dde.icbc.DirichletBC(box, truth, lambda _, on: on)]
    data = dde.data.PDE(
        box,
        residual,
        conditions,
        num_domain=problem.points if count == 1 else _DOMAIN,
        num_boundary=0 if count == 1 else _BOUNDARY,
        train_distribution="uniform" if count == 1 else "pseudo",
        auxiliary_var_function=on_points(problem.source),
    )
    network = dde.nn.MsFFN([count] + [WIDTH] * DEPTH + [1], "tanh", "Glorot uniform", scales)
    middle, deviation = lengths / 2, lengths / np.sqrt(12.0)
    network.apply_feature_transform(lambda x: (x - middle) / deviation)
    if count == 1:
        (length,) = lengths
        low, high = float(problem.truth(0.0)), float(problem.truth(length))
        network.apply_output_transform(
            lambda x, y: x * (length - x) / length**2 * y + low + (high - low) * x / length
        )
    model = dde.Model(data, network)
    # Sources of size 1e4 and more: the loss in units of the source.
    size = float(np.mean(on_points(problem.source)(data.train_x_all) ** 2))
    model.compile(
        "adam",
        lr=1e-3,
        decay=("inverse time", 2000, 0.9),
        loss_weights=[1.0 / size] + [1.0] * len(conditions),
        verbose=0,
    )
    mesh = np.stack([m.reshape(-1) for m in np.meshgrid(*tested, indexing="ij")], axis=1)
    wanted = truth(mesh)
    found = {"seconds": [], "errors": [], "losses": []}
    looking, spent, look, iterations = 0.0, 0.0, 1.0, 0
    while spent < seconds:
        model.train(iterations=_CHECK, display_every=_CHECK, verbose=0)
        iterations += _CHECK
        spent = time.perf_counter() - begun - looking
        if spent > look or spent > seconds:
            started = time.perf_counter()
            error = np.linalg.norm(model.predict(mesh) - wanted) / np.linalg.norm(wanted)
            found["seconds"].append(spent)
            found["errors"].append(float(error))
            found["losses"].append(float(np.sum(model.losshistory.loss_train[-1])))
            looking += time.perf_counter() - started
            look = spent * 1.5
    return found | {"iterations": iterations}
