"""Handwritten digits."""

from dataclasses import dataclass
from importlib import resources

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class Digits:
    """Images of handwritten digits.

    Attributes
    ----------
    images : array (1797, 8, 8)
        Whole numbers of ink from 0 to 16.
    labels : integer array (1797,)
        0 to 9.
    """

    images: Float[np.ndarray, "n 8 8"]
    labels: Int[np.ndarray, "n"]


def digits() -> Digits:
    """Load 1797 images of handwritten digits, 8 × 8 pixels.

    Source: UCI Machine Learning Repository, "Optical Recognition of Handwritten Digits" (E.
    Alpaydin and C. Kaynak, 1998), the part that its authors tested on, CC BY 4.0, as scikit-learn
    has it. The file is part of the package.

    Returns
    -------
    Digits
        float64; rows for a model of tables are ``digits().images.reshape(-1, 64)``.

    Examples
    --------
    >>> digits().images.shape, digits().labels[:5].tolist()
    ((1797, 8, 8), [0, 1, 2, 3, 4])
    """
    place = resources.files("bayeskit.datasets") / "files" / "digits.npz"
    with resources.as_file(place) as path, np.load(path) as stored:
        return Digits(stored["images"].astype(float), stored["labels"].astype(int))
