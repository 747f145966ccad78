r"""Wishart distributions of precisions, in the blocks that a structure of covariances has.

Every structure is an array (groups, blocks) of independent Wishart distributions
:math:`W(\nu, S^{-1})` with density
:math:`\propto |\Lambda|^{(\nu - p - 1)/2} e^{-\frac12 tr S\Lambda}`:

=========  ========  =======  ===  ==================================
structure  groups    blocks   p    one block is
=========  ========  =======  ===  ==================================
full       K         1        d    the precision of a component
tied       1         1        d    the precision of all of them
diagonal   K         d        1    the precision of a feature
spherical  K         1        1    the precision of all features
=========  ========  =======  ===  ==================================
"""

import dataclasses
import math

import jax.numpy as jnp
from jax.scipy.special import digamma, multigammaln

from bayeskit.linalg import safe

STRUCTURES = ("full", "diagonal", "tied", "spherical")


@dataclasses.dataclass(frozen=True)
class Blocks:
    """A structure of covariances: hashable, part of the compiled program."""

    structure: str
    components: int
    features: int

    @property
    def dense(self):
        """Whether covariances have entries beside their diagonals."""
        return self.structure in ("full", "tied")

    @property
    def groups(self):
        """Number of groups of blocks."""
        return 1 if self.structure == "tied" else self.components

    @property
    def parts(self):
        """Number of blocks in a group."""
        return self.features if self.structure == "diagonal" else 1

    @property
    def size(self):
        """Rows of a block, p."""
        return self.features if self.dense else 1

    @property
    def repeats(self):
        """How many features share the precision of a block of one."""
        return self.features if self.structure == "spherical" else 1

    @property
    def locations(self):
        """Numbers of normal vectors (of the block's size) whose precision a block is."""
        return self.components if self.structure == "tied" else self.repeats

    @property
    def shape(self):
        """Shape of the covariances as results have it."""
        features = (self.features,)
        return {
            "full": (self.components, *features, *features),
            "tied": features * 2,
            "diagonal": (self.components, *features),
            "spherical": (self.components,),
        }[self.structure]

    def gather(self, moments):
        """Sums of squares (K, d, d), or (K, d) where it is not dense, as blocks."""
        if self.structure == "full":
            return moments[:, None]
        if self.structure == "tied":
            return jnp.sum(moments, axis=0)[None, None]
        if self.structure == "spherical":
            moments = jnp.sum(moments, axis=-1, keepdims=True)
        return moments[:, :, None, None]

    def counts(self, counts):
        """How many normal vectors each block has seen, of the rows of every component (K,)."""
        if self.structure == "tied":
            return jnp.sum(counts)[None, None]
        return self.repeats * counts[:, None]

    def spread(self, matrices):
        """Blocks as matrices (groups, d, d), or variances (groups, d)."""
        if self.dense:
            return matrices[:, 0]
        flat = matrices[:, :, 0, 0]
        return jnp.broadcast_to(flat, (flat.shape[0], self.features))

    def reported(self, matrices):
        """Blocks (groups, blocks, p, p) in the shape that results have."""
        return matrices.reshape(self.shape)

    def of_components(self, values):
        """Values (groups, blocks) of blocks, summed to (K,): what they add to every component."""
        total = self.repeats * jnp.sum(values, axis=1)
        return jnp.broadcast_to(total, (self.components,))

    def in_units(self, unit):
        """What the blocks are multiplied by if features are in units ``unit`` (d,)."""
        if self.dense:
            return unit[:, None] * unit
        if self.structure == "diagonal":
            return (unit**2)[:, None, None]
        return (unit[0] ** 2)[None, None, None]


def logdet(matrices):
    """Log-determinants of blocks (…, p, p)."""
    if matrices.shape[-1] == 1:
        return jnp.log(matrices[..., 0, 0])
    diagonal = jnp.diagonal(safe.cholesky(matrices), axis1=-2, axis2=-1)
    return 2 * jnp.sum(jnp.log(diagonal), axis=-1)


def trace_of_quotient(numerator, denominator):
    """``tr(N D⁻¹)`` of blocks (…, p, p)."""
    if denominator.shape[-1] == 1:
        return (numerator / denominator)[..., 0, 0]
    lower = safe.cholesky(denominator)
    half = safe.solve_triangular(lower, jnp.broadcast_to(numerator, lower.shape))
    whole = safe.solve_triangular(lower, half, adjoint=True)
    return jnp.trace(whole, axis1=-2, axis2=-1)


def log_normaliser(freedom, scale_logdet, size):
    """``log ∫ |Λ|^((ν - p - 1)/2) exp(-½ tr SΛ) dΛ``."""
    gammas = multigammaln(0.5 * freedom, size)
    return gammas + 0.5 * freedom * (size * math.log(2.0) - scale_logdet)


def expected_logdet(freedom, scale_logdet, size):
    """``E log|Λ|``."""
    steps = jnp.arange(size, dtype=freedom.dtype)
    terms = digamma(0.5 * (freedom[..., None] - steps))
    return jnp.sum(terms, axis=-1) + size * math.log(2.0) - scale_logdet
