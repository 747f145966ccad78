r"""Functional Bayesian Tucker decomposition.

.. math::
    y_n = \sum_{r_1 \dots r_K} W_{r_1 \dots r_K} \prod_k f^k_{r_k}(x_{nk}) + \epsilon_n, \quad
    f^k_r = c^k_r + g^k_r, \quad c^k_r \sim N(0, v^k_r), \quad g^k_r \sim GP(0, \kappa^k_r), \quad
    W \sim N(0, I), \quad \epsilon_n \sim N(0, \sigma^2)

with a core of ones on the superdiagonal for CP. S. Fang, X. Yu, Z. Wang, S. Li, M. Kirby, S. Zhe,
"Functional Bayesian Tucker decomposition for continuous-indexed tensor data", ICLR 2024.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax

from bayeskit import statespace
from bayeskit.models import priors
from bayeskit.models.base import Prepared, SupportsEM, SupportsMessages
from bayeskit.models.functional_tucker import data as tables
from bayeskit.models.functional_tucker import sweep
from bayeskit.models.functional_tucker.approximation import (
    Factorised,
    FunctionalTuckerPosterior,
)
from bayeskit.precision import as_key, double_precision, to_host
from bayeskit.statespace.kernels import Form, names_in_index_units

_STARTS = 4
_TRIAL_SWEEPS = 10
_START_PRECISION = 4.0
_LENGTHSCALE_DEVIATION = 1.5
_PERIOD_DEVIATION = 0.1
_VARIANCE_PRIOR = dist.Gamma(0.5, 0.5)
_OPTIMISER = optax.rprop(0.1, min_step_size=1e-6, max_step_size=1.0)


class Mode(eqx.Module):
    """One index column of a functional Tucker decomposition.

    Parameters
    ----------
    name : str
        Of the column.
    kernel : gpjax kernel, Constant or Independent, optional
        Prior of the functions: Matérn 1/2, 3/2, 5/2, truncated periodic, sums of these, truncated
        periodic times Matérn. Its parameters are where learning starts; lengthscale and period
        in the units of the index (days for datetimes), the variance relative to the product of
        all modes. By default Matérn 3/2 with unit variance, and a lengthscale from the points:
        their range over the square root of their number.
    categorical : bool
        Whether values of the index are names, each with a level of its own: the functions then
        are independent between categories, beside their constant.
    points : array (n,), optional
        Where :meth:`FunctionalTucker.sample_prior` simulates.

    Raises
    ------
    TypeError, ValueError
        If the kernel has no state-space form, or a parameter is not positive.

    Examples
    --------
    >>> from gpjax.kernels import Matern12
    >>> import bayeskit as bk
    >>> bk.models.Mode("time", kernel=Matern12(lengthscale=5.0))
    Mode('time', Matern12(lengthscale=5, variance=1))
    """

    name: str = eqx.field(static=True)
    categorical: bool = eqx.field(static=True)
    form: Form = eqx.field(static=True)
    values: Any
    points: Any

    def __init__(self, name, *, kernel=None, categorical=False, points=None):
        if not isinstance(name, str) or not name:
            raise TypeError(f"name must be a string, got {name!r}")
        if categorical and kernel is not None:
            raise ValueError(
                f"mode {name!r} is categorical and has a kernel: its categories have no order, "
                "give one or the other"
            )
        self.name = name
        self.categorical = bool(categorical)
        if categorical:
            self.form, self.values = statespace.form_of("kernel", statespace.Independent())
        elif kernel is None:
            self.form, self.values = Form("Matern32"), {"lengthscale": None, "variance": 1.0}
        else:
            self.form, self.values = statespace.form_of(f"kernel of mode {name!r}", kernel)
        self.points = None if points is None else tables.check_column(self, points)

    def __repr__(self):
        if self.categorical:
            return f"Mode({self.name!r}, categorical=True)"
        values = ", ".join(
            f"{name}={'from the points' if v is None else format(float(v), '.6g')}"
            for name, v in self.values.items()
        )
        return f"Mode({self.name!r}, {self.form.kind}({values}))"


class EMState(NamedTuple):
    """Messages, logarithms of kernel parameters, and the state of their ascent, mode by mode."""

    messages: sweep.Messages
    logs: tuple
    ascent: tuple


class FunctionalTucker(SupportsEM, SupportsMessages):
    """Tucker decomposition with Gaussian-process functions of continuous or categorical indices.

    Parameters
    ----------
    modes : sequence of Mode or str
        One an index column, in the order of the columns.
    ranks : int or sequence of int
        Number of functions of every mode; one number for all. Functions that the data do not
        support shrink to nothing under EM and MCMC, so that ranks are upper limits.
    core : "tucker" or "cp"
        A full core with standard normal entries, or ones on the superdiagonal (equal ranks).
    value : str, optional
        Name of the observed quantity, and of its column in a table; ``"value"`` by default.
    noise_variance : float, optional
        Known variance of the noise in squared units of the values; learned if ``None``.
    offset, scale : float, optional
        What the values are standardised by; their mean and standard deviation if ``None``. With
        numbers here, a proper noise prior and ``points`` for every mode, data can be simulated.
    kernel_priors : mapping, optional
        Priors of kernel parameters: by name (``"lengthscale"``, ``"variance"``, ``"period"``,
        ``"constant_variance"``) or by name and mode (``"lengthscale_time"``); NumPyro
        distributions in the units of the index, :class:`ScaledByData` relative to the start value,
        or ``None`` (flat). By default log-normal around the start value (deviation 1.5 in the
        logarithm; 0.1 for a period) and Gamma(1/2, 1/2) for both variances: half-normal
        amplitudes, the constant's being the relevance of the rest of the product.
    noise_prior : NumPyro distribution, ScaledByData or None
        Inverse-gamma prior of the noise variance, where it is learned.

    Raises
    ------
    TypeError, ValueError
        For names that repeat, ranks that are no positive integers, unequal ranks of a CP core, or
        priors that are not on the positive numbers.

    Notes
    -----
    Data for :func:`bayeskit.infer`: a pair ``(indices (N, K), values (N,))``, a DataFrame with
    the modes' columns and one of the values, or a DataArray with the modes as dims, whose NaN
    are missing. Sites: ``mode_<name>`` (points, R_k), ``core``, ``noise_variance``, and
    ``<parameter>_<name>`` (R_k,) for every kernel parameter and the variance of the constants.

    A sweep costs O(N K R²) for CP and O(N R^(2K-2)) for Tucker, in blocks of rows, and O(n_k R³)
    for the n_k points of every mode. Source: Fang et al. 2024, with exact second moments of the
    core, normalised messages and learned kernels.

    Examples
    --------
    >>> import numpy as np
    >>> import bayeskit as bk
    >>> generator = np.random.default_rng(0)
    >>> indices = generator.uniform(size=(200, 2))
    >>> values = np.sin(6 * indices[:, 0]) * np.cos(4 * indices[:, 1])
    >>> posterior = bk.infer(bk.models.FunctionalTucker(["x", "z"], ranks=1), (indices, values))
    >>> error = posterior.predict([[0.5, 0.5]]).mean - np.sin(3) * np.cos(2)
    >>> bool(abs(error[0]) < 0.05)
    True
    """

    modes: tuple
    rank_tuple: tuple = eqx.field(static=True)
    core: str = eqx.field(static=True)
    value: str = eqx.field(static=True)
    noise_variance: Any
    offset: Any
    scale: Any
    kernel_priors: Any
    noise_prior: Any
    estimates: Any

    def __init__(
        self,
        modes,
        *,
        ranks,
        core="tucker",
        value=None,
        noise_variance=None,
        offset=None,
        scale=None,
        kernel_priors=None,
        noise_prior=priors.DEFAULT_NOISE_PRIOR,
    ):
        if isinstance(modes, (str, Mode)) or not len(modes):
            raise TypeError(f"modes must be a sequence of Mode or names, got {modes!r}")
        modes = tuple(Mode(mode) if isinstance(mode, str) else mode for mode in modes)
        wrong = [mode for mode in modes if not isinstance(mode, Mode)]
        if wrong:
            raise TypeError(f"modes must be Mode or names, got {type(wrong[0]).__name__}")
        names = [mode.name for mode in modes]
        if len(set(names)) < len(names):
            raise ValueError(f"modes need different names, got {names}")
        self.modes = modes
        if core not in ("tucker", "cp"):
            raise ValueError(f"core must be 'tucker' or 'cp', got {core!r}")
        self.core = core
        self.rank_tuple = _check_ranks(ranks, len(modes), core)
        self.value = "value" if value is None else value
        if not isinstance(self.value, str) or self.value in names:
            raise ValueError(f"value must be a name other than the modes', got {value!r}")
        self.noise_variance = _check_number("noise_variance", noise_variance, positive=True)
        self.offset = _check_number("offset", offset)
        self.scale = _check_number("scale", scale, positive=True)
        self.kernel_priors = self._check_kernel_priors(kernel_priors)
        self.noise_prior = priors.check_prior("noise_prior", noise_prior)
        self.estimates = None

    def __repr__(self):
        noise = "learned" if self.noise_variance is None else f"{self.noise_variance:.6g}"
        given = "".join(
            f", {name} prior {priors.describe(prior)}" for name, prior in self.kernel_priors.items()
        )
        return (
            f"{type(self).__name__}([{', '.join(map(repr, self.modes))}], "
            f"ranks={self.rank_tuple}, core={self.core!r}, noise_variance {noise}, "
            f"noise_prior={priors.describe(self.noise_prior)}{given})"
        )

    def _check_kernel_priors(self, given):
        if given is None:
            return {}
        if not isinstance(given, Mapping):
            raise TypeError(f"kernel_priors must be a mapping by name, got {type(given).__name__}")
        known = {name for mode in self.modes for name in self.parameter_names(mode)}
        known |= {f"{n}_{mode.name}" for mode in self.modes for n in self.parameter_names(mode)}
        unknown = [name for name in given if name not in known]
        if unknown:
            raise ValueError(f"kernel_priors has {unknown}; the names are {sorted(known)}")
        return {name: priors.check_prior(f"kernel_priors[{name!r}]", p) for name, p in given.items()}

    @staticmethod
    def parameter_names(mode):
        """Names of a mode's kernel parameters and of the variance of its constants."""
        return [*mode.values, "constant_variance"]

    @property
    def default_method(self):
        """Expectation maximisation."""
        from bayeskit.inference.ascent import EM

        return EM()

    @property
    def posterior_class(self):
        """The family's own result, with ``mode_function`` and ``effective_ranks``."""
        return FunctionalTuckerPosterior

    @property
    def m_steps(self):
        """The only M-step: ascent on the bound of each mode."""
        return ("ascent",)

    def prepare(self, data, *, batch=False):
        """See :class:`~bayeskit.models.base.AbstractModel`."""
        observations, labels, groups, _ = tables.prepare(self, data, batch)
        dtype = observations.unit.dtype
        prepared = eqx.tree_at(
            lambda m: (m.estimates, m.noise_variance, m.offset, m.scale, m.modes),
            self,
            (
                None,
                None if self.noise_variance is None else 0.0,
                None,
                None,
                tuple(eqx.tree_at(lambda m: m.points, mode, None, is_leaf=_is_none) for mode in self.modes),
            ),
            is_leaf=lambda leaf: leaf is None or leaf is self.modes,
        )
        prepared = jax.tree.map(
            lambda leaf: jnp.asarray(leaf, dtype) if isinstance(leaf, float) else leaf, prepared
        )
        return Prepared(prepared, observations, labels, groups)

    def with_estimates(self, estimates):
        """The model with ``estimates``, a dict by site, in place of earlier ones."""
        return eqx.tree_at(lambda m: m.estimates, self, estimates, is_leaf=_is_none)

    # Kernels: parameters are logarithms, lengthscales and periods divided by the span of the mode.

    def _units(self, data, k):
        in_units = names_in_index_units(self.modes[k].form)
        one = jnp.ones_like(data.spans[k])
        return {
            name: data.spans[k] if name in in_units else one
            for name in self.parameter_names(self.modes[k])
        }

    def _start_values(self, data, k):
        units = self._units(data, k)
        values = {
            name: data.starts[k] if value is None else value / units[name]
            for name, value in self.modes[k].values.items()
        }
        return {**values, "constant_variance": jnp.ones_like(data.unit)}

    def start_logs(self, data):
        """Logarithms of the start values of all kernel parameters, a dict by name for each mode."""
        return tuple(
            {
                name: jnp.full(rank, jnp.log(value), data.unit.dtype)
                for name, value in self._start_values(data, k).items()
            }
            for k, rank in enumerate(self.rank_tuple)
        )

    def reported(self, logs, data):
        """Kernel parameters in the user's units by site."""
        return {
            f"{name}_{mode.name}": jnp.exp(value) * self._units(data, k)[name]
            for k, mode in enumerate(self.modes)
            for name, value in logs[k].items()
        }

    def chain(self, k, logs, steps):
        """Prior of the functions of mode ``k`` as a chain."""
        values = {name: jnp.exp(value) for name, value in logs.items()}
        constants = values.pop("constant_variance")
        return statespace.chain_of(self.modes[k].form, values, constants, steps)

    def _kernel_prior(self, name, k):
        given = self.kernel_priors.get(f"{name}_{self.modes[k].name}", ())
        return self.kernel_priors.get(name, ()) if given == () else given

    def _log_prior(self, data, k, logs):
        """Log density of the logarithms of a mode's kernel parameters."""
        total = jnp.zeros((), data.unit.dtype)
        starts, units = self._start_values(data, k), self._units(data, k)
        for name, value in logs.items():
            total = total + jnp.sum(
                log_density(self._kernel_prior(name, k), name, value, starts[name], units[name])
            )
        return total

    # Sweeps

    def observed(self, data):
        """Standardised values (N,)."""
        return data.rows.values.reshape(-1)[: self._count(data)]

    def positions(self, data):
        """Positions (N,) among the points of every mode."""
        return tuple(index.reshape(-1)[: self._count(data)] for index in data.rows.index)

    @staticmethod
    def _count(data):
        return data.count.shape[0]

    def _noise_prior(self, data):
        prior = priors.inverse_gamma(self.noise_prior, data.unit**2, data.unit.dtype)
        return sweep.NoisePrior(*(p.astype(data.unit.dtype) for p in prior))
