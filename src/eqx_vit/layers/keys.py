"""Random keys: one that a user gave, and several of which none may be needed."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from eqx_vit.layers.config import shorten


def check_key(key: object) -> PRNGKeyArray:
    """The key itself.

    **Raises:** `ValueError` for anything but one random key.
    """
    if isinstance(key, jax.Array):
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ():
            return key
        if key.dtype == jnp.uint32 and key.shape == (2,):
            return key
        given = f"an array of shape {key.shape} and dtype {key.dtype}"
    else:
        given = shorten(key)
    raise ValueError(f"key must be one random key such as jax.random.key(0), given {given}")


def split_or_none(key: PRNGKeyArray | None, num: int = 2) -> tuple[PRNGKeyArray | None, ...]:
    """`num` independent keys, or `num` times None where no key is given (inference, or every rate 0)."""
    return (None,) * num if key is None else tuple(jax.random.split(key, num))


def stack_or_none(key: PRNGKeyArray | None, num: int) -> Array | None:
    """`num` independent keys as one array, to be mapped over, or None where no key is given."""
    return None if key is None else jax.random.split(key, num)
