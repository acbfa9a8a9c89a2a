"""What XLA has compiled, kept for the next command: JAX's persistent compilation cache, in the user's cache folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from eqx_vit.files import cache_folder

FOLDER = "compiled"
LARGEST = 2**30  # bytes; what was used longest ago goes first
SHORTEST = 0.2  # seconds of compilation that are worth a file


@contextmanager
def keep_compiled() -> Iterator[None]:
    """Within it, JAX looks in the user's cache folder before it compiles; whoever has set a cache keeps that one."""
    given, enabled = (
        getattr(jax.config, name) for name in ("jax_compilation_cache_dir", "jax_enable_compilation_cache")
    )
    if given is not None or not enabled:
        yield
        return
    settings = {
        "jax_compilation_cache_dir": str(cache_folder() / FOLDER),
        "jax_persistent_cache_min_compile_time_secs": SHORTEST,
        "jax_persistent_cache_min_entry_size_bytes": 0,
        # JAX needs filelock, which huggingface_hub brings, to keep count of a cache's size.
        "jax_compilation_cache_max_size": LARGEST if find_spec("filelock") else -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    reset_cache()  # JAX may have found already that there is none
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        reset_cache()
