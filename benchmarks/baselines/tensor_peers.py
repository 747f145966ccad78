"""Predictors from other packages for a table of indices and values: fit, then predict.

Every one takes ``(indices, values, new_indices)`` and returns a :class:`PeerPrediction`.
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_QUANTILES = (0.16, 0.84)
_PREDICTED_ROWS = 4096


class PeerPrediction(NamedTuple):
    """Mean (P,) at the new indices, and variance (P,) of new values where the peer has one."""

    mean: np.ndarray
    variance: np.ndarray | None


def masked_tensor(
    indices: np.ndarray,
    values: np.ndarray,
    new_indices: np.ndarray,
    *,
    bins: Sequence[int | None],
    rank: int | Sequence[int],
    core: str = "cp",
    iterations: int = 500,
    seed: int = 0,
) -> PeerPrediction:
    """CP or Tucker decomposition of a table cut into bins, empty cells masked, by TensorLy.

    J. Kossaifi, Y. Panagakis, A. Anandkumar, M. Pantic, "TensorLy: Tensor learning in Python",
    JMLR 20(26), 2019: ``parafac`` and ``tucker`` with ``mask``.

    Parameters
    ----------
    indices, values, new_indices : arrays (N, K), (N,), (P, K)
    bins : sequence of int or None, one a mode
        Number of bins of equal width over the range of the training rows; None for a bin for every
        training index. New rows go to the nearest bin.
    rank : int, or one a mode for Tucker
    core : "cp" or "tucker"
    iterations, seed : int
        Budget of the alternating least squares, which stop when the error changes by less than
        1e-6, and their random start.

    Notes
    -----
    The tensor is dense: memory is several times the number of cells. Rows in one cell are averaged.
    Values are centred first, so that cells that are never learned predict their mean.
    """
    from tensorly.decomposition import parafac, tucker

    indices, values, new_indices = _check(indices, values, new_indices)
    if len(bins) != indices.shape[1]:
        raise ValueError(f"bins must be one a mode ({indices.shape[1]}), got {bins}")
    if core not in ("cp", "tucker"):
        raise ValueError(f"core must be 'cp' or 'tucker', got {core!r}")
    cells = [
        _binned(column, new, count)
        for column, new, count in zip(indices.T, new_indices.T, bins, strict=True)
    ]
    shape = tuple(size for _, _, size in cells)
    at, new_at = tuple(c[0] for c in cells), tuple(c[1] for c in cells)
    center = values.mean()
    total, count = np.zeros(shape), np.zeros(shape)
    np.add.at(total, at, values - center)
    np.add.at(count, at, 1.0)
    tensor, mask = total / np.maximum(count, 1.0), (count > 0).astype(float)
    settings = {
        "n_iter_max": iterations,
        "init": "random",
        "random_state": seed,
        "mask": mask,
        "tol": 1e-6,
    }
    if core == "cp":
        weights, factors = parafac(tensor, int(rank), **settings)
        rows = [factor[cell] for factor, cell in zip(factors, new_at, strict=True)]
        return PeerPrediction(center + np.prod(rows, axis=0) @ weights, None)
    ranks = [rank] * len(shape) if np.ndim(rank) == 0 else list(rank)
    middle, factors = tucker(tensor, [int(r) for r in ranks], **settings)
    rows = [factor[cell] for factor, cell in zip(factors, new_at, strict=True)]
    result = np.tensordot(rows[0], middle, axes=1)
    for row in rows[1:]:
        result = np.einsum("na,na...->n...", row, result)
    return PeerPrediction(center + result, None)


def _binned(column, new, count):
    """Bins of old and new indices, and their number."""
    if count is None:
        levels, place = np.unique(column, return_inverse=True)
        right = np.clip(np.searchsorted(levels, new), 0, len(levels) - 1)
        left = np.maximum(right - 1, 0)
        nearer = np.abs(new - levels[left]) < np.abs(new - levels[right])
        return place, np.where(nearer, left, right), len(levels)
    if count < 1:
        raise ValueError(f"bins must be at least 1, got {count}")
    low, high = column.min(), column.max()
    width = (high - low) / count or 1.0

    def bin_of(x):
        return np.clip(((x - low) / width).astype(int), 0, count - 1)

    return bin_of(column), bin_of(new), count


def gradient_boosting(
    indices: np.ndarray,
    values: np.ndarray,
    new_indices: np.ndarray,
    *,
    spread: str = "residuals",
    exact: bool = False,
    iterations: int = 300,
    folds: int = 5,
    seed: int = 0,
) -> PeerPrediction:
    """Gradient-boosted trees by scikit-learn, with a variance.

    Parameters
    ----------
    indices, values, new_indices : arrays (N, K), (N,), (P, K)
        Categories as numbers.
    spread : "residuals", "quantiles" or "none"
        The variance is that of the residuals in cross-validation, one number; or the square of half
        the distance between the 16 % and the 84 % quantiles that two more fits predict, scaled by
        one number so that residuals in cross-validation have a mean square of one; or there is
        none.
    exact : bool
        ``GradientBoostingRegressor``, trees of depth 10 on random halves of the rows, which splits
        anywhere, in place of ``HistGradientBoostingRegressor``, which cuts every column into 255
        bins at most: too few for a column of a thousand days.
    iterations, folds, seed : int
    """
    from sklearn.model_selection import KFold

    indices, values, new_indices = _check(indices, values, new_indices)
    if spread not in ("residuals", "quantiles", "none"):
        raise ValueError(f"spread must be 'residuals', 'quantiles' or 'none', got {spread!r}")
    settings = (spread == "quantiles", exact, iterations, seed)
    mean, deviation = _boosted(indices, values, new_indices, *settings)
    if spread == "none":
        return PeerPrediction(mean, None)
    scores = np.empty(len(values))
    for train, test in KFold(folds, shuffle=True, random_state=seed).split(indices):
        left_out, own = _boosted(indices[train], values[train], indices[test], *settings)
        scores[test] = (values[test] - left_out) / own
    return PeerPrediction(mean, deviation**2 * np.mean(scores**2))


def _boosted(indices, values, new, quantiles, exact, iterations, seed):
    """Mean, and a deviation up to scale."""
    from sklearn.ensemble import GradientBoostingRegressor, HistGradientBoostingRegressor

    def fit(level=None):
        loss = "squared_error" if level is None else "quantile"
        if exact:
            trees = GradientBoostingRegressor(
                loss=loss,
                alpha=level or 0.9,
                n_estimators=iterations,
                max_depth=10,
                subsample=0.5,
                random_state=seed,
            )
        else:
            trees = HistGradientBoostingRegressor(
                loss=loss, quantile=level, max_iter=iterations, random_state=seed
            )
        return trees.fit(indices, values).predict(new)

    mean = fit()
    if not quantiles:
        return mean, np.ones(len(new))
    low, high = (fit(level) for level in _QUANTILES)
    return mean, np.maximum(0.5 * (high - low), 0.05 * values.std())


def sparse_gaussian_process(
    indices: np.ndarray,
    values: np.ndarray,
    new_indices: np.ndarray,
    *,
    categorical: Sequence[int] = (),
    inducing: int = 200,
    lengthscale: float = 0.3,
    steps: int = 100,
    learning_rate: float = 0.1,
    seed: int = 0,
) -> PeerPrediction:
    """A sparse Gaussian process with the collapsed bound, by GPJax.

    M. Titsias, "Variational learning of inducing variables in sparse Gaussian processes", AISTATS
    2009; T. Pinder and D. Dodd, "GPJax", JOSS 7(75), 2022: ``CollapsedVariationalGaussian`` with a
    Matérn 3/2 kernel that has a lengthscale for every column.

    Parameters
    ----------
    indices, values, new_indices : arrays (N, K), (N,), (P, K)
    categorical : sequence of int
        Columns that are categories: one column of zeros and ones for each.
    inducing : int
        Points, k-means centres of the training rows; learned with the lengthscales, variance and
        noise.
    lengthscale : float
        Where those of the columns of numbers start, in deviations of the column; one for the
        columns of categories.
    steps : int
        Of Adam, each on all rows: O(N inducing²).
    learning_rate : float
    seed : int
        Of k-means.
    """
    import gpjax
    import optax
    from sklearn.cluster import MiniBatchKMeans

    indices, values, new_indices = _check(indices, values, new_indices)
    features, new_features = _features(indices, new_indices, categorical)
    lengthscales = np.ones(features.shape[1])
    lengthscales[: indices.shape[1] - len(categorical)] = lengthscale
    count = min(inducing, len(np.unique(features, axis=0)))
    centers = MiniBatchKMeans(count, n_init=1, batch_size=4096, random_state=seed).fit(features)
    center, unit = values.mean(), values.std() or 1.0
    with jax.enable_x64(True), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        data = gpjax.Dataset(
            X=jnp.asarray(features), y=jnp.asarray((values - center)[:, None] / unit)
        )
        prior = gpjax.gps.Prior(
            mean_function=gpjax.mean_functions.Zero(),
            kernel=gpjax.kernels.Matern32(lengthscale=jnp.asarray(lengthscales)),
        )
        family = gpjax.variational_families.CollapsedVariationalGaussian(
            model=prior * gpjax.likelihoods.Gaussian(obs_stddev=jnp.asarray(0.5)),
            inducing_inputs=jnp.asarray(centers.cluster_centers_, float),
        )
        family, _ = gpjax.fit(
            model=family,
            objective=lambda family, data: -gpjax.objectives.collapsed_elbo(family, data),
            train_data=data,
            optim=optax.adam(learning_rate),
            num_iters=steps,
            verbose=False,
        )
        posterior = family.condition(data)
        noise = np.asarray(gpjax.parameters.val(family.model.likelihood.obs_stddev)) ** 2
        parts = [
            posterior(jnp.asarray(new_features[first : first + _PREDICTED_ROWS]))
            for first in range(0, len(new_features), _PREDICTED_ROWS)
        ]
        mean = np.concatenate([np.asarray(part.mean) for part in parts])
        variance = np.concatenate([np.asarray(part.variance) for part in parts])
    return PeerPrediction(center + unit * mean, unit**2 * (variance + noise))


def _features(indices, new, categorical):
    """Standardised numbers, then indicators of the categories."""
    numbers = [k for k in range(indices.shape[1]) if k not in set(categorical)]
    center, unit = indices[:, numbers].mean(0), indices[:, numbers].std(0)
    unit = np.where(unit > 0, unit, 1.0)
    made = []
    for rows in (indices, new):
        parts = [(rows[:, numbers] - center) / unit]
        parts += [rows[:, [k]] == np.unique(indices[:, k]) for k in categorical]
        made.append(np.concatenate(parts, axis=1).astype(float))
    return made


def _check(indices, values, new_indices):
    indices, values = np.asarray(indices, float), np.asarray(values, float)
    new_indices = np.asarray(new_indices, float)
    if indices.ndim != 2 or values.shape != indices.shape[:1] or not values.size:
        raise ValueError(
            "indices and values must have the shapes (N, K) and (N,), got "
            f"{indices.shape} and {values.shape}"
        )
    if new_indices.ndim != 2 or new_indices.shape[1] != indices.shape[1]:
        raise ValueError(
            f"new_indices must have the shape (P, {indices.shape[1]}), got {new_indices.shape}"
        )
    for name, array in (("indices", indices), ("values", values), ("new_indices", new_indices)):
        bad = np.sum(~np.isfinite(array))
        if bad:
            raise ValueError(f"{name} has {bad} entries that are not finite")
    return indices, values, new_indices
