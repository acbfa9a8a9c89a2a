"""Softmax and statistics run in at least float32, whatever the compute dtype."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def at_least_float32(dtype: np.dtype) -> np.dtype:
    """`dtype`, or float32 where that is wider."""
    return np.dtype(np.float32) if jnp.finfo(dtype).bits < 32 else dtype


def upcast(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`x` in at least float32."""
    return x.astype(at_least_float32(x.dtype))
