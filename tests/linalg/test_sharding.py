"""Kronecker products of tensors that are spread over eight devices."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from bayeskit.linalg import make_mesh, shard_along, to_auto_mesh

PRELUDE = """
import re
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from bayeskit.linalg import kronecker_multiply, make_mesh, shard_along, to_auto_mesh

jax.config.update("jax_enable_x64", True)
generator = np.random.default_rng(0)

def problem(*shapes):
    factors = [jnp.asarray(generator.normal(size=shape)) for shape in shapes]
    tensor = generator.normal(size=[columns for _, columns in shapes])
    return factors, tensor, kronecker_multiply(factors, jnp.asarray(tensor))

def assert_equal(result, expected):
    assert np.linalg.norm(result - expected) <= 1e-12 * np.linalg.norm(expected)

def assert_spread(result):
    sizes = [shard.data.size for shard in result.addressable_shards]
    assert len(sizes) == 8 and max(sizes) <= -(-result.size // 8) * 1.1, sizes

def collectives(function, *arguments):
    text = jax.jit(function).lower(*arguments).compile().as_text()
    names = ["all-gather", "all-to-all", "all-reduce", "collective-permute"]
    return {name: len(re.findall(rf" {name}(?:-start)?\\(", text)) for name in names}
"""

CASES = {
    "Auto mesh": """
factors, tensor, expected = problem((32, 64), (24, 32), (16, 16))
mesh = make_mesh((8,), ("d",))
tensor = jax.device_put(tensor, NamedSharding(mesh, PartitionSpec("d")))
result = jax.jit(kronecker_multiply)(factors, tensor)
assert_equal(result, expected)
assert_spread(result)
found = collectives(kronecker_multiply, factors, tensor)
assert found["all-gather"] == 0 and 1 == found["all-to-all"], found
assert found["all-reduce"] == found["collective-permute"] == 0, found
assert_equal(kronecker_multiply(factors, tensor), expected)

# A mesh of two axes.
factors, tensor, expected = problem((16, 16), (64, 64), (16, 16))
mesh = make_mesh((4, 2), ("a", "b"))
tensor = jax.device_put(tensor, NamedSharding(mesh, PartitionSpec(None, ("a", "b"))))
result = jax.jit(kronecker_multiply)(factors, tensor)
assert_equal(result, expected)
assert_spread(result)
found = collectives(kronecker_multiply, factors, tensor)
assert found["all-gather"] == 0 and found["all-to-all"] == 1, found

# Rows that the devices do not divide.
factors, tensor, expected = problem((30, 30), (20, 20), (16, 16))
mesh = make_mesh((8,), ("d",))
spread = NamedSharding(mesh, PartitionSpec("d"))
replicated = jax.device_put(tensor, NamedSharding(mesh, PartitionSpec()))

@jax.jit
def product(factors, tensor):
    return kronecker_multiply(factors, shard_along(tensor, 0))

assert_equal(product(factors, replicated), expected)
found = collectives(lambda *a: jnp.linalg.norm(product(*a)), factors, replicated)
assert found["all-gather"] == 0, found
assert_equal(kronecker_multiply(factors, replicated), expected)
""",
    "Explicit mesh": """
factors, tensor, expected = problem((32, 64), (24, 32), (16, 16))
mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Explicit,))
tensor = jax.device_put(tensor, NamedSharding(mesh, PartitionSpec("d")))
try:
    jax.jit(kronecker_multiply)(factors, tensor)
except TypeError as error:
    assert "to_auto_mesh" in str(error)
else:
    raise AssertionError("an Explicit mesh was taken")
moved = to_auto_mesh(tensor)
before, after = tensor.addressable_shards, moved.addressable_shards
assert [s.device for s in before] == [s.device for s in after]
result = jax.jit(kronecker_multiply)(factors, moved)
assert_equal(result, expected)
assert_spread(result)
found = collectives(kronecker_multiply, factors, moved)
assert found["all-gather"] == 0 and found["all-to-all"] == 1, found
try:
    jax.jit(to_auto_mesh)(tensor)
except TypeError as error:
    assert "before any jit" in str(error)
else:
    raise AssertionError("a traced Explicit mesh was taken")
""",
}


@pytest.mark.parametrize("case", CASES)
def test_product_on_eight_devices_equals_one_device_and_stays_spread(case):
    environment = dict(os.environ, XLA_FLAGS="--xla_force_host_platform_device_count=8")
    environment["JAX_PLATFORMS"] = "cpu"
    finished = subprocess.run(
        [sys.executable, "-c", PRELUDE + CASES[case]],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]


def test_without_a_mesh_nothing_is_moved():
    tensor = jnp.ones((3, 2))
    assert shard_along(tensor, 0) is tensor
    assert to_auto_mesh(tensor) is tensor


def test_mesh_has_auto_axes_and_says_what_it_cannot_be():
    assert make_mesh((1,), ("rows",)).axis_types == (jax.sharding.AxisType.Auto,)
    with pytest.raises(ValueError, match="asks for 4096 devices"):
        make_mesh((64, 64), ("a", "b"))
    with pytest.raises(ValueError, match="names has 1 entries"):
        make_mesh((1, 1), ("a",))
