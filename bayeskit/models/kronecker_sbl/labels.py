"""Names and coordinates of dimensions: what users give must be distinct and must agree."""

import numpy as np

from bayeskit.results import Labels
from bayeskit.validation import coordinates_along, dimension_name

# Of the result tree's own dimensions and variables.
_RESERVED = {"batch", "chain", "coefficients", "draw", "iteration", "noise_variance", "part", "y"}


def _require_equal(name, one, first, other, second):
    """Raise where two arrays give one dimension different coordinates."""
    if first is None or second is None or np.array_equal(first, second):
        return
    if len(first) != len(second):
        detail = f"{len(first)} and {len(second)} of them"
    else:
        index = int(np.argmax(np.asarray(first) != np.asarray(second)))
        detail = f"at {index} they are {first[index]} and {second[index]}"
    raise ValueError(
        f"{one} and {other} have different coordinates along {name!r} ({detail}); reorder or "
        "select one of them, so that both have the same in the same order"
    )


def _require_distinct(places):
    """Raise where one name stands for two dimensions, or for something of the result's own."""
    seen = {}
    for name, place in places:
        if name in _RESERVED or name.startswith(("scales_", "dictionary_")):
            raise ValueError(f"{place} has the dimension {name!r}, a name of the result's own")
        if name in seen:
            raise ValueError(
                f"{seen[name]} and {place} both have the dimension {name!r}; every dimension "
                "needs a name of its own (rename them)"
            )
        seen[name] = place


def make_labels(data, dictionaries, layout, batch) -> Labels:
    """Names and coordinates of all dimensions.

    Raises
    ------
    ValueError
        If names repeat, or data and dictionaries disagree on the name or the coordinates of a
        dimension that they share.
    """
    axes = len(dictionaries)
    atoms = tuple(dimension_name(d, 1, f"atoms_{i}") for i, d in enumerate(dictionaries))
    lead = tuple(
        dimension_name(data, axis, "snapshot") for axis in [int(batch)] if layout.snapshots
    )
    rows = tuple(
        dimension_name(data, i - axes, dimension_name(d, 0, f"measurements_{i}"))
        for i, d in enumerate(dictionaries)
    )
    places = [(name, "data") for name in (*lead, *rows)]
    places += [(name, f"dictionaries[{i}]") for i, name in enumerate(atoms)]
    coords = {}
    if batch:
        coords["batch"] = coordinates_along(data, 0)
    for name in lead:
        coords[name] = coordinates_along(data, int(batch))
    for i, (row, atom, dictionary) in enumerate(zip(rows, atoms, dictionaries, strict=True)):
        name = f"dictionaries[{i}]"
        own = dimension_name(dictionary, 0, row)
        if own != row:
            raise ValueError(
                f"data has the dimension {row!r} where {name} has {own!r}; the data's dimensions "
                "are those of the dictionaries' rows, in their order"
            )
        of_data, of_rows = coordinates_along(data, i - axes), coordinates_along(dictionary, 0)
        _require_equal(row, "data", of_data, name, of_rows)
        coords[row] = of_rows if of_data is None else of_data
        coords[atom] = coordinates_along(dictionary, 1)
    _require_distinct(places)
    dims = {"coefficients": (*lead, *atoms), "noise_variance": (), "y": (*lead, *rows)}
    for g, group in enumerate(layout.groups):
        dims[f"scales_{g}"] = tuple(atoms[axis] for axis in group)
    return Labels(dims, {k: v for k, v in coords.items() if v is not None}, "y")


def prediction_labels(inputs, layout, labels):
    """Names and coordinates of the dimensions of predictions at new dictionaries."""
    lead = labels.dims["y"][:1] if layout.snapshots else ()
    atoms = labels.dims["coefficients"][len(lead) :]
    rows = tuple(dimension_name(d, 0, f"prediction_{i}") for i, d in enumerate(inputs))
    coords = {name: labels.coords[name] for name in lead if name in labels.coords}
    for i, (row, atom, new) in enumerate(zip(rows, atoms, inputs, strict=True)):
        own = dimension_name(new, 1, atom)
        if own != atom and not atom.startswith("atoms_"):
            raise ValueError(
                f"inputs[{i}] has the dimension {own!r} where the dictionary has {atom!r}"
            )
        _require_equal(
            atom,
            f"inputs[{i}]",
            coordinates_along(new, 1),
            f"dictionaries[{i}]",
            labels.coords.get(atom),
        )
        if coordinates_along(new, 0) is not None:
            coords[row] = coordinates_along(new, 0)
    _require_distinct([(name, "inputs") for name in (*lead, *rows)])
    return (*lead, *rows), coords
