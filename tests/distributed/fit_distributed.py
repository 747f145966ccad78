"""Fits sharded data and compares with single-device fits; run by test_distributed.py.

Arguments: family, number of processes, index of this one, port. One process forces eight devices,
two processes four each.
"""

import os
import re
import sys
import warnings

family = sys.argv[1]
processes, index, port = (int(argument) for argument in sys.argv[2:])
flags = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={8 // processes}"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402

if processes > 1:
    jax.distributed.initialize(f"127.0.0.1:{port}", processes, index)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import numpyro.distributions as dist  # noqa: E402
from jax.sharding import NamedSharding, PartitionSpec  # noqa: E402

import bayeskit as bk  # noqa: E402
from bayeskit.inference import driver  # noqa: E402
from bayeskit.models.functional_tucker import data as tables  # noqa: E402
from bayeskit.models.gaussian_mixture import data as mixtures  # noqa: E402
from bayeskit.precision import gathered  # noqa: E402

mesh = bk.make_mesh((8,), ("x",))
sharding = NamedSharding(mesh, PartitionSpec("x"))


def spread(array):
    """An array in double precision, over all devices."""
    with jax.enable_x64(True):
        return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])


def kronecker_sbl():
    """A tensor: whole fit, shardings, and what the compiled program holds and sends."""
    shape, atoms = (16, 12, 10), (24, 16, 12)
    problem = bk.datasets.kronecker_sparse(0, shape=shape, atoms=atoms, nonzeros=(3, 3, 2))
    model = bk.models.KroneckerSBL(problem.dictionaries)
    measurements = spread(problem.measurements)
    distributed = bk.infer(model, measurements)
    single = bk.infer(model, problem.measurements)
    for name, moments in (("mean", "mean"), ("variance", "variance")):
        whole = getattr(single, moments)["coefficients"]
        found = getattr(distributed, moments)["coefficients"]
        assert isinstance(found, jax.Array), f"{name} was gathered"
        largest = max(shard.data.size for shard in found.addressable_shards)
        assert largest <= whole.size / 8, f"a device holds {largest} of {whole.size} entries"
        error = np.max(np.abs(gathered(found) - whole)) / np.max(np.abs(whole))
        assert error < 1e-10, f"{name} differs by {error}"
    assert abs(distributed.log_evidence - single.log_evidence) < 1e-8 * abs(single.log_evidence)
    assert distributed.convergence.iterations == single.convergence.iterations

    with jax.enable_x64(True):
        prepared = model.prepare(measurements)
        method = driver.as_leaves(bk.inference.EM())
        arguments = (method, prepared.model, prepared.data)
        states = driver._start(*arguments, jax.random.key(0), None)
        lowered = driver._advance.lower(*arguments, states, 50, jnp.asarray(50))
        program = lowered.compile().compiled.as_text()
    tensor_size, factor_size = np.prod(shape), max(m * n for m, n in zip(shape, atoms, strict=True))
    for found in set(re.findall(r"f64\[([\d,]+)\]", program)):
        size = np.prod([int(length) for length in found.split(",")])
        assert size < tensor_size, f"an array of the full tensor's size is compiled: {found}"
    sent = re.findall(r"%all-gather[.\d]* = f64\[([\d,]+)\]", program)
    for found in sent:
        size = np.prod([int(length) for length in found.split(",")])
        assert size <= factor_size, f"more than one factor is gathered: {found}"


def functional_tucker():
    """Rows of a table, in more than one block, which have to be filled up."""
    count = 252
    generator = np.random.default_rng(0)
    indices = generator.uniform(size=(count, 2)).round(1)
    values = np.sin(6 * indices[:, 0]) * np.cos(4 * indices[:, 1]) + 0.1 * generator.normal(
        size=count
    )
    tables._BLOCK_NUMBERS = 1000
    table = spread(indices[:248]), spread(values[:248])
    model = bk.models.FunctionalTucker(["x", "z"], ranks=2)
    settings = bk.inference.MessagePassing(max_iterations=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bk.ConvergenceWarning)
        distributed = bk.infer(model, table, settings)
        single = bk.infer(model, (indices[:248], values[:248]), settings)
    rows = distributed.prepared.data.rows.values
    assert max(shard.data.size for shard in rows.addressable_shards) == rows.size / 8
    assert rows.size > 248, "no row was added to fill up"
    assert abs(distributed.log_evidence - single.log_evidence) < 1e-8 * abs(single.log_evidence)
    there, here = (each.predict(indices[248:]) for each in (distributed, single))
    assert np.max(np.abs(there.mean - here.mean)) < 1e-8
    assert np.max(np.abs(there.variance / here.variance - 1)) < 1e-8


def spectral_pde():
    """Sensors, which are gathered: the fit is the same to the last digit."""
    generator = np.random.default_rng(0)
    places = generator.uniform(size=24)
    readings = np.sin(12 * places) + 0.02 * generator.normal(size=24)
    rate = bk.pde.Unknown("rate", dist.Normal(100.0, 50.0))
    pde = bk.pde.PDE(lambda u, x: u.d("x", 2) + rate * u(), {"x": (0.0, 1.0)}, [])
    model = bk.models.SpectralPDE(pde, grid={"x": 24}, kernel=bk.models.SpectralMixture(2))
    there = bk.infer(model, bk.pde.Sensors({"x": spread(places)}, spread(readings)))
    here = bk.infer(model, bk.pde.Sensors({"x": places}, readings))
    assert there.mean["rate"] == here.mean["rate"]
    np.testing.assert_array_equal(there.mean["solution"], here.mean["solution"])
    assert abs(here.mean["rate"] - 144.0) < 4 * np.sqrt(here.variance["rate"])


def gaussian_mixture():
    """Rows in more than one block, which have to be filled up, some incomplete."""
    generator = np.random.default_rng(0)
    kinds = np.arange(248) % 3
    rows = 6.0 * np.eye(3)[kinds] + generator.normal(size=(248, 3)) * (1.0 + kinds[:, None])
    incomplete = rows.copy()
    incomplete[::7, 1] = np.nan
    mixtures._BLOCK_NUMBERS = 1500
    sdp = bk.inference.SemidefiniteProgram(max_iterations=2, sketch_size=60)
    methods = {
        "EM": (bk.inference.EM(max_iterations=40), incomplete),
        "messages": (bk.inference.MessagePassing(max_iterations=40), rows),
        "programs": (sdp, rows),
    }
    model = bk.models.GaussianMixture(3)
    for name, (method, table) in methods.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", bk.ConvergenceWarning)
            there = bk.infer(model, spread(table), method, key=0)
            here = bk.infer(model, table, method, key=0)
        placed = there.prepared.data.rows.values
        assert max(shard.data.size for shard in placed.addressable_shards) == placed.size / 8, name
        assert placed.shape[0] > 1, "there is one block"
        assert placed.shape[0] * placed.shape[1] > 248, "no row was added to fill up"
        assert abs(there.log_evidence - here.log_evidence) < 1e-9, name
        assert np.max(np.abs(there.responsibilities() - here.responsibilities())) < 1e-10, name
        new = there.predict(incomplete[:9]), here.predict(incomplete[:9])
        assert np.max(np.abs(new[0].mean - new[1].mean)) < 1e-10, name


def singular():
    """Rows of networks, which have to be filled up, in batches over all devices; and of a plane."""
    generator = np.random.default_rng(0)
    rows = np.sin(generator.normal(size=(252, 2)) @ generator.normal(size=(2, 6)))
    # Four parts, which become eight.
    parts = NamedSharding(bk.make_mesh((4, 2), ("x", "y")), PartitionSpec("x"))
    with jax.enable_x64(True):
        table = jax.make_array_from_callback(rows.shape, parts, lambda part: rows[part])
    model = bk.models.SingularDistribution(2, decoder=(16, 1), perturbation=(0.05, 0.2))
    method = bk.inference.VariationalInference(max_iterations=50, tolerance=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bk.BayeskitWarning)
        there, here = (bk.infer(model, each, method, key=0) for each in (table, rows))
        placed = there.prepared.data.values
        assert placed.shape[0] == 256, "no row was added to fill up"
        assert max(shard.data.size for shard in placed.addressable_shards) == placed.size / 8
        for site in ("decoder_weights", "latents", "noise_variance", "last_layer"):
            error = np.max(np.abs(gathered(there.mean[site]) - here.mean[site]))
            assert error < 1e-6, f"{site} differs by {error}"
        with jax.enable_x64(True):
            prepared = model.prepare(table)
            arguments = (driver.as_leaves(method), prepared.model, prepared.data)
            states = driver._start(*arguments, jax.random.key(0), None)
            lowered = driver._advance.lower(*arguments, states, 50, jnp.asarray(50))
            program = lowered.compile().compiled.as_text()
        # Eight of 64 rows, ten particles each, two settings: the hidden units of one device.
        assert re.search(r"f64\[[\d,]*10,8,16\]", program), "batches are not spread"
        assert not re.search(r"f64\[[\d,]*10,64,16\]", program), "a device computes whole batches"
    plane = bk.models.SingularDistribution(2, decoder="linear", perturbation=0.1)
    incomplete = rows[:248].copy()
    incomplete[::5, 1] = np.nan
    there, here = (bk.infer(plane, each) for each in (spread(incomplete), incomplete))
    assert abs(there.log_evidence - here.log_evidence) < 1e-9 * abs(here.log_evidence)
    assert np.max(np.abs(gathered(there.mean["latents"]) - here.mean["latents"])) < 1e-8


FAMILIES = (kronecker_sbl, functional_tucker, spectral_pde, gaussian_mixture, singular)
{each.__name__: each for each in FAMILIES}[family]()
print("distributed fit equals the single-device fit")
