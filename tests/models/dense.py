"""Dense twins of the structured computations: NumPy, Cholesky, nothing shared with the package."""

import functools

import numpy as np


def kron(matrices):
    return functools.reduce(np.kron, matrices)


class DenseModel:
    """``y = H x + n`` with ``x ~ N(0, diag(scales))``, everything formed."""

    def __init__(self, dictionary, scales, noise_variance, measurements):
        self.dictionary, self.scales, self.noise_variance = dictionary, scales, noise_variance
        self.measurements = measurements
        self.complex = np.iscomplexobj(measurements)
        self.covariance = (dictionary * scales) @ dictionary.conj().T
        self.covariance = self.covariance + noise_variance * np.eye(len(measurements))
        self.root = np.linalg.cholesky(self.covariance)
        self.whitened = np.linalg.solve(self.root, dictionary)
        self.data = np.linalg.solve(self.root, measurements)

    @property
    def mean(self):
        return self.scales * (self.whitened.conj().T @ self.data)

    @property
    def posterior_covariance(self):
        prior = np.diag(self.scales)
        gain = self.whitened * self.scales
        return prior - gain.conj().T @ gain

    @property
    def log_evidence(self):
        determinant = 2 * np.log(np.diag(self.root).real).sum()
        energy = np.vdot(self.data, self.data).real
        count = len(self.measurements)
        if self.complex:
            return -(count * np.log(np.pi) + determinant + energy)
        return -0.5 * (count * np.log(2 * np.pi) + determinant + energy)

    def log_leave_one_out(self):
        """Brute force: every measurement predicted from a model without it."""
        values = []
        for left_out in range(len(self.measurements)):
            rest = np.arange(len(self.measurements)) != left_out
            part = DenseModel(
                self.dictionary[rest], self.scales, self.noise_variance, self.measurements[rest]
            )
            row = self.dictionary[left_out]
            mean = row @ part.mean
            variance = (row @ part.posterior_covariance @ row.conj()).real + self.noise_variance
            power = abs(self.measurements[left_out] - mean) ** 2 / variance
            if self.complex:
                values.append(-(np.log(np.pi * variance) + power))
            else:
                values.append(-0.5 * (np.log(2 * np.pi * variance) + power))
        return np.array(values)


def random_problem(seed, rows, columns, complex_data=False, decades=7, noise_variance=1e-2):
    """Dictionaries, scales over some decades, noise variance and measurements drawn from them."""
    generator = np.random.default_rng(seed)

    def normal(*shape):
        real = generator.standard_normal(shape)
        if not complex_data:
            return real
        return (real + 1j * generator.standard_normal(shape)) / np.sqrt(2)

    dictionaries = [normal(m, n) for m, n in zip(rows, columns, strict=True)]
    scales = [10 ** generator.uniform(-decades / len(rows), 0, n) for n in columns]
    total = kron(scales)
    clean = kron(dictionaries) @ (np.sqrt(total) * normal(total.size))
    measurements = clean + np.sqrt(noise_variance) * normal(clean.size)
    return dictionaries, scales, noise_variance, measurements
