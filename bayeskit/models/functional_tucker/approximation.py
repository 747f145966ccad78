"""Posteriors of functional Tucker decompositions."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pandas as pd
from scipy.optimize import linear_sum_assignment

from bayeskit import evaluation, statespace
from bayeskit.linalg import safe
from bayeskit.models.functional_tucker import data as tables
from bayeskit.models.functional_tucker import sweep
from bayeskit.models.priors import inverse_gamma_moments
from bayeskit.posterior import Posterior
from bayeskit.precision import double_precision
from bayeskit.results import AbstractApproximation, Prediction

_ROW_BLOCK = 4096
_PINNED = 1e10
_SHARE_THAT_MATTERS = 1e-3


class Functions(NamedTuple):
    """Gaussian messages that the functions of every mode are conditioned on.

    Attributes
    ----------
    shifts, precisions : tuples of arrays (n_k, R_k) and (n_k, R_k, R_k)
    logs : tuple of dicts of arrays (R_k,)
        Logarithms of the kernels' parameters.
    """

    shifts: tuple
    precisions: tuple
    logs: tuple


def spread_messages(functions, model, k, steps, known):
    """Chain of mode ``k`` over more points, and its messages at the known ones among them."""
    shifts, precisions = functions.shifts[k], functions.precisions[k]
    steps = steps.astype(shifts.dtype)
    shifts, precisions = (
        jnp.zeros((len(steps), *leaf.shape[1:]), leaf.dtype).at[known].add(leaf)
        for leaf in (shifts, precisions)
    )
    return model.chain(k, functions.logs[k], steps), shifts, precisions


def moments_of_mode(functions, model, k, steps, known):
    """Moments of the functions of one mode at more points."""
    smoothed = statespace.smooth(*spread_messages(functions, model, k, steps, known))
    return sweep.Moments(smoothed.mean, smoothed.second)


def moments_at(functions, model, inputs):
    """Moments of all functions at the union of the fit's and other points."""
    return tuple(
        moments_of_mode(functions, model, k, inputs.steps[k], inputs.known[k])
        for k in range(len(model.modes))
    )


def predicted(modes, core, index):
    """Mean and variance of noiseless values at rows of positions, in blocks of rows."""
    moments = sweep.fitted(modes, core)

    def block(index):
        value, square = moments(index)
        return value, jnp.maximum(square - value**2, 0.0)

    count = index[0].shape[0]
    if count <= _ROW_BLOCK:
        return block(index)
    blocks = -(-count // _ROW_BLOCK)
    padded = [jnp.pad(each, (0, blocks * _ROW_BLOCK - count)).reshape(blocks, -1) for each in index]
    parts = jax.lax.map(block, tuple(padded))
    return jax.tree.map(lambda leaf: leaf.reshape(-1)[:count], parts)


class Factorised(AbstractApproximation):
    """Independent Gaussian functions of each mode and core, inverse-gamma noise variance.

    Kernel parameters are plugged in. Values are products, whose means and variances are exact
    under the approximation.
    """

    messages: sweep.FactorMessages
    logs: tuple

    def functions(self):
        """What the functions were conditioned on."""
        return Functions(self.messages.shifts, self.messages.precisions, self.logs)

    def moments(self, model, data):
        mean, variance = {}, {}
        for mode, moments in zip(model.modes, self.messages.modes, strict=True):
            name = f"mode_{mode.name}"
            mean[name] = moments.mean
            variance[name] = _variances(moments)
        if self.messages.core is not None:
            mean["core"] = self.messages.core.mean.reshape(model.rank_tuple)
            variance["core"] = _variances(self.messages.core).reshape(model.rank_tuple)
        if model.offset is None:
            offset = self.messages.offset
            mean["offset"] = data.center + data.unit * offset.mean
            variance["offset"] = data.unit**2 * _variances(offset)
        if model.noise_variance is None:
            first, spread = self._noise_moments()
            mean["noise_variance"] = data.unit**2 * first
            variance["noise_variance"] = data.unit**4 * spread
        fixed = self.plugged_in(model, data)
        return {**mean, **fixed}, {**variance, **jax.tree.map(jnp.zeros_like, fixed)}

    def sample(self, key, model, data):
        keys = jax.random.split(key, len(model.modes) + 3)
        draw = {}
        for k, mode in enumerate(model.modes):
            draw[f"mode_{mode.name}"] = statespace.sample(
                keys[k],
                model.chain(k, self.logs[k], data.steps[k]),
                self.messages.shifts[k],
                self.messages.precisions[k],
            )
        core = self.messages.core
        if core is not None:
            # A rounded difference of second moments, which may be indefinite.
            values, vectors = safe.eigh(core.covariance())
            noise = jax.random.normal(keys[-3], core.mean.shape, core.mean.dtype)
            apart = vectors @ (jnp.sqrt(jnp.maximum(values, 0.0)) * noise)
            draw["core"] = (core.mean + apart).reshape(model.rank_tuple)
        if model.offset is None:
            offset = self.messages.offset
            noise = jax.random.normal(keys[-2], (), offset.mean.dtype)
            moved = offset.mean + jnp.sqrt(_variances(offset)) * noise
            draw["offset"] = data.center + data.unit * moved
        if model.noise_variance is None:
            a, b = self.messages.noise_concentration, self.messages.noise_rate
            draw["noise_variance"] = data.unit**2 * b / jax.random.gamma(keys[-1], a, dtype=b.dtype)
        return draw

    def plugged_in(self, model, data):
        return model.reported(self.logs, data)

    def _with_offset(self, mean, variance):
        offset = self.messages.offset
        return mean + offset.mean, variance + _variances(offset)

    def _noise_moments(self):
        m = self.messages
        return inverse_gamma_moments(m.noise_concentration, m.noise_rate)

    def _new_noise(self, model, data):
        """Expected variance of a new value's noise: not the ``1 / E σ⁻²`` that the fit has seen."""
        if model.noise_variance is None:
            return data.unit**2 * self._noise_moments()[0]
        return data.unit**2 / self.messages.precision

    def predict(self, inputs, include_noise, model, data):
        if inputs is None:
            modes, index = self.messages.modes, model.positions(data)
        else:
            modes, index = moments_at(self.functions(), model, inputs), inputs.index
        mean, variance = self._with_offset(*predicted(modes, self.messages.core, index))
        mean, variance = data.center + data.unit * mean, data.unit**2 * variance
        return mean, variance + self._new_noise(model, data) if include_noise else variance

    def log_predictive(self, model, data):
        mean, variance = self._with_offset(
            *predicted(self.messages.modes, self.messages.core, model.positions(data))
        )
        values = model.observed(data)
        noise = 1.0 / self.messages.precision
        log_unit = jnp.log(data.unit)
        inside = _log_normal(values, mean, variance + noise) - log_unit
        # The value's own observation is taken out of its Gaussian approximation.
        share = jnp.minimum(variance / noise, 0.999)
        left_mean = (mean - share * values) / (1 - share)
        left_out = _log_normal(values, left_mean, noise / (1 - share)) - log_unit
        return left_out, inside


def _variances(moments):
    """Variances of functions, of a core, or of a scalar."""
    if moments.second.ndim == moments.mean.ndim:
        return jnp.maximum(moments.second - moments.mean**2, 0.0)
    squares = jnp.diagonal(moments.second, axis1=-2, axis2=-1)
    return jnp.maximum(squares - moments.mean**2, 0.0)


def _log_normal(value, mean, variance):
    return dist.Normal(mean, jnp.sqrt(variance)).log_prob(value)


def pinned(values, logs, model, data):
    """Messages that leave functions no freedom at the fit's points but a hundred-thousandth."""
    shifts, precisions = [], []
    for k, value in enumerate(values):
        chain = model.chain(k, logs[k], data.steps[k])
        variance = jnp.einsum("ri,rij,rj->r", chain.output, chain.initial, chain.output)
        precision = _PINNED / variance
        shifts.append(precision * value)
        eye = jnp.eye(value.shape[1], dtype=value.dtype)
        precisions.append(jnp.broadcast_to(precision * eye, (*value.shape, value.shape[1])))
    return Functions(tuple(shifts), tuple(precisions), logs)


class Given(AbstractApproximation):
    """Everything known, as in one draw of a sampler; functions elsewhere follow from it.

    Attributes
    ----------
    values : tuple of arrays (n_k, R_k)
        Functions at the fit's points.
    logs : tuple of dicts
    core : array (R_1 ⋯ R_K,) or None
    offset, noise_variance : scalars
        Of the standardised values.
    """

    values: tuple
    logs: tuple
    core: Any
    offset: Any
    noise_variance: Any

    def _core(self):
        if self.core is None:
            return None
        return sweep.Moments.of(self.core, 0.0)

    def _modes(self):
        return tuple(sweep.Moments.of(value, 0.0) for value in self.values)

    def moments(self, model, data):
        sites = self.plugged_in(model, data)
        return sites, jax.tree.map(jnp.zeros_like, sites)

    def sample(self, key, model, data):
        return {}

    def plugged_in(self, model, data):
        sites = {f"mode_{mode.name}": v for mode, v in zip(model.modes, self.values, strict=True)}
        if self.core is not None:
            sites["core"] = self.core.reshape(model.rank_tuple)
        if model.offset is None:
            sites["offset"] = data.center + data.unit * self.offset
        if model.noise_variance is None:
            sites["noise_variance"] = data.unit**2 * self.noise_variance
        return {**sites, **model.reported(self.logs, data)}

    def predict(self, inputs, include_noise, model, data):
        if inputs is None:
            modes, index = self._modes(), model.positions(data)
        else:
            modes = moments_at(pinned(self.values, self.logs, model, data), model, inputs)
            index = inputs.index
        mean, variance = predicted(modes, self._core(), index)
        variance = variance + self.noise_variance if include_noise else variance
        return data.center + data.unit * (self.offset + mean), data.unit**2 * variance

    def log_predictive(self, model, data):
        mean, _ = predicted(self._modes(), self._core(), model.positions(data))
        mean = self.offset + mean
        density = _log_normal(model.observed(data), mean, self.noise_variance) - jnp.log(data.unit)
        return density, density

    def judged(self, model, data):
        """What the data determine: the size of the fit and the noise."""
        mean, _ = predicted(self._modes(), self._core(), data.sketch)
        found = {"mean_square": data.unit**2 * jnp.mean(mean**2)}
        if model.noise_variance is None:
            found["noise_variance"] = data.unit**2 * self.noise_variance
        return found

    def log_evidence(self, model, data):
        """Log likelihood: nothing has been integrated out."""
        return jnp.sum(self.log_predictive(model, data)[0])


class FunctionalTuckerPosterior(Posterior):
    """Posterior of :class:`~bayeskit.models.FunctionalTucker`."""

    def _mode(self, mode):
        if self.batch is not None:
            raise TypeError("functions are for one data set; index the batch's data and fit it")
        names = [each.name for each in self.prepared.model.modes]
        if mode not in names:
            raise ValueError(f"mode must be one of {names}, got {mode!r}")
        return names.index(mode)

    def mode_function(self, mode: str, points=None) -> Prediction:
        """Functions of one mode, aligned against rotation and sign.

        The functions of a mode are determined up to mixing, with a full core, or up to order and
        sign, with a CP core. They are rotated to the principal axes of their means at the points
        of the fit (CP: ordered by the mean square there), the largest first, each with the sign
        that makes its mean there positive. Draws of chains are first rotated to the last one.

        Parameters
        ----------
        mode : str
        points : number, date, name or array of them (points,), optional
            Where; the points of the fit by default.

        Returns
        -------
        Prediction
            ``mean`` and ``variance`` of the shape (points, R).

        Raises
        ------
        TypeError
            If points are of another kind than those of the fit; for the posterior of a batch.
        ValueError
            If there is no such mode, or a point is missing or not finite.

        Notes
        -----
        Cost O((n + p) R³) for n points of the fit and p others; of chains times their draws.

        Examples
        --------
        >>> import numpy as np
        >>> import bayeskit as bk
        >>> places = np.random.default_rng(0).uniform(size=(100, 2))
        >>> values = np.sin(6 * places[:, 0]) * (1 + places[:, 1])
        >>> posterior = bk.infer(bk.models.FunctionalTucker(["x", "z"], ranks=1), (places, values))
        >>> posterior.mode_function("x", np.linspace(0, 1, 5)).mean.shape
        (5, 1)
        """
        k = self._mode(mode)
        model = self.prepared.model
        dims = self.names.dims[f"mode_{mode}"]
        known = self.names.coords[mode]
        if points is None:
            points = known
        elif np.ndim(points) == 0:
            points = pd.Series([points])
        elif not hasattr(points, "dtype"):
            points = pd.Series(list(points)) if len(points) else known[:0]
        with double_precision():
            column = tables.check_column(model.modes[k], points)
            span = tables.span_of(model.modes[k], known)
            steps, at_known, at_points = tables.union(model.modes[k], known, column, span)
            where = (k, steps, at_known)
            if self.chains is None:
                found = jax.tree.map(
                    lambda leaf: leaf[None], self.evaluate(moments_at_points, *where)
                )
            else:
                found = self.evaluate(moments_of_draws, *where, self._drawn())
        means = found.mean
        turns = turns_of(means[:, np.asarray(at_known)], mixing=model.core == "tucker")
        at_points = np.asarray(at_points)
        covariances = found.covariance()[:, at_points]
        turned = np.einsum("snj,sjr->snr", means[:, at_points], turns)
        variance = np.mean(np.einsum("sir,snij,sjr->snr", turns, covariances, turns), axis=0)
        variance = np.maximum(variance, 0.0) + turned.var(axis=0)
        return Prediction(turned.mean(axis=0), variance, dims)

    def _drawn(self):
        """Draws of the chains by site, one after the other."""
        drawn = self.evaluate_random(evaluation.chain_draws, 0)  # none of them is random
        return {name: value.reshape(-1, *value.shape[2:]) for name, value in drawn.items()}

    @property
    def effective_ranks(self) -> dict[str, int]:
        """Number of functions of every mode that matter.

        Principal parts of the fitted values, mode by mode, that have more than a thousandth of
        their mean square, where rows have independent indices of the observations' frequencies.
        Of chains the median over draws.

        Raises
        ------
        TypeError
            For the posterior of a batch.
        """
        if self.batch is not None:
            raise TypeError("effective_ranks is for one data set")
        model = self.prepared.model
        index = [np.asarray(i) for i in model.positions(self.prepared.data)]
        if self.chains is None:
            draws = {name: value[None] for name, value in self.mean.items()}
        else:
            draws = self._drawn()
        weights = [np.bincount(at) / len(at) for at in index]
        functions = [draws[f"mode_{mode.name}"] for mode in model.modes]
        grams = [
            np.einsum("snr,n,snq->srq", each, weight, each)
            for each, weight in zip(functions, weights, strict=True)
        ]
        cores = draws.get("core", [None] * len(grams[0]))
        ranks = []
        for core, *each in zip(cores, *grams, strict=True):
            parts = [principal_parts(each, core, k) for k in range(len(each))]
            ranks.append([np.sum(p > _SHARE_THAT_MATTERS * p.sum()) for p in parts])
        typical = np.median(ranks, axis=0)
        return {mode.name: int(rank) for mode, rank in zip(model.modes, typical, strict=True)}


def moments_at_points(approximation, model, data, k, steps, known):
    """Moments of the functions of mode ``k`` at more points; for ``Posterior.evaluate``."""
    functions = approximation.functions()
    inputs = tables.Inputs((steps,), (known,), (known,))
    return moments_of_mode(functions, model, k, inputs.steps[0], inputs.known[0])


def moments_of_draws(approximation, model, data, k, steps, known, sites):
    """As :func:`moments_at_points`, given every draw (draws, …) of a sampler."""

    def of_draw(sites):
        values = [sites[f"mode_{mode.name}"] for mode in model.modes]
        functions = pinned(values, model.logs_of(sites, data), model, data)
        return moments_of_mode(functions, model, k, steps, known)

    return jax.lax.map(of_draw, sites)


def principal_parts(grams, core, k):
    """Squares of the singular values of the fitted values, unfolded along mode ``k``.

    Parameters
    ----------
    grams : list of arrays (R_j, R_j)
        Second moments of every mode's functions over the rows.
    core : array (R_1, …, R_K) or None
    k : int
    """
    size, rest = len(grams[k]), [*grams[:k], *grams[k + 1 :]]
    if core is None:
        others = np.prod([np.ones((size, size)), *rest], axis=0)
    else:
        unfolded = weighted = np.moveaxis(core, k, 0)
        for j, gram in enumerate(rest, start=1):
            weighted = np.moveaxis(np.tensordot(weighted, gram, axes=(j, 0)), -1, j)
        others = weighted.reshape(size, -1) @ unfolded.reshape(size, -1).T
    values, vectors = np.linalg.eigh(grams[k])
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    return np.maximum(np.linalg.eigvalsh(root.T @ others @ root), 0.0)


def principal_axes(mean, mixing):
    """Orthogonal matrix that orders and signs functions with the given means (points, R)."""
    if mixing:
        turn = np.linalg.svd(mean, full_matrices=False)[2].T
        if turn.shape[1] < turn.shape[0]:
            turn = np.linalg.qr(np.hstack([turn, np.eye(len(turn))]))[0][:, : len(turn)]
    else:
        turn = np.eye(mean.shape[1])[:, np.argsort(-np.sum(mean**2, axis=0), kind="stable")]
    turned = mean @ turn
    sign = np.where(np.sum(turned, axis=0) < 0, -1.0, 1.0)
    return turn * sign


def turns_of(draws, mixing):
    """Orthogonal matrices (draws, R, R) that turn functions (draws, points, R) to the last ones.

    Those are turned to their principal axes.
    """
    axes = principal_axes(draws[-1], mixing)
    reference = draws[-1] @ axes
    result = np.empty((len(draws), *axes.shape))
    result[-1] = axes
    for i, draw in enumerate(draws[:-1]):
        product = draw.T @ reference
        if mixing:
            left, _, right = np.linalg.svd(product)
            turn = left @ right
        else:
            rows, columns = linear_sum_assignment(-np.abs(product))
            turn = np.zeros_like(product)
            turn[rows, columns] = np.where(product[rows, columns] < 0, -1.0, 1.0)
        result[i] = turn
    return result
