"""Pooling: the largest values of a map's windows, and the one vector that a head reads from tokens."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from eqx_vit.layers import kernels


def max_pool(
    x: Float[Array, "height width dim"], size: int, stride: int, padding: tuple[int, int]
) -> Float[Array, "new_height new_width dim"]:
    """The largest value of each `size` x `size` window; `padding` (before, after) both axes never wins."""
    return kernels.max_pool(x, size, stride, padding)


def pool_tokens(tokens: Float[Array, "tokens dim"], pool: Literal["cls", "mean"], prefix: int) -> Float[Array, " dim"]:
    """The first token, or the mean of the patches: all tokens but the `prefix` first."""
    return tokens[0] if pool == "cls" else jnp.mean(tokens[prefix:], axis=0)
