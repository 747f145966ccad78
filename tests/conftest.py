"""What all tests share."""

import gc
from pathlib import Path

import jax
import pytest

# Tracing makes many objects that live as long as the programs: looking through all of them for
# garbage as often as Python does by default is a twentieth of the tests' time.
gc.set_threshold(50_000, 20, 100)

# Linux allows a process 65 530 memory maps, and every compiled program takes some: a worker that
# has compiled thousands aborts. Well before, what was compiled is dropped.
_MAPS = Path("/proc/self/maps")
_MOST_MAPS = 30_000


@pytest.fixture(autouse=True)
def _few_memory_maps():
    yield
    if _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > _MOST_MAPS:
        jax.clear_caches()
