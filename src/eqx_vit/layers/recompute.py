"""What the backward pass keeps, and what it computes again.

A training step on a CPU spends much of its time on memory that it touches for the first time, and a scan copies all
that it keeps. So of a block in a scan only what is dear to compute is kept: products with weights, mixed values,
statistics, random bits. Norms, activations and attention weights are computed again, in the loops that use them. For
the same reason long sequences go in `pieces`, small enough for the processor's cache.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Shaped


def dear(x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
    """`x`, which `lean` functions keep for the backward pass."""
    return checkpoint_name(x, "dear")


def lean(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, of whose insides only what is dear is kept for the backward pass."""
    # Nothing has to stop the compiler from merging both computations: within a scan it cannot.
    policy = jax.checkpoint_policies.save_only_these_names("dear")
    return eqx.filter_checkpoint(function, policy=policy, prevent_cse=False)


def pieces(x: Shaped[Array, "..."] | None, axis: int, count: int) -> Shaped[Array, "..."] | None:
    """`count` equal pieces along an axis, stacked; padded where it does not divide."""
    if x is None:
        return None
    length = -(-x.shape[axis] // count)
    padding = [(0, length * count - size if at == axis else 0) for at, size in enumerate(x.shape)]
    split = jnp.pad(x, padding).reshape(*x.shape[:axis], count, length, *x.shape[axis + 1 :])
    return jnp.moveaxis(split, axis, 0)
