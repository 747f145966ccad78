"""Double precision for the whole folder, and random matrices with a known condition number."""

from typing import NamedTuple

import jax
import numpy as np
import pytest


@pytest.fixture(autouse=True, scope="module")
def _double_precision():
    with jax.enable_x64(True):
        yield


class Matrices(NamedTuple):
    """Random matrices of one generator, real or complex."""

    generator: np.random.Generator
    complex: bool

    def normal(self, *shape):
        real = self.generator.normal(size=shape)
        return real + 1j * self.generator.normal(size=shape) if self.complex else real

    def hermitian(self, size):
        matrix = self.normal(size, size)
        return (matrix + matrix.conj().T) / 2

    def general(self, rows, columns, condition):
        """Singular values from 1 down to 1 / condition."""
        u, _, vh = np.linalg.svd(self.normal(rows, columns), full_matrices=False)
        return (u * np.geomspace(1, 1 / condition, min(rows, columns))) @ vh

    def definite(self, size, condition):
        """Hermitian with eigenvalues from 1 down to 1 / condition."""
        q, _ = np.linalg.qr(self.normal(size, size))
        return (q * np.geomspace(1, 1 / condition, size)) @ q.conj().T


@pytest.fixture(scope="session")
def matrices():
    return lambda seed, complex=False: Matrices(np.random.default_rng(seed), complex)
