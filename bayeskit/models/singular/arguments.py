"""Arguments of :class:`~bayeskit.models.SingularDistribution`, checked."""

import equinox as eqx
import numpy as np

from bayeskit.models.singular import deep
from bayeskit.validation import check_number


def described(network):
    """How a network is shown: as it was stated, or by the name of its class."""
    return repr(network) if isinstance(network, (tuple, str)) else type(network).__name__


def network(name, value, words):
    """Width and depth, one of some words, or a module."""
    if deep.is_network_shape(value) or isinstance(value, eqx.Module):
        return value
    if isinstance(value, str) and value in words:
        return value
    expected = "".join(f", {word!r}" for word in words)
    raise TypeError(
        f"{name} must be a pair of width and depth such as (64, 2){expected} or an equinox module, "
        f"got {value!r}"
    )


def levels(value):
    """A level, several as a tuple, or ``"auto"``."""
    if isinstance(value, str):
        if value != "auto":
            raise ValueError(f"perturbation must be 'auto', a number or several, got {value!r}")
        return value
    if not isinstance(value, (tuple, list, np.ndarray)):
        return check_number("perturbation", value, 0.0)
    found = [check_number("perturbation", level, 0.0) for level in np.atleast_1d(value)]
    if not found:
        raise ValueError("perturbation has no levels: state one, several, or 'auto'")
    if len(set(found)) < len(found):
        raise ValueError(f"perturbation has a level twice: {found}")
    return tuple(found) if len(found) > 1 else found[0]
