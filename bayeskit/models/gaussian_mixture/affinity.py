"""Affinities of rows, as matrices or as what they are computed from."""

from typing import Any, NamedTuple

import jax.numpy as jnp


class RowAffinity(NamedTuple):
    """Affinities ``c - |x_i - x_j|² / 4`` of whitened rows, which need not be formed.

    Attributes
    ----------
    constant : array (G,)
    white : array (G, n, d)
    """

    constant: Any
    white: Any

    @property
    def groups(self):
        """Number of matrices."""
        return self.white.shape[0]

    @property
    def size(self):
        """Number of rows, n."""
        return self.white.shape[1]

    def times(self, columns):
        """Products with columns (G, n, r): O(G n d r)."""
        white = self.white
        squares = jnp.sum(white**2, axis=-1)
        sums = jnp.sum(columns, axis=1)
        inner = white @ (jnp.swapaxes(white, 1, 2) @ columns)
        crossed = squares[:, :, None] * sums[:, None]
        crossed = crossed + jnp.einsum("gn,gnr->gr", squares, columns)[:, None]
        return self.constant[:, None, None] * sums[:, None] - 0.25 * crossed + 0.5 * inner

    def dense(self):
        """The matrices (G, n, n)."""
        squares = jnp.sum(self.white**2, axis=-1)
        inner = jnp.einsum("gid,gjd->gij", self.white, self.white)
        distances = squares[:, :, None] + squares[:, None, :] - 2.0 * inner
        return self.constant[:, None, None] - 0.25 * jnp.maximum(distances, 0.0)

    def standard(self):
        """The same about zero and in units of its spread; what was subtracted, and the unit."""
        shift = jnp.mean(self.constant)
        unit = _positive(jnp.mean(jnp.sum(self.white**2, axis=-1)))
        return RowAffinity((self.constant - shift) / unit, self.white / jnp.sqrt(unit)), shift, unit


class MatrixAffinity(NamedTuple):
    """Symmetric matrices (G, n, n)."""

    matrices: Any

    @property
    def groups(self):
        """Number of matrices."""
        return self.matrices.shape[0]

    @property
    def size(self):
        """Number of rows, n."""
        return self.matrices.shape[1]

    def times(self, columns):
        """Products with columns (G, n, r): O(G n² r)."""
        return self.matrices @ columns

    def dense(self):
        """The matrices themselves."""
        return self.matrices

    def standard(self):
        """The same about zero and in units of its spread; what was subtracted, and the unit."""
        shift = jnp.mean(self.matrices)
        centered = self.matrices - shift
        unit = _positive(jnp.mean(jnp.abs(centered)))
        return MatrixAffinity(centered / unit), shift, unit


def _positive(unit):
    return jnp.where(unit > 0, unit, 1.0)
