"""The result tree in the ArviZ schema, and the table of a summary."""

import dataclasses
import json
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr
from arviz_base import from_dict

from bayeskit import evaluation
from bayeskit._version import __version__
from bayeskit.precision import double_precision
from bayeskit.results import positive_count
from bayeskit.validation import chosen_names

_PARTS = ["real", "imag"]
_SUMMARY_SCALARS = 100
_SUMMARY_ENTRIES = 20


def result_tree(posterior, num_draws, key, sites, max_bytes, posterior_predictive, predictions):
    """See :meth:`bayeskit.Posterior.to_datatree`."""
    mean, variance, labels = posterior.mean, posterior.variance, posterior.names
    random_sites = [name for name in mean if name not in posterior.plugged_in]
    wanted = chosen_names("sites", sites, random_sites, "random sites")
    targets = {}
    if posterior_predictive:
        targets["posterior_predictive"] = posterior.target(None)
    if predictions is not None:
        targets["predictions"] = posterior.target(predictions)
    inputs = {group: target.inputs for group, target in targets.items()}
    drawn, simulated = _draws(posterior, wanted, num_draws, key, inputs, max_bytes)
    lead = () if posterior.batch is None else ("batch",)
    sample_dims = [*lead, "chain", "draw"]
    tree = from_dict(
        {"posterior": drawn} if drawn else {},
        dims={name: list(_dims(labels.dims[name], value)) for name, value in mean.items()},
        coords={**labels.coords, "part": _PARTS},
        sample_dims=sample_dims,
    )
    datasets = {"moments": _moments(mean, variance, labels, lead)}
    for group, values in simulated.items():
        target = targets[group]
        coords = {**labels.coords_of(lead), **target.coords}
        variable = _variable(values, (*sample_dims, *target.dims), coords)
        datasets[group] = xr.Dataset({labels.observed: variable})
    for group, tables in posterior.prepared.tables.items():
        datasets[group] = xr.Dataset(
            {name: _variable(value, dims, labels.coords) for name, (dims, value) in tables.items()}
        )
    datasets.update(_traces(posterior.trace, lead))
    if posterior.chains is not None and posterior.batch is None:
        datasets["log_likelihood"] = _log_likelihood(posterior)
    for name, dataset in datasets.items():
        tree[name] = xr.DataTree(dataset)
    tree.attrs.update(_attributes(posterior))
    return tree


def _draws(posterior, sites, num_draws, key, targets, max_bytes):
    """Draws by site and simulated data by group, none where neither is asked for."""
    if not sites and not targets:
        return {}, {}
    chains, draws = posterior.chains or (1, positive_count("num_draws", num_draws))
    with double_precision():
        if key is None:
            base = (
                jax.random.key(0)
                if posterior.key is None
                else jax.random.wrap_key_data(jnp.asarray(posterior.key))
            )
            key = jax.random.fold_in(base, 1)
        each = {name: posterior.mean[name].nbytes for name in sites}
        each |= _bytes_of_data(posterior, targets)
    size = chains * draws * sum(each.values())
    if size > max_bytes:
        raise ValueError(
            f"the draws of {', '.join(each)} would take {size / 1e9:.3g} GB, more than "
            f"max_bytes={max_bytes / 1e9:.3g} GB: lower num_draws (now {draws}), choose fewer "
            "sites, or raise max_bytes"
        )
    if posterior.chains is None:
        # The program that ``sample`` has compiled.
        drawn = posterior.sample(key, draws)
        lead = () if posterior.batch is None else (slice(None),)
        drawn = {name: value[(*lead, None)] for name, value in drawn.items()}
    else:
        drawn = posterior.evaluate_random(evaluation.chain_draws, key)
    simulated = {}
    if targets:
        simulated = posterior.evaluate_random(
            evaluation.simulated, key, (chains, draws), targets, drawn=drawn
        )
    return {name: _split_complex(drawn[name]) for name in sites}, simulated


def _bytes_of_data(posterior, targets):
    """Bytes of one simulated data set of every group."""
    model = posterior.prepared.model
    items = posterior.mean, posterior.prepared.data
    if posterior.batch is not None:
        items = jax.tree.map(lambda leaf: leaf[0], items)
    mean, data = items
    shapes = {
        name: eqx.filter_eval_shape(model.sample_data, data, jax.random.key(0), mean, inputs)
        for name, inputs in targets.items()
    }
    count = 1 if posterior.batch is None else posterior.batch
    return {
        name: count * math.prod(leaf.shape) * leaf.dtype.itemsize for name, leaf in shapes.items()
    }


def _split_complex(array):
    array = np.asarray(array)
    return np.stack([np.real(array), np.imag(array)], -1) if np.iscomplexobj(array) else array


def _dims(dims, array):
    """Dimension names with ``part`` for a complex array."""
    return (*dims, "part") if np.iscomplexobj(array) else tuple(dims)


def _variable(value, dims, coords):
    """Real numbers with named dimensions, and integers where there are no coordinates."""
    value = np.asarray(value)
    array = xr.DataArray(_split_complex(value), dims=_dims(dims, value))
    known = {**coords, "part": _PARTS}
    return array.assign_coords(
        {dim: known.get(dim, np.arange(size)) for dim, size in array.sizes.items()}
    )


def _moments(mean, variance, labels, lead):
    variables = {}
    for site in mean:
        dims = (*lead, *labels.dims[site])
        variables[f"{site}_mean"] = _variable(mean[site], dims, labels.coords)
        variables[f"{site}_variance"] = _variable(variance[site], dims, labels.coords)
    return xr.Dataset(variables)


def _traces(trace, lead):
    datasets = {}
    for group, dims in (("optimization", ("iteration",)), ("sample_stats", ("chain", "draw"))):
        if trace.get(group):
            datasets[group] = xr.Dataset(
                {name: ((*lead, *dims), values) for name, values in trace[group].items()}
            )
    return datasets


def _log_likelihood(posterior):
    labels = posterior.names
    left_out, _ = posterior.evaluate(evaluation.log_predictive)
    dims = labels.dims[labels.observed][: left_out.ndim - 2]
    variables = {labels.observed: (("chain", "draw", *dims), left_out)}
    return xr.Dataset(variables, coords=labels.coords_of(dims))


def _attributes(posterior):
    versions = {module.__name__: module.__version__ for module in (jax, np, xr)}
    convergence = {
        field.name: np.asarray(getattr(posterior.convergence, field.name)).tolist()
        for field in dataclasses.fields(posterior.convergence)
        if field.name != "objective"
    }
    seed = None if posterior.key is None else np.asarray(posterior.key).tolist()
    return {
        "inference_library": "bayeskit",
        "inference_library_version": __version__,
        "versions": json.dumps(versions),
        "model": repr(posterior.model),
        "method": repr(posterior.method),
        "settings": json.dumps(posterior.method.settings()),
        "seed": json.dumps(seed),
        "convergence": json.dumps(convergence),
        "plugged_in": json.dumps(list(posterior.plugged_in)),
    }


def summary_table(posterior, sites):
    """See :meth:`bayeskit.Posterior.summary`."""
    mean, variance, labels = posterior.mean, posterior.variance, posterior.names
    wanted = chosen_names("sites", sites, list(mean), "sites")
    rows, large = {}, {}
    for site in wanted:
        center, spread = np.asarray(mean[site]), np.sqrt(np.asarray(variance[site]))
        indices = list(np.ndindex(center.shape))
        if center.size > _SUMMARY_SCALARS:
            indices = _most_certain(center, spread)
            large[site] = {
                "size": int(center.size),
                "norm": float(np.linalg.norm(center)),
                "mean_variance": float(np.mean(variance[site])),
            }
        for name, index in zip(_entries(site, indices, labels), indices, strict=True):
            rows[name] = {"mean": center[index], "sd": float(spread[index])}
    table = pd.DataFrame.from_dict(rows, orient="index")
    diagnostics = posterior.trace.get("diagnostics", {})
    for column in ("rhat", "ess_bulk"):
        values = {
            name: float(value)
            for site, array in diagnostics.get(column, {}).items()
            # Chains may be judged by more than their sites.
            if site in labels.dims
            for name, value in zip(
                _entries(site, list(np.ndindex(np.shape(array))), labels),
                np.ravel(array),
                strict=True,
            )
        }
        if values:
            table[column] = [values.get(name, np.nan) for name in table.index]
    table["plugged_in"] = [name.partition("[")[0] in posterior.plugged_in for name in table.index]
    table.attrs["large_sites"] = large
    return table


def _most_certain(center, spread):
    """Indices of the entries with the largest ``|mean| / sd``; of equal ones, the largest."""
    with np.errstate(divide="ignore", invalid="ignore"):
        score = np.nan_to_num(np.abs(center) / spread, nan=0.0)
    order = np.lexsort((-np.abs(center).ravel(), -score.ravel()))[:_SUMMARY_ENTRIES]
    return [tuple(int(i) for i in np.unravel_index(flat, center.shape)) for flat in order]


def _entries(site, indices, labels):
    """Names of entries of a site: coordinates of their places, numbers where those repeat."""
    texts = []
    for dim in labels.dims[site] if indices and indices[0] else ():
        values = labels.coords.get(dim)
        names = None if values is None else [str(value) for value in np.asarray(values)]
        texts.append(names if names is not None and len(set(names)) == len(names) else None)
    for index in indices:
        places = [
            str(i) if names is None else names[i] for i, names in zip(index, texts, strict=True)
        ]
        yield f"{site}[{', '.join(places)}]" if places else site
