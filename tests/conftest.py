"""The settings of every test: strict dtype and rank promotion, exact float32 matrix products, a quiet Hypothesis."""

import gc
import os
from pathlib import Path

import jax
import pytest
from hypothesis import settings
from tiny import TINY

# No test finds, or leaves, what was compiled elsewhere; nor does a command that one starts.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
jax.config.update("jax_enable_compilation_cache", False)
jax.config.update("jax_num_cpu_devices", 8)  # so that a batch can be sharded
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")
# Compilation is the cost of these tests, not the tiny models.
jax.config.update("jax_disable_most_optimizations", True)

# No deadline: the first example of a shape traces. Derandomised: a failure is found by everybody or by nobody.
settings.register_profile("default", deadline=None, derandomize=True, max_examples=20)
settings.register_profile("thorough", deadline=None, derandomize=True, max_examples=200)
settings.load_profile("default")

MAPS = Path("/proc/self/maps")


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """The tests of one architecture go to one worker, which then builds and traces it once."""
    for item in items:
        name = item.callspec.params.get("name") if hasattr(item, "callspec") else None
        if name in TINY:
            item.add_marker(pytest.mark.xdist_group(name))


@pytest.fixture(autouse=True)
def few_executables():
    """Every compiled function holds memory maps, of which Linux allows a process 65,530: at the last XLA crashes."""
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()
        gc.collect()
