"""Posteriors of Gaussian mixtures."""

import abc
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from bayeskit.inference.base import as_leaves
from bayeskit.models.gaussian_mixture import conjugate, sampling, sketches
from bayeskit.models.gaussian_mixture.blocks import logdet
from bayeskit.models.gaussian_mixture.lifted import Certificate
from bayeskit.models.gaussian_mixture.prior import NormalInverseWishart
from bayeskit.models.tables import log_units
from bayeskit.posterior import Posterior
from bayeskit.precision import double_precision, gathered
from bayeskit.results import AbstractApproximation, Prediction, map_in_blocks

_ROW_BLOCK = 64
_MOST_PAIRED = 20_000


class MixturePrediction(Prediction):
    """A prediction of rows, with what is known of the components they belong to.

    Attributes
    ----------
    mean, variance, dims, coords
        Of the rows' values, as for :class:`~bayeskit.Prediction`: observed values are what they
        are, with variance zero; missing ones have their distribution given those observed.
    log_density : numpy.ndarray (rows,)
        Logarithm of the posterior predictive density of the observed values.
    probabilities : numpy.ndarray (rows, K)
        Of the components, parameters integrated out.
    """

    log_density: Any
    probabilities: Any

    def __new__(cls, *fields, log_density, probabilities):
        """A prediction with two more fields."""
        made = super().__new__(cls, *fields)
        made.log_density, made.probabilities = log_density, probabilities
        return made

    def __getnewargs_ex__(self):
        """What copies and pickles are made of."""
        return tuple(self), vars(self)

    def _replace(self, **changed):
        """As for named tuples, of all fields."""
        more = {name: changed.pop(name, value) for name, value in vars(self).items()}
        fields = [changed.pop(name, getattr(self, name)) for name in self._fields]
        if changed:
            raise ValueError(f"Got unexpected field names: {list(changed)}")
        return type(self)(*fields, **more)

    @property
    def labels(self):
        """The most probable component of every row (rows,)."""
        return np.argmax(self.probabilities, axis=-1)


def mixed_moments(log_share, means, variances):
    """Mean and variance of a mixture: log shares (rows, K), moments (rows, K, d)."""
    share = jnp.exp(log_share - logsumexp(log_share, axis=-1, keepdims=True))[..., None]
    mean = jnp.sum(share * means, axis=1)
    each = jnp.where(share > 0, variances + (means - mean[:, None]) ** 2, 0.0)
    spread = jnp.sum(share * each, axis=1)
    return mean, spread


class _Mixture(AbstractApproximation):
    """What both forms of posterior compute from densities of rows under components."""

    @abc.abstractmethod
    def student(self, model, data, values, observed) -> tuple[Any, Any, Any, Any]:
        """Log joint densities (rows, K), conditional means and variances of missing values.

        Of the variance, the part that the components' locations have comes last.
        """

    def classify(self, model, data, values, observed):
        """Log density of the observed values (rows,), and log probabilities (rows, K)."""
        joint = self.student(model, data, values, observed)[0]
        density = logsumexp(joint, axis=-1)
        return density - log_units(data, values, observed), joint - density[:, None]

    def predict(self, inputs, include_noise, model, data):
        shape = (data.count, data.unit.size)

        def completed(values, observed):
            joint, means, variances, of_locations = self.student(model, data, values, observed)
            kept = variances if include_noise else of_locations
            mean, variance = mixed_moments(joint, means, kept)
            return data.center + data.unit * mean, data.unit**2 * variance

        if inputs is None:
            nothing = jnp.zeros((1, data.unit.size), data.unit.dtype)
            return tuple(jnp.broadcast_to(each, shape) for each in completed(nothing, nothing))
        if inputs.observed is None:
            return inputs.values, jnp.zeros_like(inputs.values)

        def one(row):
            values, observed = jax.tree.map(lambda leaf: leaf[None], row).standardised(data)
            mean, variance = completed(values, observed)
            return mean[0], variance[0]

        mean, variance = map_in_blocks(one, inputs, _ROW_BLOCK)
        known = inputs.observed > 0
        return jnp.where(known, inputs.values, mean), jnp.where(known, 0.0, variance)


class Conjugate(_Mixture):
    """Dirichlet weights, normal–inverse-Wishart components, given responsibilities."""

    components: conjugate.MixtureComponents

    def moments(self, model, data):
        blocks, parts = model.blocks(data.unit.size), self.components
        total = jnp.sum(parts.concentration)
        weights = parts.concentration / total
        expected = _over_degrees(parts.scale, (parts.freedom - blocks.size - 1)[..., None, None])
        units = blocks.in_units(data.unit)
        each = blocks.spread(expected)
        diagonal = jnp.diagonal(each, axis1=-2, axis2=-1) if blocks.dense else each
        location = data.unit**2 * diagonal / parts.strength[:, None]
        mean = {
            "weights": weights,
            "locations": data.center + data.unit * parts.location,
            "covariances": blocks.reported(expected * units),
        }
        variance = {
            "weights": weights * (1 - weights) / (total + 1),
            "locations": location,
            "covariances": blocks.reported(
                _wishart_variance(parts.scale, parts.freedom, blocks.size) * units**2
            ),
        }
        return mean, variance

    def sample(self, key, model, data):
        return in_units(self.drawn(key, model, data), model, data)

    def drawn(self, key, model, data):
        """Weights, locations, covariances in blocks: of standardised features."""
        return sampling.draw_components(key, model.blocks(data.unit.size), self.components)

    def plugged_in(self, model, data):
        return {}

    def student(self, model, data, values, observed):
        blocks, parts = model.blocks(data.unit.size), self.components
        spread = blocks.spread(parts.scale)
        distances = conjugate.measure(blocks, values, observed, parts.location, spread)
        joint = conjugate.log_mean_weights(parts) + conjugate.log_student(blocks, parts, distances)
        means = parts.location + distances.deviations
        strength = parts.strength[:, None]
        ratio = strength / (strength + 1)
        freedom = jnp.broadcast_to(parts.freedom, (blocks.components, parts.freedom.shape[1]))
        degrees = freedom - blocks.size + 1 + distances.sizes
        # Conditionals of a Student distribution are wider where the row lies further out.
        tail = _over_degrees((1.0 + ratio * distances.squares) / ratio, degrees - 2.0)
        residual = distances.residual
        if residual is None:
            variances = jnp.zeros_like(means)
        else:
            diagonal = jnp.diagonal(residual, axis1=-2, axis2=-1) if blocks.dense else residual
            variances = jnp.where(diagonal > 0, tail * diagonal, 0.0)
        return joint, means, variances, variances / (strength + 1)

    def log_predictive(self, model, data):
        blocks, parts = model.blocks(data.unit.size), self.components
        spread = blocks.spread(parts.scale)
        weights, total = parts.concentration, jnp.sum(parts.concentration)

        def block(part):
            values, observed, valid = part
            distances = conjugate.measure(blocks, values, observed, parts.location, spread)
            inside = conjugate.log_mean_weights(parts) + conjugate.log_student(
                blocks, parts, distances
            )
            share = jnp.exp(inside - logsumexp(inside, axis=-1, keepdims=True)) * valid[:, None]
            rest = jnp.log(jnp.maximum(weights - share, jnp.finfo(share.dtype).tiny))
            rest = jnp.where(weights > 0, rest, -jnp.inf) - jnp.log(
                jnp.maximum(total - 1, jnp.finfo(share.dtype).tiny)
            )
            left = rest + conjugate.log_student(blocks, parts, distances, share)
            units = log_units(data, values, observed)
            return logsumexp(left, axis=-1) - units, logsumexp(inside, axis=-1) - units

        rows = data.rows
        found = jax.lax.map(block, (rows.values, rows.observed, rows.weights))
        return tuple(data.flat(each) for each in found)


class Certified(Conjugate):
    """The same, found from a clustering by semidefinite programs.

    Attributes
    ----------
    rows : integer array (m,)
        The rows of the program.
    share : array (m, K)
        Their clustering, of zeros and ones.
    """

    rows: Any
    share: Any


def _over_degrees(moment, degrees):
    """A moment over the degrees of freedom beyond what it needs; infinite where there are none."""
    beyond = jnp.where(moment == 0, 0.0, jnp.sign(moment) * jnp.inf)
    return jnp.where(degrees > 0, moment / jnp.where(degrees > 0, degrees, 1.0), beyond)


def _wishart_variance(scale, freedom, size):
    """Variances of the entries of inverse-Wishart blocks; infinite where there are none."""
    rest = freedom - size
    diagonal = jnp.diagonal(scale, axis1=-2, axis2=-1)
    products = diagonal[..., :, None] * diagonal[..., None, :]
    rest = rest[..., None, None]
    divisor = rest * (rest - 1) ** 2 * (rest - 3)
    variance = ((rest + 1) * scale**2 + (rest - 1) * products) / jnp.where(rest > 3, divisor, 1.0)
    return jnp.where(rest > 3, variance, jnp.inf)


def in_units(drawn, model, data):
    """Sites in the user's units from weights, locations and covariances in blocks."""
    weights, location, covariance = drawn
    blocks = model.blocks(data.unit.size)
    return {
        "weights": weights,
        "locations": data.center + data.unit * location,
        "covariances": blocks.reported(covariance * blocks.in_units(data.unit)),
    }


class KnownComponents(_Mixture):
    """Everything known, as in one draw of a sampler.

    Attributes
    ----------
    weights, location : arrays (K,) and (K, d)
    covariance : array (groups, blocks, p, p)
        Of the standardised features.
    """

    weights: Any
    location: Any
    covariance: Any

    def moments(self, model, data):
        sites = self.plugged_in(model, data)
        return sites, jax.tree.map(jnp.zeros_like, sites)

    def sample(self, key, model, data):
        return {}

    def plugged_in(self, model, data):
        return in_units((self.weights, self.location, self.covariance), model, data)

    def student(self, model, data, values, observed):
        blocks = model.blocks(data.unit.size)
        spread = blocks.spread(self.covariance)
        distances = conjugate.measure(blocks, values, observed, self.location, spread)
        joint = conjugate.log_or_never(self.weights) + conjugate.log_gaussian(distances)
        means = self.location + distances.deviations
        residual = distances.residual
        if residual is None:
            variances = jnp.zeros_like(means)
        else:
            variances = jnp.diagonal(residual, axis1=-2, axis2=-1) if blocks.dense else residual
            variances = jnp.broadcast_to(variances, means.shape)
        return joint, means, variances, jnp.zeros_like(means)

    def log_predictive(self, model, data):
        def block(part):
            values, observed, _ = part
            density, _ = self.classify(model, data, values, observed)
            return density

        rows = data.rows
        density = data.flat(jax.lax.map(block, (rows.values, rows.observed, rows.weights)))
        return density, density

    def judged(self, model, data):
        """Aligned weights and locations, and log-determinants of the standardised covariances."""
        sites = self.plugged_in(model, data)
        determinants = jnp.sum(logdet(self.covariance), axis=-1)
        found = {"locations": sites["locations"], "log_determinants": determinants}
        # The weight of a single component never moves, and has no R-hat.
        return {**found, "weights": sites["weights"]} if self.weights.size > 1 else found

    def log_evidence(self, model, data):
        """Log likelihood, labels summed out."""
        return jnp.sum(self.log_predictive(model, data)[0])


def responsibilities_of(approximation, model, data, inputs):
    """Log density of rows (rows,) and probabilities of the components (rows, K).

    For ``Posterior.evaluate``; rows of the data where ``inputs`` is ``None``.
    """

    def of(approximation):
        if inputs is None:
            parts = (data.rows.values, data.rows.observed)
            found = jax.lax.map(lambda part: approximation.classify(model, data, *part), parts)
            return jax.tree.map(data.flat, found)

        def one(row):
            placed = jax.tree.map(lambda leaf: leaf[None], row).standardised(data)
            return jax.tree.map(lambda leaf: leaf[0], approximation.classify(model, data, *placed))

        return map_in_blocks(one, inputs, _ROW_BLOCK)

    if approximation.chains is None:
        density, shares = of(approximation)
        return density, jnp.exp(shares)
    density, shares = approximation.map_conditionals(of, model, data)
    count = math.prod(approximation.chains)
    total = logsumexp(density, axis=(0, 1)) - math.log(count)
    # A new row changes what is known of the parameters; those of the data have done so already.
    weights = 1.0 if inputs is None else jnp.exp(density - total)[..., None]
    return total, jnp.mean(weights * jnp.exp(shares), axis=(0, 1))


def together(approximation, model, data):
    """Probabilities that rows belong to the same component (n, n), for ``Posterior.evaluate``."""

    def of(approximation):
        parts = (data.rows.values, data.rows.observed)
        found = jax.lax.map(lambda part: approximation.classify(model, data, *part)[1], parts)
        share = jnp.exp(data.flat(found))
        return share @ share.T

    if approximation.chains is None:
        matrix = of(approximation)
    else:
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), approximation.sites)
        zeros = jnp.zeros((data.count, data.count), data.unit.dtype)
        total, _ = jax.lax.scan(
            lambda total, sites: (total + of(model.mcmc_conditional(data, sites)), None),
            zeros,
            flat,
        )
        matrix = total / math.prod(approximation.chains)
    return jnp.fill_diagonal(matrix, 1.0, inplace=False)


def prior_of(approximation, model, data):
    """The prior that was used, in the user's units, for ``Posterior.evaluate``."""
    blocks, prior = model.blocks(data.unit.size), data.prior
    scale = prior.scale * blocks.in_units(data.unit)
    freedom = prior.freedom
    if blocks.dense:
        matrix = scale[0, 0]
    else:
        matrix = jnp.diag(jnp.broadcast_to(scale[0, :, 0, 0], (blocks.features,)))
        freedom = freedom + blocks.features - 1
    return data.center + data.unit * prior.location, prior.strength, matrix, freedom


class GaussianMixturePosterior(Posterior):
    """Posterior of :class:`~bayeskit.models.GaussianMixture`."""

    _certificate: Certificate | None = None

    def _one(self, what):
        if self.batch is not None:
            raise TypeError(f"{what} is for one data set; index the batch's data and fit it alone")

    @property
    def labels(self) -> np.ndarray:
        """The most probable component of every row (n,)."""
        return np.argmax(self.responsibilities(), axis=-1)

    def responsibilities(self, X=None) -> np.ndarray:
        """Probabilities of the components for every row, parameters integrated out.

        Parameters
        ----------
        X : array (rows, d), DataFrame or DataArray, optional
            NaN where a value is missing; the rows of the data by default.

        Returns
        -------
        numpy.ndarray (rows, K)

        Raises
        ------
        TypeError, ValueError
            If ``X`` is not of real numbers, or has another number of columns than the data.

        Notes
        -----
        Of posteriors in closed form they are proportional to the mean weights times the components'
        predictive (Student) densities; under ``MCMC`` they are averages over the draws, which are
        aligned against label switching.
        """
        return self._classified(X)[1]

    def _classified(self, X):
        with double_precision():
            inputs = None if X is None else self.target(X).inputs
            return gathered(self.evaluate(responsibilities_of, inputs))

    def predict(self, inputs=None, *, include_noise: bool = False) -> Prediction:
        """Rows completed, their components and densities; a new row where ``inputs`` is ``None``.

        Parameters
        ----------
        inputs : array (rows, d), DataFrame or DataArray, optional
            NaN where a value is missing.
        include_noise : bool
            Whether variances of missing values include what the components' covariances leave open.

        Returns
        -------
        MixturePrediction
            Mean and variance of the rows' values given those observed, ``log_density``,
            ``probabilities`` and ``labels``. Without ``inputs``, a plain
            :class:`~bayeskit.Prediction` of new rows of which nothing is known, of the data's
            shape.

        Raises
        ------
        TypeError, ValueError
            If ``inputs`` are not of real numbers, or have another number of columns than the data.
        """
        prediction = super().predict(inputs, include_noise=include_noise)
        if inputs is None:
            return prediction
        density, probabilities = self._classified(inputs)
        return MixturePrediction(*prediction, log_density=density, probabilities=probabilities)

    def coclustering(self) -> np.ndarray:
        """Probabilities that two rows belong to the same component.

        Returns
        -------
        numpy.ndarray (n, n)
            Symmetric, one on the diagonal; free of labels, hence of their switching.

        Raises
        ------
        TypeError
            For the posterior of a batch.
        ValueError
            If there are more than 20 000 rows, whose matrix would take more than 3 GB.

        Notes
        -----
        Cost O(n² K), for every draw under ``MCMC``.
        """
        self._one("coclustering")
        count = self.prepared.data.count
        if count > _MOST_PAIRED:
            raise ValueError(
                f"coclustering is a matrix of {count} by {count} numbers ({8e-9 * count**2:.0f} "
                f"GB); at most {_MOST_PAIRED} rows are taken: multiply the responsibilities of "
                "those that matter"
            )
        return gathered(self.evaluate(together))

    @property
    def prior(self) -> NormalInverseWishart | None:
        """The prior of the components that was used, as chosen by the data where it was.

        ``None`` where it is flat.
        """
        self._one("prior")
        if not self.prepared.data.proper:
            return None
        location, strength, scale, freedom = self.evaluate(prior_of)
        return NormalInverseWishart(location, float(strength), scale, float(freedom))

    @property
    def certificate(self) -> Certificate:
        """What the clustering of ``SemidefiniteProgram`` misses of its program, at most.

        Of the program with the covariances of the best clustering, before ``finish``; on the rows
        of the best sketch where there are more than ``sketch_size``. A better partition that the
        program is rounded to takes the clustering's place.

        Raises
        ------
        TypeError
            For the posterior of another method, or of a batch.

        Notes
        -----
        Computed when it is first asked for: up to ``solver_iterations`` steps of O(K m³) for m rows
        of the program, fewer where the gap closes. It holds whatever the solver did. Beyond 1000
        rows no such steps are made, and the bound is looser; beyond 2000 it leaves non-negativity
        out, at O(m K d²), and is far off.
        """
        self._one("certificate")
        if not isinstance(self.approximation, Certified):
            raise TypeError(f"only SemidefiniteProgram certifies, not {type(self.method).__name__}")
        if self._certificate is None:
            found = self.evaluate(sketches.certified, as_leaves(self.method))
            self._certificate = Certificate(*(float(value) for value in found))
        return self._certificate
