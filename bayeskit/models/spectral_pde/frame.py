r"""The field as a weighted sum of waves on a longer period, and low polynomials.

.. math::
    u(x) = \sum_{j \le 3} c_j P_j(2 \xi - 1)
           + \sum_{k=1}^m a_k \cos(2 \pi k \xi / p) + b_k \sin(2 \pi k \xi / p),
    \quad \xi = (x - l) / L

with independent normal weights whose variances are a spectral density at :math:`k / p`: the
equispaced quadrature of a kernel's spectral representation. The period :math:`p` is longer than
the box, so that the field need not be periodic; polynomials carry what is slower than the box.
"""

import jax.numpy as jnp
import numpy as np
from numpy.polynomial import legendre

PERIOD = 1.4  # of the box; 1.0 would make the field periodic, below 1.2 accuracy is lost
_DEGREE = 3
CONSTANT = 0  # the column that is one everywhere, in products too


def frequencies(count: int, share: float = 1.0):
    """Frequencies (m,) of the waves in cycles per box, up to a share of what points resolve."""
    highest = share * 0.5 * (count - 1)
    return jnp.arange(1, int(highest * PERIOD) + 1) / PERIOD


def nodes(count: int):
    """Gauss–Legendre points and weights on [0, 1], the weights with sum one."""
    points, weights = legendre.leggauss(count)
    return 0.5 * (points + 1.0), 0.5 * weights


def check_points(points):
    """Midpoints between collocation points, and of these and the ends."""
    edges = np.concatenate([[0.0], points, [1.0]])
    return 0.5 * (edges[1:] + edges[:-1])


def features(points, waves, order: int):
    """Columns (points, 4 + 2 m): derivatives of some order by the scaled coordinate."""
    polynomials = []
    for degree in range(_DEGREE + 1):
        series = legendre.legder([0.0] * degree + [1.0], order) if order else [0.0] * degree + [1.0]
        power = legendre.leg2poly(series)[::-1] * 2.0**order
        polynomials.append(jnp.polyval(jnp.asarray(power), 2.0 * points - 1.0))
    angular = 2.0 * jnp.pi * waves
    phase = points[:, None] * angular
    cosine, sine = jnp.cos(phase), jnp.sin(phase)
    turned = ((cosine, sine), (-sine, cosine), (-cosine, -sine), (sine, -cosine))[order % 4]
    scale = angular**order
    return jnp.concatenate([jnp.stack(polynomials, 1), turned[0] * scale, turned[1] * scale], 1)


def log_variances(log_density, log_slow):
    """Prior log variances (4 + 2 m,) of all columns, those of polynomials given as one number."""
    return jnp.concatenate([jnp.full(_DEGREE + 1, log_slow), log_density, log_density])
