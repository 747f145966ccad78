"""Images as rows of their pixels, and back."""

import numpy as np

from bayeskit.models import tables
from bayeskit.validation import coordinates_along, dimension_name

SITE = "image"  # whose dimensions labels have, where rows are images
_NAMES = ("height", "width", "channel")


def rows_of(data, batch):
    """Rows (…, n, D) of data, and the shape of one: (D,), or (H, W) or (H, W, C) of images.

    Raises
    ------
    TypeError, ValueError
        As :func:`bayeskit.models.tables.array_of`.
    """
    lead = 1 + bool(batch)
    axes = getattr(data, "ndim", lead + 1)
    if axes in (lead + 2, lead + 3):
        expected = f"({'batch, ' * bool(batch)}n, {', '.join(_NAMES[: axes - lead])})"
        values = tables.array_of("data", data, axes, expected)
    else:
        values = tables.array_of("data", data, lead + 1)
    return values.reshape(*values.shape[:lead], -1), values.shape[lead:]


def dimensions_of(data, batch, shape) -> dict:
    """Names of the dimensions of one image, with their coordinates; of rows, nothing."""
    if len(shape) == 1:
        return {}
    lead = 1 + bool(batch)
    found = {}
    for axis, (size, name) in enumerate(zip(shape, _NAMES, strict=False), lead):
        known = coordinates_along(data, axis)
        found[dimension_name(data, axis, name)] = np.arange(size) if known is None else known
    return found


def _shape_of(labels):
    return tuple(len(labels.coords[name]) for name in labels.dims.get(SITE, ()))


def as_rows(inputs, labels):
    """Inputs of a prediction as rows, where the data are images.

    Raises
    ------
    TypeError, ValueError
        If they are no images of the data's shape.
    """
    shape = _shape_of(labels)
    if not shape:
        return inputs
    expected = f"({', '.join(map(str, ('rows', *shape)))}), images of the data's size"
    values = tables.array_of("inputs", inputs, 1 + len(shape), expected)
    if values.shape[1:] != shape:
        raise ValueError(f"inputs must have the shape {expected}, got {values.shape}")
    return values.reshape(len(values), -1)


def as_images(rows, labels):
    """Rows (…, D) in the shape of the data's."""
    shape = _shape_of(labels)
    return rows.reshape(*rows.shape[:-1], *shape) if shape else rows
