"""A real image, and its Kronecker compressive imaging."""

import gzip
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.fft
from jaxtyping import Float

from bayeskit._random import numpy_generator
from bayeskit.datasets.sparse import check_snr, gaussian, multiply_modes, noise_variance_of
from bayeskit.validation import REAL, check_integer, check_positive, double_array


def mri_slice() -> Float[np.ndarray, "256 256"]:
    """Load a real magnetic resonance image of a head.

    It is the sample ``s1045.ima.gz`` that matplotlib installs with itself for its examples (16-bit
    integers; divided by the largest, 55040, here). It is distributed under matplotlib's licence;
    matplotlib states no other source. Nothing is downloaded.

    Returns
    -------
    float64 array (256, 256)
        Intensities from 0 to 1.

    Raises
    ------
    FileNotFoundError
        If the installed matplotlib comes without its sample data.

    Examples
    --------
    >>> image = mri_slice()
    >>> image.shape, float(image.min()), float(image.max())
    ((256, 256), 0.0, 1.0)
    """
    from matplotlib.cbook import get_sample_data  # slow to import, and needed by nobody else here

    try:
        with gzip.open(get_sample_data("s1045.ima.gz", asfileobj=False)) as file:
            raw = file.read()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            "matplotlib's sample data are not installed (some distributions leave them out): "
            "install matplotlib from PyPI"
        ) from error
    pixels = np.frombuffer(raw, dtype="<u2").reshape(256, 256).astype(np.float64)
    return pixels / pixels.max()


@dataclass(frozen=True)
class CompressiveImage:
    """Compressive measurements of an image, separable over its two axes.

    ``y = P_1 image P_2ᵀ + noise`` with ``image = B_1 x B_2ᵀ``, so ``y = (P_1 B_1 ⊗ P_2 B_2) x +
    noise``: B_i is the orthonormal inverse discrete cosine transform, P_i a random sampling matrix.

    Attributes
    ----------
    dictionaries : tuple of two arrays (M, size)
        P_i B_i.
    measurements : array (M, M)
    noise_variance : float
    image : array (size, size)
        The truth.
    coefficients : array (size, size)
        Its cosine transform.
    basis : tuple of two arrays (size, size)
        B_i: coefficients, or draws of them, times these are pixels.
    """

    dictionaries: tuple[Float[np.ndarray, "rows size"], ...] = field(repr=False)
    measurements: Float[np.ndarray, "rows rows"] = field(repr=False)
    noise_variance: float
    image: Float[np.ndarray, "size size"] = field(repr=False)
    coefficients: Float[np.ndarray, "size size"] = field(repr=False)
    basis: tuple[Float[np.ndarray, "size size"], ...] = field(repr=False)

    def reconstruct(self, coefficients: Any) -> Float[np.ndarray, "..."]:
        """Pixels of given coefficients.

        Parameters
        ----------
        coefficients : array (*batch, size, size)
            An estimate, or draws from a posterior: the standard deviation of a pixel is that of
            reconstructed draws, since coefficients are correlated in the posterior.

        Returns
        -------
        array (*batch, size, size)

        Raises
        ------
        TypeError
            If they are no real numbers.
        ValueError
            If the last two axes are not those of the image, or an entry is masked or not finite.
        """
        coefficients = double_array("coefficients", coefficients, REAL)
        if coefficients.shape[-2:] != self.image.shape:
            raise ValueError(
                f"coefficients: got shape {coefficients.shape}; expected (..., "
                f"{self.image.shape[0]}, {self.image.shape[1]})"
            )
        return multiply_modes(self.basis, coefficients)


def compressive_image(
    key: Any,
    *,
    image: Any = None,
    size: int = 128,
    fraction: float = 0.25,
    snr_db: float = 30.0,
) -> CompressiveImage:
    """Sample an image with a random Gaussian matrix along each axis.

    Parameters
    ----------
    key : int or JAX key
    image : array (n, n), optional
        Square, n a multiple of ``size``; reduced to ``size`` by block means. Default: `mri_slice`.
    size : int
        Pixels along each axis.
    fraction : float
        Measurements as a fraction of the pixels, in (0, 1]: each axis gets
        ``round(sqrt(fraction) * size)`` rows, at least one.
    snr_db : float
        Mean square of the measurements over the noise variance, in decibels; ``inf`` for no noise.

    Returns
    -------
    CompressiveImage
        float64.

    Raises
    ------
    TypeError
        If the image is not of real numbers, ``size`` is no integer, or ``fraction`` or ``snr_db``
        is no number.
    ValueError
        If the image is not square, not finite, masked or not divisible into ``size`` blocks, a
        number is out of its range, or the noise variance of ``snr_db`` is not positive and finite.

    Examples
    --------
    >>> problem = compressive_image(0, size=32)
    >>> problem.measurements.shape, problem.image.shape
    ((16, 16), (32, 32))
    >>> bool(np.allclose(problem.reconstruct(problem.coefficients), problem.image))
    True
    """
    fraction, snr_db = check_positive("fraction", fraction), check_snr(snr_db)
    if fraction > 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}")
    size = check_integer("size", size, 1)
    image = _block_means(mri_slice() if image is None else double_array("image", image, REAL), size)
    rows = max(1, round(math.sqrt(fraction) * size))
    rng = numpy_generator(key)
    basis = np.asarray(scipy.fft.idct(np.eye(size), axis=0, norm="ortho"))
    sampling = [gaussian(rng, (rows, size), complex=False) / math.sqrt(rows) for _ in range(2)]
    clean = multiply_modes(sampling, image)
    noise_variance = noise_variance_of(clean, snr_db)
    noise = gaussian(rng, clean.shape, complex=False)
    return CompressiveImage(
        dictionaries=tuple(matrix @ basis for matrix in sampling),
        measurements=clean + math.sqrt(noise_variance) * noise,
        noise_variance=noise_variance,
        image=image,
        coefficients=multiply_modes([basis.T, basis.T], image),
        basis=(basis, basis),
    )


def _block_means(image, size):
    if image.ndim != 2 or image.shape[0] != image.shape[1]:
        raise ValueError(f"image: got shape {image.shape}; expected a square array (n, n)")
    if image.shape[0] == 0 or image.shape[0] % size:
        raise ValueError(
            f"size: got {size}; expected a divisor of the image's {image.shape[0]} pixels"
        )
    block = image.shape[0] // size
    return image.reshape(size, block, size, block).mean(axis=(1, 3))
